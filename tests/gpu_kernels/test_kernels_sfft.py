"""SFFT solver against truth: star residuals, flux scale, background, masks, transients, brute-force least squares."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, stamp
from scipy.signal import fftconvolve

from seechange_mpi.gpu_kernels import polynomials, sfft, sfft_sums
from seechange_mpi.gpu_kernels.sfft import solve_sfft
from seechange_mpi.gpu_kernels.sfft_regions import Grid

SHAPE, RATIO, SIZE = (364, 451), 0.9, 41
NOISE = {"new": 14.0, "ref": 12.0}


def plane(shape):
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    return 12 + 4 * (xx / shape[1] - 0.5) - 6 * (yy / shape[0] - 0.5)


@lru_cache
def clean_scene(seed, shape, varies, step, flux, fwhm):
    rng = np.random.default_rng(seed)
    x, y = grid_positions(rng, shape, step)
    f = 10 ** rng.uniform(*flux, len(x))
    width = np.full(len(x), fwhm[0])
    if varies:
        width = np.round(fwhm[0] * (1 + 0.05 * (2 * x / shape[1] - 1)) / 0.02) * 0.02
    new, ref = plane(shape), np.zeros(shape)
    add_stars(new, x, y, f * RATIO, width, SIZE)
    add_stars(ref, x, y, f, fwhm[1], SIZE)
    return new, ref, (x, y, f)


def scene(seed=1, shape=SHAPE, *, varies=True, step=28, noise=1.0, flux=(4.0, 5.3), fwhm=(4.0, 3.0), extra=None):
    """Noisy pair, noiseless pair, variances, star positions and fluxes; FWHM of new ± 5 % over x if it varies.

    extra : called with (clean new, clean ref) before the noise is added.
    """
    new, ref, stars = clean_scene(seed, shape, varies, step, flux, fwhm)
    clean = {"new": new.copy(), "ref": ref.copy()}
    if extra is not None:
        extra(clean["new"], clean["ref"])
    rng = np.random.default_rng(seed + 1000)
    variance = {k: (noise**2 * (NOISE[k] ** 2 + np.maximum(clean[k], 0) / 1.6)).astype(np.float32) for k in clean}
    noisy = {k: (clean[k] + rng.normal(0, 1, shape) * np.sqrt(variance[k])).astype(np.float32) for k in clean}
    return noisy, clean, variance, stars


def solve(noisy, variance=None, **more):
    if variance is not None:
        more |= {"variance_new": variance["new"], "variance_ref": variance["ref"]}
    return solve_sfft(noisy["new"], noisy["ref"], **more)


def applied(solution, image):
    """κ ⊗ image + B over the frame, by direct sums."""
    ny, nx = image.shape
    v, u = np.mgrid[:ny, :nx].astype(float)
    x, y = u.copy(), v.copy()
    u, v = (u - solution.x0) / solution.x_scale, (v - solution.y0) / solution.y_scale
    out = solution.background_at(x, y)
    for (i, j), p in zip(polynomials.powers(solution.degree), solution.planes, strict=True):
        out += u**i * v**j * fftconvolve(image, p, mode="same")
    return out


def worst_at_stars(solution, clean, stars, convolved="ref", brighter=2e4):
    """Largest |κ ⊗ T + B − target| within 7 pixels of bright stars, over the star's peak."""
    target, template = ("new", "ref") if convolved == "ref" else ("ref", "new")
    d = np.abs(applied(solution, clean[template]) - clean[target])
    worst = []
    for x, y, f in zip(*stars, strict=True):
        i, j = round(float(x)), round(float(y))
        if f > brighter and 12 < i < d.shape[1] - 12 and 12 < j < d.shape[0] - 12:
            box = np.s_[j - 7: j + 8, i - 7: i + 8]
            worst.append(d[box].max() / np.ptp(clean[target][box]))
    assert len(worst) > 20
    return np.array(worst)


@pytest.mark.parametrize("with_variance", [True, False])
def test_truth_of_a_varying_kernel(with_variance):
    noisy, clean, variance, stars = scene()
    before = {k: v.copy() for k, v in noisy.items()}
    s = solve(noisy, variance if with_variance else None)
    assert all(np.array_equal(noisy[k], before[k]) for k in noisy)
    assert s.planes.shape == (3, 17, 17)
    assert s.planes.dtype == np.float64
    assert s.convolved == "ref"
    worst = worst_at_stars(s, clean, stars)
    assert np.median(worst) < 0.0075
    assert np.percentile(worst, 90) < 0.0125
    # the wings of the true kernel beyond 8 pixels hold 0.2 %
    assert s.flux_scale == pytest.approx(RATIO, rel=0.003)
    assert s.kernel_at(20.0, 400.0).sum() == pytest.approx(s.flux_scale, rel=1e-9)
    yy, xx = np.mgrid[: SHAPE[0]: 40, : SHAPE[1]: 40].astype(float)
    np.testing.assert_allclose(s.background_at(xx, yy), plane(SHAPE)[::40, ::40], atol=0.6)
    if with_variance:
        assert s.figures["chi2"] == pytest.approx(1, abs=0.05)
    assert s.figures["sources_used"] > 100


def test_kernel_varies_as_the_psf_does():
    noisy, clean, variance, stars = scene(noise=0.3)
    assert np.median(worst_at_stars(solve(noisy, variance), clean, stars)) < 0.005
    constant = worst_at_stars(solve(noisy, variance, kernel_degree=0), clean, stars)
    assert constant.max() > 0.04


def test_noise_of_the_kernel_adds_little_to_the_difference():
    """Σκ² multiplies the reference's noise in the difference; without the ridge it would be many times as large."""
    noisy, _, variance, _ = scene(varies=False)
    smooth = np.sum(solve(noisy, variance).planes[0] ** 2)
    quiet, _, quiet_variance, _ = scene(varies=False, noise=0.03)
    truth = np.sum(solve(quiet, quiet_variance).planes[0] ** 2)
    assert truth == pytest.approx(0.055, rel=0.05)
    increase = 1 + (smooth - truth) * NOISE["ref"] ** 2 / (NOISE["new"] ** 2 + truth * NOISE["ref"] ** 2)
    assert increase < 1.01
    assert np.sum(solve(noisy, variance, ridge=0.0).planes[0] ** 2) > 1.1 * smooth


def test_direction():
    noisy, clean, variance, stars = scene(fwhm=(3.0, 4.0))
    s = solve(noisy, variance, convolve="auto", fwhm_new=3.0, fwhm_ref=4.0)
    assert s.convolved == "new"
    assert s.flux_scale == pytest.approx(1 / RATIO, rel=0.003)
    assert worst_at_stars(s, clean, stars, "new").max() < 0.015
    assert solve(noisy, convolve="auto", fwhm_new=3.0, fwhm_ref=2.9, half_width=3).convolved == "ref"


@pytest.mark.parametrize("bad_value", [np.nan, 1e6, -1e5])
def test_masked_pixels_do_not_matter(bad_value):
    rng = np.random.default_rng(3)
    noisy, clean, variance, stars = scene()
    mask = rng.random(SHAPE) < 0.002
    mask[:, 200:203] = True
    mask[300:306, :] = True
    x, y, f = stars
    for k in np.argsort(f)[-8:]:
        mask[int(y[k]) - 3: int(y[k]) + 4, int(x[k]) - 3: int(x[k]) + 4] = True
    results = []
    for fill in (0.0, bad_value):
        broken = {k: np.where(mask, np.float32(fill), v) for k, v in noisy.items()}
        results.append(solve(broken, variance, mask=mask))
    np.testing.assert_array_equal(results[0].planes, results[1].planes)
    s = results[1]
    assert s.figures["sources_used"] < s.figures["sources_found"]
    assert s.flux_scale == pytest.approx(RATIO, rel=0.003)
    assert np.median(worst_at_stars(s, clean, stars)) < 0.008


@pytest.mark.parametrize("what", ["variables", "transients near stars", "transients between stars", "gone"])
def test_changes_do_not_bias(what):
    still, clean, variance, stars = scene()
    x, y, f = stars
    some = np.argsort(f)[-40::8]

    def change(new, ref):
        if what == "variables":
            add_stars(new, x[some], y[some], 0.3 * RATIO * f[some], 4.0, SIZE)
        elif what == "transients near stars":
            add_stars(new, x[::9] + 6, y[::9] + 4, np.full(len(x[::9]), 2e4), 4.0, SIZE)
        elif what == "transients between stars":
            add_stars(new, x[::7] + 14, y[::7] + 14, np.full(len(x[::7]), 1e5), 4.0, SIZE)
        else:
            add_stars(ref, x[::7] + 14, y[::7] + 14, np.full(len(x[::7]), 1e5), 3.0, SIZE)

    noisy, _, changed_variance, _ = scene(extra=change)
    s, reference = solve(noisy, changed_variance), solve(still, variance)
    assert s.flux_scale == pytest.approx(reference.flux_scale, rel=0.0015)
    assert np.median(worst_at_stars(s, clean, stars)) < 0.012
    assert s.figures["chi2"] == pytest.approx(1, abs=0.05)
    assert what == "gone" or s.figures["sources_used"] < reference.figures["sources_used"]
    # a solution from all pixels is wrong by what the sources changed
    everything = solve(noisy, changed_variance, select="all")
    assert everything.figures["chi2"] > 1.3


def test_crowded_field_still_leaves_sources():
    shape = (210, 260)
    noisy, clean, variance, stars = scene(shape=shape, step=14, flux=(3.5, 4.7))
    mask = np.zeros(shape, bool)
    mask[70::100, 80::100] = True
    s = solve(noisy, variance, mask=mask)
    assert s.figures["sources_used"] > 30
    # a pedestal of κ is nearly degenerate with the background here
    assert s.flux_scale == pytest.approx(RATIO, rel=0.04)
    assert np.median(worst_at_stars(s, clean, stars)) < 0.02


def test_all_pixels_of_a_clean_pair():
    noisy, clean, variance, stars = scene()
    s = solve(noisy, variance, select="all")
    assert s.flux_scale == pytest.approx(RATIO, rel=0.004)
    assert np.median(worst_at_stars(s, clean, stars)) < 0.01


def design(template, weight, grid, w, degree, background_degree):
    """Columns P_m(x) T(x − s) and T_q(x) M(x) for every x up to w pixels outside the frame."""
    ny, nx = grid.shape
    yy, xx = np.mgrid[-w: ny + w, -w: nx + w].astype(float)
    u, v = (xx - grid.origin[0]) / grid.scale[0], (yy - grid.origin[1]) / grid.scale[1]
    wide, m = np.pad(template.astype(float), 2 * w), np.pad(weight.astype(float), w)
    columns = []
    for i, j in polynomials.powers(degree):
        for sy in range(-w, w + 1):
            for sx in range(-w, w + 1):
                shifted = wide[w - sy: w - sy + ny + 2 * w, w - sx: w - sx + nx + 2 * w]
                columns.append((u**i * v**j * shifted).ravel())
    columns += [(u**i * v**j * m).ravel() for i, j in polynomials.powers(background_degree)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("degree", "background_degree"), [(0, 0), (1, 1), (2, 1), (1, 3)])
def test_sums_are_those_of_the_design_matrix(monkeypatch, degree, background_degree):
    """Any weight map, several tiles, both parities, polynomials at the shifted position: exact in float64."""
    monkeypatch.setattr(sfft_sums, "PRECISION", np.float64)
    monkeypatch.setattr(sfft_sums, "TILE", 48)
    rng = np.random.default_rng(8)
    shape, w = (61, 90), 2
    grid = Grid(shape)
    weight = (rng.uniform(0, 2, shape) * (rng.random(shape) < 0.4)).astype(np.float32)
    template, target = (rng.normal(3, 2, shape).astype(np.float32) for _ in range(2))
    tiling = sfft_sums.Tiling(grid, w)
    assert tiling.rows * tiling.columns > 4
    windows = sfft_sums.Windows(tiling.windows(template), tiling.windows(target), None, 0.0)
    sums = sfft_sums.Sums(tiling, w, degree, background_degree, np)
    sums.add(windows, weight, tiling.active(weight))
    sums.add(windows, 2 * weight, tiling.active(weight))
    sums.add(windows, 2 * weight, tiling.active(weight), -1)
    a, rhs = sfft._system(sums, sfft._Model(grid, w, degree, background_degree, False, 0.0), np)
    x = design(template * weight, weight, grid, w, degree, background_degree)
    truth = x.T @ x
    np.testing.assert_allclose(a, truth, atol=1e-8 * truth.max())
    expected = x.T @ np.pad(target * weight, w).ravel().astype(float)
    np.testing.assert_allclose(rhs, expected, atol=1e-8 * np.abs(expected).max())


def test_agrees_with_direct_least_squares():
    """Against an unweighted fit of the untruncated images at pixels near bright stars, no noise."""
    noisy, clean, _, stars = scene(shape=(150, 161), varies=False, noise=1e-3, step=35)
    w = 4
    s = solve(noisy, half_width=w, kernel_degree=0, ridge=0.0)
    x = design(clean["ref"], np.ones((150, 161)), Grid((150, 161)), w, 0, 1)
    near = np.zeros((150, 161), bool)
    for i, j in zip(np.rint(stars[0]).astype(int), np.rint(stars[1]).astype(int), strict=True):
        near[j - 10: j + 11, i - 10: i + 11] = True
    rows = np.pad(near, w).ravel()
    fit = np.linalg.lstsq(x[rows], clean["new"][near], rcond=None)[0]
    direct, ours = (fftconvolve(stamp(31, 3.0), k, mode="same") for k in (fit[:-3].reshape(9, 9), s.planes[0]))
    assert np.abs(direct - ours).max() < 0.012 * direct.max()
    assert s.flux_scale == pytest.approx(fit[:-3].sum(), rel=0.003)


def test_single_precision_is_enough(monkeypatch):
    noisy, _, variance, _ = scene()
    single = solve(noisy, variance)
    monkeypatch.setattr(sfft_sums, "PRECISION", np.float64)
    double = solve(noisy, variance)
    assert np.abs(single.planes - double.planes).max() < 1e-4 * double.planes.max()


def test_few_sources_take_a_simpler_kernel():
    noisy, _, variance, _ = scene(shape=(120, 160), step=38, flux=(4.8, 5.3))
    s = solve(noisy, variance, kernel_degree=2)
    assert 6 <= s.figures["sources_used"] < 12
    assert s.degree == 1
    assert s.planes.shape == (3, 17, 17)
    assert s.flux_scale == pytest.approx(RATIO, rel=0.006)


def test_flux_scale_that_varies():
    noisy, _, _, _ = scene(varies=False, noise=0.3)
    slope = (1 + 0.1 * (2 * np.arange(SHAPE[1]) / SHAPE[1] - 1)).astype(np.float32)
    noisy["new"] = (noisy["new"] - plane(SHAPE).astype(np.float32)) * slope
    s = solve(noisy, constant_flux=False)
    assert s.kernel_at(60.0, 200.0).sum() == pytest.approx(RATIO * slope[60], rel=0.01)
    assert s.kernel_at(400.0, 200.0).sum() == pytest.approx(RATIO * slope[400], rel=0.01)


def test_errors():
    noisy, _, variance, _ = scene(shape=(150, 160), step=40)
    new, ref = noisy["new"], noisy["ref"]
    for more, text in [
        ({"half_width": 0}, "half_width.*0"), ({"half_width": 40}, "half_width.*40"),
        ({"kernel_degree": -1}, "kernel_degree.*-1"), ({"background_degree": 9}, "background_degree.*9"),
        ({"ridge": -1.0}, "ridge.*-1"), ({"select": "some"}, "select.*'some'"),
        ({"convolve": "best"}, "convolve.*'best'"), ({"convolve": "auto"}, "fwhm_new.*None"),
        ({"mask": np.zeros((3, 4), bool)}, r"mask.*\(3, 4\)"),
        ({"variance_ref": variance["ref"][1:]}, r"variance_ref.*\(149, 160\)"),
        ({"mask": np.ones(new.shape, bool)}, "nothing to fit"),
    ]:
        with pytest.raises(ValueError, match="solve_sfft: .*" + text):
            solve_sfft(new, ref, **more)
    with pytest.raises(ValueError, match=r"ref .*\(150, 159\)"):
        solve_sfft(new, ref[:, 1:])
    rng = np.random.default_rng(1)
    empty = rng.normal(0, 1, (2, 150, 160)).astype(np.float32)
    with pytest.raises(ValueError, match="nothing to fit: no source"):
        solve_sfft(empty[0], empty[1])
