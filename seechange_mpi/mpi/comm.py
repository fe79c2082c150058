"""Point-to-point messages that sleep while they wait; MPI is imported only under a launcher."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from seechange_mpi.model.errors import ConfigError

WORK, STOP, OUTCOME, SETUP, ANSWER, CANCEL, PULSE = range(1, 8)
"""Message tags."""
_SHORTEST_S, _LONGEST_S = 0.0005, 0.01


class Sleeper:
    """Pauses between looks that grow from 0.5 to 10 ms while nothing happens.

    Parameters
    ----------
    longest_s : the longest pause [s].
    wait : what pauses; default `time.sleep`.
    """

    def __init__(self, longest_s: float = _LONGEST_S, wait: Callable[[float], None] = time.sleep) -> None:
        self._pause, self._longest_s, self._wait = _SHORTEST_S, longest_s, wait

    def wake(self) -> None:
        """Something happened: look again soon."""
        self._pause = 0.0

    def sleep(self) -> None:
        """Pause, unless something has just happened."""
        if self._pause:
            self._wait(self._pause)
        self._pause = min(max(1.3 * self._pause, _SHORTEST_S), self._longest_s)


class Message(NamedTuple):
    """A received message."""

    source: int
    tag: int
    body: Any


class Communicator(Protocol):
    """What coordinator and worker need."""

    rank: int
    size: int
    def send(self, body: Any, dest: int, tag: int) -> None:
        """Send a picklable object."""
        ...

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Wait for a message, sleeping; None after the timeout."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything sent has been taken; False if that was not so in time."""
        ...

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        ...


def announced_size() -> int | None:
    """Number of ranks the launcher says there are; None without a launcher."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if "PMIX_RANK" in os.environ or "SLURM_PROCID" in os.environ:
        for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
            if os.environ.get(name, "").isdigit() and "SLURM_STEP_ID" in os.environ:
                return int(os.environ[name])
    return None


def announced_rank() -> int | None:
    """Rank of this process as the launcher says; None without a launcher, or where it says nothing."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_PROCID", "").isdigit():
        return int(os.environ["SLURM_PROCID"])
    return None


class SerialComm:
    """One process, no MPI."""

    rank = 0
    size = 1

    def send(self, body: Any, dest: int, tag: int) -> None:
        """There is nobody to send to."""
        raise RuntimeError(f"a single process cannot send to rank {dest}")

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Nothing ever arrives."""
        return None

    def flush(self, timeout_s: float) -> bool:
        """Nothing was sent."""
        return True

    def abort(self, code: int) -> None:
        """End this process."""
        raise SystemExit(code)


class MPIComm:
    """MPI.COMM_WORLD with messages that sleep instead of spinning."""

    _sending: ClassVar[deque[Any]] = deque()
    """Requests of messages that have not been taken yet: MPI reads their buffers until then."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        expected = announced_size()
        if expected is not None and expected != self.size:
            raise ConfigError(
                f"the launcher started {expected} processes, but MPI sees {self.size}: mpiexec and the MPI library "
                f"of Python are not of one kind ({MPI.Get_library_version().splitlines()[0].split(',')[0]}); "
                "use 'seechange-mpi run -n N', or the mpiexec of that library")

    def send(self, body: Any, dest: int, tag: int) -> None:
        """Send a picklable object, without waiting for the other to take it."""
        self._sending.append(self._comm.isend(body, dest=dest, tag=tag))
        while self._sending and self._sending[0].Test():
            self._sending.popleft()

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Wait for a message, sleeping 0.5 to 10 ms between looks; None after the timeout."""
        while self._sending and self._sending[0].Test():
            self._sending.popleft()
        status = self._mpi.Status()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        sleeper = Sleeper()
        while not self._arrived(status):
            if end is not None and time.monotonic() >= end:
                return None
            sleeper.sleep()
        body = self._comm.recv(source=status.Get_source(), tag=status.Get_tag())
        return Message(status.Get_source(), status.Get_tag(), body)

    def _arrived(self, status: Any) -> bool:
        """Whether a message can be received; asked twice, as the first question may only fetch it (Open MPI)."""
        return any(self._comm.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status) for _ in range(2))

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything sent has been taken; False if that was not so in time."""
        end = time.monotonic() + timeout_s
        while self._sending:
            if self._sending[0].Test():
                self._sending.popleft()
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(_SHORTEST_S)
        return True

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        self._comm.Abort(code)


def get_comm() -> Communicator:
    """Return the communicator this process was started with."""
    size = announced_size()
    return SerialComm() if size is None or size == 1 else MPIComm()
