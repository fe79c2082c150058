"""Trails of satellites and aircraft: long straight streaks of constant brightness.

The significance image, clipped and averaged over 4 × 4 pixels, is summed along all straight lines (`radon`). Each line
that stands out is then looked at in the pixels themselves: the strip along it is cut into pieces, the line is refined
(with the sagitta that optical distortion gives), and the run of pieces that show the streak is found. A trail shows in
nearly all pieces of a long run, stands out on both sides there, and is as bright at its ends as in its middle; stars
in a row, galaxies and diffraction spikes are not. What runs along rows or columns to within 8 pixels is a bleed, a bad
column or a seam, and is left alone.

The transform and the pixels are handled by the backend of the image, the strips on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels import checks
from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.radon import Line, strongest_lines
from seechange_mpi.gpu_kernels.strips import Run, Strip, cut_strip

F64 = npt.NDArray[np.float64]

_BIN = 4
_CLIP, _CLIP_BINS = 4.0, 3.0
"""Pixels, and bins, count for no more than this [sigma]: a bright star is no line."""
_LOCAL = 4
"""Bins on either side over which the mean is taken off: halos and galaxies."""
_CANDIDATE = 6.5
"""Significance of a line to be looked at."""
_MOST = 400
"""Lines taken from each transform."""
_TRIES, _ROUNDS = 48, 4
"""Most lines looked at after each transform, and most transforms; another one is made after trails were found."""
_STRIP_ROWS = 64
_BEYOND = 80
"""Pixels by which a trail that leaves the image is drawn on."""


class Trail(NamedTuple):
    """A trail.

    Attributes
    ----------
    x0, y0, x1, y1 : ends [pix];  sagitta : deviation of the middle from the chord [pix].
    half_width : [pix], half of the width that is masked.
    brightness : [sigma per pixel], at its centre;  sigma : significance of the whole.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    sagitta: float
    half_width: float
    brightness: float
    sigma: float


def _binned_significance(data: Array, variance: Array, mask: Array) -> Array:
    """Return (ny // 4, nx // 4) float32 of nearly unit noise, clipped, local means taken off."""
    xp = get_xp(data)
    ny, nx = data.shape[0] // _BIN, data.shape[1] // _BIN
    out = xp.empty((ny, nx), xp.float32)
    rows = _STRIP_ROWS if xp is np else ny * _BIN
    for first in range(0, ny * _BIN, rows):
        part = slice(first, min(first + rows, ny * _BIN))
        d, v = data[part, : nx * _BIN], variance[part, : nx * _BIN]
        good = ~mask[part, : nx * _BIN] & (v > 0)
        r = xp.where(good, d, np.float32(0)) / xp.sqrt(xp.where(good, v, np.float32(1)))
        r = xp.clip(r, -_CLIP, _CLIP)
        lines = r[0::4] + r[1::4] + r[2::4] + r[3::4]
        out[first // _BIN: part.stop // _BIN] = lines[:, 0::4] + lines[:, 1::4] + lines[:, 2::4] + lines[:, 3::4]
    out *= np.float32(1 / _BIN)
    xp.clip(out, -_CLIP_BINS, _CLIP_BINS, out=out)
    return out - _local_mean(out)


def _local_mean(plane: Array) -> Array:
    """Mean over 9 × 9 bins; edges go on beyond the edge."""
    xp = get_xp(plane)
    size = 2 * _LOCAL + 1
    for axis in (0, 1):
        wide = xp.pad(plane, [(_LOCAL + (a == axis), _LOCAL) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        total = xp.cumsum(wide, axis=axis, dtype=xp.float64)
        low, high = (total[:-size], total[size:]) if axis == 0 else (total[:, :-size], total[:, size:])
        plane = ((high - low) / size).astype(xp.float32)
    return plane


def _levels(shape: tuple[int, ...], min_length: int) -> tuple[int, int]:
    """Log2 of the bins of the shortest and longest lines that are summed: 16 for trails of 300 pixels, and 128."""
    longest = int(np.log2(min(shape) // _BIN))
    shortest = int(np.log2(max(min_length / 16, 8)))
    return min(shortest, longest, 7), min(longest, 7)


def _known(line: Line, strips: list[tuple[Strip, bool]]) -> bool:
    """Whether a line lies near one that was looked at: within 6 bins of a trail, or 2 of one that was none."""
    ends = np.array([[line.x0, line.y0], [line.x1, line.y1]]) * _BIN + 0.5 * (_BIN - 1)
    return any((np.abs(s.across(ends)) < (6 if trail else 2) * _BIN).all() for s, trail in strips)


def _draw(out: npt.NDArray[np.bool_], strip: Strip, run: Run) -> bool:
    """Set the pixels of a trail and return True, unless more than half of them are set already."""
    # at the edge of the image one side of a slanting trail goes on where its axis has left
    first, last = run.first - _BEYOND * (run.first <= 0), run.last + _BEYOND * (run.last >= strip.length)
    t = np.arange(first, last + 0.25, 0.5)
    v = np.arange(-run.half_width, run.half_width + 0.25, 0.5)
    x, y = strip.at(t[:, None], strip.offset(t)[:, None] + v)
    i, j = np.rint(x).astype(int), np.rint(y).astype(int)
    inside = (i >= 0) & (i < out.shape[1]) & (j >= 0) & (j < out.shape[0])
    if out[j[inside], i[inside]].mean() > 0.5:
        return False
    out[j[inside], i[inside]] = True
    return True


def _describe(strip: Strip, run: Run) -> Trail:
    ends = np.array([run.first, run.last])
    (x0, x1), (y0, y1) = strip.at(ends, strip.offset(ends))
    middle = np.array([0.5 * (run.first + run.last)])
    sagitta = float((strip.offset(middle) - strip.offset(ends).mean())[0])
    return Trail(float(x0), float(y0), float(x1), float(y1), sagitta, run.half_width, run.brightness, run.sigma)


def find_trails(
    data: Array, variance: Array, mask: Array, *, sigma: float = 12.0, min_length: int = 300
) -> tuple[Array, list[Trail]]:
    """Return (ny, nx) bool, True on trails, and what they are, strongest first within each round.

    A trail of the width of the PSF whose centre is as bright as the noise of a pixel is found with a significance of
    about 1.6 √length.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted.
    variance : (ny, nx) float32, total variance.
    mask : (ny, nx) bool, True = bad, saturated, bleed or cosmic ray: says nothing for or against a trail, and is
        covered by one that runs through.
    sigma : float, least significance of the whole trail.
    min_length : int, shortest trail [pix]; a third of it is enough where the trail crosses the image from edge to edge.

    Raises
    ------
    ValueError
        Shapes differ, or `sigma` or `min_length` is not positive.
    """
    xp = get_xp(data)
    checks.same_shape("find_trails", data, variance=variance, mask=mask)
    for key, value in (("sigma", sigma), ("min_length", min_length)):
        checks.positive("find_trails", key, value)
    found = np.zeros(data.shape, bool)
    trails: list[Trail] = []
    if min(data.shape) < 8 * _BIN:
        return xp.asarray(found), trails
    significance = _binned_significance(data, variance, mask)
    shortest, longest = _levels(data.shape, min_length)
    seen: list[tuple[Strip, bool]] = []
    for _ in range(_ROUNDS):
        tried, new = 0, False
        for line in strongest_lines(significance, shortest, longest, _CANDIDATE, _MOST):
            if tried == _TRIES:
                break
            if _known(line, seen):
                continue
            tried += 1
            strip = cut_strip(data, variance, mask, line, _BIN)
            run = strip.find_run(sigma, min_length)
            seen.append((strip, run is not None))
            if run is not None and _draw(found, strip, run):
                new = True
                trails.append(_describe(strip, run))
        if not new:
            break
        ny, nx = significance.shape
        covered = found[: ny * _BIN, : nx * _BIN].reshape(ny, _BIN, nx, _BIN).any(axis=(1, 3))
        significance = xp.where(xp.asarray(covered), np.float32(0), significance)
    return xp.asarray(found), trails
