"""Many rows at once: COPY into a temporary table, then one sorted INSERT that passes over rows that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


def insert_rows(conn: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows (all with the same keys); return how many were new.

    Rows are sorted by their first column, so that concurrent transactions take locks in one order.
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
    done = conn.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY {} ON CONFLICT DO NOTHING").format(
            target, names, names, temporary, sql.Identifier(columns[0])
        )
    )
    return done.rowcount
