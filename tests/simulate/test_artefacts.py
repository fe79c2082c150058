"""From raw files to images: whatever the simulator puts in is taken out or flagged, judged by the truth."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.table import Table
from scipy.ndimage import median_filter

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.raw import read_exposure_info
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.flags import Correction, PixelFlag
from seechange_mpi.pipeline.preprocessing import Preprocessor
from seechange_mpi.simulate.artefacts import BLEED, TRAIL, bend, spill
from seechange_mpi.simulate.detector import backwards, make_detector
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.survey import simulate_survey

TEXT = Path(load_camera.__globals__["_FOLDER"], "simulated.yaml").read_text()


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """The simulator's camera with a single section."""
    path = tmp_path_factory.mktemp("camera") / "single.yaml"
    path.write_text(TEXT[: TEXT.index("sections:\n  #")] + "sections:\n  - {id: S1, hdu: S1}\n")
    return path


def pars(camera, **more):
    return SimulationParameters(camera=str(camera), epochs=1, seed=21, galaxies_per_sq_deg=300.0, **more)


def process(survey, **more):
    config = yaml.safe_load(survey.config.read_text())
    camera = load_camera(config["camera"]["name"])
    info = read_exposure_info(survey.exposures[0], camera)
    calibration = camera.calibration_paths("S1", info.filter, str(survey.root / "calib"))
    step = Preprocessor(**{**config.get("preprocessing", {}), **more})
    return step.run(step.read(info, camera, "S1", calibration), info, calibration)


@pytest.fixture(scope="module")
def everything(tmp_path_factory, camera):
    return simulate_survey(tmp_path_factory.mktemp("all"), pars(
        camera, dark_e_per_s=1.0, nonlinearity=0.1, crosstalk=1e-3, fringe_amplitude=0.03, full_well_e=120e3,
        bright_mag=12.0, star_slope=0.18, trail_brightness=[2.0, 5.0]))


@pytest.fixture(scope="module")
def corrected(everything):
    return process(everything)


def planes(survey):
    with fits.open(next((survey.root / "truth").glob("*_artefacts.fits"))) as hdus:
        return np.asarray(hdus["S1"].data)


def test_everything_asked_for_is_done_and_recorded(everything, corrected):
    config = yaml.safe_load(everything.config.read_text())
    assert set(config["preprocessing"]["steps_required"]) == {
        "overscan", "zero", "flat", "badpixels", "dark", "linearity", "crosstalk", "fringe"}
    C = Correction
    assert corrected.preproc_bitflag == (C.OVERSCAN | C.ZERO | C.DARK | C.LINEARITY | C.FLAT | C.FRINGE | C.CROSSTALK
                                         | C.BAD_PIXEL_MAP)
    assert set(corrected.inputs) == {"bias", "dark", "linearity", "crosstalk", "flat", "fringe", "badpixels"}


def pattern_left(image, pattern):
    """Amplitude of a pattern of zero mean [e-] in an image without its stars and slopes."""
    data = image.data - median_filter(image.data[::4, ::4], 31).repeat(4, 0).repeat(4, 1)
    good = (image.flags == 0) & (np.abs(data) < 3 / np.sqrt(np.maximum(image.weight, 1e-9)))
    p = pattern - pattern[good].mean()
    return float((data[good] * p[good]).sum() / (p[good] ** 2).sum()) * image.gain


@pytest.mark.parametrize("kind", ["fringe", "dark"])
def test_patterns_are_gone(everything, corrected, kind):
    pattern = fits.getdata(next((everything.root / "calib").glob(f"{kind}_S1*.fits"))).astype(float)
    put_in = 380.0 if kind == "fringe" else 45.0 * 1.7
    without = process(everything, steps_required=[s for s in ("overscan", "crosstalk", "zero", "linearity", "dark",
                                                              "flat", "fringe", "badpixels") if s != kind])
    if kind == "dark":  # hot pixels, that the clipping of `pattern_left` would leave out
        hot = (pattern > 5 * np.median(pattern)) & (corrected.flags == 0)
        excess = pattern[hot] - np.median(pattern)
        left = [float(((i.data[hot] - np.median(i.data)) * excess).sum() / (excess**2).sum()) * i.gain
                for i in (corrected, without)]
    else:
        left = [pattern_left(i, pattern) for i in (corrected, without)]
    assert left[1] == pytest.approx(put_in, rel=0.2), "it was there"
    assert abs(left[0]) < 0.05 * put_in


@pytest.fixture(scope="module")
def plain(tmp_path_factory, camera):
    return simulate_survey(tmp_path_factory.mktemp("plain"), pars(camera))


def test_bent_counts_and_crosstalk_are_undone_pixel_by_pixel(tmp_path_factory, camera, plain):
    """The same noise, digitised anew: what is left is that of two roundings."""
    both = simulate_survey(tmp_path_factory.mktemp("both"), pars(camera, nonlinearity=0.1, crosstalk=2e-3))
    wanted, image = process(plain), process(both)
    good = (wanted.flags == 0) & (image.flags == 0)
    difference = np.abs(image.data - wanted.data)[good]
    assert np.sqrt(np.mean(difference**2)) < 0.6
    assert difference.max() < 3.5
    steps = ["overscan", "zero", "flat", "badpixels"]
    for more, least in (("linearity", 30.0), ("crosstalk", 300.0)):
        half = process(both, steps_required=[*steps, more])
        assert np.abs(half.data - wanted.data)[good].max() > least, "both were there"


def test_trails_and_bleeds_are_flagged(everything, corrected):
    flags = corrected.flags
    trail = (planes(everything) & TRAIL) != 0
    assert trail.sum() > 1000
    assert ((flags & PixelFlag.TRAIL) != 0)[trail].mean() > 0.97
    full = (planes(everything) & BLEED) != 0
    assert full.sum() > 50
    flagged = (flags & (PixelFlag.BLEED | PixelFlag.SATURATED)) != 0
    assert flagged[full].mean() > 0.98
    assert (flags & PixelFlag.BLEED).any()


def test_defaults_have_a_trail_and_nothing_else(plain):
    survey = plain
    assert "preprocessing" not in yaml.safe_load(survey.config.read_text())
    assert ((planes(survey) & TRAIL) != 0).sum() > 1000
    truth = Table.read(survey.truth[0])
    assert 0 < truth["on_trail"].sum() < 0.1 * len(truth)
    assert not (planes(survey) & BLEED).any()


def test_charge_is_kept_when_it_spills():
    electrons = np.full((200, 5), 100.0)
    electrons[90:95, 2] = 50000.0
    before = electrons.sum()
    full = spill(electrons, 10000.0)
    assert electrons.sum() == pytest.approx(before)
    assert electrons.max() <= 10000.0
    rows = np.flatnonzero(full[:, 2])
    assert len(rows) == pytest.approx(25, abs=1)
    assert abs(rows.mean() - 92) < 0.6
    assert not full[:, [0, 1, 3, 4]].any()


def test_bent_counts_and_the_order_of_readout():
    linear = np.array([0.0, 1000.0, 50000.0])
    counts = bend(linear, 1e-6)
    assert counts * (1 + 1e-6 * counts) == pytest.approx(linear)
    camera = load_camera("simulated")
    amplifiers = camera.section("S1").amplifiers
    assert [backwards(a, camera) for a in amplifiers] == [(False, False), (False, True)]
    with pytest.raises(ConfigError, match="literal read_order"):
        backwards(amplifiers[0].model_copy(update={"read_order": "AMPSECA"}), camera)


def test_a_camera_without_a_place_for_the_frames(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("\n".join(line for line in TEXT.splitlines() if "dark_{section}" not in line))
    with pytest.raises(ConfigError, match="no calibration of kind dark"):
        simulate_survey(tmp_path, SimulationParameters(camera=str(path), dark_e_per_s=1.0))
    camera = load_camera("simulated")
    detector = make_detector(camera.section("S1"), camera, SimulationParameters(), 700.0, np.random.default_rng(0))
    assert not detector.crosstalk
    assert not detector.dark.any()
