"""Exposures whose sections only sleep: the real coordinator without pixels, for tests and `scale.py`.

As a script under MPI it runs such exposures and prints one JSON line:

    mpiexec -n 5 python benchmarks/sleeping.py --exposures 5 --sections 8 --mean 0.3 --folder runs
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seechange_mpi.conductor_client.protocol import Claim
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.task import STEPS, Outcome, SectionReport, SectionTask
from seechange_mpi.mpi.comm import ANSWER, CANCEL, STOP, WORK, Message
from seechange_mpi.mpi.messages import Answer, Work
from seechange_mpi.mpi.results import ExposureResult


@dataclass(slots=True)
class SleepyExposure:
    """An exposure: how long each of its sections takes."""

    identifier: str
    durations: dict[str, float]
    stars: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class SleepyPrepared:
    """What `SleepyStages` prepares (see `threads.PreparedWork`)."""

    exposure: SleepyExposure
    done: set[str]
    tasks: dict[str, Any]
    stars: dict[str, int]
    problems: list[str] = field(default_factory=list)

    def todo(self) -> list[str]:
        """Sections that were not done earlier."""
        return [s for s in self.exposure.durations if s not in self.done]

    def reused(self) -> list[str]:
        """Sections that were."""
        return sorted(self.done)

    def steps_of(self, section: str) -> tuple[str, str]:
        """All steps."""
        return STEPS[0], STEPS[-1]


def sleepy_exposures(n: int, sections: int, mean_s: float, seed: int, *, spread: float = 4.0, noise: float = 0.05
                     ) -> list[SleepyExposure]:
    """Exposures whose sections take between ``2 / (1 + spread)`` and ``2 spread / (1 + spread)`` times the mean.

    Parameters
    ----------
    noise : how well the number of stars tells the duration (relative).
    """
    rng = random.Random(seed)
    out = []
    for k in range(n):
        low = 2 * mean_s / (1 + spread)
        durations = {f"S{j:02d}": rng.uniform(low, spread * low) for j in range(sections)}
        stars = {s: max(1, round(1000 * d / mean_s * rng.gauss(1, noise))) for s, d in durations.items()}
        out.append(SleepyExposure(f"e{k:05d}", durations, stars))
    return out


def sleep_task(exposure: str, section: str, seconds: float) -> SectionTask:
    """A section that sleeps; the time travels where the shutter time would."""
    return SectionTask(ExposureInfo(exposure, "sleepy", "/none", 60000.0, seconds, "r"), section,
                       None, {}, {}, "/none")  # type: ignore[arg-type]


def sleeping_runner(task: SectionTask, rank: int, watch: Callable[[str, Any], None]) -> Outcome:
    """Sleep as long as the section is to take."""
    watch(STEPS[0], None)
    time.sleep(task.exposure.exp_time_s)
    return Outcome(task.exposure.identifier, task.section_id, "done",
                   SectionReport(success=True, rank=rank, completed_step=STEPS[-1]),
                   summary={"seconds": task.exposure.exp_time_s})


class SleepyStages:
    """Hands out exposures; claiming, preparing and committing sleep too.

    Attributes
    ----------
    finished, given_back, failed : identifiers, in the order in which it happened.
    """

    def __init__(self, exposures: list[SleepyExposure], *, prepare_s: float = 0.0, commit_s: float = 0.0,
                 done: dict[str, set[str]] | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._waiting = deque(exposures)
        self.by_name = {e.identifier: e for e in exposures}
        self.prepare_s, self.commit_s, self.sleep = prepare_s, commit_s, sleep
        self.done = done if done is not None else {}
        self.claims = 0
        self.finished: list[str] = []
        self.given_back: list[str] = []
        self.failed: list[str] = []
        self.outcomes: dict[str, dict[str, Outcome]] = {}

    def claim(self) -> Claim | None:
        """Return the next exposure."""
        if not self._waiting:
            return None
        exposure = self._waiting.popleft()
        self.claims += 1
        return Claim(exposure.identifier, "sleepy", "/none", self.claims, 1, datetime.now(UTC))

    def prepare(self, claim: Claim) -> SleepyPrepared:
        """Take `prepare_s`."""
        self.sleep(self.prepare_s)
        e = self.by_name[claim.identifier]
        tasks = {s: sleep_task(e.identifier, s, d) for s, d in e.durations.items()}
        return SleepyPrepared(e, self.done.get(e.identifier, set()), tasks, e.stars)

    def finish(self, claim: Claim, prepared: SleepyPrepared, result: ExposureResult, lost: Callable[[], bool]) -> None:
        """Take `commit_s`."""
        self.sleep(self.commit_s)
        self.outcomes[claim.identifier] = dict(result.outcomes)
        self.finished.append(claim.identifier)
        result.state = "sections_failed" if result.failed_sections else "done"

    def fail(self, claim: Claim, result: ExposureResult) -> None:
        """The exposure failed as a whole."""
        self.failed.append(claim.identifier)

    def give_back(self, claim: Claim, why: str) -> None:
        """The exposure was not finished."""
        self.given_back.append(claim.identifier)


def slept(work: Work, rank: int) -> Outcome:
    """Outcome of a section that was done."""
    report = SectionReport(success=True, rank=rank, completed_step=STEPS[-1])
    return Outcome(work.task.exposure.identifier, work.key.section, "done", report,
                   summary={"seconds": work.task.exposure.exp_time_s})


class VirtualTime:
    """A clock that stands still while anything works and jumps to the next thing that is due.

    For one main thread, which calls `pause`, and others that call `sleep`.
    """

    def __init__(self) -> None:
        self.now, self.longest_step_s = 1000.0, 60.0
        self.next_due: Callable[[], float] = lambda: math.inf
        self.busy: Callable[[], bool] = lambda: False
        """Whether a thread has something to do."""
        self._asleep: dict[int, float] = {}
        self._changed = threading.Condition()

    def clock(self) -> float:
        """Return the time [s]."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass, in a thread beside the main one."""
        me = threading.get_ident()
        with self._changed:
            self._asleep[me] = self.now + seconds
            self._changed.wait_for(lambda: self.now >= self._asleep[me])
            del self._asleep[me]

    def pause(self, seconds: float) -> None:
        """Let time pass, in the main thread."""
        with self._changed:
            due = min([self.next_due(), *self._asleep.values()])
            if self.busy() and not self._asleep:
                self._changed.release()
                time.sleep(2e-5)  # a thread is at work: no time passes
                self._changed.acquire()
                return
            step = 100 * seconds if due == math.inf else min(max(due - self.now, 0.0), self.longest_step_s)
            self.now += step
            self._changed.notify_all()
        time.sleep(0)


class SleepyComm:
    """A communicator whose workers are entries of a heap that come due: thousands of ranks in one process.

    Parameters
    ----------
    size : ranks, the coordinator included.
    outcome : what a worker answers; default: the section is done.
    """

    rank = 0

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic,
                 outcome: Callable[[Work, int], Outcome] | None = None) -> None:
        self.size, self._clock, self._outcome = size, clock, outcome or slept
        self._due: list[tuple[float, int, Work]] = []
        self._cancelled: set[int] = set()
        self.messages = 0

    def send(self, body: Any, dest: int, tag: int) -> None:
        """Give work to a worker: it will answer when its time has passed."""
        if tag == WORK:
            heapq.heappush(self._due, (self._clock() + body.task.exposure.exp_time_s, dest, body))
            self.messages += 1
        elif tag == CANCEL:
            self._cancelled.add(dest)
            self._due = [(self._clock(), r, w) if r == dest else (t, r, w) for t, r, w in self._due]
            heapq.heapify(self._due)
        elif tag == STOP:
            self._due = [entry for entry in self._due if entry[1] != dest]

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Return an answer that is due."""
        if not self._due or self._due[0][0] > self._clock():
            return None
        _, rank, work = heapq.heappop(self._due)
        self.messages += 1
        if rank in self._cancelled:
            self._cancelled.discard(rank)
            return Message(rank, ANSWER, Answer(work.key, slept(work, rank), cancelled=True))
        return Message(rank, ANSWER, Answer(work.key, self._outcome(work, rank)))

    def next_due(self) -> float:
        """Return when the next answer is due."""
        return self._due[0][0] if self._due else math.inf

    def flush(self, timeout_s: float) -> bool:
        """Nothing is under way."""
        return True

    def abort(self, code: int) -> None:
        """End."""
        raise SystemExit(code)


def longest_first(durations: list[float], workers: int) -> float:
    """Makespan of longest-first list scheduling on the true durations."""
    free = [0.0] * workers
    for d in sorted(durations, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + d)
    return max(free)


def main() -> None:
    """Run sleeping exposures in the ranks of this job, or in one process."""
    from seechange_mpi.mpi.comm import announced_rank, get_comm
    from seechange_mpi.mpi.coordinator import Coordinator, Limits
    from seechange_mpi.mpi.host import SectionHost
    from seechange_mpi.mpi.messages import Setup
    from seechange_mpi.mpi.observer import Observer
    from seechange_mpi.mpi.runlog import RunLog
    from seechange_mpi.mpi.scatter import Crew
    from seechange_mpi.mpi.worker import compute_process, serve_rank

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exposures", type=int, default=5)
    parser.add_argument("--sections", type=int, default=8)
    parser.add_argument("--mean", type=float, default=0.3, help="mean duration of a section [s]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="folder of the logs")
    parser.add_argument("--rank0", action="store_true", help="rank 0 computes too")
    args = parser.parse_args()
    if announced_rank():
        serve_rank(sleeping_runner)
        return
    compute = compute_process(sleeping_runner)
    comm = get_comm()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    log = RunLog(Path(args.folder) if args.folder else None, 0)
    setup = Setup(args.folder or "")
    own = SectionHost(compute, setup, log, 0) if args.rank0 or comm.size == 1 else None
    exposures = sleepy_exposures(args.exposures, args.sections, args.mean, args.seed)
    stages = SleepyStages(exposures)
    crew = Crew(comm, setup, own)
    time.sleep(0.5)  # every rank has its set-up by then: what is measured is the schedule
    coordinator = Coordinator(stages, crew, observer=Observer(log), limits=Limits(commit_guess_s=0.0))
    wall, cpu = time.monotonic(), time.process_time()
    try:
        coordinator.run()
    finally:
        crew.dismiss()
    seconds = time.monotonic() - wall
    compute.stop()
    comm.flush(5.0)
    best = longest_first([d for e in exposures for d in e.durations.values()], len(crew.slots))
    print("RESULT " + json.dumps({"seconds": seconds, "longest_first_s": best, "cpu_s": time.process_time() - cpu,
                                  "finished": stages.finished, "workers": len(crew.slots)}), flush=True)


if __name__ == "__main__":
    main()
