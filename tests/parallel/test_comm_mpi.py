"""Messages and the pull loop inside real ranks: ``tools/mpi_tests.sh`` runs this in 2 and 3 of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from seechange_mpi.model.task import Outcome, SectionReport, SectionTask
from seechange_mpi.mpi.comm import WORK, MPIComm, SerialComm, get_comm
from seechange_mpi.mpi.host import SectionServer
from seechange_mpi.mpi.messages import Setup, Work, WorkKey
from seechange_mpi.mpi.scatter import Crew, gather_outcomes, scatter_sections
from seechange_mpi.mpi.schedule import Job, Schedule
from seechange_mpi.mpi.worker import work

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from sleeping import sleep_task

pytestmark = pytest.mark.mpi(min_size=2)


class Beside:
    """Stands in for the compute process, which must be forked before MPI is there: works at once, in this process."""

    def __init__(self) -> None:
        self._server = SectionServer(runner)
        self._said: list[object] = []
        self.died = False

    def submit(self, body):
        self._said.append(("answer", self._server(body, lambda _body: None)))

    def messages(self, timeout_s=0.0):
        said, self._said = self._said, []
        return said

    def wait(self, timeout_s):
        time.sleep(timeout_s)


def runner(t: SectionTask, rank: int, watch) -> Outcome:
    if t.section_id == "S3":
        raise ValueError("made to fail")
    time.sleep(0.02)
    return Outcome("e", t.section_id, "done", SectionReport(success=True, rank=rank))


@pytest.fixture
def comm() -> MPIComm:
    got = get_comm()
    assert isinstance(got, MPIComm), "this test must run under mpiexec"
    return got


@pytest.mark.parametrize("n", [9, 1, 0])
def test_every_section_is_done_once_and_one_exception_costs_one_section(comm, n):
    """With more sections than workers, with fewer, and with none."""
    if comm.rank != 0:
        work(comm, Beside())
        return
    crew, schedule = Crew(comm, Setup()), Schedule(comm.size - 1)
    schedule.add(Job(0, f"S{k}", 9.0 - k, 1, Work(WorkKey(0, f"S{k}", 1), sleep_task("e", f"S{k}", 0.0)))
                 for k in range(n))
    started, answers = [], []
    end = time.monotonic() + 30
    while len(answers) < n:
        assert time.monotonic() < end
        scatter_sections(crew, schedule, time.monotonic(),
                         on_start=lambda slot, job: started.append((job.section, slot)))
        answers += [answer.outcome for _, answer in gather_outcomes(crew, schedule)]
        time.sleep(0.001)
    crew.dismiss()
    sections = [f"S{k}" for k in range(n)]
    assert sorted(o.section_id for o in answers) == sections
    assert [s for s, _ in started] == sections, "longest first"
    if n > comm.size:
        assert {slot for _, slot in started} == set(range(1, comm.size))
    failed = [o for o in answers if o.status == "failed"]
    assert [o.section_id for o in failed] == sections[3:4]
    assert all(o.is_bug and "made to fail" in o.report.error_traceback for o in failed)


def test_waiting_sleeps_instead_of_spinning(comm):
    """Each rank waits half a second for nothing: it must cost far less than half a second of processor time."""
    before = time.process_time()
    assert comm.receive(timeout_s=0.5) is None
    assert time.process_time() - before < 0.3


def test_bodies_arrive_as_sent(comm):
    body = {"rank": comm.rank, "list": list(range(100_000))}
    if comm.rank == 0:
        for k in range(1, comm.size):
            comm.send(body, dest=k, tag=WORK)
        got = [comm.receive(timeout_s=20) for _ in range(1, comm.size)]
        assert sorted(m.body["rank"] for m in got) == list(range(1, comm.size))
        assert all(m.tag == WORK for m in got)
    else:
        message = comm.receive(timeout_s=20)
        assert message.body["list"] == body["list"]
        comm.send(body, dest=0, tag=WORK)


def test_a_serial_communicator_is_not_what_ranks_get(comm):
    assert not isinstance(comm, SerialComm)
    assert 0 <= comm.rank < comm.size
