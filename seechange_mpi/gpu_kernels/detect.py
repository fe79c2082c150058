"""Peaks of a detection statistic, of both signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_ndimage, get_xp


@dataclass
class Peaks:
    """Result of `find_peaks`, one entry per peak, ordered by y, then x.

    Attributes
    ----------
    peak_x, peak_y : int, pixel of the extreme.
    x, y : float, sub-pixel position from a parabola through the neighbours (held within ±0.5 pixel).
    peak : float, signed extreme value.
    num_pixels : int, pixels beyond the threshold in the same connected region.
    num_flagged : int, masked pixels within the merge radius of the peak.
    """

    peak_x: np.ndarray
    peak_y: np.ndarray
    x: np.ndarray
    y: np.ndarray
    peak: np.ndarray
    num_pixels: np.ndarray
    num_flagged: np.ndarray


def find_peaks(
    score: Array, threshold: float, mask: Array | None = None, *,
    merge_radius: float = 3.0, both_signs: bool = True,
) -> Peaks:
    """Find local extremes of |score| at or beyond `threshold`.

    A pixel is a peak when no pixel within `merge_radius` has a larger |score|; touching sources farther
    apart stay separate. Masked and non-finite pixels are never peaks.

    Parameters
    ----------
    score : (ny, nx) float [sigma];  threshold : float, > 0;  mask : (ny, nx) bool, True = bad.
    merge_radius : float [pix]
    """
    xp = get_xp(score)
    nd = get_ndimage(xp)
    bad = ~xp.isfinite(score)
    if mask is not None:
        bad = bad | mask
    s = xp.where(bad, 0, score)
    strength = xp.abs(s) if both_signs else xp.maximum(s, 0)
    r = int(np.ceil(merge_radius))
    yy, xx = np.mgrid[-r: r + 1, -r: r + 1]
    disc = (yy**2 + xx**2) <= merge_radius**2
    above = strength >= threshold
    py, px = (asnumpy(a) for a in _local_maxima(strength, above, disc, xp))
    labels, _ = nd.label(above, structure=xp.ones((3, 3), dtype=int))
    labels_host, s_host, bad_host = asnumpy(labels), asnumpy(s), asnumpy(bad)
    py, px = _drop_ties(py, px, merge_radius)
    sizes = np.bincount(labels_host.ravel())
    sizes[0] = 0
    x, y = _parabola(np.abs(s_host), px, py)
    return Peaks(px, py, x, y, s_host[py, px], sizes[labels_host[py, px]],
                 _count_near(bad_host, px, py, r, disc))


def _local_maxima(strength: Array, above: Array, disc: np.ndarray, xp: Any) -> tuple[Array, Array]:
    """Pixels `above` with no larger one within the disc; only those pixels are looked at."""
    r = disc.shape[0] // 2
    padded = xp.pad(strength, r)
    width = padded.shape[1]
    y, x = xp.nonzero(above)
    base = (y + r) * width + x + r
    own = strength[y, x]
    top = xp.ones(own.shape, dtype=bool)
    flat = padded.ravel()
    for oy, ox in np.argwhere(disc) - r:
        if oy or ox:
            top &= flat[base + int(oy * width + ox)] <= own
    return y[top], x[top]


def _drop_ties(py: np.ndarray, px: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Of equal neighbouring maxima keep the first."""
    keep = np.ones(len(py), bool)
    for k in range(1, len(py)):
        earlier = slice(max(0, k - 50), k)
        near = (py[earlier] - py[k]) ** 2 + (px[earlier] - px[k]) ** 2 <= radius**2
        keep[k] = not (near & keep[earlier]).any()
    return py[keep], px[keep]


def _parabola(s: np.ndarray, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = s.shape
    out = []
    for axis, (p, n) in enumerate(((px, nx), (py, ny))):
        inner = (p > 0) & (p < n - 1)
        q = np.clip(p, 1, n - 2)
        if axis == 0:
            a, b, c = s[py, q - 1], s[py, q], s[py, q + 1]
        else:
            a, b, c = s[q - 1, px], s[q, px], s[q + 1, px]
        curve = a - 2 * b + c
        shift = np.where(curve < 0, 0.5 * (a - c) / np.where(curve < 0, curve, 1), 0.0)
        out.append(p + np.where(inner, np.clip(shift, -0.5, 0.5), 0.0))
    return out[0].astype(float), out[1].astype(float)


def _count_near(bad: np.ndarray, px: np.ndarray, py: np.ndarray, r: int, disc: np.ndarray) -> np.ndarray:
    ny, nx = bad.shape
    oy, ox = np.nonzero(disc)
    yy, xx = py[:, None] + oy[None, :] - r, px[:, None] + ox[None, :] - r
    inside = (yy >= 0) & (yy < ny) & (xx >= 0) & (xx < nx)
    flagged = ~inside | bad[np.clip(yy, 0, ny - 1), np.clip(xx, 0, nx - 1)]
    return np.asarray(flagged.sum(axis=1), dtype=np.int32)
