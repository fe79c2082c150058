"""PSF and aperture photometry and moments of many sources at once.

All sources go through the same few array operations, in groups that keep the working memory small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.psf_model import (
    ConstantPSF,
    PSFLike,
    fwhm_of,
    local_stamps,
    render,
    shifted,
    shifted_with_slopes,
)
from seechange_mpi.gpu_kernels.stamps import stamp_index, take_stamps

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


def _groups(n: int, bytes_each: int, xp: Any) -> Iterator[slice]:
    """Slices over n sources whose arrays of `bytes_each` bytes fit a cache (NumPy) or fill a device (CuPy)."""
    step = max(1, (8_000_000 if xp is np else 500_000_000) // max(bytes_each, 1))
    return (slice(first, min(first + step, n)) for first in range(0, n, step))


def _positions(x: Array, xp: Any) -> Array:
    """Positions as a float64 vector, NaN where they are not finite."""
    x = xp.atleast_1d(xp.asarray(x, dtype=xp.float64))
    return xp.where(xp.isfinite(x), x, xp.nan)


def psf_photometry(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, psf: PSFLike | Array, *,
    fit_position: bool = True, max_shift: float = 2.0, radius: float | None = None, iterations: int = 12,
    equal_weights: bool = False,
) -> PSFPhotometry:
    """Weighted least-squares fit of the PSF to each source, positive or negative.

    The pixels of a disc about the start position are fitted with flux · PSF(x, y), and the position by
    Gauss–Newton steps; errors are those of the least-squares solution, the covariance of flux and position
    included. With free positions the flux at the best position is above the true one by σ²/flux on average
    (1 % at S/N 10).

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted;  variance : (ny, nx), total variance; pixels where it
        is not finite or not positive are left out.
    mask : (ny, nx) bool, True = bad.
    x, y : (n,) start positions [pix].
    psf : model with ``basis`` … or one odd centred (s, s) stamp.
    fit_position : bool
        False: only the flux is fitted (linear).
    max_shift : float
        Fits that move further are returned at the start position with flag bit 4 [pix].
    radius : float, optional
        Radius of the fitted disc; default 1.5 FWHM of the PSF at the centre of its field [pix].
    iterations : int
        Most Gauss–Newton steps; a source is done when a step is below 0.0001 pixel or 1 % of the position's error.
    equal_weights : bool
        All good pixels count alike, flux = Σ P d / Σ P², and errors follow from the variance, √(Σ P² V) / Σ P². Where V
        was taken from the data themselves, weights 1 / V favour pixels that noise made low: a flux at a fixed position
        is then too low by a few per cent to tens of per cent of its error. Only with ``fit_position=False``.

    Returns
    -------
    PSFPhotometry
        float64; NaN (except the position) where less than a quarter of the disc is good (flag bit 3) or the position
        is not finite.
    """
    if equal_weights and fit_position:
        raise ValueError("psf_photometry: equal_weights is for fixed positions (fit_position=False)")
    xp = get_xp(data)
    model = ConstantPSF.on(psf, xp)
    x0, y0 = _positions(x, xp), _positions(y, xp)
    if x0.size == 0:
        none = xp.zeros(0)
        return PSFPhotometry(none, none, none, none, none, none, none, xp.zeros(0, dtype=xp.int32))
    if radius is None:
        centre = local_stamps(model, xp.asarray([model.x0]), xp.asarray([model.y0]))[0]
        radius = 1.5 * fwhm_of(centre)
    size = 2 * int(np.ceil(radius + 0.5)) + 1
    # the pixels of the PSF that can reach the disc
    reach = size // 2 + 5 + int(np.ceil(max_shift))
    crop = max(0, model.basis.shape[-1] // 2 - reach)
    side = model.basis.shape[-1] - 2 * crop
    parts = []
    for part in _groups(x0.size, 8 * (10 * size**2 + 2 * model.basis.shape[-1] ** 2 + 4 * size * side), xp):
        centred = local_stamps(model, x0[part], y0[part])[:, crop: crop + side, crop: crop + side]
        stamps = _Discs(data, variance, mask, x0[part], y0[part], radius, size, equal_weights)
        parts.append(stamps.fit(centred, max_shift if fit_position else None, iterations))
    return PSFPhotometry(*(xp.concatenate([getattr(p, f.name) for p in parts]) for f in fields(PSFPhotometry)))


class _Discs:
    """The pixels about each source: data (0 where bad), weight (0 where bad or outside the disc), flags.

    With equal weights ``variance`` is kept beside them, else None.
    """

    def __init__(self, data: Array, variance: Array, mask: Array, x: Array, y: Array, radius: float, size: int,
                 equal: bool = False) -> None:
        xp = get_xp(data)
        self.x, self.y, self.size = x, y, size
        self.cx, self.cy = xp.round(x), xp.round(y)
        index, inside = stamp_index(data.shape, self.cx, self.cy, size)
        values = take_stamps(data, index, inside)
        var = take_stamps(variance, index, inside)
        bad = take_stamps(mask, index, inside)
        u = xp.arange(size, dtype=xp.float64) - size // 2
        disc = (((u[None, :] - (y - self.cy)[:, None]) ** 2)[:, :, None]
                + ((u[None, :] - (x - self.cx)[:, None]) ** 2)[:, None, :]) <= radius**2
        good = disc & inside & ~bad & xp.isfinite(values) & (var > 0) & xp.isfinite(var)
        var = xp.where(good, var, 1).astype(xp.float64)
        self.weight = xp.where(good, 1.0 if equal else 1.0 / var, 0.0)
        self.variance = var if equal else None
        self.data = xp.where(good, values, 0).astype(xp.float64)
        self.n_good = good.sum(axis=(1, 2))
        self.skipped = self.n_good < 0.25 * xp.maximum(disc.sum(axis=(1, 2)), 1)
        self.flags = (xp.where((disc & bad).any(axis=(1, 2)), MASKED, 0)
                      | xp.where((disc & ~inside).any(axis=(1, 2)), EDGE, 0)
                      | xp.where(self.skipped, SKIPPED, 0))

    def fit(self, centred: Array, max_shift: float | None, iterations: int) -> PSFPhotometry:
        """Fit flux and, unless `max_shift` is None, position."""
        xp = get_xp(centred)
        dx, dy = (xp.where(xp.isfinite(c), c, 0.0) for c in (self.x - self.cx, self.y - self.cy))
        free = max_shift is not None
        if max_shift is not None:
            dx, dy, converged, moved = self._move(centred, dx, dy, max_shift, iterations)
            self.flags |= xp.where(converged, 0, NOT_CONVERGED) | xp.where(moved, MOVED_AWAY, 0)
            gram = self._gram(shifted_with_slopes(centred, dx, dy, self.size), slice(None))
        else:
            profile = shifted(centred, dx, dy, self.size)
            gram = self._gram((profile,), slice(None))
        pp = xp.maximum(gram[:, 0, 0], 1e-300)
        flux = gram[:, 0, -1] / pp
        chi2 = (gram[:, -1, -1] - flux * gram[:, 0, -1]) / xp.maximum(self.n_good - (3 if free else 1), 1)
        if free:
            inverse, scale = _inverse3(gram)
            errors = xp.sqrt(xp.maximum(xp.stack([inverse[0][0], inverse[1][1], inverse[2][2]]), 0)) / scale
            height = xp.maximum(xp.abs(flux), 1e-30)
            flux_err, x_err, y_err = errors[0], errors[1] / height, errors[2] / height
        else:
            flux_err = 1.0 / xp.sqrt(pp)
            if self.variance is not None:
                flux_err = xp.sqrt((self.weight * profile**2 * self.variance).sum(axis=(1, 2))) / pp
                residual = self.data - flux[:, None, None] * profile
                chi2 = (self.weight * residual**2 / self.variance).sum(axis=(1, 2)) / xp.maximum(self.n_good - 1, 1)
            x_err = y_err = xp.zeros_like(flux)
        measured = [xp.where(self.skipped, xp.nan, a) for a in (flux, flux_err, x_err, y_err, xp.maximum(chi2, 0))]
        return PSFPhotometry(self.cx + dx, self.cy + dy, measured[0], measured[1], measured[2], measured[3],
                             measured[4], self.flags.astype(xp.int32))

    def _gram(self, models: tuple[Array, ...], which: Array | slice) -> Array:
        """Weighted products of the models and, last, the data with each other: (n, k, k)."""
        xp = get_xp(self.data)
        data = self.data[which]
        a = xp.stack([*models, data], axis=1).reshape(len(data), len(models) + 1, -1)
        return (a * self.weight[which].reshape(len(data), 1, -1)) @ a.transpose(0, 2, 1)

    def _move(self, centred: Array, dx0: Array, dy0: Array, max_shift: float,
              iterations: int) -> tuple[Array, Array, Array, Array]:
        """Gauss–Newton on (flux, x, y) of the sources not done yet; returns dx, dy, converged, moved away."""
        xp = get_xp(centred)
        dx, dy = dx0.copy(), dy0.copy()
        last = xp.where(self.skipped, 0.0, xp.inf)
        bound = max_shift + 0.5
        live = xp.nonzero(~self.skipped)[0]
        for _ in range(iterations):
            if live.size == 0:
                break
            gram = self._gram(shifted_with_slopes(centred[live], dx[live], dy[live], self.size), live)
            inverse, scale = _inverse3(gram)
            rhs = gram[:, :3, 3].T / scale
            flux, fx, fy = ((row[0] * rhs[0] + row[1] * rhs[1] + row[2] * rhs[2]) / scale[j]
                            for j, row in enumerate(inverse))
            flux = xp.where(xp.abs(flux) > 1e-30, flux, 1e-30)
            sx, sy = xp.clip(fx / flux, -0.5, 0.5), xp.clip(fy / flux, -0.5, 0.5)
            dx[live] = dx0[live] + xp.clip(dx[live] + sx - dx0[live], -bound, bound)
            dy[live] = dy0[live] + xp.clip(dy[live] + sy - dy0[live], -bound, bound)
            step = xp.hypot(sx, sy)
            last[live] = step
            error = xp.sqrt(xp.maximum(inverse[1][1], 0)) / (scale[1] * xp.abs(flux))
            live = live[~(step < 1e-4 + 0.01 * error)]
        moved = ~(xp.hypot(dx - dx0, dy - dy0) <= max_shift)
        return xp.where(moved, dx0, dx), xp.where(moved, dy0, dy), last < 0.05, moved


def _inverse3(gram: Array) -> tuple[list[list[Array]], Array]:
    """Inverse, element by element, of the leading 3 × 3 blocks scaled to unit diagonal; the scales (3, n)."""
    xp = get_xp(gram)
    scale = xp.sqrt(xp.maximum(xp.stack([gram[:, k, k] for k in range(3)]), 1e-150))
    a = 1.0 + 1e-9
    b, c, e = (gram[:, j, k] / (scale[j] * scale[k]) for j, k in ((0, 1), (0, 2), (1, 2)))
    top = [a * a - e * e, c * e - a * b, b * e - a * c]
    det = a * top[0] + b * top[1] + c * top[2]
    d11, d22, d12 = a * a - c * c, a * a - b * b, b * c - a * e
    rows = [top, [top[1], d11, d12], [top[2], d12, d22]]
    return [[v / det for v in row] for row in rows], scale


def aperture_photometry(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, radii: tuple[float, ...], *,
    subsample: int | None = None,
) -> tuple[Array, Array, Array]:
    """Sum the pixels in circles; pixels on the rim count by the exact area of them that lies inside.

    Masked pixels are left out (count them with ``nbad``).

    Parameters
    ----------
    data, variance : (ny, nx) float32;  mask : (ny, nx) bool, True = bad.
    x, y : (n,) [pix];  radii : [pix].
    subsample : int, optional
        Count rim pixels by this many points per axis instead of their exact area.

    Returns
    -------
    flux, error : (n, len(radii)) float64; error = √Σ area² variance.
    nbad : (n, len(radii)) int32, masked or missing pixels inside.
    """
    xp = get_xp(data)
    x, y = _positions(x, xp), _positions(y, xp)
    cx, cy = xp.round(x), xp.round(y)
    size = 2 * int(np.ceil(max(radii) + 0.5)) + 1
    shape = (x.size, len(radii))
    flux, err, nbad = xp.zeros(shape), xp.zeros(shape), xp.zeros(shape, dtype=xp.int32)
    for part in _groups(x.size, 8 * 8 * size**2, xp):
        index, inside = stamp_index(data.shape, cx[part], cy[part], size)
        values, var = take_stamps(data, index, inside), take_stamps(variance, index, inside)
        good = inside & ~take_stamps(mask, index, inside) & xp.isfinite(values) & xp.isfinite(var)
        values, var = (xp.where(good, a, 0).astype(xp.float64) for a in (values, var))
        for k, radius in enumerate(radii):
            half = int(np.ceil(radius + 0.5))
            core = (slice(None), *2 * (slice(size // 2 - half, size // 2 + half + 1),))
            dx, dy = (x - cx)[part], (y - cy)[part]
            area = (_areas(dx, dy, radius, half, xp) if subsample is None
                    else _sampled_areas(dx, dy, radius, half, subsample, xp))
            flux[part, k] = xp.einsum("nij,nij->n", area, values[core])
            err[part, k] = xp.sqrt(xp.einsum("nij,nij->n", area**2, var[core]))
            nbad[part, k] = ((area > 1e-9) & ~good[core]).sum(axis=(1, 2))
    return flux, err, nbad


def _areas(dx: Array, dy: Array, radius: float, half: int, xp: Any) -> Array:
    """Area of each pixel of a (2 half + 1)² stamp inside a circle centred (dx, dy) off its middle: (n, size, size).

    The part of the circle in [0, x] × [0, y] (signed, x and y cut to ±R) is
    H(x, y) = y clip(x, ±h) + sgn(y) (g(x) − clip(g(x), ±g(h))), h = √(R² − y²),
    g(t) = ∫₀ᵗ √(R² − s²) ds = ½ (t √(R² − t²) + R² asin(t/R)); a pixel is the difference of H at its corners.
    """
    edges = xp.arange(2 * half + 2, dtype=xp.float64) - half - 0.5

    def integral(t: Array) -> Array:
        return 0.5 * (t * xp.sqrt(xp.maximum(radius**2 - t**2, 0)) + radius**2 * xp.arcsin(xp.clip(t / radius, -1, 1)))

    x, y = (xp.clip(edges[None, :] - d[:, None], -radius, radius) for d in (dx, dy))
    h = xp.sqrt(xp.maximum(radius**2 - y**2, 0))
    gx, gh = integral(x)[:, None, :], integral(h)[:, :, None]
    x, y, h = x[:, None, :], y[:, :, None], h[:, :, None]
    corner = y * xp.clip(x, -h, h) + xp.sign(y) * (gx - xp.clip(gx, -gh, gh))
    strips = corner[:, 1:] - corner[:, :-1]
    return strips[:, :, 1:] - strips[:, :, :-1]


def _sampled_areas(dx: Array, dy: Array, radius: float, half: int, subsample: int, xp: Any) -> Array:
    """`_areas` by counting subsample² points per pixel."""
    size = 2 * half + 1
    fine = (xp.arange(size * subsample) + 0.5) / subsample - 0.5 - half
    r2 = ((fine[None, :] - dy[:, None]) ** 2)[:, :, None] + ((fine[None, :] - dx[:, None]) ** 2)[:, None, :]
    return (r2 <= radius**2).reshape(-1, size, subsample, size, subsample).mean(axis=(2, 4))


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
    are corrected for it by 1 / (1/m − 1/sigma²), exact for a Gaussian source. Masked pixels count as zero.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted;  mask : (ny, nx) bool, True = bad.
    x, y : (n,) start positions [pix];  sigma : [pix]
    """
    xp = get_xp(data)
    x, y = _positions(x, xp), _positions(y, xp)
    size = 2 * int(np.ceil(4 * sigma)) + 1
    parts = [_moments(data, mask, x[part], y[part], sigma, size, iterations)
             for part in _groups(x.size, 8 * 3 * size**2, xp)]
    if not parts:
        return Moments(*(xp.zeros(0) for _ in fields(Moments)))
    return Moments(*(xp.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Moments)))


def _moments(data: Array, mask: Array, x: Array, y: Array, sigma: float, size: int, iterations: int) -> Moments:
    """`moments` of one group of sources."""
    xp = get_xp(data)
    cx, cy = xp.round(x), xp.round(y)
    index, inside = stamp_index(data.shape, cx, cy, size)
    v = take_stamps(data, index, inside)
    v = xp.where(inside & ~take_stamps(mask, index, inside) & xp.isfinite(v), v, 0).astype(xp.float64)
    u = xp.arange(size, dtype=xp.float64) - size // 2
    dx, dy = x - cx, y - cy

    def windowed(order: int) -> Array:
        """Sums of data × window × (y − yc)^j (x − xc)^i: (n, j, i)."""
        ex, ey = u[None, :] - dx[:, None], u[None, :] - dy[:, None]
        wx, wy = xp.exp(-0.5 * (ex / sigma) ** 2), xp.exp(-0.5 * (ey / sigma) ** 2)
        rows = xp.stack([wy * ey**j for j in range(order + 1)], axis=1)
        columns = xp.stack([wx * ex**i for i in range(order + 1)], axis=2)
        return rows @ v @ columns

    for _ in range(iterations):
        m = windowed(1)
        total = xp.where(xp.abs(m[:, 0, 0]) > 1e-30, m[:, 0, 0], 1e-30)
        dx = dx + xp.clip(2 * m[:, 0, 1] / total, -1, 1)
        dy = dy + xp.clip(2 * m[:, 1, 0] / total, -1, 1)
    m = windowed(2)
    total = m[:, 0, 0]
    safe = xp.where(xp.abs(total) > 1e-30, total, 1e-30)
    mxx, myy, mxy = m[:, 0, 2] / safe, m[:, 2, 0] / safe, m[:, 1, 1] / safe
    half, diff = 0.5 * (mxx + myy), xp.hypot(0.5 * (mxx - myy), mxy)
    limit = 0.98 * sigma**2
    a, b = (xp.sqrt(1.0 / (1.0 / xp.clip(q, 1e-3, limit) - 1.0 / sigma**2)) for q in (half + diff, half - diff))
    return Moments(cx + dx, cy + dy, a, b, 0.5 * xp.arctan2(2 * mxy, mxx - myy), total)


def render_sources(shape: tuple[int, int], x: Array, y: Array, flux: Array, psf: PSFLike | Array) -> Array:
    """Return a (ny, nx) float32 image of point sources."""
    model: Any = psf if hasattr(psf, "basis") else ConstantPSF.of(psf)
    xp = get_xp(model.basis)
    image = xp.zeros(shape[0] * shape[1], dtype=xp.float32)
    x, y, flux = (_positions(c, xp) for c in (x, y, flux))
    size = model.basis.shape[-1]
    for part in _groups(x.size, 8 * 5 * size**2, xp):
        index, inside = stamp_index(shape, xp.round(x[part]), xp.round(y[part]), size)
        stamps = render(model, x[part], y[part]) * flux[part].astype(xp.float32)[:, None, None]
        _add_at(image, index[inside], stamps[inside])
    return image.reshape(shape)


def _add_at(image: Array, index: Array, values: Array) -> None:
    """Add values to a flat image at places that may repeat."""
    if get_xp(image) is np:
        np.add.at(image, index, values)
    else:
        import cupyx

        cupyx.scatter_add(image, index, values)
