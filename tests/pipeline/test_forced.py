"""Forced photometry in artificial difference images: honest errors, limits, flags, footprints."""

import numpy as np
import pytest

from seechange_mpi.config.history import ForcedPhotometrySettings
from seechange_mpi.gpu_kernels.photometry import EDGE, MASKED, SKIPPED, render_sources
from seechange_mpi.io.difference import Difference
from seechange_mpi.model.products import SourceList, WorldCoordinates, ZeroPoint
from seechange_mpi.model.tables import SOURCES, empty_table
from seechange_mpi.pipeline.forced import BRIGHT, OUTSIDE, force, inside
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky, sip_header

SHAPE, NOISE = (600, 500), 10.0
SETTINGS = ForcedPhotometrySettings()
HEADER = sip_header((249.5, 299.5), (0.01, 60.0), np.array([[-1.0, 0.1], [0.1, 1.0]]) / 3600, {}, {}, {}, {})


def gaussian(fwhm=3.4, size=25):
    u = np.arange(size) - size // 2
    p = np.exp(-4 * np.log(2) * (u[:, None] ** 2 + u[None, :] ** 2) / fwhm**2)
    return (p / p.sum()).astype(np.float32)


def difference(x=(), y=(), flux=(), seed=1, noise=NOISE, zp=None):
    """White noise with point sources of either sign."""
    rng = np.random.default_rng(seed)
    data = rng.normal(0, noise, SHAPE)
    if len(x):
        data += render_sources(SHAPE, np.asarray(x, float), np.asarray(y, float), np.asarray(flux, float), gaussian())
    return Difference(data.astype(np.float32), np.full(SHAPE, 1 / noise**2, np.float32), np.zeros(SHAPE, np.uint16),
                      gaussian(), WorldCoordinates(HEADER, "catalog"), zp or ZeroPoint(27.0, 0.01, "catalog"))


def places(step=25):
    gy, gx = np.mgrid[20: SHAPE[0] - 20: step, 20: SHAPE[1] - 20: step]
    rng = np.random.default_rng(3)
    return gx.ravel() + rng.uniform(-3, 3, gx.size), gy.ravel() + rng.uniform(-3, 3, gx.size)


def at(d, x, y, settings=SETTINGS):
    return force(d, *pixel_to_sky(HEADER, np.asarray(x, float), np.asarray(y, float)), settings)


def test_fluxes_of_either_sign_have_honest_errors():
    x, y = places()
    flux = np.random.default_rng(2).normal(0, 800, len(x))
    out = at(difference(x, y, flux), x, y)
    assert (out["flags"] == 0).all()
    assert np.abs(out["x"] - x).max() < 1e-3
    for kind in ("psf", "aperture"):
        pull = (out[f"flux_{kind}"] - flux) / out[f"flux_{kind}_err"]
        assert np.std(pull) == pytest.approx(1.0, abs=0.1)
        assert abs(pull.mean()) < 4 / np.sqrt(len(x))
    # the whole PSF would have the error σ / √Σ P²; the disc has a little more
    least = NOISE / np.sqrt((gaussian().astype(float) ** 2).sum())
    assert (out["flux_psf_err"] < 1.03 * least).all()
    assert (out["flux_aperture_err"] > out["flux_psf_err"]).all()
    assert np.mean(out["chi2_psf"]) == pytest.approx(1.0, abs=0.05)


def test_half_of_what_lies_at_the_limit_is_above_it():
    x, y = places()
    empty = at(difference(seed=7), x, y)
    flux = 10 ** (-0.4 * (empty["lim_mag"] - empty["zp"]))
    assert flux == pytest.approx(5 * empty["flux_psf_err"], rel=1e-4)
    assert empty["image_lim_mag"] == pytest.approx(empty["lim_mag"], abs=0.03)
    out = at(difference(x, y, flux, seed=8), x, y)
    assert np.mean(out["flux_psf"] > 5 * out["flux_psf_err"]) == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(len(x)))
    assert np.mean(empty["flux_psf"] > 5 * empty["flux_psf_err"]) == 0


def test_masked_pixels_edges_and_places_outside_are_told_apart():
    d = difference([100, 200], [100, 200], [5000, 5000])
    d.flags[100, 98:100] = 1
    d.flags[195:206, 195:206] = 4
    d.weight[d.flags != 0] = 0
    d.data[d.flags != 0] = 0
    x = [100, 200, 300, 1, -3, 300, 300, 1e5]
    y = [100, 200, 300, 300, 300, -0.4, 599.6, 300]
    out = at(d, x, y)
    assert list(out["flags"] & (MASKED | EDGE | SKIPPED | OUTSIDE)) == [
        MASKED, MASKED | SKIPPED, 0, EDGE, EDGE | OUTSIDE | SKIPPED, EDGE, EDGE | OUTSIDE | SKIPPED,
        EDGE | OUTSIDE | SKIPPED]
    lost = np.array([False, True, False, False, True, False, True, True])
    for name in ("flux_psf", "flux_psf_err", "lim_mag"):
        assert list(np.isnan(out[name])) == list(lost), name
    # a few masked pixels: the PSF's flux is still right, the aperture's would not be
    assert abs(out["flux_psf"][0] - 5000) < 5 * out["flux_psf_err"][0]
    assert np.isnan(out["flux_aperture"][0])
    assert out["nbadpix"][0] == 2
    assert out["flux_psf_err"][0] > out["flux_psf_err"][2]
    assert np.isfinite(out["zp"]).all()


def test_an_image_without_a_good_pixel_gives_no_flux():
    d = difference()
    d.weight[:] = 0
    out = at(d, [100, 200], [100, 200])
    assert np.isnan(out["flux_psf"]).all()
    assert np.isnan(out["image_lim_mag"]).all()
    assert ((out["flags"] & SKIPPED) != 0).all()


def test_the_zero_point_is_that_of_the_place():
    zp = ZeroPoint(27.0, 0.01, "catalog", map=(0.1, 0.0), map_shape=SHAPE)
    out = at(difference(zp=zp), [0.0, 499.0, 249.5], [300, 300, 300])
    assert out["zp"] == pytest.approx([26.9, 27.1, 27.0], abs=1e-4)


def test_settings_change_the_disc_and_the_limit():
    d = difference()
    wide = at(d, [100.0], [100.0], ForcedPhotometrySettings(radius_fwhms=2.5, aperture_fwhms=2.0, limit_sigma=3))
    plain = at(d, [100.0], [100.0])
    assert wide["flux_psf_err"][0] < plain["flux_psf_err"][0]
    assert wide["aper_radius"][0] == pytest.approx(2 * plain["aper_radius"][0])
    assert wide["lim_mag"][0] - plain["lim_mag"][0] > 2.5 * np.log10(5 / 3) - 1e-3


def test_fluxes_beside_a_very_bright_source_are_marked():
    d = difference()
    t = empty_table(SOURCES, 3)
    error = at(d, [100.0], [100.0])["flux_psf_err"][0]
    t["x"], t["y"], t["flux_psf"] = [100, 300, np.nan], [100, 300, 50], np.array([600, 400, 900]) * error
    d.sources = SourceList(t, (1.0, 2.0, 3.0, 5.0))
    x, y = [100.0, 110.0, 116.0, 300.0, 1e5], [100.0, 100.0, 100.0, 300.0, 50.0]
    assert list(at(d, x, y)["flags"] & BRIGHT) == [BRIGHT, BRIGHT, 0, 0, 0]
    never = ForcedPhotometrySettings(bright_fwhms=0)
    assert not (at(d, x, y, never)["flags"] & BRIGHT).any()


def test_no_positions_no_rows():
    assert len(at(difference(), [], [])) == 0


@pytest.mark.parametrize("centre", [(150.0, 2.0), (0.0, -5.0), (20.0, 89.99), (0.0, 90.0), (300.0, -89.95)])
def test_footprints_hold_what_lies_on_the_image(centre):
    header = sip_header((249.5, 299.5), centre, np.array([[-1.0, 0.3], [0.3, 1.0]]) / 3600, {}, {}, {}, {})
    cx, cy = np.array([0, 0, 499, 499, 0.0]), np.array([0, 599, 0, 599.0, 0])
    corners = np.stack(pixel_to_sky(header, cx, cy), axis=1)[[0, 3, 1, 2]]
    rng = np.random.default_rng(6)
    x, y = rng.uniform(-300, 800, 2000), rng.uniform(-300, 900, 2000)
    on = (x >= 0) & (x <= 499) & (y >= 0) & (y <= 599)
    near = (x >= -4) & (x <= 503) & (y >= -4) & (y <= 603)
    found = inside(corners, *pixel_to_sky(header, x, y))
    assert found[on].all()
    assert not found[~near].any()
    opposite = inside(corners, [(centre[0] + 180) % 360], [-centre[1]])
    assert not opposite[0]
