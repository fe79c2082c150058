"""The pedestal of an amplifier, from its overscan columns, rows, or both."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
from scipy.interpolate import make_lsq_spline

from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import F32, F64, RawAmplifier

Method = Literal["fit", "median", "mean"]
_CLIP = 4.0
"""Deviation [sigma] at which a pixel of a line, or a line, is left out."""


class Pedestal(NamedTuple):
    """What is subtracted from an amplifier, and its level.

    Attributes
    ----------
    rows : (ny, 1) float32 [ADU] or None;  columns : (1, nx) float32 [ADU] or None.
    level : float [ADU], median of their sum.
    """

    rows: F32 | None
    columns: F32 | None
    level: float

    def subtract_from(self, data: F32) -> None:
        """Subtract in place."""
        for part in (self.rows, self.columns):
            if part is not None:
                data -= part


def pedestal_of(amp: RawAmplifier, path: str, method: Method = "fit", trim: int = 0, knots: int = 8) -> Pedestal:
    """Measure the pedestal of an amplifier that has an overscan.

    Columns of overscan give a level per row, rows of overscan one per column. Where an amplifier has both, the
    columns give the level of each row and the rows only what varies from column to column about its median.

    Parameters
    ----------
    path : file, for messages.
    method : ``fit``, ``median`` or ``mean``, see `line_levels`.
    trim : first and last pixels of each line that are left out: light and charge trail into the first ones.
    knots : intervals of the spline of ``fit``.

    Raises
    ------
    BadInput
        The overscan has neither the rows nor the columns of the data, or nothing is left of it.
    """
    assert amp.overscan is not None
    ny, nx = amp.data.shape
    name = f"overscan of amplifier {amp.name or '1'}"
    by_row = amp.overscan.shape[0] == ny
    if not by_row and amp.overscan.shape[1] != nx:
        raise BadInput(path, name, f"{ny} rows or {nx} columns, as the data",
                       f"{amp.overscan.shape[0]} rows, {amp.overscan.shape[1]} columns")
    first = line_levels(_lines(amp.overscan, by_row, trim, path, name), method, knots)
    if amp.parallel_overscan is None or not by_row:
        rows, columns = (_f32(first[:, None]), None) if by_row else (None, _f32(first[None, :]))
    else:
        if amp.parallel_overscan.shape[1] != nx:
            raise BadInput(path, f"parallel {name}", f"{nx} columns, as the data",
                           f"{amp.parallel_overscan.shape[1]} columns")
        across = line_levels(_lines(amp.parallel_overscan, False, trim, path, name), method, knots)
        rows, columns = _f32(first[:, None]), _f32((across - np.median(across))[None, :])
    return Pedestal(rows, columns, float(np.median(first)))


def _f32(values: F64) -> F32:
    return values.astype(np.float32)


def _lines(overscan: F32, by_row: bool, trim: int, path: str, name: str) -> F32:
    """Return (lines, pixels) with the first and last pixels of each line left out."""
    lines = overscan if by_row else overscan.T
    kept = lines[:, trim: lines.shape[1] - trim]
    if kept.shape[1] == 0 or not np.isfinite(kept).any():
        raise BadInput(path, name, f"pixels left after trimming {trim} at either end (preprocessing.overscan_trim)",
                       f"{lines.shape[1]} of which {int(np.isfinite(kept).sum())} are left and finite")
    return kept


def line_levels(lines: F32, method: Method, knots: int = 8) -> F64:
    """Return the level of each line (n,) float64 [ADU].

    ``median`` is that of each line, ``mean`` its mean without outliers. ``fit`` is a cubic spline through the means
    over the lines, robust against lines that stand out, plus as much of each line's own deviation as is real: the
    deviations are shrunk by one less the ratio of the variance that the scatter within the lines explains to the
    observed one (the best linear estimate of James & Stein). A smooth pedestal is followed by the spline alone, one
    that jumps from line to line by the lines.

    Parameters
    ----------
    lines : (n, pixels) float32 [ADU], not finite = left out.
    knots : intervals of the spline.
    """
    n = len(lines)
    with warnings.catch_warnings():
        # lines without a good pixel give NaN, filled from their neighbours
        warnings.simplefilter("ignore", RuntimeWarning)
        if method == "median":
            return _filled(np.nanmedian(lines, axis=1).astype(np.float64))
        mean, variance = _clipped_means(lines)
    mean = _filled(mean)
    if method == "mean" or n < 4:
        return mean
    smooth, used = _spline(mean, max(1, min(knots, n // 4)))
    deviation = mean - smooth
    observed = float(np.var(deviation[used])) if used.any() else 0.0
    expected = float(np.nanmean(variance))
    share = max(0.0, 1.0 - expected / observed) if observed > 0 and np.isfinite(expected) else 0.0
    # the scatter of the estimate itself: what is not significant is noise
    if observed < expected * (1 + 3.0 * np.sqrt(2.0 / n)):
        share = 0.0
    return smooth + share * deviation


def _clipped_means(lines: F32) -> tuple[F64, F64]:
    """Return the mean of each line without outliers, and the variance of that mean."""
    middle = np.nanmedian(lines, axis=1, keepdims=True) if not np.isfinite(lines).all() else np.median(
        lines, axis=1, keepdims=True)
    offset = lines - middle
    spread = MAD_TO_SIGMA * float(np.nanmedian(np.abs(offset)))
    good = np.abs(offset) <= max(_CLIP * spread, 1.0)
    count = good.sum(axis=1)
    total = np.where(good, offset, 0).sum(axis=1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / count
        squares = np.where(good, offset, 0).astype(np.float64)
        variance = (np.square(squares).sum(axis=1) / count - mean**2) / (count - 1)
    return middle[:, 0] + mean, np.where(count > 1, variance, np.nan)


def _filled(levels: F64) -> F64:
    good = np.isfinite(levels)
    return levels if good.all() else np.interp(np.arange(len(levels)), np.flatnonzero(good), levels[good])


def _spline(levels: F64, intervals: int) -> tuple[F64, np.ndarray]:
    """Fit a cubic spline, leaving out lines that stand out; return it and which lines were used."""
    at = np.linspace(0.0, 1.0, len(levels))
    inner = np.linspace(0.0, 1.0, intervals + 1)[1:-1]
    where = np.concatenate([np.zeros(4), inner, np.ones(4)])
    used = np.ones(len(levels), bool)
    fit = levels
    for _ in range(4):
        # a weight of nearly nothing keeps intervals without good lines solvable
        fit = make_lsq_spline(at, levels, where, k=3, w=np.where(used, 1.0, 1e-4))(at)
        residual = levels - fit
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residual - np.median(residual))))
        now = np.abs(residual) <= max(_CLIP * spread, 1e-6)
        if (now == used).all():
            break
        used = now
    return np.asarray(fit, dtype=np.float64), used
