"""Share independent tasks out to the ranks, point to point: every idle worker is sent the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from seechange_mpi.mpi.comm import OUTCOME, STOP, WORK, Communicator


def share_out(comm: Communicator, tasks: Sequence[Any], function: Callable[[Any], Any], *,
              tick: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Yield ``function(task)`` of every task, as they are done; with one process they are done here.

    `function` must not raise; the workers run `serve` with the same function. `tick` is called before each task and
    about twice a second while waiting, and may raise to stop.
    """
    waiting = deque(tasks)
    if comm.size == 1:
        while waiting:
            tick()
            yield function(waiting.popleft())
        return
    idle, busy = deque(range(1, comm.size)), 0
    while waiting or busy:
        tick()
        while waiting and idle:
            comm.send(waiting.popleft(), dest=idle.popleft(), tag=WORK)
            busy += 1
        message = comm.receive(timeout_s=0.5)
        if message is not None and message.tag == OUTCOME:
            idle.append(message.source)
            busy -= 1
            yield message.body


def serve(comm: Communicator, function: Callable[[Any], Any]) -> None:
    """Work for rank 0 until it says stop."""
    while True:
        message = comm.receive()
        if message is None or message.tag == STOP:
            return
        comm.send(function(message.body), dest=0, tag=OUTCOME)


def serve_or_abort(comm: Communicator, function: Callable[[Any], Any]) -> None:
    """Like `serve`; a worker that dies takes the job with it."""
    try:
        serve(comm, function)
    except BaseException:  # noqa: BLE001 - nothing may end a worker silently
        import traceback

        traceback.print_exc()
        comm.abort(1)
