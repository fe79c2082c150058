"""Failures on demand, to see what a run does about them: ``--inject kill@subtraction:S3:1``."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.task import STEPS

KINDS: dict[str, str] = {
    "raise": "an unforeseen exception: the section fails, as a bug",
    "hang": "the step never ends, but can be interrupted: the section fails after run.step_timeout_s",
    "stop": "the process stops dead (SIGSTOP): killed after run.step_timeout_s and a grace",
    "kill": "the compute process is killed (SIGKILL), as by the system when memory runs out: tried again",
    "segv": "the compute process ends by a segmentation fault: tried again",
    "oom": "an allocation fails (MemoryError): tried again",
    "lose": "the whole rank is killed: the job ends, the next one resumes",
}
"""Kinds of failure, and what a run does about each."""
_LAST = "finalize"
_FORM = re.compile(r"(?P<kind>\w+)@(?P<step>\w+)(:(?P<section>[^:]*))?(:(?P<attempt>\d+|\*))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure at the beginning of a step.

    Attributes
    ----------
    kind : one of `KINDS`.
    step : a step, or ``finalize`` (the products become durable).
    section : section id, ``*`` = all.
    attempt : the try of the section that fails; 0 = all.
    """

    kind: str
    step: str
    section: str = "*"
    attempt: int = 1

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``KIND@STEP[:SECTION[:ATTEMPT]]``; SECTION and ATTEMPT may be ``*``.

        Raises
        ------
        ConfigError
            It is not of that form, or names no kind or step.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ConfigError(f"--inject takes KIND@STEP[:SECTION[:ATTEMPT]], e.g. kill@subtraction:S3:1, not '{text}'")
        kind, step = found["kind"], found["step"]
        if kind not in KINDS:
            raise ConfigError(f"--inject: no kind '{kind}'; there are: {', '.join(KINDS)}")
        if step not in (*STEPS, _LAST):
            raise ConfigError(f"--inject: no step '{step}'; there are: {', '.join((*STEPS, _LAST))}")
        attempt = found["attempt"] or "1"
        return cls(kind, step, found["section"] or "*", 0 if attempt == "*" else int(attempt))

    def meets(self, step: str, section: str, attempt: int) -> bool:
        """Whether it happens here."""
        return step == self.step and self.section in ("*", section) and self.attempt in (0, attempt)


def strike(faults: Iterable[Fault], step: str, section: str, attempt: int, rank_pid: int) -> None:
    """Let those faults happen that are due."""
    for fault in faults:
        if fault.meets(step, section, attempt):
            _happen(fault, rank_pid)


def _happen(fault: Fault, rank_pid: int) -> None:
    if fault.kind == "raise":
        raise RuntimeError(f"injected at {fault.step}")
    if fault.kind == "oom":
        raise MemoryError(f"injected at {fault.step}")
    number = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}.get(fault.kind)
    if fault.kind == "lose":
        time.sleep(0.2)  # the rank is to have written where it is
        os.kill(rank_pid, signal.SIGKILL)
    elif number is not None:
        os.kill(os.getpid(), number)
    while True:
        time.sleep(3600)
