"""PSF and aperture photometry and moments of many sources at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.psf_model import ConstantPSF, PSFLike, fwhm_of, local_stamps, render, shift_matrices
from seechange_mpi.gpu_kernels.stamps import cut_stamps

MASKED, EDGE, NOT_CONVERGED, SKIPPED, MOVED_AWAY = 1, 2, 4, 8, 16
"""Bits of ``PSFPhotometry.flags``."""


@dataclass
class PSFPhotometry:
    """Result of `psf_photometry`, one entry per source; fluxes in the unit of the data."""

    x: Array
    y: Array
    flux: Array
    flux_err: Array
    x_err: Array
    y_err: Array
    chi2: Array
    flags: Array


def psf_photometry(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, psf: PSFLike | Array, *,
    fit_position: bool = True, max_shift: float = 2.0, radius: float | None = None, iterations: int = 6,
) -> PSFPhotometry:
    """Weighted least-squares fit of the PSF to each source, positive or negative.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted;  variance : (ny, nx), total variance.
    mask : (ny, nx) bool, True = bad.
    x, y : (n,) start positions [pix].
    psf : model with ``basis`` … or one odd centred (s, s) stamp.
    fit_position : bool
        False: only the flux is fitted (linear).
    max_shift : float
        Fits that move further are returned at the start position with flag bit 4 [pix].
    radius : float, optional
        Radius of the fitted disc; default 1.5 FWHM [pix].
    """
    xp = get_xp(data)
    model: Any = psf if hasattr(psf, "basis") else ConstantPSF.of(psf)
    x0 = xp.atleast_1d(xp.asarray(x, dtype=xp.float64))
    y0 = xp.atleast_1d(xp.asarray(y, dtype=xp.float64))
    n = int(x0.size)
    if n == 0:
        none = xp.zeros(0)
        return PSFPhotometry(none, none, none, none, none, none, none, xp.zeros(0, dtype=xp.int32))
    if radius is None:
        radius = 1.5 * fwhm_of(local_stamps(model, x0[:1], y0[:1])[0])
    size = 2 * int(np.ceil(radius + max_shift)) + 1
    cx, cy = xp.round(x0), xp.round(y0)
    stamps, inside = cut_stamps(data, cx, cy, size)
    var, _ = cut_stamps(variance, cx, cy, size, fill=1)
    bad, _ = cut_stamps(mask, cx, cy, size, fill=True)
    centred = local_stamps(model, x0, y0)
    offset = xp.arange(size, dtype=xp.float64) - size // 2
    r2 = ((offset[None, :, None] - (y0 - cy)[:, None, None]) ** 2
          + (offset[None, None, :] - (x0 - cx)[:, None, None]) ** 2)
    disc = r2 <= radius**2
    good = disc & ~bad & inside & xp.isfinite(stamps) & (var > 0)
    weight = xp.where(good, 1.0 / xp.where(var > 0, var, 1), 0.0).astype(xp.float64)
    stamps = xp.where(good, stamps, 0).astype(xp.float64)
    flags = xp.where((disc & bad & inside).any(axis=(1, 2)), MASKED, 0)
    flags = flags | xp.where((disc & ~inside).any(axis=(1, 2)), EDGE, 0)
    skipped = good.sum(axis=(1, 2)) < 0.25 * disc.sum(axis=(1, 2))
    flags = flags | xp.where(skipped, SKIPPED, 0)
    dx, dy = x0 - cx, y0 - cy
    moved = xp.zeros(n, dtype=bool)
    if fit_position:
        dx, dy, converged, moved = _fit_positions(stamps, weight, centred, dx, dy, max_shift, iterations)
        flags = flags | xp.where(converged, 0, NOT_CONVERGED) | xp.where(moved, MOVED_AWAY, 0)
    p, px, py = _profiles(centred, dx, dy, size)
    pp = xp.maximum((weight * p * p).sum(axis=(1, 2)), 1e-300)
    flux = (weight * p * stamps).sum(axis=(1, 2)) / pp
    if fit_position:
        a = xp.stack([p, flux[:, None, None] * px, flux[:, None, None] * py], axis=-1).reshape(n, -1, 3)
        normal = a.transpose(0, 2, 1) @ (weight.reshape(n, -1, 1) * a)
        scale = xp.sqrt(xp.maximum(xp.einsum("nii->ni", normal), 1e-150))
        cov = xp.linalg.inv(normal / (scale[:, :, None] * scale[:, None, :]) + 1e-9 * xp.eye(3))
        errors = xp.sqrt(xp.maximum(xp.einsum("nii->ni", cov), 0)) / scale
        flux_err, x_err, y_err = errors[:, 0], errors[:, 1], errors[:, 2]
    else:
        flux_err = 1.0 / xp.sqrt(pp)
        x_err = y_err = xp.zeros(n)
    residual = stamps - flux[:, None, None] * p
    dof = xp.maximum(good.sum(axis=(1, 2)) - (3 if fit_position else 1), 1)
    chi2 = (weight * residual**2).sum(axis=(1, 2)) / dof
    nan = xp.asarray(float("nan"))
    return PSFPhotometry(
        cx + dx, cy + dy, xp.where(skipped, nan, flux), xp.where(skipped, nan, flux_err),
        xp.where(skipped, nan, x_err), xp.where(skipped, nan, y_err), xp.where(skipped, nan, chi2),
        flags.astype(xp.int32))


def _profiles(centred: Array, dx: Array, dy: Array, size: int, eps: float = 0.02) -> tuple[Array, Array, Array]:
    """PSF shifted by (dx, dy) and its derivatives with respect to the shift."""
    n = centred.shape[-1]
    wy, wx = shift_matrices(dy, size, n), shift_matrices(dx, size, n).transpose(0, 2, 1)
    gx = (shift_matrices(dx + eps, size, n) - shift_matrices(dx - eps, size, n)).transpose(0, 2, 1) / (2 * eps)
    gy = (shift_matrices(dy + eps, size, n) - shift_matrices(dy - eps, size, n)) / (2 * eps)
    left = wy @ centred
    return left @ wx, left @ gx, gy @ centred @ wx


def _fit_positions(
    stamps: Array, weight: Array, centred: Array, dx0: Array, dy0: Array, max_shift: float, iterations: int
) -> tuple[Array, Array, Array, Array]:
    """Gauss–Newton on (flux, x, y) of all sources; returns dx, dy, converged, moved away."""
    xp = get_xp(stamps)
    n, size = stamps.shape[0], stamps.shape[-1]
    dx, dy = dx0.copy(), dy0.copy()
    last = xp.full(n, xp.inf)
    w = weight.reshape(n, -1, 1)
    for _ in range(iterations):
        p, px, py = _profiles(centred, dx, dy, size)
        a = xp.stack([p, px, py], axis=-1).reshape(n, -1, 3)
        normal = a.transpose(0, 2, 1) @ (w * a)
        scale = xp.sqrt(xp.maximum(xp.einsum("nii->ni", normal), 1e-150))
        rhs = (a.transpose(0, 2, 1) @ (w * stamps.reshape(n, -1, 1)))[..., 0] / scale
        sol = xp.linalg.solve(normal / (scale[:, :, None] * scale[:, None, :]) + 1e-9 * xp.eye(3),
                              rhs[..., None])[..., 0] / scale
        flux = xp.where(xp.abs(sol[:, 0]) > 1e-30, sol[:, 0], 1e-30)
        sx, sy = xp.clip(sol[:, 1] / flux, -0.5, 0.5), xp.clip(sol[:, 2] / flux, -0.5, 0.5)
        dx, dy = dx + sx, dy + sy
        last = xp.hypot(sx, sy)
        if bool((last < 1e-4).all()):
            break
    moved = ~(xp.hypot(dx - dx0, dy - dy0) <= max_shift)
    return xp.where(moved, dx0, dx), xp.where(moved, dy0, dy), last < 0.05, moved


def aperture_photometry(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, radii: tuple[float, ...], *, subsample: int = 5
) -> tuple[Array, Array, Array]:
    """Sum the pixels in circles; pixels on the rim count by their sub-sampled fraction.

    Masked pixels are left out (count them with ``nbad``).

    Returns
    -------
    flux, error : (n, len(radii)) float64;  nbad : (n, len(radii)) int, masked or missing pixels inside.
    """
    xp = get_xp(data)
    cx, cy = xp.round(xp.asarray(x)), xp.round(xp.asarray(y))
    size = 2 * int(np.ceil(max(radii) + 1)) + 1
    stamps, inside = cut_stamps(data, cx, cy, size)
    var, _ = cut_stamps(variance, cx, cy, size)
    bad, _ = cut_stamps(mask, cx, cy, size, fill=True)
    good = inside & ~bad & xp.isfinite(stamps) & xp.isfinite(var)
    stamps, var = xp.where(good, stamps, 0).astype(xp.float64), xp.where(good, var, 0).astype(xp.float64)
    sub = (xp.arange(subsample) + 0.5) / subsample - 0.5
    grid = ((xp.arange(size) - size // 2)[:, None] + sub[None, :]).ravel()
    gy = grid[None, :] - (xp.asarray(y) - cy)[:, None]
    gx = grid[None, :] - (xp.asarray(x) - cx)[:, None]
    n = stamps.shape[0]
    flux, err, nbad = (xp.zeros((n, len(radii))) for _ in range(3))
    for first in range(0, n, 256):
        part = slice(first, first + 256)
        r2 = gy[part, :, None] ** 2 + gx[part, None, :] ** 2
        for k, radius in enumerate(radii):
            cover = (r2 <= radius**2).reshape(-1, size, subsample, size, subsample).mean(axis=(2, 4))
            flux[part, k] = (cover * stamps[part]).sum(axis=(1, 2))
            err[part, k] = xp.sqrt((cover**2 * var[part]).sum(axis=(1, 2)))
            nbad[part, k] = ((cover > 0) & ~good[part]).sum(axis=(1, 2))
    return flux, err, nbad.astype(xp.int32)


@dataclass
class Moments:
    """Gaussian-weighted moments: centroid, rms along the axes, angle, weighted flux."""

    x: Array
    y: Array
    a: Array
    b: Array
    theta: Array
    flux: Array


def moments(
    data: Array, mask: Array, x: Array, y: Array, sigma: float, *, iterations: int = 8
) -> Moments:
    """Windowed centroid and weight-corrected second moments of positive or negative sources.

    The window is a round Gaussian of `sigma` pixels that follows the centroid; measured second moments m
    are corrected for it by 1 / (1/m − 1/sigma²), exact for a Gaussian source.
    """
    xp = get_xp(data)
    cx, cy = xp.round(xp.asarray(x)), xp.round(xp.asarray(y))
    size = 2 * int(np.ceil(4 * sigma)) + 1
    stamps, inside = cut_stamps(data, cx, cy, size)
    bad, _ = cut_stamps(mask, cx, cy, size, fill=True)
    v = xp.where(inside & ~bad & xp.isfinite(stamps), stamps, 0).astype(xp.float64)
    u = xp.arange(size, dtype=xp.float64) - size // 2
    dx, dy = xp.asarray(x) - cx, xp.asarray(y) - cy
    for _ in range(iterations):
        ex, ey = u[None, :] - dx[:, None], u[None, :] - dy[:, None]
        w = v * xp.exp(-0.5 * ey**2 / sigma**2)[:, :, None] * xp.exp(-0.5 * ex**2 / sigma**2)[:, None, :]
        total = w.sum(axis=(1, 2))
        total = xp.where(xp.abs(total) > 1e-30, total, 1e-30)
        dx = dx + xp.clip(2 * (w * ex[:, None, :]).sum(axis=(1, 2)) / total, -1, 1)
        dy = dy + xp.clip(2 * (w * ey[:, :, None]).sum(axis=(1, 2)) / total, -1, 1)
    ex, ey = u[None, :] - dx[:, None], u[None, :] - dy[:, None]
    w = v * xp.exp(-0.5 * ey**2 / sigma**2)[:, :, None] * xp.exp(-0.5 * ex**2 / sigma**2)[:, None, :]
    total = w.sum(axis=(1, 2))
    safe = xp.where(xp.abs(total) > 1e-30, total, 1e-30)
    mxx = (w * (ex**2)[:, None, :]).sum(axis=(1, 2)) / safe
    myy = (w * (ey**2)[:, :, None]).sum(axis=(1, 2)) / safe
    mxy = (w * ey[:, :, None] * ex[:, None, :]).sum(axis=(1, 2)) / safe
    half, diff = 0.5 * (mxx + myy), xp.hypot(0.5 * (mxx - myy), mxy)
    limit = 0.98 * sigma**2
    major, minor = xp.clip(half + diff, 1e-3, limit), xp.clip(half - diff, 1e-3, limit)
    a = xp.sqrt(1.0 / (1.0 / major - 1.0 / sigma**2))
    b = xp.sqrt(1.0 / (1.0 / minor - 1.0 / sigma**2))
    return Moments(cx + dx, cy + dy, a, b, 0.5 * xp.arctan2(2 * mxy, mxx - myy), total)


def render_sources(shape: tuple[int, int], x: Array, y: Array, flux: Array, psf: PSFLike | Array) -> Array:
    """Return a (ny, nx) float32 image of point sources."""
    model: Any = psf if hasattr(psf, "basis") else ConstantPSF.of(psf)
    xp = get_xp(model.basis)
    image = xp.zeros(shape, dtype=xp.float32)
    stamps = render(model, x, y)
    size = stamps.shape[-1]
    half = size // 2
    for k in range(len(stamps)):
        j, i = round(float(y[k])) - half, round(float(x[k])) - half
        y0, x0 = max(j, 0), max(i, 0)
        y1, x1 = min(j + size, shape[0]), min(i + size, shape[1])
        if y1 > y0 and x1 > x0:
            image[y0:y1, x0:x1] += float(flux[k]) * stamps[k, y0 - j: y1 - j, x0 - i: x1 - i]
    return image
