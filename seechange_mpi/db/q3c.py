"""Indexes of the q3c extension, where the server has it; without it the HEALPix columns serve all searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

TABLES = ("exposures", "images", "objects")
"""Tables with an index on q3c_ang2ipix(ra, dec). Measurements have none: it would cost every commit."""
_LOCK = 0x5EEC4A63


@dataclass(frozen=True, slots=True)
class Q3C:
    """How it stands with q3c in a database.

    Attributes
    ----------
    offered : version that the server could install, "" if it has none.
    installed : version in this database, "" if none.
    indexed : tables that have their index.
    """

    offered: str
    installed: str
    indexed: tuple[str, ...]

    def __str__(self) -> str:
        if not self.offered and not self.installed:
            return "q3c is not on this server; the HEALPix columns serve searches on the sky"
        if not self.installed:
            return (f"q3c {self.offered} is on this server, but not in this database: seechange-mpi db init, or as its "
                    "superuser CREATE EXTENSION q3c and then seechange-mpi db init")
        lacking = [t for t in TABLES if t not in self.indexed]
        if lacking:
            return f"q3c {self.installed}, no index yet on {', '.join(lacking)}: seechange-mpi db init"
        return f"q3c {self.installed}, indexes on {', '.join(TABLES)}"


def index_name(table: str) -> str:
    """Return the name that SeeChange gives the index."""
    return f"{table}_q3c_ang2ipix_idx"


def state(conn: Connection) -> Q3C:
    """Look what is there."""
    row: Any = conn.execute(
        "SELECT (SELECT default_version FROM pg_available_extensions WHERE name = 'q3c'), "
        "(SELECT extversion FROM pg_extension WHERE extname = 'q3c'), "
        "ARRAY(SELECT t FROM unnest(%s::text[]) t WHERE to_regclass(t || '_q3c_ang2ipix_idx') IS NOT NULL)",
        (list(TABLES),)).fetchone()
    return Q3C(row[0] or "", row[1] or "", tuple(row[2]))


def make_indexes(conn: Connection) -> Q3C:
    """Make the extension and the indexes that are not there yet, as far as server and privileges allow.

    Commits wait while an index is made.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        found = state(conn)
        if found.offered and not found.installed:
            try:
                with conn.transaction():
                    conn.execute("CREATE EXTENSION q3c")
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFile):
                return found
        if not found.offered and not found.installed:
            return found
        for table in TABLES:
            if table not in found.indexed:
                conn.execute(sql.SQL("CREATE INDEX {} ON {} (q3c_ang2ipix(ra, dec))").format(
                    sql.Identifier(index_name(table)), sql.Identifier(table)))
        return state(conn)


def drop_indexes(conn: Connection) -> None:
    """Take the indexes away; the extension stays."""
    with conn.transaction():
        for table in TABLES:
            conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(index_name(table))))
