"""PSF model, and photometry with it, against pixel-integrated Moffat stars."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, moffat, stamp

from seechange_mpi.gpu_kernels.photometry import psf_photometry, render_sources
from seechange_mpi.gpu_kernels.psf_model import PSFFit, fit_psf, fwhm_of, render, shift_matrices

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
    assert fit.fwhm == pytest.approx(fwhm_of(stamp(SIZE, fwhm)), rel=0.01)
    left = fwhm_of(render(fit, [60.0], [300.0], phase=False)[0])
    right = fwhm_of(render(fit, [560.0], [300.0], phase=False)[0])
    assert right / left == pytest.approx(fwhm_at(1, 560) / fwhm_at(1, 60), abs=0.015)


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 4.5])
def test_psf_fluxes_are_unbiased(fwhm):
    """Less than 3 mmag bias at S/N 500, and no dependence on the sub-pixel phase."""
    data, variance, mask, x, y, flux, _ = field(fwhm)
    r = psf_photometry(data, variance, mask, x + 0.2, y - 0.2, fitted(fwhm))
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


@lru_cache(maxsize=4)
def varying_field(fwhm):
    """324 stars, S/N on the sky 30 to 3000; FWHM varies by ±4 % from corner to corner about `fwhm` in the middle."""
    rng = np.random.default_rng(int(100 * fwhm))
    size = 2 * int(np.ceil(3 * fwhm)) + 1
    step = size + 9
    shape = (19 * step, 19 * step + 4)
    x, y = grid_positions(rng, shape, step)
    noise = 20.0
    error = noise / np.sqrt((stamp(size, fwhm) ** 2).sum())
    flux = error * np.exp(rng.uniform(np.log(30), np.log(3000), len(x)))
    clean = np.zeros(shape)
    # widths to 0.01 pixel: few different ones keep the truth quick
    add_stars(clean, x, y, flux, np.round(width_at(fwhm, shape, x, y), 2), size)
    variance = (clean + noise**2).astype(np.float32)
    data = clean + rng.normal(0, 1, shape) * np.sqrt(variance)
    return data, variance, x, y, flux, size


def width_at(fwhm, shape, x, y):
    return fwhm * (1 + 0.025 * (2 * x / shape[1] - 1) + 0.015 * (2 * y / shape[0] - 1))


def check_model(fit, fwhm, shape, size, profile_error):
    """FWHM within 2 % and the profile within `profile_error` of its peak, rms over the core, all over the field."""
    for fx, fy in ((0.1, 0.1), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.9, 0.9)):
        x, y = fx * shape[1], fy * shape[0]
        truth = stamp(size, width_at(fwhm, shape, x, y))
        found = render(fit, [x], [y], phase=False)[0]
        assert fwhm_of(found) == pytest.approx(fwhm_of(truth), rel=0.02)
        core = truth > 0.05 * truth.max()
        assert np.sqrt(np.mean((found - truth)[core] ** 2)) < profile_error * truth.max()


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 4.5])
def test_varying_moffat_is_recovered(fwhm):
    data, variance, x, y, _, size = varying_field(fwhm)
    rng = np.random.default_rng(2)
    fit = fit_psf(data.astype(np.float32), variance, np.zeros(data.shape, bool), x + rng.normal(0, 0.05, len(x)),
                  y + rng.normal(0, 0.05, len(x)), size=size, degree=1)
    check_model(fit, fwhm, data.shape, size, 0.008)
    assert fit.used.mean() > 0.97
    chi2 = fit.chi2[fit.used]
    # below 2.5 pixels the profile between the pixels is not fully known
    assert np.median(chi2) == pytest.approx(1, abs=0.03 if fwhm > 2.5 else 0.05)
    # chi2 per degree of freedom scatters by √(2 / pixels)
    assert np.mean(np.abs(chi2 - 1) < 4 * np.sqrt(2) / size) > 0.97


@pytest.mark.parametrize("fwhm", [2.2, 4.5])
def test_varying_moffat_among_galaxies_neighbours_and_cosmic_rays(fwhm):
    """A third of the stars is spoilt; galaxies are dropped, and the model holds."""
    data, variance, x, y, flux, size = varying_field(fwhm)
    dirty = data.copy()
    rng = np.random.default_rng(3)
    near, hit, wide, _ = np.split(rng.permutation(len(x)), [40, 80, 110])
    angle = rng.uniform(0, 2 * np.pi, len(near))
    add_stars(dirty, x[near] + 2.2 * fwhm * np.cos(angle), y[near] + 2.2 * fwhm * np.sin(angle), 0.2 * flux[near], fwhm,
              size)
    for k in hit:
        j, i = round(y[k]) + rng.integers(-3, 4), round(x[k]) + rng.integers(-3, 4)
        dirty[j, i: i + 3] += 0.2 * flux[k]
    add_stars(dirty, x[wide], y[wide], flux[wide], 1.8 * fwhm, size)
    fit = fit_psf(dirty.astype(np.float32), variance, np.zeros(data.shape, bool), x, y, size=size, degree=1)
    check_model(fit, fwhm, data.shape, size, 0.012)
    snr = flux / (20.0 / np.sqrt((stamp(size, fwhm) ** 2).sum()))
    assert not fit.used[wide][snr[wide] > 60].any()
    clean = np.setdiff1d(np.arange(len(x)), np.concatenate([near, hit, wide]))
    assert fit.used[clean].mean() > 0.95
    assert fit.used[hit].mean() > 0.8  # their cosmic rays are left out


def test_every_device_fits_the_same_psf(device):
    data, variance, mask, x, y, _, _ = field(3.0)
    near = np.argsort(np.hypot(x - 300, y - 300))[:30]
    data = data.copy()
    data[round(y[near[0]]), round(x[near[0]]) + 5] = np.nan
    here = fit_psf(data, variance, mask, x[near], y[near], size=21)
    there = fit_psf(*(device.asarray(a) for a in (data, variance, mask, x[near], y[near])), size=21)
    basis = device.asnumpy(there.basis)
    assert basis.dtype == np.float32
    assert np.abs(basis - here.basis).max() < 1e-6 * here.basis[0].max()
    assert there.fwhm == pytest.approx(here.fwhm, rel=1e-6)
    assert np.array_equal(there.used, here.used)
    assert there.chi2 == pytest.approx(here.chi2, rel=1e-5)
    # a PSF in host memory serves data on the device
    flux = psf_photometry(*(device.asarray(a) for a in (data, variance, mask, x[near], y[near])), here).flux
    assert device.asnumpy(flux) == pytest.approx(psf_photometry(data, variance, mask, x[near], y[near], here).flux)
    for phase in (True, False):
        stamps = device.asnumpy(render(there, device.asarray(x[:5]), device.asarray(y[:5]), phase=phase))
        assert np.abs(stamps - render(here, x[:5], y[:5], phase=phase)).max() < 1e-6
    assert np.array_equal(device.asnumpy(shift_matrices(device.asarray(x[:5] - np.round(x[:5])), 9, 11)),
                          shift_matrices(x[:5] - np.round(x[:5]), 9, 11))


def test_psf_needs_stars():
    zero = np.zeros((60, 60), np.float32)
    with pytest.raises(ValueError, match=r"fit_psf: size must be odd, found 10"):
        fit_psf(zero, zero + 1, zero == 0, np.array([20.0]), np.array([20.0]), size=10)
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
    assert fwhm_of(p) == pytest.approx(fwhm, rel=0.004 if fwhm > 2.5 else 0.02)
    p[2, 2] = 0.9  # a neighbour does not count
    assert fwhm_of(p) == pytest.approx(fwhm, rel=0.004 if fwhm > 2.5 else 0.02)


def test_rendered_sources_leave_noise():
    """Fit, render and subtract: what is left is noise, edges included."""
    data, variance, mask, x, y, _, _ = field(4.5)
    r = psf_photometry(data, variance, mask, x, y, fitted(4.5))
    left = (data - render_sources(SHAPE, r.x, r.y, r.flux, fitted(4.5))) / np.sqrt(variance)
    assert np.std(left) == pytest.approx(1, abs=0.03)
    assert np.abs(left).max() < 7
    corner = render_sources((20, 20), [-1.0, 30.0], [3.0, 50.0], [100.0, 1.0], stamp(11, 3.0))
    assert 0 < corner.sum() < 50
