"""Pixel-basis PSF whose pixels are polynomials in position: fit from stars, render anywhere.

The model of a star of flux f at (x, y) is f · W(x, y) Σ_k P_k(x, y) B_k, where B_k are n × n basis images, P_k
monomials of the scaled position and W the separable Lanczos-4 interpolation to the star's sub-pixel phase
(the representation of PSFEx, Bertin 2011, at native sampling). The basis is the weighted least-squares
solution over all pixels of all stars, found by conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from seechange_mpi.gpu_kernels import polynomials
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_ndimage, get_xp
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

_LANCZOS = 4


class PSFLike(Protocol):
    """What `render` needs of a PSF."""

    basis: Any
    degree: int
    x0: float
    y0: float
    x_scale: float
    y_scale: float


@dataclass
class PSFFit:
    """Result of `fit_psf`: the model, and per star: chi2 per degree of freedom, whether it was used."""

    basis: Array
    degree: int
    x0: float
    y0: float
    x_scale: float
    y_scale: float
    fwhm: float
    chi2: np.ndarray
    used: np.ndarray


@dataclass
class ConstantPSF:
    """A PSF that is one centred stamp everywhere."""

    basis: Array
    degree: int = 0
    x0: float = 0.0
    y0: float = 0.0
    x_scale: float = 1.0
    y_scale: float = 1.0

    @classmethod
    def of(cls, stamp: Array) -> ConstantPSF:
        """Wrap an odd, centred stamp of sum 1."""
        return cls(stamp[None])


def polynomial_terms(psf: PSFLike, x: Array, y: Array) -> Array:
    """Return (n, n_terms): the terms of `polynomials.powers` of the scaled positions."""
    xp = get_xp(x, psf.basis)
    u = (xp.asarray(x, dtype=xp.float64) - psf.x0) / psf.x_scale
    v = (xp.asarray(y, dtype=xp.float64) - psf.y0) / psf.y_scale
    return polynomials.terms(psf.degree, u, v)


def _taps(shift: Array, first: int, last: int) -> tuple[Array, Array]:
    """Lanczos kernel k(u) of unit sum at u = m − shift for m = first … last, and d/d shift of it: (k, taps) each.

    k(u) = a sin(πu) sin(πu/a) / (πu)² for |u| < a = 4, normalised by its sum over all m, so that profiles fade at
    the edge of their stamp.
    """
    xp = get_xp(shift)
    whole = xp.arange(first, last + 1, dtype=xp.float64)
    u = whole[None, :] - shift[:, None]
    # sines of the shift and of the whole numbers, combined by the addition theorem
    sign = 1.0 - 2.0 * (xp.abs(whole) % 2)
    sine, cosine = -sign * xp.sin(np.pi * shift)[:, None], sign * xp.cos(np.pi * shift)[:, None]
    slow, slow_whole = np.pi / _LANCZOS * shift[:, None], np.pi / _LANCZOS * whole
    sine_a = xp.sin(slow_whole) * xp.cos(slow) - xp.cos(slow_whole) * xp.sin(slow)
    cosine_a = xp.cos(slow_whole) * xp.cos(slow) + xp.sin(slow_whole) * xp.sin(slow)
    near = xp.abs(u) < 1e-6
    inside = xp.abs(u) < _LANCZOS
    v = np.pi * xp.where(near, 1.0, u)
    taps = xp.where(inside, xp.where(near, 1.0, _LANCZOS * sine * sine_a / v**2), 0.0)
    slope = (2.0 * taps - (_LANCZOS * cosine * sine_a + sine * cosine_a) / v) * (np.pi / v)
    slope = xp.where(inside & ~near, slope, 0.0)
    total = taps.sum(axis=1)[:, None]
    taps = taps / total
    return taps, (slope - taps * slope.sum(axis=1)[:, None]) / total


def _band(shift: Array, n_out: int, n_in: int) -> tuple[Array, Array, Array]:
    """Taps and slopes of shifts, and the index that spreads them to (n_out, n_in) matrices."""
    xp = get_xp(shift)
    # both ends of the taps are zero
    first = int(xp.floor(shift.min())) - _LANCZOS
    last = int(xp.ceil(shift.max())) + _LANCZOS
    distance = (xp.arange(n_out) - n_out // 2)[:, None] - (xp.arange(n_in) - n_in // 2)[None, :]
    taps, slopes = _taps(shift, first, last)
    return taps, slopes, xp.clip(distance - first, 0, last - first)


def shift_matrices(shift: Array, n_out: int, n_in: int) -> Array:
    """Return (k, n_out, n_in) matrices that shift centred profiles by `shift` pixels (rows sum to 1)."""
    xp = get_xp(shift)
    shift = xp.asarray(shift, dtype=xp.float64)
    if shift.size == 0:
        return xp.zeros((0, n_out, n_in))
    taps, _, index = _band(shift, n_out, n_in)
    return xp.take(taps, index, axis=1)


def shifted(centred: Array, dx: Array, dy: Array, size: int) -> Array:
    """Return (n, size, size): centred stamps moved by (dx, dy) pixels."""
    n = centred.shape[-1]
    return shift_matrices(dy, size, n) @ centred @ shift_matrices(dx, size, n).transpose(0, 2, 1)


def shifted_with_slopes(centred: Array, dx: Array, dy: Array, size: int) -> tuple[Array, Array, Array]:
    """Return `shifted` of n ≥ 1 stamps, and its derivatives with respect to dx and dy: (n, size, size) each."""
    xp = get_xp(centred)
    n = centred.shape[-1]
    taps, slopes, index = _band(dy, size, n)
    rows, slope_rows = xp.take(taps, index, axis=1) @ centred, xp.take(slopes, index, axis=1) @ centred
    taps, slopes, index = _band(dx, size, n)
    columns, slope_columns = xp.take(taps, index.T, axis=1), xp.take(slopes, index.T, axis=1)
    return rows @ columns, rows @ slope_columns, slope_rows @ columns


def local_stamps(psf: PSFLike, x: Array, y: Array) -> Array:
    """Return (n, s, s) centred stamps at the positions, each of sum 1."""
    xp = get_xp(psf.basis)
    stamps = xp.tensordot(polynomial_terms(psf, x, y), psf.basis.astype(xp.float64), axes=1)
    return stamps / stamps.sum(axis=(1, 2), keepdims=True)


def render(psf: PSFLike, x: Array, y: Array, *, size: int | None = None, phase: bool = True) -> Array:
    """Return (n, size, size) float32 stamps of the PSF at positions x, y.

    Parameters
    ----------
    size : int, odd; default: the size of the basis.
    phase : bool
        True: the star lies at its sub-pixel place relative to pixel (round(y), round(x)), the stamp's centre.
        False: exactly centred, sum 1.
    """
    xp = get_xp(psf.basis)
    x, y = xp.atleast_1d(xp.asarray(x, dtype=float)), xp.atleast_1d(xp.asarray(y, dtype=float))
    size = size or psf.basis.shape[-1]
    centred = local_stamps(psf, x, y)
    zero = xp.zeros_like(x)
    dx, dy = (x - xp.round(x), y - xp.round(y)) if phase else (zero, zero)
    stamps = shifted(centred, dx, dy, size)
    if not phase and size < psf.basis.shape[-1]:
        stamps = stamps / stamps.sum(axis=(1, 2), keepdims=True)
    return stamps.astype(xp.float32)


def fwhm_of(stamp: Array) -> float:
    """Return the FWHM [pix]: 2 √(area above half maximum / π) on a five times finer cubic-spline grid.

    Only the region connected to the maximum counts.
    """
    xp = get_xp(stamp)
    nd = get_ndimage(xp)
    n = stamp.shape[0]
    fine = xp.arange(5 * (n - 1) + 1) * 0.2
    grid = xp.stack(xp.meshgrid(fine, fine, indexing="ij"))
    v = nd.map_coordinates(stamp.astype(xp.float64), grid, order=3, mode="constant")
    labels, _ = nd.label(v > 0.5 * v.max())
    area = int((labels == labels.ravel()[xp.argmax(v)]).sum()) * 0.04
    return float(2.0 * np.sqrt(area / np.pi))


class _Problem:
    """Weighted linear least squares for the basis, by conjugate gradients on the normal equations."""

    def __init__(self, terms: np.ndarray, flux: np.ndarray, wy: np.ndarray, wx: np.ndarray, weight: np.ndarray,
                 ridge: float) -> None:
        self.terms = terms * flux[:, None]
        self.wy, self.wx = wy, wx
        self.wyt, self.wxt = wy.transpose(0, 2, 1), wx.transpose(0, 2, 1)
        self.weight = weight
        self.ridge = ridge

    def forward(self, basis: np.ndarray) -> np.ndarray:
        out: np.ndarray = self.wy @ np.tensordot(self.terms, basis, axes=1) @ self.wxt
        return out

    def adjoint(self, stamps: np.ndarray) -> np.ndarray:
        return np.tensordot(self.terms.T, self.wyt @ stamps @ self.wx, axes=1)

    def solve(self, data: np.ndarray, start: np.ndarray, iterations: int = 40) -> np.ndarray:
        def normal(b: np.ndarray) -> np.ndarray:
            return self.adjoint(self.weight * self.forward(b)) + self.ridge * b

        # Jacobi preconditioner: each basis pixel sees about the summed weight of its own pixel
        diagonal = np.tensordot((self.terms**2).T, self.weight, axes=1) + self.ridge
        b = start.copy()
        r = self.adjoint(self.weight * data) - normal(b)
        z = r / diagonal
        p, rz = z.copy(), float((r * z).sum())
        first = rz
        for _ in range(iterations):
            if rz <= 1e-10 * first or rz == 0.0:
                break
            q = normal(p)
            alpha = rz / float((p * q).sum())
            b += alpha * p
            r -= alpha * q
            z = r / diagonal
            rz, old = float((r * z).sum()), rz
            p = z + (rz / old) * p
        return b


def fit_psf(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, *,
    size: int, degree: int = 1, iterations: int = 4, clip: float = 4.0,
) -> PSFFit:
    """Fit the PSF to stars.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted.
    variance : (ny, nx) float32, total variance.
    mask : (ny, nx) bool, True = bad.
    x, y : (n,) star positions, good to about 0.1 pixel.
    size : int, odd, side of the basis [pix].
    degree : int, of the polynomial in position; lowered when there are fewer than 6 stars per term.
    iterations : int, rounds of flux, centre and basis.
    clip : float, stars with a chi2 this many robust sigma above the median are dropped.

    Raises
    ------
    ValueError
        Fewer than three usable stars.
    """
    d, var, bad = asnumpy(data), asnumpy(variance), asnumpy(mask)
    x, y = np.asarray(asnumpy(x), float).copy(), np.asarray(asnumpy(y), float).copy()
    ny, nx = d.shape
    while degree > 0 and len(x) < 6 * (degree + 1) * (degree + 2) // 2:
        degree -= 1
    model = PSFFit(np.zeros(0), degree, (nx - 1) / 2, (ny - 1) / 2, nx / 2, ny / 2, 0.0,
                   np.full(len(x), np.nan), np.zeros(len(x), bool))
    cx, cy = np.round(x).astype(int), np.round(y).astype(int)
    stamps, inside = cut_stamps(d, cx, cy, size)
    stamp_var, _ = cut_stamps(var, cx, cy, size, fill=1)
    stamp_bad, _ = cut_stamps(bad, cx, cy, size, fill=True)
    good = inside & ~stamp_bad & np.isfinite(stamps) & (stamp_var > 0)
    half = size // 2
    core = good[:, half - 2: half + 3, half - 2: half + 3].all(axis=(1, 2))
    used = core & (good.mean(axis=(1, 2)) > 0.8)
    if used.sum() < 3:
        raise ValueError(f"PSF: {int(used.sum())} usable stars of {len(x)}, at least 3 needed")
    stamps = np.where(good, stamps, 0).astype(np.float64)
    weight = np.where(good, 1.0 / np.where(good, stamp_var, 1.0), 0.0)
    terms = polynomial_terms(_geometry(model), x, y)
    basis = np.zeros((terms.shape[1], size, size))
    flux = np.maximum((stamps * _aperture(size, size / 4)).sum(axis=(1, 2)), 1e-3)
    basis[0] = np.median(stamps[used] / flux[used, None, None], axis=0)
    basis[0] /= basis[0].sum()
    clean = weight
    for step in range(iterations):
        wy, wx = shift_matrices(y - cy, size, size), shift_matrices(x - cx, size, size)
        s = used
        # the error of the weights' own model: bright cores are not trusted beyond 0.5 % of the peak
        soft = clean[s] / (1.0 + clean[s] * (0.005 * stamps[s]) ** 2)
        ridge = 1e-6 * float((soft * flux[s, None, None] ** 2).mean())
        basis = _Problem(terms[s], flux[s], wy[s], wx[s], soft, ridge).solve(stamps[s], basis)
        basis /= basis[0].sum()
        centred = np.tensordot(terms, basis, axes=1)
        centred /= centred.sum(axis=(1, 2), keepdims=True)
        if step < iterations - 1:
            flux, x, y = _refine(stamps, clean, centred, x, y, cx, cy, used)
            wy, wx = shift_matrices(y - cy, size, size), shift_matrices(x - cx, size, size)
        profile = wy @ centred @ wx.transpose(0, 2, 1)
        flux = (clean * stamps * profile).sum(axis=(1, 2)) / np.maximum(
            (clean * profile**2).sum(axis=(1, 2)), 1e-30)
        flux = np.maximum(flux, 1e-3)
        clean, chi2, used = _clip_stars(stamps, weight, profile, flux, core, clip)
        if used.sum() < 3:
            raise ValueError(f"PSF: {int(used.sum())} stars left after clipping, at least 3 needed")
    model.basis = get_xp(data).asarray(basis.astype(np.float32))
    model.chi2, model.used = chi2, used
    centre = np.tensordot(polynomial_terms(_geometry(model), np.array([model.x0]), np.array([model.y0])),
                          basis, axes=1)[0]
    model.fwhm = fwhm_of(centre)
    return model


def _geometry(model: PSFFit) -> ConstantPSF:
    """The positional part of a fit whose basis is not known yet."""
    return ConstantPSF(np.zeros(0), model.degree, model.x0, model.y0, model.x_scale, model.y_scale)


def _aperture(size: int, radius: float) -> np.ndarray:
    r = np.hypot(*np.mgrid[-(size // 2): size // 2 + 1, -(size // 2): size // 2 + 1])
    return np.asarray(r <= radius, dtype=float)


def _refine(stamps: np.ndarray, weight: np.ndarray, centred: np.ndarray, x: np.ndarray, y: np.ndarray,
            cx: np.ndarray, cy: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One Gauss–Newton step of flux and centre per star; the mean shift of the used stars is kept at zero."""
    size = stamps.shape[-1]
    eps = 0.05
    w0y, w0x = shift_matrices(y - cy, size, size), shift_matrices(x - cx, size, size)
    p = w0y @ centred @ w0x.transpose(0, 2, 1)
    px = w0y @ centred @ (shift_matrices(x - cx + eps, size, size)
                          - shift_matrices(x - cx - eps, size, size)).transpose(0, 2, 1) / (2 * eps)
    py = (shift_matrices(y - cy + eps, size, size)
          - shift_matrices(y - cy - eps, size, size)) @ centred @ w0x.transpose(0, 2, 1) / (2 * eps)
    a = np.stack([p, px, py], axis=-1).reshape(len(stamps), -1, 3)
    w = weight.reshape(len(stamps), -1, 1)
    normal = a.transpose(0, 2, 1) @ (w * a) + 1e-12 * np.eye(3)
    sol = np.linalg.solve(normal, (a.transpose(0, 2, 1) @ (w * stamps.reshape(len(stamps), -1, 1))))[..., 0]
    flux = np.maximum(sol[:, 0], 1e-3)
    dx, dy = np.clip(sol[:, 1] / flux, -0.3, 0.3), np.clip(sol[:, 2] / flux, -0.3, 0.3)
    dx, dy = dx - np.median(dx[used]), dy - np.median(dy[used])
    return flux, x + dx, y + dy


def _clip_stars(stamps: np.ndarray, weight: np.ndarray, profile: np.ndarray, flux: np.ndarray, core: np.ndarray,
                clip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leave out pixels of neighbours and stars that do not look like the model."""
    model = flux[:, None, None] * profile
    pull = (stamps - model) * np.sqrt(weight)
    tolerance = 4.0 + 0.02 * model * np.sqrt(weight)
    clean = np.where(np.abs(pull) > tolerance, 0.0, weight)
    chi2 = (np.where(clean > 0, pull, 0.0) ** 2).sum(axis=(1, 2)) / np.maximum((clean > 0).sum(axis=(1, 2)) - 3, 1)
    kept = (clean > 0).mean(axis=(1, 2))
    sane = core & (flux > 1e-2) & (kept > 0.7)
    if sane.any():
        m = np.median(chi2[sane])
        spread = max(MAD_TO_SIGMA * np.median(np.abs(chi2[sane] - m)), 0.05)
        sane &= chi2 < m + clip * spread
    return clean, chi2, sane
