"""Being asked to stop: a signal is remembered, and acted on where nothing can be lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from seechange_mpi.model.errors import Drain


class StopRequest:
    """A signal that was received, if any.

    An exception raised by a signal handler can vanish (inside the callback of a weak reference, say), and must not
    cut a commit short: it is raised by `check`, where nothing can be lost.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.count = 0
        self.on_term: Callable[[], None] = lambda: None
        """Called at the first TERM."""

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
        self.number = number
        self.count += 1
        if number == signal.SIGTERM and self.count == 1:
            self.on_term()

    def check(self) -> None:
        """Raise `Drain` if a signal has come."""
        if self.number is not None:
            raise Drain(f"stopped by {signal.Signals(self.number).name}")


@contextmanager
def stop_on_signals(rank: int) -> Iterator[StopRequest]:
    """On rank 0 INT, TERM and USR1 ask the run to stop; workers go on until rank 0 says stop.

    A worker still ends at once on TERM: that is how launchers end ranks when another one has died.
    """
    request = StopRequest()
    handler = request.receive if rank == 0 else signal.SIG_IGN
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, *((signal.SIGTERM,) if rank == 0 else ()))
    previous = {n: signal.signal(n, handler) for n in numbers}
    try:
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
