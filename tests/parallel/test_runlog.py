"""The log of a run: written by ranks that may be killed, on disks that may fill up; read merged."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from typing import get_args

import numpy as np
import pytest

from seechange_mpi.mpi import runlog
from seechange_mpi.mpi.runlog import KINDS, Kind, RunLog, latest_run, rank_files, read_log, run_folder


def lines(log):
    return [json.loads(x) for x in log.path.read_text().splitlines()]


def test_a_line_holds_what_is_known_and_nothing_empty(tmp_path):
    log = RunLog(tmp_path / "run", 3)
    log.event("section_begin", exposure="e1", section="S2", attempt=2)
    log.event("step_end", level="warning", step="cutting", wall_s=np.float32(1.5), gpu_mb=0.0, error="", nothing=None,
              rms=math.nan, rank=99)
    first, second = lines(log)
    assert log.path.name == "rank-0003.jsonl"
    assert set(first) == {"t", "rank", "host", "pid", "kind", "exposure", "section", "attempt"}
    assert first["pid"] == os.getpid()
    assert first["rank"] == second["rank"] == 3
    assert {k: second[k] for k in second.keys() - first.keys()} == {
        "level": "warning", "step": "cutting", "wall_s": 1.5, "gpu_mb": 0.0}


def test_every_kind_is_explained():
    assert set(KINDS) == set(get_args(Kind))


def test_no_folder_means_no_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog(None, 0)
    log.event("start")
    assert log.lost == 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_loses_lines_and_says_how_many(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0)
    log.event("start")

    def full(fd, data):
        raise OSError(errno.ENOSPC, "no space")

    def nearly_full(fd, data):
        return real(fd, data[:7])

    real = os.write
    monkeypatch.setattr(runlog.os, "write", full)
    log.event("claim", exposure="e1")
    monkeypatch.setattr(runlog.os, "write", nearly_full)
    log.event("claim", exposure="e2")
    monkeypatch.setattr(runlog.os, "write", real)
    log.event("claim", exposure="e3")
    log.event("end")
    records = list(read_log(tmp_path))
    assert log.lost == 2
    assert [r["kind"] for r in records] == ["start", "warning", "claim", "end"]
    assert "damaged line" in records[1]["message"]
    assert records[2]["lost_lines"] == 2
    assert "lost_lines" not in records[3]


def test_a_folder_that_vanishes_loses_lines(tmp_path):
    log = RunLog(tmp_path / "run", 0)
    log.event("start")
    shutil.rmtree(tmp_path / "run")
    log.event("claim")
    assert log.lost == 1
    (tmp_path / "run").mkdir()
    log.event("end")
    assert [r["kind"] for r in lines(log)] == ["end"]


def test_figures_that_json_cannot_hold_do_not_raise(tmp_path):
    log = RunLog(tmp_path, 0)
    loop = []
    loop.append(loop)
    log.event("warning", message="\udcff", path=tmp_path, loop=loop)
    log.event("warning", message="x" * 10_000, path=tmp_path)
    assert log.lost == 1
    [line] = lines(log)
    assert len(line["message"]) == 4000
    assert line["path"] == str(tmp_path)


def write(folder, rank, *records):
    folder.mkdir(exist_ok=True)
    with (folder / f"rank-{rank:04d}.jsonl").open("a") as f:
        for r in records:
            f.write(json.dumps({"rank": rank, "host": "h", "pid": 10 + rank, "kind": "warning", **r}) + "\n")


def test_ranks_are_merged_by_time_and_filtered(tmp_path):
    write(tmp_path, 0, {"t": 1.0, "exposure": "a"}, {"t": 4.0, "level": "error", "section": "S1"})
    write(tmp_path, 12, {"t": 2.0, "step": "cutting"}, {"t": 3.0, "level": "warning", "section": "S1"})
    assert [r["t"] for r in read_log(tmp_path)] == [1.0, 2.0, 3.0, 4.0]
    assert [r["t"] for r in read_log(tmp_path, level="warning")] == [3.0, 4.0]
    assert [r["t"] for r in read_log(tmp_path, rank=12)] == [2.0, 3.0]
    assert [r["t"] for r in read_log(tmp_path, section="S1", rank=0)] == [4.0]
    assert [r["t"] for r in read_log(tmp_path, exposure="a")] == [1.0]
    assert [r["t"] for r in read_log(tmp_path, step="cutting")] == [2.0]


@pytest.mark.parametrize("block", [1 << 18, 16])
def test_a_last_line_cut_short_is_told(tmp_path, monkeypatch, block):
    monkeypatch.setattr(runlog, "_BLOCK", block)
    write(tmp_path, 0, {"t": 1.0}, {"t": 9.0})
    write(tmp_path, 1, {"t": 2.0})
    with (tmp_path / "rank-0001.jsonl").open("a") as f:
        f.write('{"t": 3.0, "ki')
    records = list(read_log(tmp_path))
    assert [r["t"] for r in records] == [1.0, 2.0, 2.0, 9.0]
    assert records[2]["rank"] == 1
    assert "rank-0001.jsonl: its last line is cut short" in records[2]["message"]
    log = RunLog(tmp_path, 1)
    log.event("end")
    assert next(r for r in list(read_log(tmp_path))[::-1] if r["kind"] == "end")["rank"] == 1


def test_reading_begins_before_everything_is_read(tmp_path):
    write(tmp_path, 0, *({"t": float(k), "message": "x" * 100} for k in range(20_000)))
    tail = runlog.Tail(tmp_path / "rank-0000.jsonl")
    next(tail.lines())
    assert tail._offset == runlog._BLOCK


def test_run_folders_are_named_by_time_and_the_latest_is_found(tmp_path):
    early, late = datetime(2026, 3, 1, 10, 0, 0, tzinfo=UTC), datetime(2026, 3, 1, 10, 0, 1, tzinfo=UTC)
    assert latest_run(tmp_path) is None
    first = run_folder(tmp_path, "9001", early)
    assert first == tmp_path / "runs" / "20260301T100000-9001"
    first.mkdir(parents=True)
    assert run_folder(tmp_path, "9001", early).name == "20260301T100000-9001.2"
    second = run_folder(tmp_path, None, late)
    assert second.name == f"20260301T100001-{os.getpid()}"
    second.mkdir()
    (tmp_path / "runs" / "zz-notes").mkdir()
    assert latest_run(tmp_path) == second


def test_only_the_standard_library_is_imported():
    code = ("import sys, seechange_mpi.mpi.runlog\n"
            "print(sorted({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names - {'__main__'}))")
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.stdout.strip() == "['seechange_mpi']"


def test_threads_do_not_mix_their_lines(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    log = RunLog(tmp_path, 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: log.event("warning", message=str(k)), range(400)))
    assert sorted(int(r["message"]) for r in lines(log)) == list(range(400))
    assert list(rank_files(tmp_path)) == [0]
