"""Robust statistics."""

from __future__ import annotations

from typing import NamedTuple

from seechange_mpi.gpu_kernels.backend import Array, get_xp

MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation over median absolute deviation of a Gaussian."""


class ClippedStats(NamedTuple):
    """Result of `clipped`."""

    mean: float
    median: float
    std: float
    n: int


def mad_std(values: Array, mask: Array | None = None) -> float:
    """Return 1.4826 × the median absolute deviation of the good, finite values (NaN if there are none)."""
    xp = get_xp(values)
    good = xp.isfinite(values) if mask is None else xp.isfinite(values) & ~mask
    v = values[good]
    if v.size == 0:
        return float("nan")
    return float(MAD_TO_SIGMA * xp.median(xp.abs(v - xp.median(v))))


def clipped(values: Array, mask: Array | None = None, n_sigma: float = 3.0, iterations: int = 5) -> ClippedStats:
    """Return mean, median and standard deviation after iterated clipping about the median.

    The first pass clips by the median absolute deviation, later ones by the standard deviation.
    """
    xp = get_xp(values)
    good = xp.isfinite(values) if mask is None else xp.isfinite(values) & ~mask
    v = values[good].astype(xp.float64)
    if v.size == 0:
        return ClippedStats(float("nan"), float("nan"), float("nan"), 0)
    median, std = xp.median(v), MAD_TO_SIGMA * xp.median(xp.abs(v - xp.median(v)))
    for _ in range(iterations):
        keep = xp.abs(v - median) <= n_sigma * std
        if std <= 0 or not bool(xp.any(keep)) or bool(xp.all(keep)):
            break
        v = v[keep]
        median, std = xp.median(v), v.std()
    return ClippedStats(float(v.mean()), float(xp.median(v)), float(v.std()), int(v.size))
