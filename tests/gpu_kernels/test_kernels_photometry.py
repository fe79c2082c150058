"""PSF photometry against the Cramér–Rao limit, exact apertures, moments; on every device."""

from __future__ import annotations

import tracemalloc
from functools import lru_cache

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, stamp
from source_truth import StarScene, star_scene

from seechange_mpi.gpu_kernels import photometry as phot
from seechange_mpi.gpu_kernels.stamps import cut_stamps

FWHMS = (2.2, 3.0, 4.5, 6.0)


@lru_cache(maxsize=8)
def scene(fwhm: float) -> StarScene:
    return star_scene(fwhm, seed=int(10 * fwhm))


def measure(s: StarScene, *, sign: int = 1, mask: np.ndarray | None = None, **options) -> phot.PSFPhotometry:
    rng = np.random.default_rng(5)
    start = [c + rng.normal(0, 0.15, len(c)) for c in (s.x, s.y)]
    bad = np.zeros(s.data.shape, bool) if mask is None else mask
    return phot.psf_photometry(sign * s.data, s.variance, bad, *start, s.psf, **options)


def check_limits(scenes: list[StarScene], sign: int, pull_tolerance: float) -> None:
    """Errors at the Cramér–Rao limit, no bias, and errors that are honest."""
    pulls: list[list[np.ndarray]] = [[], [], []]
    for s in scenes:
        r = measure(s, sign=sign)
        assert (r.flags == 0).all()
        centroid = np.concatenate([(r.x - s.x) / s.x_limit, (r.y - s.y) / s.y_limit])
        assert np.sqrt(np.mean(centroid**2)) < 1.15
        bright = np.tile(s.snr > 60, 2)
        assert np.sqrt(np.mean(centroid[bright] ** 2)) < 1.2
        assert np.sqrt(np.mean(((sign * r.flux - s.flux) / s.flux_limit) ** 2)) < 1.15
        assert (sign * r.flux * s.flux / s.flux_limit**2).sum() / (s.flux**2 / s.flux_limit**2).sum() == pytest.approx(
            1, abs=0.005)
        assert np.mean(r.chi2) == pytest.approx(1, abs=0.03)
        for kept, pull in zip(pulls, ((sign * r.flux - s.flux) / r.flux_err, (r.x - s.x) / r.x_err,
                                      (r.y - s.y) / r.y_err), strict=True):
            kept.append(pull)
    for kept in pulls:
        assert np.std(np.concatenate(kept)) == pytest.approx(1, abs=pull_tolerance)


@pytest.mark.parametrize("sign", [1, -1])
def test_psf_photometry_reaches_the_limit(sign):
    """Pulls of 1680 stars: 5 % is three times their own uncertainty."""
    check_limits([scene(f) for f in FWHMS], sign, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("fwhm", [2.2, 2.6, 3.3, 4.5, 6.0])
def test_psf_photometry_reaches_the_limit_at_each_width(fwhm):
    check_limits([star_scene(fwhm, seed=7, phases=60, each=50)], 1, 0.04)


def test_flux_at_free_positions_is_high_by_the_known_amount():
    """The flux at the best of many positions is σ²/flux too high on average: 1 % at S/N 10."""
    s = star_scene(3.0, seed=2, each=80, snr=(10.0, 10.01))
    free, held = measure(s), phot.psf_photometry(
        s.data, s.variance, np.zeros(s.data.shape, bool), s.x, s.y, s.psf, fit_position=False)
    # the difference of the two is free of most of their common noise
    assert np.mean((free.flux - held.flux) / s.flux) == pytest.approx(0.01, abs=0.002)
    assert np.mean(held.flux / s.flux) == pytest.approx(1, abs=3 * 0.1 / np.sqrt(len(s.x)))


def test_masked_pixels_do_not_bias():
    """A tenth of the pixels hold nonsense and are masked: fluxes and positions stay unbiased, errors honest."""
    s = scene(3.0)
    rng = np.random.default_rng(3)
    mask = rng.random(s.data.shape) < 0.1
    data = np.where(mask, np.where(rng.random(s.data.shape) < 0.5, 1e6, np.nan), s.data).astype(np.float32)
    r = measure(StarScene(data, s.variance, s.psf, s.x, s.y, s.flux, s.snr, *[s.flux_limit] * 3), mask=mask)
    ok = (r.flags & ~phot.MASKED) == 0
    assert ok.mean() > 0.98
    assert ((r.flags & phot.MASKED) != 0).mean() > 0.95
    flux, err, true = r.flux[ok], r.flux_err[ok], s.flux[ok]
    assert (flux * true / err**2).sum() / (true**2 / err**2).sum() == pytest.approx(1, abs=0.005)
    for pull in ((flux - true) / err, (r.x - s.x)[ok] / r.x_err[ok], (r.y - s.y)[ok] / r.y_err[ok]):
        assert np.std(pull) == pytest.approx(1, abs=0.1)
        assert abs(np.mean(pull)) < 0.2


def test_groups_do_not_matter(monkeypatch):
    """One at a time or all together: the same numbers."""
    s = scene(2.2)
    together = measure(s)
    monkeypatch.setattr(phot, "_groups", lambda n, *_: (slice(k, k + 7) for k in range(0, n, 7)))
    apart = measure(s)
    for name in ("x", "y", "flux", "flux_err", "x_err", "y_err", "chi2", "flags"):
        assert getattr(apart, name) == pytest.approx(getattr(together, name), rel=1e-9), name


def test_memory_stays_small():
    """All stamps at once would be 44 MB for each array of the larger aperture."""
    rng = np.random.default_rng(0)
    data = rng.normal(0, 1, (600, 600)).astype(np.float32)
    x, y = rng.uniform(0, 599, (2, 5000))
    clear = np.zeros(data.shape, bool)
    tracemalloc.start()
    try:
        phot.aperture_photometry(data, data**2, clear, x, y, (15.0,))
        phot.psf_photometry(data, data**2, clear, x, y, stamp(25, 3.0), iterations=1)
        phot.moments(data, clear, x, y, 3.0, iterations=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25e6


@pytest.mark.parametrize("fit_position", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_errors_are_honest(fit_position, sign):
    """Faint stars of both signs: pulls of flux and position have unit width."""
    rng = np.random.default_rng(3)
    x, y = grid_positions(rng, (800, 800), 26)
    flux = rng.uniform(600, 3000, len(x))
    clean = np.zeros((800, 800))
    add_stars(clean, x, y, flux, 3.0, 25)
    variance = (clean + 100).astype(np.float32)
    data = (sign * (clean + rng.normal(0, 1, clean.shape) * np.sqrt(variance))).astype(np.float32)
    r = phot.psf_photometry(data, variance, np.zeros(clean.shape, bool), x, y, stamp(25, 3.0),
                            fit_position=fit_position)
    pull = (sign * r.flux - flux) / r.flux_err
    assert np.std(pull) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(pull)) < 0.2
    assert np.median(r.chi2) == pytest.approx(1, abs=0.1)
    if fit_position:
        assert np.std((r.x - x) / r.x_err) == pytest.approx(1, abs=0.12)
        assert np.std((r.y - y) / r.y_err) == pytest.approx(1, abs=0.12)


def test_photometry_flags_and_masks():
    rng = np.random.default_rng(4)
    data = np.zeros((100, 100))
    xs, ys = np.array([20.3, 50.0, 80.0, 98.6, 50.0]), np.array([20.1, 50.0, 80.0, 50.0, 20.0])
    add_stars(data, xs, ys, np.full(5, 5000.0), 3.0, 25)
    data = (data + rng.normal(0, 1, data.shape)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[50, 50] = True
    mask[70:91, 70:91] = True
    data[50, 50], data[80, 80] = 1e6, np.nan
    before = data.copy()
    r = phot.psf_photometry(data, np.ones_like(data), mask, np.append(xs[:4], 52.9), np.append(ys[:4], 20.0),
                            stamp(25, 3.0))
    assert r.flags[0] == 0
    assert r.flags[1] & phot.MASKED
    assert r.flags[2] & phot.SKIPPED
    assert np.isnan(r.flux[2])
    assert r.flags[3] & phot.EDGE
    assert r.flux[:2] == pytest.approx(5000, rel=0.01)
    assert r.flux[3] == pytest.approx(5000, rel=0.02)
    assert r.flags[4] & phot.MOVED_AWAY
    assert r.x[4] == pytest.approx(52.9)
    assert np.array_equal(before, data, equal_nan=True)

def test_no_sources():
    zero = np.zeros((40, 40), np.float32)
    empty = np.zeros(0)
    r = phot.psf_photometry(zero, zero + 1, zero > 0, empty, empty, stamp(11, 3.0))
    assert len(r.flux) == len(r.flags) == 0
    flux, err, nbad = phot.aperture_photometry(zero, zero + 1, zero > 0, empty, empty, (3.0,))
    assert flux.shape == err.shape == nbad.shape == (0, 1)
    assert len(phot.moments(zero, zero > 0, empty, empty, 2.0).x) == 0


def test_apertures_count_the_area():
    data = np.full((60, 60), 2.0, np.float32)
    mask = np.zeros(data.shape, bool)
    mask[30, 30] = True
    x, y = np.array([30.0, 15.37, 40.5, 0.0]), np.array([30.0, 20.81, 45.5, 30.0])
    flux, err, nbad = phot.aperture_photometry(data, np.full_like(data, 9.0), mask, x, y, (2.0, 5.0))
    for k, radius in enumerate((2.0, 5.0)):
        area = np.pi * radius**2
        assert flux[1:3, k] == pytest.approx(2 * area, rel=0.012)
        assert err[1:3, k] == pytest.approx(3 * np.sqrt(area), rel=0.12)  # less on the rim
        assert flux[0, k] == pytest.approx(2 * (area - 1), rel=0.015)
    assert nbad[0].tolist() == [1, 1]
    assert nbad[1].tolist() == [0, 0]
    assert (nbad[3] > 0).all()
    assert flux[3, 1] == pytest.approx(np.pi * 25 + 2 * 5, rel=0.03)  # half of it, and half the middle column


@pytest.mark.parametrize("sign", [1, -1])
def test_moments_of_an_ellipse(sign):
    y, x = np.mgrid[:81, :81]
    a, b, theta, x0, y0 = 3.0, 1.8, 0.5, 40.3, 39.6
    u = (x - x0) * np.cos(theta) + (y - y0) * np.sin(theta)
    v = -(x - x0) * np.sin(theta) + (y - y0) * np.cos(theta)
    image = (sign * 1000 * np.exp(-0.5 * (u**2 / a**2 + v**2 / b**2))).astype(np.float32)
    m = phot.moments(image, np.zeros(image.shape, bool), np.array([40.0]), np.array([40.0]), 3.0)
    assert m.x[0] == pytest.approx(x0, abs=0.02)
    assert m.y[0] == pytest.approx(y0, abs=0.02)
    assert m.a[0] == pytest.approx(a, rel=0.02)
    assert m.b[0] == pytest.approx(b, rel=0.02)
    assert m.theta[0] == pytest.approx(theta, abs=0.02)
    assert np.sign(m.flux[0]) == sign




def test_aperture_areas_are_exact():
    """Flat images give π r² to rounding, wherever the centre; the area of each pixel is that of counted points."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(20, 40, (2, 300))
    x[:4], y[:4] = [30, 30.5, 30.5, 30], [30, 30, 30.5, 30.25]
    radii = (0.3, 0.5, 1.0, 2.5, 7.77, 15.0)
    ones, clear = np.ones((61, 61), np.float32), np.zeros((61, 61), bool)
    flux, _, nbad = phot.aperture_photometry(ones, ones, clear, x, y, radii)
    assert flux == pytest.approx(np.broadcast_to(np.pi * np.square(radii), flux.shape), rel=1e-11)
    assert (nbad == 0).all()
    pattern = rng.normal(0, 1, (61, 61)).astype(np.float32)
    exact = phot.aperture_photometry(pattern, ones, clear, x[:20], y[:20], (1.0, 2.5, 7.77))
    counted = phot.aperture_photometry(pattern, ones, clear, x[:20], y[:20], (1.0, 2.5, 7.77), subsample=101)
    assert exact[0] == pytest.approx(counted[0], abs=0.005)
    assert exact[1] == pytest.approx(counted[1], rel=2e-3)


def test_positions_that_are_not_finite_measure_nothing():
    zero = np.zeros((30, 30), np.float32)
    x = np.array([np.nan, 10.0, np.inf])
    flux, _, nbad = phot.aperture_photometry(zero + 1, zero + 1, zero > 0, x, np.full(3, 10.0), (2.0,))
    assert flux[1, 0] == pytest.approx(4 * np.pi)
    assert nbad[1, 0] == 0
    stamps, inside = cut_stamps(zero, x, np.full(3, 10.0), 5, fill=7)
    assert not inside[[0, 2]].any()
    assert (stamps[[0, 2]] == 7).all()
    assert inside[1].all()
    r = phot.psf_photometry(zero + 1, zero + 1, zero > 0, x, np.full(3, 10.0), stamp(11, 2.5))
    assert (r.flags[[0, 2]] & phot.SKIPPED).all()
    assert np.isnan(r.flux[[0, 2]]).all()
    assert np.isfinite(r.flux[1])
    m = phot.moments(zero + 1, zero > 0, x, np.full(3, 10.0), 2.0)
    assert np.isfinite(m.x).tolist() == [False, True, False]


def test_every_device_measures_the_same(device):
    """Fluxes, positions, apertures, moments and rendered sources live on the device and agree to 1e-6."""
    s = scene(3.0)
    few = slice(0, 40)
    mask = np.zeros(s.data.shape, bool)
    mask[np.round(s.y[3]).astype(int), np.round(s.x[3]).astype(int) + 2] = True
    mask[:60, :60] = True
    data, variance, bad, psf, x, y = (device.asarray(a) for a in (
        s.data, s.variance, mask, s.psf, s.x[few] + 0.1, s.y[few] - 0.1))
    host = (s.data, s.variance, mask, s.x[few] + 0.1, s.y[few] - 0.1)
    for fit_position in (True, False):
        here = phot.psf_photometry(*host, s.psf, fit_position=fit_position)
        there = phot.psf_photometry(data, variance, bad, x, y, psf, fit_position=fit_position)
        for name in ("x", "y", "flux", "flux_err", "x_err", "y_err", "chi2", "flags"):
            assert device.asnumpy(getattr(there, name)) == pytest.approx(
                getattr(here, name), rel=1e-6, abs=1e-9, nan_ok=True), name
    for a, b in zip(phot.aperture_photometry(data, variance, bad, x, y, (2.0, 6.3)),
                    phot.aperture_photometry(*host, (2.0, 6.3)), strict=True):
        assert device.asnumpy(a) == pytest.approx(b, rel=1e-6)
    m, n = phot.moments(data, bad, x, y, 1.5), phot.moments(s.data, mask, *host[3:], 1.5)
    for name in ("x", "y", "a", "b", "theta", "flux"):
        assert device.asnumpy(getattr(m, name)) == pytest.approx(getattr(n, name), rel=1e-6, abs=1e-8), name
    image = phot.render_sources(s.data.shape, x, y, device.asarray(s.flux[few]), psf)
    expected = phot.render_sources(s.data.shape, *host[3:], s.flux[few], s.psf)
    assert np.abs(device.asnumpy(image) - expected).max() < 1e-6 * expected.max()
    empty = device.asarray(np.zeros(0))
    assert device.asnumpy(phot.psf_photometry(data, variance, bad, empty, empty, psf).flux).shape == (0,)
    assert device.asnumpy(phot.moments(data, bad, empty, empty, 2.0).x).shape == (0,)


def test_equal_weights_are_unbiased_where_the_variance_is_taken_from_the_data(device):
    """On empty sky, weights from the pixels themselves pull fluxes down; equal weights do not, and errors hold."""
    rng = np.random.default_rng(8)
    gain, sky = 2.0, 100.0
    data = (rng.poisson(sky * gain, (500, 500)) / gain - sky).astype(np.float32)
    variance = np.maximum(sky / gain + data / gain, 1).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[:, 100:102] = True
    x, y = (c.ravel() for c in np.meshgrid(np.arange(8.0, 492, 11) + 0.3, np.arange(8.0, 492, 11) + 0.4))
    psf = stamp(25, 3.5).astype(np.float32)
    pulls = {}
    for equal in (True, False):
        r = phot.psf_photometry(*(device.asarray(a) for a in (data, variance, mask, x, y, psf)), radius=5.0,
                                fit_position=False, equal_weights=equal)
        good = (device.asnumpy(r.flags) & phot.SKIPPED) == 0
        pulls[equal] = (device.asnumpy(r.flux) / device.asnumpy(r.flux_err))[good]
        assert np.mean(device.asnumpy(r.chi2)[good]) == pytest.approx(1, abs=0.05)
    error = 1 / np.sqrt(len(pulls[True]))
    assert abs(pulls[True].mean()) < 4 * error
    assert pulls[False].mean() < -8 * error
    assert np.std(pulls[True]) == pytest.approx(1, abs=4 * error)


def test_equal_weights_are_for_fixed_positions():
    flat = np.ones((30, 30), np.float32)
    with pytest.raises(ValueError, match="fit_position=False"):
        phot.psf_photometry(flat, flat, flat > 2, np.array([9.0]), np.array([9.0]), stamp(15, 3.0),
                            equal_weights=True)
