"""Bad input: one clear error naming the file, what was expected and found; the other sections are finished."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import session
from seechange_mpi.model.errors import TransientError

pytestmark = pytest.mark.db


@pytest.fixture
def spoiled(tiny_survey, tmp_path):
    """Path of a copy of the first exposure, to be spoiled, and a configuration."""
    path = tmp_path / "spoiled.fits"
    shutil.copy(tiny_survey.exposures[0], path)
    return path, tiny_survey.config(tmp_path / "w")


def committed(config) -> list[str]:
    with session(Config(config)) as conn:
        return sorted(r[0] for r in conn.execute("SELECT section_id FROM images"))


def test_truncated_file(spoiled, cli, capsys):
    path, config = spoiled
    with fits.open(path) as hdus:
        keep = hdus["T3"].fileinfo()["datLoc"] + 10_000
    with open(path, "r+b") as f:
        f.truncate(keep)
    assert cli("run", "--config", config, path, "--no-report") == 3
    out = capsys.readouterr().out
    assert "T3: preprocessing: BadInput" in out
    assert "spoiled.fits" in out
    assert "the file is truncated" in out
    assert committed(config) == ["T1", "T2"]


def test_name_of_another_exposure(spoiled, tiny_survey, tmp_path, cli, capsys):
    """Never "nothing left to do" about a file that has not been looked at."""
    path, config = spoiled
    assert cli("run", "--config", config, path, "--no-report", "--sections", "T1") == 0
    other = tmp_path / "another night" / path.name
    other.parent.mkdir()
    shutil.copy(tiny_survey.exposures[1], other)
    capsys.readouterr()
    assert cli("run", "--config", config, other, "--no-report", "--sections", "T1") == 4
    out = capsys.readouterr().out
    assert f"{other}: exposure: expected spoiled of" in out
    assert "give the file another name" in out
    assert cli("run", "--config", config, path, "--no-report", "--sections", "T1") == 0


def test_missing_hdu(spoiled, cli, capsys):
    path, config = spoiled
    with fits.open(path) as hdus:
        fits.HDUList([h.copy() for h in hdus if h.name != "T2"]).writeto(path.with_name("other.fits"))
    assert cli("run", "--config", config, path.with_name("other.fits"), "--no-report") == 3
    out = capsys.readouterr().out
    assert "expected HDU T2, found only HDUs" in out
    assert committed(config) == ["T1", "T3"]


def test_missing_keyword(spoiled, cli, capsys):
    path, config = spoiled
    with fits.open(path, mode="update") as hdus:
        del hdus[0].header["EXPTIME"]
    assert cli("run", "--config", config, path, "--no-report") == 4
    out = capsys.readouterr().out
    assert "spoiled.fits: header value 'exp_time': expected keyword EXPTIME" in out
    assert "--param exp_time=" in out
    assert cli("run", "--config", config, path, "--no-report", "--param", "exp_time=45") == 0


def test_all_nan_section(spoiled, cli, capsys):
    path, config = spoiled
    with fits.open(path) as hdus:
        new = [hdus[0].copy()]
        for h in hdus[1:]:
            data = np.full(h.data.shape, np.nan, np.float32) if h.name == "T1" else h.data
            new.append(fits.ImageHDU(data, h.header, name=h.name))
        fits.HDUList(new).writeto(path.with_name("nan.fits"))
    assert cli("run", "--config", config, path.with_name("nan.fits"), "--no-report") == 3
    assert "section T1: expected an image, found no finite pixel" in capsys.readouterr().out
    assert committed(config) == ["T2", "T3"]


def test_wrong_shape(spoiled, cli, capsys):
    path, config = spoiled
    with fits.open(path) as hdus:
        new = [h.copy() for h in hdus]
        new[2].data = new[2].data[:300]
        fits.HDUList(new).writeto(path.with_name("short.fits"))
    assert cli("run", "--config", config, path.with_name("short.fits"), "--no-report") == 3
    assert "expected an image of at least 216×400 pixels" in capsys.readouterr().out


def test_catalogue_elsewhere(spoiled, tiny_survey, tmp_path, cli, capsys):
    path, _ = spoiled
    table = Table.read(tiny_survey.root / "catalog.fits")
    table["dec"] -= 10.0
    table.write(tmp_path / "elsewhere.fits")
    config = tiny_survey.config(tmp_path / "w2", catalog__path=str(tmp_path / "elsewhere.fits"))
    assert cli("run", "--config", config, path, "--no-report") == 4
    out = capsys.readouterr().out
    assert "astrocal" in out
    assert "elsewhere.fits" in out
    assert out.count("no catalog") >= 3, "the closing table names the badness of every section"


def test_missing_calibration(spoiled, tiny_survey, tmp_path, cli, capsys):
    path, _ = spoiled
    calib = tmp_path / "calib"
    shutil.copytree(tiny_survey.root / "calib", calib)
    (calib / "flat_T2_r.fits").unlink()
    config = tiny_survey.config(tmp_path / "w3", paths__calibration=str(calib))
    assert cli("run", "--config", config, path, "--dry-run") == 0
    assert "missing calibration: flat" in capsys.readouterr().out
    assert cli("run", "--config", config, path, "--no-report") == 3
    assert "flat_T2_r.fits" in capsys.readouterr().out
    assert committed(config) == ["T1", "T3"]


def test_not_a_fits_file(tiny_survey, tmp_path, cli, capsys):
    path = tmp_path / "notes.fits"
    path.write_text("these are notes")
    config = tiny_survey.config(tmp_path / "w")
    assert cli("run", "--config", config, path, tiny_survey.exposures[0], "--no-report") == 4
    out = capsys.readouterr().out
    assert "notes.fits: exposure: expected a FITS file" in out
    assert committed(config) == ["T1", "T2", "T3"], "the other exposure is finished"


def test_database_away_from_the_start(spoiled, cli, capsys):
    path, config = spoiled
    url = "postgresql://nobody@127.0.0.1:9/none"
    assert cli("run", "--config", config, path, "--set", f"database.url={url}", "--set", "database.attempts=2") == 4
    err = capsys.readouterr().err
    assert "does not answer after 2 attempts" in err
    assert "127.0.0.1:9" in err


def test_database_away_at_the_commit(spoiled, cli, capsys, monkeypatch):
    path, config = spoiled

    def away(*_args, **_kwargs):
        raise TransientError("the database went away during the commit")

    with monkeypatch.context() as patch:
        patch.setattr("seechange_mpi.db.commit.commit_bundle", away)
        assert cli("run", "--config", config, path, "--no-report", "--set", "run.patience_s=0.5") == 4
    out = capsys.readouterr().out
    assert "NOT COMMITTED" in out
    command = next(line for line in out.splitlines() if "db commit" in line).split("db commit ")[1].split()[0]
    assert committed(config) == []
    assert cli("db", "commit", "--config", config, command) == 0
    assert committed(config) == ["T1", "T2", "T3"]


def test_full_disk(spoiled, cli, capsys, monkeypatch):
    import h5py

    path, config = spoiled
    real = h5py.Group.create_dataset

    def full(self, name, *args, **kwargs):
        if name == "weight" and "T2" in self.name:
            raise OSError(28, "No space left on device")
        return real(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", full)
        assert cli("run", "--config", config, path, "--no-report") == 3
    out = capsys.readouterr().out
    assert "no space left while writing T2" in out
    assert not list(Config(config).bundles.rglob("*.tmp"))
    assert committed(config) == ["T1", "T3"]
    assert cli("run", "--config", config, path, "--no-report") == 0
    assert "1 sections on 1 process, 2 already complete" in capsys.readouterr().out
    assert committed(config) == ["T1", "T2", "T3"]


def test_reference_of_another_camera(spoiled, tmp_path, monkeypatch):
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.io.raw import read_exposure_info
    from seechange_mpi.io.shard import read_shard
    from seechange_mpi.model.flags import badness_words
    from seechange_mpi.model.task import ReferenceLink, SectionTask
    from seechange_mpi.pipeline.section import run_section
    from seechange_mpi.pipeline.top_level import Pipeline

    path, config_path = spoiled
    config = Config(config_path)
    camera = load_camera(config.settings.camera.name)
    exposure = read_exposure_info(path, camera)
    link = ReferenceLink("other.h5", "T1", "id", "other", "r", "DECam", {})
    calibration = camera.calibration_paths("T1", "r", config.settings.paths.calibration)
    task = SectionTask(exposure, "T1", camera, Pipeline.from_settings({}).settings(), {}, str(tmp_path / "shards"),
                       calibration, {"path": config.settings.catalog.path}, link)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "perlmutter")
    outcome = run_section(task)
    assert outcome.status == "failed"
    assert outcome.report.error_type == "BadInput"
    assert "expected an exposure of camera tiny, found one of DECam" in outcome.report.error_message
    assert outcome.shard, "what was made before the failure is kept"
    assert badness_words(outcome.report.bitflag) == "bad reference"
    assert read_shard(tmp_path / "shards" / outcome.shard).report.bitflag == outcome.report.bitflag
    assert read_shard(tmp_path / "shards" / outcome.shard).report.cluster == "perlmutter"
