"""The local queue of exposures, kept in the database: leases, fencing tokens, attempts, and reasons."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from seechange_mpi.conductor_client.protocol import Claim, ReleaseStatus
from seechange_mpi.model.errors import ConfigError, TransientError
from seechange_mpi.model.exposure import identifier_of
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

T = TypeVar("T")
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
    opened : opens a connection; the queue keeps one and opens another when it has died. Calls
        from several threads (work, heartbeat) take turns.
    max_attempts : claims of one exposure before it stays failed.
    only : identifiers that may be claimed; None = all.
    """

    def __init__(
        self, opened: Callable[[], Connection], *, max_attempts: int = 3, only: Iterable[str] | None = None
    ) -> None:
        self._opened = opened
        self._conn: Connection | None = None
        self._lock = threading.Lock()
        self.max_attempts = max_attempts
        self.only = sorted(only) if only is not None else None

    def _call(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction, one thread at a time; a connection that has died is opened anew, once.

        Raises
        ------
        TransientError
            The database does not answer.
        """
        with self._lock:
            fresh = self._conn is None or self._conn.closed
            while True:
                if self._conn is None or self._conn.closed:
                    self._conn = self._opened()
                try:
                    with self._conn.transaction():
                        return work(self._conn)
                except (psycopg.OperationalError, psycopg.InterfaceError) as err:
                    self._conn.close()
                    if fresh:
                        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
                        raise TransientError(f"the queue's database went away: {reason}") from None
                    fresh = True

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
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
        values = {
            "id": stable_id("known", instrument, identifier),
            "name": identifier,
            "camera": instrument,
            "path": str(full),
            "state": "held" if hold else "ready",
            "priority": priority,
            "params": json.dumps(dict(params or {})),
            "through": through_step,
        }

        def work(conn: Connection) -> None:
            conn.execute(
                "INSERT INTO knownexposures (_id, identifier, instrument, filepath, state, priority, params, "
                "through_step) VALUES (%(id)s, %(name)s, %(camera)s, %(path)s, %(state)s, %(priority)s, %(params)s, "
                "%(through)s) ON CONFLICT (instrument, identifier) DO NOTHING",
                values,
            )
            if again:
                conn.execute(
                    "UPDATE knownexposures SET state = 'ready', filepath = %(path)s, params = %(params)s, "
                    "through_step = %(through)s, attempts = 0, last_error = NULL, modified = now() "
                    "WHERE instrument = %(camera)s AND identifier = %(name)s AND (state IN "
                    "('done', 'partial', 'failed', 'ready') OR (state = 'claimed' AND lease_expires < now()))",
                    values,
                )

        self._call(work)
        return identifier

    def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Return the next ready exposure (highest priority, then oldest), or one whose lease ran out.

        One that was claimed too often and never finished is called failed, with the reason.
        """
        values = {"owner": owner, "lease": lease_s, "max": self.max_attempts, "only": self.only}

        def work(conn: Connection) -> Any:
            conn.execute(
                "UPDATE knownexposures SET state = 'failed', release_time = now(), modified = now(), last_error = "
                "format('given up after %%s attempts: the last owner, %%s, did not finish and its lease ran out', "
                "attempts, owner) WHERE state = 'claimed' AND lease_expires < now() AND attempts >= %(max)s "
                "AND (%(only)s::text[] IS NULL OR identifier = ANY(%(only)s))",
                values,
            )
            return conn.execute(
                "WITH next AS (SELECT _id FROM knownexposures WHERE (state = 'ready' OR "
                "(state = 'claimed' AND lease_expires < now())) "
                "AND (%(only)s::text[] IS NULL OR identifier = ANY(%(only)s)) "
                "ORDER BY priority DESC, created_at, identifier LIMIT 1 FOR UPDATE SKIP LOCKED) "
                "UPDATE knownexposures k SET state = 'claimed', owner = %(owner)s, claim_time = now(), "
                "lease_expires = now() + make_interval(secs => %(lease)s), token = k.token + 1, "
                "attempts = k.attempts + 1, modified = now() FROM next WHERE k._id = next._id "
                "RETURNING k.identifier, k.instrument, k.filepath, k.token, k.attempts, k.lease_expires, k.params, "
                "k.through_step",
                values,
            ).fetchone()

        row = self._call(work)
        return None if row is None else Claim(*row)

    def expire_owners(self, is_gone: Callable[[str], bool]) -> int:
        """End the leases of owners that are known to be gone; return how many."""

        def work(conn: Connection) -> int:
            rows: Any = conn.execute(
                "SELECT DISTINCT owner FROM knownexposures WHERE state = 'claimed' AND owner IS NOT NULL"
            ).fetchall()
            gone = [r[0] for r in rows if is_gone(r[0])]
            return conn.execute(
                "UPDATE knownexposures SET lease_expires = now() - interval '1 second' "
                "WHERE state = 'claimed' AND owner = ANY(%s) AND lease_expires >= now()",
                (gone,),
            ).rowcount

        return self._call(work)

    def heartbeat(self, claim: Claim, lease_s: float) -> bool:
        """Extend the lease; False when it was lost."""
        return self._call(
            lambda conn: conn.execute(
                "UPDATE knownexposures SET lease_expires = now() + make_interval(secs => %s) "
                "WHERE instrument = %s AND identifier = %s AND token = %s AND state = 'claimed'",
                (lease_s, claim.instrument, claim.identifier, claim.token),
            ).rowcount
            == 1
        )

    def _finish(self, claim: Claim, state: str, counts: Mapping[str, int], message: str, attempts: int = 0) -> None:
        self._call(
            lambda conn: conn.execute(
                "UPDATE knownexposures SET state = %s, release_time = now(), lease_expires = NULL, counts = %s, "
                "last_error = NULLIF(%s, ''), attempts = GREATEST(attempts - %s, 0), modified = now() "
                "WHERE instrument = %s AND identifier = %s AND token = %s AND state = 'claimed'",
                (state, json.dumps(dict(counts)), message, attempts, claim.instrument, claim.identifier, claim.token),
            )
        )

    def release(self, claim: Claim, status: ReleaseStatus, counts: dict[str, int], message: str = "") -> None:
        """Say how it went; a stale claim changes nothing. One given back is not counted as an attempt."""
        if status == "given_back":
            self._finish(claim, "ready", counts, message, attempts=1)
        else:
            self._finish(claim, status, counts, message)

    def fail(self, claim: Claim, message: str, counts: dict[str, int]) -> None:
        """The exposure failed; it stays failed until ``queue retry``."""
        self._finish(claim, "failed", counts, message)

    def list(self, states: Iterable[str] | None = None) -> list[QueueRow]:
        """Return the queue in the order of claims."""
        rows: Any = self._call(
            lambda conn: conn.execute(
                "SELECT identifier, instrument, filepath, state, priority, attempts, owner, lease_expires, "
                "last_error, counts "
                "FROM knownexposures WHERE %(states)s::text[] IS NULL OR state = ANY(%(states)s) "
                "ORDER BY priority DESC, created_at, identifier",
                {"states": list(states) if states else None},
            ).fetchall()
        )
        return [QueueRow(*r) for r in rows]

    def set_state(self, identifiers: Iterable[str], wanted: str, allowed: Iterable[str]) -> int:
        """Move exposures between states; return how many moved.

        Raises
        ------
        ConfigError
            An identifier is not in the queue.
        """
        names, old = list(identifiers), list(allowed)

        def work(conn: Connection) -> int:
            rows: Any = conn.execute("SELECT identifier FROM knownexposures WHERE identifier = ANY(%s)", (names,))
            unknown = sorted(set(names) - {r[0] for r in rows})
            if unknown:
                raise ConfigError(f"not in the queue: {', '.join(unknown)}; see seechange-mpi queue list")
            return conn.execute(
                "UPDATE knownexposures SET state = %s, attempts = 0, modified = now() "
                "WHERE identifier = ANY(%s) AND state = ANY(%s)",
                (wanted, names, old),
            ).rowcount

        return self._call(work)
