"""A run notes what a catalogue has near its new objects; one whose catalogue is away goes on, and is made up for."""

import numpy as np
import pytest
from astropy.table import Table

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import session

pytestmark = [pytest.mark.db, pytest.mark.slow]


def test_runs_match_their_new_objects(tiny_survey, cli, tmp_path, capfd):
    stars = Table.read(tiny_survey.root / "catalog.fits")
    path = tmp_path / "sources.fits"
    Table({"id": np.arange(len(stars)), "ra": stars["ra"], "dec": stars["dec"], "is_star": np.ones(len(stars), bool)}
          ).write(path)
    config = tiny_survey.config(tmp_path / "work", objects__crossmatch_catalog=str(path))
    first, second = tiny_survey.exposures
    assert cli("run", "--config", config, first, "--no-report") == 0
    assert cli("refs", "add", "--config", config, first.stem) == 0
    away = path.rename(tmp_path / "away.fits")
    capfd.readouterr()
    assert cli("run", "--config", config, second, "--no-report") == 0
    said = "".join(capfd.readouterr())
    assert said.count(f"{second.stem}: committed, but its objects are not matched with a catalogue: ") == 1, said
    assert said.count("seechange-mpi object match --missing") == 1
    assert _rows(config) == 0
    away.rename(path)
    assert cli("run", "--config", config, second, "--no-report") == 0
    rows = _rows(config)
    assert rows > 5
    assert cli("logs", "--config", config) == 0
    assert " match " in capfd.readouterr().out
    assert cli("object", "match", "--all", "--config", config) == 0
    assert f"{rows} new matches" in capfd.readouterr().out


def _rows(config):
    with session(Config(config)) as conn:
        (n, far), = conn.execute("SELECT count(*), max(dist) FROM object_legacy_survey_match").fetchall()
    assert far is None or far <= 20.0
    return n
