"""Hand sections to workers and gather their outcomes: one pull loop for any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from seechange_mpi.model.task import Outcome, SectionTask
from seechange_mpi.mpi.comm import OUTCOME, STOP, WORK, Communicator
from seechange_mpi.mpi.worker import SectionRunner, process, safely


def scatter_sections(
    comm: Communicator, tasks: Iterable[SectionTask], *, runner: SectionRunner = process,
    on_start: Callable[[SectionTask, int], None] | None = None, tick: Callable[[], None] | None = None,
) -> Iterator[Outcome]:
    """Process sections on the workers (inline with one process); yield outcomes as they arrive.

    Every idle worker is sent the next section; more workers than sections leave the rest idle. Only
    point-to-point messages are used.

    Parameters
    ----------
    on_start : told when a section is handed to a rank.
    tick : called before each section and about five times a second while waiting; may raise to stop.
    """
    waiting = deque(tasks)
    say = on_start or (lambda _task, _rank: None)
    look = tick or (lambda: None)
    if comm.size == 1:
        while waiting:
            task = waiting.popleft()
            say(task, 0)
            look()
            yield safely(runner, task, 0)
        return
    owed = comm.outstanding  # answers that an interrupted exposure did not wait for are received here, and dropped
    mine: set[tuple[str, str]] = set()
    idle = deque(rank for rank in range(1, comm.size) if rank not in owed)
    while waiting or mine:
        look()
        while waiting and idle:
            rank, task = idle.popleft(), waiting.popleft()
            say(task, rank)
            owed[rank] = (task.exposure.identifier, task.section_id)
            mine.add(owed[rank])
            comm.send(task, dest=rank, tag=WORK)
        message = comm.receive(timeout_s=0.2)
        if message is not None and message.tag == OUTCOME:
            key = owed.pop(message.source)
            idle.append(message.source)
            if key in mine:
                mine.remove(key)
                yield message.body


def gather_outcomes(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Collect outcomes by section id, in the order of ids."""
    found = {o.section_id: o for o in outcomes}
    return {k: found[k] for k in sorted(found)}


def stop_workers(comm: Communicator) -> None:
    """Send every worker home."""
    for rank in range(1, comm.size):
        comm.send(None, dest=rank, tag=STOP)
