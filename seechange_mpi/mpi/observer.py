"""What rank 0 tells the world while it works: progress on the terminal, its log, the file that ``status`` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seechange_mpi.conductor_client.protocol import Claim
from seechange_mpi.model.task import Outcome
from seechange_mpi.mpi.runlog import RunLog
from seechange_mpi.mpi.schedule import Job

if TYPE_CHECKING:
    from seechange_mpi.mpi.coordinator import Coordinator, Open
    from seechange_mpi.mpi.progress import Progress


class Observer:
    """Told by the coordinator of everything that happens.

    Parameters
    ----------
    log : rank 0's log.
    progress : what a person reads; None = nothing is written.
    processes : number of processes that compute.
    """

    def __init__(self, log: RunLog | None = None, progress: Progress | None = None, processes: int = 1) -> None:
        self.log = log or RunLog(None, 0)
        self.progress, self.processes = progress, processes

    def note(self, text: str) -> None:
        """Write a line for a person, and into the log as a warning."""
        self.log.event("warning", level="warning", message=text)
        if self.progress is not None:
            self.progress.note(text)

    def look(self, coordinator: Coordinator) -> None:
        """Told after every look; about a hundred times a second."""

    def trouble(self, reason: str) -> None:
        """No exposure can be claimed."""
        self.note(f"no exposure can be claimed any more: {reason}")

    def empty(self, *, waits: bool) -> None:
        """The source has nothing to hand out."""
        if waits and self.progress is not None:
            self.progress.note("the queue is empty: waiting for more")

    def claimed(self, claim: Claim) -> None:
        """An exposure is in hand."""
        self.log.event("claim", exposure=claim.identifier, attempt=claim.attempt, token=claim.token)

    def prepared(self, opened: Open, seconds: float) -> None:
        """Its sections can begin."""
        assert opened.prepared is not None
        self.log.event("prepared", exposure=opened.claim.identifier, seconds=seconds, todo=len(opened.todo),
                       reused=len(opened.result.reused))
        if self.progress is not None:
            self.progress.exposure_started(opened.claim.identifier, len(opened.todo), len(opened.result.reused),
                                           self.processes, opened.prepared.problems)

    def section_begun(self, opened: Open, job: Job, slot: int) -> None:
        """A section was given to a process."""

    def section_again(self, opened: Open, job: Job, outcome: Outcome) -> None:
        """A section is tried again."""
        report = outcome.report
        self.note(f"{opened.claim.identifier} {job.section}: {report.error_step}: {report.error_message}; trying again")

    def section_done(self, opened: Open, job: Job, outcome: Outcome) -> None:
        """A section has answered for good."""
        if self.progress is not None:
            self.progress.section_done(outcome)

    def finishing(self, opened: Open) -> None:
        """All sections have answered: bundle and commit come next."""
        self.log.event("bundle", exposure=opened.claim.identifier)

    def lost(self, opened: Open) -> None:
        """Another job has taken an exposure over."""
        self.log.event("heartbeat_lost", level="warning", exposure=opened.claim.identifier)

    def draining(self, reason: str) -> None:
        """The run is being ended."""
        self.log.event("drain", level="warning", reason=reason)
        if self.progress is not None:
            self.progress.note(f"{reason or 'asked to stop'}: finishing what is complete, giving back the rest")

    def closed(self, opened: Open) -> None:
        """An exposure is out of hand."""
        result = opened.result
        kind = "give_back" if result.state == "given_back" else "release"
        level = "info" if result.state in ("done", "nothing_to_do", "partial") else "warning"
        self.log.event(kind, level=level, exposure=result.identifier, state=result.state, seconds=result.seconds,
                       message=result.message)
        if self.progress is not None:
            self.progress.exposure_done(result)
