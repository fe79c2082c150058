"""Preprocessing against truth: pixels, variance, flags, and every way an input can be unusable."""

import numpy as np
import pytest
from astropy.io import fits

from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.flags import Correction, PixelFlag
from seechange_mpi.model.products import RawAmplifier, RawSection
from seechange_mpi.pipeline.preprocessing import Preprocessor

NY, NX = 200, 256
EXPOSURE = ExposureInfo("exp1", "simulated", "exp1.fits", 60000.0, 30.0, "r")
ALL = Correction.OVERSCAN | Correction.ZERO | Correction.FLAT | Correction.BAD_PIXEL_MAP
GAINS, NOISES, PEDESTALS = (1.5, 2.5), (5.0, 8.0), (1000.0, 1300.0)


class Raw:
    """A raw two-amplifier section with everything wrong that preprocessing puts right."""

    def __init__(self, tmp_path, sky_e=900.0, seed=0, cosmics=0):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:NY, :NX]
        self.flat = (1.0 + 0.05 * np.sin(x / 40) - 0.1 * (y / NY - 0.5)).astype(np.float32)
        self.flat /= np.median(self.flat)
        self.bias = (3.0 * np.cos(y / 15)).astype(np.float32)
        self.bad = np.zeros((NY, NX), np.uint8)
        self.bad[:, 77] = 1
        self.electrons = np.full((NY, NX), sky_e)
        self.electrons[40:44, 40:44] = 4e5
        self.rows = rng.normal(0, 4, NY)
        amps = []
        for k, x0 in enumerate((0, NX // 2)):
            part = slice(x0, x0 + NX // 2)
            e = rng.poisson(self.electrons[:, part] * self.flat[:, part]) + rng.normal(0, NOISES[k], (NY, NX // 2))
            if cosmics and k == 0:
                e[100, 20:32] += 5000
            adu = e / GAINS[k] + PEDESTALS[k] + self.bias[:, part] + self.rows[:, None]
            over = rng.normal(0, NOISES[k], (NY, 40)) / GAINS[k] + PEDESTALS[k] + self.rows[:, None]
            data = np.minimum(adu, 50000)
            amps.append(RawAmplifier(data.astype(np.float32), over.astype(np.float32), x0, 0, GAINS[k], NOISES[k],
                                     50000.0, "AB"[k]))
        self.section = RawSection("S1", "r", (NY, NX), amps)
        self.calibration = {}
        for kind in ("bias", "flat"):
            self.write(tmp_path, kind, getattr(self, kind))
        self.write(tmp_path, "badpixels", self.bad)

    def write(self, folder, kind, data):
        path = folder / f"{kind}.fits"
        fits.PrimaryHDU(data).writeto(path, overwrite=True)
        self.calibration[kind] = str(path)


@pytest.fixture
def raw(tmp_path):
    return Raw(tmp_path)


def test_pixels_are_flat_and_in_common_units(raw):
    image = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    assert image.data.dtype == np.float32
    assert image.weight.dtype == np.float32
    assert image.flags.dtype == np.uint16
    assert image.gain == pytest.approx(np.mean(GAINS), rel=2e-3)
    good = image.flags == 0
    left, right = (good & (np.arange(NX)[None, :] // (NX // 2) == k) for k in (0, 1))
    truth = 900.0 / image.gain
    assert np.mean(image.data[left]) == pytest.approx(truth, rel=3e-3)
    assert np.mean(image.data[right]) == pytest.approx(truth, rel=3e-3)
    # neither the flat's slope, nor rows of the pedestal, nor the bias pattern are left
    quarters = [np.mean(image.data[i: i + 50][good[i: i + 50]]) for i in range(0, NY, 50)]
    assert np.ptp(quarters) < 0.01 * truth
    assert image.preproc_bitflag == ALL
    assert set(image.inputs) == {"bias", "flat", "badpixels"}
    assert image.inputs["flat"].startswith("flat.fits:")


@pytest.mark.parametrize("sky_e", [40.0, 900.0, 20000.0])
def test_weight_is_the_inverse_of_the_true_variance(tmp_path, sky_e):
    raw = Raw(tmp_path, sky_e)
    image = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    good = image.flags == 0
    pull = (image.data - sky_e / image.gain) * np.sqrt(image.weight)
    for half in (slice(0, NX // 2), slice(NX // 2, NX)):
        # each amplifier has its own read noise; the scatter of 25,000 pixels is known to half a per cent
        assert np.std(pull[:, half][good[:, half]]) == pytest.approx(1.0, abs=0.03)
    assert (image.weight[~good] == 0).all()
    assert (image.weight[good] > 0).all()


def test_flags_and_growth(raw):
    raw.section.amplifiers[0].data[10, 10] = np.nan
    image = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    assert (image.flags[:, 77] & PixelFlag.BAD_PIXEL).all()
    assert image.flags[10, 10] == PixelFlag.NO_DATA
    assert image.data[10, 10] == 0
    assert np.isfinite(image.data).all()
    assert np.isfinite(image.weight).all()
    saturated = (image.flags & PixelFlag.SATURATED) != 0
    grown = np.zeros_like(saturated)
    grown[39:45, 39:45] = True
    assert (saturated == grown).all()
    # the amplifier that saturates first decides
    assert image.saturation_adu == pytest.approx((50000 - 1000) * 1.5 / 2.0, rel=1e-3)


def test_cosmic_ray_is_flagged_on_request(tmp_path):
    raw = Raw(tmp_path, cosmics=1)
    image = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    hits = (image.flags & PixelFlag.COSMIC_RAY) != 0
    assert hits[100, 20:32].all()
    assert hits.sum() < 45
    off = Preprocessor(cosmic_rays=False).run(raw.section, EXPOSURE, raw.calibration)
    assert not (off.flags & PixelFlag.COSMIC_RAY).any()


@pytest.mark.parametrize("kind", ["bias", "flat", "badpixels"])
def test_missing_frame_is_an_error_or_skipped_but_never_recorded(raw, kind):
    calibration = {k: v for k, v in raw.calibration.items() if k != kind}
    with pytest.raises(BadInput, match=f"{kind} frame of section S1"):
        Preprocessor().run(raw.section, EXPOSURE, calibration)
    image = Preprocessor(missing_calibration="skip").run(raw.section, EXPOSURE, calibration)
    assert kind not in image.inputs
    bit = {"bias": Correction.ZERO, "flat": Correction.FLAT, "badpixels": Correction.BAD_PIXEL_MAP}[kind]
    assert image.preproc_bitflag == ALL & ~bit


def test_missing_overscan(raw):
    raw.section.amplifiers[1].overscan = None
    with pytest.raises(BadInput, match="overscan region"):
        Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    image = Preprocessor(missing_calibration="skip").run(raw.section, EXPOSURE, raw.calibration)
    assert not image.preproc_bitflag & Correction.OVERSCAN


def test_frame_of_another_shape_names_the_file(raw, tmp_path):
    raw.write(tmp_path, "flat", raw.flat[:-1])
    with pytest.raises(BadInput, match=r"flat.fits: flat frame: expected 256×200 pixels as the section, found 256×199"):
        Preprocessor().run(raw.section, EXPOSURE, raw.calibration)


def test_unreadable_frame(raw, tmp_path):
    (tmp_path / "bias.fits").write_text("not FITS")
    with pytest.raises(BadInput, match="bias frame"):
        Preprocessor().run(raw.section, EXPOSURE, raw.calibration)


def test_flat_in_counts_keeps_the_gain_consistent(raw, tmp_path):
    image = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    raw.write(tmp_path, "flat", raw.flat * 20000)
    counts = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    good = (image.flags == 0) & (counts.flags == 0)
    np.testing.assert_allclose((counts.data * counts.gain)[good], (image.data * image.gain)[good], rtol=1e-4)
    np.testing.assert_allclose((counts.data * np.sqrt(counts.weight))[good], (image.data * np.sqrt(image.weight))[good],
                               rtol=1e-3)


def test_dead_flat_pixels_are_bad(raw, tmp_path):
    raw.flat[5, 6] = 0.0
    raw.flat[7, 8] = np.nan
    raw.write(tmp_path, "flat", raw.flat)
    image = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    assert image.flags[5, 6] & PixelFlag.BAD_PIXEL
    assert image.flags[7, 8] & PixelFlag.BAD_PIXEL


def test_mostly_bad_section_is_refused(raw):
    for amp in raw.section.amplifiers:
        amp.data[:] = np.nan
    with pytest.raises(BadInput, match=r"exp1\.fits: section S1"):
        Preprocessor().run(raw.section, EXPOSURE, raw.calibration)


@pytest.mark.parametrize("gain", [0.0, -1.0, np.nan])
def test_impossible_gain(raw, gain):
    raw.section.amplifiers[0].gain = gain
    with pytest.raises(BadInput, match="gain > 0"):
        Preprocessor().run(raw.section, EXPOSURE, raw.calibration)


def test_unknown_correction():
    with pytest.raises(ConfigError, match=r"unknown 'fringes'; there are: overscan, crosstalk, zero, linearity, dark, "
                                          "flat, illumination, fringe, badpixels"):
        Preprocessor(steps_required=["overscan", "fringes"]).run(
            RawSection("S1", "r", (4, 4), []), EXPOSURE, {})


def reduced(sky, subtracted, seed=1, weight=None):
    rng = np.random.default_rng(seed)
    data = rng.normal(0 if subtracted else sky, 8.0, (NY, NX)).astype(np.float32)
    data[50:60, 50:60] += 5000
    data[3, 4] = np.nan
    mask = np.zeros((NY, NX), bool)
    mask[:, 9] = True
    amp = RawAmplifier(data, None, 0, 0, 4.0, 7.0, 44000.0)
    return RawSection("1", "r", (NY, NX), [amp], reduced=True, weight=weight, mask=mask, sky_subtracted=subtracted)


@pytest.mark.parametrize("subtracted", [False, True])
def test_reduced_image_gets_flags_and_a_measured_weight(subtracted):
    image = Preprocessor(cosmic_rays=False).run(reduced(180.0, subtracted), EXPOSURE, {})
    assert image.preproc_bitflag == 0
    assert (image.flags[:, 9] & PixelFlag.BAD_PIXEL).all()
    assert image.flags[3, 4] & PixelFlag.NO_DATA
    empty = (image.flags == 0) & (np.arange(NX)[None, :] > 100)
    assert np.median(1 / np.sqrt(image.weight[empty])) == pytest.approx(8.0, rel=0.03)
    # source noise on top: 5000 ADU at 4 e-/ADU
    assert 1 / image.weight[55, 55] == pytest.approx(64 + 5000 / 4, rel=0.03)


def test_delivered_weight_is_kept():
    weight = np.full((NY, NX), 0.01, np.float32)
    weight[20, 20] = 0
    image = Preprocessor(cosmic_rays=False).run(reduced(180.0, False, weight=weight), EXPOSURE, {})
    assert image.weight[100, 100] == pytest.approx(0.01)
    assert image.flags[20, 20] & PixelFlag.ZERO_WEIGHT


def test_inputs_are_not_changed_and_runs_repeat(raw):
    before = raw.section.amplifiers[0].data.copy()
    one = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    two = Preprocessor().run(raw.section, EXPOSURE, raw.calibration)
    assert np.array_equal(raw.section.amplifiers[0].data, before)
    for name in ("data", "weight", "flags"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
