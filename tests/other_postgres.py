"""Tests on another PostgreSQL than the embedded one: ``SEECHANGE_TEST_PG_BINDIR`` names the folder of its binaries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

VARIABLE = "SEECHANGE_TEST_PG_BINDIR"
BINDIR = os.environ.get(VARIABLE) or None


def use_other_postgres() -> str | None:
    """Have servers that name no binaries of their own use the given ones; return their version, None: none are given.

    Raises
    ------
    ConfigError
        The folder has no PostgreSQL.
    """
    if BINDIR is None:
        return None
    from seechange_mpi.db import server

    own = server.find_bindir
    folder = own(BINDIR)

    def find_bindir(configured: str | None = None) -> Path:
        return own(configured or BINDIR)

    server.find_bindir = find_bindir
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip()
