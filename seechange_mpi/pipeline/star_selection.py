"""Which sources are stars: the stellar locus in half-light radius, isolation, and the PSF's own profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MIN_RADIUS = 0.85
"""Half-light radius below which a source is narrower than any sampled PSF (cosmic rays, hot pixels) [pix]."""


@dataclass(frozen=True, slots=True)
class StellarLocus:
    """Half-light radius of point sources: its place and width in the logarithm, and how many sources show it.

    Attributes
    ----------
    slope : change of the logarithm per pixel in x and y, about `centre` (x, y), where the radius is `radius`.
    """

    radius: float
    width: float
    n: int
    slope: tuple[float, float] = (0.0, 0.0)
    centre: tuple[float, float] = (0.0, 0.0)

    def log_radius_at(self, x: F64, y: F64) -> F64:
        """Logarithm of the radius of stars at positions [pix]."""
        return np.asarray(np.log(self.radius) + self.slope[0] * (x - self.centre[0])
                          + self.slope[1] * (y - self.centre[1]))


def _sharpest_peak(values: F64, half_width: float = 0.06) -> float:
    """Value whose neighbourhood holds the most significant excess over the places beside it."""
    v = np.sort(values)

    def count(reach: float) -> F64:
        return (np.searchsorted(v, v + reach, side="right") - np.searchsorted(v, v - reach)).astype(float)

    inner, outer = count(half_width), count(3 * half_width)
    beside = (outer - inner) / 2.0
    return float(v[int(np.argmax((inner - beside) / np.sqrt(beside + 1.0)))])


def find_stellar_locus(radius: F64, snr: F64, good: Mask, x: F64, y: F64) -> StellarLocus | None:
    """Find the narrow ridge of point sources among the half-light radii of good sources.

    Galaxies scatter widely and cosmic rays lie below `MIN_RADIUS`, so the sharpest peak in log radius of the
    brighter sources is the stars', even where they are few. A ridge that is tilted over the image is followed where
    that brings in more stars.

    Parameters
    ----------
    radius, snr : (n,) half-light radius [pix], signal-to-noise ratio.
    good : (n,) bool, unflagged sources;  x, y : (n,) positions [pix].

    Returns
    -------
    StellarLocus, or None with fewer than 3 usable sources.
    """
    usable = good & np.isfinite(radius) & (radius > MIN_RADIUS) & (radius < 30)
    for least in (50.0, 30.0, 20.0, 10.0):
        chosen = usable & (snr > least)
        if chosen.sum() >= 15:
            break
    if chosen.sum() < 3:
        return None
    logr = np.log(radius[chosen])
    mode = _sharpest_peak(logr)
    flat = _ridge(logr, np.ones((len(logr), 1)), np.abs(logr - mode) < 0.09)
    centre = float(np.mean(x[chosen])), float(np.mean(y[chosen]))
    level = StellarLocus(float(np.exp(flat[0][0])), flat[1], flat[2], centre=centre)
    if level.n < 12:
        return level
    plane = np.stack([np.ones(len(logr)), x[chosen] - centre[0], y[chosen] - centre[1]], axis=-1)
    c, width, n = _ridge(logr, plane, np.abs(logr - mode) < 0.25)
    if n < 1.1 * level.n and width > 0.7 * level.width:
        return level
    return StellarLocus(float(np.exp(c[0])), width, n, (float(c[1]), float(c[2])), centre)


def _ridge(logr: F64, design: F64, start: Mask) -> tuple[F64, float, int]:
    """Coefficients, width and number of those on a ridge, by least squares and clipping from a first choice."""
    near = start
    c: F64 = np.zeros(design.shape[1])
    c[0] = float(np.median(logr[near])) if near.any() else float(np.median(logr))
    width = 0.03
    for _ in range(8):
        if near.sum() < max(3, 3 * design.shape[1] - 3):
            break
        if design.shape[1] == 1:
            c[0] = float(np.median(logr[near]))
        else:
            c = np.asarray(np.linalg.lstsq(design[near], logr[near], rcond=None)[0], dtype=np.float64)
        residual = logr - design @ c
        width = float(np.clip(1.4826 * np.median(np.abs(residual[near])), 0.01, 0.06))
        near = np.abs(residual) < max(3 * width, 0.06)
    return c, width, int(near.sum())


def isolated(x: F64, y: F64, flux: F64, radius: float, contrast: float = 0.05) -> Mask:
    """Return True for sources without a neighbour brighter than `contrast` of their flux within `radius` [pix]."""
    out = np.ones(len(x), bool)
    if len(x) < 2:
        return out
    pairs = cKDTree(np.stack([x, y], axis=-1)).query_pairs(radius, output_type="ndarray")
    for i, j in ((0, 1), (1, 0)):
        a, b = pairs[:, i], pairs[:, j]
        np.logical_and.at(out, a, ~(flux[b] > contrast * flux[a]))
    return out


def on_locus(radius: F64, snr: F64, locus: StellarLocus, x: F64, y: F64) -> Mask:
    """Return True where the half-light radius is that of a star within the scatter and its own noise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        tolerance = np.hypot(max(3 * locus.width, 0.08), 4.0 / np.maximum(snr, 1.0))
        return np.asarray(np.abs(np.log(radius) - locus.log_radius_at(x, y)) < tolerance) & (radius > MIN_RADIUS)


def spread_evenly(x: F64, y: F64, brightness: F64, shape: tuple[int, int], limit: int, cells: int = 4) -> npt.NDArray[
        np.intp]:
    """Return the indices of at most `limit` sources, the brightest of each cell of a grid first."""
    order = np.argsort(-brightness, kind="stable")
    if len(order) <= limit:
        return np.sort(order)
    cy = np.clip((y * cells / shape[0]).astype(int), 0, cells - 1)
    cx = np.clip((x * cells / shape[1]).astype(int), 0, cells - 1)
    rank = np.zeros(len(x), int)
    seen = np.zeros(cells * cells, int)
    for k in order:
        cell = cy[k] * cells + cx[k]
        rank[k] = seen[cell]
        seen[cell] += 1
    return np.sort(np.lexsort((-brightness, rank))[:limit])
