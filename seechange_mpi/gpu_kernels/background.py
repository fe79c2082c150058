"""Mesh background and rms with iterative source masking.

The image is cut into boxes; each box gives a clipped level and rms; the mesh is median filtered and
interpolated by a bicubic spline, which goes on linearly beyond the outermost box centres and never leaves the
range that this gives.

Pixels are handled by the backend of the image, all boxes at once; the meshes, a few hundred numbers, on the host.
NumPy and CuPy agree to 1e-4 of the rms.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from scipy.interpolate import make_interp_spline

from seechange_mpi.gpu_kernels import checks
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.stats import SortedRows

_COARSE_PIXELS = 4096
"""Boxes of at least this many pixels are judged by a quarter of them until the last pass."""

_SMOOTH, _GROW = 1.5, 6
"""Smoothing of the source mask, and its growth [pix]."""

_MASK_BIAS = 0.007
"""By how much of the rms masking of noise peaks may lower the level."""

_MOST_SOURCES = 0.8
"""Growth of source masks stops before it takes more of the image."""


class _Axis(NamedTuple):
    """Equal boxes along one axis; neighbours share a pixel where the boxes do not divide the length."""

    starts: np.ndarray
    size: int

    @classmethod
    def divide(cls, length: int, boxes: int) -> _Axis:
        size = -(-length // boxes)
        return cls(np.round(np.linspace(0, length - size, boxes)).astype(int), size)

    def pixels(self, first: int, last: int, xp: Any) -> Any:
        """Return the index of the pixels of boxes `first` to `last`, a slice where they are contiguous."""
        starts = self.starts[first:last]
        if (np.diff(starts) == self.size).all():
            return slice(int(starts[0]), int(starts[-1]) + self.size)
        return xp.asarray((starts[:, None] + np.arange(self.size)).ravel())


def _boxed(data: Array, bad: Array, rows: _Axis, columns: _Axis) -> SortedRows:
    """Return the sorted pixels of all boxes; a row of boxes at a time on the host, which keeps it in its cache."""
    xp = get_xp(data)
    my, mx, pixels = len(rows.starts), len(columns.starts), rows.size * columns.size
    padded = -(-pixels // 64) * 64
    together = 1 if xp is np else my
    across = columns.pixels(0, mx, xp)
    out = []
    for first in range(0, my, together):
        down = rows.pixels(first, first + together, xp)
        part = xp.where(bad[down], np.float32(np.inf), data[down])[:, across]
        n = part.shape[0] // rows.size
        values = xp.full((n, mx, padded), np.inf, dtype=xp.float32)
        cut = part.reshape(n, rows.size, mx, columns.size).transpose(0, 2, 1, 3)
        values[:, :, :pixels] = cut.reshape(n, mx, pixels)
        out.append(SortedRows.take(values.reshape(n * mx, padded)))
    return SortedRows.join(out)


def _mesh_shape(shape: tuple[int, ...], box_size: int) -> tuple[int, int]:
    return max(1, round(shape[0] / box_size)), max(1, round(shape[1] / box_size))


def _measure(
    data: Array, bad: Array, mesh_shape: tuple[int, int], filter_size: int, n_sigma: float, crowded: bool,
    base: np.ndarray | float = 0.0, least: np.ndarray | float = 0.05,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the filtered meshes of level plus `base` and of rms, and the share of good pixels, float64 on the host.

    Boxes with less than a share `least` of good pixels, or less than 16, are filled from the nearest others.
    """
    rows, columns = (_Axis.divide(n, m) for n, m in zip(data.shape, mesh_shape, strict=True))
    boxes = _boxed(data, bad, rows, columns)
    count = asnumpy(boxes.count).reshape(mesh_shape)
    share = count / (rows.size * columns.size)
    few = (count < 16) | (share < least)
    level, rms = (np.where(few, np.nan, asnumpy(a).reshape(mesh_shape)) for a in boxes.clip(n_sigma, mode=crowded))
    return _smooth(_fill(level + base), filter_size), _smooth(_fill(rms), filter_size), share


def _fill(mesh: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(mesh)
    if bad.all():
        return np.zeros_like(mesh)
    if bad.any():
        nearest = scipy.ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        mesh = mesh[tuple(nearest)]
    return mesh


def _smooth(mesh: np.ndarray, size: int) -> np.ndarray:
    """Median filter; the mesh goes on beyond its edges as its point reflection, which keeps gradients whole."""
    if size <= 1 or mesh.size == 1:
        return mesh
    reach = [min(size // 2, n - 1) for n in mesh.shape]
    wide = np.pad(mesh, [(r, r) for r in reach], mode="reflect", reflect_type="odd")
    filtered = scipy.ndimage.median_filter(wide, size=size, mode="nearest")
    return np.asarray(filtered[reach[0]: reach[0] + mesh.shape[0], reach[1]: reach[1] + mesh.shape[1]])


def _left_out(data: Array, mask: Array | None) -> Array:
    bad = ~get_xp(data).isfinite(data)
    return bad if mask is None else bad | mask


def _check(name: str, data: Array, mask: Array | None, box_size: int, filter_size: int) -> None:
    checks.same_shape(name, data, mask=mask)
    for key, value in (("box_size", box_size), ("filter_size", filter_size)):
        if value < 1:
            raise ValueError(f"{name}: {key} must be at least 1, found {value}")


def fit_mesh(
    data: Array, mask: Array | None = None, box_size: int = 128, filter_size: int = 3, n_sigma: float = 3.0,
    *, crowded: bool = True,
) -> tuple[Array, Array]:
    """Return background and rms at the box centres, each (round(ny / box), round(nx / box)) float32.

    Boxes with fewer than 5 % good pixels are filled from their neighbours.

    Parameters
    ----------
    data : (ny, nx) float32
    mask : (ny, nx) bool, optional; True = leave out.
    box_size : int [pix];  filter_size : int, boxes of the median filter;  n_sigma : float, clipping.
    crowded : bool
        True: sources are still in the image, the level estimates the mode; False: they are masked, it is the mean.

    Raises
    ------
    ValueError
        The mask has another shape, or `box_size` or `filter_size` is below 1.
    """
    _check("fit_mesh", data, mask, box_size, filter_size)
    xp = get_xp(data)
    mesh_shape = _mesh_shape(data.shape, box_size)
    level, rms, _ = _measure(data, _left_out(data, mask), mesh_shape, filter_size, n_sigma, crowded)
    return xp.asarray(level, dtype=xp.float32), xp.asarray(rms, dtype=xp.float32)


@lru_cache(maxsize=16)
def _spline_matrix(length: int, boxes: int) -> np.ndarray:
    """Return (length, boxes) float32: the values at each pixel of the splines through 1 at one box centre, 0 at others.

    Cubic where there are four boxes or more; beyond the outermost centre linear through it and the next.
    """
    if boxes == 1:
        return np.ones((length, 1), np.float32)
    centres = (np.arange(boxes) + 0.5) * length / boxes - 0.5
    at = np.arange(length, dtype=np.float64)
    out = make_interp_spline(centres, np.eye(boxes), k=min(3, boxes - 1))(np.clip(at, centres[0], centres[-1]))
    step = length / boxes
    for before, outer, inner in ((centres[0] - at, 0, 1), (at - centres[-1], -1, -2)):
        share = np.maximum(before, 0) / step
        out[:, outer] += share
        out[:, inner] -= share
    return np.asarray(out, dtype=np.float32)


def _range(mesh: np.ndarray) -> tuple[float, float]:
    """Return the range of a rendered mesh.

    It is that of the mesh and its linear continuation by half a box; what is positive keeps half of its least value.
    """
    wide = mesh
    for axis, n in enumerate(mesh.shape):
        if n > 1:
            first, second, last, inner = (np.take(wide, [k], axis=axis) for k in (0, 1, -1, -2))
            wide = np.concatenate([1.5 * first - 0.5 * second, wide, 1.5 * last - 0.5 * inner], axis=axis)
    low, high = float(wide.min()), float(wide.max())
    least = float(mesh.min())
    return (max(low, 0.5 * least) if least > 0 else low), high


def _render(mesh: np.ndarray, shape: tuple[int, ...], xp: Any) -> Array:
    """Render a host mesh to (ny, nx) float32 of `xp`: bicubic spline, two products of matrices."""
    middle = float(np.median(mesh))  # what is left is small: float32 keeps its precision on a bright sky
    down, across = (_spline_matrix(n, m) for n, m in zip(shape, mesh.shape, strict=True))
    right = (mesh - middle).astype(np.float32) @ across.T
    out = xp.asarray(down) @ xp.asarray(right)
    low, high = _range(mesh)
    xp.clip(out, np.float32(low - middle), np.float32(high - middle), out=out)
    out += np.float32(middle)
    return out


def render_mesh(mesh: Array, box_size: int, shape: tuple[int, int]) -> Array:
    """Interpolate a mesh to a (ny, nx) float32 map; `box_size` is nominal, boxes divide the image evenly.

    The map is a bicubic spline through the box centres, linear beyond the outermost. It stays within the range of the
    mesh and that linear continuation by half a box; where the mesh is positive, above half of its least value.
    """
    return _render(asnumpy(mesh).astype(np.float64), shape, get_xp(mesh))


def _pairs(plane: Array) -> Array:
    """Return sums over 2 × 2 pixels, (ceil(ny / 2), ceil(nx / 2)); an odd edge counts twice."""
    xp = get_xp(plane)
    odd = [(0, n % 2) for n in plane.shape]
    p = xp.pad(plane, odd, mode="edge") if any(o for _, o in odd) else plane
    rows = p[0::2] + p[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def _unpair(bins: Array, shape: tuple[int, ...]) -> Array:
    """Return a (ny, nx) bool map from one of 2 × 2 pixels."""
    xp = get_xp(bins)
    return xp.repeat(xp.repeat(bins, 2, axis=1), 2, axis=0)[: shape[0], : shape[1]]


def _taps(smooth: float) -> np.ndarray:
    """Return the Gaussian in bins of 2 × 2 pixels that smooths, with the bins (variance 4 / 12), by `smooth` pixels."""
    sigma = 0.5 * math.sqrt(max(smooth**2 - 1 / 3, 1e-6))
    reach = max(1, math.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(taps / taps.sum())


def _blur(plane: Array, taps: np.ndarray) -> Array:
    """Convolve both axes of a float32 plane by symmetric taps; edge pixels go on beyond the edges."""
    xp = get_xp(plane)
    reach = len(taps) // 2
    for axis in (0, 1):
        wide = xp.pad(plane, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        n = plane.shape[axis]
        shifted = [wide[k: k + n] if axis == 0 else wide[:, k: k + n] for k in range(2 * reach + 1)]
        plane = np.float32(taps[reach]) * shifted[reach]
        for k in range(reach):
            plane += np.float32(taps[k]) * (shifted[k] + shifted[-1 - k])
    return plane


def _source_bins(significance: Array, noise: Array | float, n_sigma: float, taps: np.ndarray, grow: int) -> Array:
    """Return True on bins of 2 × 2 pixels near sources.

    Parameters
    ----------
    significance : (my, mx) float32, sum of the good pixels of each bin over their rms, over 4.
    noise : float or (my, mx) float32, rms of the smoothed significance.
    """
    hot = _blur(significance, taps) > noise * np.float32(1.25 * n_sigma)
    # noise that stands out does so in one bin
    hot &= _dilate(hot, centre=False)
    for _ in range(-(-grow // 2)):
        wider = _dilate(hot)
        if float(wider.mean()) > _MOST_SOURCES:
            break
        hot = wider
    return hot


def _dilate(mask: Array, *, centre: bool = True) -> Array:
    """Return True where one of the four neighbours is (or the pixel itself, unless `centre` is False)."""
    out = mask.copy() if centre else get_xp(mask).zeros_like(mask)
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def source_mask(residual: Array, rms: Array, n_sigma: float = 2.0, smooth: float = _SMOOTH, grow: int = _GROW) -> Array:
    """Return (ny, nx) bool, True near sources.

    The image is binned by 2 × 2 pixels and smoothed, together like a Gaussian of `smooth` pixels; two neighbouring
    bins above 1.25 `n_sigma` of the smoothed noise are a source, grown by a diamond of `grow` pixels (less in
    crowded fields, where growth would take more than 80 % of the image).

    Parameters
    ----------
    residual : (ny, nx) float32, background-subtracted; what is not finite counts as 0.
    rms : (ny, nx) float32, per pixel, of the same unit.
    """
    xp = get_xp(residual)
    r = residual / xp.maximum(rms, np.float32(1e-20))
    r = xp.where(xp.isfinite(r), r, np.float32(0)).astype(xp.float32)
    taps = _taps(smooth)
    noise = np.float32(0.5 * (taps**2).sum())
    return _unpair(_source_bins(_pairs(r) * np.float32(0.25), noise, n_sigma, taps, grow), residual.shape)


def fit_background(
    data: Array, mask: Array | None = None, box_size: int = 128, filter_size: int = 3,
    detect_sigma: float = 2.0, iterations: int = 2,
) -> tuple[Array, Array]:
    """Like `fit_mesh`, with sources found above the first solution left out of the next.

    Until the last pass, large boxes are measured on every second pixel of every second row. Boxes of which
    sources leave less than a tenth are filled from their neighbours; if that is all, the solution before stands.
    Parameters and errors as `fit_mesh`; `detect_sigma` is the significance of a smoothed pixel that counts as source.
    """
    _check("fit_background", data, mask, box_size, filter_size)
    return measure_background(data, mask, box_size, filter_size, detect_sigma, iterations)[:2]


class BackgroundFit(NamedTuple):
    """Level, rms, and error of the level at the box centres: (my, mx) float32 each."""

    level: Array
    rms: Array
    error: Array


def measure_background(
    data: Array, mask: Array | None = None, box_size: int = 128, filter_size: int = 3,
    detect_sigma: float = 2.0, iterations: int = 2,
) -> BackgroundFit:
    """`fit_background` with errors of the level.

    A box whose n good pixels have the scatter σ is known to σ / √n where sources are masked; the median of k × k boxes
    lessens that by √(π/2) / k (honest for k of 3 and more: without it the first pass shows through). Peaks of the
    noise that are taken for sources lower the level by up to 0.7 % of σ, which is added; light of sources too faint to
    be masked is not.
    """
    _check("measure_background", data, mask, box_size, filter_size)
    xp = get_xp(data)
    if iterations < 1:
        shape = _mesh_shape(data.shape, box_size)
        level, noise, good_share = _measure(data, _left_out(data, mask), shape, filter_size, 3.0, True)
        return BackgroundFit(*(xp.asarray(a, dtype=xp.float32)
                               for a in (level, noise, 2.0 * _error(data.shape, noise, good_share, filter_size))))
    bad = _left_out(data, mask)
    mesh_shape = _mesh_shape(data.shape, box_size)
    step = 2 if data.size >= _COARSE_PIXELS * mesh_shape[0] * mesh_shape[1] else 1
    some, some_bad = (xp.ascontiguousarray(a[::step, ::step]) for a in (data, bad))
    good = _pairs(xp.where(bad, np.float32(0), np.float32(0.25)))
    binned = _pairs(xp.where(bad, np.float32(0), data).astype(xp.float32, copy=False)) * np.float32(0.25)
    taps = _taps(_SMOOTH)
    smoothed_noise = np.float32(0.5) * xp.sqrt(_blur(good, taps**2))
    mesh, rms, share = _measure(some, some_bad, mesh_shape, filter_size, 3.0, True)
    left_share = share
    for left in range(iterations - 1, -1, -1):
        noise = xp.maximum(_render(rms, binned.shape, xp), np.float32(1e-20))
        excess = (binned - good * _render(mesh, binned.shape, xp)) / noise
        sources = _source_bins(excess, smoothed_noise, detect_sigma, taps, _GROW)
        coarse = left > 0 and step == 2
        values, out = (some, some_bad | sources) if coarse else (data, bad | _unpair(sources, data.shape))
        # what is left of the last solution is fitted: gradients inside a box do not count as noise
        residual = values - _render(mesh, values.shape, xp)
        new, new_rms, now = _measure(residual, out, mesh_shape, filter_size, 3.0, False, mesh, 0.1 * share)
        if not new_rms.any():
            break
        mesh, rms, left_share = new, new_rms, now
    error = _error(data.shape, rms, left_share, filter_size)
    return BackgroundFit(*(xp.asarray(a, dtype=xp.float32) for a in (mesh, rms, error)))


def _error(shape: tuple[int, ...], rms: np.ndarray, share: np.ndarray, filter_size: int) -> np.ndarray:
    """Error of the filtered level of boxes, of which `share` of the pixels are good."""
    pixels = shape[0] * shape[1] / rms.size
    own = rms / np.sqrt(np.maximum(share * pixels, 1.0))
    boxes = [min(filter_size, n) for n in rms.shape]
    gain = math.sqrt(boxes[0] * boxes[1])
    random = _smooth(own, filter_size) * (math.sqrt(math.pi / 2) / gain if gain > 1 else 1.0)
    return np.asarray(np.hypot(random, _MASK_BIAS * rms))
