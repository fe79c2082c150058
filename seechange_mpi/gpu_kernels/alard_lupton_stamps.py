"""Stamps and basis functions of the Alard–Lupton fit: where to look at the images, and what to fit there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels import polynomials
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.stamps import cut_stamps

_BLOCK = 16
_STRIP_ROWS = 128
_DEPENDENT = 1e-4

Basis = Sequence[tuple[float, int]]
"""(σ in pixels, highest degree of the polynomial) of each Gaussian."""


Images = tuple[Array, Array, Array, Array]
"""Two images and their variances, in the same order."""


def part_of(images: Images, index: Any) -> Images:
    """Return the four arrays indexed alike."""
    new, ref, variance_new, variance_ref = images
    return new[index], ref[index], variance_new[index], variance_ref[index]


def signal_to_noise(images: Images, mask: Array | None) -> Array:
    """Return the smaller of the two images' S/N per pixel, −inf where a pixel is bad, in the images' shape."""
    new, ref, variance_new, variance_ref = images
    xp = get_xp(new)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = xp.minimum(new / xp.sqrt(variance_new), ref / xp.sqrt(variance_ref))
    bad = ~xp.isfinite(snr)
    if mask is not None:
        bad |= mask
    snr[bad] = -xp.inf
    return snr


def _block_maxima(images: Images, mask: Array | None) -> Array:
    """Return (ny // 16, nx // 16): the largest S/N of each block, a strip of rows at a time on the CPU."""
    xp = get_xp(images[0])
    by, bx = (n // _BLOCK for n in images[0].shape)
    best = xp.empty((by, bx))
    step = _STRIP_ROWS // _BLOCK if xp is np else by
    for b in range(0, by, step):
        e = min(b + step, by)
        part = (slice(b * _BLOCK, e * _BLOCK), slice(0, bx * _BLOCK))
        snr = signal_to_noise(part_of(images, part), None if mask is None else mask[part])
        best[b:e] = snr.reshape(e - b, _BLOCK, -1).max(axis=1).reshape(e - b, bx, _BLOCK).max(axis=2)
    return best


def find_peaks(images: Images, mask: Array | None,
               threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find isolated peaks seen in both images.

    A peak is the brightest pixel (by the smaller S/N of the two images) of its 16 × 16 block and of the eight
    blocks around it.

    Parameters
    ----------
    images : new, ref, variance_new, variance_ref, each (ny, nx).
    mask : (ny, nx) bool, True = bad, or None.
    threshold : least S/N of the peak pixel.

    Returns
    -------
    x, y : (n,) int;  snr : (n,) float.  Host memory.
    """
    xp = get_xp(images[0])
    best = asnumpy(_block_maxima(images, mask))
    padded = np.pad(best, 1, constant_values=-np.inf)
    around = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    around = np.maximum(np.maximum(around[:, :-2], around[:, 1:-1]), around[:, 2:])
    jy, jx = np.nonzero((best >= around) & (best >= threshold))
    if not len(jy):
        return jx, jy, np.zeros(0)
    step = np.arange(_BLOCK)
    rows = xp.asarray(jy[:, None, None] * _BLOCK + step[None, :, None])
    columns = xp.asarray(jx[:, None, None] * _BLOCK + step[None, None, :])
    snr = signal_to_noise(part_of(images, (rows, columns)), None if mask is None else mask[rows, columns])
    at = asnumpy(snr.reshape(len(jy), -1).argmax(axis=1))
    return jx * _BLOCK + at % _BLOCK, jy * _BLOCK + at // _BLOCK, best[jy, jx]


def spread_order(x: np.ndarray, y: np.ndarray, snr: np.ndarray, shape: tuple[int, int],
                 per_axis: tuple[int, int]) -> np.ndarray:
    """Return the order that takes the brightest of every cell of a (ny, nx) grid, then every second brightest, …"""
    cell = (y * per_axis[0] // shape[0]).astype(int) * per_axis[1] + (x * per_axis[1] // shape[1]).astype(int)
    by_cell = np.lexsort((-snr, cell))
    sorted_cell = cell[by_cell]
    rank = np.arange(len(x)) - np.searchsorted(sorted_cell, sorted_cell)
    return by_cell[np.lexsort((-snr[by_cell], rank))]


def basis_functions(basis: Basis, half_width: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Return the one-dimensional factors of AL98's basis and how they combine.

    Returns
    -------
    factors : (m, s) float64, (u/σ)^i exp(−u²/2σ²) on u = −half_width … half_width, all powers of each Gaussian.
    runs : (first factor of x, number of factors, factor of y): functions with one power of y lie together, in the
        order of `polynomials.powers`.
    """
    u = np.arange(-half_width, half_width + 1, dtype=np.float64)
    factors: list[np.ndarray] = []
    runs = []
    for sigma, degree in basis:
        first = len(factors)
        factors += [(u / sigma) ** i * np.exp(-0.5 * (u / sigma) ** 2) for i in range(degree + 1)]
        runs += [(first, degree + 1 - j, first + j) for j in range(degree + 1)]
    return np.array(factors), runs


def flux_constant_transform(factors: np.ndarray,
                            runs: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Combine AL98's functions into φ_0 of unit sum and orthonormal functions of zero sum (AL00).

    Combinations that are linearly dependent on the pixel grid (Gaussians narrower than a pixel) are left out.

    Returns
    -------
    transform : (k, n) float64, k ≤ n: the new functions in terms of the old.
    images : (k, s, s) float64: the new functions.
    """
    pairs = [(x, y) for first, count, y in runs for x in range(first, first + count)]
    raw = np.array([np.outer(factors[y], factors[x]) for x, y in pairs])
    n, s = len(pairs), factors.shape[1]
    sums = raw.sum(axis=(1, 2))
    first = np.zeros((1, n))
    first[0, 0] = 1 / sums[0]
    zero_sum = np.eye(n)[1:]
    zero_sum[:, 0] = -sums[1:] / sums[0]
    flat = raw.reshape(n, -1)
    zero_sum /= np.linalg.norm(zero_sum @ flat, axis=1, keepdims=True)
    u, size, _ = np.linalg.svd(zero_sum @ flat, full_matrices=False)
    keep = size > _DEPENDENT * size.max(initial=0.0)
    transform = np.concatenate([first, (u[:, keep] / size[keep]).T @ zero_sum])
    return transform, (transform @ flat).reshape(-1, s, s)


def _bands(factors: np.ndarray, size: int) -> np.ndarray:
    """Return (m, size, size + s − 1): matrices that convolve a row with each factor ("valid" part)."""
    m, s = factors.shape
    out = np.zeros((m, size, size + s - 1))
    for k in range(s):
        out[:, np.arange(size), np.arange(size) + s - 1 - k] = factors[:, k, None]
    return out


def convolve_basis(cuts: Array, factors: np.ndarray, runs: list[tuple[int, int, int]], size: int) -> Array:
    """Convolve every cut-out with every basis function, one axis after the other.

    Parameters
    ----------
    cuts : (n, size + s − 1, size + s − 1) float64.
    factors, runs : of `basis_functions`.

    Returns
    -------
    (n, number of functions, size, size) float64.
    """
    xp = get_xp(cuts)
    n, wide, _ = cuts.shape
    m = len(factors)
    bands = xp.asarray(_bands(factors, size))
    along_x = (cuts.reshape(n * wide, wide) @ bands.reshape(m * size, wide).T).reshape(n, wide, m * size)
    out = xp.empty((n, sum(count for _, count, _ in runs), size, size))
    at = 0
    for first, count, y in runs:
        part = bands[y] @ along_x[:, :, first * size : (first + count) * size]
        out[:, at : at + count] = part.reshape(n, size, count, size).transpose(0, 2, 1, 3)
        at += count
    return out


def _box(size: int, wide: int, reach: int, xp: Any) -> Array:
    """Return (size, wide): sums over ±reach pixels, rows centred in the wider axis."""
    centre = xp.arange(size)[:, None] + (wide - size) // 2
    return (xp.abs(xp.arange(wide)[None, :] - centre) <= reach).astype(xp.float64)


@dataclass
class StampSet:
    """Cut-outs of both images.

    Attributes
    ----------
    x, y : (n,) int, centre pixels; host memory.
    target, target_variance : (n, size, size) float64: the image that is not convolved.
    good : (n, size, size) bool: pixels to fit.
    cuts, cuts_variance : (n, size + 2·half_width, …) float64: the image to convolve, bad pixels filled.

    Both variances are means over neighbouring pixels: a variance that holds the pixel's own noise gives more weight
    to pixels that scattered low.
    """

    x: np.ndarray
    y: np.ndarray
    target: Array
    target_variance: Array
    good: Array
    cuts: Array
    cuts_variance: Array


def usable(bad: Array, size: int, reach: int) -> tuple[Array, Array]:
    """Return the pixels that can be fitted, and which stamps are worth fitting.

    Parameters
    ----------
    bad : (n, wide, wide) bool.
    size : width of the fitted part.
    reach : pixels around a bad one that are not fitted (the core of the kernel).

    Returns
    -------
    good : (n, size, size) bool;  worth : (n,) bool: the central 3 × 3 and half of all pixels are good.
    """
    xp = get_xp(bad)
    box = _box(size, bad.shape[-1], reach, xp)
    good = (box @ bad.astype(xp.float64) @ box.T) < 0.5
    c = size // 2
    worth = good[:, c - 1 : c + 2, c - 1 : c + 2].all(axis=(1, 2)) & (good.mean(axis=(1, 2)) >= 0.5)
    return good, worth


def _near_mean(values: Array, bad: Array, reach: int) -> Array:
    """Return the mean of the good pixels within ±reach, 0 where there are none; (n, wide, wide) float64."""
    xp = get_xp(values)
    box = _box(values.shape[-1], values.shape[-1], reach, xp)
    total = box @ xp.where(bad, 0.0, values).astype(xp.float64) @ box
    return total / xp.maximum(box @ (~bad).astype(xp.float64) @ box, 1.0)


def bad_pixels(images: Images, mask: Array | None, x: np.ndarray, y: np.ndarray,
               wide: int) -> Array:
    """Return (n, wide, wide) bool around the positions: masked, not finite, without variance, or off the image."""
    xp = get_xp(images[0])
    bad = xp.zeros((len(x), wide, wide), dtype=bool)
    for k, image in enumerate(images):
        values, inside = cut_stamps(image, xp.asarray(x), xp.asarray(y), wide)
        bad |= ~xp.isfinite(values) | ~inside
        if k >= 2:
            bad |= ~(values > 0)
    if mask is not None:
        bad |= cut_stamps(mask, xp.asarray(x), xp.asarray(y), wide, fill=True)[0]
    return bad


def cut(images: Images, mask: Array | None, x: np.ndarray, y: np.ndarray, *,
        size: int, half_width: int, reach: int) -> StampSet:
    """Cut stamps of (target, convolved, their variances) about the positions, which must be `usable`."""
    xp = get_xp(images[0])
    wide = size + 2 * half_width
    bad = bad_pixels(images, mask, x, y, wide)
    target, convolved, target_variance, variance = (
        cut_stamps(a, xp.asarray(x), xp.asarray(y), wide)[0] for a in images)
    inner = (slice(None), slice(half_width, half_width + size), slice(half_width, half_width + size))
    good = usable(bad, size, reach)[0]
    return StampSet(
        x, y, good=good,
        target=xp.where(bad, 0.0, target)[inner].astype(xp.float64),
        target_variance=xp.where(good, _near_mean(target_variance, bad, 1)[inner], 1.0),
        cuts=xp.where(bad, _near_mean(convolved, bad, 2), convolved).astype(xp.float64),
        cuts_variance=_near_mean(variance, bad, 2),
    )


def background_columns(x: np.ndarray, y: np.ndarray, size: int, degree: int, frame: tuple[float, float, float, float],
                       xp: Any) -> Array:
    """Return (n, n_terms, size, size): the background's terms at every pixel; frame is x0, y0, x_scale, y_scale."""
    x0, y0, x_scale, y_scale = frame
    offset = xp.arange(size, dtype=xp.float64) - size // 2
    u = (xp.asarray(x, dtype=xp.float64)[:, None, None] + offset[None, None, :] - x0) / x_scale
    v = (xp.asarray(y, dtype=xp.float64)[:, None, None] + offset[None, :, None] - y0) / y_scale
    zero = xp.zeros((len(x), size, size))
    return xp.moveaxis(polynomials.terms(degree, u + zero, v + zero), -1, 1)
