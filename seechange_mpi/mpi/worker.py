"""A worker rank: receive a section, process it, answer; until told to stop."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from seechange_mpi.model.task import Outcome, SectionReport, SectionTask
from seechange_mpi.mpi.comm import OUTCOME, STOP, Communicator
from seechange_mpi.pipeline.section import run_section

SectionRunner = Callable[[SectionTask, int], Outcome]


def process(task: SectionTask, rank: int) -> Outcome:
    """Run a section with the steps of its settings."""
    return run_section(task, rank=rank)


def safely(runner: SectionRunner, task: SectionTask, rank: int) -> Outcome:
    """Run a section; whatever escapes becomes a failed outcome that is marked as a bug."""
    try:
        return runner(task, rank)
    except Exception as err:  # noqa: BLE001 - a worker always answers
        report = SectionReport(rank=rank, error_step="worker", error_type=type(err).__name__, error_message=str(err),
                               error_traceback=traceback.format_exc())
        return Outcome(task.exposure.identifier, task.section_id, "failed", report, is_bug=True)


def work(comm: Communicator, runner: SectionRunner = process) -> None:
    """Serve rank 0 until it says stop."""
    while True:
        message = comm.receive()
        if message is None or message.tag == STOP:
            return
        comm.send(safely(runner, message.body, comm.rank), dest=0, tag=OUTCOME)
