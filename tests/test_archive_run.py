"""A survey with an archive: uploaded after each commit, cleaned, and processed on as if nothing were missing."""

import pytest

from seechange_mpi.config.resolve import Config

pytestmark = [pytest.mark.db, pytest.mark.slow]


def test_runs_upload_and_need_nothing_here(tiny_survey, cli, tmp_path, capfd):
    store = tmp_path / "store"
    store.mkdir()
    config = tiny_survey.config(tmp_path / "work", archive__kind="directory", archive__path=str(store))
    bundles = Config(config).bundles
    first, second = tiny_survey.exposures
    assert cli("run", "--config", config, first, "--no-report") == 0
    assert "archived, 5 files" in capfd.readouterr().out
    assert cli("refs", "add", "--config", config, first.stem) == 0
    for path in bundles.rglob("*.h5"):
        path.unlink()
    assert cli("run", "--config", config, second, "--no-report") == 0
    assert len(list((store / "bundles" / second.stem / "shards").iterdir())) == 3
    for path in (bundles / second.stem / "shards").iterdir():
        path.unlink()
    store.rename(tmp_path / "away")
    assert cli("run", "--config", config, second, "--no-report", "--set", "run.patience_s=1") == 4
    (tmp_path / "away").rename(store)
    assert cli("run", "--config", config, second, "--no-report") == 0
    assert "nothing is left to do" in capfd.readouterr().out
    assert list((bundles / second.stem / "shards").iterdir()) == []
    assert cli("archive", "pull", second.stem, "--config", config) == 0
    assert len(list((bundles / second.stem / "shards").iterdir())) == 3
