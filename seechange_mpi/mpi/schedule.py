"""Which section next, and on which process: a pure state machine that knows neither MPI nor clocks.

Exposures are worked on in the order of their claims, within an exposure the section that is predicted to take longest
comes first, and a process that would be idle begins the next exposure. When the end is in sight (no further exposure
will come), the longest of all comes first, whatever exposure it belongs to (Graham 1969, SIAM J. Appl. Math. 17, 416).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Job:
    """One section waiting or running.

    Attributes
    ----------
    order : int
        Number of the exposure in the order of claims.
    section : str
    predicted_s : float
        Predicted duration [s].
    attempt : int
        1 for the first try in this run.
    body : Any
        What the process is sent.
    """

    order: int
    section: str
    predicted_s: float
    attempt: int = 1
    body: Any = None

    @property
    def key(self) -> tuple[int, str]:
        """What identifies the section in a run."""
        return self.order, self.section


@dataclass(slots=True)
class _Running:
    job: Job
    since: float


@dataclass(slots=True)
class Schedule:
    """Sections that wait and sections that run.

    Parameters
    ----------
    slots : number of processes that compute.
    """

    slots: int
    running: dict[int, _Running] = field(default_factory=dict)
    """Slot -> what runs there."""
    _waiting: dict[int, list[tuple[float, str, Job]]] = field(default_factory=dict)
    _n_waiting: int = 0
    _waiting_s: float = 0.0

    def add(self, jobs: Iterable[Job]) -> None:
        """Take sections in; those of one exposure need not come at once."""
        for job in jobs:
            heapq.heappush(self._waiting.setdefault(job.order, []), (-job.predicted_s, job.section, job))
            self._n_waiting += 1
            self._waiting_s += job.predicted_s

    def take(self, slot: int, now: float, *, closing: bool = False, limit_s: float | None = None) -> Job | None:
        """Return the section that `slot` is to begin now, None if there is none for it.

        Parameters
        ----------
        closing : bool
            The longest section of all is next, whatever exposure it belongs to.
        limit_s : float, optional
            Only a section that is predicted to take at most this long.
        """
        assert slot not in self.running, f"slot {slot} is at work already"
        job = self._take_within(limit_s) if limit_s is not None else self._take(closing)
        if job is not None:
            self.running[slot] = _Running(job, now)
        return job

    def _take(self, closing: bool) -> Job | None:
        if not self._waiting:
            return None
        return self._pop(min(self._waiting, key=lambda k: (self._waiting[k][0][0] if closing else 0.0, k)))

    def _pop(self, order: int) -> Job:
        heap = self._waiting[order]
        job = heapq.heappop(heap)[2]
        self._forget(job)
        if not heap:
            del self._waiting[order]
        return job

    def _take_within(self, limit_s: float) -> Job | None:
        for order in sorted(self._waiting):
            fitting = [entry for entry in self._waiting[order] if -entry[0] <= limit_s]
            if fitting:
                entry = min(fitting)
                self._remove(order, entry)
                return entry[2]
        return None

    def _remove(self, order: int, entry: tuple[float, str, Job]) -> None:
        heap = self._waiting[order]
        heap.remove(entry)
        heapq.heapify(heap)
        self._forget(entry[2])
        if not heap:
            del self._waiting[order]

    def _forget(self, job: Job) -> None:
        self._n_waiting -= 1
        self._waiting_s = self._waiting_s - job.predicted_s if self._n_waiting else 0.0

    def revise(self, predict: Callable[[Job], float]) -> None:
        """Predict all sections anew."""
        for r in self.running.values():
            r.job.predicted_s = predict(r.job)
        jobs = [entry[2] for heap in self._waiting.values() for entry in heap]
        self._waiting, self._n_waiting, self._waiting_s = {}, 0, 0.0
        for job in jobs:
            job.predicted_s = predict(job)
        self.add(jobs)

    def release(self, slot: int) -> Job:
        """The slot has answered: return what it was doing."""
        return self.running.pop(slot).job

    def drop(self, order: int) -> list[Job]:
        """Take the waiting sections of an exposure out."""
        jobs = [entry[2] for entry in self._waiting.pop(order, [])]
        for job in jobs:
            self._forget(job)
        return jobs

    @property
    def n_waiting(self) -> int:
        """Sections that no process has begun."""
        return self._n_waiting

    def longest_s(self) -> float:
        """Predicted duration of the longest section that waits [s]."""
        return max((-heap[0][0] for heap in self._waiting.values()), default=0.0)

    def waiting(self, order: int) -> list[Job]:
        """Waiting sections of an exposure, longest first."""
        return [entry[2] for entry in sorted(self._waiting.get(order, []))]

    def slots_of(self, order: int) -> list[int]:
        """Slots at work on an exposure."""
        return [slot for slot, r in self.running.items() if r.job.order == order]

    def left_s(self, slot: int, now: float) -> float:
        """Predicted time until a slot is free [s]; one that is overdue gets a tenth of its prediction more."""
        r = self.running.get(slot)
        return 0.0 if r is None else max(r.since + r.job.predicted_s - now, 0.1 * r.job.predicted_s)

    def makespan_s(self, now: float) -> float:
        """Predicted time until everything known is done, were it spread evenly [s]."""
        busy = [self.left_s(slot, now) for slot in self.running]
        return max((sum(busy) + self._waiting_s) / max(1, self.slots), max(busy, default=0.0))

    def finish_s(self, orders: Iterable[int], now: float, *, more: Iterable[float] = ()) -> float:
        """Predicted time until the waiting and running sections of exposures are done [s].

        Parameters
        ----------
        orders : exposures that count; others' running sections keep their processes until they end.
        more : predicted durations of an exposure that would come after them.
        """
        free = [self.left_s(slot, now) for slot in self.running]
        free += [0.0] * (self.slots - len(free))
        heapq.heapify(free)
        wanted = set(orders)
        end = max((self.left_s(s, now) for s, r in self.running.items() if r.job.order in wanted), default=0.0)
        for lengths in (*(sorted((j.predicted_s for j in self.waiting(k)), reverse=True) for k in sorted(wanted)),
                        sorted(more, reverse=True)):
            for length in lengths:
                done = heapq.heappop(free) + length
                heapq.heappush(free, done)
                end = max(end, done)
        return end
