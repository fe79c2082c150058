"""Keep leases alive while their exposures are worked on."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable

from seechange_mpi.conductor_client.protocol import Claim, WorkSource
from seechange_mpi.model.processes import began, is_gone, namespace

_OWNER = re.compile(r"(?P<host>[^:]+):(?P<pid>\d+):(?P<space>\d+)(:(?P<began>\d+))?")


def owner_name() -> str:
    """Name of this process as the owner of claims: host, process number, where that is valid, when it began."""
    return f"{socket.gethostname()}:{os.getpid()}:{namespace()}:{began(os.getpid())}"


def owner_is_gone(owner: str) -> bool:
    """Whether an owner was a process of this host that no longer exists; False when that cannot be known."""
    found = _OWNER.fullmatch(owner)
    if found is None or (found["host"], int(found["space"])) != (socket.gethostname(), namespace()):
        return False
    return is_gone(int(found["pid"]), int(found["began"] or 0))


class Heartbeats:
    """Extends the leases of all claims in hand every third of their length, in a thread.

    A source that does not answer is tried again; only its clear "no" counts as a lost lease.

    Parameters
    ----------
    on_lost : told in that thread of a claim that another has taken over.
    """

    def __init__(self, source: WorkSource, lease_s: float, on_lost: Callable[[Claim], None]) -> None:
        self._source, self._lease_s, self._on_lost = source, lease_s, on_lost
        self._claims: dict[tuple[str, str], Claim] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._over.set()
        self._thread.join(timeout=2)

    def add(self, claim: Claim) -> None:
        """Keep a claim alive from now on."""
        with self._lock:
            self._claims[claim.instrument, claim.identifier] = claim

    def remove(self, claim: Claim) -> None:
        """Leave a claim to itself."""
        with self._lock:
            self._claims.pop((claim.instrument, claim.identifier), None)

    def _beat(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            with self._lock:
                claims = list(self._claims.values())
            for claim in claims:
                try:
                    kept = self._source.heartbeat(claim, self._lease_s)
                except Exception:  # noqa: BLE001 - away for now; the lease has two thirds left
                    continue
                if not kept:
                    self.remove(claim)
                    self._on_lost(claim)
