"""Fixtures for all tests: a clean environment, real data when present, one simulated survey per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REALDATA = Path(os.environ.get("SEECHANGE_REALDATA") or Path(__file__).parents[2] / "shared" / "realdata")


@pytest.fixture(autouse=True)
def _no_user_configuration(monkeypatch):
    """Tests never read the user's configuration, and never share one."""
    from seechange_mpi.config.resolve import Config

    monkeypatch.delenv("SEECHANGE_CONFIG", raising=False)
    Config.reset()
    yield
    Config.reset()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of real observations; the test is skipped, visibly, where it is missing."""
    if not REALDATA.is_dir():
        pytest.skip(f"no real data at {REALDATA}; set SEECHANGE_REALDATA")
    return REALDATA
