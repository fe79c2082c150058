"""Cores and memory of the ranks of a node."""

from __future__ import annotations

import subprocess
import sys

import pytest

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.mpi.memory import check_memory, predicted_mb
from seechange_mpi.mpi.placement import available_mb, plan


def place(rank: int, ranks: int) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks)}


def test_cores_are_divided_among_the_ranks_of_a_node():
    shares = [plan(place(r, 5), range(64), 64).cores for r in range(5)]
    assert sorted(c for s in shares for c in s) == list(range(64)), "each core once"
    assert {len(s) for s in shares} == {12, 13}
    assert all(s == tuple(range(s[0], s[-1] + 1)) for s in shares), "neighbours"
    assert plan(place(1, 4), range(8), 8).describe() == "rank 2 of 4 on its node, bound to cores 2-3"


@pytest.mark.parametrize(("ranks", "mine", "total"), [(1, 64, 64), (64, 64, 64), (3, 2, 2), (4, 16, 64)])
def test_ranks_are_left_alone_where_binding_would_not_help(ranks, mine, total):
    """One rank; one core for each; more ranks than cores; the launcher has bound them."""
    assert plan(place(0, ranks), range(mine), total).cores == ()


def test_free_memory_is_the_smallest_of_what_is_told(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 4194304 kB\n")
    group = tmp_path / "cgroup"
    group.mkdir()
    assert available_mb({}, tmp_path, group) == 4096
    (group / "memory.max").write_text("2147483648\n")
    (group / "memory.current").write_text("1073741824\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 0\n")
    assert available_mb({}, tmp_path, group) == 1024
    assert available_mb({"SLURM_MEM_PER_NODE": "512"}, tmp_path, group) == 512
    assert available_mb({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "4"}, tmp_path, group) == 400
    (group / "memory.stat").write_text("inactive_file 536870912\n")
    assert available_mb({}, tmp_path, group) == 1536, "caches can be given up"
    job = group / "system" / "job_1"
    job.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/system/job_1\n")
    for name, text in (("memory.max", "1048576000"), ("memory.current", "524288000"), ("memory.stat", "anon 1")):
        (job / name).write_text(text)
    assert available_mb({}, tmp_path, group) == 500, "the group of the job"
    (job / "memory.max").write_text("max\n")
    (group / "memory.max").write_text("max\n")
    assert available_mb({}, tmp_path, group) == 4096
    assert available_mb({}, tmp_path / "none", tmp_path / "none") is None


def test_too_many_ranks_for_the_memory_are_refused_with_figures():
    camera = load_camera("LS4")
    assert 600 < predicted_mb(camera) < 850, "measured: 720 MB for 2k × 4k"
    assert check_memory(camera, 32, 33, 64_000.0) < 32_000
    with pytest.raises(ConfigError, match=r"32 processes of 0\.7\d GB .* 8\.0 GB are free .* at most 10 ranks"):
        check_memory(camera, 32, 32, 8_000.0)
    with pytest.raises(ConfigError, match="not even one fits"):
        check_memory(camera, 1, 1, 300.0)


def test_a_worker_is_placed_before_anything_heavy_is_imported():
    code = "import sys, seechange_mpi.mpi.worker; print([m for m in ('numpy', 'scipy', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
