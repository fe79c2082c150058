"""Curve of growth: how much light a star has within any radius, and beyond the PSF's stamp, per unit of its PSF flux.

A PSF flux is normalised on a finite stamp, so it misses the wings beyond. They are measured on bright stars: the
mean of each annulus is fitted over the stars as slope × PSF flux + constant; the slope is the profile and the constant
takes the error of the background and faint neighbours, which do not grow with the flux. Beyond the last annulus the
profile goes on as the power law of its outer part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.model.products import F32, F64, Table

Mask = npt.NDArray[np.bool_]

CORE_FWHMS = 1.5
"""Radius of the disc whose pixels are summed; farther out annuli are averaged, neighbours left out."""
REACH_FWHMS = 6.0
"""Radius of the last annulus."""
SYSTEMATIC = 0.001
"""Error of the total that the scatter of the stars does not tell: what simulated fields show, from undetected
neighbours and from centres of pixels that stand for their areas."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Light of a star within radii, over its PSF flux.

    Attributes
    ----------
    radii : (m,) float64, edges [pix];  light, error : (m,) within each radius.
    total, total_error : with the wings beyond the last radius.
    slope : exponent of the outer profile, NaN where it is lost in the noise.
    n_stars : stars that tell.
    """

    radii: F64
    light: F64
    error: F64
    total: float
    total_error: float
    slope: float
    n_stars: int

    def within(self, radius: float) -> tuple[float, float]:
        """Return light within `radius` [pix] and its error; NaN inside the core or beyond the last radius."""
        if not self.radii[0] <= radius <= self.radii[-1]:
            return float("nan"), float("nan")
        area, at = self.radii**2, radius**2
        return float(np.interp(at, area, self.light)), float(np.interp(at, area, self.error))


@dataclass(slots=True)
class _Profiles:
    """Per star: flux, sum of the core, mean and pixels of each annulus (n, k)."""

    flux: F64
    core: F64
    core_error: F64
    mean: F64
    pixels: F64


def growth_curve(data: F32, bad: Mask, rms: float, gain: float, table: Table, stars: Mask, fwhm: float, *,
                 limit: int = 200, min_stars: int = 8) -> Growth | None:
    """Measure the curve of growth.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], background-subtracted;  bad : (ny, nx) bool, True = leave out.
    rms : noise of the sky [ADU];  gain : [e-/ADU].
    table : sources (`tables.SOURCES`), all of them: neighbours are left out.
    stars : (n,) bool, unflagged point sources.
    fwhm : of the PSF [pix].

    Returns
    -------
    Growth, or None where fewer than `min_stars` bright stars are alone enough.
    """
    reach = int(np.ceil(REACH_FWHMS * fwhm))
    chosen = _choose(data.shape, table, stars, fwhm, reach, limit)
    if len(chosen) < min_stars:
        return None
    edges = np.concatenate([[CORE_FWHMS * fwhm], np.arange(np.ceil(CORE_FWHMS * fwhm + 0.5), reach + 0.5)])
    p = _measure(data, bad, rms, gain, table, chosen, fwhm, reach, edges)
    if len(p.flux) < min_stars:
        return None
    core, core_error = _mean(p.core / p.flux, np.hypot(p.core_error / p.flux, 0.003))
    area = np.pi * np.diff(edges**2)
    profile, error = np.zeros(len(area)), np.zeros(len(area))
    for k in range(len(area)):
        profile[k], error[k] = _slope(p.flux, p.mean[:, k], rms, gain, p.pixels[:, k])
    light = core + np.concatenate([[0.0], np.cumsum(area * profile)])
    spread = np.sqrt(core_error**2 + np.concatenate([[0.0], np.cumsum((area * error) ** 2)]))
    tail, tail_error, slope = _tail(0.5 * (edges[1:] + edges[:-1]), profile, error, float(edges[-1]))
    total_error = float(np.sqrt(spread[-1] ** 2 + tail_error**2 + SYSTEMATIC**2))
    return Growth(edges, light, spread, float(light[-1] + tail), total_error, slope, len(p.flux))


def _choose(shape: tuple[int, ...], table: Table, stars: Mask, fwhm: float, reach: int, limit: int) -> npt.NDArray[
        np.intp]:
    """Bright stars inside the section, without a neighbour of a hundredth of their flux in their cores."""
    x, y = table["x"], table["y"]
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.nan_to_num(table["flux_psf"] / table["flux_psf_err"])
    inside = (x > reach) & (x < shape[1] - 1 - reach) & (y > reach) & (y < shape[0] - 1 - reach)
    order = np.flatnonzero(stars & inside & (snr > 50))
    order = order[np.argsort(-snr[order])][: 3 * limit]
    if len(order) == 0:
        return order
    tree = cKDTree(np.stack([x, y], axis=-1))
    flux = np.nan_to_num(table["flux_psf"].astype(float))
    flux = np.where((table["flags"] & 4) != 0, np.inf, flux)
    near = tree.query_ball_point(np.stack([x[order], y[order]], axis=-1), 2.5 * fwhm)
    alone = [i for i, others in zip(order, near, strict=True)
             if all(j == i or flux[j] < 0.01 * flux[i] for j in others)]
    return np.array(alone[:limit], np.intp)


def _measure(data: F32, bad: Mask, rms: float, gain: float, table: Table, chosen: npt.NDArray[np.intp], fwhm: float,
             reach: int, edges: F64) -> _Profiles:
    x, y = table["x"][chosen], table["y"][chosen]
    flux = table["flux_psf"][chosen].astype(float)
    cx, cy = np.round(x), np.round(y)
    size = 2 * (reach + 1) + 1
    stamps, _ = cut_stamps(data, cx, cy, size)
    own, _ = cut_stamps(bad, cx, cy, size, fill=True)
    u = np.arange(size) - size // 2
    r = np.hypot(u[None, None, :] - (x - cx)[:, None, None], u[None, :, None] - (y - cy)[:, None, None])
    inner = r < edges[0]
    whole = ~(inner & np.asarray(own)).any(axis=(1, 2))
    core = np.where(inner, stamps, 0).sum(axis=(1, 2), dtype=np.float64)
    core_error = np.sqrt(inner.sum(axis=(1, 2)) * rms**2 + np.maximum(core, 0) / gain)
    good = ~np.asarray(own)
    radius = _radii(table, fwhm, rms)
    tree = cKDTree(np.stack([table["x"], table["y"]], axis=-1))
    for s, (i, near) in enumerate(zip(chosen, tree.query_ball_point(np.stack([x, y], axis=-1), 1.5 * reach),
                                      strict=True)):
        for j in near:
            if j != i:
                du, dv = u - (table["x"][j] - cx[s]), u - (table["y"][j] - cy[s])
                good[s] &= dv[:, None] ** 2 + du[None, :] ** 2 > radius[j] ** 2
    bins = np.where(good & ~inner & (r < edges[-1]), np.digitize(r, edges) - 1, -1)
    n, k = len(chosen), len(edges) - 1
    flat = (bins + k * np.arange(n)[:, None, None])[bins >= 0]
    count = np.bincount(flat, minlength=n * k).reshape(n, k).astype(float)
    total = np.bincount(flat, weights=np.asarray(stamps)[bins >= 0], minlength=n * k).reshape(n, k)
    enough = count > 0.3 * np.pi * np.diff(edges**2)
    with np.errstate(invalid="ignore"):
        mean = np.where(enough, total / count, np.nan)
    return _Profiles(flux[whole], core[whole], core_error[whole], mean[whole], count[whole])


def _radii(table: Table, fwhm: float, rms: float) -> F64:
    """Radius of every source: to where a Moffat profile of beta 3 falls to a tenth of the noise, 1 to 4 FWHM [pix]."""
    flux = np.maximum(np.nan_to_num(table["flux_psf"]), np.nan_to_num(table["flux_apertures"][:, 1])).astype(float)
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / 3.0) - 1))
    peak = np.maximum(flux, 1.0) * 2.0 / (np.pi * alpha**2)
    radius = alpha * np.sqrt(np.maximum((peak / (0.1 * rms)) ** (1 / 3.0) - 1.0, 0.0))
    return np.where((table["flags"] & 4) != 0, 4.0 * fwhm, np.clip(radius, fwhm, 4.0 * fwhm))


def _mean(values: F64, sigma: F64) -> tuple[float, float]:
    """Clipped weighted mean and its error; the scatter counts where it is larger than `sigma`."""
    used = np.isfinite(values)
    mean, extra = float(np.median(values[used])), 0.0
    for _ in range(10):
        residual = values - mean
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residual[used])))
        extra = max(0.0, spread**2 - float(np.median(sigma[used] ** 2)))
        used = np.isfinite(values) & (np.abs(residual) < 3.0 * np.sqrt(sigma**2 + extra))
        w = 1.0 / (sigma[used] ** 2 + extra)
        mean = float((w * values[used]).sum() / w.sum())
    return mean, float(1.0 / np.sqrt(w.sum()))


def _slope(flux: F64, mean: F64, rms: float, gain: float, pixels: F64) -> tuple[float, float]:
    """Slope of annulus means against flux, with a constant; clipped at 3 sigma. (0, inf) where too few tell."""
    used = np.isfinite(mean)
    if used.sum() < 5:
        return 0.0, float("inf")
    variance = (rms**2 + np.maximum(np.nan_to_num(mean), 0) / gain) / np.maximum(pixels, 1)
    slope, covariance = 0.0, np.zeros((2, 2))
    extra = 0.0
    for _ in range(10):
        w = 1.0 / (variance[used] + extra)
        design = np.stack([flux[used], np.ones(used.sum())], axis=-1)
        normal = (design * w[:, None]).T @ design
        covariance = np.linalg.pinv(normal, hermitian=True)
        c = covariance @ (design * w[:, None]).T @ mean[used]
        slope = float(c[0])
        residual = mean - c[0] * flux - c[1]
        # the PSF is not quite the same everywhere: some scatter is in proportion to the flux
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residual[used])))
        extra = max(0.0, spread**2 - float(np.median(variance[used])))
        new = np.isfinite(mean) & (np.abs(residual) < 3.0 * np.sqrt(variance + extra))
        if new.sum() < 5 or bool((new == used).all()):
            break
        used = new
    return slope, float(np.sqrt(max(covariance[0, 0], 0.0)))


def _tail(radius: F64, profile: F64, error: F64, last: float) -> tuple[float, float, float]:
    """Light beyond `last`, its error, and the exponent of the power law through the outer half of the profile."""
    outer = (radius > 0.4 * last) & (profile > 4.0 * error)
    if outer.sum() < 3:
        return 0.0, 0.0, float("nan")
    x, y = np.log(radius[outer] / last), np.log(profile[outer])
    w = (profile[outer] / error[outer]) ** 2
    design = np.stack([np.ones(len(x)), x], axis=-1)
    covariance = np.linalg.inv((design * w[:, None]).T @ design)
    level, slope = covariance @ (design * w[:, None]).T @ y
    exponent = float(np.clip(-slope, 2.5, 10.0))
    light = 2.0 * np.pi * float(np.exp(level)) * last**2 / (exponent - 2.0)
    relative = np.hypot(np.sqrt(covariance[0, 0]), np.sqrt(covariance[1, 1]) / (exponent - 2.0))
    return light, light * float(min(relative + 0.2, 1.0)), exponent
