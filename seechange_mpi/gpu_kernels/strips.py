"""The strip of an image along a line: is there a streak of constant brightness in it, and where does it end?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.radon import Line

F64 = npt.NDArray[np.float64]

_HALF = 40
"""Half-width of the strip [pix]."""
_PIECE = 16
"""Length of its pieces [pix]."""
_CORE = 2
"""Pixels on either side of the streak's centre that are averaged."""
_CLIP = 5.0
_SHOWS, _CUT = 1.5, 5.0
"""Significance at which a piece speaks for a streak, and for which it counts at most."""
_EVEN = 0.2, 0.3
"""Least ratio of the faintest sixth of a trail to its brightest, and of the second faintest to the second brightest."""
_FADES, _FADED = 0.75, 0.5
"""Rank correlation of brightness and nearness to the brightest sixth that means fading, and the least ratio then."""
_WIDTH_PER_SIGMA = 6.0
"""A trail whose half-width is more than this [pix] must be brighter [sigma] by as much as it is wider: what is broad
and faint is an edge of the background."""
_LEAST_CONTRAST = 0.1
"""Contrast [sigma per pixel] that seven tenths of the pieces of a trail have; half of them have twice that."""
_DRIFT = 8.0
"""What moves less than this across rows or columns [pix] is an artefact of the detector."""


class Run(NamedTuple):
    """Where a streak begins and ends along the strip [pix], its half-width [pix], brightness [sigma], significance."""

    first: float
    last: float
    half_width: float
    brightness: float
    sigma: float


@dataclass
class Strip:
    """Pixels along a line from one edge of the image to another.

    Attributes
    ----------
    origin : (x, y) where the line enters the image;  direction : unit vector;  length : int [pix].
    values : (pieces, 16, 81) data;  significance : likewise, data over noise;  good : likewise, bool.
    hint : first and last piece where the line was found.
    curve : coefficients of the streak's offset, quadratic in the piece's number about the middle.
    """

    origin: F64
    direction: F64
    length: int
    values: F64
    significance: F64
    good: npt.NDArray[np.bool_]
    hint: tuple[int, int]
    curve: F64

    def at(self, t: F64, v: F64) -> tuple[F64, F64]:
        """Pixel x, y at `t` along the line and `v` across it."""
        ux, uy = self.direction
        return self.origin[0] + t * ux - v * uy, self.origin[1] + t * uy + v * ux

    def across(self, points: F64) -> F64:
        """Distance of points (n, 2) from the streak [pix]."""
        d = points - self.origin
        ux, uy = self.direction
        return np.asarray(d[:, 1] * ux - d[:, 0] * uy - self.offset(d @ self.direction))

    def offset(self, t: F64) -> F64:
        """Offset of the streak from the line at `t` [pix]."""
        u = t / _PIECE - 0.5 * len(self.values)
        return np.asarray(self.curve[0] + self.curve[1] * u + self.curve[2] * u * u)

    def find_run(self, sigma: float, min_length: int) -> Run | None:
        """Refine the line and return the run of pieces that show a streak, or None where there is no trail."""
        with warnings.catch_warnings():
            # pieces and offsets without a good pixel give NaN
            warnings.simplefilter("ignore", RuntimeWarning)
            return self._find_run(sigma, min_length)

    def _find_run(self, sigma: float, min_length: int) -> Run | None:
        level, weight = _pieces(np.clip(self.significance, -_CLIP, _CLIP), self.good)
        level = level - np.nanmedian(np.where(weight > 0, level, np.nan), axis=1, keepdims=True)
        level[~np.isfinite(level)] = 0
        core, count = _core(level, weight)
        shows = core / np.sqrt(np.maximum(count, 1))
        self._refine(np.clip(shows, -_CUT, _CUT))
        if self._longest(shows, count, sigma, min_length) is None:
            return None
        self._centre()
        found = self._longest(shows, count, sigma, min_length)
        if found is None:
            return None
        first, last, total = found
        start, stop = self._ends(first, last)
        at = self._columns()
        if self._drift(start, stop) < _DRIFT or not self._even(first, last, at):
            return None
        half_width, brightness = self._profile(level, weight, first, last, at)
        if not self._narrow(first, last, at, half_width, brightness):
            return None
        return Run(start, stop, half_width, brightness, total)

    def _longest(self, shows: F64, count: F64, sigma: float, min_length: int) -> tuple[int, int, float] | None:
        """First and last piece of the run along the curve that shows most, and its significance; None if too little."""
        at, pieces = self._columns(), np.arange(len(shows))
        z, seen = shows[pieces, at], count[pieces, at] > 0.3 * _PIECE * (2 * _CORE + 1)
        first, last = _best_run(np.where(seen, np.clip(z, -_CUT, _CUT) - _SHOWS, 0.0))
        inside = slice(first, last + 1)
        start, stop = self._ends(first, last)
        length, crosses = (last + 1 - first) * _PIECE, start <= 0 and stop >= self.length
        if length < (min_length / 3 if crosses else min_length) or seen[inside].mean() < 0.5:
            return None
        zs = z[inside][seen[inside]]
        total = float(np.clip(zs, -_CUT, _CUT).sum() / np.sqrt(len(zs)))
        # a few stars are soon in line: a short trail must be bright in all its pieces
        shows = (zs > 1.0).mean() >= 0.75 if length >= min_length else (zs > 3.0).mean() >= 0.9
        return (first, last, total) if shows and total >= sigma else None

    def _columns(self) -> npt.NDArray[np.int64]:
        u = np.arange(len(self.values)) + 0.5 - 0.5 * len(self.values)
        c = self.curve
        column = np.rint(c[0] + c[1] * u + c[2] * u * u).astype(np.int64) + _HALF
        return np.asarray(np.clip(column, 0, 2 * _HALF))

    def _refine(self, shows: F64) -> None:
        """Fit the curve to a window that widens from where the line was found to the whole strip."""
        n = len(shows)
        u = np.arange(n) + 0.5 - 0.5 * n
        low, high = self.hint
        reach = 10
        while True:
            low, high = max(low, 0), min(high, n)
            here = slice(low, high)
            self._search(shows[here], u[here], reach, 0)
            if low == 0 and high == n:
                break
            wider = high - low
            low, high, reach = low - wider // 2 - 1, high + wider // 2 + 1, 4
        self._search(shows, u, 3, 5)

    def _centre(self) -> None:
        """Move the curve to the ridge of a bright streak, all of whose width counts the same in `_refine`."""
        ridge = np.median(self.significance, axis=1)
        ridge -= np.median(ridge, axis=1, keepdims=True)
        wide = np.pad(ridge, [(0, 0), (1, 1)])
        ridge = np.log1p(np.maximum(wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:], 0))
        u = np.arange(len(ridge)) + 0.5 - 0.5 * len(ridge)
        for _ in range(2):
            self._search(ridge, u, 5, 2)

    def _search(self, shows: F64, u: npt.NDArray[np.floating[Any]], reach: int, bend: int) -> None:
        """Improve the curve over a window: offsets of its ends by up to `reach` pixels and of its middle by `bend`."""
        n = len(u)
        if n < 2:
            return
        s = (u - u[0]) / (u[-1] - u[0])
        base = self.curve[0] + self.curve[1] * u + self.curve[2] * u * u + _HALF
        ends = np.arange(-reach, reach + 1.0)
        bends = np.arange(-bend, bend + 1.0)
        a, b, c = (g.ravel() for g in np.meshgrid(ends, ends, bends, indexing="ij"))
        trial = base + a[:, None] * (1 - s) + b[:, None] * s + c[:, None] * (4 * s * (1 - s))
        column = np.rint(trial).astype(int)
        inside = (column >= 0) & (column <= 2 * _HALF)
        value = shows[np.arange(n), np.clip(column, 0, 2 * _HALF)]
        # of equally good curves the one that moves least
        score = (value * inside).sum(axis=1) - 1e-3 * (np.abs(a) + np.abs(b) + 2 * np.abs(c))
        k = int(np.argmax(score))
        move = a[k] * (1 - s) + b[k] * s + c[k] * (4 * s * (1 - s))
        self.curve = self.curve + np.polynomial.polynomial.polyfit(u, move, 2) if n > 2 else self.curve

    def _even(self, first: int, last: int, at: npt.NDArray[np.int64]) -> bool:
        """Whether what a run adds to its surroundings is about as bright in all its sixths; spikes fade outwards."""
        bright = np.full(len(at), np.nan)
        for k in range(first, last + 1):
            good = np.where(self.good[k], self.values[k], np.nan)
            low, high = max(at[k] - 1, 0), at[k] + 2
            if np.isfinite(good[:, low:high]).sum() < _PIECE:
                continue
            left, right = good[:, max(at[k] - 30, 0): max(at[k] - 12, 0)], good[:, at[k] + 13: at[k] + 31]
            sides = np.concatenate([left, right], axis=1)
            around = np.nanmedian(sides) if np.isfinite(sides).sum() > _PIECE else 0.0
            bright[k] = np.nanmedian(good[:, low:high]) - around
        parts = [p[np.isfinite(p)] for p in np.array_split(bright[first: last + 1], 6)]
        along = [float(np.median(p)) for p in parts if len(p)]
        level = sorted(along)
        if len(level) < 4 or level[-2] <= 0:
            return False
        away = np.abs(np.arange(len(along)) - int(np.argmax(along)))
        ranks = np.argsort(np.argsort(along)), np.argsort(np.argsort(-away, kind="stable"), kind="stable")
        if np.corrcoef(*ranks)[0, 1] > _FADES and level[0] < _FADED * level[-2]:
            return False
        return level[0] > _EVEN[0] * level[-1] and level[1] > _EVEN[1] * level[-2]

    def _narrow(self, first: int, last: int, at: npt.NDArray[np.int64], half_width: float,
                brightness: float) -> bool:
        """Whether nearly all pieces are brighter at the centre than on both sides of it, most by much."""
        away = int(half_width) + 2
        contrast = []
        for k in range(first, last + 1):
            s = np.where(self.good[k], self.significance[k], np.nan).clip(-_CLIP, _CLIP)
            left, right = s[:, max(at[k] - away - 8, 0): max(at[k] - away, 0)], s[:, at[k] + away: at[k] + away + 8]
            parts = s[:, max(at[k] - 1, 0): at[k] + 2], left, right, np.concatenate([left, right], axis=1)
            middle, *beside = (float(np.nanmedian(p)) if np.isfinite(p).sum() >= _PIECE else np.nan for p in parts)
            contrast.append([middle - b for b in beside])
        seen = np.array(contrast)
        seen = seen[np.isfinite(seen).all(axis=1)]
        if len(seen) < 5 or brightness < half_width / _WIDTH_PER_SIGMA - 1:
            return False
        # stars beside the trail raise a side here and there, the edge of something raises it everywhere
        enough = float(np.median(seen, axis=0).min()) > max(2 * _LEAST_CONTRAST, 0.5 * brightness)
        return enough and float(np.quantile(seen[:, 2], 0.3)) > _LEAST_CONTRAST

    def _ends(self, first: int, last: int) -> tuple[float, float]:
        """Ends of a run [pix], a piece more than what was seen, or the edge of the image where that is near."""
        start, stop = (first - 1.0) * _PIECE, (last + 2.0) * _PIECE
        return (0.0 if start < 3 * _PIECE else start), (float(self.length) if stop > self.length - 3 * _PIECE else stop)

    def _drift(self, start: float, stop: float) -> float:
        """How far the streak moves along the axis across which it moves less [pix]."""
        ends = np.array([start, stop])
        x, y = self.at(ends, self.offset(ends))
        return float(min(abs(x[1] - x[0]), abs(y[1] - y[0])))

    def _profile(self, level: F64, weight: F64, first: int, last: int,
                 at: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Half of the width to mask [pix] and the brightness at the centre [sigma]."""
        reach = _HALF - int(np.abs(at[first: last + 1] - _HALF).max())
        reach = max(6, min(reach, _HALF - 4))
        rows = []
        for k in range(first, last + 1):
            column = np.clip(np.arange(at[k] - reach, at[k] + reach + 1), 0, 2 * _HALF)
            rows.append(np.where(weight[k, column] > 0, level[k, column], np.nan))
        profile = np.nanmedian(np.array(rows), axis=0)
        error = 1.25 / np.sqrt(_PIECE * len(rows))
        least = max(0.2, 3 * error)
        sides = []
        for side in (profile[reach::-1], profile[reach:]):
            below = np.flatnonzero(~(0.5 * (side[:-1] + side[1:]) > least))
            sides.append(int(below[0]) if len(below) else reach)
        return float(max(2, *sides) + 1), float(np.nanmax(profile[reach - 1: reach + 2]))


def _pieces(significance: F64, good: npt.NDArray[np.bool_]) -> tuple[F64, F64]:
    """Return the mean significance of each piece and offset, and the number of good pixels behind it."""
    weight = good.sum(axis=1).astype(np.float64)
    return np.where(good, significance, 0).sum(axis=1) / np.maximum(weight, 1), weight


def _core(level: F64, weight: F64) -> tuple[F64, F64]:
    """Return sums of level × weight and of weight over the core around each offset."""
    def summed(a: F64) -> F64:
        wide = np.pad(a, [(0, 0), (_CORE, _CORE)])
        return np.asarray(sum((wide[:, k: k + a.shape[1]] for k in range(2 * _CORE + 1)), np.zeros_like(a)))

    return summed(level * weight), summed(weight)


def _best_run(gain: F64) -> tuple[int, int]:
    """First and last piece of the run of largest sum."""
    total = np.concatenate([[0.0], np.cumsum(gain)])
    lowest = np.minimum.accumulate(total)
    last = int(np.argmax(total - lowest)) - 1
    first = int(np.argmin(total[: last + 2])) if last >= 0 else 0
    return first, max(last, first)


def _crossing(point: F64, direction: F64, shape: tuple[int, int]) -> tuple[float, float]:
    """Return where a line enters and leaves the image, in pixels along it from `point`."""
    low, high = -np.inf, np.inf
    for p, u, n in zip(point, direction, (shape[1], shape[0]), strict=True):
        if abs(u) > 1e-9:
            ends = sorted(((-0.5 - p) / u, (n - 0.5 - p) / u))
            low, high = max(low, ends[0]), min(high, ends[1])
    return low, high


def cut_strip(data: Array, variance: Array, mask: Array, line: Line, scale: int) -> Strip:
    """Take the pixels along a line, from edge to edge.

    Parameters
    ----------
    data, variance : (ny, nx) float32;  mask : (ny, nx) bool, True = bad.
    line : in bins of `scale` pixels.
    """
    xp = get_xp(data)
    ny, nx = data.shape
    a, b = (np.array(p) * scale + 0.5 * (scale - 1) for p in ((line.x0, line.y0), (line.x1, line.y1)))
    span = float(np.hypot(*(b - a)))
    direction = (b - a) / span
    low, high = _crossing(a, direction, (ny, nx))
    origin, n = a + low * direction, max(1, int(high - low) // _PIECE)
    t = np.arange(n * _PIECE) + 0.5
    v = np.arange(-_HALF, _HALF + 1.0)
    x = np.rint(origin[0] + t[:, None] * direction[0] - v * direction[1]).astype(int)
    y = np.rint(origin[1] + t[:, None] * direction[1] + v * direction[0]).astype(int)
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    index = xp.asarray(np.clip(y, 0, ny - 1) * nx + np.clip(x, 0, nx - 1))
    values, noise2, bad = (asnumpy(xp.take(p.ravel(), index)) for p in (data, variance, mask))
    good = inside & ~bad & np.isfinite(values) & (noise2 > 0) & np.isfinite(noise2)
    values = np.where(good, values, 0).astype(np.float64)
    significance = values / np.sqrt(np.where(good, noise2, 1))
    shape = (n, _PIECE, 2 * _HALF + 1)
    hint = (int(-low // _PIECE), int((span - low) // _PIECE) + 1)
    return Strip(origin, direction, int(high - low), values.reshape(shape), significance.reshape(shape),
                 good.reshape(shape), hint, np.zeros(3))
