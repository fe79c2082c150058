"""Subtraction with a matching kernel: decorrelation, directions, masks, units, backgrounds, refusals."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from kernel_truth import FITTED, METHODS, add_stars, field_pair, grid_positions, recipe_pair, say, stamp

from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.matched import matched_subtract

IMAGES = ("difference", "score", "score_corr", "flux", "flux_err", "translient")
SHAPE = (351, 400)


@pytest.fixture(params=FITTED)
def method(request):
    return request.param


@lru_cache(maxsize=8)
def star_pair(fwhm=(4.0, 3.0), shape=SHAPE, ratio=0.9, seed=1, transients=True):
    """Bright stars on a grid, and transients of 6000 halfway between some of them."""
    rng = np.random.default_rng(seed)
    x, y = grid_positions(rng, shape, 34)
    flux = 10 ** rng.uniform(3.5, 5, len(x))
    new = None
    if transients:
        tx, ty = (np.round(a[::6]) + 17 for a in (x, y))
        keep = (tx < shape[1] - 20) & (ty < shape[0] - 20)
        new = tx[keep], ty[keep], np.full(int(keep.sum()), 6000.0)
    pair = field_pair(rng, shape, fwhm=fwhm, stars=(x, y, flux), transients=new, ratio=ratio)
    if new is not None:
        pair.transients.update(x=new[0], y=new[1], f=new[2])
    return pair


@lru_cache(maxsize=1)
def crowd():
    return recipe_pair(45, (640, 801), n_transients=6)


@lru_cache(maxsize=8)
def subtracted(method, fwhm=(4.0, 3.0), shape=SHAPE):
    """Result for `star_pair`, not to be changed."""
    return star_pair(fwhm, shape).subtract(METHODS[method])


def quiet_part(pair, least=0.05):
    """Pixels that hold next to no light of sources."""
    return ((pair.signal_new < least * pair.noise_new) & (pair.signal_ref < least * pair.noise_ref) & ~pair.mask)


def correlation(image, good, dy, dx):
    """Correlation of pixels (dy, dx) apart, both in `good`; dx may be negative."""
    d = np.where(good, image - image[good].mean(), 0)
    ny, nx = d.shape
    a = np.s_[: ny - dy, max(-dx, 0): nx - max(dx, 0)]
    b = np.s_[dy:, max(dx, 0): nx + min(dx, 0)]
    return (d[a] * d[b]).sum() / (good[a] & good[b]).sum() / image[good].var()


def fluxes(pair, result):
    """Mean of flux / truth of the transients whose pixel is good, its error, and the rms of the pulls."""
    y, x, f = (pair.transients[k] for k in ("y", "x", "f"))
    good = np.isfinite(result.flux[y.astype(int), x.astype(int)])
    at, f = (y[good].astype(int), x[good].astype(int)), f[good]
    value, error = result.flux[at] / f, result.flux_err[at] / f
    weight = 1 / error**2
    return ((value * weight).sum() / weight.sum(), weight.sum() ** -0.5,
            float(np.sqrt(np.mean(((value - 1) / error) ** 2))))


def test_noise_of_the_difference(method):
    """White with decorrelation; correlated without; the score has unit variance both ways, the usual one has not."""
    pair = crowd()
    quiet = quiet_part(pair)
    white, plain = (pair.subtract(METHODS[method], decorrelate=d) for d in (True, False))
    lags = [(dy, dx) for dy in range(3) for dx in range(-2, 3) if (dy, dx) > (0, 0)]
    rho = [[correlation(r.difference, quiet, *lag) for lag in lags] for r in (white, plain)]
    naive = scipy.signal.fftconvolve(plain.difference, pair.psf_new, mode="same") / np.sqrt((pair.psf_new**2).sum())
    stds = {"white": np.std(white.score_corr[quiet]), "plain": np.std(plain.score_corr[quiet]),
            "naive score of plain": np.std(naive[quiet])}
    say(f"{method}: largest correlation of lags 1-2 {np.abs(rho[0]).max():.4f}, plain {np.abs(rho[1]).max():.4f} "
        f"(lag 1 {rho[1][lags.index((0, 1))]:.3f}); std of the score " + ", ".join(f"{k} {v:.3f}" for k, v in
                                                                                  stds.items()))
    for result in (white, plain):
        assert np.std(result.difference[quiet]) == pytest.approx(1, abs=0.01)
        assert np.std(result.score_corr[quiet]) == pytest.approx(1, abs=0.02)
        assert np.mean(result.translient[quiet]) == pytest.approx(2, abs=0.1)
    assert np.abs(rho[0]).max() < 0.01
    assert rho[1][lags.index((0, 1))] > 0.02
    assert stds["naive score of plain"] == pytest.approx(1.16, abs=0.04)


def test_decorrelation_gains_signal(method):
    """On the sky the error of the flux is least with decorrelation; the flux is right with and without."""
    pair = star_pair()
    white, plain = subtracted(method), pair.subtract(METHODS[method], decorrelate=False)
    loss = np.mean((plain.flux_err / white.flux_err)[quiet_part(pair)])
    say(f"{method}: flux errors on the sky without decorrelation {loss:.4f} of those with it")
    assert 1.001 < loss < 1.05
    for result in (white, plain):
        mean, error, pull = fluxes(pair, result)
        assert abs(mean - 1) < 4 * error
        assert pull == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(("fwhm", "convolved", "shape"), [
    ((4.0, 3.0), "ref", SHAPE), ((2.7, 3.8), "new", SHAPE), ((2.7, 3.8), "new", (360, 361))])
def test_both_directions(method, fwhm, convolved, shape):
    """Static stars vanish, transients keep their flux, P_D is what a transient looks like in D."""
    pair, result = star_pair(fwhm, shape), subtracted(method, fwhm, shape)
    assert result.solution.convolved == convolved
    assert result.solution.flux_scale == pytest.approx(0.9 if convolved == "ref" else 1 / 0.9, rel=0.01)
    mean, error, pull = fluxes(pair, result)
    bright = (pair.signal_ref / pair.gain > pair.noise_ref**2)
    for x, y in zip(pair.transients["x"].astype(int), pair.transients["y"].astype(int), strict=True):
        bright[y - 8: y + 9, x - 8: x + 9] = False
    on_stars, of_zogy = (np.std(r.score_corr[bright]) for r in (result, subtracted("zogy", fwhm, shape)))
    say(f"{method}, {convolved} convolved, {shape}: flux {mean:.4f} ± {error:.4f}, pulls {pull:.2f}, "
        f"score on stars {on_stars:.3f} (ZOGY {of_zogy:.3f}), "
        f"on the sky {np.std(result.score_corr[quiet_part(pair)]):.3f}")
    assert abs(mean - 1) < 4 * error
    assert on_stars == pytest.approx(of_zogy, abs=0.07)
    assert on_stars == pytest.approx(1, abs=0.2)
    assert np.std(result.score_corr[quiet_part(pair)]) == pytest.approx(1, abs=0.05)
    assert result.psf.sum() == pytest.approx(1, abs=1e-5)
    half = result.psf.shape[0] // 2
    cuts = [result.difference[y - 4: y + 5, x - 4: x + 5] for x, y in
            zip(pair.transients["x"].astype(int), pair.transients["y"].astype(int), strict=True)]
    p = result.psf[half - 4: half + 5, half - 4: half + 5]
    local = np.mean(cuts, axis=0) / (6000 * result.flux_zero_point)
    assert np.abs(local - p).max() < 5 / (6000 * result.flux_zero_point * np.sqrt(len(cuts)))
    size = np.arange(2 * half + 1) - half
    assert abs((result.psf.sum(axis=0) * size).sum()) < 0.05
    assert abs((result.psf.sum(axis=1) * size).sum()) < 0.05


def test_images_of_one_seeing(method):
    """κ is nearly one pixel: no noise is amplified."""
    pair = star_pair((3.4, 3.4))
    result = pair.subtract(METHODS[method])
    mean, error, _ = fluxes(pair, result)
    assert abs(mean - 1) < 4 * error
    assert np.std(result.score_corr[quiet_part(pair)]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("unit", "fwhm"), [(0.01, (4.0, 3.0)), (100.0, (2.7, 3.8))])
def test_unit_of_the_reference(method, unit, fwhm):
    """The reference in another unit changes nothing but the kernel."""
    pair, plain = star_pair(fwhm), subtracted(method, fwhm)
    other = METHODS[method](
        pair.new, pair.ref * np.float32(unit), pair.psf_new, pair.psf_ref, noise_new=pair.noise_new,
        noise_ref=pair.noise_ref * unit, flux_new=pair.flux_new, flux_ref=unit, mask=pair.mask,
        variance_new=pair.variance("new"), variance_ref=pair.variance("ref") * np.float32(unit**2))
    scale = plain.solution.flux_scale * (1 / unit if plain.solution.convolved == "ref" else unit)
    assert other.solution.flux_scale == pytest.approx(scale, rel=1e-4)
    assert other.solution.figures["flux_scale"] == other.solution.flux_scale
    assert np.abs(other.score_corr - plain.score_corr).max() < 0.02
    assert np.abs(other.flux / plain.flux - 1)[np.abs(plain.score_corr) > 5].max() < 0.01


def test_plane_left_in_the_images(method):
    """A background plane, negative in one place, is taken off."""
    pair = star_pair()
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    plane = (20 + 15 * xx / SHAPE[1] - 40 * yy / SHAPE[0]).astype(np.float32)
    clean = subtracted(method)
    for name in ("new", "ref"):
        images = {"new": pair.new, "ref": pair.ref} | {name: getattr(pair, name) + plane}
        result = METHODS[method](
            images["new"], images["ref"], pair.psf_new, pair.psf_ref, noise_new=pair.noise_new,
            noise_ref=pair.noise_ref, flux_new=pair.flux_new, variance_new=pair.variance("new"),
            variance_ref=pair.variance("ref"), mask=pair.mask)
        # near the edges the plane is convolved with what is off the frame
        inner = np.s_[25:-25, 25:-25]
        off = (result.score_corr - clean.score_corr)[inner]
        say(f"{method}: plane in {name} changes the score by {off.mean():+.3f} ± {off.std():.3f}, "
            f"{np.abs(off).max():.2f} at most")
        assert abs(off.mean()) < 0.1
        assert off.std() < 0.15


def test_masked_and_missing_pixels(method):
    """NaN where masked or not finite, wild values are not seen, and the sky beside them keeps unit variance."""
    pair = star_pair()
    rng = np.random.default_rng(5)
    mask = rng.random(SHAPE) < 1e-3
    mask[100:112, 200:230] = True
    mask[:, 300] = True
    new, ref = pair.new.copy(), pair.ref.copy()
    new[mask] = 1e6
    ref[mask] = -1e5
    new[40, 50] = np.nan
    ref[350, 20] = np.inf
    before = new.copy(), ref.copy(), mask.copy()
    args = {"noise_new": pair.noise_new, "noise_ref": pair.noise_ref, "flux_new": pair.flux_new,
            "variance_new": pair.variance("new"), "variance_ref": pair.variance("ref"), "mask": mask}
    result = METHODS[method](new, ref, pair.psf_new, pair.psf_ref, **args)
    for was, now in zip(before, (new, ref, mask), strict=True):
        np.testing.assert_array_equal(was, now)
    bad = mask.copy()
    bad[40, 50] = bad[350, 20] = True
    for name in IMAGES:
        image = getattr(result, name)
        assert image.dtype == np.float32
        assert np.isnan(image[bad]).all(), name
        assert np.isfinite(image[~bad]).all(), name
    near = scipy.ndimage.binary_dilation(bad, iterations=4) & ~bad & quiet_part(pair)
    assert np.std(result.score_corr[near]) == pytest.approx(1, abs=0.1)
    mean, error, _ = fluxes(pair, result)
    assert abs(mean - 1) < 4 * error


def test_double_precision(method):
    pair = star_pair()
    single = subtracted(method)
    args = {"noise_new": pair.noise_new, "noise_ref": pair.noise_ref, "flux_new": pair.flux_new,
            "variance_new": pair.variance("new").astype(float), "variance_ref": pair.variance("ref").astype(float)}
    double = METHODS[method](pair.new.astype(float), pair.ref.astype(float), pair.psf_new.astype(float),
                             pair.psf_ref.astype(float), **args)
    for name in IMAGES:
        assert getattr(double, name).dtype == np.float64
    assert np.abs(double.score_corr - single.score_corr).max() < 0.02
    assert np.abs(double.psf - single.psf).max() < 1e-4


def test_images_in_electrons(method):
    """Without variances they are noise² + image, in each tile with the noise there."""
    rng = np.random.default_rng(7)
    x, y = grid_positions(rng, SHAPE, 34)
    stars = x, y, 10 ** rng.uniform(3.5, 5, len(x))
    pair = field_pair(rng, SHAPE, gain=1.0, stars=stars)
    args = {"noise_new": pair.noise_new, "noise_ref": pair.noise_ref, "flux_new": pair.flux_new}
    told = METHODS[method](pair.new, pair.ref, pair.psf_new, pair.psf_ref, variance_new=pair.variance("new"),
                           variance_ref=pair.variance("ref"), **args)
    untold = METHODS[method](pair.new, pair.ref, pair.psf_new, pair.psf_ref, **args)
    # the background that is taken off counts in one and not in the other
    assert np.abs(untold.score_corr - told.score_corr).max() < 0.05
    bright = pair.signal_new > pair.noise_new**2
    assert np.std(untold.score_corr[bright]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("degree", [1, 2])
def test_psf_and_noise_that_vary(method, degree):
    """The PSF widens over the frame and the sky brightens: κ of that degree, applied pixel by pixel, leaves no stars.

    In one tile alone the FWHM changes by half a pixel.
    """
    rng = np.random.default_rng(8)
    shape = (400, 401)

    def fwhm(x):
        u = x / shape[1]
        return 3.6 + 0.8 * (u if degree == 1 else 4 * (u - 0.5) ** 2)

    x, y = grid_positions(rng, shape, 36)
    flux = 10 ** rng.uniform(4.0, 4.7, len(x))
    sky = 100 * (1 + 2 * np.arange(shape[0]) / shape[0])[:, None] * np.ones(shape)
    clean = np.zeros((2, *shape))
    add_stars(clean[0], x, y, flux, np.round(fwhm(x), 2), 31)
    add_stars(clean[1], x, y, flux, 3.0, 31)
    new, ref = ((rng.poisson(image + sky) - sky).astype(np.float32) for image in clean)
    variance = [(image + sky).astype(np.float32) for image in clean]

    def noise(x, y):
        return float(np.sqrt(sky[round(y), 0]))

    def run(kernel_degree, **more):
        return METHODS[method](new, ref, lambda x, y: stamp(31, float(fwhm(x))), lambda x, y: stamp(31, 3.0),
                               noise_new=noise, noise_ref=noise, kernel_degree=kernel_degree, tile=200,
                               **({"variance_new": variance[0], "variance_ref": variance[1]} | more))

    # without variances: noise² + image with the noise of the place, not that of the centre
    told, untold = run(degree), run(degree, variance_new=None, variance_ref=None)
    bright = clean[0] > sky
    quiet = (clean[0] < 0.5) & (clean[1] < 0.5)
    stds = [np.std(r.score_corr[bright]) for r in (told, untold)]
    say(f"{method}, degree {degree}: score on stars {stds[0]:.3f}, on the sky {np.std(told.score_corr[quiet]):.3f}")
    assert stds == pytest.approx([1, 1], abs=0.15)
    if degree == 1:
        assert np.std(run(0).score_corr[bright]) > 2
    for result, tolerance in ((told, 0.08), (untold, 0.12)):
        assert np.std(result.difference[quiet]) == pytest.approx(1, abs=0.02)
        assert np.std(result.score_corr[quiet]) == pytest.approx(1, abs=0.04)
        for part in (np.s_[:140], np.s_[-140:]):
            assert np.std(result.score_corr[part][quiet[part]]) == pytest.approx(1, abs=tolerance)
    zero_points = told.flux_zero_points
    assert zero_points[-1, 200] / zero_points[0, 200] == pytest.approx((1.5 / 2.5) ** 0.5, rel=0.1)


def test_varying_kernel_does_not_depend_on_the_tiles(method):
    """The difference that is not filtered is the same whatever the tiles: κ is that of each pixel."""
    pair = star_pair()
    results = [pair.subtract(METHODS[method], decorrelate=False, tile=tile, kernel_degree=1) for tile in (100, 1000)]
    scales = [np.median(r.flux_zero_points) for r in results]
    a, b = (r.difference / z for r, z in zip(results, scales, strict=True))
    inner = np.s_[20:-20, 20:-20]
    assert np.abs(a - b)[inner].max() < 0.02 * np.std(b[quiet_part(pair)])


def solution_of(kernel, convolved="ref", background=0.0):
    return KernelSolution(kernel[None], 0, np.array([background]), 0, 50.0, 50.0, 50.0, 50.0, convolved,
                          float(kernel.sum()))


@pytest.mark.parametrize("convolved", ["ref", "new"])
def test_plain_difference_is_what_it_is_said_to_be(convolved):
    """Brute force: D without decorrelation is (N − κ ⊗ R − B) / rms, or (κ ⊗ N + B − R) / rms."""
    rng = np.random.default_rng(9)
    shape = (120, 131)
    new, ref = rng.normal(0, 3, shape), rng.normal(0, 2, shape)
    kernel = rng.normal(0, 0.02, (9, 9)) + stamp(9, 2.0)
    sigma_n, sigma_r, b = 3.0, 2.0, 0.7
    result = matched_subtract(new, ref, stamp(15, 3.0), solution_of(kernel, convolved, b), noise_new=sigma_n,
                              noise_ref=sigma_r, decorrelate=False)
    power = (kernel**2).sum()
    if convolved == "ref":
        raw = new - b - scipy.signal.convolve2d(ref, kernel, mode="same")
        rms = np.sqrt(sigma_n**2 + sigma_r**2 * power)
    else:
        raw = scipy.signal.convolve2d(new, kernel, mode="same") + b - ref
        rms = np.sqrt(sigma_n**2 * power + sigma_r**2)
    np.testing.assert_allclose(result.difference, raw / rms, atol=1e-5)
    assert result.solution.convolved == convolved


@pytest.mark.parametrize(("change", "words"), [
    ({"ref": np.zeros((90, 91), np.float32)}, "new and ref must be images of one shape"),
    ({"psf_new": np.ones((10, 10))}, "psf_new must be an odd stamp"),
    ({"psf_ref": np.ones((61, 61)) * 0.1}, "psf_ref must have unit sum"),
    ({"psf_new": lambda x, y: stamp(201, 3)}, r"psf_new \(201, 201\) must be smaller than the image"),
    ({"noise_ref": 0.0}, "noise_ref must be positive, found 0.0"),
    ({"noise_new": lambda x, y: float("nan")}, "noise_new must be positive, found nan"),
    ({"flux_new": float("nan")}, "flux_new must be positive"),
    ({"flux_ref": -1.0}, "flux_ref must be positive"),
    ({"sigma_y": -0.1}, "sigma_y must not be negative"),
    ({"variance_new": np.ones((5, 5))}, r"variance_new must have the images' shape \(90, 90\)"),
    ({"mask": np.ones((90, 91), bool)}, "mask must have the images' shape"),
    ({"mask": np.ones((90, 90), bool)}, ""),
    ({"kernel_degree": -1}, "kernel_degree must be"),
    ({"half_width": 0}, "half_width must be at least 1"),
    ({"convolve": "both"}, "convolve must be"),
    ({}, ""),
])
def test_refusals(method, change, words):
    """Every message names the function that was called; an image without stars is refused too."""
    rng = np.random.default_rng(11)
    args = {"new": rng.normal(0, 1, (90, 90)).astype(np.float32), "ref": rng.normal(0, 1, (90, 90)).astype(np.float32),
            "psf_new": stamp(11, 3), "psf_ref": stamp(11, 3), "noise_new": 1.0, "noise_ref": 1.0} | change
    positional = [args.pop(k) for k in ("new", "ref", "psf_new", "psf_ref")]
    with pytest.raises(ValueError, match=f"^{method}_subtract: .*{words}"):
        METHODS[method](*positional, **args)


def test_refusals_of_the_application():
    with pytest.raises(ValueError, match=r"^matched_subtract: the kernel \(51, 51\) must be smaller than the image"):
        matched_subtract(np.zeros((50, 60)), np.zeros((50, 60)), stamp(11, 3.0), solution_of(stamp(51, 3.0)),
                         noise_new=1, noise_ref=1)
