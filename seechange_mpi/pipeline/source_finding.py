"""Find point-like peaks: in a matched-filtered image first, then in what a model of the sources leaves.

A Gaussian of the seeing's width stands for the PSF; it loses less than 1 % of the signal-to-noise ratio. Peaks must
stand out from the saddle to brighter ones, so that noise on the slopes of stars and galaxies makes no sources; real
companions that this refuses are found in the residual image. Saturated stars are one source each, at the middle of
their saturated core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from scipy.spatial import cKDTree

from seechange_mpi.gpu_kernels.detect import find_peaks
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.model.products import F32, F64

Mask = npt.NDArray[np.bool_]
FWHM_TO_SIGMA = 1.0 / (2.0 * float(np.sqrt(2.0 * np.log(2.0))))
_STEPS = np.linspace(0.0, 1.0, 9)[1:-1]


@dataclass(frozen=True, slots=True)
class Filtered:
    """An image smoothed by a Gaussian.

    Attributes
    ----------
    smooth : (ny, nx) float32 [ADU];  score : (ny, nx) float32 [sigma];  sigma : of the Gaussian [pix].
    """

    smooth: F32
    score: F32
    sigma: float

    @classmethod
    def of(cls, smooth: F32, variance: F32, sigma: float) -> Filtered:
        """The score of an image already smoothed; `variance` [ADU²] is that of its pixels before."""
        squares = float((_taps(sigma) ** 2).sum())
        score = np.sqrt(variance)
        score *= np.float32(squares)
        np.divide(smooth, score, out=score)
        return cls(smooth, score, sigma)


def _taps(sigma: float) -> F64:
    reach = max(1, int(np.ceil(3.0 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(taps / taps.sum())


def gaussian(image: F32, sigma: float) -> F32:
    """Smooth by a Gaussian of `sigma` [pix], cut at three of them; beyond the edges there is nothing."""
    taps = _taps(sigma)
    down = scipy.ndimage.correlate1d(image, taps, axis=0, mode="constant")
    out: F32 = scipy.ndimage.correlate1d(down, taps, axis=1, mode="constant")
    return out


def matched(data: F32, variance: F32, mask: Mask, fwhm: float) -> Filtered:
    """Filter an image by a Gaussian of `fwhm` [pix]; masked pixels count as nothing.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], background-subtracted;  variance : (ny, nx) float32 [ADU²].
    """
    sigma = max(fwhm, 1.0) * FWHM_TO_SIGMA
    return Filtered.of(gaussian(np.where(mask, np.float32(0), data), sigma), variance, sigma)


@dataclass(slots=True)
class Found:
    """Peaks: positions [pix], significance [sigma], smoothed height [ADU], saturated ones marked."""

    x: F64
    y: F64
    score: F64
    height: F64
    saturated: Mask

    def __len__(self) -> int:
        return len(self.x)

    def taken(self, which: npt.NDArray[np.intp] | Mask) -> Found:
        """Some of them."""
        return Found(self.x[which], self.y[which], self.score[which], self.height[which], self.saturated[which])

    def joined(self, other: Found) -> Found:
        """These and others."""
        return Found(*(np.concatenate([getattr(self, k), getattr(other, k)])
                       for k in ("x", "y", "score", "height", "saturated")))


def find_sources(filtered: Filtered, threshold: float, mask: Mask, saturated: Mask, fwhm: float) -> Found:
    """Find the peaks of a filtered image, and the saturated stars.

    Parameters
    ----------
    threshold : float [sigma];  mask : (ny, nx) bool, pixels without a meaning;  saturated : (ny, nx) bool.
    """
    cores, near = _saturated_cores(filtered, saturated, fwhm)
    peaks = find_peaks(filtered.score, threshold, mask | near, merge_radius=max(1.0, 0.35 * fwhm), both_signs=False,
                       count_pixels=False)
    px, py = peaks.peak_x, peaks.peak_y
    found = Found(peaks.x, peaks.y, peaks.peak_value.astype(float), filtered.smooth[py, px].astype(float),
                  np.zeros(len(px), bool))
    return found.taken(_stands_out(found, filtered, fwhm)).joined(cores)


def _stands_out(found: Found, filtered: Filtered, fwhm: float, least: float = 2.5) -> Mask:
    """True for peaks at least `least` sigma above the saddle to every brighter peak within 4 FWHM."""
    out = np.ones(len(found), bool)
    if len(found) < 2:
        return out
    pairs = cKDTree(np.stack([found.x, found.y], axis=-1)).query_pairs(4.0 * fwhm, output_type="ndarray")
    if len(pairs) == 0:
        return out
    swap = found.score[pairs[:, 0]] > found.score[pairs[:, 1]]
    faint, bright = np.where(swap, pairs[:, 1], pairs[:, 0]), np.where(swap, pairs[:, 0], pairs[:, 1])
    ny, nx = filtered.score.shape
    lowest = np.full(len(pairs), np.inf)
    for t in _STEPS:
        x = np.rint(found.x[faint] * (1 - t) + found.x[bright] * t).astype(int)
        y = np.rint(found.y[faint] * (1 - t) + found.y[bright] * t).astype(int)
        lowest = np.minimum(lowest, filtered.score[np.clip(y, 0, ny - 1), np.clip(x, 0, nx - 1)])
    hidden = found.score[faint] - lowest < least
    out[faint[hidden]] = False
    return out


def core_radii(filtered: Filtered, x: F64, y: F64) -> F64:
    """Half-light radius of the Gaussian that has the curvature of each source's top [pix], the filter's part taken off.

    It looks at 3 × 3 pixels, so that it tells the seeing where neighbours spoil every larger aperture.
    """
    tops = cut_stamps(filtered.smooth, np.round(x), np.round(y), 3)[0].astype(float)
    z = np.log(np.maximum(tops / np.maximum(tops[:, 1:2, 1:2], 1e-30), 1e-3))
    across = 2 * z[:, 1, 1] - z[:, 1, 2] - z[:, 1, 0]
    down = 2 * z[:, 1, 1] - z[:, 2, 1] - z[:, 0, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = 1.0 / np.sqrt(across * down) - filtered.sigma**2
        return np.asarray(1.1774 * np.sqrt(variance))


def _saturated_cores(filtered: Filtered, saturated: Mask, fwhm: float) -> tuple[Found, Mask]:
    """One source per saturated core, where the core is widest (bleed trails are narrow); and the pixels around."""
    near = np.zeros(saturated.shape, bool)
    none = np.zeros(0)
    if not saturated.any():
        return Found(none, none, none, none, none.astype(bool)), near
    labels, _ = scipy.ndimage.label(saturated, structure=np.ones((3, 3), int))
    reach = int(np.ceil(1.5 * fwhm))
    rows: list[tuple[float, float, float, float]] = []
    ny, nx = saturated.shape
    for k, place in enumerate(scipy.ndimage.find_objects(labels), start=1):
        wide = tuple(slice(max(s.start - reach, 0), min(s.stop + reach, n))
                     for s, n in zip(place, (ny, nx), strict=True))
        core = labels[wide] == k
        depth = scipy.ndimage.distance_transform_edt(np.pad(core, 1))[1:-1, 1:-1]
        y, x = (float(v.mean()) for v in np.nonzero(depth > depth.max() - 0.5))
        near[wide] |= scipy.ndimage.distance_transform_edt(~core) <= reach
        iy, ix = wide[0].start + round(y), wide[1].start + round(x)
        rows.append((wide[1].start + x, wide[0].start + y, float(filtered.score[iy, ix]),
                     float(filtered.smooth[iy, ix])))
    x, y, score, height = np.array(rows).T
    return Found(x, y, score, height, np.ones(len(rows), bool)), near


def find_in_residual(
    residual: F32, model: F32, variance: F32, mask: Mask, fwhm: float, threshold: float, *,
    contrast: float, known_x: F64, known_y: F64,
) -> Found:
    """Find what a model of the sources has left: stars next to brighter ones.

    Parameters
    ----------
    residual, model : (ny, nx) float32 [ADU], data less model, and the model.
    variance : (ny, nx) float32 [ADU²], the light of the sources included.
    mask : (ny, nx) bool, where nothing is searched.
    contrast : least height over that of the model at the same place: what imperfect subtraction leaves is less.
    known_x, known_y : sources that there are; nothing new is found within 0.6 FWHM of them.
    """
    left = matched(residual, variance, mask, fwhm)
    peaks = find_peaks(left.score, threshold, mask, merge_radius=max(1.0, 0.5 * fwhm), both_signs=False,
                       count_pixels=False)
    px, py = peaks.peak_x, peaks.peak_y
    height = left.smooth[py, px].astype(float)
    size = 2 * int(np.ceil(1.5 * left.sigma)) + 1
    u = np.arange(size) - size // 2
    weight = np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / left.sigma**2)
    light = (cut_stamps(model, px, py, size)[0] * (weight / weight.sum())).sum(axis=(1, 2))
    good = height > contrast * light
    if len(known_x) and len(px):
        known = cKDTree(np.stack([known_x, known_y], axis=-1))
        good &= known.query(np.stack([peaks.x, peaks.y], axis=-1))[0] > 0.6 * fwhm
    return Found(peaks.x, peaks.y, peaks.peak_value.astype(float), height, np.zeros(len(px), bool)).taken(good)


def not_doubled(x: F64, y: F64, brightness: F64, radius: float) -> Mask:
    """True for the brighter of each pair of sources closer than `radius` [pix]."""
    out = np.ones(len(x), bool)
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(finite) < 2:
        return out
    pairs = finite[cKDTree(np.stack([x[finite], y[finite]], axis=-1)).query_pairs(radius, output_type="ndarray")]
    fainter = np.where(brightness[pairs[:, 0]] < brightness[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    out[fainter] = False
    return out


def cover(mask: Mask, x: F64, y: F64, radius: F64) -> None:
    """Set a mask to True within `radius` [pix] of each position, in place."""
    ny, nx = mask.shape
    for cx, cy, r in zip(x, y, radius, strict=True):
        x0, x1 = max(int(cx - r), 0), min(int(cx + r) + 2, nx)
        y0, y1 = max(int(cy - r), 0), min(int(cy + r) + 2, ny)
        if x1 > x0 and y1 > y0:
            u, v = np.arange(x0, x1) - cx, np.arange(y0, y1) - cy
            mask[y0:y1, x0:x1] |= v[:, None] ** 2 + u[None, :] ** 2 <= r**2
