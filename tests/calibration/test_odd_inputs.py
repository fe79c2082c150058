"""Inputs that are missing, broken or unlike the others: named, left out, and the frame is made of the rest."""

import shutil

import numpy as np
import pytest
from astropy.io import fits


def rejected(outcome):
    assert outcome.error == ""
    return {r.identifier: r.reason for r in outcome.rejected}


def add_gradient(data):
    data[:, 33:433] += np.linspace(-6, 6, 400)[None, :]


def add_offset(data):
    data[:, 33:433] += 4.0


def add_noise(data):
    data += np.random.default_rng(3).normal(0, 5, data.shape)


@pytest.mark.parametrize(("change", "words"), [
    (add_offset, "level is off that of the others by 1.0"), (add_gradient, "shape departs from the others"),
    (add_noise, "pixel noise is 1.")])
def test_an_odd_bias_is_left_out_and_named(lab, frames, tmp_path, change, words):
    odd = lab.altered(lab.of("bias")[3], tmp_path, change)
    outcome = lab.make("bias", [*lab.of("bias"), odd], out=tmp_path)
    reasons = rejected(outcome)
    assert list(reasons) == [odd.stem]
    assert words in reasons[odd.stem]
    assert "calibration." in reasons[odd.stem], "says which setting decides"
    np.testing.assert_array_equal(fits.getdata(outcome.frame.path), fits.getdata(frames["bias"].frame.path))
    assert f"left out: {odd.stem}" in str(fits.getheader(outcome.frame.path)["HISTORY"])


def test_broken_files_are_left_out_one_by_one(lab, frames, tmp_path):
    cut = tmp_path / "cut.fits"
    cut.write_bytes(lab.of("bias")[0].read_bytes()[:200_000])
    twice = tmp_path / "twice.fits"
    shutil.copy(lab.of("bias")[1], twice)
    lacking = tmp_path / "lacking.fits"
    with fits.open(lab.of("bias")[2]) as hdus:
        fits.HDUList([hdus[0]]).writeto(lacking)
    small = tmp_path / "small.fits"
    with fits.open(lab.of("bias")[2]) as hdus:
        hdus["C1"].data = hdus["C1"].data[:200]
        hdus.writeto(small)
    outcome = lab.make("bias", [*lab.of("bias"), cut, twice, lacking, small], out=tmp_path)
    reasons = rejected(outcome)
    assert "truncated" in reasons["cut"]
    assert "the same pixels as" in reasons["twice"] or "the same pixels as twice" in " ".join(reasons.values())
    assert "HDU C1" in reasons["lacking"]
    assert "for section [33:232,1:320]" in reasons["small"]
    assert len(reasons) == 4
    np.testing.assert_array_equal(fits.getdata(outcome.frame.path), fits.getdata(frames["bias"].frame.path))


def test_too_few_inputs_say_why(lab, tmp_path):
    cut = tmp_path / "cut.fits"
    cut.write_bytes(lab.of("bias")[0].read_bytes()[:200_000])
    outcome = lab.make("bias", [*lab.of("bias")[:2], cut], out=tmp_path)
    assert outcome.frame is None
    assert not outcome.is_bug
    assert "bias of section C1: 2 good inputs, at least 3 are needed (calibration.min_inputs)" in outcome.error
    assert "cut.fits" in outcome.error
    assert not list((tmp_path / "out").glob("**/*.fits"))


def test_flats_too_faint_or_saturated_are_refused_with_the_figures(lab, tmp_path):
    def fade(data):
        data[:, 32:432] = 1000 + 0.02 * (data[:, 32:432] - 1000)

    def burn(data):
        data[:] = np.minimum(1000 + 3.55 * (data - 1000), 60000)

    faint = [lab.altered(f, tmp_path / "f", fade) for f in lab.of("dome_10")[:4]]
    outcome = lab.make("flat", faint, light="dome", out=tmp_path)
    assert outcome.frame is None
    assert "too faint: " in outcome.error
    assert "at least 5000 are needed (calibration.flat_min_electrons)" in outcome.error
    burnt = [lab.altered(f, tmp_path / "b", burn) for f in lab.of("dome_10")[:2]]
    outcome = lab.make("flat", [*lab.of("dome_10"), *burnt], light="dome", out=tmp_path)
    reasons = rejected(outcome)
    assert set(reasons) == {b.stem for b in burnt}
    assert all("saturated" in r and "calibration.max_satur" in r for r in reasons.values())


def test_flats_of_another_shape_or_level_are_left_out(lab, frames, tmp_path):
    def shade(data):
        data[:, 32:432] = 1000 + (data[:, 32:432] - 1000) * np.linspace(0.8, 1.2, 320)[:, None]

    cloudy = lab.altered(lab.of("dome_10")[2], tmp_path, shade)
    outcome = lab.make("flat", [*lab.of("dome"), cloudy], light="dome", out=tmp_path)
    reasons = rejected(outcome)
    assert "shape departs from the others by 11" in reasons[cloudy.stem]
    assert all("of the others, allowed are 1/3 to 3" in reasons[f.stem] for f in lab.of("dome_15"))
    assert outcome.frame.quality["n_inputs"] == 8


def test_darks_without_exposure_time(lab, frames, tmp_path):
    outcome = lab.make("dark", [*lab.of("dark"), lab.of("bias")[0]], calibration={"bias": frames["bias"].frame.path},
                       out=tmp_path)
    assert rejected(outcome) == {lab.of("bias")[0].stem: "its exposure time is 0 s"}


def test_fringes_need_a_flat(lab, tmp_path):
    outcome = lab.make("fringe", lab.of("sky"), out=tmp_path)
    assert outcome.frame is None
    assert "fringes need a flat of the filter; make or register one (seechange-mpi calib make flat" in outcome.error


def test_required_frames(lab, tmp_path):
    outcome = lab.make("dark", lab.of("dark"), out=tmp_path, required=["bias"])
    assert "there is no bias frame (calibration.required)" in outcome.error
    assert lab.make("dark", lab.of("dark"), out=tmp_path).error == ""


def test_bad_pixels_of_nothing(lab, tmp_path):
    outcome = lab.make("badpixels", lab.of("dome")[:2], out=tmp_path)
    assert outcome.frame is None
    assert "0 good inputs" in outcome.error
    assert "flats for the badpixels of section C1: 2 good inputs" in outcome.error


def test_a_bias_of_another_shape_is_one_clear_error(lab, tmp_path):
    path = tmp_path / "bias.fits"
    fits.PrimaryHDU(np.zeros((10, 10), np.float32)).writeto(path)
    outcome = lab.make("dark", lab.of("dark"), calibration={"bias": str(path)}, out=tmp_path)
    assert outcome.frame is None
    assert not outcome.is_bug
    assert "expected 400×320 pixels as the section, found 10×10" in outcome.error
