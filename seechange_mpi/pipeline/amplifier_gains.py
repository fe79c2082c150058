"""Relative gains of amplifiers from the sky of the image itself: no step where two of them meet."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import F32, F64

_DEPTH = 24
"""Pixels on either side of a seam that are compared, in two halves whose difference gives the slope."""
_LENGTH = 16
"""Pixels along a seam that are compared together."""
_LEAST = 4
"""Fewest comparisons for a seam to count."""


class Box(NamedTuple):
    """Place of an amplifier in the section: first pixel and size."""

    x0: int
    y0: int
    nx: int
    ny: int


class Seam(NamedTuple):
    """Log of the ratio of the sky on amplifier `first` to that on `second` where they meet, and its error."""

    first: int
    second: int
    log_ratio: float
    error: float


def _sides(data: F32, bad: npt.NDArray[np.bool_], a: Box, b: Box) -> tuple[F32, F32] | None:
    """Return NaN-masked pixels (along, depth), seam first, of two amplifiers that touch; None if they do not."""
    depth = min(_DEPTH, a.nx, b.nx, a.ny, b.ny)
    if a.x0 + a.nx == b.x0:
        low, high = max(a.y0, b.y0), min(a.y0 + a.ny, b.y0 + b.ny)
        parts = (slice(low, high), slice(b.x0 - depth, b.x0)), (slice(low, high), slice(b.x0, b.x0 + depth))
        turn = False
    elif a.y0 + a.ny == b.y0:
        low, high = max(a.x0, b.x0), min(a.x0 + a.nx, b.x0 + b.nx)
        parts = (slice(b.y0 - depth, b.y0), slice(low, high)), (slice(b.y0, b.y0 + depth), slice(low, high))
        turn = True
    else:
        return None
    if high - low < _LENGTH:
        return None
    first, second = (np.where(bad[p], np.float32(np.nan), data[p]) for p in parts)
    if turn:
        first, second = first.T, second.T
    return first[:, ::-1], second


def _clipped_means(pieces: F32) -> F64:
    """Return the mean of each row without outliers: medians of digitised counts are whole numbers."""
    middle = np.nanmedian(pieces, axis=1, keepdims=True)
    offset = pieces - middle
    spread = MAD_TO_SIGMA * np.nanmedian(np.abs(offset), axis=1, keepdims=True)
    offset[~(np.abs(offset) <= np.maximum(2.5 * spread, 1.0))] = np.nan
    return np.asarray(middle[:, 0] + np.nanmean(offset, axis=1), dtype=np.float64)


def _at_seam(side: F32) -> tuple[F64, F64]:
    """Return the level at the seam of each piece along it, and its error, from the level near it and the slope.

    The slope, in ADU per pixel, is one for the whole side: that of a piece would only add noise.
    """
    n = len(side) // _LENGTH
    pieces = side[: n * _LENGTH].reshape(n, _LENGTH, -1)
    half = pieces.shape[2] // 2
    near, far, whole = (_clipped_means(p.reshape(n, -1))
                        for p in (pieces[:, :, :half], pieces[:, :, half:], pieces))
    step = near - far
    # far is `half` pixels beyond near: the middle of both lies `half` from the seam
    correction = float(np.nanmedian(step))
    spread = MAD_TO_SIGMA * float(np.nanmedian(np.abs(step - correction)))
    if abs(correction) < 3 * 1.2533 * spread / np.sqrt(max(1, np.isfinite(step).sum())):
        correction = 0.0
    scatter = np.nanmedian(np.abs(pieces.reshape(n, -1) - whole[:, None]), axis=1) * MAD_TO_SIGMA
    count = np.isfinite(pieces).sum(axis=(1, 2))
    error = np.where(count > 0.5 * pieces[0].size, 1.2533 * scatter / np.sqrt(np.maximum(count, 1)), np.nan)
    return whole + correction, error


def measure_seam(data: F32, bad: npt.NDArray[np.bool_], boxes: Sequence[Box], first: int, second: int) -> Seam | None:
    """Compare the sky on both sides of the seam of two amplifiers; None where they do not meet or see no sky.

    Pieces of 16 pixels along the seam give one ratio each; those with a star on one side stand out and are left out.
    """
    sides = _sides(data, bad, boxes[first], boxes[second])
    if sides is None:
        return None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # pieces without a good pixel give NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        (a, e_a), (b, e_b) = (_at_seam(s) for s in sides)
        ratio, error = np.log(a / b), np.hypot(e_a / a, e_b / b)
    good = np.isfinite(ratio) & np.isfinite(error) & (error > 0)
    for _ in range(5):
        if good.sum() < _LEAST:
            return None
        middle = float(np.median(ratio[good]))
        spread = max(MAD_TO_SIGMA * float(np.median(np.abs(ratio[good] - middle))), float(np.median(error[good])))
        now = good & (np.abs(ratio - middle) < 3 * spread)
        if (now == good).all():
            break
        good = now
    weight = 1 / error[good] ** 2
    mean = float((weight * ratio[good]).sum() / weight.sum())
    return Seam(first, second, mean, max(float(weight.sum() ** -0.5), 1e-6))


def fit_gain_factors(data: F32, bad: npt.NDArray[np.bool_], boxes: Sequence[Box], section_id: str) -> F64:
    """Return the factor of each amplifier that makes the sky continuous over all seams, of mean 1.

    Weighted least squares of log f_first − log f_second = −log ratio over the seams.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], overscan, bias and flat corrected, brought to the gains of the camera.
    bad : (ny, nx) bool, pixels to leave out.

    Raises
    ------
    AlgorithmError
        The seams with sky on both sides do not connect all amplifiers.
    """
    n = len(boxes)
    seams = [s for i in range(n) for j in range(n) if i != j
             for s in [measure_seam(data, bad, boxes, i, j)] if s is not None]
    design = np.zeros((len(seams) + 1, n))
    value = np.zeros(len(seams) + 1)
    for k, s in enumerate(seams):
        design[k, s.first], design[k, s.second], value[k] = 1 / s.error, -1 / s.error, -s.log_ratio / s.error
    design[-1] = 1.0
    if np.linalg.matrix_rank(design) < n:
        raise AlgorithmError("preprocessing", f"section {section_id}: gains cannot be fitted, the seams with sky on "
                             "both sides do not connect all amplifiers; set preprocessing.gain_match=header",
                             {"amplifiers": n, "seams": len(seams)})
    factors = np.exp(np.linalg.lstsq(design, value, rcond=None)[0])
    return np.asarray(factors / factors.mean(), dtype=np.float64)
