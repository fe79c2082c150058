"""Flux-conserving Lanczos-3 resampling through a smooth coordinate mapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RectBivariateSpline

from seechange_mpi.gpu_kernels.backend import Array, asnumpy

Mapping = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_A = 3
"""Half width of the kernel."""


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
    """
    ny, nx = shape
    gy = np.linspace(0, ny - 1, max(4, int(np.ceil(ny / step)) + 1))
    gx = np.linspace(0, nx - 1, max(4, int(np.ceil(nx / step)) + 1))
    xx, yy = np.meshgrid(gx, gy)
    xi, yi = xy_of(xx.ravel(), yy.ravel())
    sx = RectBivariateSpline(gy, gx, np.asarray(xi).reshape(xx.shape), s=0)
    sy = RectBivariateSpline(gy, gx, np.asarray(yi).reshape(xx.shape), s=0)
    oy, ox = np.arange(ny), np.arange(nx)
    jacobian = np.abs(sx(oy, ox, dy=1) * sy(oy, ox, dx=1) - sx(oy, ox, dx=1) * sy(oy, ox, dy=1))
    return sx(oy, ox), sy(oy, ox), jacobian.astype(np.float32)


def _weights(frac: np.ndarray) -> list[np.ndarray]:
    """Six normalised Lanczos-3 weights for a position `frac` (0..1) after pixel 0, for pixels -2..3."""
    w = []
    for k in range(1 - _A, _A + 1):
        u = frac - k
        w.append((np.sinc(u) * np.sinc(u / _A)).astype(np.float32))
    total = sum(w)
    return [a / total for a in w]


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
    good = np.pad((~lost).astype(np.float32), pad)
    src = np.pad(np.where(lost, 0, d), pad)
    var = None if variance is None else np.pad(np.where(lost, 0, asnumpy(variance)).astype(np.float32), pad)
    flg = None if flags is None else np.pad(asnumpy(flags), pad)
    x_in, y_in, jac = mapping_grid(xy_of, shape, grid_step)
    any_bad = bool(lost.any())
    out = np.zeros(shape, np.float32)
    out_var = None if var is None else np.zeros(shape, np.float32)
    out_flags = None if flg is None else np.zeros(shape, flg.dtype)
    inside = (x_in > -0.5) & (x_in < nx - 0.5) & (y_in > -0.5) & (y_in < ny - 0.5)
    rows = max(1, (1 << 20) // shape[1])
    for first in range(0, shape[0], rows):
        part = slice(first, first + rows)
        xs, ys = np.clip(x_in[part], -1, nx), np.clip(y_in[part], -1, ny)
        ix, iy = np.floor(xs).astype(np.intp), np.floor(ys).astype(np.intp)
        wx, wy = _weights(xs - ix), _weights(ys - iy)
        base = (iy + pad) * src.shape[1] + ix + pad
        acc = np.zeros(base.shape, np.float32)
        acc_v = np.zeros(base.shape, np.float32)
        norm = np.zeros(base.shape, np.float32)
        edge = np.zeros(base.shape, np.float32)
        for j in range(2 * _A):
            for i in range(2 * _A):
                index = base + (j + 1 - _A) * src.shape[1] + (i + 1 - _A)
                w = wy[j] * wx[i]
                acc += w * src.take(index)
                g = good.take(index)
                norm += w * g
                edge += np.abs(w) * (1 - g)
                if var is not None:
                    acc_v += w * w * var.take(index)
        keep = (edge < 0.25) & (norm > 0.5)
        inside[part] &= keep
        scale = np.where(keep, jac[part] / np.where(keep, norm, 1), 0) if any_bad else np.where(keep, jac[part], 0)
        out[part] = acc * scale
        if out_var is not None:
            out_var[part] = acc_v * scale**2
        if flg is not None and out_flags is not None:
            for j in (0, 1):
                for i in (0, 1):
                    out_flags[part] |= flg.take(base + j * src.shape[1] + i)
    return WarpResult(out, out_var, out_flags, inside)
