"""Poisson variance of sources from the image itself, without taking each pixel's noise for signal."""

from __future__ import annotations

import numpy as np

from seechange_mpi.gpu_kernels import checks
from seechange_mpi.gpu_kernels.backend import Array, get_xp

_STRIP_PIXELS = 131_072
"""Pixels per strip on the host: a strip and its temporaries stay in the cache. Strips have an even number of rows."""


def _strips(shape: tuple[int, ...], on_host: bool) -> list[slice]:
    rows = max(2, 2 * (_STRIP_PIXELS // (2 * shape[1]))) if on_host else shape[0]
    return [slice(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)]


def _binned(plane: Array) -> Array:
    """Mean over 2 × 2 pixels; an odd edge counts twice."""
    xp = get_xp(plane)
    odd = [(0, n % 2) for n in plane.shape]
    p = xp.pad(plane, odd, mode="edge") if any(o for _, o in odd) else plane
    rows = p[0::2] + p[1::2]
    out = rows[:, 0::2] + rows[:, 1::2]
    out *= np.float32(0.25)
    return out


def _blurred(bins: Array) -> Array:
    """Convolve both axes by (1, 2, 1) / 4; edges go on beyond the edge."""
    xp = get_xp(bins)
    for axis in (0, 1):
        wide = xp.pad(bins, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        low, high = (wide[:-2], wide[2:]) if axis == 0 else (wide[:, :-2], wide[:, 2:])
        bins = np.float32(0.5) * bins + np.float32(0.25) * (low + high)
    return bins


def add_source_variance(data: Array, sky: Array, mask: Array, base: Array, gain: float,
                        response: Array | None = None) -> Array:
    """Return the total variance (ny, nx) float32: `base` and the Poisson noise of what stands above the sky.

    A pixel 5 σ above the sky counts itself; fainter signal is first smoothed like a Gaussian of 1.5 pixels (means of
    2 × 2 pixels, then (1, 2, 1) / 4), because taking a pixel's own noise into its variance biases everything that is
    weighted with it.

    Parameters
    ----------
    data, sky : (ny, nx) float32 [ADU]
    mask : (ny, nx) bool, True = no signal is taken from there.
    base : (ny, nx) float32 [ADU**2], variance of sky and detector.
    gain : float [e-/ADU]
    response : (ny, nx) float32, optional: relative response that the data were divided by; an ADU has fewer electrons
        where it is low.

    Raises
    ------
    ValueError
        Shapes differ, or the gain is not positive.
    """
    xp = get_xp(data)
    checks.same_shape("add_source_variance", data, sky=sky, mask=mask, base=base, response=response)
    checks.positive("add_source_variance", "gain", gain)
    strips = _strips(data.shape, xp is np)
    zero = np.float32(0)

    def excess_of(rows: slice) -> Array:
        return xp.where(mask[rows], zero, data[rows] - sky[rows])

    smooth = xp.maximum(_blurred(xp.concatenate([_binned(excess_of(rows)) for rows in strips])), zero)
    out = xp.empty(data.shape, xp.float32)
    for rows in strips:
        excess, b = excess_of(rows), base[rows]
        fine = xp.repeat(xp.repeat(smooth[rows.start // 2: (rows.stop + 1) // 2], 2, axis=1), 2, axis=0)
        fine = fine[: excess.shape[0], : excess.shape[1]]
        bright = (excess > zero) & (excess * excess > np.float32(25) * b)
        signal = xp.where(bright, excess, fine)
        signal /= np.float32(gain) if response is None else np.float32(gain) * response[rows]
        xp.add(b, signal, out=out[rows])
    return out
