"""A raw 4-amplifier file of a camera nobody wrote Python for: the YAML alone makes it seamless."""

from pathlib import Path

import numpy as np
import pytest

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.raw import read_exposure_info, read_section
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.extraction import Detector
from seechange_mpi.pipeline.preprocessing import Preprocessor

YAML = Path(__file__).parents[2] / "docs" / "examples" / "lco-sinistro.yaml"


@pytest.mark.realdata
def test_sinistro_is_seamless(realdata):
    camera = load_camera(YAML)
    info = read_exposure_info(next((realdata / "lco_raw_mef").glob("*.fits")), camera)
    assert (info.filter, info.exp_time_s) == ("w", pytest.approx(94.975))
    assert info.ra_deg == pytest.approx(287.3248, abs=1e-3)
    assert info.dec_deg == pytest.approx(59.4939, abs=1e-3)
    image = Preprocessor(steps_required=["overscan"]).run(read_section(info, camera, "1"), info, {})
    assert image.shape == (1024, 1024)
    d = np.where(image.flags == 0, image.data, np.nan)
    low, high, first, second = slice(487, 511), slice(513, 537), slice(0, 512), slice(512, 1024)
    seams = [(d[first, low], d[first, high]), (d[second, low], d[second, high]), (d[low, first], d[high, first]),
             (d[low, second], d[high, second])]
    for a, b in seams:
        # sky of 299 ADU with 7 ADU noise per pixel: the medians of 12,000 pixels are good to 0.1 ADU
        assert np.nanmedian(a) == pytest.approx(np.nanmedian(b), rel=0.003)
    background = Backgrounder().run(image)
    sources, psf = Detector().extract(image, background)
    # a star on a seam would be split by a wrong flip: the PSF is sharp and one everywhere
    assert 1.5 < psf.fwhm_pixels * camera.pixel_scale_arcsec < 3.5
    assert psf.chi2 < 1.3
    on_seam = np.abs(sources.table["x"] - 511.5) < 3
    assert on_seam.sum() < 0.03 * len(sources.table)


@pytest.mark.realdata
def test_fitted_gains_leave_no_step_at_any_seam(realdata, tmp_path):
    """From the headers' gains, which are wrong by up to 1.5 %."""
    text = YAML.read_text()
    for fitted, header in (("6.327", "6.42"), ("6.289", "6.23"), ("6.255", "6.27"), ("6.308", "6.26")):
        assert f"gain: {fitted}" in text
        text = text.replace(f"gain: {fitted}", f"gain: {header}")
    path = tmp_path / "header.yaml"
    path.write_text(text)
    camera = load_camera(path)
    info = read_exposure_info(next((realdata / "lco_raw_mef").glob("*.fits")), camera)
    raw = read_section(info, camera, "1")
    steps = {}
    for method in ("header", "fit"):
        image = Preprocessor(steps_required=["overscan"], gain_match=method).run(raw, info, {})
        d = np.where(image.flags == 0, image.data, np.nan)
        low, high, first, second = slice(487, 511), slice(513, 537), slice(0, 512), slice(512, 1024)
        steps[method] = max(abs(sky(a) - sky(b)) for a, b in (
            (d[first, low], d[first, high]), (d[second, low], d[second, high]), (d[low, first], d[high, first]),
            (d[low, second], d[high, second])))
    # the noise of the mean of 100 pixels
    least = 0.1 / np.sqrt(np.median(image.weight[image.weight > 0]))
    assert steps["fit"] < least < 0.3 * steps["header"]
    assert set(image.metrics) >= {f"gain_factor_{n}" for n in "1234"}


def sky(pixels):
    """Mean without stars; a median of whole counts is a whole count."""
    v = pixels[np.isfinite(pixels)]
    middle = np.median(v)
    return v[np.abs(v - middle) < 2.5 * 1.4826 * np.median(np.abs(v - middle))].mean()
