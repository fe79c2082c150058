"""The local queue of exposures, kept in the database: leases, fencing tokens, attempts, and reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_mpi.conductor_client.protocol import Claim, ReleaseStatus
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.exposure import identifier_of
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seechange_mpi.db.engine import Connection

STATES = ("held", "ready", "claimed", "done", "partial", "failed")
"""held: waits for ``queue release``; ready; claimed: a lease runs; partial: stopped early on request."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One line of ``queue list``."""

    identifier: str
    instrument: str
    filepath: str
    state: str
    priority: int
    attempts: int
    owner: str | None
    lease_expires: datetime | None
    last_error: str | None
    counts: dict[str, int]


class LocalQueue:
    """A `WorkSource` on the science database.

    Parameters
    ----------
    opened : opens a connection; the queue keeps one and opens another after a failure.
    max_attempts : claims of one exposure before it stays failed.
    only : identifiers that may be claimed; None = all.
    """

    def __init__(
        self, opened: Callable[[], Connection], *, max_attempts: int = 3, only: Iterable[str] | None = None
    ) -> None:
        self._opened = opened
        self._conn: Connection | None = None
        self.max_attempts = max_attempts
        self.only = sorted(only) if only is not None else None

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self._conn is None or self._conn.closed:
            self._conn = self._opened()
        with self._conn.transaction():
            yield self._conn

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()

    def add(
        self,
        path: str | Path,
        instrument: str,
        *,
        params: Mapping[str, Any] | None = None,
        priority: int = 0,
        hold: bool = False,
        through_step: str | None = None,
        again: bool = False,
    ) -> str:
        """Add an exposure; one that is there keeps its state. Return its identifier.

        Parameters
        ----------
        again : make it ready again if it is done, partial or failed.
        """
        full = Path(path).absolute()
        identifier = identifier_of(full)
        with self._connection() as conn:
            conn.execute(
                "INSERT INTO knownexposures (_id, identifier, instrument, filepath, state, priority, params, "
                "through_step) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (instrument, identifier) DO NOTHING",
                (
                    stable_id("known", instrument, identifier),
                    identifier,
                    instrument,
                    str(full),
                    "held" if hold else "ready",
                    priority,
                    json.dumps(dict(params or {})),
                    through_step,
                ),
            )
            if again:
                conn.execute(
                    "UPDATE knownexposures SET state = 'ready', filepath = %s, params = %s, through_step = %s, "
                    "attempts = 0 "
                    "WHERE instrument = %s AND identifier = %s AND state IN ('done', 'partial', 'failed', 'ready')",
                    (str(full), json.dumps(dict(params or {})), through_step, instrument, identifier),
                )
        return identifier

    def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Return the next ready exposure (highest priority, then oldest), or one whose lease ran out."""
        with self._connection() as conn:
            row = conn.execute(
                "WITH next AS (SELECT _id FROM knownexposures WHERE (state = 'ready' OR "
                "(state = 'claimed' AND lease_expires < now() AND attempts < %(max)s)) "
                "AND (%(only)s::text[] IS NULL OR identifier = ANY(%(only)s)) "
                "ORDER BY priority DESC, created_at, identifier LIMIT 1 FOR UPDATE SKIP LOCKED) "
                "UPDATE knownexposures k SET state = 'claimed', owner = %(owner)s, claim_time = now(), "
                "lease_expires = now() + make_interval(secs => %(lease)s), token = k.token + 1, attempts = "
                "k.attempts + 1, "
                "modified = now() FROM next WHERE k._id = next._id "
                "RETURNING k.identifier, k.instrument, k.filepath, k.token, k.attempts, k.lease_expires, k.params, "
                "k.through_step",
                {"owner": owner, "lease": lease_s, "max": self.max_attempts, "only": self.only},
            ).fetchone()
        if row is None:
            return None
        values: tuple[Any, ...] = row
        return Claim(values[0], values[1], values[2], int(values[3]), int(values[4]), values[5], values[6], values[7])

    def heartbeat(self, claim: Claim, lease_s: float) -> bool:
        """Extend the lease; False when it was lost."""
        with self._connection() as conn:
            done = conn.execute(
                "UPDATE knownexposures SET lease_expires = now() + make_interval(secs => %s) "
                "WHERE instrument = %s AND identifier = %s AND token = %s AND state = 'claimed'",
                (lease_s, claim.instrument, claim.identifier, claim.token),
            )
        return done.rowcount == 1

    def _finish(self, claim: Claim, state: str, counts: Mapping[str, int], message: str) -> None:
        with self._connection() as conn:
            conn.execute(
                "UPDATE knownexposures SET state = %s, release_time = now(), lease_expires = NULL, counts = %s, "
                "last_error = NULLIF(%s, ''), modified = now() "
                "WHERE instrument = %s AND identifier = %s AND token = %s AND state = 'claimed'",
                (state, json.dumps(dict(counts)), message, claim.instrument, claim.identifier, claim.token),
            )

    def release(self, claim: Claim, status: ReleaseStatus, counts: dict[str, int], message: str = "") -> None:
        """Say how it went; a stale claim changes nothing."""
        self._finish(claim, "ready" if status == "given_back" else status, counts, message)

    def fail(self, claim: Claim, message: str, counts: dict[str, int]) -> None:
        """The exposure failed; it stays failed until ``queue retry``."""
        self._finish(claim, "failed", counts, message)

    def list(self, states: Iterable[str] | None = None) -> list[QueueRow]:
        """Return the queue in the order of claims."""
        with self._connection() as conn:
            rows = conn.execute(
                "SELECT identifier, instrument, filepath, state, priority, attempts, owner, lease_expires, "
                "last_error, counts "
                "FROM knownexposures WHERE %(states)s::text[] IS NULL OR state = ANY(%(states)s) "
                "ORDER BY priority DESC, created_at, identifier",
                {"states": list(states) if states else None},
            ).fetchall()
        return [QueueRow(*r) for r in rows]  # type: ignore[arg-type]

    def set_state(self, identifiers: Iterable[str], wanted: str, allowed: Iterable[str]) -> int:
        """Move exposures between states; return how many moved.

        Raises
        ------
        ConfigError
            An identifier is not in the queue.
        """
        names = list(identifiers)
        with self._connection() as conn:
            known = {
                r[0] for r in conn.execute("SELECT identifier FROM knownexposures WHERE identifier = ANY(%s)", (names,))
            }
            unknown = [n for n in names if n not in known]
            if unknown:
                raise ConfigError(f"not in the queue: {', '.join(unknown)}; see seechange-mpi queue list")
            done = conn.execute(
                "UPDATE knownexposures SET state = %s, attempts = 0, modified = now() "
                "WHERE identifier = ANY(%s) AND state = ANY(%s)",
                (wanted, names, list(allowed)),
            )
        return done.rowcount
