"""What rank 0 tells the world while it works: progress on the terminal, its log, the file that ``status`` reads."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from seechange_mpi.conductor_client.protocol import Claim
from seechange_mpi.model.task import Outcome
from seechange_mpi.mpi.runlog import Kind, Level, RunLog
from seechange_mpi.mpi.schedule import Job
from seechange_mpi.mpi.status import ExposureState, ExposureStatus, RankStatus, RunStatus, new_status, write_status

if TYPE_CHECKING:
    from seechange_mpi.mpi.coordinator import Coordinator, Open
    from seechange_mpi.mpi.progress import Progress


_SHOWN = 200
"""Exposures that are over and still shown by ``status``."""


class Observer:
    """Told by the coordinator of everything that happens.

    Parameters
    ----------
    log : rank 0's log.
    progress : what a person reads; None = nothing is written.
    processes : number of processes that compute.
    folder : where the status is kept up to date; None = nowhere.
    """

    def __init__(self, log: RunLog | None = None, progress: Progress | None = None, processes: int = 1,
                 folder: Path | None = None) -> None:
        self.log = log or RunLog(None, 0)
        self.progress, self.processes, self.folder = progress, processes, folder
        self.status = new_status(folder) if folder is not None else RunStatus()
        self._exposures: dict[str, ExposureStatus] = {}
        self._closed: deque[str] = deque()
        self._next = 0.0

    def note(self, text: str) -> None:
        """Write a line for a person, and into the log as a warning."""
        self.log.event("warning", level="warning", message=text)
        if self.progress is not None:
            self.progress.note(text)

    def look(self, coordinator: Coordinator) -> None:
        """Told after every look, some hundred times a second; the status is renewed once a second."""
        now = time.monotonic()
        if self.folder is None or now < self._next:
            return
        self._next = now + 1.0
        self._write(coordinator)

    def _write(self, coordinator: Coordinator) -> None:
        assert self.folder is not None
        seen = coordinator.snapshot()
        wall = time.time()
        status = self.status
        if status.state == "running" and seen["draining"]:
            status.state = "draining"
        status.deadline = None if seen["left_s"] is None else wall + seen["left_s"]
        status.predicted_end = wall + seen["predicted_s"] if coordinator.open else None
        for opened in coordinator.open.values():
            self._exposures[opened.claim.identifier] = self._of_exposure(opened, coordinator.clock() - opened.began)
        status.exposures = self._exposures
        status.ranks = {slot: RankStatus() for slot in coordinator.crew.slots}
        for slot, work in coordinator.crew.at.items():
            pulse = coordinator.crew.steps.get(slot)
            step, since = ("", wall) if pulse is None else (pulse.step, wall - pulse.seconds)
            status.ranks[slot] = RankStatus(work.task.exposure.identifier, work.key.section, step, since)
        write_status(self.folder, status)

    def _of_exposure(self, opened: Open, seconds: float | None = None) -> ExposureStatus:
        result = opened.result
        states: dict[str, ExposureState] = {"preparing": "waiting", "computing": "computing", "complete": "finishing",
                                            "finishing": "finishing", "given_back": "given_back"}
        state = states[opened.state]
        if seconds is None:
            ends: dict[str, ExposureState] = {"given_back": "given_back", "uncommitted": "uncommitted",
                                              "failed": "failed", "sections_failed": "failed"}
            state = ends.get(result.state, "done")
        failed = len(result.failed_sections)
        finished = len(result.outcomes) - failed + len(result.reused)
        return ExposureStatus(state, finished + failed + len(opened.todo), finished, failed,
                              result.seconds if seconds is None else seconds)

    def ended(self, exit_code: int) -> None:
        """The run is over."""
        self.log.event("end", exit_code=exit_code)
        self.status.state, self.status.exit_code = "ended", exit_code
        self.status.ranks = {}
        if self.folder is not None:
            write_status(self.folder, self.status)

    def trouble(self, reason: str) -> None:
        """No exposure can be claimed."""
        self.note(f"no exposure can be claimed any more: {reason}")

    def empty(self, *, waits: bool) -> None:
        """The source has nothing to hand out."""
        if waits and self.progress is not None:
            self.progress.note("the queue is empty: waiting for more")

    def claimed(self, claim: Claim) -> None:
        """An exposure is in hand."""
        self.status.claimed += 1
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
        """All sections have answered: bundle and commit come next, and are logged when they end."""

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
        kind: Kind = "give_back" if result.state == "given_back" else "release"
        level: Level = "info" if result.state in ("done", "nothing_to_do", "partial") else "warning"
        self._exposures[result.identifier] = self._of_exposure(opened)
        self._closed.append(result.identifier)
        if len(self._closed) > _SHOWN:
            self._exposures.pop(self._closed.popleft(), None)
        self.status.done += result.state in ("done", "nothing_to_do", "partial")
        self.status.failed += result.state in ("failed", "sections_failed")
        self.log.event(kind, level=level, exposure=result.identifier, state=result.state, seconds=result.seconds,
                       message=result.message)
        if self.progress is not None:
            self.progress.exposure_done(result)
