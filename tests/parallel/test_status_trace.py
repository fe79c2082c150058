"""Status and trace of a run, from files made here."""

import json
import os
import subprocess
import sys

from seechange_mpi.mpi.runlog import RunLog, read_log
from seechange_mpi.mpi.status import ExposureStatus, lost_ranks, new_status, rank_activity, read_status, write_status
from seechange_mpi.mpi.status_text import status_text
from seechange_mpi.mpi.trace import write_trace


def made_run(folder):
    zero, one, two = (RunLog(folder, k) for k in range(3))
    zero.event("start", ranks=3)
    zero.event("prepared", exposure="e1", seconds=0.001)
    at = {"exposure": "e1", "section": "S3", "attempt": 1}
    for log in (one, two):
        log.event("section_begin", **at)
        log.event("step_begin", **at, step="subtraction")
    one.event("step_end", **at, step="subtraction", status="done", wall_s=0.1, cpu_s=0.1, rss_mb=9.0)
    one.event("section_end", **at, status="done", seconds=0.1)
    one.event("end")
    zero.event("bundle", exposure="e1", seconds=0.0001, bytes=5)
    zero.event("end")


def test_lost_ranks_are_named_with_where_they_were(tmp_path):
    made_run(tmp_path)
    [lost] = lost_ranks(tmp_path)
    assert (lost.rank, lost.section, lost.step) == (2, "S3", "subtraction")
    assert lost.describe() == "rank 2 was in S3 of e1 at subtraction"
    assert lost_ranks(tmp_path / "missing") == []


def test_status_comes_back_and_a_run_whose_process_is_gone_is_lost(tmp_path):
    made_run(tmp_path)
    status = new_status(tmp_path)
    status.exposures["e1"] = ExposureStatus("computing", 4, 1, 1, 3.0)
    assert write_status(tmp_path, status)
    assert read_status(tmp_path) == status
    assert "1/4, 1 failed" in status_text(status, rank_activity(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    status.pid, status.owner = gone.pid, status.owner.replace(f":{os.getpid()}:", f":{gone.pid}:")
    write_status(tmp_path, status)
    text = status_text(read_status(tmp_path), rank_activity(tmp_path))
    assert f"rank 0, pid {gone.pid} on {status.host}, is gone; last seen" in text
    assert "rank 2 was in S3 of e1 at subtraction" in text


def test_trace_nests_steps_in_sections_and_ends_what_was_killed(tmp_path):
    made_run(tmp_path)
    events = json.loads(write_trace(tmp_path).read_text())["traceEvents"]
    slices = {(e["tid"], e["cat"]): e for e in events if e["ph"] == "X"}
    step, section = slices[1, "step"], slices[1, "section"]
    assert section["ts"] <= step["ts"]
    assert step["ts"] + step["dur"] <= section["ts"] + section["dur"]
    assert step["args"]["rss_mb"] == 9.0
    assert slices[2, "section"]["args"]["status"] == "unfinished"
    assert {e["name"] for e in events if e["ph"] == "X" and e["tid"] >= 1_000_000} == {"prepare e1", "bundle e1"}
    assert len(list(read_log(tmp_path))) == 11


def test_verbs(tmp_path, cli, capsys):
    folder = tmp_path / "runs" / "20260301T100000-1"
    made_run(folder)
    root = ("--set", f"paths.root={tmp_path}")
    assert cli("logs", *root, "--rank", 1, "--step", "subtraction") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "e1 S3 subtraction done wall_s=0.1" in out
    assert cli("logs", *root, "--trace", tmp_path / "t.json") == 0
    assert cli("status", *root) == 0
    assert "ended" in capsys.readouterr().out
    assert cli("status", "nothing", *root) == 2
