"""Compute processes: what is injected there costs one section, never the rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.task import STEPS, Outcome, SectionReport, StepRecord
from seechange_mpi.mpi.compute import ComputeProcess
from seechange_mpi.mpi.host import DIED, SectionHost, SectionServer
from seechange_mpi.mpi.inject import KINDS, Fault
from seechange_mpi.mpi.messages import Setup, Work, WorkKey
from seechange_mpi.mpi.runlog import RunLog

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from sleeping import sleep_task


def runner(task, rank, watch):
    """Two steps that take no time, and their end."""
    for step in (*STEPS[:2], "finalize"):
        watch(step, None)
        watch(step, StepRecord(step, "done"))
    return Outcome("e", task.section_id, "done", SectionReport(success=True, rank=rank, host=str(os.getpid())))


@pytest.fixture
def hosted():
    compute = ComputeProcess(SectionServer(runner))
    compute.start()
    yield lambda *faults, timeout=0.3, grace=0.3: SectionHost(
        compute, Setup(faults=tuple(map(Fault.parse, faults)), step_timeout_s=timeout, grace_s=grace),
        RunLog(None, 5), 5)
    compute.stop()


def do(host: SectionHost, section: str = "S1", attempt: int = 1, limit_s: float = 20.0):
    host.begin(Work(WorkKey(0, section, attempt), sleep_task("e", section, 0.0)))
    end = time.monotonic() + limit_s
    while (answer := host.poll()) is None:
        assert time.monotonic() < end, "no answer"
        time.sleep(0.002)
    return answer


def test_sections_share_a_process_until_it_dies(hosted):
    host = hosted("kill@extraction:S2:1")
    first, second = do(host, "S0"), do(host, "S1")
    assert first.outcome.report.host == second.outcome.report.host != str(os.getpid())
    killed = do(host, "S2")
    assert killed.outcome.report.error_type == DIED
    assert killed.outcome.report.error_step == "extraction"
    assert "SIGKILL (out of memory, or killed from outside)" in killed.outcome.report.error_message
    assert not killed.outcome.is_bug
    again = do(host, "S2", attempt=2)
    assert again.outcome.status == "done"
    assert again.outcome.report.host != first.outcome.report.host


def test_an_exception_is_a_bug_and_a_segmentation_fault_too(hosted):
    host = hosted("raise@preprocessing:S1", "segv@preprocessing:S2", "oom@preprocessing:S3")
    raised, fault, memory = do(host, "S1").outcome, do(host, "S2").outcome, do(host, "S3").outcome
    assert (raised.is_bug, raised.report.error_type) == (True, "RuntimeError")
    assert "injected at preprocessing" in raised.report.error_traceback
    assert (fault.is_bug, fault.report.error_type) == (True, DIED)
    assert "SIGSEGV" in fault.report.error_message
    assert memory.report.error_type == "MemoryError"


@pytest.mark.parametrize("kind", ["hang", "stop"])
def test_a_hang_ends_after_its_timeout(hosted, kind):
    host = hosted(f"{kind}@extraction:S1")
    started = time.monotonic()
    report = do(host).outcome.report
    assert 0.25 < time.monotonic() - started < 5
    assert (report.error_type, report.error_step) == ("StepTimeout", "extraction")
    assert ("had to be killed" in report.error_message) == (kind == "stop")
    assert do(host, "S4").outcome.status == "done"


def test_what_runs_can_be_cancelled(hosted):
    host = hosted("hang@extraction", timeout=60.0)
    host.begin(Work(WorkKey(0, "S1", 1), sleep_task("e", "S1", 0.0)))
    while host.step != "extraction":
        assert host.poll() is None
    answer = host.cancel()
    assert answer is not None
    assert answer.cancelled
    assert host.cancel() is None


def test_compute_process_and_nursery_end_with_the_rank():
    code = ("import sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from sleeping import sleep_task, sleeping_runner\n"
            "from seechange_mpi.mpi.messages import Work, WorkKey\n"
            "from seechange_mpi.mpi.worker import compute_process\n"
            "c = compute_process(sleeping_runner)\n"
            "c.submit((Work(WorkKey(0, 'S', 1), sleep_task('e', 'S', 99.0)), (), 0, 99.0))\n"
            "print(c.pid, c._nursery, flush=True); time.sleep(99)")
    rank = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parents[2] / "benchmarks")],
                            stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    pids = [int(p) for p in rank.stdout.readline().split()]
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    end = time.monotonic() + 5
    while any(alive(p) for p in pids):
        assert time.monotonic() < end, "left behind"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_faults_are_read_strictly():
    assert Fault.parse("kill@subtraction:S3:2") == Fault("kill", "subtraction", "S3", 2)
    assert Fault.parse("hang@finalize") == Fault("hang", "finalize", "*", 1)
    assert Fault.parse("raise@scoring:*:*").meets("scoring", "S9", 7)
    assert not Fault.parse("raise@scoring:S1:1").meets("scoring", "S1", 2)
    for text in ("explode@scoring", "kill@lunch", "kill", "kill@scoring:S1:first"):
        with pytest.raises(ConfigError, match="--inject"):
            Fault.parse(text)
    assert "lose" in KINDS
