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
    """A PSF by itself: one centred stamp everywhere, or a polynomial of any degree."""

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

    @classmethod
    def on(cls, psf: PSFLike | Array, xp: Any) -> PSFLike:
        """Return a PSF, or the wrapped stamp, with its array in the memory of `xp`."""
        if not hasattr(psf, "basis"):
            return cls.of(xp.asarray(psf))
        return cls(xp.asarray(psf.basis), psf.degree, psf.x0, psf.y0, psf.x_scale, psf.y_scale)


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

    Only the region connected to the maximum counts; cells on its rim count by the part of them above half maximum.
    """
    xp = get_xp(stamp)
    nd = get_ndimage(xp)
    fine = xp.arange(5 * (stamp.shape[0] - 1) + 1) * 0.2
    grid = xp.stack(xp.meshgrid(fine, fine, indexing="ij"))
    v = nd.map_coordinates(stamp.astype(xp.float64), grid, order=3, mode="constant")
    above = v - 0.5 * v.max()
    labels, _ = nd.label(above > 0)
    region = nd.binary_dilation(labels == labels.ravel()[xp.argmax(v)])
    slope_y, slope_x = xp.gradient(v)
    part = xp.clip(0.5 + above / xp.maximum(xp.abs(slope_x) + xp.abs(slope_y), 1e-30), 0, 1)
    return float(2.0 * np.sqrt(0.04 / np.pi * float((part * region).sum())))


class _Problem:
    """Weighted linear least squares for the basis, by conjugate gradients on the normal equations."""

    def __init__(self, terms: Array, wy: Array, wx: Array, weight: Array, ridge: float) -> None:
        self.terms, self.weight, self.ridge = terms, weight, ridge
        xp = get_xp(terms)
        self.wy, self.wx = wy, wx
        self.wyt, self.wxt = (xp.ascontiguousarray(w.transpose(0, 2, 1)) for w in (wy, wx))

    def forward(self, basis: Array) -> Array:
        """Stars of a basis: (n, size, size)."""
        return self.wy @ get_xp(basis).tensordot(self.terms, basis, axes=1) @ self.wxt

    def adjoint(self, stamps: Array) -> Array:
        """Transpose of `forward`."""
        return get_xp(stamps).tensordot(self.terms.T, self.wyt @ stamps @ self.wx, axes=1)

    def solve(self, data: Array, start: Array, iterations: int = 40) -> Array:
        """Basis that fits the data, from a first guess."""
        xp = get_xp(data)
        # Jacobi preconditioner: each basis pixel sees about the summed weight of its own pixel
        diagonal = xp.tensordot((self.terms**2).T, self.weight, axes=1) + self.ridge
        rhs = self.adjoint(self.weight * data)
        least = 1e-10 * float((rhs**2 / diagonal).sum())
        b = start.copy()
        r = rhs - self._normal(b)
        z = r / diagonal
        p, rz = z.copy(), (r * z).sum()
        for _ in range(iterations):
            if not float(rz) > least:
                break
            q = self._normal(p)
            alpha = rz / (p * q).sum()
            b += alpha * p
            r -= alpha * q
            z = r / diagonal
            rz, old = (r * z).sum(), rz
            p = z + (rz / old) * p
        return b

    def _normal(self, b: Array) -> Array:
        return self.adjoint(self.weight * self.forward(b)) + self.ridge * b


def fit_psf(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, *,
    size: int, degree: int = 1, iterations: int = 4, clip: float = 4.0,
) -> PSFFit:
    """Fit the PSF to stars.

    Each round solves for the basis with fluxes and centres held, then for flux and centre of each star with the
    basis held; then pixels of neighbours and cosmic rays are left out, and stars that are too wide, too narrow or
    fit badly.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted.
    variance : (ny, nx) float32, total variance.
    mask : (ny, nx) bool, True = bad.
    x, y : (n,) star positions, good to about 0.1 pixel.
    size : int, odd, side of the basis [pix].
    degree : int, of the polynomial in position; lowered when there are fewer than 6 stars per term.
    iterations : int, rounds of flux, centre and basis.
    clip : float
        Stars whose chi2 is this many robust sigma above the median, or whose width is as far from the model's, are
        dropped.

    Returns
    -------
    PSFFit
        The basis is on the device of `data`; chi2 and used are in host memory.

    Raises
    ------
    ValueError
        Fewer than three usable stars, or an even size.
    """
    if size % 2 == 0:
        raise ValueError(f"fit_psf: size must be odd, found {size}")
    xp = get_xp(data)
    x, y = xp.asarray(x, dtype=xp.float64), xp.asarray(y, dtype=xp.float64)
    ny, nx = data.shape
    while degree > 0 and len(x) < 6 * (degree + 1) * (degree + 2) // 2:
        degree -= 1
    model = PSFFit(xp.zeros(0), degree, (nx - 1) / 2, (ny - 1) / 2, nx / 2, ny / 2, 0.0,
                   np.full(len(x), np.nan), np.zeros(len(x), bool))
    stars = _Stars(data, variance, mask, x, y, size, polynomial_terms(_geometry(model), x, y))
    basis = stars.first_guess()
    for step in range(iterations):
        basis = stars.solve_basis(basis)
        stars.measure(basis, refine=step < iterations - 1, clip=clip)
    model.basis = basis.astype(xp.float32)
    model.chi2, model.used = asnumpy(stars.chi2), asnumpy(stars.used)
    centre = xp.tensordot(polynomial_terms(_geometry(model), xp.asarray([model.x0]), xp.asarray([model.y0])), basis,
                          axes=1)[0]
    model.fwhm = fwhm_of(centre)
    return model


def _geometry(model: PSFFit) -> ConstantPSF:
    """The positional part of a fit; its array only tells the device."""
    return ConstantPSF(model.basis, model.degree, model.x0, model.y0, model.x_scale, model.y_scale)


class _Stars:
    """Stamps of the PSF stars, and what is known of them so far: fluxes, centres, pixels and stars to trust."""

    def __init__(self, data: Array, variance: Array, mask: Array, x: Array, y: Array, size: int,
                 terms: Array) -> None:
        xp = get_xp(data)
        self.size, self.terms = size, terms
        cx, cy = xp.round(x), xp.round(y)
        self.dx, self.dy = x - cx, y - cy
        stamps, inside = cut_stamps(data, cx, cy, size)
        stamp_var, _ = cut_stamps(variance, cx, cy, size, fill=1)
        stamp_bad, _ = cut_stamps(mask, cx, cy, size, fill=True)
        good = inside & ~stamp_bad & xp.isfinite(stamps) & (stamp_var > 0) & xp.isfinite(stamp_var)
        half = size // 2
        self.core = good[:, half - 2: half + 3, half - 2: half + 3].all(axis=(1, 2))
        self.used = self.core & (good.mean(axis=(1, 2)) > 0.8)
        self._enough("usable stars of")
        self.stamps = xp.where(good, stamps, 0).astype(xp.float64)
        self.weight = xp.where(good, 1.0 / xp.where(good, stamp_var, 1.0).astype(xp.float64), 0.0)
        self.clean = self.weight
        self.chi2 = xp.full(len(x), xp.nan)

    def _enough(self, what: str) -> None:
        n = int(self.used.sum())
        if n < 3:
            raise ValueError(f"PSF: {n} {what} {len(self.used)}, at least 3 needed")

    def first_guess(self) -> Array:
        """Fluxes in a small aperture, and a basis whose constant term is the median star."""
        xp = get_xp(self.stamps)
        u = xp.arange(self.size) - self.size // 2
        aperture = (u[:, None] ** 2 + u[None, :] ** 2) <= (self.size / 4) ** 2
        self.flux = xp.maximum((self.stamps * aperture).sum(axis=(1, 2)), 1e-3)
        basis = xp.zeros((self.terms.shape[1], self.size, self.size))
        basis[0] = xp.median((self.stamps / self.flux[:, None, None])[self.used], axis=0)
        return basis / basis[0].sum()

    def solve_basis(self, basis: Array) -> Array:
        """Basis of unit sum that fits the used stars."""
        s = get_xp(basis).nonzero(self.used)[0]
        clean, stamps, flux = self.clean[s], self.stamps[s], self.flux[s]
        # the error of the weights' own model: bright cores are not trusted beyond 0.5 % of the peak
        soft = clean / (1.0 + clean * (0.005 * stamps) ** 2)
        ridge = 1e-6 * float((soft * flux[:, None, None] ** 2).mean())
        problem = _Problem(self.terms[s] * flux[:, None], shift_matrices(self.dy[s], self.size, self.size),
                           shift_matrices(self.dx[s], self.size, self.size), soft, ridge)
        basis = problem.solve(stamps, basis)
        return basis / basis[0].sum()

    def measure(self, basis: Array, *, refine: bool, clip: float) -> None:
        """Fluxes and, with `refine`, centres of all stars; then which pixels and stars to trust."""
        xp = get_xp(basis)
        centred = xp.tensordot(self.terms, basis, axes=1)
        centred = centred / centred.sum(axis=(1, 2), keepdims=True)
        if refine:
            self._refine(centred)
        profile = shifted(centred, self.dx, self.dy, self.size)
        self.flux = xp.maximum((self.clean * self.stamps * profile).sum(axis=(1, 2)) / xp.maximum(
            (self.clean * profile**2).sum(axis=(1, 2)), 1e-30), 1e-3)
        self._clip(profile, clip)
        self._enough("stars left after clipping of")

    def _refine(self, centred: Array) -> None:
        """One Gauss–Newton step of the centre of each star; the mean shift of the used stars is kept at zero."""
        xp = get_xp(centred)
        a = xp.stack(shifted_with_slopes(centred, self.dx, self.dy, self.size), axis=1).reshape(len(centred), 3, -1)
        w = self.clean.reshape(len(centred), 1, -1)
        normal = (w * a) @ a.transpose(0, 2, 1) + 1e-12 * xp.eye(3)
        rhs = a @ (w * self.stamps.reshape(w.shape)).transpose(0, 2, 1)
        sol = xp.linalg.solve(normal, rhs)[..., 0]
        flux = xp.maximum(sol[:, 0], 1e-3)
        dx, dy = xp.clip(sol[:, 1] / flux, -0.3, 0.3), xp.clip(sol[:, 2] / flux, -0.3, 0.3)
        self.dx = self.dx + dx - xp.median(dx[self.used])
        self.dy = self.dy + dy - xp.median(dy[self.used])

    def _clip(self, profile: Array, clip: float) -> None:
        """Leave out pixels of neighbours and stars that do not look like the model."""
        xp = get_xp(profile)
        model = self.flux[:, None, None] * profile
        sigma = xp.sqrt(self.weight)
        pull = (self.stamps - model) * sigma
        tolerance = 4.0 + 0.02 * xp.abs(model) * sigma
        self.clean = xp.where(xp.abs(pull) > tolerance, 0.0, self.weight)
        seen = self.clean > 0
        self.chi2 = (seen * pull**2).sum(axis=(1, 2)) / xp.maximum(seen.sum(axis=(1, 2)) - 3, 1)
        sane = self.core & (self.flux > 1e-2) & (seen.mean(axis=(1, 2)) > 0.7)
        if bool(sane.any()):
            width, error = self._width(profile, xp.clip(pull, -tolerance, tolerance))
            excess = xp.abs(width - xp.median(width[sane])) / xp.hypot(error, 0.015)
            sane &= _typical(self.chi2, 0.05, clip, sane) & _typical(excess, 1.0, clip, sane)
        self.used = sane

    def _width(self, profile: Array, pull: Array) -> tuple[Array, Array]:
        """Relative excess of the second moment of each star over its model, and its error.

        The residual is projected on the profile's Laplacian, which broadens it, less its part along the profile.
        """
        xp = get_xp(profile)
        padded = xp.pad(profile, ((0, 0), (1, 1), (1, 1)), mode="edge")
        laplacian = (padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
                     - 4 * profile)
        u = xp.arange(self.size, dtype=xp.float64) - self.size // 2
        core = profile * (profile > 0.05 * profile.max(axis=(1, 2), keepdims=True))
        moment = (core * (u[:, None] ** 2 + u[None, :] ** 2)).sum(axis=(1, 2)) / core.sum(axis=(1, 2))
        w = self.weight
        along = (w * laplacian * profile).sum(axis=(1, 2)) / xp.maximum((w * profile**2).sum(axis=(1, 2)), 1e-30)
        mode = laplacian - along[:, None, None] * profile
        power = xp.maximum((w * mode**2).sum(axis=(1, 2)), 1e-30)
        # broadening by a variance v per axis adds v/2 Laplacians, and 2 v to the moment
        excess = (xp.sqrt(w) * pull * mode).sum(axis=(1, 2)) / (power * self.flux)
        return 4.0 * excess / moment, 4.0 / (xp.sqrt(power) * self.flux * moment)


def _typical(values: Array, floor: float, clip: float, among: Array) -> Array:
    """Values at most `clip` robust sigma (at least `floor` each) above the median of those `among`."""
    xp = get_xp(values)
    above = values - xp.median(values[among])
    spread = xp.maximum(MAD_TO_SIGMA * xp.median(xp.abs(above[among])), floor)
    return above < clip * spread
