"""Bring the schema of a database up to date (alembic)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_mpi.model.errors import ConfigError

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


_HEAD = "0013"
"""Kept equal to `head` by a test; spares every start the import of alembic."""


def upgrade(conn: Connection, revision: str = "head") -> bool:
    """Migrate up to `revision`; return whether anything changed. One process at a time.

    Raises
    ------
    ConfigError
        The database is not this program's, or its schema is newer.
    """
    found = current(conn)
    if revision == "head" and found == _HEAD:
        conn.rollback()
        return False
    _check(conn, found)
    conn.rollback()
    _run(conn, "upgrade", revision)
    return True


def revisions() -> list[str]:
    """Return the revisions of this code's schema, the last one being its head; alembic is not imported."""
    return sorted(p.name.partition("_")[0] for p in (_FOLDER / "versions").glob("[0-9]*.py"))


def _check(conn: Connection, found: str | None) -> None:
    """Refuse a database that this code did not make, or that a later version of it has changed."""
    where = f"database {conn.info.dbname} on {conn.info.host or 'this host'}"
    own = "give seechange-mpi a database of its own (database.url)"
    known = revisions()
    if found is None:
        from seechange_mpi.db.schema import metadata

        rows: list[Any] = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND "
                                       "tablename = ANY(%s) ORDER BY 1", (sorted(metadata.tables),)).fetchall()
        if rows:
            names = ", ".join(str(r[0]) for r in rows[:4]) + (" …" if len(rows) > 4 else "")
            raise ConfigError(f"{where} has tables that another program made ({names}): {own}")
    elif found not in known:
        if re.fullmatch(r"\d{4}", found) and found > known[-1]:
            raise ConfigError(f"{where} has schema revision {found}, newer than this program knows ({known[-1]}): "
                              "install the version of seechange-mpi that made it, or a later one")
        raise ConfigError(f"{where} belongs to another program (its alembic revision is {found}): {own}")


def downgrade(conn: Connection, revision: str) -> None:
    """Migrate down to `revision` (``base`` = empty)."""
    conn.rollback()
    _run(conn, "downgrade", revision)


def _run(conn: Connection, what: str, revision: str) -> None:
    """Run alembic in one transaction, which holds the lock: a lock of the session would stay behind in a pooler."""
    from alembic import command
    from sqlalchemy import create_engine, pool

    try:
        engine = create_engine("postgresql+psycopg://", creator=lambda: conn, poolclass=pool.StaticPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            getattr(command, what)(_alembic(connection), revision)
            connection.commit()
    finally:
        conn.rollback()
