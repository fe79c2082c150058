"""Point-to-point messages that sleep while they wait; MPI is imported only under a launcher."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple, Protocol

from seechange_mpi.model.errors import ConfigError

WORK, STOP, OUTCOME = 1, 2, 3
"""Message tags."""
_SHORTEST_S, _LONGEST_S = 0.0005, 0.01


class Message(NamedTuple):
    """A received message."""

    source: int
    tag: int
    body: Any


class Communicator(Protocol):
    """What coordinator and worker need."""

    rank: int
    size: int
    outstanding: dict[int, tuple[str, str]]
    """On rank 0: worker -> exposure and section it still owes an answer for."""

    def send(self, body: Any, dest: int, tag: int) -> None:
        """Send a picklable object."""
        ...

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Wait for a message, sleeping; None after the timeout."""
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


class SerialComm:
    """One process, no MPI."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.outstanding: dict[int, tuple[str, str]] = {}

    def send(self, body: Any, dest: int, tag: int) -> None:
        """There is nobody to send to."""
        raise RuntimeError(f"a single process cannot send to rank {dest}")

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Nothing ever arrives."""
        return None

    def abort(self, code: int) -> None:
        """End this process."""
        raise SystemExit(code)


class MPIComm:
    """MPI.COMM_WORLD with messages that sleep instead of spinning."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        self.outstanding: dict[int, tuple[str, str]] = {}
        expected = announced_size()
        if expected is not None and expected != self.size:
            raise ConfigError(
                f"the launcher started {expected} processes, but MPI sees {self.size}: mpiexec and the MPI library "
                f"of Python are not of one kind ({MPI.Get_library_version().splitlines()[0].split(',')[0]}); "
                "use 'seechange-mpi run -n N', or the mpiexec of that library")

    def send(self, body: Any, dest: int, tag: int) -> None:
        """Send a picklable object."""
        self._comm.send(body, dest=dest, tag=tag)

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Wait for a message, sleeping 0.5 to 10 ms between looks; None after the timeout."""
        status = self._mpi.Status()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        pause = _SHORTEST_S
        while not self._comm.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status):
            if end is not None and time.monotonic() >= end:
                return None
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_S)
        body = self._comm.recv(source=status.Get_source(), tag=status.Get_tag())
        return Message(status.Get_source(), status.Get_tag(), body)

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        self._comm.Abort(code)


def get_comm() -> Communicator:
    """Return the communicator this process was started with."""
    size = announced_size()
    return SerialComm() if size is None or size == 1 else MPIComm()
