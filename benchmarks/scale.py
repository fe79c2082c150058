"""Rank 0 under load: the real coordinator with thousands of workers that sleep, and where it saturates.

    python benchmarks/scale.py            a short version (part of make bench)
    python benchmarks/scale.py --full     the table of docs/benchmarks.md
    python benchmarks/scale.py --profile 2048,62,700,1.0

Workers are entries of a heap; their work, the pickling of their answers included, is not counted to rank 0, the
pickling of every section sent and of every answer received is. What MPI itself takes is not in it (see `startup.py`).
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pickle
import pstats
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sleeping import SleepyComm, SleepyPrepared, SleepyStages, sleepy_exposures

from seechange_mpi.conductor_client.protocol import Claim
from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.task import STEPS, Outcome, ReferenceLink, SectionReport, SectionTask, StepRecord
from seechange_mpi.mpi.comm import ANSWER, WORK, Message
from seechange_mpi.mpi.coordinator import Coordinator, Limits
from seechange_mpi.mpi.deadline import Deadline
from seechange_mpi.mpi.messages import Answer, Setup, Work
from seechange_mpi.mpi.observer import Observer
from seechange_mpi.mpi.prediction import Predictor
from seechange_mpi.mpi.results import ExposureResult
from seechange_mpi.mpi.runlog import RunLog
from seechange_mpi.mpi.scatter import Crew
from seechange_mpi.pipeline.top_level import Pipeline


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration; times are real ones.

    Attributes
    ----------
    section_s : mean time of a section;  commit_s, prepare_s : of an exposure.
    """

    ranks: int
    sections: int
    exposures: int
    section_s: float
    commit_s: float = 0.0
    prepare_s: float = 0.0
    limited: bool = True
    """A time limit is set (far away): then every claim is weighed against it."""


def real_task(exposure: str, section: str, seconds: float, camera: Any, settings: dict[str, Any]) -> SectionTask:
    """A section as rank 0 sends it."""
    frames = {k: f"/archive/calibration/LS4/{k}/{k}_{section}_r_20251101.fits"
              for k in ("bias", "flat", "badpixels", "fringe", "linearity")}
    ids = dict.fromkeys(("preprocessing", "extraction", "subtraction", "detection", "cutting", "measuring", "scoring"),
                        "0123456789abcdef" * 2)
    link = ReferenceLink(f"/archive/bundles/LS4/{exposure}.h5", section, f"{exposure}_{section}", exposure, "r", "LS4",
                         ids)
    info = ExposureInfo(exposure, "LS4", f"/archive/raw/{exposure}.fits.fz", 60000.0, seconds, "r")
    return SectionTask(info, section, camera, settings, ids, f"/archive/shards/{exposure}", frames,
                       {"kind": "excerpt", "path": f"/archive/catalogs/{exposure}.h5", "identity": "f" * 40}, link,
                       inputs=dict.fromkeys([*frames, "catalog", "reference"], "e" * 40))


def real_outcome(work: Work, rank: int) -> Outcome:
    """An answer as large as a real one."""
    steps = [StepRecord(s, "done", 0.5, 0.5, 400.0 + rank, 0.0, 12.5, 3.5) for s in STEPS]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    report = SectionReport(success=True, completed_step=STEPS[-1], steps=steps, rank=rank, host=f"node{rank // 64:04d}",
                           start_time=now, finish_time=now)
    figures = dict.fromkeys(("fwhm_arcsec", "zp", "lim_mag", "astro_rms_mas", "n_sources", "n_detections",
                             "n_measurements", "n_good", "bitflag", "rss_mb"), 1.5 + rank)
    name = work.task.exposure.identifier
    return Outcome(name, work.key.section, "done", report, f"{name}_{work.key.section}.h5",
                   figures | {"seconds": work.task.exposure.exp_time_s})


class MeasuredComm(SleepyComm):
    """Notes when ranks answer and get their next section, and what only simulates them.

    Attributes
    ----------
    gaps : time from the end of a rank's section to its next one.
    others_s : CPU time of what is the workers' part.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, outcome=real_outcome)
        self.gaps: list[float] = []
        self.busy_s = self.others_s = 0.0
        self.first = self.last = time.monotonic()
        self.work_bytes = self.answer_bytes = 0
        self._free: dict[int, float] = {}

    def send(self, body: Any, dest: int, tag: int) -> None:
        """Pickle it, and note for how long the rank had nothing to do."""
        if tag == WORK:
            self.work_bytes = len(pickle.dumps(body, pickle.HIGHEST_PROTOCOL))
        begun = time.thread_time()
        if tag == WORK:
            self.busy_s += body.task.exposure.exp_time_s
            if dest in self._free:
                self.gaps.append(self._clock() - self._free[dest])
        super().send(body, dest, tag)
        self.others_s += time.thread_time() - begun

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Unpickle an answer that is due."""
        begun = time.thread_time()
        due = self.next_due()
        message = super().receive(timeout_s)
        if message is None:
            self.others_s += time.thread_time() - begun
            return None
        self._free[message.source] = self.last = due
        assert isinstance(message.body, Answer)
        data = pickle.dumps(message.body, pickle.HIGHEST_PROTOCOL)
        self.answer_bytes = len(data)
        self.others_s += time.thread_time() - begun
        return Message(message.source, ANSWER, pickle.loads(data))


class MeasuredStages(SleepyStages):
    """Sections as large as real ones; keeps no outcomes."""

    def __init__(self, row: Row) -> None:
        super().__init__(sleepy_exposures(row.exposures, row.sections, row.section_s, 1),
                         prepare_s=row.prepare_s, commit_s=row.commit_s)
        self.camera, self.settings = load_camera("LS4"), Pipeline.from_settings({}).settings()
        self.last_commit = 0.0

    def prepare(self, claim: Claim) -> SleepyPrepared:
        """Take `prepare_s`."""
        self.sleep(self.prepare_s)
        e = self.by_name.pop(claim.identifier)
        tasks = {s: real_task(e.identifier, s, d, self.camera, self.settings) for s, d in e.durations.items()}
        return SleepyPrepared(e, set(), tasks, e.stars)

    def finish(self, claim: Claim, prepared: SleepyPrepared, result: ExposureResult, lost: Any) -> None:
        """Take `commit_s`."""
        self.sleep(self.commit_s)
        self.finished.append(claim.identifier)
        result.state = "done"
        self.last_commit = time.monotonic()


class Watching(Observer):
    """Notes the largest numbers of exposures in hand, beside what the real one does."""

    most_open = most_backlog = looks = waiting = 0

    def look(self, coordinator: Coordinator) -> None:
        """Once per look."""
        self.looks += 1
        self.most_open = max(self.most_open, len(coordinator.open))
        super().look(coordinator)

    def finishing(self, opened: Any) -> None:
        """Another waits."""
        self.waiting += 1
        self.most_backlog = max(self.most_backlog, self.waiting - self.done)

    @property
    def done(self) -> int:
        """Exposures that are over."""
        return self.status.done + self.status.failed


@dataclass(slots=True)
class Figures:
    """What a row showed; times in seconds."""

    row: Row
    wall: float
    makespan: float
    utilisation: float
    cpu: float
    own_cpu: float
    per_section_us: float
    messages_per_s: float
    most_open: int
    backlog: int
    tail: float
    gap: float
    gap_p99: float
    looks_per_s: float
    grown_mb: float
    work_kb: float
    answer_kb: float

    def cells(self) -> list[str]:
        """Row of the table."""
        r = self.row
        return [f"{r.ranks}", f"{r.sections}", f"{r.exposures}", f"{r.section_s:.3g}", f"{r.commit_s:.3g}",
                f"{self.makespan:.1f}", f"{100 * self.utilisation:.1f}", f"{100 * self.own_cpu / self.wall:.0f}",
                f"{self.per_section_us:.0f}", f"{self.messages_per_s:.0f}", f"{self.most_open}", f"{self.backlog}",
                f"{self.tail:.1f}", f"{1e3 * self.gap:.1f}", f"{1e3 * self.gap_p99:.1f}", f"{self.grown_mb:.1f}"]


HEADER = ("ranks", "sections per exposure", "exposures", "section [s]", "commit [s]", "makespan [s]",
          "workers busy [%]", "rank 0 [% of a core]", "CPU per section [µs]", "messages/s", "most exposures in hand",
          "most waiting for commit", "last commit after last section [s]", "answer to next section, mean [ms]",
          "99 % [ms]", "memory grown [MB]")


def resident_mb() -> float:
    """Resident memory of this process now."""
    text = Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * resource.getpagesize() / 1e6


def measure(row: Row, folder: Path, profile: bool = False) -> Figures:
    """Run a configuration."""
    stages, comm = MeasuredStages(row), MeasuredComm(row.ranks)
    run = folder / f"{row.ranks}-{row.sections}-{row.exposures}-{time.monotonic_ns()}"
    run.mkdir(parents=True)
    observer = Watching(RunLog(run, 0), None, row.ranks - 1, run)
    made = Coordinator(stages, Crew(comm, Setup()), limits=Limits(commit_guess_s=max(row.commit_s, 0.01)),
                       deadline=Deadline(3600.0 if row.limited else None), predictor=Predictor(row.section_s),
                       observer=observer)
    profiler = cProfile.Profile(time.thread_time) if profile else None
    memory, wall, cpu = resident_mb(), time.monotonic(), time.process_time()
    if profiler is not None:
        profiler.enable()
    made.run()
    if profiler is not None:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(22)
    cpu, ended = time.process_time() - cpu, time.monotonic()
    n = row.sections * row.exposures
    assert len(stages.finished) == row.exposures
    makespan = comm.last - wall
    gaps = sorted(comm.gaps) or [math.nan]
    own = cpu - comm.others_s
    return Figures(row, ended - wall, makespan, comm.busy_s / ((row.ranks - 1) * makespan), cpu, own, 1e6 * own / n,
                   comm.messages / (ended - wall), observer.most_open, observer.most_backlog,
                   stages.last_commit - comm.last, statistics.fmean(gaps), gaps[int(0.99 * (len(gaps) - 1))],
                   observer.looks / (ended - wall), resident_mb() - memory, comm.work_bytes / 1e3,
                   comm.answer_bytes / 1e3)


SHORT = [Row(32, 31, 40, 0.25, 0.02, 0.02), Row(256, 62, 120, 0.5, 0.02, 0.02)]
FULL = [
    Row(32, 31, 60, 0.5, 0.02, 0.02), Row(63, 62, 60, 0.5, 0.02, 0.02), Row(256, 62, 150, 0.5, 0.02, 0.02),
    Row(1024, 62, 500, 1.0, 0.02, 0.02), Row(2048, 62, 700, 1.0, 0.01, 0.01),
    Row(32, 8, 60, 0.05, 0.5, 0.02),  # bounded by commits
    Row(2048, 62, 330, 0.2, 0.005, 0.005),  # bounded by rank 0's main loop
    Row(1024, 8, 10_000, 0.4, 0.0005, 0.0005),  # memory
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every row")
    parser.add_argument("--profile", help="ranks,sections,exposures,section_s[,commit_s[,prepare_s]]: profiled")
    parser.add_argument("--row", help="the same, not profiled")
    args = parser.parse_args()
    rows = FULL if args.full else SHORT
    if args.profile or args.row:
        numbers = (args.profile or args.row).split(",")
        rows = [Row(*map(int, numbers[:3]), *map(float, numbers[3:]))]
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            figures = measure(row, Path(folder), bool(args.profile))
            print("| " + " | ".join(figures.cells()) + " |", flush=True)
    print(f"\na section sent: {figures.work_kb:.1f} kB, an answer: {figures.answer_kb:.1f} kB pickled")


if __name__ == "__main__":
    main()
