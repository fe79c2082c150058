"""All rows of a database, for comparison."""

from __future__ import annotations

from pathlib import Path

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import session
from seechange_mpi.db.schema import CACHES, VOLATILE, metadata


def dump(config: Path) -> dict[str, list[tuple]]:
    """All rows of a database, volatile columns and caches left out."""
    out = {}
    with session(Config(config)) as conn:
        for table in (t for t in metadata.sorted_tables if t.name not in CACHES):
            columns = [c.name for c in table.columns if c.name not in VOLATILE]
            names = ", ".join(f'"{c}"' for c in columns)
            rows = conn.execute(f"SELECT {names} FROM {table.name}").fetchall()
            out[table.name] = sorted(rows, key=repr)
    return out
