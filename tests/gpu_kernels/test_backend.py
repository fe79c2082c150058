"""Choice of device, memory limit, retreat to the CPU; and that the stand-in for CuPy is strict."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path

import fake_cupy
import numpy as np
import pytest

from seechange_mpi.gpu_kernels import device as gpu
from seechange_mpi.gpu_kernels.backend import asnumpy, backend_name, get_ndimage, get_xp, to_backend

RANK_VARIABLES = {name for pair in gpu._PLACES for name in pair} | {"SLURM_GPUS_PER_TASK", "SEECHANGE_GPU_POOL_MB"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """The launcher of the tests themselves says nothing."""
    for name in RANK_VARIABLES | {"SEECHANGE_BACKEND"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "_FALLBACKS", type(gpu._FALLBACKS)())


@pytest.mark.parametrize(("environment", "place"), [
    ({}, (0, 1)),
    ({"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, (3, 8)),
    ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2)),
    ({"PMI_LOCAL_RANK": "5"}, (5, 6)),
    ({"SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "3,4(x12),1"}, (2, 4)),
    # mpirun inside a batch job: the batch step's own id says nothing
    ({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, (2, 4)),
    ({"OMPI_COMM_WORLD_LOCAL_RANK": "", "SLURM_LOCALID": "1"}, (1, 2))])
def test_place_on_the_node(environment, place):
    assert gpu.local_place(environment) == place


@pytest.mark.parametrize(("ranks", "devices"), [(1, 1), (4, 2), (5, 2), (3, 4), (64, 8)])
def test_every_rank_is_counted_on_one_device(ranks, devices):
    sharing = [gpu.ranks_sharing(rank, ranks, devices, {}) for rank in range(ranks)]
    for device in range(devices):
        here = [s for rank, s in enumerate(sharing) if rank % devices == device]
        assert here == [len(here)] * len(here)
    assert gpu.ranks_sharing(0, ranks, devices, {"SLURM_GPUS_PER_TASK": "1"}) == 1


@pytest.mark.parametrize(("rank", "number", "sharing"), [(0, 0, 3), (1, 1, 2), (2, 0, 3), (4, 0, 3)])
def test_device_and_pool_limit(stand_in, monkeypatch, rank, number, sharing):
    monkeypatch.setattr(fake_cupy.Device, "n_devices", 2)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(rank))
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "5")
    monkeypatch.setenv("SEECHANGE_BACKEND", "cupy")
    assert backend_name() == "cupy"
    pool, free = stand_in.get_default_memory_pool(), fake_cupy.Device.memory[0]
    assert fake_cupy.Device.current == number
    assert pool.get_limit() == int(0.9 * free / sharing)
    # the free memory of later is not asked again
    monkeypatch.setattr(fake_cupy.Device, "memory", (0, 0))
    monkeypatch.setattr(fake_cupy.Device, "current", 1 - number)
    assert gpu.use_device(5) == number
    assert fake_cupy.Device.current == number
    assert pool.get_limit() == int(0.9 * free / sharing)


def test_pool_limit_is_set_by_hand(stand_in, monkeypatch):
    monkeypatch.setenv("SEECHANGE_GPU_POOL_MB", "512")
    gpu.use_device()
    assert stand_in.get_default_memory_pool().get_limit() == 512 << 20
    gpu._chosen.cache_clear()
    gpu.use_device(pool_mb=0)
    assert stand_in.get_default_memory_pool().get_limit() == 0
    gpu._chosen.cache_clear()
    monkeypatch.setenv("SEECHANGE_GPU_POOL_MB", "8 GB")
    with pytest.raises(RuntimeError, match="SEECHANGE_GPU_POOL_MB: expected megabytes, 0 for no limit, found '8 GB'"):
        gpu.use_device()


def test_to_backend_puts_arrays_on_the_chosen_device(stand_in, monkeypatch):
    monkeypatch.setenv("SEECHANGE_BACKEND", "cupy")
    host = np.arange(3.0)
    there = to_backend(host)
    assert isinstance(there, stand_in.ndarray)
    assert get_xp(host, there) is stand_in
    assert get_xp(host) is np
    assert get_ndimage(stand_in) is sys.modules["cupyx.scipy.ndimage"]
    np.testing.assert_array_equal(asnumpy(there), host)


def test_without_a_driver_cupy_is_not_imported():
    if gpu.driver_present():
        pytest.skip("a driver is here")
    code = ("import sys; from seechange_mpi.gpu_kernels.backend import backend_name, to_backend\n"
            "assert backend_name() == 'numpy'; print(int('cupy' in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


class TestFallback:
    """`with_fallback`: smaller pieces, then the CPU, counted."""

    @staticmethod
    def full(*_):
        raise fake_cupy.OutOfMemoryError("Out of memory allocating 9 bytes")

    def test_enough_memory(self, stand_in):
        assert gpu.with_fallback("subtraction", lambda: 1, self.full) == 1
        assert gpu.fallback_counts() == {}

    def test_smaller_pieces(self, stand_in):
        assert gpu.with_fallback("subtraction", self.full, self.full, [self.full, lambda: 2]) == 2
        assert gpu.fallback_counts() == {}
        assert stand_in.get_default_memory_pool().freed == 2

    def test_cpu_counted_by_name(self, stand_in):
        for _ in range(2):
            assert gpu.with_fallback("subtraction", self.full, lambda: 3, [self.full]) == 3
        gpu.with_fallback("warp", self.full, lambda: 0)
        assert gpu.fallback_counts() == {"subtraction": 2, "warp": 1}
        gpu.reset_fallback_counts()
        assert gpu.fallback_counts() == {}

    def test_arrays_of_the_failed_call_are_gone_before_the_retry(self, stand_in):
        alive = []

        class Big:
            def __init__(self):
                alive.append(self)

        def greedy():
            big = Big()
            alive.clear()
            alive.append(weakref.ref(big))
            self.full(big)

        gpu.with_fallback("subtraction", greedy, lambda: alive.append(alive[0]() is None))
        assert alive[1]

    @pytest.mark.parametrize(("kind", "text", "memory"), [
        (fake_cupy.CUDARuntimeError, "cudaErrorMemoryAllocation: out of memory", True),
        (fake_cupy.CUDARuntimeError, "cudaErrorIllegalAddress", False),
        (MemoryError, "host", False),
        (ValueError, "ALLOC_FAILED", False)])
    def test_only_exhausted_gpu_memory_counts(self, stand_in, kind, text, memory):
        def fail():
            raise kind(text)

        assert gpu.is_out_of_memory(kind(text)) is memory
        if memory:
            assert gpu.with_fallback("warp", fail, lambda: 4) == 4
        else:
            with pytest.raises(kind):
                gpu.with_fallback("warp", fail, lambda: 4)

    def test_failure_on_the_cpu_passes_through(self, stand_in):
        with pytest.raises(MemoryError, match="host"):
            gpu.with_fallback("warp", self.full, lambda: (_ for _ in ()).throw(MemoryError("host")))


def test_exhausted_memory_of_a_device(cuda_device):
    xp, n = cuda_device.xp, 1 << 20
    gpu.use_device()
    pool = xp.get_default_memory_pool()
    gpu.free_memory()
    before = pool.get_limit()
    pool.set_limit(size=n)
    try:
        def tiles() -> float:
            return sum(float(xp.ones(n // 16).sum()) for _ in range(16))

        assert gpu.with_fallback("sum", lambda: float(xp.ones(n).sum()), lambda: -1.0, [tiles]) == n
        assert gpu.fallback_counts() == {}
        assert gpu.with_fallback("sum", lambda: float(xp.ones(n).sum()), lambda: -1.0) == -1.0
        assert gpu.fallback_counts() == {"sum": 1}
    finally:
        pool.set_limit(size=before)


def test_section_report_says_that_the_cpu_did_it(stand_in, monkeypatch):
    from seechange_mpi.pipeline import section

    def run(self):
        for _ in range(2):
            gpu.with_fallback("subtraction", TestFallback.full, lambda: None)

    monkeypatch.setattr(section._SectionRun, "__init__", lambda *_: None)
    monkeypatch.setattr(section._SectionRun, "run", run)
    monkeypatch.setattr(section._SectionRun, "store", lambda self: ("shard", ""))
    monkeypatch.setattr(section._SectionRun, "products", section.SectionProducts(), raising=False)
    task = type("Task", (), {"settings": {}, "section_id": "S1",
                             "exposure": type("Exposure", (), {"identifier": "e"})()})()
    for _ in range(2):  # the second section counts from 0
        outcome = section.run_section(task, pipeline=object())
        assert outcome.report.warnings == ["GPU memory ran out: 2 subtractions done on the CPU"]


class TestStandIn:
    """The stand-in refuses what CuPy refuses."""

    @pytest.mark.parametrize("misuse", [
        lambda xp, a, h: np.asarray(a),
        lambda xp, a, h: np.sqrt(a),
        lambda xp, a, h: np.mean(a),
        lambda xp, a, h: a + h,
        lambda xp, a, h: h + a,
        lambda xp, a, h: h.__iadd__(a),
        lambda xp, a, h: a.__iadd__(h),
        lambda xp, a, h: h.__setitem__(slice(None), a),
        lambda xp, a, h: a.__setitem__(slice(None), h),
        lambda xp, a, h: a[h.astype(int)],
        lambda xp, a, h: xp.where(a > 1, h, 0),
        lambda xp, a, h: xp.sqrt(h),
        lambda xp, a, h: xp.sqrt([1.0, 2.0]),
        lambda xp, a, h: xp.sum([1.0, 2.0]),
        lambda xp, a, h: xp.median(h),
        lambda xp, a, h: xp.sum(a, where=True),
        lambda xp, a, h: a.sum(where=True),
        lambda xp, a, h: xp.sqrt(a, where=a > 1),
        lambda xp, a, h: range(a.size)[a.argmax()],
        lambda xp, a, h: a[: a.argmax()],
        lambda xp, a, h: get_ndimage(xp).label(a > 1, structure=np.ones(3))])
    def test_type_errors(self, stand_in, misuse):
        with pytest.raises(TypeError):
            misuse(stand_in, stand_in.arange(4.0), np.arange(4.0))

    def test_arrays_behave(self, stand_in):
        xp = stand_in
        a = xp.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))
        assert isinstance(a.sum(), xp.ndarray)
        assert a.sum().shape == ()
        assert (float(a.sum()), int(a.max()), a.min().item(), bool(a.any())) == (66.0, 11, 0.0, True)
        a[1] += a[0]
        a[a > 10] = -1
        np.testing.assert_array_equal(a.get()[1:], [[4, 6, 8, 10], [8, 9, 10, -1]])
        assert (np.float32(2) * a).dtype == np.float32
        host = np.zeros(2)
        there = xp.asarray(host)
        there += 1
        assert host[0] == 0
        hits = xp.zeros(3, dtype=int)
        sys.modules["cupyx"].scatter_add(hits, xp.asarray([0, 0, 2]), 1)
        assert hits.tolist() == [2, 0, 1]

    def test_only_names_and_arguments_of_the_real_cupy(self, stand_in):
        if fake_cupy._real("cupy") is None:
            pytest.skip("CuPy is not installed (requirements-gpu.lock): names and arguments are not compared")
        for name in ("float128", "nonesuch"):
            with pytest.raises(AttributeError, match=name):
                getattr(stand_in, name)
        with pytest.raises(TypeError, match="workers"):
            sys.modules["cupyx.scipy.fft"].rfft2(stand_in.zeros((4, 4)), workers=2)
        a = stand_in.arange(6.0)
        assert a.reshape(2, 3).take(stand_in.asarray([1]), axis=0).tolist() == [[3, 4, 5]]
        with pytest.raises(TypeError, match="mode"):
            a.take(stand_in.asarray([1]), mode="clip")
        own = {n for n in vars(stand_in) if not n.startswith("_") and n != "name"}
        assert {n for n in own if not hasattr(fake_cupy._real("cupy"), n)} == set()
        methods = {n for n in fake_cupy._METHODS if not hasattr(fake_cupy._real("cupy.ndarray"), n)}
        assert methods == set()

    def test_gone_after_the_test(self):
        assert not isinstance(sys.modules.get("cupy"), fake_cupy._Namespace)


@pytest.mark.slow
def test_the_steps_of_the_pipeline_on_the_stand_in():
    here = Path(__file__).parent
    paths = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "fake_cupy", "-m", "not slow",
         str(here.parent / "pipeline" / "test_subtraction.py")], capture_output=True, text=True, check=False,
        env={**os.environ, "SEECHANGE_BACKEND": "cupy", "PYTHONPATH": os.pathsep.join(paths)})
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_table_of_gpu_times_runs(stand_in, capsys, monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks" / "gpu_table.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("gpu_table", path)
    gpu_table = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_table", gpu_table)
    spec.loader.exec_module(gpu_table)
    assert gpu_table.table((160, 190), 20, n=1)
    lines = capsys.readouterr().out.splitlines()[4:]
    assert [x.split(" | ")[0] for x in lines] == [f"| {r.name}" for r in gpu_table.ROWS]
