"""Mesh background and rms with iterative source masking.

The image is cut into boxes; each box gives a clipped level and rms; the mesh is median filtered and
interpolated by a bicubic spline that never leaves the range of the mesh.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
from scipy.interpolate import RectBivariateSpline

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp


def _truncated_variance(n_sigma: float) -> float:
    """Variance of a unit Gaussian truncated at ±n_sigma."""
    density = math.exp(-0.5 * n_sigma**2) / math.sqrt(2 * math.pi)
    return 1.0 - 2.0 * n_sigma * density / math.erf(n_sigma / math.sqrt(2))


def _box_stats(values: np.ndarray, n_sigma: float, crowded: bool) -> tuple[float, float]:
    """Clipped level and rms of the pixels of one box.

    The values are sorted once; each round of clipping is then two bisections. The level is the clipped mean, or
    in `crowded` boxes, whose sources are still in, the estimate 2.5 median − 1.5 mean of the mode (or the
    median, where the two differ by more than 0.3 rms).
    """
    v = np.sort(values).astype(np.float64)
    offset = v[v.size // 2]
    v -= offset
    sums, squares = (np.concatenate([[0.0], np.cumsum(a)]) for a in (v, v * v))
    lo, hi = 0, v.size
    median = 0.5 * (v[(hi - 1) // 2] + v[hi // 2])
    std = 0.5 * (v[int(0.8413 * (hi - 1))] - v[int(0.1587 * (hi - 1))])
    mean = sums[hi] / hi
    for _ in range(8):
        first = max(lo, int(np.searchsorted(v, median - n_sigma * std, "left")))
        last = min(hi, int(np.searchsorted(v, median + n_sigma * std, "right")))
        if last - first < 8:
            break
        same = (first, last) == (lo, hi)
        lo, hi = first, last
        n = hi - lo
        median = 0.5 * (v[lo + (n - 1) // 2] + v[lo + n // 2])
        mean = (sums[hi] - sums[lo]) / n
        # the truncation of a Gaussian is undone in every round, so that clipping does not run away inwards
        std = math.sqrt(max((squares[hi] - squares[lo]) / n - mean**2, 0.0) / _truncated_variance(n_sigma))
        if same:
            break
    level = mean
    if crowded:
        level = 2.5 * median - 1.5 * mean if abs(mean - median) < 0.3 * std else median
    return float(level + offset), float(std)


def fit_mesh(
    data: Array, mask: Array | None = None, box_size: int = 128, filter_size: int = 3, n_sigma: float = 3.0,
    *, crowded: bool = True,
) -> tuple[Array, Array]:
    """Return background and rms at the box centres, each (ceil(ny/box), ceil(nx/box)) float32.

    Boxes with fewer than 10 % good pixels are filled from their neighbours.

    Parameters
    ----------
    data : (ny, nx) float32
    mask : (ny, nx) bool, optional; True = leave out.
    box_size : int [pix];  filter_size : int, boxes of the median filter;  n_sigma : float, clipping.
    crowded : bool
        True: sources are still in the image, the level estimates the mode; False: they are masked, it is the mean.
    """
    xp = get_xp(data)
    d = asnumpy(data)
    ny, nx = d.shape
    my, mx = max(1, round(ny / box_size)), max(1, round(nx / box_size))
    ys, xs = np.linspace(0, ny, my + 1).astype(int), np.linspace(0, nx, mx + 1).astype(int)
    bad = ~np.isfinite(d) if mask is None else asnumpy(mask) | ~np.isfinite(d)
    level = np.full((my, mx), np.nan)
    rms = np.full((my, mx), np.nan)
    for j in range(my):
        rows = slice(ys[j], ys[j + 1])
        for i in range(mx):
            cols = slice(xs[i], xs[i + 1])
            good = ~bad[rows, cols]
            if good.sum() < max(16, 0.1 * good.size):
                continue
            level[j, i], rms[j, i] = _box_stats(d[rows, cols][good], n_sigma, crowded)
    level, rms = _fill(level), _fill(rms)
    if filter_size > 1 and level.size > 1:
        level = scipy.ndimage.median_filter(level, size=filter_size, mode="nearest")
        rms = scipy.ndimage.median_filter(rms, size=filter_size, mode="nearest")
    return xp.asarray(level, dtype=xp.float32), xp.asarray(rms, dtype=xp.float32)


def _fill(mesh: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(mesh)
    if bad.all():
        return np.zeros_like(mesh)
    if bad.any():
        nearest = scipy.ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        mesh = mesh[tuple(nearest)]
    return mesh


def render_mesh(mesh: Array, box_size: int, shape: tuple[int, int]) -> Array:
    """Interpolate a mesh to a (ny, nx) float32 map; `box_size` is nominal, boxes divide the image evenly."""
    xp = get_xp(mesh)
    m = asnumpy(mesh).astype(np.float64)
    ny, nx = shape
    my, mx = m.shape
    if m.size == 1:
        return xp.full(shape, m.flat[0], dtype=xp.float32)
    y = (np.arange(my) + 0.5) * ny / my - 0.5
    x = (np.arange(mx) + 0.5) * nx / mx - 0.5
    if my == 1 or mx == 1:
        line = (np.interp(np.arange(nx), x, m[0])[None, :] if my == 1
                else np.interp(np.arange(ny), y, m[:, 0])[:, None])
        return xp.asarray(np.broadcast_to(line, shape).astype(np.float32))
    spline = RectBivariateSpline(y, x, m, kx=min(3, my - 1), ky=min(3, mx - 1), s=0)
    yy = np.clip(np.arange(ny), y[0], y[-1])
    xx = np.clip(np.arange(nx), x[0], x[-1])
    out = np.clip(spline(yy, xx), m.min(), m.max())
    return xp.asarray(out.astype(np.float32))


def source_mask(residual: Array, rms: Array, n_sigma: float = 2.0, smooth: float = 1.5, grow: int = 4) -> Array:
    """Return True where a smoothed image stands out by `n_sigma` of its own noise, grown by `grow` pixels."""
    r = asnumpy(residual) / np.maximum(asnumpy(rms), 1e-20)
    r = scipy.ndimage.gaussian_filter(np.where(np.isfinite(r), r, 0).astype(np.float32), smooth)
    noise = 1.0 / (2.0 * np.sqrt(np.pi) * smooth)
    hot = r > n_sigma * 1.5 * noise
    labels, n = scipy.ndimage.label(hot)
    if n:
        sizes = np.bincount(labels.ravel())
        keep = sizes >= 5
        keep[0] = False
        hot = keep[labels]
    return get_xp(residual).asarray(_grow(hot, grow))


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilate by a diamond of radius `steps`."""
    for _ in range(steps):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


def fit_background(
    data: Array, mask: Array | None = None, box_size: int = 128, filter_size: int = 3,
    detect_sigma: float = 2.0, iterations: int = 2,
) -> tuple[Array, Array]:
    """Like `fit_mesh`, with sources found above the first solution left out of the next.

    Parameters as `fit_mesh`; `detect_sigma` is the significance of a smoothed pixel that counts as source.
    """
    bad = asnumpy(mask) if mask is not None else np.zeros(asnumpy(data).shape, bool)
    mesh, rms = fit_mesh(data, bad, box_size, filter_size)
    for _ in range(iterations):
        shape = (data.shape[0], data.shape[1])
        # what is left of the last solution is fitted: gradients inside a box do not count as noise
        residual = asnumpy(data) - asnumpy(render_mesh(mesh, box_size, shape))
        sources = asnumpy(source_mask(residual, render_mesh(rms, box_size, shape), detect_sigma))
        change, rms = fit_mesh(get_xp(data).asarray(residual), bad | sources, box_size, filter_size, crowded=False)
        mesh = mesh + change
    return mesh, rms
