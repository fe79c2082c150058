"""Calibration frames of many sections on many ranks: pulled one at a time, like sections of an exposure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from seechange_mpi.calibration.make import run_task
from seechange_mpi.calibration.task import CalibrationOutcome, CalibrationTask
from seechange_mpi.mpi.comm import OUTCOME, STOP, WORK, Communicator


def serve_calibration(comm: Communicator) -> None:
    """Make the frames that rank 0 asks for, until it says stop."""
    while True:
        message = comm.receive()
        if message is None or message.tag == STOP:
            return
        comm.send(run_task(message.body), dest=0, tag=OUTCOME)


def make_frames(comm: Communicator, tasks: Iterable[CalibrationTask], *, tick: Callable[[], None] | None = None
                ) -> Iterator[CalibrationOutcome]:
    """Make frames on the workers (here, with one process); yield outcomes as they arrive.

    Parameters
    ----------
    tick : called before each frame and about five times a second while waiting; may raise to stop.
    """
    waiting = deque(tasks)
    look = tick or (lambda: None)
    if comm.size == 1:
        while waiting:
            look()
            yield run_task(waiting.popleft())
        return
    idle = deque(range(1, comm.size))
    busy = 0
    while waiting or busy:
        look()
        while waiting and idle:
            comm.send(waiting.popleft(), dest=idle.popleft(), tag=WORK)
            busy += 1
        message = comm.receive(timeout_s=0.2)
        if message is not None and message.tag == OUTCOME:
            idle.append(message.source)
            busy -= 1
            yield message.body
