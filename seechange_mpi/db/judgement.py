"""Provenances that a person has called bad: why, and what to use in their place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from seechange_mpi.model.errors import ConfigError

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


def judge(conn: Connection, provenance: str, *, bad: bool, comment: str = "", replaced_by: str | None = None) -> None:
    """Call a provenance bad, or good again (comment and successor are taken away then).

    Raises
    ------
    ConfigError
        It would replace itself, or is of another process than its successor.
    """
    if replaced_by is not None:
        rows: list[Any] = conn.execute("SELECT _id, process FROM provenances WHERE _id = ANY(%s)",
                                       ([provenance, replaced_by],)).fetchall()
        process = dict(rows)
        if provenance == replaced_by:
            raise ConfigError(f"{provenance} cannot replace itself")
        if process.get(provenance) != process.get(replaced_by):
            raise ConfigError(f"{replaced_by} is {process.get(replaced_by)}, it cannot replace {provenance}, which is "
                              f"{process.get(provenance)}")
    with conn.transaction():
        conn.execute("UPDATE provenances SET is_bad = %s, bad_comment = %s, replaced_by = %s, modified = now() "
                     "WHERE _id = %s", (bad, comment or None, replaced_by, provenance))


def judgements(conn: Connection, provenances: Iterable[str]) -> dict[str, str]:
    """Return id -> what was said of those that are bad."""
    rows: list[Any] = conn.execute(
        "SELECT _id, bad_comment, replaced_by FROM provenances WHERE is_bad AND _id = ANY(%s)",
        (list(provenances),)).fetchall()
    return {r[0]: "bad" + (f": {r[1]}" if r[1] else "") + (f"; replaced by {r[2]}" if r[2] else "") for r in rows}
