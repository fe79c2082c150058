"""When a run must be over: the job's end, a time limit, or a signal; and how much of that is kept for the end."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from seechange_mpi.model.errors import ConfigError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NEVER = re.compile(r"unknown|n/a|unlimited|none|invalid", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Return seconds of ``90``, ``25m``, ``1h30m`` or ``00:29:30``.

    Raises
    ------
    ConfigError
        It is none of these, or not above 0.
    """
    clean = text.strip().lower()
    seconds = 0.0
    if re.fullmatch(r"\d+(:\d{1,2}){1,2}", clean):
        for part in clean.split(":"):
            seconds = 60 * seconds + int(part)
    elif re.fullmatch(r"(\d+(\.\d+)?[smhd]?)(\d+[smhd])*", clean):
        seconds = sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", clean))
    if seconds <= 0:
        raise ConfigError(f"a duration looks like 90, 25m, 1h30m or 00:29:30, not '{text}'")
    return seconds


def job_end(environ: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> float | None:
    """Return when Slurm will end this job (seconds since 1970); None outside of Slurm or where it does not say."""
    env = os.environ if environ is None else environ
    job = env.get("SLURM_JOB_ID", "")
    if not job:
        return None
    announced = env.get("SLURM_JOB_END_TIME", "")
    if re.fullmatch(r"\d+", announced):
        return float(announced)
    try:
        done = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True,
                              timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bEndTime=(\S+)", done.stdout)
    if found is None or _NEVER.fullmatch(found.group(1)):
        return None
    try:
        return time.mktime(time.strptime(found.group(1)[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


class Deadline:
    """The end of a run on a monotonic clock.

    Parameters
    ----------
    left_s : time from now until the process must be gone; None = there is no end.
    signal_s : time left after USR1, the batch system's early warning.
    term_s : time left after TERM, HUP or the first Ctrl-C.
    clock : seconds, monotonic.
    """

    def __init__(self, left_s: float | None = None, *, signal_s: float = 60.0, term_s: float = 10.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.end = math.inf if left_s is None else clock() + left_s
        self._after = {signal.SIGUSR1: signal_s}
        self._term_s = term_s
        self.reason = "the time limit" if left_s is not None else ""
        self._heard = 0

    def left_s(self) -> float:
        """Seconds until the end; infinite without one."""
        return self.end - self._clock()

    def hear(self, number: int | None, count: int) -> None:
        """Take note of the signals received so far: the last one and how many; a second one means at once."""
        if number is None or count == self._heard:
            return
        left = self._after.get(signal.Signals(number), self._term_s)
        if self._heard and left == self._term_s:
            left = 0.0
        self._heard = count
        self.reason = signal.Signals(number).name
        self.end = min(self.end, self._clock() + left)
