"""From options to frames to be made: filters by exposure or by section, dates, folders."""

import pytest
from astropy.io import fits

from seechange_mpi.config.resolve import Config
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.mpi.calibration_plan import MakeOptions, plan_frames


def expose(folder, name, kind, mjd=61364.8, **cards):
    header = fits.Header({"MJD-OBS": mjd, "EXPTIME": 5.0, "OBSTYPE": kind, "RA": 0.0, "DEC": 0.0, **cards})
    fits.PrimaryHDU(header=header).writeto(folder / f"{name}.fits")


def plan(folder, camera, kind, *sets, **options):
    config = Config(sets=["calibrators.source=files", f"paths.root={folder}/root", *sets])
    return plan_frames(config, None, MakeOptions(kind, (str(folder),), camera=camera, **options))


def test_a_camera_with_a_filter_per_section(tmp_path):
    for k in range(3):
        expose(tmp_path, f"f{k}", "dome flat", 61364.8 + 0.01 * k)
    tasks = plan(tmp_path, "LS4", "flat").tasks
    assert len(tasks) == 32
    assert {t.filter for t in tasks if t.section_id.startswith("NE")} == {"g"}
    assert {t.filter for t in tasks if t.section_id.startswith("S")} == {"i"}
    assert all(len(t.exposures) == 3 for t in tasks)
    g_only = plan(tmp_path, "LS4", "flat", filters=("g",)).tasks
    assert [t.section_id for t in g_only] == [f"NE_{k:02d}" for k in range(1, 9)]
    assert plan(tmp_path, "LS4", "flat", sections=("NW_03",)).tasks[0].filter == "z"


def test_a_camera_with_a_filter_per_exposure(tmp_path):
    for k in range(6):
        expose(tmp_path, f"f{k}", "dome flat", FILTER="gr"[k % 2])
    expose(tmp_path, "b", "bias")
    tasks = plan(tmp_path, "simulated", "flat").tasks
    assert [(t.filter, t.section_id) for t in tasks] == [(b, f"S{k}") for b in "gr" for k in range(1, 5)]
    assert [e.identifier for e in tasks[0].exposures] == ["f0", "f2", "f4"]
    (bias,) = plan(tmp_path, "simulated", "bias", sections=("S2",)).tasks
    assert (bias.filter, len(bias.exposures)) == ("", 1), "a bias needs no filter"


def test_validity(tmp_path):
    expose(tmp_path, "a", "bias", 61365.2)
    expose(tmp_path, "b", "bias", 61367.9)

    def dates(**options):
        task = plan(tmp_path, "simulated", "bias", sections=("S1",), **options).tasks[0]
        return task.calibrator_set, task.validity_start_mjd, task.validity_end_mjd

    noon = 61364 + 16 / 24
    assert dates(nights=("2026-11-20",)) == ("nightly", noon, noon + 1)
    assert dates() == ("general", noon, None)
    assert dates(calibrator_set="nightly") == ("nightly", noon, noon + 4)
    assert dates(valid_from="2026-11-01", valid_to="2026-12-01") == ("general", 61345, 61375)
    with pytest.raises(ConfigError, match="must end"):
        dates(valid_to="2026-11-01")


def test_folders_and_settings(tmp_path):
    expose(tmp_path, "a", "bias")
    (task, *_) = plan(tmp_path, "simulated", "bias", "calibration.n_sigma=4").tasks
    assert task.folder == f"{tmp_path}/root/calibrators"
    assert task.scratch == f"{tmp_path}/root/scratch"
    assert task.parameters().n_sigma == 4
    (task, *_) = plan(tmp_path, "simulated", "bias", f"calibrators.folder={tmp_path}/f",
                      f"calibration.scratch={tmp_path}/s").tasks
    assert (task.folder, task.scratch) == (f"{tmp_path}/f", f"{tmp_path}/s")


def test_files_of_the_camera_correct_the_inputs_where_they_exist(tmp_path):
    raw, calib = tmp_path / "raw", tmp_path / "calib"
    raw.mkdir()
    calib.mkdir()
    expose(raw, "a", "dark")
    (calib / "bias_S2.fits").touch()
    tasks = plan(raw, "simulated", "dark", f"paths.calibration={calib}").tasks
    assert {t.section_id: t.calibration for t in tasks} == {
        "S1": {}, "S2": {"bias": f"{calib}/bias_S2.fits"}, "S3": {}, "S4": {}}


def test_nothing_to_make(tmp_path):
    expose(tmp_path, "a", "object", FILTER="r")
    with pytest.raises(BadInput, match=r"some of type bias .*found none among 1 files"):
        plan(tmp_path, "simulated", "bias")
    with pytest.raises(ConfigError, match=r"name exposures \(files, patterns, folders\), or set calibrators.raw"):
        plan_frames(Config(), None, MakeOptions("bias"))
