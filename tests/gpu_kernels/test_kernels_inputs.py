"""Arrays as files and callers give them: integers, both byte orders, infinite variances, positions far away."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, stamp

from seechange_mpi.gpu_kernels.alard_lupton import solve_alard_lupton
from seechange_mpi.gpu_kernels.background import fit_background, fit_mesh
from seechange_mpi.gpu_kernels.convolve import convolve_fft
from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics, laplacian
from seechange_mpi.gpu_kernels.detect import find_peaks
from seechange_mpi.gpu_kernels.photometry import SKIPPED, psf_photometry
from seechange_mpi.gpu_kernels.stamps import cut_stamps

SHAPE = (300, 260)


def pair():
    rng = np.random.default_rng(1)
    x, y = grid_positions(rng, SHAPE, 30)
    flux = 10 ** rng.uniform(3.5, 5, len(x))
    out = []
    for fwhm in (4.0, 3.0):
        image = np.full(SHAPE, 300.0)
        add_stars(image, x, y, flux, fwhm, 25)
        out.append(rng.poisson(image).clip(0, 30000).astype(np.float32))
    return out


@pytest.mark.parametrize("dtype", ["u2", "i4", ">i2"])
def test_peaks_of_integers(dtype):
    image = pair()[0]
    expected, found = find_peaks(image, 800.0), find_peaks(image.astype(dtype), 800.0)
    assert len(expected.x) > 10
    assert np.array_equal(expected.peak_x, found.peak_x)
    assert np.allclose(expected.x, found.x)


@pytest.mark.parametrize("dtype", ["u2", "i4", ">i2"])
def test_kernel_of_integers(dtype):
    images = pair()
    variance = np.full(SHAPE, 300, np.float32)
    args = {"variance_new": variance, "variance_ref": variance, "fwhm_new": 4.0, "fwhm_ref": 3.0, "kernel_degree": 0}
    expected = solve_alard_lupton(*images, **args)
    found = solve_alard_lupton(*(a.astype(dtype) for a in images), **args)
    assert expected.figures["stamps_used"] == found.figures["stamps_used"]
    assert np.allclose(expected.planes, found.planes, atol=1e-6)


@pytest.mark.parametrize("dtype", ["u2", "i4", ">f4"])
def test_laplacian_of_integers(dtype):
    image = pair()[0]
    found = laplacian(image.astype(dtype))
    assert found.dtype == np.float32
    assert np.array_equal(found, laplacian(image))


def test_double_precision_of_a_fits_file():
    image, kernel = pair()[0].astype(np.float64) * np.pi, stamp(25, 3.0).astype(np.float64)
    found = convolve_fft(image.astype(">f8"), kernel)
    assert found.dtype == np.float64
    assert np.array_equal(found, convolve_fft(image, kernel))


@pytest.mark.parametrize("fit_position", [False, True])
def test_pixels_of_infinite_variance_measure_nothing(fit_position):
    image = pair()[0] - 300
    variance = np.full(SHAPE, 300, np.float32)
    variance[90:130, 90:130] = np.inf
    result = psf_photometry(image, variance, np.zeros(SHAPE, bool), np.array([110.0, 200.0]), np.array([110.0, 200.0]),
                            stamp(25, 4.0), fit_position=fit_position)
    assert result.flags[0] & SKIPPED
    assert np.isnan(result.flux[0])
    assert np.isfinite(result.flux[1])


@pytest.mark.filterwarnings("error")
def test_stamps_far_away_lie_outside():
    far = np.array([1e30, -1e30, np.inf, np.nan, 1e12])
    stamps, inside = cut_stamps(np.ones(SHAPE), far, np.zeros(5), 5)
    assert not inside.any()
    assert not stamps.any()


@pytest.mark.parametrize("fit", [fit_mesh, fit_background])
@pytest.mark.parametrize(("change", "words"), [
    ({"box_size": 0}, "box_size must be at least 1, found 0"),
    ({"box_size": -3}, "box_size must be at least 1, found -3"),
    ({"filter_size": 0}, "filter_size must be at least 1, found 0"),
    ({"mask": np.zeros((2, 2), bool)}, r"mask must have the shape of data, \(300, 260\), found \(2, 2\)"),
])
def test_background_says_what_is_wrong(fit, change, words):
    with pytest.raises(ValueError, match=f"{fit.__name__}: {words}"):
        fit(np.zeros(SHAPE, np.float32), **change)


@pytest.mark.parametrize(("change", "words"), [
    ({"sigma": 0.0}, "sigma must be positive, found 0.0"),
    ({"contrast": -1.0}, "contrast must be positive, found -1.0"),
    ({"variance": np.ones((2, 2), np.float32)}, r"variance must have the shape of data, \(300, 260\), found \(2, 2\)"),
    ({"mask": np.zeros((2, 2), bool)}, r"mask must have the shape of data, \(300, 260\), found \(2, 2\)"),
])
def test_cosmic_rays_say_what_is_wrong(change, words):
    args = {"variance": np.ones(SHAPE, np.float32), "mask": np.zeros(SHAPE, bool)} | change
    with pytest.raises(ValueError, match=f"detect_cosmics: {words}"):
        detect_cosmics(np.zeros(SHAPE, np.float32), **args)
