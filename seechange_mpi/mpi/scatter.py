"""Rank 0's hand on the processes that compute: the other ranks, and one beside rank 0 where that is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from seechange_mpi.mpi.comm import ANSWER, CANCEL, PULSE, SETUP, STOP, WORK, Communicator
from seechange_mpi.mpi.host import SectionHost
from seechange_mpi.mpi.messages import Answer, Pulse, Setup, Work
from seechange_mpi.mpi.schedule import Job, Schedule


class Crew:
    """The processes that compute, by slot: 1 … size - 1 are ranks, 0 is the process beside rank 0.

    Parameters
    ----------
    own : rank 0's own compute process; None = it does not compute.
    setup : sent to every rank before anything else.
    """

    def __init__(self, comm: Communicator, setup: Setup, own: SectionHost | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._comm, self._own, self._clock = comm, own, clock
        self.slots = [*range(1, comm.size), *([0] if own is not None else [])]
        self.idle = list(reversed(self.slots))
        """The last one is next: the ranks first, rank 0's own process last."""
        self.at: dict[int, Work] = {}
        """Slot -> what it is doing."""
        self.heard: dict[int, float] = {}
        self.steps: dict[int, Pulse] = {}
        for rank in range(1, comm.size):
            comm.send(setup, dest=rank, tag=SETUP)

    def begin(self, slot: int, work: Work) -> None:
        """Give a section to an idle slot."""
        if self.idle[-1] == slot:
            self.idle.pop()
        else:
            self.idle.remove(slot)
        self.at[slot] = work
        self.heard[slot] = self._clock()
        self.steps.pop(slot, None)
        if slot == 0:
            assert self._own is not None
            self._own.begin(work)
        else:
            self._comm.send(work, dest=slot, tag=WORK)

    def cancel(self, slot: int) -> None:
        """Have what a slot is doing ended; it answers all the same."""
        work = self.at.get(slot)
        if work is None:
            return
        if slot == 0:
            assert self._own is not None
            self._cancelled = self._own.cancel()
        else:
            self._comm.send(work.key, dest=slot, tag=CANCEL)

    _cancelled: Answer | None = None

    def poll(self) -> Iterator[tuple[int, Answer]]:
        """Yield the answers that have come, without waiting."""
        if self._own is not None:
            answer, self._cancelled = self._cancelled or self._own.poll(), None
            pulse = self._own.pulse()
            if pulse is not None:
                self.steps[0] = pulse
                self.heard[0] = self._clock()
            if answer is not None:
                yield from self._take(0, answer)
        while (message := self._comm.receive(0.0)) is not None:
            self.heard[message.source] = self._clock()
            if message.tag == PULSE:
                self.steps[message.source] = message.body
            elif message.tag == ANSWER:
                yield from self._take(message.source, message.body)

    def _take(self, slot: int, answer: Answer) -> Iterator[tuple[int, Answer]]:
        work = self.at.pop(slot, None)
        assert work is not None
        assert work.key == answer.key, f"slot {slot} was at {work.key} and answered {answer.key}"
        self.idle.insert(len(self.idle) if slot else 0, slot)
        yield slot, answer

    def silent(self, longest_s: float) -> int | None:
        """Return a rank at work that has not been heard of for too long, None if there is none."""
        now = self._clock()
        return next((s for s in self.at if now - self.heard[s] > longest_s), None)

    def dismiss(self) -> None:
        """Send everybody home."""
        if self._own is not None:
            self._own.cancel()
        stop_workers(self._comm)


def scatter_sections(crew: Crew, schedule: Schedule, now: float, *, closing: bool = False, limit_s: float | None = None,
                     on_start: Callable[[int, Job], None] = lambda _slot, _job: None) -> int:
    """Give waiting sections to idle slots, longest first; return how many.

    Parameters
    ----------
    now, closing, limit_s : see `Schedule.take`.
    on_start : told of every section that begins.
    """
    begun = 0
    while crew.idle and schedule.n_waiting:
        slot = crew.idle[-1]
        job = schedule.take(slot, now, closing=closing, limit_s=limit_s)
        if job is None:
            break
        crew.begin(slot, job.body)
        on_start(slot, job)
        begun += 1
    return begun


def gather_outcomes(crew: Crew, schedule: Schedule) -> Iterator[tuple[Job, Answer]]:
    """Yield the sections that have been answered for, without waiting."""
    for slot, answer in crew.poll():
        yield schedule.release(slot), answer


def stop_workers(comm: Communicator) -> None:
    """Send every worker home."""
    body: Any = None
    for rank in range(1, comm.size):
        comm.send(body, dest=rank, tag=STOP)


