"""Messages and the pull loop inside real ranks: ``tools/mpi_tests.sh`` runs this in 2 and 3 of them."""

from __future__ import annotations

import time

import pytest

from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.task import Outcome, SectionReport, SectionTask
from seechange_mpi.mpi.comm import WORK, MPIComm, SerialComm, get_comm
from seechange_mpi.mpi.scatter import gather_outcomes, scatter_sections, stop_workers
from seechange_mpi.mpi.worker import work

pytestmark = pytest.mark.mpi(min_size=2)


def task(section: str) -> SectionTask:
    exposure = ExposureInfo("e", "cam", "/none", 60000.0, 1.0, "r")
    return SectionTask(exposure, section, None, {}, {}, "/none")  # type: ignore[arg-type]


def runner(t: SectionTask, rank: int) -> Outcome:
    if t.section_id == "S3":
        raise ValueError("made to fail")
    time.sleep(0.02)
    return Outcome("e", t.section_id, "done", SectionReport(success=True, rank=rank))


@pytest.fixture
def comm() -> MPIComm:
    got = get_comm()
    assert isinstance(got, MPIComm), "this test must run under mpiexec"
    return got


def test_every_section_is_done_once_and_one_exception_costs_one_section(comm):
    if comm.rank != 0:
        work(comm, runner)
        return
    sections = [f"S{k}" for k in range(9)]
    started = []
    outcomes = list(scatter_sections(comm, map(task, sections), runner=runner,
                                     on_start=lambda t, rank: started.append((t.section_id, rank))))
    stop_workers(comm)
    assert sorted(o.section_id for o in outcomes) == sections
    assert [s for s, _ in started] == sections
    assert {rank for _, rank in started} == set(range(1, comm.size))
    failed = [o for o in outcomes if o.status == "failed"]
    assert [o.section_id for o in failed] == ["S3"]
    assert failed[0].is_bug
    assert "made to fail" in failed[0].report.error_traceback
    assert list(gather_outcomes(outcomes)) == sections


def test_more_workers_than_sections(comm):
    if comm.rank != 0:
        work(comm, runner)
        return
    assert [o.section_id for o in scatter_sections(comm, [task("S1")], runner=runner)] == ["S1"]
    assert list(scatter_sections(comm, [], runner=runner)) == []
    stop_workers(comm)


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
