"""Keep a lease alive while its exposure is worked on."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import TracebackType

from seechange_mpi.conductor_client.protocol import Claim, WorkSource


def owner_name() -> str:
    """Name of this process as the owner of claims: host, process id, and where that id is valid."""
    return f"{socket.gethostname()}:{os.getpid()}:{_pid_namespace()}"


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def owner_is_gone(owner: str) -> bool:
    """Whether an owner was a process of this host that no longer exists; False when that cannot be known."""
    host, *rest = owner.rsplit(":", 2)
    if len(rest) != 2 or [host, rest[1]] != [socket.gethostname(), str(_pid_namespace())] or not rest[0].isdigit():
        return False
    try:
        os.kill(int(rest[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class Heartbeat:
    """Context that extends a lease every third of its length, in a thread beside the work.

    A source that does not answer is tried again; only its clear "no" counts as a lost lease.
    """

    def __init__(self, source: WorkSource, claim: Claim, lease_s: float) -> None:
        self._source, self._claim, self._lease_s = source, claim, lease_s
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another has taken the exposure over."""
        return self._lost.is_set()

    def _beat(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            try:
                if not self._source.heartbeat(self._claim, self._lease_s):
                    self._lost.set()
                    return
            except Exception:  # noqa: BLE001 - away for now; the lease has two thirds left
                continue

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(timeout=5)
