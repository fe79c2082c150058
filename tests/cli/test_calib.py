"""``calib`` as an operator types it: a simulated night to frames, frames to a science exposure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.calibrators import list_calibrators
from seechange_mpi.db.engine import session

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def night(tiny_survey, tmp_path_factory):
    """A night of calibration exposures of the survey's detectors."""
    from seechange_mpi.simulate.calib_night import NightParameters, simulate_night
    from seechange_mpi.simulate.parameters import SimulationParameters

    root = tmp_path_factory.mktemp("night")
    simulate_night(root, SimulationParameters(camera=str(tiny_survey.root / "tiny.yaml"), seed=4),
                   NightParameters(biases=10, darks=4, domes=6, faint_domes=4, twilights=0, skies=0))
    return root


@pytest.fixture(scope="module")
def place(tiny_survey, night, tmp_path_factory):
    """Configuration of a working folder where only registered frames count, and verbs there."""
    folder = tmp_path_factory.mktemp("calib")
    camera = str(tiny_survey.root / "tiny.yaml")
    return tiny_survey.config(folder, calibrators__source="database", calibrators__raw=str(night / "raw_calib"),
                              camera__name=camera)


@pytest.fixture
def verb(place, cli, capsys):
    """Run a verb; return exit code, output and errors."""

    def run(*args):
        capsys.readouterr()
        code = cli(*args, "--config", place)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def rows(place, **which):
    with session(Config(place)) as conn:
        return list_calibrators(conn, **which)


@pytest.fixture(scope="module")
def made(place, cli):
    """Bias, dark, flat and bad pixels of all sections, each as an operator makes it."""
    commands = [("bias", "--night", "2025-11-20"), ("dark", "--as", "general"),
                ("flat", "--type", "dome", "--as", "general", "--set", "calibration.flat_level_ratio=5"),
                ("badpixels", "--as", "general", "--valid-from", "2025-01-01")]
    return [cli("calib", "make", *c, "--config", place, "--no-quick-look") for c in commands]


def test_a_night_becomes_registered_frames(place, made):
    assert made == [0, 0, 0, 0]
    found = rows(place)
    assert sorted({(r.kind, r.calibrator_set, r.flat_type, r.filter) for r in found}) == [
        ("badpixels", "general", "", ""), ("bias", "nightly", "", ""), ("dark", "general", "", ""),
        ("flat", "general", "dome", "r")]
    assert len(found) == 4 * 3
    bias = next(r for r in found if r.kind == "bias")
    assert f"{bias.validity_start:%Y-%m-%d %H}" == "2025-11-20 16"
    assert f"{bias.validity_end:%Y-%m-%d %H}" == "2025-11-21 16"
    assert len(bias.info["inputs"]) == 10
    dark = next(r for r in found if r.kind == "dark")
    assert dark.validity_end is None
    with session(Config(place)) as conn:
        above = conn.execute("SELECT upstream_id FROM provenance_upstreams WHERE downstream_id = %s",
                             (dark.provenance_id,)).fetchall()
    assert above == [(next(r for r in rows(place, kind="bias") if r.section_id == dark.section_id).provenance_id,)]


def test_a_science_exposure_is_calibrated_with_them(place, made, tiny_survey, cli, capsys):
    """Calibrated with registered frames, pixels and zero points are those of the truth's own frames."""
    from astropy.table import Table

    from seechange_mpi.io.bundle import read_bundle, read_section

    exposure = tiny_survey.exposures[0]
    assert cli("run", "--config", place, exposure, "--no-report") == 0
    config = Config(place)
    path = next((config.bundles / exposure.stem).glob("*.h5"))
    truth = Table.read(tiny_survey.root / "truth" / f"{exposure.stem}.ecsv")
    assert read_bundle(path).exposure.identifier == exposure.stem
    registered = {r.section_id: r for r in rows(place, kind="flat")}
    for section in ("T1", "T2", "T3"):
        stored = read_section(path, section)
        image = stored.products.image
        assert image is not None
        assert image.inputs["flat"].startswith(Path(registered[section].path).name)
        assert image.inputs["bias"].split(":")[1] == next(
            r for r in rows(place, kind="bias") if r.section_id == section).sha256[:16]
        # the survey's own flats are not of unit median, as frames made here are
        level = np.median(fits.getdata(tiny_survey.root / "calib" / f"flat_{section}_r.fits"))
        assert stored.products.zp.zp == pytest.approx(truth.meta[f"zp_{section}"] + 2.5 * np.log10(level), abs=0.02)
    capsys.readouterr()
    assert cli("run", "--config", place, exposure, "--no-report") == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_its_pixels_differ_from_the_perfectly_calibrated_by_the_noise_of_the_frames(place, made, tiny_survey):
    from seechange_mpi.gpu_kernels.stats import clipped
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.io.raw import read_exposure_info, read_section
    from seechange_mpi.pipeline.preprocessing import Preprocessor

    camera = load_camera(tiny_survey.root / "tiny.yaml")
    exposure = read_exposure_info(tiny_survey.exposures[0], camera)
    raw = read_section(exposure, camera, "T1")
    step = Preprocessor(cosmic_rays=False)
    perfect_frames = camera.calibration_paths("T1", "r", str(tiny_survey.root / "calib"))
    perfect = step.run(raw, exposure, perfect_frames)
    chosen = {r.kind: r for r in rows(place, section="T1") if r.calibrator_set != "externally_supplied"}
    image = step.run(raw, exposure, {k: chosen[k].path for k in ("bias", "flat", "badpixels")})
    level = float(np.median(fits.getdata(perfect_frames["flat"])))
    usable = (image.flags == 0) & (perfect.flags == 0)
    found = clipped((image.data - level * perfect.data)[usable], n_sigma=4)
    sky = float(np.median(image.data[usable]))
    noise = np.hypot(chosen["bias"].info["quality"]["noise"], sky * chosen["flat"].info["quality"]["noise"])
    assert found.std == pytest.approx(noise, rel=0.05)
    assert abs(found.mean) < 0.1 * noise
    assert ((image.flags == 0) == (perfect.flags == 0)).mean() > 0.998, "the bad pixels of the truth, and hot ones"


def test_another_frame_means_another_result(place, made, tiny_survey, verb):
    """A retired frame is no longer used: the exposure is planned again, and lacks one."""
    exposure = tiny_survey.exposures[0]
    flat = next(r for r in rows(place, kind="flat") if r.section_id == "T2")
    assert verb("calib", "retire", flat.id[:8], "--at", "2025-11-20T20:00")[:2] == (0, "1 frames retired\n")
    code, out, _ = verb("run", exposure, "--dry-run")
    assert code == 0
    assert "T1     complete" in out
    assert "T2     preprocessing" in out
    assert verb("calib", "add", flat.path)[0] == 0
    assert "T2     complete" in verb("run", exposure, "--dry-run")[1]


def test_list_and_show(made, verb):
    code, out, _ = verb("calib", "list", "--kind", "bias")
    assert code == 0
    assert out.count("nightly") == 3
    assert "2025-11-20T16:00  2025-11-21T16:00      10" in out
    assert "no such calibration frame" in verb("calib", "list", "--kind", "fringe")[1]
    assert "no such calibration frame" in verb("calib", "list", "--kind", "bias", "--at", "2025-12-24")[1]
    name = out.splitlines()[1].split()[0]
    code, out, _ = verb("calib", "show", name)
    assert code == 0
    assert "bias of tiny T1, nightly" in out
    assert "read_noise_A" in out
    assert "inputs: tiny_bias_000, tiny_bias_001" in out
    code, _, err = verb("calib", "show", "nothing")
    assert (code, err) == (2, "error: no calibration frame 'nothing' is registered; see seechange-mpi calib list\n")


def test_existing_frames_are_registered(place, made, tiny_survey, verb, tmp_path):
    pattern = f"{tiny_survey.root}/calib/flat_{{section}}_{{filter}}.fits"
    code, out, _ = verb("calib", "add", pattern, "--kind", "flat", "--filter", "r", "--valid-to", "2025-01-01")
    assert code == 0
    assert "3 of 3 frames are new" in out
    external = rows(place, at_mjd=60000)
    assert {(r.kind, r.flat_type, r.section_id) for r in external if r.calibrator_set == "externally_supplied"} == {
        ("flat", "externally_supplied", s) for s in ("T1", "T2", "T3")}
    wrong = tmp_path / "wrong.fits"
    fits.PrimaryHDU(np.ones((5, 5), np.float32)).writeto(wrong)
    for args, words in (
            (("x.fits",), "x.fits: calibration frame: expected a file, found no such file"),
            ((wrong,), "--kind: expected one of bias, dark,"),
            ((wrong, "--kind", "bias"), "give the section with --section"),
            ((wrong, "--kind", "bias", "--section", "T1"), "expected 400×400 pixels as the section, found 5×5"),
            ((wrong, "--kind", "flat", "--section", "T1"), "give the filter of the flat with --filter"),
            (("x_{section}.fits", "--kind", "bias"), "expected a file for sections such as T1, found none"),
            ((wrong, "--valid-from", "2026-01-02", "--valid-to", "2026-01-01"), "the validity must end")):
        code, _, err = verb("calib", "add", *args)
        assert code in (2, 4)
        assert err.count("\n") == 1
        assert words in err


def test_one_section_that_fails_does_not_stop_the_others(place, night, verb, tmp_path):
    names = []
    for k, path in enumerate(sorted((night / "raw_calib").glob("*bias*.fits"))[:4]):
        names.append(tmp_path / f"cut_{k}.fits")
        with fits.open(path) as hdus:
            fits.HDUList([h for h in hdus if h.name != "T2"] if k < 2 else hdus).writeto(names[-1])
    code, out, _ = verb("calib", "make", "bias", *names, "--no-quick-look", "--valid-from", "2020-01-01",
                        "--valid-to", "2020-01-02")
    assert code == 3
    assert "[2/3] T2: FAILED: calibration: bias of section T2: 2 good inputs, at least 3 are needed" in out
    assert "failed: T2" in out
    assert len(rows(place, kind="bias", at_mjd=58849.5)) == 2


@pytest.mark.parametrize(("args", "words"), [
    (("bias", "--night", "2024-01-01"), "some of type bias of the night 2024-01-01"),
    (("illumination",), "frames of other kinds are registered: seechange-mpi calib add"),
    (("flat", "--type", "lamp"), "--type lamp: expected one of sky, twilight, dome"),
    (("flat", "--filter", "z"), "in filter z"),
    (("bias", "/nowhere/*.fits"), "/nowhere/*.fits: exposures: expected a file, a pattern or a folder"),
    (("bias", "--as", "externally_supplied"), "expected nightly or general"),
    (("bias", "--camera", "generic-fits"), "calibration frames are made of raw exposures")])
def test_what_cannot_be_made_is_one_clear_line(verb, args, words):
    code, _, err = verb("calib", "make", *args)
    assert code in (2, 4)
    assert err.count("\n") == 1
    assert words in err


def test_many_processes_make_the_same_files(place, made, night, tmp_path):
    """Under MPI the frames have the same content, and so the same names."""
    folder = tmp_path / "mpi"
    folder.mkdir()
    settings = yaml.safe_load(Path(place).read_text())
    settings["calibrators"]["folder"] = str(folder)
    config = tmp_path / "mpi.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", "calib", "make", "bias", "--night",
                           "2025-11-20", "-n", "3", "--config", str(config)], capture_output=True, text=True,
                          timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 worker processes" in done.stdout
    names = {p.name for p in folder.rglob("*.fits")}
    assert names == {Path(r.path).name for r in rows(place, kind="bias", at_mjd=61000.0)}
    assert len(list(folder.rglob("*.png"))) == 3
