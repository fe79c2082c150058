"""Robust statistics of one set of values, and of many rows at once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from seechange_mpi.gpu_kernels.backend import Array, get_xp

MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation over median absolute deviation of a Gaussian."""

_BLOCK = 64
"""Sorted values summed together: a sum between two ranks takes whole blocks and parts of two."""

_ROUNDS = 8
"""Most rounds of clipping of rows."""


class ClippedStats(NamedTuple):
    """Result of `clipped`."""

    mean: float
    median: float
    std: float
    n: int


def _good_values(values: Array, mask: Array | None) -> Array:
    good = get_xp(values).isfinite(values)
    return values[good if mask is None else good & ~mask]


def mad_std(values: Array, mask: Array | None = None) -> float:
    """Return 1.4826 × the median absolute deviation of the good, finite values (NaN if there are none).

    Parameters
    ----------
    values : array of any shape;  mask : bool of the same shape, optional; True = leave out.
    """
    xp = get_xp(values)
    v = _good_values(values, mask)
    if v.size == 0:
        return float("nan")
    return float(MAD_TO_SIGMA * xp.median(xp.abs(v - xp.median(v))))


def clipped(values: Array, mask: Array | None = None, n_sigma: float = 3.0, iterations: int = 5) -> ClippedStats:
    """Return mean, median and standard deviation after iterated clipping about the median.

    The first pass clips by the median absolute deviation, later ones by the standard deviation. The values are
    sorted once; each pass is then two bisections.

    Parameters
    ----------
    values : array of any shape;  mask : bool of the same shape, optional; True = leave out.
    n_sigma : float, half-width of what is kept;  iterations : int, most passes.
    """
    xp = get_xp(values)
    v = xp.sort(_good_values(values, mask).astype(xp.float64))
    if v.size == 0:
        return ClippedStats(float("nan"), float("nan"), float("nan"), 0)

    def middle(a: Array) -> float:
        return float(0.5 * (a[(a.size - 1) // 2] + a[a.size // 2]))

    median = middle(v)
    std = MAD_TO_SIGMA * float(xp.median(xp.abs(v - median)))
    for _ in range(iterations):
        if std <= 0:
            break
        bounds = xp.asarray([median - n_sigma * std, math.nextafter(median + n_sigma * std, math.inf)])
        first, end = (int(k) for k in xp.searchsorted(v, bounds))
        if end == first or end - first == v.size:
            break
        v = v[first:end]
        median, std = middle(v), float(v.std())
    return ClippedStats(float(v.mean()), median, float(v.std()), int(v.size))


def truncated_variance(n_sigma: float) -> float:
    """Return the variance of a unit Gaussian truncated at ±n_sigma."""
    density = math.exp(-0.5 * n_sigma**2) / math.sqrt(2 * math.pi)
    return 1.0 - 2.0 * n_sigma * density / math.erf(n_sigma / math.sqrt(2))


class SortedRows(NamedTuple):
    """Rows of ascending values less `offset`, left-out ones infinite and last, with sums over blocks of them."""

    values: Array
    """(rows, n) float32"""
    count: Array
    """(rows,) int64, values not left out."""
    offset: Array
    """(rows,) float32, the value of middle rank; 0 in empty rows."""
    sums: Array
    """(rows, n / 64 + 1) float64, of all blocks before."""
    squares: Array
    """(rows, n / 64 + 1) float64, likewise of the squares."""

    @classmethod
    def take(cls, values: Array) -> SortedRows:
        """Sort `values` (rows, n) float32 in place; +inf = left out.

        Raises
        ------
        ValueError
            n is not a multiple of 64.
        """
        xp = get_xp(values)
        rows, n = values.shape
        if n % _BLOCK:
            raise ValueError(f"SortedRows: the length of a row must be a multiple of {_BLOCK}, found {n}")
        values.sort(axis=1)
        count = xp.count_nonzero(values < xp.inf, axis=1).astype(xp.int64)
        offset = xp.take_along_axis(values, (count // 2)[:, None], axis=1)
        offset = xp.where(xp.isfinite(offset), offset, xp.zeros_like(offset))
        values -= offset
        blocks = values.reshape(rows, -1, _BLOCK)
        none = xp.zeros((rows, 1))
        sums, squares = (xp.concatenate([none, xp.cumsum(a.sum(axis=2, dtype=xp.float64), axis=1)], axis=1)
                         for a in (blocks, blocks * blocks))
        return cls(values, count, offset[:, 0], sums, squares)

    @classmethod
    def join(cls, parts: list[SortedRows]) -> SortedRows:
        """Return the rows of all parts."""
        xp = get_xp(parts[0].values)
        return parts[0] if len(parts) == 1 else cls(*(xp.concatenate(a) for a in zip(*parts, strict=True)))

    def at(self, rank: Array) -> Array:
        """Return the value at `rank` (rows,), held within the good ones, as float64; 0 in empty rows."""
        xp = get_xp(self.values)
        held = xp.clip(rank, 0, xp.maximum(self.count - 1, 0))
        value = xp.take_along_axis(self.values, held[:, None], axis=1)[:, 0].astype(xp.float64)
        return xp.where(self.count > 0, value, 0.0)

    def rank(self, bound: Array) -> Array:
        """Return how many good values of each row lie below `bound` (rows,)."""
        xp = get_xp(self.values)
        low, high = xp.zeros_like(self.count), self.count
        for _ in range(int(self.values.shape[1]).bit_length()):
            middle = (low + high) // 2
            below = (self.at(middle) < bound) & (middle < high)
            low, high = xp.where(below, middle + 1, low), xp.where(below, high, middle)
        return low

    def moments(self, rank: Array) -> tuple[Array, Array]:
        """Return sum and sum of squares of the first `rank` (rows,) values."""
        xp = get_xp(self.values)
        block = rank // _BLOCK
        inner = xp.arange(_BLOCK)
        index = xp.minimum(block[:, None] * _BLOCK + inner, self.values.shape[1] - 1)
        part = xp.take_along_axis(self.values, index, axis=1)
        part = xp.where(inner < (rank - block * _BLOCK)[:, None], part, xp.float32(0))
        whole, squares = (xp.take_along_axis(a, block[:, None], axis=1)[:, 0] for a in (self.sums, self.squares))
        # squares are rounded to float32 like those of whole blocks, so that differences of sums lose nothing
        return whole + part.sum(axis=1, dtype=xp.float64), squares + (part * part).sum(axis=1, dtype=xp.float64)

    def clip(self, n_sigma: float, *, mode: bool) -> tuple[Array, Array]:
        """Return level and standard deviation (rows,) float64 after iterated clipping about the median.

        The level is the mean or, for `mode`, the estimate 2.5 median − 1.5 mean of the mode (the median, where the
        two differ by more than 0.3 standard deviations). The truncation of a Gaussian is undone in every round,
        so that clipping does not run away inwards.
        """
        xp = get_xp(self.values)
        truncation = truncated_variance(n_sigma)

        def describe(first: Array, end: Array) -> tuple[Any, Any, Any]:
            n = xp.maximum(end - first, 1)
            (s_first, q_first), (s_end, q_end) = self.moments(first), self.moments(end)
            mean = (s_end - s_first) / n
            median = 0.5 * (self.at(first + (n - 1) // 2) + self.at(first + n // 2))
            return mean, median, xp.sqrt(xp.maximum((q_end - q_first) / n - mean**2, 0.0) / truncation)

        low, high = xp.zeros_like(self.count), self.count
        last = (self.count - 1).astype(xp.float64)
        mean, median, _ = describe(low, high)
        std = 0.5 * (self.at((0.8413 * last).astype(xp.int64)) - self.at((0.1587 * last).astype(xp.int64)))
        # most of a coarsely digitised sky is one value; below it there are no sources
        below = 0.5 * (median - self.at((0.0228 * last).astype(xp.int64)))
        std = xp.where(std < 0.3 * below, below, std)
        moving = self.count > 0
        for _ in range(_ROUNDS):
            first = xp.maximum(low, self.rank(median - n_sigma * std))
            end = xp.minimum(high, self.rank(xp.nextafter(median + n_sigma * std, xp.inf)))
            moving = moving & (end - first >= 8)
            same = (first == low) & (end == high)
            low, high = xp.where(moving, first, low), xp.where(moving, end, high)
            mean, median, std = (xp.where(moving, now, before) for now, before
                                 in zip(describe(low, high), (mean, median, std), strict=True))
            moving = moving & ~same
            if not bool(moving.any()):
                break
        if mode:
            mean = xp.where(xp.abs(mean - median) < 0.3 * std, 2.5 * median - 1.5 * mean, median)
        return mean + self.offset, std
