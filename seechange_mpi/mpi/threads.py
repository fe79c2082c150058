"""The threads beside rank 0's main loop: one claims and prepares, one bundles, commits and releases."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from seechange_mpi.conductor_client.protocol import Claim
from seechange_mpi.model.errors import SeeChangeError, TransientError
from seechange_mpi.mpi.results import ExposureResult


class PreparedWork(Protocol):
    """What the main loop needs to know of a prepared exposure."""

    problems: list[str]
    stars: dict[str, int]

    @property
    def tasks(self) -> dict[str, Any]:
        """Section -> task."""
        ...

    def todo(self) -> list[str]:
        """Sections to be processed."""
        ...

    def reused(self) -> list[str]:
        """Sections that are complete already."""
        ...

    def steps_of(self, section: str) -> tuple[str, str]:
        """First and last step that are left to do for a section."""
        ...


class ExposureStages(Protocol):
    """What is done with an exposure around its sections; called from threads."""

    def claim(self) -> Claim | None:
        """Return the next exposure; None when there is none."""
        ...

    def prepare(self, claim: Claim) -> PreparedWork:
        """Find everything its sections need, and what is left to do."""
        ...

    def finish(self, claim: Claim, prepared: Any, result: ExposureResult, lost: Callable[[], bool]) -> None:
        """Bundle, commit, release; `result` says how it went."""
        ...

    def fail(self, claim: Claim, result: ExposureResult) -> None:
        """Tell the source that an exposure failed."""
        ...

    def give_back(self, claim: Claim, why: str) -> None:
        """Return an exposure to the source."""
        ...


@dataclass(slots=True)
class Event:
    """What a thread tells the main loop.

    Attributes
    ----------
    kind : ``empty``, ``claimed``, ``prepared``, ``unprepared``, ``trouble`` (no claim could be made), ``finished``,
        ``lost``.
    """

    kind: str
    claim: Claim | None = None
    body: Any = None
    seconds: float = 0.0


class Thread:
    """Does one thing after another and puts events on a queue."""

    def __init__(self, name: str, events: queue.SimpleQueue[Event]) -> None:
        self.events = events
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.pending = 0
        """Things asked for that have not ended; changed by the main loop only."""
        self._thread.start()

    def _run(self) -> None:
        while (call := self._todo.get()) is not None:
            call()

    def ask(self, call: Callable[[], None]) -> None:
        """Have something done."""
        self.pending += 1
        self._todo.put(call)

    def stop(self, timeout_s: float) -> None:
        """End the thread after what it is doing, or leave it behind."""
        self._todo.put(None)
        self._thread.join(timeout=max(0.0, timeout_s))


def claim_and_prepare(stages: ExposureStages, events: queue.SimpleQueue[Event], claimed: Callable[[Claim], None],
                      clock: Callable[[], float] = time.monotonic) -> None:
    """Claim an exposure and prepare it.

    Parameters
    ----------
    claimed : told at once of a claim, before its preparation.
    """
    started = clock()
    try:
        claim = stages.claim()
    except Exception as err:  # noqa: BLE001 - told to the main loop, which ends the run in order
        events.put(Event("trouble", body=err))
        return
    if claim is None:
        events.put(Event("empty"))
        return
    claimed(claim)
    events.put(Event("claimed", claim))
    try:
        prepared = stages.prepare(claim)
    except Exception as err:  # noqa: BLE001 - one exposure must not end the run
        events.put(Event("unprepared", claim, failure(claim, err)))
        return
    events.put(Event("prepared", claim, prepared, clock() - started))


def failure(claim: Claim, err: Exception) -> ExposureResult:
    """Return the result of an exposure that failed as a whole."""
    result = ExposureResult(claim.identifier, "failed")
    if isinstance(err, SeeChangeError):
        result.message = str(err)
        result.passing = isinstance(err, TransientError)
    elif type(err).__module__.startswith("psycopg") and type(err).__name__ in ("OperationalError", "InterfaceError",
                                                                              "AdminShutdown"):
        result.message = f"the database went away: {(str(err).strip().splitlines() or ['?'])[0]}"
        result.passing = True
    else:
        result.is_bug = True
        trace = "".join(traceback.format_exception(err))
        result.message = f"bug: {type(err).__name__}: {err}\n{trace}"
    return result


def finish(stages: ExposureStages, events: queue.SimpleQueue[Event], claim: Claim, prepared: PreparedWork | None,
           result: ExposureResult, lost: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
    """Bring an exposure to its end: bundle, commit, release; or tell the source that it failed."""
    started = clock()
    try:
        if prepared is None:
            stages.fail(claim, result)
        else:
            stages.finish(claim, prepared, result, lost)
    except Exception as err:  # noqa: BLE001 - one exposure must not end the run
        failed = failure(claim, err)
        result.state, result.message = failed.state, failed.message
        result.is_bug, result.passing = failed.is_bug, failed.passing
        stages.fail(claim, result)
    events.put(Event("finished", claim, result, clock() - started))
