"""Where a rank computes: its cores and its share of the node's memory; decided before anything heavy is imported.

Threads of numerical libraries stay at one unless the user sets them: their number changes sums in the last digit. The
device of a rank is chosen in `gpu_kernels.device`, from the same place on the node.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seechange_mpi.gpu_kernels.device import local_place

_LEAST_CORES = 2
"""Cores of a rank: one computes, the other passes messages, commits, writes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a rank and its compute process may use.

    Attributes
    ----------
    rank, ranks : place of this rank on its node, and how many there are.
    cores : cores it is bound to; empty = it stays where the launcher has put it.
    """

    rank: int
    ranks: int
    cores: tuple[int, ...] = ()

    def describe(self) -> str:
        """Say it in a few words."""
        where = f"bound to cores {_ranges(self.cores)}" if self.cores else "not bound to cores"
        return f"rank {self.rank + 1} of {self.ranks} on its node, {where}"


def plan(environ: Mapping[str, str] | None = None, cores: Iterable[int] | None = None,
         all_cores: int | None = None) -> Placement:
    """Divide the node's cores among its ranks, neighbouring ones together.

    Ranks are bound only where the launcher has not done so (each sees all cores of the node) and every rank can have
    two at least.

    Parameters
    ----------
    cores, all_cores : cores this process may use, and how many the node has; default: asked of the system.
    """
    rank, ranks = local_place(os.environ if environ is None else environ)
    mine = sorted(os.sched_getaffinity(0) if cores is None else cores)
    total = (os.cpu_count() or 1) if all_cores is None else all_cores
    if ranks == 1 or len(mine) < total or len(mine) < _LEAST_CORES * ranks:
        return Placement(rank, ranks)
    return Placement(rank, ranks, tuple(mine[rank * len(mine) // ranks : (rank + 1) * len(mine) // ranks]))


def take_place() -> Placement:
    """Bind this process, and all it forks later, to its cores."""
    placement = plan()
    if placement.cores:
        try:
            os.sched_setaffinity(0, placement.cores)
        except OSError:
            return Placement(placement.rank, placement.ranks)
    return placement


def _ranges(cores: tuple[int, ...]) -> str:
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)


def available_mb(environ: Mapping[str, str] | None = None, proc: Path = Path("/proc"),
                 cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the memory that processes of this node can still take [MB]; None where nothing tells.

    The smallest of what is available on the machine, what the control group leaves, and what Slurm has granted.
    """
    env = os.environ if environ is None else environ
    found: list[float] = []
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found += [float(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    found += _group_mb(proc, cgroup)
    granted = env.get("SLURM_MEM_PER_NODE", "")
    if granted.isdigit() and int(granted) > 0:
        found.append(float(granted))
    each, cpus = env.get("SLURM_MEM_PER_CPU", ""), env.get("SLURM_CPUS_ON_NODE", "")
    if each.isdigit() and cpus.isdigit() and int(each) > 0:
        found.append(float(each) * int(cpus))
    return min(found) if found else None


def _group_mb(proc: Path, root: Path) -> list[float]:
    """Return what the control groups of this process leave [MB], from its own up to the root; caches count as free."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        base, limit, used, cache = ((root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                     "total_inactive_file") if controllers else
                                    (root, "memory.max", "memory.current", "inactive_file"))
        here = base / name.strip("/")
        for group in (here, *(p for p in here.parents if p == base or base in p.parents)):
            try:
                free = float((group / limit).read_text()) - float((group / used).read_text())
                stat = dict(row.split(maxsplit=1) for row in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            found.append((free + float(stat.get(cache, 0))) / 2**20)
    return found
