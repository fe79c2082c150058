"""ZOGY against truth: variance, signal, flux, masks."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, moffat, stamp

from seechange_mpi.gpu_kernels.zogy import zogy_subtract

SIZE = 25


def make_pair(rng, shape, gain, *, stars=True, fwhm=(4.0, 3.0), ratio=0.9, sky=(200.0, 150.0), read=7.0,
              transients=None):
    """New and reference in ADU with Poisson noise; F_n = ratio, F_r = 1."""
    f = np.zeros(shape), np.zeros(shape)
    if stars:
        x, y = grid_positions(rng, shape, 24)
        flux = 10 ** rng.uniform(3, 5.5, len(x)) / gain
        for image, scale, width in zip(f, (ratio, 1.0), fwhm, strict=True):
            add_stars(image, x, y, flux * scale, width, SIZE)
    if transients is not None:
        x, y, flux = transients
        add_stars(f[0], x, y, np.asarray(flux) * ratio, fwhm[0], SIZE)
    out, truth_variance, noise = [], [], []
    for image, s in zip(f, sky, strict=True):
        adu = rng.poisson((image + s) * gain) / gain + rng.normal(0, read / gain, shape) - s
        sigma = np.sqrt(s / gain + (read / gain) ** 2)
        out.append(adu.astype(np.float32))
        noise.append(float(sigma))
        truth_variance.append((sigma**2 + image / gain).astype(np.float32))
    return out, noise, truth_variance, f


def subtract(pair, noise, variance, *, fwhm=(4.0, 3.0), ratio=0.9, **more):
    return zogy_subtract(pair[0], pair[1], stamp(SIZE, fwhm[0]), stamp(SIZE, fwhm[1]), noise_new=noise[0],
                         noise_ref=noise[1], flux_new=ratio, flux_ref=1.0, variance_new=variance[0],
                         variance_ref=variance[1], **more)


@pytest.mark.parametrize("gain", [0.5, 1.6, 8.0])
@pytest.mark.parametrize("fwhm", [(4.0, 3.0), (2.5, 4.5)])
def test_empty_sky_has_unit_variance(gain, fwhm):
    rng = np.random.default_rng(5)
    pair, noise, variance, _ = make_pair(rng, (361, 440), gain, stars=False, fwhm=fwhm)
    r = subtract(pair, noise, variance, fwhm=fwhm)
    assert r.score_corr.dtype == np.float32
    # 361 × 440 pixels hold some 8000 independent values of the score
    assert np.std(r.score_corr) == pytest.approx(1, abs=0.03)
    assert np.std(r.difference) == pytest.approx(1, abs=0.01)
    d = r.difference - r.difference.mean()
    for shift in ((0, 1), (1, 0), (1, 1), (0, 2)):
        assert abs(np.mean(d * np.roll(d, shift, (0, 1)))) < 0.01, shift
    edge = np.concatenate([r.score_corr[:2].ravel(), r.score_corr[-2:].ravel()])
    assert np.std(edge) == pytest.approx(1, abs=0.12)
    assert np.mean(r.translient) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("gain", [0.5, 1.6, 8.0])
def test_static_stars_leave_unit_variance(gain):
    """Bright, exactly registered stars: known variance, S_corr of unit variance on them at any gain."""
    rng = np.random.default_rng(6)
    pair, noise, variance, f = make_pair(rng, (400, 401), gain)
    r = subtract(pair, noise, variance)
    bright = f[0] / gain > noise[0] ** 2
    assert bright.sum() > 500
    assert np.std(r.score_corr[bright]) == pytest.approx(1.0, abs=0.1)
    assert np.std(r.score_corr[~bright]) == pytest.approx(1.0, abs=0.03)
    assert np.abs(r.score_corr).max() < 5.6


def test_default_variance_is_for_electrons():
    rng = np.random.default_rng(7)
    pair, noise, _, f = make_pair(rng, (300, 300), 1.0)
    r = subtract(pair, noise, (None, None))
    bright = f[0] > noise[0] ** 2
    assert np.std(r.score_corr[bright]) == pytest.approx(1.0, abs=0.1)
    assert np.std(r.score_corr) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("shape", [(255, 256), (256, 255), (333, 301)])
def test_injected_signal(shape):
    """Score grows as the matched-filter S/N, flux is unbiased with honest errors, at any parity of the shape."""
    rng = np.random.default_rng(8)
    x, y = grid_positions(rng, shape, 30)
    x, y = np.round(x), np.round(y)
    flux = rng.uniform(100, 3000, len(x))
    pair, noise, variance, _ = make_pair(rng, shape, 1.6, stars=False, transients=(x, y, flux))
    r = subtract(pair, noise, variance)
    at = y.astype(int), x.astype(int)
    # the information on f: Σ_k |F_n F_r P_n P_r|² / den is the inverse variance of the flux
    expected = flux / r.flux_err[at]
    slope = (r.score_corr[at] * expected).sum() / (expected**2).sum()
    assert slope == pytest.approx(1, abs=0.03)
    ratio = (r.flux[at] * flux).sum() / (flux**2).sum()
    assert ratio == pytest.approx(1, abs=4 / np.sqrt((expected**2).sum()))
    pull = (r.flux[at] - flux) / r.flux_err[at]
    assert np.std(pull) == pytest.approx(1, abs=0.25)
    # D = F_D f ⊗ P_D + noise
    assert r.psf.sum() == pytest.approx(1, abs=1e-5)
    assert r.psf.shape[0] % 2 == 1
    assert np.unravel_index(np.argmax(r.psf), r.psf.shape) == (r.psf.shape[0] // 2,) * 2
    strong = np.argsort(flux)[-20:]
    half = r.psf.shape[0] // 2
    got, want = 0.0, 0.0
    for k in strong:
        j, i = int(y[k]), int(x[k])
        if half <= j < shape[0] - half and half <= i < shape[1] - half:
            cut = r.difference[j - 5: j + 6, i - 5: i + 6]
            p = r.psf[half - 5: half + 6, half - 5: half + 6]
            got += (cut * p).sum()
            want += r.flux_zero_point * flux[k] * (p**2).sum()
    assert got / want == pytest.approx(1, abs=0.05)


def test_score_is_the_optimal_signal_to_noise():
    """For a reference without noise the score is the matched filter of the new image alone."""
    shape = (201, 202)
    p = moffat(SIZE, 3.0)
    p /= p.sum()
    f, sigma = 1000.0, 10.0
    new = np.zeros(shape, np.float32)
    new[88:113, 78:103] += (f * p).astype(np.float32)
    r = zogy_subtract(new, np.zeros(shape, np.float32), p, p, noise_new=sigma, noise_ref=1e-3,
                      variance_new=np.full(shape, sigma**2, np.float32),
                      variance_ref=np.full(shape, 1e-6, np.float32))
    assert r.score_corr[100, 90] == pytest.approx(f * np.sqrt((p**2).sum()) / sigma, rel=1e-3)
    assert r.flux[100, 90] == pytest.approx(f, rel=1e-3)


def test_example_of_the_docstring():
    from seechange_mpi.gpu_kernels import zogy

    failed, tried = doctest.testmod(zogy)
    assert failed == 0
    assert tried > 8


def test_identical_images_cancel_and_inputs_survive():
    rng = np.random.default_rng(9)
    new = rng.normal(0, 5, (128, 131)).astype(np.float32)
    p = stamp(21, 3.0)
    before = new.copy()
    r = zogy_subtract(new, new, p, p, noise_new=5, noise_ref=5)
    assert np.abs(r.difference).max() < 1e-4
    assert (new == before).all()


def test_scales_drop_out():
    """The same pair in other units: the same score."""
    rng = np.random.default_rng(10)
    pair, noise, variance, _ = make_pair(rng, (150, 160), 1.6)
    one = subtract(pair, noise, variance)
    k = 37.0
    two = zogy_subtract(pair[0] * np.float32(k), pair[1], stamp(SIZE, 4.0), stamp(SIZE, 3.0), noise_new=noise[0] * k,
                        noise_ref=noise[1], flux_new=0.9 * k, flux_ref=1.0, variance_new=variance[0] * np.float32(k**2),
                        variance_ref=variance[1])
    assert np.allclose(one.score_corr, two.score_corr, atol=2e-3)
    assert np.allclose(one.flux, two.flux, rtol=2e-3, atol=0.05)


def test_double_precision_agrees():
    rng = np.random.default_rng(11)
    pair, noise, variance, _ = make_pair(rng, (200, 180), 1.6)
    single = subtract(pair, noise, variance)
    double = subtract([a.astype(np.float64) for a in pair], noise, [v.astype(np.float64) for v in variance])
    assert double.score_corr.dtype == np.float64
    assert np.abs(single.score_corr - double.score_corr).max() < 2e-3
    assert np.allclose(single.psf, double.psf, atol=1e-4)


@pytest.mark.parametrize("fwhm", [(4.0, 3.0), (6.0, 2.5)])
def test_masked_pixels_do_not_ring(fwhm):
    """Wild values under the mask change nothing; NaN is masked by itself; far pixels are as without the mask."""
    rng = np.random.default_rng(12)
    shape = (260, 241)
    pair, noise, variance, _ = make_pair(rng, shape, 1.6, fwhm=fwhm)
    free = subtract(pair, noise, variance, fwhm=fwhm)
    mask = np.zeros(shape, bool)
    mask[100:108, 60:75] = True
    mask[:, 200] = True
    wild = [a.copy() for a in pair]
    for a in wild:
        a[mask] = 6e4
    wild[0][150, 150] = np.nan
    wild[1][20, 20] = np.inf
    r = subtract(wild, noise, variance, fwhm=fwhm, mask=mask)
    bad = mask.copy()
    bad[150, 150] = bad[20, 20] = True
    for image in (r.difference, r.score, r.score_corr, r.flux, r.flux_err, r.translient):
        assert np.isnan(image[bad]).all()
        assert np.isfinite(image[~bad]).all()
    yy, xx = np.indices(shape)
    far = np.ones(shape, bool)
    for j, i in np.argwhere(bad):
        far &= (abs(yy - j) > SIZE) | (abs(xx - i) > SIZE)
    assert far.sum() > 10000
    assert np.abs(r.score_corr - free.score_corr)[far].max() < 0.05
    assert np.abs(r.difference - free.difference)[far].max() < 0.05
    assert np.std(r.score_corr[~bad]) == pytest.approx(1, abs=0.05)


def test_saturated_star_behind_a_mask():
    """A star of 60000 counts, its core masked: nothing beyond the PSF's footprint, wide Gaussian PSFs included."""
    rng = np.random.default_rng(13)
    shape = (256, 256)
    u = np.arange(41) - 20
    psfs = [np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / s**2) for s in (2.6, 2.2)]
    psfs = [p / p.sum() for p in psfs]
    images = []
    for p in psfs:
        a = rng.normal(0, 10, shape)
        a[108:149, 108:149] += 6e4 / p.max() * p
        images.append(np.minimum(a, 3e4).astype(np.float32))
    mask = (images[0] >= 2.9e4) | (images[1] >= 2.9e4)
    variance = [np.maximum(100 + a, 100) for a in images]
    r = zogy_subtract(images[0], images[1], psfs[0], psfs[1], noise_new=10, noise_ref=10, variance_new=variance[0],
                      variance_ref=variance[1], mask=mask)
    yy, xx = np.indices(shape)
    far = np.hypot(yy - 128, xx - 128) > 40
    assert np.std(r.score_corr[far]) == pytest.approx(1, abs=0.05)
    assert np.std(r.difference[far]) == pytest.approx(1, abs=0.05)
    assert np.abs(r.difference[far]).max() < 6


def test_flux_next_to_masked_pixels_and_edges():
    """Flux is not diminished by the part of the PSF that is masked or off the image."""
    shape = (120, 121)
    p = stamp(SIZE, 4.0)
    new = np.zeros(shape, np.float32)
    for j, i in ((60, 30), (60, 80), (0, 60)):
        add_stars(new, [i], [j], [1000.0], 4.0, SIZE)
    mask = np.zeros(shape, bool)
    mask[:, 82] = True
    r = zogy_subtract(new, np.zeros(shape, np.float32), p, stamp(SIZE, 3.0), noise_new=3, noise_ref=3, mask=mask,
                      variance_new=np.full(shape, 9, np.float32), variance_ref=np.full(shape, 9, np.float32))
    for j, i in ((60, 30), (60, 80), (0, 60)):
        assert r.flux[j, i] == pytest.approx(1000, rel=0.03), (j, i)
    assert r.flux_err[0, 60] > 1.2 * r.flux_err[60, 30]


def test_bright_stars_do_not_depend_on_the_tiles():
    """PSFs that both lack power at the same frequencies: the filter of D stays short, and static stars cancel."""
    rng = np.random.default_rng(15)
    shape = (330, 341)
    psfs = [stamp(37, fwhm) for fwhm in (6.0, 6.2)]
    x, y = grid_positions(rng, shape, 60)
    images = [np.zeros(shape) for _ in psfs]
    for image, fwhm in zip(images, (6.0, 6.2), strict=True):
        add_stars(image, np.round(x), np.round(y), np.full(len(x), 1e6), fwhm, 37)
    args = {"noise_new": 10.0, "noise_ref": 10.0, "variance_new": images[0] + 100, "variance_ref": images[1] + 100}
    whole = zogy_subtract(images[0], images[1], *psfs, tile=1000, **args)
    tiled = zogy_subtract(images[0], images[1], *psfs, tile=64, **args)
    # a filter that is not cut short by the floor leaves 4 sigma here
    assert np.abs(whole.difference - tiled.difference).max() < 1.5
    local = np.sqrt((args["variance_new"] + args["variance_ref"]) / 200)
    assert (np.abs(whole.difference) / local).max() < 0.6


def test_astrometric_term():
    """Stars jittered by 0.2 pixel: false peaks vanish when σ is told, empty sky stays at unit variance."""
    rng = np.random.default_rng(14)
    shape = (360, 360)
    x, y = grid_positions(rng, shape, 36)
    flux = np.full(len(x), 4e4)
    images = []
    for width, jitter in ((4.0, 0.2), (3.0, 0.0)):
        a = np.zeros(shape)
        add_stars(a, x + rng.normal(0, jitter, len(x)) if jitter else x, y + rng.normal(0, jitter, len(x))
                  if jitter else y, flux, width, SIZE)
        images.append(a)
    pair = [rng.poisson(a + 200.0).astype(np.float32) - np.float32(200) for a in images]
    variance = [(a + 200).astype(np.float32) for a in images]
    noise = [np.sqrt(200.0)] * 2
    told = subtract(pair, noise, variance, ratio=1.0, sigma_x=0.2, sigma_y=0.2)
    untold = subtract(pair, noise, variance, ratio=1.0)
    assert (np.abs(untold.score_corr) > 5).sum() > 500
    assert (np.abs(told.score_corr) > 5).sum() < 0.01 * (np.abs(untold.score_corr) > 5).sum()
    quiet = (images[0] < 0.5) & (images[1] < 0.5)
    assert np.std(told.score_corr[quiet]) == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize(("change", "words"), [
    ({"ref": np.zeros((50, 51), np.float32)}, "one shape"),
    ({"psf_new": np.ones((10, 10))}, "psf_new must be an odd stamp"),
    ({"psf_ref": np.ones((61, 61))}, "smaller than the image"),
    ({"noise_ref": 0.0}, "noise_ref must be positive"),
    ({"flux_new": float("nan")}, "flux_new must be positive"),
    ({"mask": np.ones((50, 50), bool)}, "no pixel is good"),
    ({"mask": np.ones((50, 50), np.uint8)}, "mask must be boolean, True = bad, found uint8"),
    ({"mask": np.ones((50, 49), bool)}, "mask must have the images' shape"),
    ({"psf_new": 2 * stamp(11, 3)}, "psf_new must have unit sum, found 2"),
    ({"sigma_x": -1.0}, "sigma_x must not be negative"),
])
def test_refusals(change, words):
    args = {"new": np.zeros((50, 50), np.float32), "ref": np.zeros((50, 50), np.float32), "psf_new": stamp(11, 3),
            "psf_ref": stamp(11, 3), "noise_new": 1.0, "noise_ref": 1.0, "flux_new": 1.0, "flux_ref": 1.0} | change
    positional = [args.pop(k) for k in ("new", "ref", "psf_new", "psf_ref")]
    with pytest.raises(ValueError, match=words):
        zogy_subtract(*positional, **args)
