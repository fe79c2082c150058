"""Sums along all straight lines of an image, by the fast discrete Radon transform.

Götz & Druck (1996, Pattern Recognition 29, 711) and Brady (1998, SIAM J. Comput. 27, 107): a line over 2 w columns is
two lines over w columns, so that all lines cost log2 of the width additions per pixel. Every level on the way holds the
lines of its own length (Nir et al. 2018, AJ 156, 229).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

_SAMPLE = 50_000


class Line(NamedTuple):
    """A straight line between two pixels, ends included, and the significance of the sum along it."""

    x0: float
    y0: float
    x1: float
    y1: float
    sigma: float


def line_sums(image: Array, levels: int) -> Iterator[Array]:
    """Yield sums along lines over 2, 4, … 2**levels columns that rise by none to as many rows less one.

    Parameters
    ----------
    image : (ny, nx) float32; columns of zeros make up whole blocks of 2**levels; what leaves the top is left out.

    Yields
    ------
    (n, ceil(nx / 2**levels) 2**levels / n, ny) float32 for n = 2, 4, …: by rise, block of columns, and row in its first
    column.
    """
    xp = get_xp(image)
    ny, width = image.shape[0], 2**levels
    sums = xp.ascontiguousarray(xp.pad(image, [(0, 0), (0, -image.shape[1] % width)]).T)[None]
    for _ in range(levels):
        left, right = sums[:, 0::2], sums[:, 1::2]
        out = xp.empty((2 * len(sums), left.shape[1], ny), xp.float32)
        for rise in range(len(out)):
            up = min((rise + 1) // 2, ny)
            out[rise] = left[rise // 2]
            out[rise, :, : ny - up] += right[rise // 2, :, up:]
        sums = out
        yield sums


def strongest_lines(image: Array, shortest: int, levels: int, least: float, most: int) -> list[Line]:
    """Return the lines over 2**shortest to 2**levels pixels of either axis whose sum stands out, strongest first.

    Parameters
    ----------
    image : (ny, nx) float32, white noise but for the lines.
    least : float, significance in units of the scatter of all sums in the same octant, from their median.
    most : int, lines returned; neighbours of a line are not told from it.
    """
    found: list[Line] = []
    for transposed in (False, True):
        for flipped in (False, True):
            plane = image.T if transposed else image
            plane = plane[::-1] if flipped else plane
            if plane.shape[1] < 2**levels:
                continue
            for level, sums in enumerate(line_sums(plane, levels), start=1):
                if level >= shortest:
                    found += _peaks(sums, plane.shape[0], least, most, transposed, flipped)
    return sorted(found, key=lambda line: -line.sigma)[:most]


def _peaks(sums: Array, ny: int, least: float, most: int, transposed: bool, flipped: bool) -> list[Line]:
    xp = get_xp(sums)
    flat = sums.ravel()
    some = flat[:: max(1, flat.size // _SAMPLE)]
    middle = float(xp.median(some))
    spread = MAD_TO_SIGMA * float(xp.median(xp.abs(some - np.float32(middle))))
    if spread <= 0:
        return []
    at = xp.flatnonzero(flat > np.float32(middle + least * spread))
    values = asnumpy(flat[at])
    at = asnumpy(at)
    order = np.argsort(-values, kind="stable")[:most]
    rise, block, row = np.unravel_index(at[order], sums.shape)
    width = len(sums)
    lines = []
    for value, r, b, y in zip(values[order], rise, block, row, strict=True):
        x0, x1, y0, y1 = b * width, (b + 1) * width - 1, float(y), float(y + r)
        if flipped:
            y0, y1 = ny - 1 - y0, ny - 1 - y1
        if transposed:
            x0, y0, x1, y1 = y0, x0, y1, x1
        lines.append(Line(float(x0), float(y0), float(x1), float(y1), (float(value) - middle) / spread))
    return lines
