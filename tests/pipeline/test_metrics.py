"""Cost of a step: its own memory, not that of the steps before; files without the newer figures."""

import sys
import types

import h5py
import numpy as np
import pytest

from seechange_mpi.io.h5util import write_table
from seechange_mpi.io.section_h5 import STEP_COLUMNS, read_report, write_report
from seechange_mpi.model.tables import dtype_of
from seechange_mpi.model.task import SectionReport, StepRecord
from seechange_mpi.pipeline import metrics
from seechange_mpi.pipeline.metrics import StepMeter, begin_section, peak_rss_mb

MB = 1024 * 1024


def hold(megabytes):
    return np.ones(megabytes * MB, np.uint8)


needs_reset = pytest.mark.skipif(not metrics._RESET.exists(), reason="no /proc/self/clear_refs here")


@needs_reset
def test_memory_is_that_of_the_step_itself():
    begin_section()
    before = peak_rss_mb()
    meter = StepMeter()
    large = hold(150)
    del large
    first = meter.record("extraction", "done")
    second = StepMeter().record("astrocal", "done")
    assert first.rss_mb - before > 140
    assert first.rss_mb - second.rss_mb > 140
    assert peak_rss_mb() == pytest.approx(first.rss_mb, abs=5)  # of the whole section
    begin_section()
    assert peak_rss_mb() < first.rss_mb - 140


def test_where_nothing_is_told_the_process_mark_is_taken(tmp_path, monkeypatch):
    for name in ("_RESET", "_STATUS", "_IO"):
        monkeypatch.setattr(metrics, name, tmp_path / "missing")
    record = StepMeter().record("cutting", "failed")
    assert record.rss_mb > 10
    assert (record.read_mb, record.written_mb, record.gpu_mb) == (0, 0, 0)
    assert record.status == "failed"


@pytest.mark.skipif(not metrics._IO.exists(), reason="no /proc/self/io here")
def test_bytes_read_and_written_are_the_steps(tmp_path):
    (tmp_path / "a").write_bytes(bytes(3 * MB))
    meter = StepMeter()
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(data + data)
    record = meter.record("preprocessing", "done")
    assert record.read_mb == pytest.approx(3, abs=0.1)
    assert record.written_mb == pytest.approx(6, abs=0.1)


class Hook:
    """CuPy's protocol of memory hooks."""

    active = None

    def __enter__(self):
        Hook.active = self
        return self

    def __exit__(self, *_):
        Hook.active = None


@pytest.fixture
def cupy(monkeypatch):
    """A CuPy of which only the pool exists: 100 MiB in use, 400 MiB held."""
    pool = types.SimpleNamespace(used_bytes=lambda: 100 * MB, total_bytes=lambda: 400 * MB)
    module = types.SimpleNamespace(get_default_memory_pool=lambda: pool, cuda=types.SimpleNamespace(MemoryHook=Hook))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_gpu_memory_is_the_most_in_use_during_the_step(cupy):
    meter = StepMeter()
    hook = Hook.active
    hook.malloc_postprocess(device_id=0, size=1, mem_size=50 * MB, mem_ptr=1, pmem_id=1)
    hook.free_postprocess(device_id=0, mem_size=50 * MB, mem_ptr=1, pmem_id=1)
    hook.malloc_postprocess(device_id=0, size=1, mem_size=20 * MB, mem_ptr=1, pmem_id=1)
    assert meter.record("subtraction", "done").gpu_mb == 150
    assert Hook.active is None


def test_cupy_that_came_with_the_step_counts_whole(cupy, monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy")
    meter = StepMeter()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert meter.record("subtraction", "done").gpu_mb == 400


def test_a_gpu_in_trouble_does_not_stop_a_step(cupy, monkeypatch):
    def broken():
        raise RuntimeError("no device")

    cupy.get_default_memory_pool = broken
    assert StepMeter().record("subtraction", "done").gpu_mb == 0


def test_figures_come_back_from_a_file_and_older_files_have_none():
    step = StepRecord("subtraction", "done", 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    old = STEP_COLUMNS[:5]
    with h5py.File("x", "w", driver="core", backing_store=False) as f:
        new_group, old_group = f.create_group("new"), f.create_group("old")
        write_report(new_group, SectionReport(True, steps=[step]))
        assert read_report(new_group).steps == [step]
        write_report(old_group, SectionReport(True))
        del old_group["report/steps"]
        write_table(old_group["report"], "steps", np.array([("cutting", "done", 1.0, 2.0, 3.0)], dtype_of(old)), old)
        assert read_report(old_group).steps == [StepRecord("cutting", "done", 1.0, 2.0, 3.0)]
