"""Fixtures for all tests: a clean environment, real data when present, one simulated survey per session."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from other_postgres import use_other_postgres
from surveys import TINY_CAMERA, Survey, run_cli

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REALDATA = Path(os.environ.get("SEECHANGE_REALDATA") or Path(__file__).parents[2] / "shared" / "realdata")


POSTGRES = use_other_postgres()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which PostgreSQL was asked for."""
    if POSTGRES is not None:
        terminalreporter.write_line(f"databases were on {POSTGRES}")


@pytest.fixture(scope="session", autouse=True)
def _no_data_left_behind(tmp_path_factory):
    """As root, databases of closed folders lie beside them in the temporary folder: remove those of this session."""
    yield
    ours = tmp_path_factory.getbasetemp()
    for owner in Path(tempfile.gettempdir()).glob("seechange-pgdata-*/owner"):
        if ours in Path(owner.read_text().strip()).parents and not (owner.parent / "data" / "postmaster.pid").exists():
            shutil.rmtree(owner.parent, ignore_errors=True)


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


@pytest.fixture(scope="session")
def cli():
    """Call a verb: ``cli("run", "--config", path, exposure) -> exit code``."""
    return run_cli


@pytest.fixture(scope="session")
def tiny_survey(tmp_path_factory) -> Survey:
    """Two epochs of three sections of 400 × 400 pixels."""
    from seechange_mpi.simulate.parameters import SimulationParameters
    from seechange_mpi.simulate.survey import simulate_survey

    root = tmp_path_factory.mktemp("survey")
    camera = root / "tiny.yaml"
    camera.write_text(TINY_CAMERA)
    simulate_survey(root, SimulationParameters(
        camera=str(camera), epochs=2, stars_per_sq_deg=16000, faint_mag=21.5, catalog_mag=20.8, seed=4,
        transients_per_section=4, variables_per_section=1, movers_per_section=1, galaxies_per_sq_deg=2000,
        trails_per_exposure=0))
    return Survey(root)
