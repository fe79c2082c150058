"""Real ranks, started here with a time limit: one answer at any number of them, lost ranks, wrong launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.task import Outcome, SectionReport, SectionTask
from seechange_mpi.mpi.comm import OUTCOME, WORK, Message
from seechange_mpi.mpi.heartbeat import owner_is_gone, owner_name
from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind
from seechange_mpi.mpi.scatter import scatter_sections

SCRIPT = """
import json, os, signal, sys, time
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.task import Outcome, SectionReport, SectionTask
from seechange_mpi.mpi import worker
from seechange_mpi.mpi.comm import get_comm
from seechange_mpi.mpi.scatter import gather_outcomes, scatter_sections, stop_workers

kill = sys.argv[1]

def runner(task, rank):
    number = int(task.section_id[1:])
    time.sleep(0.01 * (number % 3))
    if task.section_id == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4:
        raise ValueError("made to fail")
    return Outcome("e", task.section_id, "done", SectionReport(success=True), summary={"square": number ** 2})

comm = get_comm()
if comm.rank:
    worker.work(comm, runner)
else:
    tasks = [SectionTask(ExposureInfo("e", "c", "/none", 6e4, 1.0, "r"), f"S{k}", None, {}, {}, "/none")
             for k in range(8)]
    seen = []
    def watched():
        for outcome in scatter_sections(comm, tasks, runner=runner):
            seen.append(outcome.section_id)
            yield outcome
    found = gather_outcomes(watched())
    stop_workers(comm)
    print("RESULT", json.dumps([sorted(seen), {k: [o.status, o.is_bug, o.summary] for k, o in found.items()}]))
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
def test_every_section_once_and_the_same_answer_at_any_number_of_ranks(script, n):
    done = ranks(n, script, "none")
    assert done.returncode == 0, done.stderr
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    seen, found = json.loads(line.removeprefix("RESULT "))
    names = [f"S{k}" for k in range(8)]
    assert seen == names, "each exactly once"
    assert found == {f"S{k}": ["failed", True, {}] if k == 4 else ["done", False, {"square": k * k}]
                     for k in range(8)}


def test_a_killed_worker_ends_the_job_quickly_and_not_with_zero(script):
    started = time.monotonic()
    done = ranks(3, script, "S3")
    assert done.returncode != 0
    assert "RESULT" not in done.stdout
    assert time.monotonic() - started < 20


def test_silent_singletons_are_refused():
    """Three processes announced, one seen: the launcher and the library are not of one kind."""
    code = "from seechange_mpi.mpi.comm import get_comm; get_comm()"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_"))} | {"PMI_SIZE": "3"}
    env |= launch_environment(mpi_kind(find_mpiexec()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60,
                          check=False)
    assert done.returncode != 0
    assert "the launcher started 3 processes, but MPI sees 1" in done.stderr


class Pretended:
    """A communicator whose workers answer when asked for a message, in order of work given."""

    rank, size = 0, 3

    def __init__(self) -> None:
        self.outstanding: dict[int, tuple[str, str]] = {}
        self.given: deque[tuple[int, SectionTask]] = deque()

    def send(self, body, dest, tag):
        assert tag == WORK
        assert dest not in [rank for rank, _ in self.given], "a busy worker was given a second section"
        self.given.append((dest, body))

    def receive(self, timeout_s=None):
        rank, task = self.given.popleft()
        return Message(rank, OUTCOME, Outcome(task.exposure.identifier, task.section_id, "done",
                                              SectionReport(success=True)))


def task(exposure, section):
    return SectionTask(ExposureInfo(exposure, "c", "/none", 6e4, 1.0, "r"), section, None, {}, {}, "/none")


def test_answers_of_an_interrupted_exposure_do_not_enter_the_next():
    comm = Pretended()
    interrupted = scatter_sections(comm, [task("old", f"S{k}") for k in range(5)])
    assert next(interrupted).exposure_identifier == "old"
    interrupted.close()
    assert len(comm.outstanding) == 1
    later = list(scatter_sections(comm, [task("new", f"S{k}") for k in range(5)]))
    assert sorted((o.exposure_identifier, o.section_id) for o in later) == [("new", f"S{k}") for k in range(5)]


def test_an_owner_is_gone_only_when_that_is_certain():
    assert not owner_is_gone(owner_name())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, _, namespace = owner_name().rsplit(":", 2)
    assert owner_is_gone(f"{host}:{child.pid}:{namespace}")
    assert not owner_is_gone(f"elsewhere:{child.pid}:{namespace}")
    assert not owner_is_gone(f"{host}:{child.pid}:1")
    assert not owner_is_gone("someone")
