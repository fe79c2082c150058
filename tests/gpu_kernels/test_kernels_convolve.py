"""Convolution against scipy.signal and the plain sum for kernels that vary."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import stamp
from scipy.signal import convolve2d

from seechange_mpi.gpu_kernels.convolve import convolve_direct, convolve_fft, convolve_variance, convolve_varying

NARROW, WIDE = stamp(9, 2.0), stamp(9, 3.5)
SHAPES = [((60, 71), (5, 7)), ((61, 64), (15, 1)), ((9, 11), (21, 15)), ((1, 40), (3, 3))]


@pytest.mark.parametrize("convolve", [convolve_fft, convolve_direct])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_as_scipy(convolve, shape, size):
    rng = np.random.default_rng(1)
    image, kernel = rng.normal(size=shape), rng.normal(size=size)
    pad = [(s // 2, s // 2) for s in size]
    truth = convolve2d(np.pad(image, pad), kernel, mode="valid")
    scale = np.abs(kernel).sum() * np.abs(image).max()
    for dtype, error in ((np.float64, 1e-14), (np.float32, 3e-7)):
        given = image.astype(dtype)
        before = given.copy()
        found = convolve(given, kernel.astype(dtype))
        assert found.dtype == dtype
        assert np.abs(found - truth).max() < error * scale
        assert (given == before).all()
    assert convolve((image * 10).astype(np.int16), kernel).dtype == np.float32


@pytest.mark.parametrize("convolve", [convolve_fft, convolve_direct,
                                      lambda i, k, m: convolve_varying(i, lambda x, y: k, m)])
def test_masked_and_unknown_pixels_are_zero(convolve):
    rng = np.random.default_rng(2)
    image, kernel = rng.normal(size=(40, 50)), rng.normal(size=(5, 5))
    mask = rng.random(image.shape) < 0.1
    dirty = image.copy()
    dirty[3, 4], dirty[30, 2], dirty[mask] = np.nan, np.inf, 1e9
    image[3, 4] = image[30, 2] = 0
    image[mask] = 0
    assert np.abs(convolve(dirty, kernel, mask) - convolve2d(image, kernel, mode="same")).max() < 1e-12


def test_stack_of_stamps():
    rng = np.random.default_rng(3)
    stamps, kernel = rng.normal(size=(4, 2, 15, 16)).astype(np.float32), rng.normal(size=(7, 5)).astype(np.float32)
    found = convolve_direct(stamps, kernel)
    assert found.shape == stamps.shape
    for k in np.ndindex(4, 2):
        assert np.allclose(found[k], convolve2d(stamps[k], kernel, mode="same"), atol=1e-4)


def varying(x: float, y: float) -> np.ndarray:
    """Kernel linear in x and y: a PSF that gets wider and is displaced."""
    return NARROW + x / 200 * (WIDE - NARROW) + y / 150 * (np.roll(NARROW, 1, axis=1) - NARROW)


def direct_varying(image: np.ndarray, kernel_at) -> np.ndarray:
    out = np.zeros_like(image)
    padded = np.pad(image, 4)
    for y, x in np.ndindex(*image.shape):
        out[y, x] = (padded[y: y + 9, x: x + 9] * kernel_at(x, y)[::-1, ::-1]).sum()
    return out


def test_kernel_linear_in_position_is_exact():
    image = np.random.default_rng(4).normal(size=(75, 90))
    truth = direct_varying(image, varying)
    for tile in (30, 64, 1000):
        found = convolve_varying(image, varying, tile=tile)
        assert np.abs(found - truth).max() < 1e-12
        assert np.abs(convolve_varying(image.astype(np.float32), varying, tile=tile) - truth).max() < 3e-6


def test_curved_kernel_within_stated_error_and_without_joins():
    """Amplitude 1 + 1e-5 x²: linear interpolation between nodes 40 pixels apart errs by up to 40² / 8 · 2e-5."""
    kernel = stamp(9, 2.5)
    image = np.ones((121, 161))
    found = convolve_varying(image, lambda x, y: (1 + 1e-5 * x**2) * kernel, tile=40)
    inner = (slice(5, -5), slice(5, -5))
    error = (found - (1 + 1e-5 * np.arange(161) ** 2))[inner]
    assert error.max() == pytest.approx(40**2 / 8 * 2e-5, rel=0.02)
    assert error.min() > -1e-12
    slope = np.diff(found[60, 5:-5])
    assert np.abs(np.diff(slope)).max() < 1.01 * 2e-5 * 40  # no step at the nodes: only the slope changes


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (57, 11)])
def test_varying_kernel_on_odd_shapes(shape):
    image = np.random.default_rng(5).normal(size=shape)
    assert np.abs(convolve_varying(image, varying, tile=16) - direct_varying(image, varying)).max() < 1e-12


def test_variance_of_the_convolved_image():
    """Predicted variance per pixel against 400 realisations; each figure has an error of 7 %."""
    rng = np.random.default_rng(6)
    variance = rng.uniform(1, 9, (40, 40)).astype(np.float32)
    mask = np.zeros(variance.shape, bool)
    mask[10:14, 20] = True
    kernel = (stamp(9, 2.5) - 0.4 * stamp(9, 4.0)).astype(np.float32)
    many = np.stack([convolve_fft(rng.normal(0, np.sqrt(variance)).astype(np.float32), kernel, mask)
                     for _ in range(400)])
    ratio = many.var(axis=0) / convolve_variance(variance, kernel, mask)
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert np.abs(ratio - 1).max() < 6 * np.sqrt(2 / 400)
    one_bright = np.zeros((30, 30), np.float32)
    one_bright[3, 3] = 1e8
    assert convolve_variance(one_bright, kernel).min() >= 0


def test_wrong_arguments_are_named():
    image = np.zeros((20, 20), np.float32)
    with pytest.raises(ValueError, match=r"convolve_fft: kernel must be an odd stamp, found shape \(4, 5\)"):
        convolve_fft(image, np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"convolve_direct: mask must have the shape of image, \(20, 20\)"):
        convolve_direct(image, np.zeros((3, 3)), np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match=r"convolve_varying: kernel_at must give stamps of shape \(1, 1\), found"):
        convolve_varying(image, lambda x, y: np.zeros((1, 1) if x == 0 else (3, 3)))
    with pytest.raises(ValueError, match="convolve_varying: tile must be at least 1, found 0"):
        convolve_varying(image, varying, tile=0)
