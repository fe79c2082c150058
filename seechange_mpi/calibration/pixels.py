"""Pixels that are unlike their surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from seechange_mpi.calibration.corrections import Channel
from seechange_mpi.calibration.stack import robust_std
from seechange_mpi.gpu_kernels.background import fit_mesh, render_mesh
from seechange_mpi.model.products import F32

Mask = npt.NDArray[np.bool_]
_BOX = 64
_COLUMNS = 31
"""Neighbouring columns that a column is compared with."""


def surroundings(frame: F32) -> F32:
    """Return the smooth level around every pixel."""
    shape = (frame.shape[0], frame.shape[1])
    box = min(_BOX, *shape)
    mesh, _ = fit_mesh(frame, ~np.isfinite(frame), box, crowded=False)
    return np.asarray(render_mesh(mesh, box, shape), dtype=np.float32)


def dead_pixels(flat: F32, dead_response: float) -> Mask:
    """Pixels of a flat that respond less than `dead_response` of their surroundings, more than 2 minus that, or not."""
    relative = flat / np.maximum(surroundings(flat), np.float32(1e-3))
    return ~((relative >= dead_response) & (relative <= 2 - dead_response))


def hot_pixels(frame: F32, n_sigma: float, *, both_signs: bool = False) -> Mask:
    """Pixels of a dark or bias above their surroundings by `n_sigma` of the frame's own scatter."""
    excess = frame - surroundings(frame)
    limit = n_sigma * robust_std(excess)
    return np.asarray((np.abs(excess) if both_signs else excess) > limit) | ~np.isfinite(frame)


def non_linear(faint: F32, bright: F32, dead: Mask, noise: float, tolerance: float, column_tolerance: float,
               n_sigma: float, channels: Sequence[Channel]) -> Mask:
    """Pixels, and columns of amplifiers, whose response changes between faint and bright flats.

    Parameters
    ----------
    faint, bright : (ny, nx) float32, each relative to its median.
    dead : (ny, nx) bool, pixels that are not judged.
    noise : of a pixel of their ratio.
    """
    with np.errstate(all="ignore"):
        ratio = np.where(dead, np.nan, bright / faint).astype(np.float32)
    departure = ratio / np.maximum(surroundings(ratio), np.float32(1e-3)) - 1
    out = np.abs(departure) > max(tolerance, n_sigma * noise)
    for c in channels:
        part = departure[c.place]
        judged = np.isfinite(part).sum(axis=0)
        column = np.where(judged > 0, np.nanmedian(np.where(judged > 0, part, 0), axis=0), 0)
        column = column - scipy.ndimage.median_filter(column, _COLUMNS, mode="nearest")
        error = 1.2533 * noise / np.sqrt(np.maximum(judged, 1))
        out[c.place] |= (np.abs(column) > np.maximum(column_tolerance, n_sigma * error))[None, :] & np.isfinite(part)
    return out


def fill_columns(bad: Mask, channels: Sequence[Channel], fraction: float) -> Mask:
    """Add the whole of columns of an amplifier that are bad for more than `fraction`: from first to last bad pixel."""
    out = bad.copy()
    for c in channels:
        part = bad[c.place]
        filled = out[c.place]
        for x in np.flatnonzero(part.mean(axis=0) > fraction):
            rows = np.flatnonzero(part[:, x])
            filled[rows[0]: rows[-1] + 1, x] = True
    return out
