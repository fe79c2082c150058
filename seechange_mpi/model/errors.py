"""Exceptions that say what to do next, and the exit codes of the command line.

One table decides: ``NoWork`` success with a caveat; ``AlgorithmError`` and ``BadInput`` fail one
section; ``TransientError`` is retried; ``CommittedError`` is never retried; ``Drain`` ends the job.
Any other exception is a bug: it fails the section and the process exits with 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from os import PathLike, fspath


class ExitCode(IntEnum):
    """Exit status of the process; the first that applies of 1, 4, 3, 5 wins."""

    OK = 0
    BUG = 1
    USAGE = 2
    SECTIONS_FAILED = 3
    EXPOSURE_FAILED = 4
    DRAINED = 5


class SeeChangeError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(SeeChangeError):
    """The configuration or the command line cannot be used (exit code 2)."""


class NoWork(SeeChangeError):
    """A section has legitimately nothing (more) to do; its products so far are good.

    Parameters
    ----------
    caveat : str
        Short machine-readable word stored with the section, e.g. ``no_reference``.
    """

    def __init__(self, caveat: str, message: str = "") -> None:
        self.caveat = caveat
        super().__init__(caveat, message)

    def __str__(self) -> str:
        return f"{self.caveat}: {self.args[1]}" if self.args[1] else self.caveat


class AlgorithmError(SeeChangeError):
    """A step could not produce a trustworthy product; this section fails, the others go on.

    Parameters
    ----------
    step : str
        The step that failed, e.g. ``astrocal``.
    message : str
        What went wrong, in one sentence.
    metrics : mapping
        The figures that led to the refusal.
    """

    def __init__(
        self, step: str, message: str, metrics: Mapping[str, float | int | str] | None = None
    ) -> None:
        self.step = step
        self.metrics = dict(metrics or {})
        super().__init__(step, message, self.metrics)

    def __str__(self) -> str:
        figures = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                            for k, v in self.metrics.items())
        return f"{self.step}: {self.args[1]}" + (f" ({figures})" if figures else "")


class TransientError(SeeChangeError):
    """Something that may pass (a connection, a lock): retry with jitter, a bounded number of times."""


class BadInput(SeeChangeError):
    """An input is unusable: names the file, what was expected and what was found."""

    def __init__(self, path: str | PathLike[str], what: str, expected: object, found: object) -> None:
        self.path = fspath(path)
        self.what = what
        self.expected = str(expected)
        self.found = str(found)
        super().__init__(self.path, what, self.expected, self.found)

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: expected {self.expected}, found {self.found}"


class LostRank(SeeChangeError):
    """A rank has died or hangs: the job ends, the next one resumes."""

    def __init__(self, rank: int, exposure: str, section: str, step: str, reason: str) -> None:
        self.rank = rank
        super().__init__(f"rank {rank} was lost in section {section} of {exposure} at {step}: it {reason}. What was "
                         "durable is kept; run the same command again to finish the rest")


class CommittedError(SeeChangeError):
    """Failed after the database commit: the rows are there, never retry."""


class StepTimeout(BaseException):
    """A step took longer than it may; this section fails. A BaseException, so that no step can swallow it."""

    def __init__(self, step: str, seconds: float) -> None:
        self.step, self.seconds = step, seconds
        super().__init__(step, seconds)

    def __str__(self) -> str:
        return f"{self.step} did not end within {self.seconds:g} s (run.step_timeout_s)"


class Drain(BaseException):
    """Time is up: give back what is not begun and leave."""
