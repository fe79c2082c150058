"""What it costs to start ranks: CPU until a rank is ready for its first section, memory, and the way out.

    python benchmarks/startup.py               2 and 16 ranks (part of make bench)
    python benchmarks/startup.py --ranks 2 16 64

Every rank is an MPI process with its nursery, which imports the pipeline as in a real run, and its compute process.
62 sections of 0.1 s that sleep are processed, then the ranks leave.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sleeping import SleepyExposure, SleepyStages, sleeping_runner

SECTIONS = 62


def tree_of(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(p) for p in task.read_text().split()]
    return found


def cost_of(pid: int) -> dict[str, float]:
    """CPU of a process [s], and its memory now [MB]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    rollup = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {"cpu": cpu, "rss": int(rollup["Rss"].split()[0]) / 1e3, "pss": int(rollup["Pss"].split()[0]) / 1e3}


def ready_runner(task: Any, rank: int, watch: Any) -> Any:
    """Write what this rank's processes have cost when its first section has come; then sleep as long as asked."""
    path = Path(task.shard_dir) / f"{rank}.json"
    if not path.exists():
        nursery, here = os.getppid(), os.getpid()
        top = int(Path(f"/proc/{nursery}/stat").read_text().rpartition(")")[2].split()[1])
        path.write_text(json.dumps({"rank": cost_of(top), "nursery": cost_of(nursery), "compute": cost_of(here)}))
    return sleeping_runner(task, rank, watch)


def in_a_rank(folder: str) -> None:
    """Be one of the ranks."""
    from dataclasses import replace

    from seechange_mpi.mpi.comm import announced_rank, get_comm
    from seechange_mpi.mpi.compute import ComputeProcess
    from seechange_mpi.mpi.host import SectionServer, preload
    from seechange_mpi.mpi.worker import be_worker

    if announced_rank():
        compute = ComputeProcess(SectionServer(ready_runner), preload)
        compute.start()
        be_worker(get_comm(), compute)
        compute.stop()
        return
    from seechange_mpi.mpi.coordinator import Coordinator
    from seechange_mpi.mpi.messages import Setup
    from seechange_mpi.mpi.scatter import Crew

    comm = get_comm()
    stages = SleepyStages([SleepyExposure("e", {f"S{k:02d}": 0.1 for k in range(SECTIONS)})])
    prepare = stages.prepare

    def with_folder(claim: Any) -> Any:
        prepared = prepare(claim)
        prepared.tasks = {s: replace(t, shard_dir=folder) for s, t in prepared.tasks.items()}
        return prepared

    stages.prepare = with_folder  # type: ignore[method-assign]
    crew = Crew(comm, Setup())
    cpu = time.process_time()
    (result,) = Coordinator(stages, crew).run()
    cpu = time.process_time() - cpu
    crew.dismiss()
    comm.flush(10.0)
    done = sum(o.status == "done" for o in result.outcomes.values())
    (Path(folder) / "run.json").write_text(json.dumps({"done": done, "cpu": cpu, "ready": time.time()}))


def measure(ranks: int, folder: Path) -> list[str]:
    """Run `ranks` of them; return a row of the table."""
    from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind

    program = find_mpiexec()
    folder.mkdir()
    command = [program, "-n", str(ranks), sys.executable, __file__, "--inside", str(folder)]
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | launch_environment(mpi_kind(program)), timeout=280, check=False)
    wall = time.monotonic() - began
    run = json.loads((folder / "run.json").read_text())
    costs = [json.loads(p.read_text()) for p in folder.glob("[0-9]*.json")]

    def mean(part: str, what: str) -> float:
        return float(sum(c[part][what] for c in costs) / len(costs))

    cpu = sum(mean(part, "cpu") for part in ("rank", "nursery", "compute"))
    parts = [f"{mean(part, 'rss'):.0f} / {mean(part, 'pss'):.0f}" for part in ("rank", "nursery", "compute")]
    total = sum(mean(part, "pss") for part in ("rank", "nursery", "compute"))
    return [f"{ranks}", f"{len(costs)}", f"{cpu:.2f}", f"{mean('rank', 'cpu'):.2f}", f"{mean('nursery', 'cpu'):.2f}",
            *parts, f"{total:.0f}", f"{1e3 * run['cpu'] / SECTIONS:.1f}", f"{wall:.1f}",
            f"{run['done']} of {SECTIONS}", f"{done.returncode}"]


HEADER = ("ranks", "ranks that got a section", "CPU until ready [s]", "of it the rank [s]", "the nursery [s]",
          "rank RSS / PSS [MB]", "nursery", "compute process", "PSS of all three [MB]",
          "rank 0's CPU per section [ms]", "wall of the whole job [s]", "sections done", "exit code")


def main() -> None:
    """Print the table."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        in_a_rank(args.inside)
        return
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            print("| " + " | ".join(measure(ranks, Path(folder) / str(ranks))) + " |", flush=True)


if __name__ == "__main__":
    main()
