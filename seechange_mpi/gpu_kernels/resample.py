"""Flux-conserving Lanczos-3 resampling through a smooth coordinate mapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import RectBivariateSpline

from seechange_mpi.gpu_kernels.backend import Array, asnumpy

Mapping = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_A = 3
"""Half width of the kernel."""

_PHASES = 4096
"""Sub-pixel positions of the table of weights."""

_CHUNK = 1 << 16
"""Output pixels done at once: their buffers stay in the cache."""


@dataclass
class WarpResult:
    """Result of `warp`.

    Attributes
    ----------
    data, variance : (ny, nx) float32; 0 where nothing is known.
    flags : (ny, nx), OR of the input flags under the central 2 × 2 pixels of the kernel.
    inside : (ny, nx) bool, the whole kernel's centre lies on the input and enough weight was good.
    """

    data: np.ndarray
    variance: np.ndarray | None
    flags: np.ndarray | None
    inside: np.ndarray


def mapping_grid(
    xy_of: Mapping, shape: tuple[int, int], step: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate a mapping on a coarse grid and interpolate it bicubically.

    Returns
    -------
    x_in, y_in : (ny, nx) float64, input position of each output pixel.
    jacobian : (ny, nx) float32, area of an output pixel in input pixels.

    Raises
    ------
    ValueError
        The mapping is not finite everywhere on the grid (a position behind the projection, for example).
    """
    ny, nx = shape
    gy = np.linspace(0, ny - 1, max(4, int(np.ceil(ny / step)) + 1))
    gx = np.linspace(0, nx - 1, max(4, int(np.ceil(nx / step)) + 1))
    xx, yy = np.meshgrid(gx, gy)
    xi, yi = xy_of(xx.ravel(), yy.ravel())
    lost = ~(np.isfinite(xi) & np.isfinite(yi))
    if lost.any():
        raise ValueError(f"warp: the mapping is not finite at {int(lost.sum())} of {lost.size} points of its grid")
    sx = RectBivariateSpline(gy, gx, np.asarray(xi).reshape(xx.shape), s=0)
    sy = RectBivariateSpline(gy, gx, np.asarray(yi).reshape(xx.shape), s=0)
    oy, ox = np.arange(ny), np.arange(nx)
    jacobian = np.abs(sx(oy, ox, dy=1) * sy(oy, ox, dx=1) - sx(oy, ox, dx=1) * sy(oy, ox, dy=1))
    return sx(oy, ox), sy(oy, ox), jacobian.astype(np.float32)


@lru_cache(maxsize=1)
def _weight_table() -> np.ndarray:
    """Normalised Lanczos-3 weights of the pixels -2..3 for positions k / 4096 after pixel 0, (4097, 6) float32."""
    u = np.linspace(0, 1, _PHASES + 1)[:, None] - np.arange(1 - _A, _A + 1)[None, :]
    w = np.sinc(u) * np.sinc(u / _A)
    return np.asarray(w / w.sum(axis=1, keepdims=True), dtype=np.float32)


def _weights(frac: np.ndarray) -> np.ndarray:
    """Weights (6, n) for positions `frac` (n,) in 0..1; the table's rounding is below 2e-4 of a pixel."""
    index = (frac * _PHASES + 0.5).astype(np.intp)
    return np.ascontiguousarray(_weight_table()[index].T)


def _interpolate(plane: np.ndarray, width: int, base: np.ndarray, wx: np.ndarray, wy: np.ndarray) -> np.ndarray:
    """Sum of the 6 × 6 weighted pixels around flat positions `base` of a padded plane of that width."""
    flat = plane.ravel()
    total = np.zeros(base.shape, np.float32)
    row, pixel = np.empty_like(total), np.empty_like(total)
    for j in range(2 * _A):
        row[:] = 0
        for i in range(2 * _A):
            # a shifted view of the plane saves shifting the indices
            first = (j + 1 - _A) * width + i + 1 - _A
            view = flat[first:] if first >= 0 else flat
            view.take(base if first >= 0 else base + first, out=pixel, mode="clip")
            pixel *= wx[i]
            row += pixel
        row *= wy[j]
        total += row
    return total


def _near(mask: np.ndarray) -> np.ndarray:
    """True where any of the 6 × 6 pixels -2..3 around a pixel is True."""
    for axis in (0, 1):
        wide = mask.copy()
        for k in range(1 - _A, _A + 1):
            here, there = [slice(None)] * 2, [slice(None)] * 2
            here[axis] = slice(max(0, -k), mask.shape[axis] - max(0, k))
            there[axis] = slice(max(0, k), mask.shape[axis] - max(0, -k))
            wide[tuple(here)] |= mask[tuple(there)]
        mask = wide
    return mask


def warp(
    data: Array, xy_of: Mapping, shape: tuple[int, int], *,
    variance: Array | None = None, flags: Array | None = None, bad: Array | None = None, grid_step: int = 32,
) -> WarpResult:
    """Resample an image onto a new grid.

    Parameters
    ----------
    data : (ny, nx) float32
    xy_of : callable
        (x_out, y_out) -> (x_in, y_in), 0-based pixel positions; called once, on a coarse grid.
    shape : (ny_out, nx_out)
    variance : (ny, nx), optional; propagated with squared weights (neighbouring output pixels are correlated:
        the noise per pixel drops, its power on large scales does not).
    flags : (ny, nx) unsigned, optional.
    bad : (ny, nx) bool, optional
        Pixels left out of the interpolation; the remaining weights are renormalised. Output pixels whose
        lost weight exceeds a quarter are not ``inside``.
    """
    d = np.asarray(asnumpy(data), dtype=np.float32)
    ny, nx = d.shape
    lost = ~np.isfinite(d) if bad is None else asnumpy(bad) | ~np.isfinite(d)
    pad = _A + 1
    # beyond the edge is as unknown as a bad pixel
    lost = np.pad(lost, pad, constant_values=True)
    src = np.where(lost, np.float32(0), np.pad(d, pad))
    var = None if variance is None else np.where(lost, 0, np.pad(asnumpy(variance), pad)).astype(np.float32)
    flg = None if flags is None else np.pad(asnumpy(flags), pad)
    touched = _near(lost)
    good = (~lost).astype(np.float32)
    x_in, y_in, jac = mapping_grid(xy_of, shape, grid_step)
    out = np.zeros(shape, np.float32)
    out_var = None if var is None else np.zeros(shape, np.float32)
    out_flags = None if flg is None else np.zeros(shape, flg.dtype)
    inside = (x_in > -0.5) & (x_in < nx - 0.5) & (y_in > -0.5) & (y_in < ny - 0.5)
    width = src.shape[1]
    rows = max(1, _CHUNK // shape[1])
    for first in range(0, shape[0], rows):
        part = slice(first, first + rows)
        xs, ys = np.clip(x_in[part], -1, nx).ravel(), np.clip(y_in[part], -1, ny).ravel()
        ix, iy = np.floor(xs).astype(np.intp), np.floor(ys).astype(np.intp)
        wx, wy = _weights(xs - ix), _weights(ys - iy)
        base = (iy + pad) * width + ix + pad
        scale = jac[part].ravel().copy()
        hit = np.flatnonzero(touched.ravel().take(base))
        if hit.size:
            at, hx, hy = base[hit], wx[:, hit], wy[:, hit]
            norm = _interpolate(good, width, at, hx, hy)
            gone = _interpolate(1 - good, width, at, np.abs(hx), np.abs(hy))
            keep = (gone < 0.25) & (norm > 0.5)
            scale[hit] *= np.where(keep, 1 / np.where(keep, norm, 1), 0)
            inside[part].ravel()[hit] &= keep  # a view: the rows of a chunk are contiguous
        result = _interpolate(src, width, base, wx, wy)
        out[part] = (result * scale).reshape(-1, shape[1])
        if out_var is not None and var is not None:
            out_var[part] = (_interpolate(var, width, base, wx**2, wy**2) * scale**2).reshape(-1, shape[1])
        if flg is not None and out_flags is not None:
            for j in (0, 1):
                for i in (0, 1):
                    out_flags[part] |= flg.ravel()[j * width + i:].take(base, mode="clip").reshape(-1, shape[1])
    return WarpResult(out, out_var, out_flags, inside)
