"""Real ranks, started here with a time limit: one answer at any number of them, lost ranks, wrong launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seechange_mpi.mpi.heartbeat import owner_is_gone, owner_name
from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from seechange_mpi.model.task import Outcome, SectionReport
from seechange_mpi.mpi.comm import announced_rank, get_comm
from seechange_mpi.mpi.coordinator import Coordinator
from seechange_mpi.mpi.host import SectionHost
from seechange_mpi.mpi.inject import Fault
from seechange_mpi.mpi.messages import Setup
from seechange_mpi.mpi.runlog import RunLog
from seechange_mpi.mpi.scatter import Crew
from seechange_mpi.mpi.worker import compute_process, serve_rank
from sleeping import SleepyExposure, SleepyStages

def runner(task, rank, watch):
    watch("preprocessing", None)
    number = int(task.section_id[1:])
    if number == 4:
        raise ValueError("made to fail")
    return Outcome(task.exposure.identifier, task.section_id, "done", SectionReport(success=True),
                   summary={"square": number ** 2, "seconds": 0.01})

if announced_rank():
    sys.exit(serve_rank(runner))
compute = compute_process(runner)
comm = get_comm()
setup = Setup(faults=tuple(map(Fault.parse, sys.argv[2:])))
crew = Crew(comm, setup, SectionHost(compute, setup, RunLog(None, 0), 0) if comm.size < 3 else None)
stages = SleepyStages([SleepyExposure(f"e{k}", {f"S{j}": 0.01 for j in range(8)}) for k in range(2)])
results = Coordinator(stages, crew).run()
crew.dismiss()
compute.stop()
comm.flush(5.0)
print("RESULT", json.dumps([[r.identifier, {k: [o.status, o.is_bug, o.summary.get("square")]
                                            for k, o in r.outcomes.items()}] for r in results]))
"""


def ranks(n: int, script: Path, *args: str, timeout: float = 60) -> subprocess.CompletedProcess:
    """Run a script in n processes; everything is killed after the timeout."""
    mpiexec = find_mpiexec()
    start = [mpiexec, "-n", str(n)] if n > 1 else []
    return subprocess.run([*start, sys.executable, str(script), *args], capture_output=True, text=True,
                          env=os.environ | launch_environment(mpi_kind(mpiexec)), timeout=timeout, check=False)


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("fault", [None, "kill@preprocessing:S6"])
def test_every_section_once_and_the_same_answer_at_any_number_of_ranks(script, n, fault):
    """One exception fails a section, a compute process that is killed is replaced; also beside rank 0."""
    done = ranks(n, script, str(BENCHMARKS), *([fault] if fault else []))
    assert done.returncode == 0, done.stderr
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    expected = {f"S{k}": ["failed", True, None] if k == 4 else ["done", False, k * k] for k in range(8)}
    assert json.loads(line.removeprefix("RESULT ")) == [["e0", expected], ["e1", expected]]


def test_a_killed_rank_ends_the_job_quickly_and_not_with_zero(script):
    started = time.monotonic()
    done = ranks(4, script, str(BENCHMARKS), "lose@preprocessing:S3")
    assert done.returncode != 0
    assert "RESULT" not in done.stdout
    assert time.monotonic() - started < 10


def test_silent_singletons_are_refused():
    """Three processes announced, one seen: the launcher and the library are not of one kind."""
    code = "from seechange_mpi.mpi.comm import get_comm; get_comm()"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_"))} | {"PMI_SIZE": "3"}
    env |= launch_environment(mpi_kind(find_mpiexec()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60,
                          check=False)
    assert done.returncode != 0
    assert "the launcher started 3 processes, but MPI sees 1" in done.stderr


def test_an_owner_is_gone_only_when_that_is_certain():
    assert not owner_is_gone(owner_name())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, pid, namespace, began = owner_name().rsplit(":", 3)
    assert owner_is_gone(f"{host}:{child.pid}:{namespace}:{began}")
    assert owner_is_gone(f"{host}:{pid}:{namespace}:{int(began) - 1}"), "its number is used again"
    assert not owner_is_gone(f"elsewhere:{child.pid}:{namespace}:{began}")
    assert not owner_is_gone(f"{host}:{child.pid}:1:{began}")
    assert not owner_is_gone("someone")
