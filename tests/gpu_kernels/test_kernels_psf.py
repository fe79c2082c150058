"""PSF model, PSF photometry, apertures and moments against pixel-integrated Moffat stars."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, moffat, stamp

from seechange_mpi.gpu_kernels import photometry as phot
from seechange_mpi.gpu_kernels.psf_model import PSFFit, fit_psf, fwhm_of, render

SHAPE = (600, 620)
NOISE = 10.0
SIZE = 31


def fwhm_at(fwhm, x):
    """FWHM varies by ±2 % over the field."""
    return fwhm * (1 + 0.02 * (np.asarray(x) - SHAPE[1] / 2) / (SHAPE[1] / 2))


@lru_cache(maxsize=4)
def field(fwhm):
    """A field of 196 stars with S/N near 500, and what is true of it."""
    rng = np.random.default_rng(int(10 * fwhm))
    x, y = grid_positions(rng, SHAPE, 40)
    # S/N 500 for photon noise of the star and the sky together at gain 1
    p2 = (stamp(SIZE, fwhm) ** 2).sum()
    flux = np.full(len(x), 0.5 * 500**2 * (1 + np.sqrt(1 + 4 * NOISE**2 / p2 / 500**2))) * rng.uniform(0.4, 1.0, len(x))
    clean = np.zeros(SHAPE)
    add_stars(clean, x, y, flux, fwhm_at(fwhm, x), SIZE)
    variance = clean + NOISE**2
    data = (clean + rng.normal(0, 1, SHAPE) * np.sqrt(variance)).astype(np.float32)
    return data, variance.astype(np.float32), np.zeros(SHAPE, bool), x, y, flux, rng


@lru_cache(maxsize=4)
def fitted(fwhm) -> PSFFit:
    data, variance, mask, x, y, _, _ = field(fwhm)
    rng = np.random.default_rng(1)
    return fit_psf(data, variance, mask, x + rng.normal(0, 0.05, len(x)), y + rng.normal(0, 0.05, len(x)),
                   size=SIZE, degree=1)


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 4.5])
def test_fit_describes_the_stars(fwhm):
    fit = fitted(fwhm)
    assert fit.used.sum() >= 0.9 * len(fit.used)
    assert np.median(fit.chi2[fit.used]) == pytest.approx(1.0, abs=0.12)
    # below 2.5 pixels the profile between the pixels is not fully known
    assert fit.fwhm == pytest.approx(fwhm_of(stamp(SIZE, fwhm)), rel=0.02 if fwhm > 2.5 else 0.04)
    left = fwhm_of(render(fit, [60.0], [300.0], phase=False)[0])
    right = fwhm_of(render(fit, [560.0], [300.0], phase=False)[0])
    assert right / left == pytest.approx(fwhm_at(1, 560) / fwhm_at(1, 60), abs=0.015)


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 4.5])
def test_psf_fluxes_are_unbiased(fwhm):
    """Less than 3 mmag bias at S/N 500, and no dependence on the sub-pixel phase."""
    data, variance, mask, x, y, flux, _ = field(fwhm)
    r = phot.psf_photometry(data, variance, mask, x + 0.2, y - 0.2, fitted(fwhm))
    assert (r.flags == 0).all()
    ratio = r.flux / flux
    assert abs(np.mean(ratio) - 1) < 0.003
    assert np.std((r.flux - flux * np.mean(ratio)) / r.flux_err) < 1.3
    centre = np.hypot(x - np.round(x), y - np.round(y)) < 0.3
    assert abs(np.mean(ratio[centre]) - np.mean(ratio[~centre])) < 0.003
    # where the centre of the PSF is follows from the given positions, up to a plane
    plane = np.stack([np.ones_like(x), x, y], axis=1)
    dx = r.x - x
    dx -= plane @ np.linalg.lstsq(plane, dx, rcond=None)[0]
    assert np.std(dx / r.x_err) < 1.5
    assert np.std(dx) < 0.01
    assert abs(np.mean(r.x - x)) < 0.01
    assert abs(np.mean(r.y - y)) < 0.01


def test_bad_stars_do_not_spoil_the_psf():
    """Neighbours, cosmic rays and a saturated star among the stars: the profile stays."""
    data, variance, mask, x, y, flux, _ = field(3.0)
    rng = np.random.default_rng(7)
    dirty = data.copy().astype(float)
    victims = rng.choice(len(x), 24, replace=False)
    add_stars(dirty, x[victims[:12]] + 5, y[victims[:12]] + 3, 0.3 * flux[victims[:12]], 3.0, SIZE)
    for k in victims[12:20]:
        j, i = round(y[k]), round(x[k])
        dirty[j - 1: j + 2, i + 1] += 0.2 * flux[k]
    for k in victims[20:]:
        j, i = round(y[k]), round(x[k])
        cut = dirty[j - 3: j + 4, i - 3: i + 4]
        np.minimum(cut, 0.3 * cut.max(), out=cut)
    fit = fit_psf(dirty.astype(np.float32), variance, mask, x, y, size=SIZE, degree=1)
    clean = fitted(3.0)
    a = render(fit, [300.0], [300.0], phase=False)[0]
    b = render(clean, [300.0], [300.0], phase=False)[0]
    assert np.abs(a - b).max() < 0.01 * b.max()
    assert fit.used[np.setdiff1d(np.arange(len(x)), victims)].mean() > 0.85


def test_psf_needs_stars():
    zero = np.zeros((60, 60), np.float32)
    with pytest.raises(ValueError, match="0 usable stars of 2, at least 3"):
        fit_psf(zero, zero + 1, zero == 0, np.array([20.0, 40.0]), np.array([20.0, 40.0]), size=11)


def test_few_stars_lower_the_degree():
    data, variance, mask, x, y, _, _ = field(3.0)
    near = np.argsort(np.hypot(x - 300, y - 300))[:8]
    fit = fit_psf(data, variance, mask, x[near], y[near], size=21, degree=2)
    assert fit.degree == 0
    assert fit.basis.shape == (1, 21, 21)


def test_render_phases_and_sizes():
    fit = fitted(3.0)
    x, y = np.array([100.0, 300.3, 501.5]), np.array([100.0, 200.6, 399.7])
    p = render(fit, x, y)
    assert p.shape == (3, SIZE, SIZE)
    assert p.dtype == np.float32
    u = np.arange(SIZE) - SIZE // 2
    flat = render(fit, x, y, phase=False)
    assert flat.sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)
    core = np.abs(u) <= 6
    for k in range(3):
        c = p[k][np.ix_(core, core)]
        truth = moffat(SIZE, fwhm_at(3.0, x[k]), x[k] - np.round(x[k]), y[k] - np.round(y[k]))[np.ix_(core, core)]
        assert np.abs(c - truth).max() < 0.01 * truth.max()
    small = render(fit, x, y, size=15, phase=False)
    assert small.shape == (3, 15, 15)
    assert small.sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)
    large = render(fit, x, y, size=41)
    assert np.allclose(large[:, 5:-5, 5:-5], p, atol=1e-6)


@pytest.mark.parametrize("fwhm", [2.0, 3.3, 5.7])
def test_fwhm_of_a_profile(fwhm):
    u = np.arange(41) - 20
    sigma = fwhm / 2.3548
    p = np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / sigma**2)
    assert fwhm_of(p) == pytest.approx(fwhm, rel=0.02 if fwhm > 2.5 else 0.04)
    p[2, 2] = 0.9  # a neighbour does not count
    assert fwhm_of(p) == pytest.approx(fwhm, rel=0.02 if fwhm > 2.5 else 0.04)


def test_rendered_sources_leave_noise():
    """Fit, render and subtract: what is left is noise, edges included."""
    data, variance, mask, x, y, _, _ = field(4.5)
    r = phot.psf_photometry(data, variance, mask, x, y, fitted(4.5))
    left = (data - phot.render_sources(SHAPE, r.x, r.y, r.flux, fitted(4.5))) / np.sqrt(variance)
    assert np.std(left) == pytest.approx(1, abs=0.03)
    assert np.abs(left).max() < 7
    corner = phot.render_sources((20, 20), [-1.0, 30.0], [3.0, 50.0], [100.0, 1.0], stamp(11, 3.0))
    assert 0 < corner.sum() < 50
