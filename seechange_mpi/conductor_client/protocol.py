"""The contract between a run and whatever hands out exposures."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

ReleaseStatus = Literal["done", "partial", "given_back"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on one exposure.

    Attributes
    ----------
    identifier, instrument, path : str
    token : int
        Fencing token; grows with every claim of the exposure.
    attempt : int
        How often the exposure has been claimed, this time included.
    expires : datetime
        End of the lease (UTC) unless it is extended by a heartbeat.
    params : dict
        Header values given by the user (``mjd``, ``filter``, ``gain`` …) that override the file.
    through_step : str or None
        Last step wanted, None = all.
    """

    identifier: str
    instrument: str
    path: str
    token: int
    attempt: int
    expires: datetime
    params: dict[str, Any] = field(default_factory=dict)
    through_step: str | None = None


class WorkSource(Protocol):
    """Claims, heartbeats and releases; every call is idempotent for a given claim."""

    def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Return the next exposure, or None when nothing is ready."""
        ...

    def heartbeat(self, claim: Claim, lease_s: float) -> bool:
        """Extend the lease; False when it was lost (expired and taken by another)."""
        ...

    def release(self, claim: Claim, status: ReleaseStatus, counts: dict[str, int], message: str = "") -> None:
        """Say how it went; ``done`` only if no section failed."""
        ...

    def fail(self, claim: Claim, message: str, counts: dict[str, int]) -> None:
        """The exposure failed as a whole; after too many attempts it stays failed."""
        ...
