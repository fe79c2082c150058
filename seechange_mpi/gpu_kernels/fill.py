"""Masked pixels on static sources, predicted from the good pixels of both images.

`difference` counts masked pixels as zero. On empty sky nothing better is known; where a bad column crosses a star,
though, the holes of the two images are convolved with different filters and leave false residuals. There the masked
values u are replaced by their conditional mean, given the good pixels of both images and the model behind
`difference_filter`: both images show one sky g through (a_r, a_n), under white noise of rms σ_n, σ_r, and g ⊗ a_r is
F_n f ⊗ P_n of a sky f of white power τ². With Ĉ the 2 × 2 power matrix of (N, R) per frequency, c_ij(v) the transforms
of Ĉ⁻¹,

    Ĉ⁻¹ = d̂ d̂* + w ê ê*,   d̂ = (d_n, −d_r),   ê ∝ (d_r, d_n)* / (σ_n², σ_r²),   w = 1 / (1 + τ² × S/N² of f per mode)

and G the matrix c(p − q) of the masked pixels p, q of both images:  G u = −(Ĉ⁻¹ data)(p), data zero where masked. For
τ → ∞ this is the u of least |D|²: the static sky explains all it can. τ is taken from the light around the pixels; a
lower one costs less signal next to them.

What is fitted cannot be seen as a transient: near filled pixels V(S) and the response of S fall by

    q(x) = (V_0 − b_xᵀ G⁻¹ b_x) / (V_0 − Σ_p σ_n² k_n(x − p)² + σ_r² k_r(x − p)²),   b_x = (k_n(x − p), −k_r(x − p)),

V_0 the variance of S on empty sky. `difference` multiplies both by q, so that S_corr keeps unit variance and fluxes
stay right. (Exact for white noise and the decorrelated matched filter; on stars V is that of zeros times q.)

Where d and e are cut off they are cut before they are multiplied to Ĉ⁻¹: so G stays positive and what is cut costs a
small residual instead of a large one along the small eigenvalues of G.

Bounds: only masked pixels are filled around which both images show light, groups of them around one that is bright
(a transient alone is in one image only); of wide holes only a rim as deep as light is looked for, the rest stays zero;
groups of more than `_LARGEST` pixels are solved in blocks, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.difference_filter import DifferenceFilter
from seechange_mpi.gpu_kernels.fill_tables import MARGIN, Cell, Tables

if TYPE_CHECKING:
    from seechange_mpi.gpu_kernels.difference import Pair

_BRIGHT = (5.0, 3.0)
"""S/N of the light around a masked pixel, in the one image and in the other, in which a filled hole starts."""

_FAINT = (3.0, 1.0)
"""The same of the pixels that belong to it."""

_LOOK = 2.5
"""How far light is looked for, in units of the rms of the mean PSF."""

_LINK = 8
"""Masked pixels nearer than this are solved together [pix]."""

_LARGEST, _BLOCK = 192, 12
"""Holes of more pixels than this are cut into squares of that side [pix]."""

_SWEEPS, _SWEEPS_BRIGHT, _SWEEPS_CUT = 1, 2, 8
"""Passes over holes of τ to 1000 σ_n; over brighter ones, as holes see each other's filling; over cut ones."""

_CELL = 1024
"""Side of the squares in which the filters count as constant where they vary [pix]."""

_DECADES = 5
"""Largest log10 of τ / σ_n; beyond it frequencies would count at which PSF stamps are rounding noise."""

_RIDGE = 1e-9
"""Added to the diagonal of G, relative."""

_LEAST = 0.01
"""Of V_0 that is left at least."""

_MANY = 1 << 22
"""Values handled at once."""


@dataclass
class Fill:
    """Values for masked pixels.

    Attributes
    ----------
    y, x : (m,) int, the pixels.
    new, ref : (m,) float, the values, backgrounds of matching kernels taken off.
    log_kept : (ny, nx) float, logarithm of q, 0 far from filled pixels.
    """

    y: Array
    x: Array
    new: Array
    ref: Array
    log_kept: Array


def fill_values(
    pair: Pair, bad: Array, filters_at: Callable[[float, float], DifferenceFilter], *, varying: bool
) -> Fill | None:
    """Predict the masked pixels that lie on static sources.

    Parameters
    ----------
    pair : the images.
    bad : (ny, nx) bool, masked or not finite in either.
    filters_at : (x, y) -> filters in float64 on a grid several times as wide as they are.
    varying : they change over the frame; else they are asked for once, at its centre.

    Returns
    -------
    Fill, or None where no masked pixel is near light. NumPy and CuPy agree to 1e-5 of the light there.
    """
    xp = get_xp(pair.new, pair.ref)
    if not bool(bad.any()):
        return None
    ny, nx = bad.shape
    step = _CELL if varying else max(ny, nx)
    cells = [Cell(pair, filters_at, min(x0 + step, nx) - 1 + x0, min(y0 + step, ny) - 1 + y0)
             for y0 in range(0, ny, step) for x0 in range(0, nx, step)]
    across = -(-nx // step)
    spread = cells[len(cells) // 2].spread
    images = _Images(pair, bad, xp)
    found = _on_light(images, pair, bad, spread, lambda y, x: (y // step) * across + x // step, cells)
    if found is None:
        return None
    images.take_background(pair, bad)
    holes = _holes(*(asnumpy(a) for a in found[:5]))
    order = xp.asarray(holes.order)
    images.add(*(found[k][order] for k in (0, 1, 5, 6)))
    log_kept = xp.zeros(bad.shape, dtype=images.real)
    batches = [_Batch(part, cells[key[0]].tables(key[1]), images, log_kept) for key, part in _batches(holes)]
    for sweep in range(_SWEEPS_CUT):
        for batch in batches:
            if sweep < batch.sweeps:
                batch.solve(images)
    y, x = xp.asarray(holes.y), xp.asarray(holes.x)
    return Fill(y, x, *images.at(y, x), log_kept)


class _Images:
    """Both images, zero where masked, with a margin of zeros."""

    def __init__(self, pair: Pair, bad: Array, xp: Any) -> None:
        self.xp, self.shape = xp, bad.shape
        self.real: Any = np.float32 if pair.new.dtype == np.float32 else np.float64
        self.margin = MARGIN
        ny, nx = bad.shape
        self.inner = slice(self.margin, self.margin + ny), slice(self.margin, self.margin + nx)
        self.planes = []
        padded = ny + 2 * self.margin, nx + 2 * self.margin
        self.good = xp.zeros(padded, dtype=bool)
        xp.logical_not(bad, out=self.good[self.inner])
        for image in (pair.new, pair.ref):
            plane = xp.zeros(padded, dtype=self.real)
            xp.copyto(plane[self.inner], image, where=self.good[self.inner])
            self.planes.append(plane)

    def take_background(self, pair: Pair, bad: Array) -> None:
        """Take the background of a matching kernel off."""
        if pair.background is None:
            return
        xp, (ny, nx) = self.xp, self.shape
        value = pair.background(xp.arange(nx, dtype=xp.float64)[None, :], xp.arange(ny, dtype=xp.float64)[:, None])
        inside = self.planes[1 if pair.background_of_ref else 0][self.inner]
        inside -= value.astype(self.real)
        xp.copyto(inside, self.real(0), where=bad)

    def windows(self, plane: Array, y: Array, x: Array, half: int) -> Array:
        """Windows (n, 2 half + 1, 2 half + 1) of a padded plane around pixels."""
        view = self.xp.lib.stride_tricks.sliding_window_view(plane, (2 * half + 1, 2 * half + 1))
        return view[y + (self.margin - half), x + (self.margin - half)]

    def at(self, y: Array, x: Array) -> tuple[Array, Array]:
        """Values of both at pixels."""
        return self.planes[0][self.inner][y, x], self.planes[1][self.inner][y, x]

    def add(self, y: Array, x: Array, new: Array, ref: Array) -> None:
        """Add to both at pixels, each given once."""
        for plane, value in zip(self.planes, (new, ref), strict=True):
            plane[y + self.margin, x + self.margin] += value.astype(self.real)


def _on_light(images: _Images, pair: Pair, bad: Array, spread: float, cell_of: Callable[[Array, Array], Array],
              cells: list[Cell]) -> tuple[Array, ...] | None:
    """Masked pixels with light around them: y, x, cell, log10 of τ / σ_n, whether bright, the light; or None.

    The light of both images is the mean of the good pixels, weighted by a Gaussian of rms `spread` [pix].
    """
    xp, real = images.xp, images.real
    half = int(np.ceil(_LOOK * spread))
    u = xp.arange(-half, half + 1)
    profile = xp.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / spread**2).ravel()
    noise = xp.asarray(np.array([c.noise for c in cells]))
    parts = []
    index = xp.flatnonzero(_rim(bad, half) if int(bad.sum()) > _MANY >> 6 else bad)
    for part in _chunks(len(index), profile.size):
        y, x = xp.divmod(index[part], bad.shape[1])
        cell = cell_of(y, x)
        seen = images.windows(images.good, y, x, half).reshape(len(y), profile.size).astype(real)
        weight, power = seen @ profile.astype(real), seen @ (profile**2).astype(real)
        mean = [images.windows(p, y, x, half).reshape(len(y), profile.size) @ profile.astype(real)
                for p in images.planes]
        base = [xp.zeros(len(y)), xp.zeros(len(y))]
        if pair.background is not None:
            base[int(pair.background_of_ref)] = pair.background(x.astype(xp.float64), y.astype(xp.float64))
            mean = [m - b * weight for m, b in zip(mean, base, strict=True)]
        scale = [1 / (noise[cell, k] * xp.sqrt(xp.maximum(power, 1e-20))) for k in (0, 1)]
        ratio = [m * s for m, s in zip(mean, scale, strict=True)]
        lit, bright = ((xp.maximum(*ratio) > high) & (xp.minimum(*ratio) > low) for high, low in (_FAINT, _BRIGHT))
        at = xp.nonzero(lit)[0]
        y, x, cell, weight = y[at], x[at], cell[at], weight[at]
        top = [(images.windows(p, y, x, half).reshape(len(y), profile.size).max(axis=1) - b[at]) / noise[cell, k]
               for k, (p, b) in enumerate(zip(images.planes, base, strict=True))]
        # the less is seen of what is around a pixel, the brighter it may be itself
        tau = 2 * xp.maximum(*top) / xp.clip((weight / profile.sum()) ** 2, 0.02, 1)
        parts.append((y, x, cell, xp.log10(xp.maximum(tau, 1)), bright[at], *(m[at] / weight for m in mean)))
    found = [xp.concatenate(a) for a in zip(*parts, strict=True)] if parts else []
    return tuple(found) if found and bool(found[4].any()) else None


def _rim(bad: Array, depth: int) -> Array:
    """Bad pixels not farther than `depth` from a good one along both axes."""
    xp = get_xp(bad)
    ny, nx = bad.shape
    deep = bad.copy()
    for axis, n in ((0, ny), (1, nx)):
        before = deep.copy()
        for k in range(1, min(depth, n - 1) + 1):
            low, high = (slice(0, n - k), slice(k, n)) if axis == 1 else (np.s_[: n - k], np.s_[k:])
            if axis == 0:
                deep[low] &= before[high]
                deep[high] &= before[low]
            else:
                deep[:, low] &= before[:, high]
                deep[:, high] &= before[:, low]
    return xp.logical_and(bad, ~deep)


def _chunks(n: int, size: int) -> Iterator[slice]:
    step = max(1, _MANY // size)
    return (slice(k, min(k + step, n)) for k in range(0, n, step))


@dataclass
class _Holes:
    """Pixels to fill, sorted by hole; host arrays.

    Attributes
    ----------
    order, y, x : (m,) int, index among the given pixels, position;  start : (holes + 1,) first pixel of each hole.
    cell, decade, colour : (holes,) int; colour 0 for whole holes, 1–4 for blocks of cut ones, none beside its like.
    """

    order: np.ndarray
    y: np.ndarray
    x: np.ndarray
    start: np.ndarray
    cell: np.ndarray
    decade: np.ndarray
    colour: np.ndarray


def _holes(y: np.ndarray, x: np.ndarray, cell: np.ndarray, log_tau: np.ndarray, bright: np.ndarray
           ) -> _Holes:
    """Group pixels; groups without a bright one are left out."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    i, j = cKDTree(np.stack([y, x], axis=1)).query_pairs(_LINK, output_type="ndarray").T
    label = connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(len(y), len(y))), directed=False)[1]
    kept = (np.bincount(label, weights=bright) > 0)[label]
    cut = np.bincount(label)[label] > _LARGEST
    by, bx = y // _BLOCK, x // _BLOCK
    key = np.stack([np.where(cut, -1, label), np.where(cut, by, 0), np.where(cut, bx, 0)])
    label = np.unique(key, axis=1, return_inverse=True)[1].ravel()
    order = np.argsort(label, kind="stable")
    order = order[kept[order]]
    y, x, label = y[order], x[order], label[order]
    start = np.concatenate([[0], np.nonzero(np.diff(label))[0] + 1, [len(y)]])
    first = order[start[:-1]]
    colour = np.where(cut[first], 1 + 2 * (by[first] % 2) + bx[first] % 2, 0)
    decade = np.clip(np.ceil(np.maximum.reduceat(log_tau[order], start[:-1])), 1, _DECADES).astype(int)
    return _Holes(order, y, x, start, cell[first], decade, colour)


@dataclass
class _Part:
    """Holes of like size: y, x (holes, size), padded by repetition;  valid (holes, size);  passes over them."""

    y: np.ndarray
    x: np.ndarray
    valid: np.ndarray
    sweeps: int


def _batches(holes: _Holes) -> Iterator[tuple[tuple[int, int], _Part]]:
    """(cell, decade) and holes that are solved at once, whole ones first."""
    count = np.diff(holes.start)
    size = 2 ** np.ceil(np.log2(count)).astype(int)
    keys = np.stack([holes.colour, holes.cell, holes.decade, size], axis=1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    for k, (colour, cell, decade, width) in enumerate(unique.tolist()):
        sweeps = _SWEEPS_CUT if colour else (_SWEEPS if decade <= 3 else _SWEEPS_BRIGHT)
        members = np.nonzero(inverse.ravel() == k)[0]
        step = max(1, _MANY // (2 * width) ** 2)
        for first in range(0, len(members), step):
            which = members[first: first + step]
            index = holes.start[which][:, None] + np.arange(width)
            valid = np.arange(width) < count[which][:, None]
            index = np.where(valid, index, holes.start[which][:, None])
            yield (cell, decade), _Part(holes.y[index], holes.x[index], valid, sweeps)


class _Batch:
    """G⁻¹ of some holes."""

    def __init__(self, part: _Part, tables: Tables, images: _Images, log_kept: Array) -> None:
        xp = self.xp = images.xp
        self.sweeps, self.tables = part.sweeps, tables
        self.y, self.x, self.valid = xp.asarray(part.y), xp.asarray(part.x), xp.asarray(part.valid)
        self.inverse = xp.linalg.inv(self._matrix())
        self._count_loss(part, log_kept)

    def _matrix(self) -> Array:
        """G (holes, 2 size, 2 size); unit rows for pixels that only pad."""
        xp, t = self.xp, self.tables
        dy, dx = (a[:, :, None] - a[:, None, :] for a in (self.y, self.x))
        real = self.valid[:, :, None] & self.valid[:, None, :]
        nn, nr, rr = (xp.where(real, _look_up(c, dy, dx), 0) for c in t.c)
        g = xp.concatenate([xp.concatenate([nn, nr], axis=2),
                            xp.concatenate([nr.transpose(0, 2, 1), rr], axis=2)], axis=1)
        both = xp.concatenate([self.valid, self.valid], axis=1)
        index = xp.arange(g.shape[1])
        g[:, index, index] = xp.where(both, g[:, index, index] * (1 + _RIDGE), 1)
        return g

    def solve(self, images: _Images) -> None:
        """Bring the pixels to their conditional mean, given everything else in the images."""
        xp, t = self.xp, self.tables
        at = xp.nonzero(self.valid.ravel())[0]
        y, x = self.y.ravel()[at], self.x.ravel()[at]
        right = xp.zeros((self.valid.size, 2))
        for part in _chunks(len(at), len(t.weights_new)):
            right[at[part]] = sum(
                images.windows(p, y[part], x[part], t.half).reshape(-1, len(w)).astype(xp.float64) @ w
                for p, w in zip(images.planes, (t.weights_new, t.weights_ref), strict=True))
        holes, size = self.valid.shape
        right = right.reshape(holes, size, 2).transpose(0, 2, 1).reshape(holes, 2 * size, 1)
        step = -xp.matmul(self.inverse, right).reshape(holes, 2, size)
        images.add(y, x, step[:, 0].ravel()[at], step[:, 1].ravel()[at])

    def _count_loss(self, part: _Part, log_kept: Array) -> None:
        """Add log q of these holes."""
        xp, t = self.xp, self.tables
        origin = [a.min(axis=1) - t.reach for a in (part.y, part.x)]
        extent = [int((a.max(axis=1) - o).max()) + t.reach + 1 for a, o in zip((part.y, part.x), origin, strict=True)]
        cost = 4 * part.y.shape[1] * extent[0] * extent[1]
        for chunk in _chunks(len(part.y), cost):
            row = xp.asarray(origin[0][chunk])[:, None] + xp.arange(extent[0])
            column = xp.asarray(origin[1][chunk])[:, None] + xp.arange(extent[1])
            dy = row[:, None, :, None] - self.y[chunk][:, :, None, None]
            dx = column[:, None, None, :] - self.x[chunk][:, :, None, None]
            valid = self.valid[chunk][:, :, None, None]
            b_n, b_r, lost = (xp.where(valid, _look_up(a, dy, dx), 0) for a in (*t.k, t.lost))
            b = xp.concatenate([b_n, b_r], axis=1).reshape(len(row), -1, extent[0] * extent[1])
            fitted = (b * xp.matmul(self.inverse[chunk], b)).sum(axis=1).reshape(len(row), *extent)
            q = xp.maximum(1 - fitted, _LEAST) / xp.maximum(1 - lost.sum(axis=1), _LEAST)
            _add_at(log_kept, row, column, xp.log(xp.clip(q, _LEAST, 1)))


def _look_up(table: Array, dy: Array, dx: Array) -> Array:
    """Values of a stamp at offsets from its middle, 0 outside."""
    xp = get_xp(table)
    half = table.shape[0] // 2
    inside = (xp.abs(dy) <= half) & (xp.abs(dx) <= half)
    index = (xp.clip(dy, -half, half) + half) * table.shape[1] + (xp.clip(dx, -half, half) + half)
    return xp.where(inside, xp.take(table.ravel(), index), 0)


def _add_at(plane: Array, row: Array, column: Array, values: Array) -> None:
    """Add values (n, h, w) at rows (n, h) and columns (n, w), those off the plane left out."""
    xp = get_xp(plane)
    ny, nx = plane.shape
    inside = ((row >= 0) & (row < ny))[:, :, None] & ((column >= 0) & (column < nx))[:, None, :]
    index = (row[:, :, None] * nx + column[:, None, :])[inside]
    values = values[inside].astype(plane.dtype)
    flat = plane.ravel()
    if xp is np:
        np.add.at(flat, index, values)
    else:
        import cupyx

        cupyx.scatter_add(flat, index, values)
