"""What ranks tell each other: small picklable messages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from seechange_mpi.model.task import Outcome, SectionTask
from seechange_mpi.mpi.inject import Fault


@dataclass(frozen=True, slots=True)
class Setup:
    """What every process that computes must know about the run; the first message to a worker.

    Attributes
    ----------
    run_folder : str
        Where its log goes; empty = nowhere.
    step_timeout_s : float
        A step that takes longer is ended, and its section fails.
    grace_s : float
        Time for a step to react to that before its process is killed.
    faults : tuple of Fault
        Failures to be injected.
    pulse_s : float
        A worker at work is heard from at least this often.
    patience_s : float
        How long a worker that was asked to end by TERM waits for rank 0's word.
    """

    run_folder: str = ""
    step_timeout_s: float = 900.0
    grace_s: float = 10.0
    faults: tuple[Fault, ...] = ()
    pulse_s: float = 5.0
    patience_s: float = 30.0


class WorkKey(NamedTuple):
    """Which try of which section: number of the exposure in the run, section, attempt."""

    order: int
    section: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Work:
    """A section to be processed."""

    key: WorkKey
    task: SectionTask

    def again(self, outcome: Outcome) -> Work:
        """Return the next attempt, which goes on from what the last one left."""
        task = self.task
        if outcome.shard and outcome.report.completed_step:
            task = replace(task, resume_from=f"{task.shard_dir}/{outcome.shard}",
                           reuse_through=outcome.report.completed_step)
        return Work(self.key._replace(attempt=self.key.attempt + 1), task)


@dataclass(slots=True)
class Answer:
    """How a try of a section went."""

    key: WorkKey
    outcome: Outcome
    cancelled: bool = False
    """It was ended on request of rank 0."""


@dataclass(slots=True)
class Pulse:
    """A sign of life from a process at work: the step it is in, and for how long [s]."""

    key: WorkKey
    step: str
    seconds: float = 0.0
