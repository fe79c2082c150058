"""Saturated cores and the charge that they spill along the columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.ndimage

Bool = npt.NDArray[np.bool_]

_ROUND = 1.5
"""A core is taken to reach this many half-widths from its centre along the bleed axis."""


def grow(mask: Bool, pixels: int) -> Bool:
    """Return the mask with all pixels within `pixels` rows and columns of it."""
    if pixels <= 0 or not mask.any():
        return mask
    return _spread(mask, pixels, pixels)


def _spread(mask: Bool, down: int, across: int) -> Bool:
    """Return True within `down` rows and `across` columns of the mask."""
    rows = mask.copy()
    for k in range(1, down + 1):
        rows[k:] |= mask[:-k]
        rows[:-k] |= mask[k:]
    out = rows.copy()
    for k in range(1, across + 1):
        out[:, k:] |= rows[:, :-k]
        out[:, :-k] |= rows[:, k:]
    return out


def find_bleeds(saturated: Bool, near: Bool, axis: int = 0, least: int = 4) -> Bool:
    """Return (ny, nx) bool, True on charge spilt along an axis from saturated cores.

    A bleed is what of a connected group of near-saturated pixels, one at least of them saturated, reaches along the
    axis beyond the core: farther from the core's centre than 1.5 times half of its width across the axis, and than
    `least` pixels. The centre is the middle of the rows that are at least 0.7 times as wide as the widest.

    Parameters
    ----------
    saturated, near : (ny, nx) bool; `near` holds nearly saturated pixels, saturated ones included.
    axis : 0 where charge spills along columns, 1 along rows.
    """
    if axis == 1:
        return find_bleeds(saturated.T, near.T, 0, least).T
    out = np.zeros(near.shape, bool)
    if not saturated.any():
        return out
    labels, n = scipy.ndimage.label(near, structure=np.ones((3, 3), bool))
    wanted = np.zeros(n + 1, bool)
    wanted[labels[saturated & near]] = True
    wanted[0] = False
    boxes = scipy.ndimage.find_objects(labels)
    for k in np.flatnonzero(wanted):
        box = boxes[k - 1]
        if box[0].stop - box[0].start < 2 * least:
            continue
        part = labels[box] == k
        width = part.sum(axis=1)
        wide = np.flatnonzero(width >= 0.7 * width.max())
        centre = np.median(wide)
        beyond = np.abs(np.arange(len(part)) - centre) > max(_ROUND * 0.5 * width.max(), least)
        out[box] |= part & beyond[:, None]
    return out


def grow_along(bleeds: Bool, axis: int = 0, along: int = 3, across: int = 1) -> Bool:
    """Return bleeds grown by the faint ends of the trails and by the columns beside them."""
    if not bleeds.any():
        return bleeds
    return _spread(bleeds, along, across) if axis == 0 else _spread(bleeds, across, along)
