"""Cosmic rays in a single exposure: Laplacian edge detection (van Dokkum 2001, PASP 113, 1420).

Only the Laplacian is taken of the whole image; medians only around pixels where it stands out, less than one in a
thousand, and later iterations only around what the one before has found. The backend is that of the image; NumPy and
CuPy find the same pixels but for ties in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from seechange_mpi.gpu_kernels import checks
from seechange_mpi.gpu_kernels.backend import Array, get_xp

_CHUNK = 16_384
"""Positions whose surroundings are gathered together."""

_STRIP_PIXELS = 65_536
"""Pixels per strip of the image on the host: a strip and its temporaries stay in the cache."""

_FARTHEST = 4
"""Distance [pix] of the farthest pixel that decides about another: that of the fine structure."""

_REACH = _FARTHEST + 1
"""Distance [pix] at which replacing a pixel may change what is found, 1 to spare."""


def laplacian(data: Array) -> Array:
    """Laplacian of the twice sub-sampled image, negative values cut, binned back (van Dokkum 2001, §3.1).

    A quarter of pixel p touches one vertical neighbour v and one horizontal h: its Laplacian is 2p − v − h, with the
    usual weight 4 of the centre. The mean of the four quarters is returned: 2p for a pixel that stands alone. Edge
    pixels go on beyond the edge.

    Parameters
    ----------
    data : (ny, nx) float32 or float64; other numbers are taken as float32.
    """
    xp = get_xp(data)
    data = data.astype(xp.float64 if data.dtype.type is np.float64 else xp.float32, copy=False)
    up, down, left, right = (xp.zeros_like(data) for _ in range(4))
    up[1:] = data[1:] - data[:-1]
    down[:-1] = -up[1:]
    left[:, 1:] = data[:, 1:] - data[:, :-1]
    right[:, :-1] = -left[:, 1:]
    out = xp.zeros_like(data)
    for v in (up, down):
        for h in (left, right):
            quarter = v + h
            out += xp.maximum(quarter, 0, out=quarter)
    out *= 0.25
    return out


def _least_of_nine(plane: Array) -> Array:
    """Minimum over 3 × 3 pixels, within the plane."""
    xp = get_xp(plane)
    rows = plane.copy()
    xp.minimum(rows[1:], plane[:-1], out=rows[1:])
    xp.minimum(rows[:-1], plane[1:], out=rows[:-1])
    out = rows.copy()
    xp.minimum(out[:, 1:], rows[:, :-1], out=out[:, 1:])
    xp.minimum(out[:, :-1], rows[:, 1:], out=out[:, :-1])
    return out


def _surroundings(plane: Array, at: Array, reach: int) -> Array:
    """Return (k, 2 reach + 1, 2 reach + 1) pixels around flat positions (k,); the plane is mirrored at its edges."""
    xp = get_xp(plane)
    offsets = xp.arange(-reach, reach + 1)

    def mirrored(centre: Array, n: int) -> Array:
        i = centre[:, None] + offsets
        i = xp.where(i < 0, -1 - i, i)
        return xp.clip(xp.where(i >= n, 2 * n - 1 - i, i), 0, n - 1)

    ny, nx = plane.shape
    return plane[mirrored(at // nx, ny)[:, :, None], mirrored(at % nx, nx)[:, None, :]]


def _in_chunks(function: Callable[[Array], Array], at: Array) -> Array:
    """Return `function` of positions (k,), a chunk of them at a time."""
    xp = get_xp(at)
    parts = [function(at[first: first + _CHUNK]) for first in range(0, at.size, _CHUNK)]
    return xp.concatenate(parts) if parts else xp.zeros(0, xp.float32)


def _median_of(patches: Array) -> Array:
    xp = get_xp(patches)
    return xp.median(patches.reshape(len(patches), -1), axis=1)


def _patch_laplacian(patch: Array) -> Array:
    """`laplacian` of (k, n + 2, n + 2) patches at their inner n × n pixels."""
    xp = get_xp(patch)
    centre = patch[:, 1:-1, 1:-1]
    out = xp.zeros_like(centre)
    for v in (patch[:, :-2, 1:-1], patch[:, 2:, 1:-1]):
        for h in (patch[:, 1:-1, :-2], patch[:, 1:-1, 2:]):
            out += xp.maximum(2 * centre - v - h, 0)
    return out * np.float32(0.25)


def _fine_structure(patch: Array) -> Array:
    """Median over 3 × 3 pixels less the 7 × 7 median of such medians, at the centres of (k, 9, 9) patches."""
    xp = get_xp(patch)
    shifted = [patch[:, a: a + 7, b: b + 7] for a in range(3) for b in range(3)]
    m3 = xp.median(xp.stack(shifted, axis=3), axis=3)
    return m3[:, 3, 3] - _median_of(m3)


def _candidates(data: Array, variance: Array, bad: Array, least: float) -> Array:
    """Return flat positions whose Laplacian is above `least` of the smallest noise around."""
    xp = get_xp(data)
    ny, nx = data.shape
    rows = max(8, _STRIP_PIXELS // nx) if xp is np else ny
    found = []
    for first in range(0, ny, rows):
        low, high = max(first - 1, 0), min(first + rows + 1, ny)
        peak = laplacian(data[low:high])
        peak *= peak
        hot = peak > _least_of_nine(variance[low:high]) * np.float32(4 * least**2)
        hot = hot[first - low: first - low + rows] & ~bad[first: first + rows]
        found.append(xp.flatnonzero(hot) + first * nx)
    return xp.concatenate(found)


def _distinct(values: Array) -> Array:
    """Sorted, once each: by sorting, which is several times quicker than the hashing of numpy.unique."""
    xp = get_xp(values)
    values = xp.sort(values)
    return values[xp.concatenate([xp.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]])]


def _neighbourhood(positions: Array, bad: Array, reach: int) -> Array:
    """Return the flat positions, once each, within `reach` rows and columns of `positions`, but no bad ones."""
    xp = get_xp(bad)
    ny, nx = bad.shape
    offsets = xp.arange(-reach, reach + 1)
    y = xp.clip((positions // nx)[:, None, None] + offsets[:, None], 0, ny - 1)
    x = xp.clip((positions % nx)[:, None, None] + offsets, 0, nx - 1)
    at = _distinct((y * nx + x).ravel())
    return at[~bad.ravel()[at]]


def _significance(data: Array, variance: Array, at: Array) -> tuple[Array, Array]:
    """Return the Laplacian in units of twice the noise, its local median taken off, and the noise (eq. 11–14)."""
    xp = get_xp(data)
    # a cosmic ray adds to the variance of its own pixels, not to the median around
    around = _in_chunks(lambda a: _median_of(_surroundings(variance, a, 2)), at)
    noise = xp.sqrt(xp.minimum(around, variance.ravel()[at]))

    def peak(a: Array) -> Array:
        values = _patch_laplacian(_surroundings(data, a, 3))
        return values[:, 2, 2] - _median_of(values)

    return _in_chunks(peak, at) / (2 * noise), noise


def _replace(data: Array, left_out: Array, at: Array) -> None:
    """Set pixels to the median of what is not left out of the 5 × 5 around them, 0 where nothing is."""
    xp = get_xp(data)

    def median(a: Array) -> Array:
        values = xp.where(_surroundings(left_out, a, 2), np.float32(np.inf), _surroundings(data, a, 2))
        values = xp.sort(values.reshape(len(a), -1), axis=1)
        count = (values < np.inf).sum(axis=1)
        low, high = (xp.take_along_axis(values, xp.maximum(k, 0)[:, None], axis=1)[:, 0]
                     for k in ((count - 1) // 2, xp.minimum(count // 2, 24)))
        return xp.where(count > 0, np.float32(0.5) * (low + high), np.float32(0))

    data.ravel()[at] = _in_chunks(median, at)


def _cover(data: Array, left_out: Array, at: Array) -> None:
    """Set pixels to the largest of the 3 × 3 around them that is not left out, or else of the 5 × 5, or else 0.

    Zeros in the light of a star would make edges of their neighbours.
    """
    xp = get_xp(data)

    def largest(a: Array) -> Array:
        values = xp.where(_surroundings(left_out, a, 2), np.float32(-np.inf), _surroundings(data, a, 2))
        near, wide = values[:, 1:4, 1:4].max(axis=(1, 2)), values.max(axis=(1, 2))
        found = xp.where(near > -np.inf, near, wide)
        return xp.where(found > -np.inf, found, np.float32(0))

    data.ravel()[at] = _in_chunks(largest, at)


def _hits(data: Array, variance: Array, bad: Array, at: Array, sigma: float, contrast: float, grow: float) -> Array:
    """Return the flat positions of cosmic rays seeded by some of the candidates `at`."""
    xp = get_xp(data)
    s, noise = _significance(data, variance, at)
    strong = s > sigma
    at, s, noise = at[strong], s[strong], noise[strong]
    fine = _in_chunks(lambda a: _fine_structure(_surroundings(data, a, 4)), at)
    sharp = s > contrast * xp.maximum(fine / noise, np.float32(0.01))
    hit = xp.zeros(data.shape, bool)
    hit.ravel()[at[sharp]] = True
    beside = _in_chunks(lambda a: _surroundings(hit, a, 1).any(axis=(1, 2)), at).astype(bool)
    near = _neighbourhood(at[beside], bad, 1)
    faint, _ = _significance(data, variance, near)
    return _distinct(xp.concatenate([at[beside], near[faint > grow * sigma]]))


def detect_cosmics(
    data: Array, variance: Array, mask: Array, *, sigma: float = 5.0, contrast: float = 5.0, grow: float = 0.5,
    iterations: int = 3,
) -> Array:
    """Return (ny, nx) bool, True on pixels hit by cosmic rays.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted.
    variance : (ny, nx) float32, total variance; the median over 5 × 5 pixels counts where it is less.
    mask : (ny, nx) bool, True = already bad (never returned); so is what is not finite. What is bad counts as the
        largest good pixel around it.
    sigma : float
        Least significance: Laplacian less its local median, over twice the noise; for a pixel that stands alone
        its value over the noise.
    contrast : float
        Least ratio of half the Laplacian to the fine structure (difference of 3- and 7-pixel medians); stars of
        FWHM 2 pixels stay below 1.1 and of 1.6 pixels below 2.2 but for their noise.
    grow : float
        Neighbours of a hit need only this fraction of `sigma`, and no contrast.
    iterations : int
        Most passes; each looks again around the hits of the last, replaced by the median of their surroundings.

    Raises
    ------
    ValueError
        Shapes differ, or `sigma` or `contrast` is not positive.
    """
    xp = get_xp(data)
    checks.same_shape("detect_cosmics", data, variance=variance, mask=mask)
    for key, value in (("sigma", sigma), ("contrast", contrast)):
        checks.positive("detect_cosmics", key, value)
    bad = mask | ~xp.isfinite(data) | ~xp.isfinite(variance)
    d = xp.ascontiguousarray(xp.where(bad, np.float32(0), data).astype(xp.float32, copy=False))
    noise2 = xp.where(bad, np.float32(np.inf), xp.maximum(variance, np.float32(1e-12)))
    noise2 = xp.ascontiguousarray(noise2.astype(xp.float32, copy=False))
    found = xp.zeros(d.shape, bool)
    at = _candidates(d, noise2, bad, sigma)
    for _ in range(iterations):
        _cover(d, found | bad, _neighbourhood(at, ~bad, _FARTHEST))
        hits = _hits(d, noise2, bad, at, sigma, contrast, grow)
        new = hits[~found.ravel()[hits]]
        if new.size == 0:
            break
        found.ravel()[new] = True
        _replace(d, found | bad, new)
        at = _neighbourhood(new, bad, _REACH)
    return found
