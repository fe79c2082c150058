"""Connections: the embedded server or a given one, with bounded retries and a schema that is there."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from seechange_mpi.config.resolve import Config, redact
from seechange_mpi.db.server import EmbeddedServer
from seechange_mpi.model.errors import ConfigError, TransientError

Connection = psycopg.Connection[tuple[object, ...]]
EMBEDDED = "embedded"
_REFUSAL = re.compile(
    r'(?:database|role) ".*" (?:does not exist|is not permitted to log in)|authentication failed|no password supplied|'
    r'pg_hba\.conf|permission denied for database|no such (?:database|user)|connection is bad: invalid |'
    r'unrecognized configuration parameter|unsupported startup parameter')
"""Reasons of a server, of PgBouncer and of libpq that no waiting mends; errors while connecting have no SQLSTATE."""
_LIVENESS = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}


def connect(url: str, *, timeout_s: float = 10.0, attempts: int = 3) -> Connection:
    """Connect to PostgreSQL, trying again a few times with growing, jittered pauses.

    Between transactions the connection has no state on the server: no settings, temporary tables, locks or prepared
    statements. A pooler (PgBouncer, transaction mode) may give every transaction another server process.

    Raises
    ------
    TransientError
        No attempt succeeded: names the server (without password) and the reason.
    ConfigError
        It is no address of a database, or the server refuses: it has no such database or user, or the password is
        wrong.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigError(f"database.url {redact(url)} is not the address of a PostgreSQL database; give "
                          f"'{EMBEDDED}' or postgresql://USER@HOST/DATABASE") from None
    reason = ""
    for attempt in range(attempts):
        try:
            conn = psycopg.connect(url, connect_timeout=max(2, round(timeout_s)), application_name="seechange-mpi",
                                   prepare_threshold=None, **_liveness(url))
            # whoever has waited for a lock must see what its holder wrote, whatever the server's default
            conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            return conn
        except psycopg.OperationalError as err:
            # a name with several addresses fails with a line for each
            reasons = str(err).strip().splitlines() or [type(err).__name__]
            reason = next(filter(_REFUSAL.search, reasons), reasons[0])
            if _REFUSAL.search(reason):
                raise ConfigError(f"database.url {redact(url)} is wrong: {reason}") from None
            if attempt + 1 < attempts:
                time.sleep((0.3 * 2**attempt) * (0.5 + random.random()))
    raise TransientError(
        f"the database {redact(url)} does not answer after {attempts} attempts: {reason}. "
        "Check database.url (seechange-mpi db status), then run again"
    )


def _liveness(url: str) -> dict[str, Any]:
    """Connection options, unless the URL has its own, by which a peer that vanished without a word is noticed."""
    given = conninfo_to_dict(url)
    return {k: v for k, v in _LIVENESS.items() if k not in given}


def notice_lost_client(conn: Connection) -> None:
    """Let the server notice within a minute, until the end of the transaction, that this machine is gone.

    A killed process needs no such thing; but the locks of one whose machine or network has vanished would be kept for
    hours, as long as the server's own settings tell.
    """
    conn.execute("SELECT set_config('tcp_keepalives_idle', %s, true), set_config('tcp_keepalives_interval', %s, true), "
                 "set_config('tcp_keepalives_count', %s, true)",
                 [str(_LIVENESS[f"keepalives_{k}"]) for k in ("idle", "interval", "count")])


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextmanager
def server(config: Config, tell: Callable[[str], None] = _say) -> Iterator[Callable[[], Connection]]:
    """Yield a function that opens connections; the embedded server runs meanwhile, its schema up to date.

    An embedded server that has died is started again when a connection is asked for; `tell` is given a line.
    """
    settings = config.settings.database
    with ExitStack() as stack:
        url = settings.url
        embedded: EmbeddedServer | None = None
        if url == EMBEDDED:
            embedded = EmbeddedServer(config.root, settings.bindir)
            url = stack.enter_context(embedded.in_use())

        def opened() -> Connection:
            if embedded is not None and not embedded.is_running():
                tell("the embedded PostgreSQL has died; starting it again")
                embedded.start()
            return connect(url, timeout_s=settings.connect_timeout_s, attempts=settings.attempts)

        with opened() as conn:
            from seechange_mpi.db.migrate import upgrade

            with _told(url):
                upgrade(conn)
        with _told(url):
            yield opened


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say in one line what no other work can cure: a database that this user may not write to."""
    try:
        yield
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as err:
        reason = str(err).strip().splitlines()[0]
        raise ConfigError(f"database.url {redact(url)} is of no use: {reason}; give seechange-mpi a database of its "
                          "own and a user who owns it") from None


@contextmanager
def session(config: Config) -> Iterator[Connection]:
    """Yield one connection (committed at the end, rolled back on an exception)."""
    with server(config) as opened, opened() as conn:
        yield conn
