"""Sessions on the configured database."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from sqlalchemy import create_engine, pool
from sqlalchemy.orm import Session

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import server


class SmartSession:
    """A context that gives a session: the one it was given, left open at the end, or a new one, closed at the end.

    A new session is on the database of the configuration (``database.url``); an embedded server runs meanwhile. What
    is not committed is lost. From then on missing files come back from the configured archive.

    Parameters
    ----------
    session : a session of the caller's, or None.
    config : configuration; None: that of this process (``SEECHANGE_CONFIG`` or the defaults).
    """

    def __init__(self, session: Session | None = None, *, config: Config | None = None) -> None:
        self._given, self._config = session, config
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        if self._given is not None:
            return self._given
        from seechange_mpi.io.archive_retriever import use_configured_archive

        config = self._config or Config.get()
        use_configured_archive(config)
        with ExitStack() as stack:
            opened: Any = stack.enter_context(server(config))
            engine = create_engine("postgresql+psycopg://", creator=opened, poolclass=pool.NullPool)
            stack.callback(engine.dispose)
            session = stack.enter_context(Session(engine))
            self._stack = stack.pop_all()
        return session

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()
