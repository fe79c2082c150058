"""Many rows at once: COPY into a temporary table, then one sorted INSERT that passes over rows that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


def insert_rows(conn: Connection, table: str, rows: Sequence[Mapping[str, Any]], *, update: bool = False) -> int:
    """Insert rows (all with the same keys); return how many were new (with `update`: new or rewritten).

    Rows are sorted by their first column, so that concurrent transactions take locks in one order.

    Parameters
    ----------
    update : rows that exist with the same first column get the new values; else they stay as they are.
    """
    if not rows:
        return 0
    columns = list(rows[0])
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    target, temporary = sql.Identifier(table), sql.Identifier(f"new_{table}")
    conn.execute(
        sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} (LIKE {} INCLUDING DEFAULTS) ON COMMIT DROP").format(
            temporary, target
        )
    )
    conn.execute(sql.SQL("TRUNCATE {}").format(temporary))
    with conn.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(temporary, names)) as copy:
        for row in rows:
            copy.write_row([row[c] for c in columns])
    key = sql.Identifier(columns[0])
    conflict: sql.Composable = sql.SQL("ON CONFLICT DO NOTHING")
    if update:
        changes = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(c)) for c in columns[1:])
        conflict = sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(key, changes)
    done = conn.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY {} {}").format(
            target, names, names, temporary, key, conflict
        )
    )
    return done.rowcount
