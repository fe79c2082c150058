"""Shapes of sources that need no PSF: half-light radii, windowed centroids, moments, flags of the pixels beneath."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.photometry import moments
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, F64

Mask = npt.NDArray[np.bool_]
NEAR_BAD, BLENDED, SATURATED, TRUNCATED = 1, 2, 4, 8
"""SExtractor's bits used in ``sources.flags``."""


@dataclass(slots=True)
class Shapes:
    """One entry per source.

    Attributes
    ----------
    radius : half-light radius [pix], NaN where unknown;  x, y : windowed centroid [pix].
    a, b, theta : rms along the axes [pix] and angle of the major one, from x towards y [rad].
    pixel_flags : OR of the image's flags within the half-light radius;  flags : `NEAR_BAD`, `SATURATED`.
    """

    radius: F64
    x: F64
    y: F64
    a: F64
    b: F64
    theta: F64
    pixel_flags: npt.NDArray[np.int32]
    flags: npt.NDArray[np.int32]

    def taken(self, which: Mask) -> Shapes:
        """Some of them."""
        return Shapes(*(getattr(self, f.name)[which] for f in fields(self)))

    def joined(self, other: Shapes) -> Shapes:
        """These and others."""
        return Shapes(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


def half_light_radii(data: F32, mask: Mask, x: F64, y: F64, reach: float, *, widen: bool = False) -> F64:
    """Radius of half the flux within `reach` [pix]; with `widen` sources that fill it are measured again, farther."""
    import sep

    out = np.full(len(x), np.nan)
    todo = np.arange(len(x))
    for factor in (1.0, 2.0, 4.0) if widen else (1.0,):
        if len(todo) == 0:
            break
        found, _ = sep.flux_radius(data, x[todo], y[todo], np.full(len(todo), factor * reach), 0.5, mask=mask, subpix=2)
        out[todo] = np.where(np.isfinite(found) & (found > 0), found, np.nan)
        todo = todo[np.nan_to_num(found) > 0.35 * factor * reach]
    return out


def measure_shapes(
    data: F32, mask: Mask, flags: npt.NDArray[np.uint16], x: F64, y: F64, fwhm: float, *, crowded: bool = False,
) -> Shapes:
    """Measure all sources; windows are as wide as the source, at least the seeing, in crowded fields that of a star.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], background-subtracted;  mask : (ny, nx) bool, pixels without a meaning.
    flags : (ny, nx) uint16, of the image;  x, y : places of the peaks [pix];  fwhm : the seeing [pix].
    """
    x, y = np.ascontiguousarray(x, dtype=float), np.ascontiguousarray(y, dtype=float)
    radius = half_light_radii(data, mask, x, y, 3.0 * fwhm, widen=not crowded)
    window = fwhm / 2.3548
    a, b, theta = (np.full(len(x), np.nan) for _ in range(3))
    none = np.zeros(len(x), np.int32)
    out = Shapes(radius, x.copy(), y.copy(), a, b, theta, none, none)
    ratio = np.zeros(len(x)) if crowded else np.nan_to_num(radius / (0.6 * fwhm), nan=1.0)
    # up to 1.5, 3 and 6 times the width of a star
    for low, high, factor in ((0.0, 1.5, 1.0), (1.5, 3.0, 2.0), (3.0, np.inf, 4.0)):
        some = np.flatnonzero((ratio >= low) & (ratio < high))
        if len(some) == 0:
            continue
        m = moments(data, mask, x[some], y[some], factor * window)
        near = (np.hypot(m.x - x[some], m.y - y[some]) < 0.5 * factor * fwhm) & np.isfinite(m.x + m.y)
        for name in ("a", "b", "theta"):
            getattr(out, name)[some] = getattr(m, name)
        out.x[some[near]], out.y[some[near]] = m.x[near], m.y[near]
    typical = float(np.nanmedian(radius)) if np.isfinite(radius).any() else 1.0
    out.pixel_flags = or_flags(flags, x, y, typical)
    saturated = (out.pixel_flags & int(PixelFlag.SATURATED)) != 0
    other = (out.pixel_flags & ~int(PixelFlag.SATURATED)) != 0
    out.flags = (np.where(saturated, SATURATED, 0) | np.where(other, NEAR_BAD, 0)).astype(np.int32)
    return out


def or_flags(flags: npt.NDArray[np.uint16], x: F64, y: F64, radius: float) -> npt.NDArray[np.int32]:
    """Return (n,) the OR of the image flags within `radius` pixels (at least 1) of each position."""
    r = max(1.0, float(radius))
    size = 2 * int(np.ceil(r)) + 1
    stamps, _ = cut_stamps(flags, np.round(x), np.round(y), size)
    offset = np.arange(size) - size // 2
    disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= r**2
    out: npt.NDArray[np.int32] = np.bitwise_or.reduce(stamps[:, disc], axis=1).astype(np.int32)
    return out
