"""Tens to thousands of rows at once: sorted, in one statement, passing over rows that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_MOST_VALUES = 20_000
"""Of one statement; the protocol allows 65,535."""


def insert_rows(conn: Connection, table: str, rows: Sequence[Mapping[str, Any]], *, update: bool = False) -> int:
    """Insert rows (all with the same keys); return how many were new (with `update`: new or rewritten).

    Rows are sorted by their first column, so that concurrent transactions take locks in one order. For tables of a
    hundred thousand rows see `blocks.write_block`.

    Parameters
    ----------
    update : rows that exist with the same first column get the new values; else they stay as they are.
    """
    if not rows:
        return 0
    columns = list(rows[0])
    key = columns[0]
    conflict: sql.Composable = sql.SQL("ON CONFLICT DO NOTHING")
    if update:
        changes = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(c)) for c in columns[1:])
        conflict = sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(sql.Identifier(key), changes)
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    one = sql.SQL("(" + ", ".join(["%s"] * len(columns)) + ")")
    ordered = sorted(rows, key=lambda row: str(row[key]))
    step = max(1, _MOST_VALUES // len(columns))
    done = 0
    for first in range(0, len(ordered), step):
        some = ordered[first : first + step]
        done += conn.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES {} {}").format(sql.Identifier(table), names,
                                                               sql.SQL(", ").join([one] * len(some)), conflict),
            [row[c] for row in some for c in columns]).rowcount
    return done


def stage_rows(conn: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> sql.Identifier:
    """Copy any number of rows (all with the same keys) into a temporary table like `table`; return its name.

    It is there until the transaction ends.
    """
    columns = list(rows[0])
    target = sql.Identifier(f"new_{table}")
    conn.execute(sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} (LIKE {} INCLUDING DEFAULTS) ON COMMIT DROP").format(
        target, sql.Identifier(table)))
    conn.execute(sql.SQL("TRUNCATE {}").format(target))
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    with conn.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(target, names)) as copy:
        for row in rows:
            copy.write_row([row[c] for c in columns])
    return target
