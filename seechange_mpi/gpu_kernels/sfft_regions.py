"""Where the SFFT solver looks: regions around sources seen in both images, and which of them stay.

A pair is made comparable by setting both images to zero outside the regions ("sparse flavour" of Hu et al. 2022).
A region is kept or dropped as a whole, so no border runs through the light of a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels import polynomials
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_ndimage, get_xp
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

CORE_SIGMA = 10.0
"""A source takes part when one pixel of it is this many sigma above the sky in both images."""
FOOTPRINT_SIGMA = 3.0
"""Connected pixels above this in either image are its footprint."""
CHANGE = 0.5
"""A group of connected pixels whose flux in one image is off by this fraction of the other's is not the same source."""
HOLE = 2000
"""Gaps between sources with fewer pixels belong to the region."""
GUARD = 2
"""A bad pixel this close to a footprint [pix] drops the region; farther out it counts as sky."""
KEPT_FRACTION = 0.3
"""Regions shrink while less than this fraction of the source pixels would be left."""


@dataclass
class Grid:
    """Scaled positions u = (x − x0) / x_scale, v = (y − y0) / y_scale, both in −1..1 over the frame."""

    shape: tuple[int, int]

    @property
    def origin(self) -> tuple[float, float]:
        """(x0, y0)."""
        return (self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2

    @property
    def scale(self) -> tuple[float, float]:
        """(x_scale, y_scale)."""
        return self.shape[1] / 2, self.shape[0] / 2

    def axes(self, xp: Any = np, dtype: Any = np.float64) -> tuple[Array, Array]:
        """u of the columns (nx,), v of the rows (ny,)."""
        (x0, y0), (xs, ys) = self.origin, self.scale
        u = (xp.arange(self.shape[1]) - x0) / xs
        v = (xp.arange(self.shape[0]) - y0) / ys
        return u.astype(dtype), v.astype(dtype)

    def surface(self, degree: int, coefficients: np.ndarray, xp: Any) -> Array:
        """Polynomial over the frame, (ny, nx) float32."""
        u, v = self.axes(xp)
        total = xp.zeros(self.shape, dtype=np.float32)
        for j in range(degree + 1):
            row = sum(float(c) * u**i for (i, jj), c in zip(polynomials.powers(degree), coefficients, strict=True)
                      if jj == j)
            total += (v**j).astype(np.float32)[:, None] * row.astype(np.float32)[None, :]
        return total


def sky(image: Array, bad: Array, degree: int, grid: Grid) -> tuple[np.ndarray, float]:
    """Polynomial through the medians of blocks, clipped, and the noise of a pixel (from the median deviation).

    One pixel in 16 is read. Bad pixels do not take part; blocks with less than half good ones neither.
    """
    xp = get_xp(image)
    block = max(8, min(64, min(grid.shape) // 6))
    step = 4 if block >= 32 else 1
    block -= block % step
    rows, columns = grid.shape[0] // block, grid.shape[1] // block
    cut = (slice(0, rows * block, step), slice(0, columns * block, step))

    def blocks(a: Array) -> Array:
        n = block // step
        return a[cut].reshape(rows, n, columns, n).transpose(0, 2, 1, 3).reshape(rows * columns, n * n)

    good = blocks(~bad)
    values = xp.where(good, blocks(image), xp.nan).astype(xp.float32)
    enough = good.sum(axis=1) * 2 > good.shape[1]
    if not bool(enough.any()):
        raise ValueError("solve_sfft: nothing to fit: mask leaves no area with half of its pixels good")
    values = values[enough]
    level = xp.nanmedian(values, axis=1)
    noise = float(xp.median(MAD_TO_SIGMA * xp.nanmedian(xp.abs(values - level[:, None]), axis=1)))
    kept = np.flatnonzero(asnumpy(enough))
    u, v = grid.axes()
    u = u[np.minimum((kept % columns) * block + block // 2, grid.shape[1] - 1)]
    v = v[(kept // columns) * block + block // 2]
    return _clipped_surface(degree, u, v, asnumpy(level).astype(np.float64)), noise


def _clipped_surface(degree: int, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Coefficients of a polynomial through levels at (u, v), 3-sigma clipped; a constant where there are few."""
    n_terms = len(polynomials.powers(degree))
    used = degree if len(level) >= 3 * n_terms else 0
    design = polynomials.terms(used, u, v)
    keep = np.ones(len(level), bool)
    for _ in range(4):
        fit = np.linalg.lstsq(design[keep], level[keep], rcond=None)[0]
        residual = level - design @ fit
        spread = MAD_TO_SIGMA * np.median(np.abs(residual[keep]))
        keep = np.abs(residual) <= 3 * spread + 1e-12 * np.abs(level).max()
        if keep.sum() < 3 * design.shape[1]:
            break
    out = np.zeros(n_terms)
    for term, c in zip(polynomials.powers(used), fit, strict=True):
        out[polynomials.powers(degree).index(term)] = c
    return out


@dataclass
class Regions:
    """Numbered regions: `labels` (ny, nx) int32, 0 = outside; `keep` (n + 1,) bool, host, keep[0] False.

    `sources` (n + 1,) counts the separate bright cores in each.
    """

    labels: Array
    keep: np.ndarray
    sources: np.ndarray

    @property
    def n_sources(self) -> int:
        """Sources in the regions kept."""
        return int(self.sources[self.keep].sum())


def find_regions(template: Array, target: Array, bad: Array, noise: tuple[float, float], width: int) -> Regions:
    """Regions around sources significant in both sky-subtracted images; those with defects are not kept.

    Where regions merge so far that defects would drop most of them, they shrink from `width` to `width` / 2 and 2
    pixels around the footprints.
    """
    xp = get_xp(template)
    nd = get_ndimage(xp)
    square = xp.ones((3, 3), dtype=int)
    core = (template > CORE_SIGMA * noise[0]) & (target > CORE_SIGMA * noise[1]) & ~bad
    faint = ((template > FOOTPRINT_SIGMA * noise[0]) | (target > FOOTPRINT_SIGMA * noise[1])) & ~bad
    segments, n = nd.label(faint, structure=square)
    with_core = xp.zeros(n + 1, dtype=bool)
    with_core[segments[core]] = True
    footprint = with_core[segments]
    cores, n_cores = nd.label(core, structure=square)
    edge = xp.ones_like(bad)
    edge[1:-1, 1:-1] = False
    foul = (bad | edge) & _grow(footprint, GUARD, nd)
    foul |= _changed(template, target, segments, n, with_core, noise)[segments]
    del segments, faint
    total = int(footprint.sum())
    for grow in dict.fromkeys((width, max(width // 2, 2), 2)):
        labels, n = nd.label(_without_holes(_grow(footprint, grow, nd), nd), structure=square)
        dropped = xp.zeros(n + 1, dtype=bool)
        dropped[labels[foul]] = True
        dropped[0] = True
        if int((footprint & ~dropped[labels]).sum()) >= KEPT_FRACTION * total:
            break
    labels *= ~bad
    first = asnumpy(_first_label(labels, cores, n_cores, xp))
    sources = np.bincount(first, minlength=n + 1)
    return Regions(labels, ~asnumpy(dropped), sources)


def _changed(template: Array, target: Array, segments: Array, n: int, with_core: Array,
             noise: tuple[float, float]) -> Array:
    """Segments (n + 1,) seen in one image only or with another flux than the typical ratio says."""
    xp = get_xp(template)
    at = xp.nonzero(segments)
    label = segments[at]
    pixels = xp.bincount(label, minlength=n + 1)
    t, j = (xp.bincount(label, weights=image[at], minlength=n + 1) for image in (template, target))
    matched = with_core & (t > 0)
    if not bool(matched.any()):
        return xp.zeros(n + 1, dtype=bool)
    ratio = xp.median(j[matched] / t[matched])
    t = t * ratio
    error = xp.sqrt(pixels * (noise[1] ** 2 + (ratio * noise[0]) ** 2))
    return xp.abs(j - t) > CHANGE * xp.maximum(xp.abs(j), xp.abs(t)) + 5 * error


def _grow(mask: Array, radius: int, nd: Any) -> Array:
    size = 2 * radius + 1
    return nd.maximum_filter(mask.view(np.uint8), size=size, mode="constant").view(bool)


def _without_holes(mask: Array, nd: Any) -> Array:
    """Gaps smaller than HOLE filled: every border inside a crowded field costs accuracy."""
    xp = get_xp(mask)
    labels, n = nd.label(~mask)
    small = xp.bincount(labels.ravel(), minlength=n + 1) < HOLE
    return mask | small[labels]


def _first_label(labels: Array, cores: Array, n_cores: int, xp: Any) -> Array:
    """The region of every core."""
    out = xp.zeros(n_cores + 1, dtype=labels.dtype)
    inside = cores > 0
    out[cores[inside]] = labels[inside]
    return out[1:]


def whole_frame(bad: Array) -> Regions:
    """One region: every good pixel."""
    return Regions((~bad).astype(np.int32), np.array([False, True]), np.array([0, 1]))
