"""One compute process and the section it is at: begins, watches, ends, and always answers."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from seechange_mpi.model.errors import StepTimeout
from seechange_mpi.model.task import Outcome, SectionReport, SectionTask, StepRecord
from seechange_mpi.mpi.compute import SOFT_TIMEOUT, ComputeProcess
from seechange_mpi.mpi.inject import Fault, strike
from seechange_mpi.mpi.messages import Answer, Pulse, Setup, Work
from seechange_mpi.mpi.runlog import Level, RunLog

if TYPE_CHECKING:
    from seechange_mpi.pipeline.section import StepWatch

SectionRunner = Callable[[SectionTask, int, "StepWatch"], Outcome]
DIED = "ProcessDied"
"""Error type of a section whose compute process died."""
RETRIED = frozenset({DIED, "MemoryError", "TransientError"})
"""Error types after which a section is tried again."""
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)


def process(task: SectionTask, rank: int, watch: StepWatch) -> Outcome:
    """Run a section with the steps of its settings."""
    from seechange_mpi.pipeline.section import run_section

    return run_section(task, rank=rank, watch=watch)


def preload() -> None:
    """Import what every section needs; an import that fails is told by the first section."""
    try:
        import seechange_mpi.pipeline.preload  # noqa: F401
    except Exception:  # noqa: BLE001
        traceback.print_exc()


class SectionServer:
    """What the compute process does with a section (see `compute.Server`)."""

    def __init__(self, runner: SectionRunner = process) -> None:
        self._runner = runner
        self._rank_pid = os.getpid()
        self._step = ""
        self._timeout_s = 0.0

    def __call__(self, body: tuple[Work, tuple[Fault, ...], int, float], say: Callable[[Any], None]) -> Outcome:
        """Process a section; whatever escapes becomes a failed outcome that is marked as a bug."""
        work, faults, rank, self._timeout_s = body
        signal.signal(SOFT_TIMEOUT, self._end_step)

        def watch(step: str, record: StepRecord | None) -> None:
            say((step, record))
            self._step = step if record is None else ""
            if record is None:
                strike(faults, step, work.key.section, work.key.attempt, self._rank_pid)

        try:
            return self._runner(work.task, rank, watch)
        except StepTimeout as err:
            return failed(work, err.step, "StepTimeout", str(err), rank, trace=traceback.format_exc())
        except MemoryError as err:
            return failed(work, self._step, "MemoryError", str(err), rank)
        except Exception as err:  # noqa: BLE001 - it always answers
            return failed(work, self._step or "worker", type(err).__name__, str(err), rank, is_bug=True,
                          trace=traceback.format_exc())
        finally:
            self._step = ""

    def _end_step(self, _number: int, _frame: object) -> None:
        if self._step:
            step, self._step = self._step, ""
            raise StepTimeout(step, self._timeout_s)


def failed(work: Work, step: str, kind: str, message: str, rank: int, *, is_bug: bool = False, trace: str = "",
           steps: list[StepRecord] | None = None) -> Outcome:
    """Return the outcome of a section that could not answer for itself."""
    report = SectionReport(rank=rank, host=socket.gethostname(), cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
                           error_step=step, error_type=kind,
                           error_message=message, error_traceback=trace, steps=steps or [],
                           finish_time=datetime.now(UTC).isoformat(timespec="seconds"))
    return Outcome(work.task.exposure.identifier, work.key.section, "failed", report, is_bug=is_bug)


class SectionHost:
    """A rank's side of its compute process.

    Parameters
    ----------
    compute : a started `ComputeProcess` that runs a `SectionServer`.
    """

    def __init__(self, compute: ComputeProcess, setup: Setup, log: RunLog, rank: int,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._compute, self._setup, self._log, self._rank, self._clock = compute, setup, log, rank, clock
        self.work: Work | None = None
        self.step = "setup"
        self._step_began = self._began = 0.0
        self._asked = self._hung = False
        self._steps: list[StepRecord] = []

    def begin(self, work: Work) -> None:
        """Start on a section."""
        assert self.work is None
        self.work = work
        self._began = self._clock()
        self._steps = []
        self._enter("setup")
        self._log.event("section_begin", **self._where())
        self._compute.submit((work, self._setup.faults, self._rank, self._setup.step_timeout_s))

    def _where(self, step: str = "") -> dict[str, Any]:
        assert self.work is not None
        return {"exposure": self.work.task.exposure.identifier, "section": self.work.key.section,
                "attempt": self.work.key.attempt, "step": step}

    def _enter(self, step: str) -> None:
        self.step, self._step_began = step, self._clock()
        self._asked = self._hung = False

    def pulse(self) -> Pulse | None:
        """Say what it is at; None when idle."""
        if self.work is None:
            return None
        return Pulse(self.work.key, self.step, self._clock() - self._step_began)

    def poll(self) -> Answer | None:
        """Take note of what happened; return the answer once there is one."""
        if self.work is None:
            return None
        for kind, body in self._compute.messages():
            if kind == "answer":
                return self._answer(body)
            self._hear(*body)
        if self._compute.died:
            return self._answer(self._death())
        self._watch_clock()
        return None

    def _hear(self, step: str, record: StepRecord | None) -> None:
        if record is None:
            self._enter(step)
            self._log.event("step_begin", **self._where(step))
            return
        self._steps.append(record)
        figures = {k: getattr(record, k) for k in record.__slots__ if k != "step"}
        self._log.event("step_end", **self._where(step), **figures)
        self._enter("between steps")

    def _watch_clock(self) -> None:
        over = self._clock() - self._step_began - self._setup.step_timeout_s
        if over > self._setup.grace_s and not self._hung:
            self._hung = True
            self._compute.kill()
        elif over > 0 and not self._asked:
            self._asked = True
            self._compute.end_step()

    def _death(self) -> Outcome:
        assert self.work is not None
        status = self._compute.bury()
        if self._hung:
            error = StepTimeout(self.step, self._setup.step_timeout_s)
            return failed(self.work, self.step, "StepTimeout", f"{error}, and its process had to be killed",
                          self._rank, steps=self._steps)
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        hint = " (out of memory, or killed from outside)" if status == -signal.SIGKILL else ""
        return failed(self.work, self.step, DIED, f"the compute process died of {name}{hint}", self._rank,
                      is_bug=status >= 0 or -status in _FAULTS, steps=self._steps)

    def _answer(self, outcome: Outcome, *, cancelled: bool = False) -> Answer:
        assert self.work is not None
        report = outcome.report
        level: Level = "info" if outcome.status != "failed" or cancelled else "error"
        outcome.summary.setdefault("seconds", self._clock() - self._began)
        more: dict[str, Any] = {}
        if outcome.status == "failed":
            more["error"] = f"{report.error_type}: {report.error_message}"
        more |= {"seconds": self._clock() - self._began, "status": "cancelled" if cancelled else outcome.status}
        self._log.event("section_end", level=level, **self._where(report.error_step), **more)
        key = self.work.key
        self.work = None
        return Answer(key, outcome, cancelled)

    def cancel(self) -> Answer | None:
        """End the section at once; what it had not made durable is lost."""
        if self.work is None:
            return None
        self._compute.kill()
        while not self._compute.died:
            for kind, body in self._compute.messages(1.0):
                if kind == "answer":
                    return self._answer(body)
        self._compute.bury()
        outcome = failed(self.work, self.step, "Cancelled", "ended with the run", self._rank, steps=self._steps)
        return self._answer(outcome, cancelled=True)
