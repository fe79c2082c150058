"""The Alard–Lupton kernel against simulated pairs whose noiseless images are known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from kernel_truth import add_stars

from seechange_mpi.gpu_kernels import alard_lupton_stamps as als
from seechange_mpi.gpu_kernels.alard_lupton import default_basis, solve_alard_lupton

SHAPE = (600, 641)
RATIO = 0.9
GAIN = 1.6
PLANE = (3.0, 2.0, -1.0)


def background():
    ny, nx = SHAPE
    yy, xx = np.mgrid[:ny, :nx]
    return PLANE[0] + PLANE[1] * (xx - (nx - 1) / 2) / (nx / 2) + PLANE[2] * (yy - (ny - 1) / 2) / (ny / 2)


@lru_cache(maxsize=8)
def pair(fwhm_new, fwhm_ref, n=150, variable=0.0, seed=1):
    """Images in ADU with all that is true of them; the PSFs widen by ±3 % along x (new) and y (ref)."""
    rng = np.random.default_rng(seed)
    ny, nx = SHAPE
    x, y = rng.uniform(0, nx, n), rng.uniform(0, ny, n)
    flux = (2e4**-0.8 + rng.uniform(0, 1, n) * (5e5**-0.8 - 2e4**-0.8)) ** (-1 / 0.8) / GAIN
    change = np.where(rng.uniform(size=n) < variable, rng.choice([0.7, 1.4], n), 1.0)
    clean = {"new": np.zeros(SHAPE), "ref": np.zeros(SHAPE)}
    add_stars(clean["new"], x, y, flux * RATIO * change, fwhm_new * (1 + 0.06 * (np.round(x / nx * 16) / 16 - 0.5)), 41)
    add_stars(clean["ref"], x, y, flux, fwhm_ref * (1 + 0.06 * (np.round(y / ny * 16) / 16 - 0.5)), 41)
    images = {}
    for name, sky in (("new", 200.0), ("ref", 150.0)):
        floor = sky / GAIN + (7 / GAIN) ** 2
        data = clean[name] + rng.normal(size=SHAPE) * np.sqrt(clean[name] / GAIN + floor)
        images[f"variance_{name}"] = np.maximum(data / GAIN + floor, 1.0).astype(np.float32)
        images[name] = (data + (background() if name == "new" else 0)).astype(np.float32)
    return {"images": images, "clean": clean, "x": x, "y": y, "flux": flux, "change": change,
            "fwhm": {"fwhm_new": fwhm_new, "fwhm_ref": fwhm_ref}}


@lru_cache(maxsize=8)
def solved(fwhm_new, fwhm_ref, **kwargs):
    p = pair(fwhm_new, fwhm_ref)
    return solve_alard_lupton(**p["images"], **p["fwhm"], **kwargs)


def star_residuals(p, solution, brightest=40, half=10):
    """Largest |κ ⊗ T − I| of the noiseless images over the peak of I, per constant bright star."""
    convolved = p["clean"][solution.convolved]
    target = p["clean"]["new" if solution.convolved == "ref" else "ref"]
    reach = half + solution.planes.shape[1] // 2
    out = []
    for k in np.argsort(-p["flux"]):
        i, j = round(p["x"][k]), round(p["y"][k])
        if p["change"][k] != 1 or not (reach <= i < SHAPE[1] - reach and reach <= j < SHAPE[0] - reach):
            continue
        cut = convolved[j - reach : j + reach + 1, i - reach : i + reach + 1]
        truth = target[j - half : j + half + 1, i - half : i + half + 1]
        model = scipy.signal.fftconvolve(cut, solution.kernel_at(i, j), mode="valid")
        out.append((np.abs(model - truth).max() / truth.max(), (model - truth).std() / truth.max()))
    return np.array(out[:brightest])


@pytest.mark.parametrize(("fwhm_new", "fwhm_ref", "convolved"),
                         [(4.0, 3.0, "ref"), (3.0, 4.0, "new"), (6.0, 3.0, "ref")])
def test_kernel_matches_the_noiseless_images(fwhm_new, fwhm_ref, convolved):
    solution = solved(fwhm_new, fwhm_ref)
    assert solution.convolved == convolved
    largest, rms = np.median(star_residuals(pair(fwhm_new, fwhm_ref), solution), axis=0)
    assert rms < 0.003
    assert largest < 0.01
    scale = RATIO if convolved == "ref" else 1 / RATIO
    assert solution.flux_scale == pytest.approx(scale, rel=0.003)
    assert solution.kernel_at(100, 500).sum() == pytest.approx(solution.flux_scale, rel=1e-9)
    assert solution.figures["chi2_median"] == pytest.approx(1, abs=0.04)
    assert solution.figures["deconvolution"] == 0
    b = np.array(PLANE) if convolved == "ref" else -np.array(PLANE) / RATIO
    assert solution.background == pytest.approx(b, abs=0.3)


def test_images_of_one_width_get_a_kernel_close_to_one_pixel():
    """Plain least squares gives κ with Σκ² near 0.2 and residuals of 5 %: the noise of T is in its normal matrix."""
    solution = solved(4.0, 4.0)
    assert np.median(star_residuals(pair(4.0, 4.0), solution)[:, 0]) < 0.012
    assert solution.figures["noise_gain"] > 0.6
    assert np.isfinite(solution.figures["merit_other"])
    assert solution.flux_scale == pytest.approx(RATIO if solution.convolved == "ref" else 1 / RATIO, rel=0.005)


def test_sharper_image_is_convolved_when_both_directions_are_fitted():
    solution = solved(3.2, 3.0)
    assert solution.convolved == "ref"
    assert np.isfinite(solution.figures["merit_other"])


def test_forced_deconvolution_is_told_and_noisier():
    solution = solved(4.0, 3.0, convolve="new")
    assert solution.convolved == "new"
    assert solution.figures["deconvolution"] == 1
    assert solution.figures["noise_gain"] > 3 * solved(4.0, 3.0).figures["noise_gain"]
    p = pair(4.0, 3.0)
    with pytest.raises(ValueError, match=r"convolve='new' .* 7\.0 pixels to 3\.0"):
        solve_alard_lupton(**p["images"], fwhm_new=7.0, fwhm_ref=3.0, convolve="new")


def test_variable_stars_are_clipped():
    p = pair(4.0, 3.0, variable=0.25)
    solution = solve_alard_lupton(**p["images"], **p["fwhm"])
    assert solution.flux_scale == pytest.approx(RATIO, rel=0.005)
    assert np.median(star_residuals(p, solution)[:, 0]) < 0.012
    assert solution.figures["stamps_used"] < 0.9 * solution.figures["stamps_offered"]
    assert solution.figures["flux_scale_spread"] < 0.015


def test_masked_pixels_do_not_matter():
    p = pair(4.0, 3.0)
    rng = np.random.default_rng(5)
    mask = rng.uniform(size=SHAPE) < 0.002
    mask[300:304] = True
    images = {k: v.copy() for k, v in p["images"].items()}
    for name in ("new", "ref"):
        images[name][mask] = rng.choice([np.nan, np.inf, 1e6, -1e4], mask.sum())
    before = {k: v.copy() for k, v in images.items()}
    solution = solve_alard_lupton(**images, **p["fwhm"], mask=mask)
    assert solution.flux_scale == pytest.approx(RATIO, rel=0.006)
    assert np.median(star_residuals(p, solution)[:, 0]) < 0.014
    for name, image in images.items():
        np.testing.assert_array_equal(image, before[name])


def test_given_positions_and_varying_flux():
    p = pair(4.0, 3.0)
    x, y = np.append(p["x"], [np.nan, -50, 1e5]), np.append(p["y"], [3, 10, 10])
    solution = solve_alard_lupton(**p["images"], **p["fwhm"], x=x, y=y, constant_flux=False, max_stamps=60)
    assert solution.figures["stamps_offered"] == 60
    assert np.median(star_residuals(p, solution)[:, 0]) < 0.014
    assert abs(solution.kernel_at(0, 0).sum() / solution.flux_scale - 1) > 1e-6
    assert solution.flux_scale == pytest.approx(RATIO, rel=0.006)


@pytest.mark.parametrize(("n", "degree"), [(18, 1), (9, 0)])
def test_few_stars_lower_the_degree(n, degree):
    p = pair(4.0, 3.0, n=n, seed=4)
    solution = solve_alard_lupton(**p["images"], **p["fwhm"])
    assert solution.figures["kernel_degree"] == solution.degree == degree
    assert solution.planes.shape[0] == {1: 3, 0: 1}[degree]
    assert solution.flux_scale == pytest.approx(RATIO, rel=0.03)
    assert np.median(star_residuals(p, solution)[:, 0]) < 0.05


def test_crowded_field():
    p = pair(4.0, 3.0, n=600, seed=2)
    solution = solve_alard_lupton(**p["images"], **p["fwhm"])
    assert solution.flux_scale == pytest.approx(RATIO, rel=0.004)
    assert np.median(star_residuals(p, solution)[:, 0]) < 0.01


def test_basis_convolution_and_flux_constancy():
    rng = np.random.default_rng(3)
    factors, runs = als.basis_functions(default_basis(4.0, 3.0), 5)
    cuts = rng.normal(size=(2, 23, 23))
    got = als.convolve_basis(cuts, factors, runs, 13)
    pairs = [(a, b) for first, count, b in runs for a in range(first, first + count)]
    assert got.shape == (2, 28 + 15 + 6, 13, 13)
    for n in (0, 3, 17, 30, 48):
        phi = np.outer(factors[pairs[n][1]], factors[pairs[n][0]])
        want = scipy.signal.convolve2d(cuts[1], phi, mode="valid")
        np.testing.assert_allclose(got[1, n], want, atol=1e-10)
    transform, images = als.flux_constant_transform(factors, runs)
    flat = images.reshape(len(images), -1)
    assert images[0].sum() == pytest.approx(1)
    np.testing.assert_allclose(flat[1:].sum(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(flat[1:] @ flat[1:].T, np.eye(len(flat) - 1), atol=1e-7)
    assert transform.shape[0] == len(images)


def test_stamps_spread_over_the_cells():
    rng = np.random.default_rng(0)
    x, y, snr = rng.integers(0, 200, 300), rng.integers(0, 100, 300), rng.uniform(1, 9, 300)
    order = als.spread_order(x, y, snr, (100, 200), (2, 3))
    cells = (y * 2 // 100) * 3 + x * 3 // 200
    assert sorted(cells[order[:6]]) == list(range(6))
    for k in order[:6]:
        assert snr[k] == snr[cells == cells[k]].max()


@pytest.mark.parametrize(("change", "message"), [
    ({"ref": np.zeros((5, 6), np.float32)}, r"ref must have the shape of new, \(600, 641\), found \(5, 6\)"),
    ({"mask": np.zeros((5, 6), bool)}, r"mask must have the shape"),
    ({"mask": np.ones(SHAPE, bool)}, r"mask leaves no pixel of \(600, 641\)"),
    ({"fwhm_new": -1.0}, r"fwhm_new must be a positive number of pixels, found -1\.0"),
    ({"fwhm_ref": float("nan")}, r"fwhm_ref must be .* found nan"),
    ({"convolve": "both"}, r"found 'both'"),
    ({"x": np.zeros(3)}, r"x and y go together, found only x"),
    ({"x": np.zeros(3), "y": np.zeros(2)}, r"shapes \(3,\) and \(2,\)"),
    ({"x": np.full(3, 300.0), "y": np.full(3, 300.0)}, r"needs at least 3 usable stamps, found [01] \(of 3 given"),
    ({"new": np.zeros(SHAPE, np.float32)}, r"needs at least 3 usable stamps, found 0 \(isolated peaks"),
    ({"basis": ((-1.0, 2),)}, r"basis must be .*-1\.0"),
    ({"kernel_degree": -1}, r"kernel_degree must be at least 0, found -1"),
    ({"iterations": 0}, r"iterations must be at least 1, found 0"),
    ({"half_width": 300}, r"no stamp of \d+ pixels fits into new of shape"),
    ({"stamps_per_axis": (0, 3)}, r"found \(0, 3\)"),
])
def test_errors_name_the_argument(change, message):
    p = pair(4.0, 3.0)
    with pytest.raises(ValueError, match="solve_alard_lupton: .*" + message):
        solve_alard_lupton(**{**p["images"], **p["fwhm"], **change})
