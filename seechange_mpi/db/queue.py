"""The local queue of exposures, kept in the database: leases, fencing tokens, attempts, and reasons."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

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

_CLAIMABLE = "(state = 'ready' OR (state = 'claimed' AND lease_expires < now()))"
_CHOSEN = "(%(only)s::text[] IS NULL OR identifier = ANY(%(only)s)) AND _id <> ALL(%(back)s::uuid[])"
_CLAIM = "k.identifier, k.instrument, k.filepath, k.token, k.attempts, k.lease_expires, k.params, k.through_step"
_TAKEN = (
    "state = 'claimed', owner = %(owner)s, claim_time = now(), modified = now(), "
    "lease_expires = now() + make_interval(secs => %(lease)s), token = 1 + GREATEST(k.token, COALESCE("
    "(SELECT f.token FROM commit_fence f WHERE f.exposure = k.identifier), 0))"
)
"""A token exceeds every one the database has seen for the exposure, those of a conductor or a lost queue included."""


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

    Notes
    -----
    What this queue has given back it does not claim again (another run may): a run that cannot finish an exposure
    now must not be handed the same one for ever.
    """

    def __init__(
        self, opened: Callable[[], Connection], *, max_attempts: int = 3, only: Iterable[str] | None = None
    ) -> None:
        self._opened = opened
        self._conn: Connection | None = None
        self._lock = threading.Lock()
        self.max_attempts = max_attempts
        self.only = sorted(only) if only is not None else None
        self._handed_out: set[tuple[str, str, int]] = set()
        self._given_back: set[UUID] = set()
        self._unsure = False

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
        values = {"owner": owner, "lease": lease_s, "max": self.max_attempts, **self._choice()}

        def work(conn: Connection) -> Any:
            if self._unsure and (found := self._lost_claim(conn, values)) is not None:
                return found
            self._unsure = True  # until the answer is here: a connection lost at COMMIT may have claimed
            conn.execute(
                "UPDATE knownexposures SET state = 'failed', release_time = now(), modified = now(), last_error = "
                "format('given up after %%s attempts: the last owner, %%s, did not finish and its lease ran out', "
                "attempts, owner) WHERE _id IN (SELECT _id FROM knownexposures WHERE state = 'claimed' AND "
                f"lease_expires < now() AND attempts >= %(max)s AND {_CHOSEN} FOR UPDATE SKIP LOCKED)",
                values,
            )
            return conn.execute(
                f"WITH next AS (SELECT _id FROM knownexposures WHERE {_CLAIMABLE} AND {_CHOSEN} "
                "ORDER BY priority DESC, created_at, identifier LIMIT 1 FOR UPDATE SKIP LOCKED) "
                f"UPDATE knownexposures k SET {_TAKEN}, attempts = k.attempts + 1 FROM next WHERE k._id = next._id "
                f"RETURNING {_CLAIM}",
                values,
            ).fetchone()

        row = self._call(work)
        self._unsure = False
        return None if row is None else self._remembered(Claim(*row))

    def _choice(self) -> dict[str, Any]:
        return {"only": self.only, "back": sorted(self._given_back)}

    def _remembered(self, claim: Claim) -> Claim:
        self._handed_out.add((claim.instrument, claim.identifier, claim.token))
        return claim

    def _lost_claim(self, conn: Connection, values: Mapping[str, Any]) -> Any:
        """A claim of this owner whose answer never arrived."""
        rows: Any = conn.execute(
            f"SELECT {_CLAIM} FROM knownexposures k WHERE state = 'claimed' AND owner = %(owner)s AND "
            f"lease_expires > now() AND {_CHOSEN} ORDER BY claim_time FOR UPDATE",
            values,
        ).fetchall()
        lost = [r for r in rows if (r[1], r[0], r[3]) not in self._handed_out]
        return lost[0] if lost else None

    def waiting(self) -> int:
        """How many exposures could be claimed now."""
        row: Any = self._call(
            lambda conn: conn.execute(
                "SELECT count(*) FROM knownexposures WHERE (state = 'ready' OR (state = 'claimed' AND "
                f"lease_expires < now() AND attempts < %(max)s)) AND {_CHOSEN}",
                {"max": self.max_attempts, **self._choice()},
            ).fetchone()
        )
        return int(row[0])

    def take(self, instrument: str, identifier: str, owner: str, lease_s: float) -> tuple[Claim, str] | None:
        """Claim one exposure, named by its instrument and identifier, whatever its state.

        Returns
        -------
        claim, state : the claim, not counted as an attempt, and the state before; None when it is claimed by a run
            whose lease has not ended.
        """
        values = {"owner": owner, "lease": lease_s, "id": stable_id("known", instrument, identifier)}

        def work(conn: Connection) -> Any:
            return conn.execute(
                "WITH before AS (SELECT _id, state FROM knownexposures WHERE _id = %(id)s AND "
                "NOT (state = 'claimed' AND lease_expires >= now()) FOR UPDATE) "
                f"UPDATE knownexposures k SET {_TAKEN} FROM before WHERE k._id = before._id "
                f"RETURNING {_CLAIM}, before.state",
                values,
            ).fetchone()

        row = self._call(work)
        return None if row is None else (self._remembered(Claim(*row[:-1])), str(row[-1]))

    def names(self, identifiers: Iterable[str]) -> dict[str, list[str]]:
        """Return identifier -> instruments under which the queue knows it."""
        rows: Any = self._call(
            lambda conn: conn.execute(
                "SELECT identifier, instrument FROM knownexposures WHERE identifier = ANY(%s)", (list(identifiers),)
            ).fetchall()
        )
        known: dict[str, list[str]] = {}
        for identifier, instrument in rows:
            known.setdefault(identifier, []).append(instrument)
        return known

    def put_back(self, claim: Claim, state: str, message: str = "") -> None:
        """End a claim made with `take` without a result: the exposure has its earlier state again."""
        self._call(
            lambda conn: conn.execute(
                "UPDATE knownexposures SET state = %s, lease_expires = NULL, modified = now(), "
                "last_error = COALESCE(NULLIF(%s, ''), last_error) "
                "WHERE instrument = %s AND identifier = %s AND token = %s AND state = 'claimed'",
                ("ready" if state == "claimed" else state, message, claim.instrument, claim.identifier, claim.token),
            )
        )

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
            self._given_back.add(stable_id("known", claim.instrument, claim.identifier))
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
