"""Databases for tests that begin from the same state: copies, of which the server makes one in a moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surveys import Survey, run_cli

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import connect, server
from seechange_mpi.db.server import DATABASE


class Databases:
    """Databases of one server, each with a folder of its own, that begin as copies of others.

    Attributes
    ----------
    base : configuration under which the first exposure of the survey is the reference.
    """

    def __init__(self, survey: Survey, base: Path, address: str) -> None:
        self.survey, self.base, self._address = survey, base, address
        self._made = 0

    def copy(self, of: Path | None = None) -> Path:
        """Copy a database (None: the base) with its bundles; return the configuration of the copy."""
        of = of or self.base
        original = DATABASE if of == self.base else of.parent.name
        self._made += 1
        name = f"copy{self._made}"
        with connect(f"{self._address} dbname=template1") as admin:
            admin.autocommit = True
            admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{original}"')
        config = self.survey.config(self.base.parent / name, database__url=f"{self._address} dbname={name}")
        shutil.copytree(Config(of).bundles, Config(config).bundles)
        return config


@contextmanager
def databases_of(survey: Survey, root: Path) -> Iterator[Databases]:
    """Process the first exposure as the reference; the server runs meanwhile."""
    base = survey.config(root)
    with server(Config(base)) as opened:
        assert run_cli("run", "--config", base, survey.exposures[0], "--no-report") == 0
        assert run_cli("refs", "add", "--config", base, survey.exposures[0].stem) == 0
        with opened() as conn:
            address = f"host={conn.info.host} user={conn.info.user}"
        yield Databases(survey, base, address)
