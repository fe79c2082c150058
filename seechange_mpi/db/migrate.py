"""Bring the schema of a database up to date (alembic)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_FOLDER = Path(__file__).with_name("migrations")
_LOCK = 0x5EEC4A6E
"""Advisory lock that lets one process migrate at a time."""


def _alembic(connection: Any) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Revision of this code's schema."""
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory.from_config(_alembic(None)).get_current_head())


def current(conn: Connection) -> str | None:
    """Revision of a database, None if it is empty."""
    if conn.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


_HEAD = "0007"
"""Kept equal to `head` by a test; spares every start the import of alembic."""


def upgrade(conn: Connection, revision: str = "head") -> bool:
    """Migrate up to `revision`; return whether anything changed. One process at a time."""
    if revision == "head" and current(conn) == _HEAD:
        conn.rollback()
        return False
    conn.rollback()
    _run(conn, "upgrade", revision)
    return True


def downgrade(conn: Connection, revision: str) -> None:
    """Migrate down to `revision` (``base`` = empty)."""
    conn.rollback()
    _run(conn, "downgrade", revision)


def _run(conn: Connection, what: str, revision: str) -> None:
    from alembic import command
    from sqlalchemy import create_engine, pool

    conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    conn.commit()
    try:
        engine = create_engine("postgresql+psycopg://", creator=lambda: conn, poolclass=pool.StaticPool)
        with engine.connect() as connection:
            getattr(command, what)(_alembic(connection), revision)
            connection.commit()
    finally:
        conn.rollback()
        conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
        conn.commit()
