"""Joint PSF photometry of overlapping sources against truth; star/galaxy measure; on every device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from kernel_truth import add_stars, stamp

from seechange_mpi.gpu_kernels.backend import asnumpy
from seechange_mpi.gpu_kernels.joint import joint_photometry
from seechange_mpi.gpu_kernels.photometry import SKIPPED, psf_photometry

FWHM, SKY, SIZE = 3.6, 8.0, 29


def image_of(x, y, flux, shape, seed, fwhm=FWHM):
    """Data and variance of stars in Poisson noise of gain 1 over a subtracted sky."""
    rng = np.random.default_rng(seed)
    clean = np.zeros(shape)
    add_stars(clean, x, y, flux, fwhm, SIZE)
    variance = clean + SKY**2
    data = clean + np.sqrt(variance) * rng.standard_normal(shape)
    return data.astype(np.float32), variance.astype(np.float32)


@lru_cache(maxsize=4)
def pairs(separation: float, ratio: float, seed: int):
    """A grid of close pairs, with angles and phases at random."""
    rng = np.random.default_rng(seed)
    gy, gx = (g.ravel() for g in np.mgrid[25:490:33, 25:490:33])
    x, y = gx + rng.uniform(-0.5, 0.5, gx.size), gy + rng.uniform(-0.5, 0.5, gy.size)
    angle = rng.uniform(0, 2 * np.pi, gx.size)
    x2, y2 = x + separation * np.cos(angle), y + separation * np.sin(angle)
    flux = 10 ** rng.uniform(4.0, 4.6, gx.size)
    allx, ally, allf = np.r_[x, x2], np.r_[y, y2], np.r_[flux, ratio * flux]
    return allx, ally, allf, *image_of(allx, ally, allf, (512, 512), seed)


def measured(x, y, data, variance, seed=1, **options):
    rng = np.random.default_rng(seed)
    start = [c + rng.normal(0, 0.2, len(c)) for c in (x, y)]
    return joint_photometry(data, variance, np.zeros(data.shape, bool), *start, stamp(SIZE, FWHM), **options)


@pytest.mark.parametrize("ratio", [1.0, 0.2])
@pytest.mark.parametrize("separation", [1.2 * FWHM, 0.9 * FWHM])
def test_pairs_are_unbiased_with_honest_errors(separation, ratio):
    """450 stars in pairs: pulls of fluxes and positions have unit width within 4 of their own errors."""
    x, y, flux, data, variance = pairs(separation, ratio, 3)
    r = measured(x, y, data, variance)
    for pull in ((r.flux - flux) / r.flux_err, (r.x - x) / r.x_err, (r.y - y) / r.y_err):
        assert abs(np.mean(pull)) < 4 / np.sqrt(len(x))
        assert np.std(pull) == pytest.approx(1, abs=0.14)
    assert np.mean(r.chi2) == pytest.approx(1, abs=0.03)
    # each by itself: the neighbour's light is taken for its own
    alone = psf_photometry(data, variance, np.zeros(data.shape, bool), x, y, stamp(SIZE, FWHM))
    assert np.median((alone.flux - flux) / alone.flux_err) > 5


def test_blend_is_the_neighbours_light_in_the_disc():
    x, y, _, data, variance = pairs(1.2 * FWHM, 0.2, 3)
    r = measured(x, y, data, variance)
    n = len(x) // 2
    # the fainter star sees the brighter one five times as strongly as the other way round, and a little less of itself
    assert np.median(r.blend[n:] / r.blend[:n]) == pytest.approx(25, rel=0.15)
    lone = measured(x[:n], y[:n], *image_of(x[:n], y[:n], np.full(n, 2e4), (512, 512), 5))
    assert np.abs(lone.blend).max() < 0.01


def test_lone_sources_are_those_of_psf_photometry():
    x, y, _, data, variance = pairs(1.2 * FWHM, 0.0, 4)
    n = len(x) // 2
    mask = np.zeros(data.shape, bool)
    a = joint_photometry(data, variance, mask, x[:n], y[:n], stamp(SIZE, FWHM))
    b = psf_photometry(data, variance, mask, x[:n], y[:n], stamp(SIZE, FWHM), max_shift=1.5)
    for name in ("x", "y", "flux", "flux_err", "x_err", "flags"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_residual_is_noise(device):
    """A crowd, one star per 5 × 5 FWHM: what is left has the noise's variance, and the sums are those of the truth."""
    rng = np.random.default_rng(8)
    n = 150
    x, y = rng.uniform(10, 210, n), rng.uniform(10, 210, n)
    flux = 10 ** rng.uniform(3.3, 4.8, n)
    data, variance = image_of(x, y, flux, (221, 221), 8)
    put = device.xp.asarray
    r = joint_photometry(put(data), put(variance), put(np.zeros(data.shape, bool)), put(x), put(y),
                         put(stamp(SIZE, FWHM)), iterations=6)
    chi = asnumpy(r.residual) / np.sqrt(variance)
    assert np.std(chi) == pytest.approx(1, abs=0.02)
    assert np.sum(asnumpy(r.flux)) == pytest.approx(flux.sum(), rel=0.003)
    # pairs within half a FWHM have no Gaussian errors
    pull = (asnumpy(r.flux) - flux) / asnumpy(r.flux_err)
    assert 1.4826 * np.median(np.abs(pull)) == pytest.approx(1, abs=0.25)
    assert np.mean(np.abs(pull) > 4) < 0.05


def test_masked_and_outside_sources():
    x, y, _, data, variance = pairs(1.2 * FWHM, 1.0, 3)
    data, mask = data.copy(), np.zeros(data.shape, bool)
    j, i = round(float(y[0])), round(float(x[0]))
    data[j - 12: j + 13, i - 12: i + 13] = np.nan
    mask[j - 12: j + 13, i - 12: i + 13] = True
    r = joint_photometry(data, variance, mask, np.r_[x, np.nan, -40.0], np.r_[y, 5.0, 10.0], stamp(SIZE, FWHM))
    assert r.flags[0] & SKIPPED
    assert np.isnan(r.flux[0])
    assert (r.flags[-2:] & SKIPPED).all()
    good = np.ones(len(x), bool)
    good[[0, len(x) // 2]] = False
    assert np.isfinite(r.flux[:-2][good]).all()
    none = joint_photometry(data, variance, mask, np.zeros(0), np.zeros(0), stamp(SIZE, FWHM))
    assert len(none.flux) == len(none.spread) == 0
    np.testing.assert_array_equal(none.residual, data)


def test_spread_tells_stars_from_galaxies():
    """Stars scatter about 0 by the stated error; sources wider by a fifth stand out, narrower ones the other way."""
    rng = np.random.default_rng(2)
    gy, gx = (g.ravel() for g in np.mgrid[25:490:33, 25:490:33])
    x, y = gx + rng.uniform(-0.5, 0.5, gx.size), gy + rng.uniform(-0.5, 0.5, gy.size)
    flux = 10 ** rng.uniform(3.2, 4.4, gx.size)
    found = {w: measured(x, y, *image_of(x, y, flux, (512, 512), 6, fwhm=w * FWHM)) for w in (0.7, 1.0, 1.2)}
    star = found[1.0].spread / found[1.0].spread_err
    assert np.std(star) == pytest.approx(1, abs=0.2)
    # interpolation between pixels makes the model wider by some 0.2 %, which S/N 200 shows
    bright = flux > 1e4
    assert abs(np.mean(star[bright])) < 0.8
    assert abs(np.mean(star[flux < 4e3])) < 0.5
    assert (found[1.2].spread / found[1.2].spread_err)[bright].min() > 3
    assert (found[0.7].spread / found[0.7].spread_err)[bright].max() < -3
