"""Fringes: how much of the master pattern is in an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.background import fit_background, render_mesh
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.model.products import F32, F64

_BIN = 4
"""Pixels that are averaged before the fit: fringes are tens of pixels wide."""
_BOX = 32
"""Box of the background, in bins."""
_STRONG = 0.3
"""Share of the bins, those of strongest pattern, that the scale is fitted on."""


class FringeFit(NamedTuple):
    """Scale of the pattern [ADU, where the pattern is in units of the sky level] and its error."""

    scale: float
    error: float


def _binned(plane: F32, good: npt.NDArray[np.bool_]) -> tuple[F32, npt.NDArray[np.bool_]]:
    """Return the mean of the good pixels of each bin, and which bins have at least half of them."""
    ny, nx = (n // _BIN for n in plane.shape)

    def sums(values: npt.NDArray[np.generic]) -> F32:
        cut = values[: ny * _BIN, : nx * _BIN].reshape(ny, _BIN, nx, _BIN)
        return np.asarray(cut.sum(axis=(1, 3), dtype=np.float32))

    count = sums(good)
    total = sums(np.where(good, plane, np.float32(0)))
    return (total / np.maximum(count, 1)).astype(np.float32), count >= 0.5 * _BIN**2


def fit_fringe(data: F32, bad: npt.NDArray[np.bool_], pattern: F32) -> FringeFit:
    """Fit the scale of a fringe pattern to an image.

    Both are averaged in bins of 4 × 4 pixels and freed of what varies over more than 128 pixels in the same way, with
    sources left out; then data = scale × pattern is solved by least squares on the bins where the pattern is
    strongest, leaving out bins that stand out by 3 σ.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], flat-fielded, sky not subtracted.
    bad : (ny, nx) bool, pixels to leave out.
    pattern : (ny, nx) float32, in units of the sky level.

    Returns
    -------
    FringeFit
        With scale 0 and infinite error where there is nothing to fit.
    """
    good = ~bad & np.isfinite(pattern) & np.isfinite(data)
    d, seen = _binned(data, good)
    f, _ = _binned(pattern, good)
    box = max(4, min(_BOX, *(n // 2 for n in d.shape)))
    d = d - render_mesh(fit_background(d, ~seen, box)[0], box, (d.shape[0], d.shape[1]))
    f = f - render_mesh(_box_means(f, seen, box), box, (f.shape[0], f.shape[1]))
    if not seen.any():
        return FringeFit(0.0, float("inf"))
    strong = seen & (np.abs(f) >= np.quantile(np.abs(f[seen]), 1 - _STRONG))
    x, y = f[strong].astype(np.float64), d[strong].astype(np.float64)
    return _robust_slope(x, y)


def _box_means(plane: F32, good: npt.NDArray[np.bool_], box: int) -> F32:
    """Means over boxes, as many as the background has."""
    my, mx = (max(1, round(n / box)) for n in plane.shape)
    rows, columns = (np.linspace(0, n, m + 1).astype(int)[:-1] for n, m in zip(plane.shape, (my, mx), strict=True))

    def sums(values: npt.NDArray[np.generic]) -> F64:
        return np.asarray(np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=0), columns, axis=1))

    return (sums(np.where(good, plane, 0)) / np.maximum(sums(good), 1)).astype(np.float32)


def _robust_slope(x: F64, y: F64) -> FringeFit:
    keep = np.ones(len(x), bool)
    scale, error = 0.0, float("inf")
    for _ in range(10):
        power = float((x[keep] ** 2).sum())
        if power <= 0 or keep.sum() < 16:
            return FringeFit(0.0, float("inf"))
        scale = float((x[keep] * y[keep]).sum() / power)
        residual = y - scale * x
        middle = float(np.median(residual[keep]))
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residual[keep] - middle)))
        error = spread / power**0.5
        now = np.abs(residual - middle) <= 3 * max(spread, 1e-6)
        if (now == keep).all():
            break
        keep = now
    return FringeFit(scale, error)
