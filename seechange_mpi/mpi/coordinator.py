"""Rank 0: keeps every process at work on claimed exposures, and knows when to stop."""

from __future__ import annotations

import math
import queue
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from seechange_mpi.conductor_client.protocol import Claim
from seechange_mpi.model.errors import LostRank
from seechange_mpi.mpi.comm import Sleeper
from seechange_mpi.mpi.deadline import Deadline
from seechange_mpi.mpi.heartbeat import Heartbeats
from seechange_mpi.mpi.host import RETRIED
from seechange_mpi.mpi.messages import Answer, Work, WorkKey
from seechange_mpi.mpi.observer import Observer
from seechange_mpi.mpi.prediction import Predictor, Typical
from seechange_mpi.mpi.results import ExposureResult
from seechange_mpi.mpi.scatter import Crew, gather_outcomes, scatter_sections
from seechange_mpi.mpi.schedule import Job, Schedule
from seechange_mpi.mpi.stopping import StopRequest
from seechange_mpi.mpi.threads import Event, ExposureStages, PreparedWork, Thread, claim_and_prepare, finish
from seechange_mpi.pipeline.section import FINALIZE

_ROUNDS_AHEAD = 3.0
"""Sections are kept waiting for this many rounds of all processes: the end is in sight early enough to be packed well
(in 300 simulated runs of 6 exposures of 8 sections on 12 processes at worst 1.034 of longest-first; with two 1.08)."""
_PACKING_SAVES = 0.05
"""Part of the makespan that the longest section first saves, against the oldest exposure first."""
_SPARE_OPEN = 8
"""Exposures in hand beyond those: complete ones that wait for their commit."""
_LONGEST_PAUSE_S = 0.003
"""Between two looks: what a process waits for its next section in the mean, at less than 1 % of a core."""

_KEPT_WHOLE = 50
"""Exposures last done whose sections are still in the closing table; of earlier ones only what went wrong."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a run may go.

    Attributes
    ----------
    max_exposures : claims that are made at most.
    max_idle_s : with an empty queue it waits this long for more; 0 = it ends.
    section_attempts : tries of a section whose process died or that met a passing trouble.
    commit_guess_s : time to bundle and commit an exposure before one was seen [s].
    silence_s : a rank at work that is not heard of for this long is lost.
    poll_s : mean time between questions to an empty queue.
    leave_s : kept at the end for giving claims back and leaving.
    """

    max_exposures: int | None = None
    max_idle_s: float = 0.0
    section_attempts: int = 2
    commit_guess_s: float = 10.0
    silence_s: float = 120.0
    poll_s: float = 10.0
    leave_s: float = 1.0


@dataclass(slots=True)
class Open:
    """An exposure in hand."""

    order: int
    claim: Claim
    began: float
    prepared: PreparedWork | None = None
    result: ExposureResult = field(default_factory=lambda: ExposureResult("", "failed"))
    todo: set[str] = field(default_factory=set)
    """Sections that have not answered for good."""
    state: str = "preparing"
    """``preparing``, ``computing``, ``complete``, ``finishing``, ``given_back``."""
    lost: bool = False


class Coordinator:
    """Drives one run.

    Parameters
    ----------
    stages : what is done with an exposure around its sections.
    crew : the processes that compute.
    heartbeats : function that makes the keeper of leases, from a function that is told of lost ones; None = none.
    observer : told of everything, for logs, progress and ``status``.
    clock, pause : the time [s], and what waits for it to pass.
    """

    def __init__(self, stages: ExposureStages, crew: Crew, *, deadline: Deadline | None = None,
                 limits: Limits | None = None, predictor: Predictor | None = None, observer: Observer | None = None,
                 stop: StopRequest | None = None,
                 heartbeats: Callable[[Callable[[Claim], None]], Heartbeats] | None = None,
                 clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep) -> None:
        self.stages, self.crew, self.clock = stages, crew, clock
        self.deadline, self.limits = deadline or Deadline(clock=clock), limits or Limits()
        self.predictor, self.observer = predictor or Predictor(), observer or Observer()
        self.stop = stop or StopRequest()
        self.schedule = Schedule(len(crew.slots))
        self._pause = pause
        self.open: dict[int, Open] = {}
        self.results: list[ExposureResult] = []
        self.trouble: Exception | None = None
        """Why no claim could be made."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._heart = heartbeats(lambda claim: self.events.put(Event("lost", claim))) if heartbeats else None
        self._claims = 0
        self._next_question = -math.inf
        self._empty = self._draining = False
        self._commits = Typical(self.limits.commit_guess_s)
        self._preparations = Typical(0.0)
        self._usual: list[float] = []
        """Predicted durations of the sections of the last exposure."""
        self._short = ""
        """Why the time left was first too short for another exposure."""
        self._idle_from: float | None = None
        self._prefetch: Thread
        self._finisher: Thread

    def run(self) -> list[ExposureResult]:
        """Claim and process exposures until there are no more, or as many as allowed, or the time is over.

        Raises
        ------
        LostRank
            A rank is not heard of any more.
        """
        self._prefetch = Thread("prefetch", self.events)
        self._finisher = Thread("finish", self.events)
        if self._heart is not None:
            self._heart.start()
        sleeper = Sleeper(_LONGEST_PAUSE_S, self._pause)
        try:
            while not self._over():
                if self._look():
                    sleeper.wake()
                sleeper.sleep()
        except BaseException:
            for opened in self.open.values():
                if opened.state != "finishing":
                    self._finisher.ask(lambda o=opened: self.stages.give_back(o.claim, "interrupted"))  # type: ignore[misc]
            raise
        finally:
            patience = min(max(self.deadline.left_s(), 0.0), 5.0)
            self._prefetch.stop(0.0 if self._prefetch.pending else 1.0)
            self._finisher.stop(patience)
            if self._heart is not None:
                self._heart.stop()
        return self.results

    def _look(self) -> bool:
        """Take one look at everything; return whether something happened."""
        moved = False
        while not self.events.empty():
            self._hear(self.events.get())
            moved = True
        for job, answer in gather_outcomes(self.crew, self.schedule):
            self._take(job, answer)
            moved = True
        self.deadline.hear(self.stop.number, self.stop.count)
        if not self._draining and self.deadline.left_s() < self._reserve_s():
            self._drain()
        self._feed()
        self._finish_in_order()
        if scatter_sections(self.crew, self.schedule, self.clock(), closing=self._packing(), limit_s=self._limit_s(),
                            on_start=self._begun):
            moved = True
        if self.schedule.n_waiting and not self.crew.at and not self._draining:
            self._drain()  # there is time, but not enough for any section
        silent = self.crew.silent(self.limits.silence_s)
        if silent is not None:
            work = self.crew.at[silent]
            step = self.crew.steps[silent].step if silent in self.crew.steps else "?"
            raise LostRank(silent, work.task.exposure.identifier, work.key.section, step,
                           f"has not been heard of for {self.limits.silence_s:g} s")
        self.observer.look(self)
        return moved

    # -- claims ---------------------------------------------------------------------------------------------------

    def _closing(self) -> bool:
        """Whether no further exposure will be claimed."""
        stopping = self._draining or self.trouble is not None or self.stop.number is not None
        return stopping or self._enough() or (self._empty and not self.limits.max_idle_s)

    def _packing(self) -> bool:
        """Whether the longest section of all comes first now.

        What is in hand is the last, will be done in time whatever the order, and the time saved is worth more than
        commits that begin later.
        """
        if not self.crew.idle or self._draining or not self._closing():
            return False
        computing = sum(1 for o in self.open.values() if o.state == "computing")
        makespan, commit = self.schedule.makespan_s(self.clock()), self._commits.p95()
        if commit * (computing - 1) > _PACKING_SAVES * makespan:
            return False
        left = self.deadline.left_s()
        return math.isinf(left) or (makespan * self.predictor.margin() + self._reserve_s()
                                    + commit * len(self.open)) <= left

    def _enough(self) -> bool:
        return self.limits.max_exposures is not None and self._claims >= self.limits.max_exposures

    def _feed(self) -> None:
        """Ask for another exposure where there is use for it and time enough."""
        if self._prefetch.pending or self._closing():
            return
        if self.schedule.n_waiting >= _ROUNDS_AHEAD * len(self.crew.slots) or self.clock() < self._next_question:
            return
        if len(self.open) >= self._most_open() or not self._fits():
            return
        self._prefetch.ask(lambda: claim_and_prepare(self.stages, self.events, self._claimed, self.clock))

    def _most_open(self) -> int:
        """Exposures that may be in hand at once: enough for all processes, not more than commits can follow."""
        rounds = (1 + _ROUNDS_AHEAD) * len(self.crew.slots)
        return _SPARE_OPEN + (math.ceil(rounds / len(self._usual)) if self._usual else 0)

    def _claimed(self, claim: Claim) -> None:
        if self._heart is not None:
            self._heart.add(claim)

    def _fits(self) -> bool:
        """Whether one more exposure like the last would be committed in time."""
        left = self.deadline.left_s()
        if math.isinf(left):
            return True
        usual = self._usual or [self.predictor.usual_s()] * len(self.crew.slots)
        computing = self.schedule.finish_s(self.open, self.clock(), more=usual) * self.predictor.margin()
        commits = self._commits.p95() * (1 + len(self.open))
        needed = max(computing + self._preparations.p95(), commits) + self._commits.p95() + self.limits.leave_s
        if needed > left and not self._short:
            self._short = f"one more exposure needs about {needed:.0f} s, {max(left, 0.0):.0f} s were left"
        return needed <= left

    # -- events of the threads ------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        getattr(self, f"_hear_{event.kind}")(event)

    def _hear_trouble(self, event: Event) -> None:
        self._prefetch.pending -= 1
        self.trouble = event.body
        self.observer.trouble(str(event.body))

    def _hear_empty(self, _event: Event) -> None:
        self._prefetch.pending -= 1
        if not self._empty:
            self.observer.empty(waits=bool(self.limits.max_idle_s))
        self._empty = True
        self._next_question = self.clock() + self.limits.poll_s * (0.5 + random.random())

    def _hear_claimed(self, event: Event) -> None:
        assert event.claim is not None
        self._empty, self._idle_from = False, None
        result = ExposureResult(event.claim.identifier, "given_back")
        self.open[self._claims] = Open(self._claims, event.claim, self.clock(), result=result)
        self._claims += 1
        self.observer.claimed(event.claim)

    def _of(self, claim: Claim | None) -> Open | None:
        return next((o for o in self.open.values() if o.claim is claim), None)

    def _hear_prepared(self, event: Event) -> None:
        self._prefetch.pending -= 1
        self._preparations.add(event.seconds)
        opened = self._of(event.claim)
        if opened is None:
            return
        prepared: PreparedWork = event.body
        opened.prepared, opened.state = prepared, "computing"
        opened.result.reused = prepared.reused()
        opened.todo = set(prepared.todo())
        lengths = {s: self._predict(opened, s) for s in opened.todo}
        self.schedule.add(Job(opened.order, s, t, 1, Work(WorkKey(opened.order, s, 1), prepared.tasks[s]))
                          for s, t in lengths.items())
        self._usual = list(lengths.values()) or self._usual
        self.observer.prepared(opened, event.seconds)
        if self._draining or opened.lost:
            self._give_back(opened)

    def _predict(self, opened: Open, section: str) -> float:
        prepared = opened.prepared
        assert prepared is not None
        usual = sum(prepared.stars.values()) / max(1, len(prepared.stars))
        return self.predictor.predict(opened.claim.instrument, section, prepared.stars.get(section, 0),
                                      *prepared.steps_of(section), usual)

    def _predict_again(self, job: Job) -> float:
        opened = self.open.get(job.order)
        return job.predicted_s if opened is None or opened.prepared is None else self._predict(opened, job.section)

    def _hear_unprepared(self, event: Event) -> None:
        self._prefetch.pending -= 1
        opened = self._of(event.claim)
        if opened is None:
            return
        opened.result = event.body
        opened.state = "complete"

    def _hear_lost(self, event: Event) -> None:
        opened = self._of(event.claim)
        if opened is None:
            return
        opened.lost = True
        self.observer.lost(opened)
        if opened.state == "computing":
            opened.result.message = "the claim was lost to another job; what is durable is kept"
            self._give_back(opened, tell=False)

    def _hear_finished(self, event: Event) -> None:
        self._finisher.pending -= 1
        opened = self._of(event.claim)
        if opened is None:
            return
        self._commits.add(event.seconds)
        self._close(opened)

    # -- sections -------------------------------------------------------------------------------------------------

    def _begun(self, slot: int, job: Job) -> None:
        self.observer.section_begun(self.open[job.order], job, slot)

    def _take(self, job: Job, answer: Answer) -> None:
        opened = self.open.get(job.order)
        if opened is None or opened.state != "computing" or answer.cancelled:
            return
        outcome = answer.outcome
        report = outcome.report
        if (outcome.status == "failed" and report.error_type in RETRIED and report.error_step != FINALIZE
                and job.attempt < self.limits.section_attempts and not self._draining):
            again = job.body.again(outcome)
            self.schedule.add([replace(job, attempt=job.attempt + 1, body=again)])
            self.observer.section_again(opened, job, outcome)
            return
        opened.result.outcomes[job.section] = outcome
        opened.todo.discard(job.section)
        if outcome.status != "failed":
            assert opened.prepared is not None
            stars = opened.prepared.stars.get(job.section, 0)
            self.predictor.observe(opened.claim.instrument, job.section, stars,
                                   *opened.prepared.steps_of(job.section), outcome.summary.get("seconds", 0.0))
            if self.predictor.n_seen.bit_count() == 1:  # after 1, 2, 4, 8 ... sections
                self.schedule.revise(self._predict_again)
        self.observer.section_done(opened, job, outcome)

    # -- the end of an exposure -----------------------------------------------------------------------------------

    def _finish_in_order(self) -> None:
        """Hand complete exposures to the finisher, in the order of claims."""
        for order in sorted(self.open):
            opened = self.open[order]
            if opened.state == "computing" and not opened.todo:
                opened.state = "complete"
                opened.result.outcomes = dict(sorted(opened.result.outcomes.items()))
            if opened.state == "complete":
                opened.state = "finishing"
                self.observer.finishing(opened)
                self._finisher.ask(lambda o=opened: finish(  # type: ignore[misc]
                    self.stages, self.events, o.claim, o.prepared, o.result, lambda: o.lost, self.clock))
            elif opened.state != "finishing":
                return  # later ones wait for their turn: the order of commits is the order of claims

    def _close(self, opened: Open) -> None:
        del self.open[opened.order]
        if self._heart is not None:
            self._heart.remove(opened.claim)
        opened.result.seconds = self.clock() - opened.began
        self.results.append(opened.result)
        if len(self.results) > _KEPT_WHOLE:
            self.results[-_KEPT_WHOLE - 1].forget_details()
        self.observer.closed(opened)

    def _give_back(self, opened: Open, *, tell: bool = True) -> None:
        """Stop work on an exposure and return its claim; its durable sections are kept."""
        self.schedule.drop(opened.order)
        for slot in self.schedule.slots_of(opened.order):
            self.crew.cancel(slot)
        opened.state = "given_back"
        opened.result.state = "given_back"
        opened.result.message = opened.result.message or (
            f"stopped by {self.deadline.reason or 'request'}; what is durable is kept")
        if tell:
            why = f"stopped by {self.deadline.reason or 'request'}"

            def call() -> None:
                self.stages.give_back(opened.claim, why)
                self.events.put(Event("given_back", opened.claim))

            self._finisher.ask(call)
        else:
            self._close(opened)

    def _hear_given_back(self, event: Event) -> None:
        self._finisher.pending -= 1
        opened = self._of(event.claim)
        if opened is not None:
            self._close(opened)

    # -- the end of the run ---------------------------------------------------------------------------------------

    def _reserve_s(self) -> float:
        """Time to be kept for commits of what is complete, and for leaving [s]."""
        complete = sum(1 for o in self.open.values() if o.prepared is not None and not o.todo)
        return self.limits.leave_s + self._commits.p95() * max(complete, 1 if self.open else 0)

    def _limit_s(self) -> float | None:
        """Longest predicted section that may still be begun [s]; None = any."""
        left = self.deadline.left_s()
        if math.isinf(left):
            return None
        limit = (left - self._reserve_s()) / self.predictor.margin()
        return limit if limit < self.schedule.longest_s() else None

    def _drain(self) -> None:
        """Time is up: give back what is not complete, finish what is."""
        self._draining = True
        self.observer.draining(self.deadline.reason)
        blocked = False
        for order in sorted(self.open):
            opened = self.open[order]
            if opened.state == "preparing":
                blocked = True  # given back when its preparation ends, or when the run does
            elif opened.state == "computing" and (opened.todo or blocked):
                blocked = True
                self._give_back(opened)

    def _over(self) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        if self.deadline.left_s() < 0.3 * self.limits.leave_s:
            for opened in list(self.open.values()):
                if opened.state == "finishing":
                    opened.result.state = "uncommitted"
                    opened.result.message = "the time was over before its commit ended; its bundle is kept"
                self._close(opened)
            return True
        if self.open:
            self._idle_from = None
        if self.open or self._prefetch.pending or self._finisher.pending:
            return False
        if self._closing() or not self._fits():
            return True
        if not self._empty:
            return False
        self._idle_from = self.clock() if self._idle_from is None else self._idle_from
        return self.clock() - self._idle_from >= self.limits.max_idle_s

    @property
    def stopped_by(self) -> str:
        """What ended the run before there were no more exposures: a signal, the time; empty = nothing."""
        if self._empty or self._enough() or not self.deadline.reason:
            return ""
        return f"{self.deadline.reason} ({self._short})" if self._short else self.deadline.reason

    def snapshot(self) -> dict[str, Any]:
        """Return what ``status`` shows."""
        return {"waiting": self.schedule.n_waiting, "draining": self._draining,
                "left_s": None if math.isinf(self.deadline.left_s()) else self.deadline.left_s(),
                "predicted_s": self.schedule.makespan_s(self.clock())}
