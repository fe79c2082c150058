"""The compute process: sections run in a process of their own beside each rank, which may die without harm.

A rank only passes messages. Before MPI is imported it forks a *nursery*, which imports the pipeline once and forks the
compute process from that. When a compute process is killed (out of memory, a fault in a library, a hang that had to
be ended), the nursery forks another within milliseconds: one section was lost rather than the job, whatever the MPI.

Both end with the rank that started them, however that ends. Signals meant for the rank (INT, TERM, USR1, HUP) pass
them by.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SOFT_TIMEOUT = signal.SIGUSR2
"""Asks a compute process to end the step it is in."""
_HEAD = struct.Struct("!Q")
_PASSED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

Server = Callable[[Any, Callable[[Any], None]], Any]
"""``server(task, say) -> answer``: does one task in the compute process; `say` sends a message meanwhile."""


class Channel:
    """Pickled messages over a stream socket: blocking to send, never blocking to receive."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self.closed = False

    def send(self, body: Any) -> None:
        """Send a message; the other end's death makes the channel closed, nothing else."""
        data = pickle.dumps(body, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self.sock.sendall(_HEAD.pack(len(data)) + data)
        except OSError:
            self.closed = True

    def receive(self, timeout_s: float | None = 0.0) -> list[Any]:
        """Return the messages that have arrived, waiting up to `timeout_s` (None: for ever) for the first."""
        found: list[Any] = []
        while not self.closed and select.select([self.sock], [], [], 0.0 if found else timeout_s)[0]:
            try:
                piece = self.sock.recv(1 << 20)
            except OSError:
                piece = b""
            if not piece:
                self.closed = True
                break
            self._buffer += piece
            while len(self._buffer) >= _HEAD.size:
                (length,) = _HEAD.unpack_from(self._buffer)
                if len(self._buffer) < _HEAD.size + length:
                    break
                found.append(pickle.loads(bytes(self._buffer[_HEAD.size : _HEAD.size + length])))
                del self._buffer[: _HEAD.size + length]
        return found

    def close(self) -> None:
        """Close this end."""
        self.closed = True
        self.sock.close()


class ComputeProcess:
    """The rank's handle on its nursery and compute process.

    Parameters
    ----------
    server : what a compute process does with a task.
    preload : imported once in the nursery, after the fork.
    """

    def __init__(self, server: Server, preload: Callable[[], None] | None = None) -> None:
        self._server, self._preload = server, preload
        self._control: socket.socket | None = None
        self._nursery = 0
        self._channel: Channel | None = None
        self.pid = 0

    def start(self) -> None:
        """Fork the nursery; must be called before MPI is imported and before threads are started."""
        ours, theirs = socket.socketpair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _to_the_end(lambda: _nursery(theirs, parent, self._server, self._preload))
        theirs.close()
        self._nursery, self._control = pid, ours

    def submit(self, task: Any) -> None:
        """Send a task to the compute process, which is forked if there is none."""
        if self._channel is None:
            self._spawn()
        assert self._channel is not None
        self._channel.send(task)

    def _spawn(self) -> None:
        assert self._control is not None, "start() has not been called"
        try:
            self._control.sendall(b"s")
            data, fds, _, _ = socket.recv_fds(self._control, 8, 1)
            self.pid = _HEAD.unpack(data)[0]
            self._channel = Channel(socket.socket(fileno=fds[0]))
        except (OSError, struct.error, IndexError):
            raise RuntimeError("the process that starts compute processes has died") from None

    def messages(self, timeout_s: float = 0.0) -> list[Any]:
        """Return what the compute process has said and answered."""
        return [] if self._channel is None else self._channel.receive(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Sleep until the compute process says something, or for `timeout_s`."""
        if self._channel is None or self._channel.closed:
            time.sleep(timeout_s)
        else:
            select.select([self._channel.sock], [], [], timeout_s)

    @property
    def died(self) -> bool:
        """Whether the compute process has gone without being told to."""
        return self._channel is not None and self._channel.closed

    def bury(self) -> int:
        """Return how a dead compute process ended: minus the signal, or its exit code; another may be forked then."""
        assert self._channel is not None
        self._channel.close()
        self._channel = None
        assert self._control is not None
        try:
            self._control.sendall(b"r")
            status = struct.unpack("!i", self._control.recv(4))[0]
        except (OSError, struct.error):
            return -signal.SIGKILL
        return os.waitstatus_to_exitcode(status)

    def end_step(self) -> None:
        """Ask the compute process to end the step it is in."""
        self._signal(SOFT_TIMEOUT)

    def kill(self) -> None:
        """End the compute process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._channel is not None and self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self) -> None:
        """End compute process and nursery."""
        self.kill()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._control is not None:
            self._control.close()
            self._control = None
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._nursery, signal.SIGKILL)  # it may still be importing
                os.waitpid(self._nursery, 0)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process sent a signal when its parent ends (Linux); end it now if that has happened already."""
    with suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _nursery(control: socket.socket, parent: int, server: Server, preload: Callable[[], None] | None) -> None:
    """Fork compute processes, one ahead of the demand, until the rank closes the socket."""
    die_with_parent(parent)
    for number in _PASSED_BY:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # what was inherited, database connections among it, is never tidied up from here
    if preload is not None:
        preload()
    here = os.getpid()

    def fork() -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            control.close()
            ours.close()
            _to_the_end(lambda: _serve(Channel(theirs), server, here))
        theirs.close()
        return child, ours

    child, channel = fork()
    while True:
        command = control.recv(1)
        if command == b"s":
            socket.send_fds(control, [_HEAD.pack(child)], [channel.fileno()])
            channel.close()
        elif command == b"r":
            control.sendall(struct.pack("!i", os.waitpid(child, 0)[1]))
            child, channel = fork()
        else:
            os._exit(0)


def _to_the_end(call: Callable[[], None]) -> None:
    """Call, and end the process whatever happens: a forked child must never go on with its parent's work."""
    try:
        call()
    except BaseException:  # noqa: BLE001 - the last chance to say it
        traceback.print_exc()
        with suppress(OSError, ValueError):
            sys.stderr.flush()
    finally:
        os._exit(1)


def _serve(channel: Channel, server: Server, nursery: int) -> None:
    """Do the tasks that arrive until the rank closes the channel."""
    die_with_parent(nursery)
    with suppress(OSError, ValueError, AttributeError):
        faulthandler.enable()  # a fault in a library says where it was
    while True:
        for task in channel.receive(None):
            channel.send(("answer", server(task, lambda body: channel.send(("said", body)))))
        if channel.closed:
            os._exit(0)
