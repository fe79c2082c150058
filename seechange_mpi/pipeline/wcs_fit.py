"""Fit TAN + SIP to matched stars (Shupe et al. 2005, ASPC 347, 491).

A `Plate` maps pixels to a fixed tangent plane in two steps: a base (linear, or the distorted WCS of the header) and
a polynomial on top of it. ``Plate.header`` writes the whole as one TAN-SIP header about the image centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.pipeline.matching import Offset
from seechange_mpi.pipeline.wcs_tools import (
    deproject,
    design_matrix,
    has_distortion,
    pixel_scale_arcsec,
    pixel_to_sky,
    polynomial_powers,
    project,
    sip_header,
)

F64 = npt.NDArray[np.float64]
_FLOOR_PIX = 0.01
"""Error of centroids that no photon noise explains (pixel response, PSF asymmetry) [pix]."""


@dataclass(frozen=True, slots=True)
class Plate:
    """Pixels to tangent-plane coordinates [arcsec] about (ra0, dec0).

    Attributes
    ----------
    source : header text whose WCS is the base.
    shape : (ny, nx) of the image.
    distorted : bool, the base is the full WCS of `source`; else its coordinates are scaled pixels.
    order, coefficients : polynomial from base coordinates to (xi, eta) [arcsec], (n_terms, 2).
    """

    source: str
    shape: tuple[int, int]
    ra0: float
    dec0: float
    scale_arcsec: float
    distorted: bool
    order: int
    coefficients: F64

    def base(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[F64, F64]:
        """Return base coordinates, about -1 .. 1 over the image."""
        ny, nx = self.shape
        half = max(nx, ny) / 2
        if self.distorted:
            xi, eta = project(*pixel_to_sky(self.source, x, y), self.ra0, self.dec0)
            unit = half * self.scale_arcsec / 3600.0
            return xi / unit, eta / unit
        return (np.asarray(x, float) - (nx - 1) / 2) / half, (np.asarray(y, float) - (ny - 1) / 2) / half

    def sky_arcsec(self, x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
        """Return (n, 2) tangent-plane positions of pixels [arcsec]."""
        return np.asarray(design_matrix(*self.base(x, y), self.order) @ self.coefficients)

    def plane_arcsec(self, ra: npt.ArrayLike, dec: npt.ArrayLike) -> F64:
        """Return (n, 2) tangent-plane positions of sky positions [arcsec]."""
        return np.stack(project(ra, dec, self.ra0, self.dec0), axis=-1) * 3600.0

    def moved(self, offset: Offset) -> Plate:
        """Return the plate after a rigid motion in the tangent plane."""
        c = offset.apply(self.coefficients) - np.array([offset.dx, offset.dy])
        c[0] += (offset.dx, offset.dy)
        return replace(self, coefficients=c)

    def header(self) -> str:
        """Return TAN or TAN-SIP header text, exact to well below a milliarcsecond."""
        ny, nx = self.shape
        sip_order = 5 if self.distorted else self.order
        count = 24
        gx, gy = np.meshgrid(np.linspace(-0.5, nx - 0.5, count), np.linspace(-0.5, ny - 0.5, count))
        x, y = gx.ravel(), gy.ravel()
        plane = self.sky_arcsec(x, y) / 3600.0
        ra, dec = deproject(plane[:, 0], plane[:, 1], self.ra0, self.dec0)
        centre = self.sky_arcsec([(nx - 1) / 2], [(ny - 1) / 2])[0] / 3600.0
        ra_c, dec_c = (float(v) for v in deproject(centre[0], centre[1], self.ra0, self.dec0))
        if not self.distorted and sip_order == 1 and np.hypot(*centre) * 3600 > 1.0:
            sip_order = 2
        if sip_order > 1:
            sip_order = max(sip_order, 3)
        half = max(nx, ny) / 2
        u, v = (x - (nx - 1) / 2) / half, (y - (ny - 1) / 2) / half
        for _ in range(4):
            target = np.stack(project(ra, dec, ra_c, dec_c), axis=-1)
            c = _solve(design_matrix(u, v, sip_order), target)
            ra_c, dec_c = (float(w) for w in deproject(c[0, 0], c[0, 1], ra_c, dec_c))
        powers = polynomial_powers(sip_order)
        cd = np.asarray(np.stack([c[powers.index((1, 0))], c[powers.index((0, 1))]], axis=-1) / half, np.float64)
        forward = _sip_terms(c, powers, cd, half)
        crpix = ((nx - 1) / 2, (ny - 1) / 2)
        if sip_order == 1:
            return sip_header(crpix, (ra_c, dec_c), cd, {}, {}, {}, {})
        inverse = _inverse_terms(forward, u * half, v * half, half, sip_order + 1)
        return sip_header(crpix, (ra_c, dec_c), cd, *forward, *inverse)


Terms = dict[tuple[int, int], float]


def _sip_terms(c: F64, powers: list[tuple[int, int]], cd: F64, half: float) -> tuple[Terms, Terms]:
    """A and B from the polynomial of the tangent plane: the terms of second and higher order, through CD⁻¹."""
    a: Terms = {}
    b: Terms = {}
    inverse = np.linalg.inv(cd)
    for k, (p, q) in enumerate(powers):
        if p + q >= 2:
            du, dv = inverse @ c[k] / half ** (p + q)
            a[p, q], b[p, q] = float(du), float(dv)
    return a, b


def _inverse_terms(forward: tuple[Terms, Terms], u: F64, v: F64, half: float, order: int) -> tuple[Terms, Terms]:
    """AP and BP: least squares on a grid of the distorted coordinates."""
    a, b = forward
    fu = u + sum(c * u**p * v**q for (p, q), c in a.items())
    fv = v + sum(c * u**p * v**q for (p, q), c in b.items())
    design = design_matrix(fu / half, fv / half, order)
    solution = _solve(design, np.stack([u - fu, v - fv], axis=-1))
    ap: Terms = {}
    bp: Terms = {}
    for k, (p, q) in enumerate(polynomial_powers(order)):
        ap[p, q], bp[p, q] = (float(w) for w in solution[k] / half ** (p + q))
    return ap, bp


def _solve(design: F64, target: F64) -> F64:
    return np.asarray(np.linalg.lstsq(design, target, rcond=None)[0], dtype=np.float64)


def initial_plate(header: str, shape: tuple[int, int]) -> Plate:
    """Return the plate of a header's own WCS."""
    ny, nx = shape
    ra0, dec0 = (float(v) for v in pixel_to_sky(header, (nx - 1) / 2, (ny - 1) / 2))
    scale = pixel_scale_arcsec(header)
    distorted = has_distortion(header)
    plate = Plate(header, shape, ra0, dec0, scale, distorted, 1, np.zeros((3, 2)))
    gx, gy = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    target = plate.plane_arcsec(*pixel_to_sky(header, gx.ravel(), gy.ravel()))
    u, v = plate.base(gx.ravel(), gy.ravel())
    return replace(plate, coefficients=_solve(design_matrix(u, v, 1), target))


@dataclass(frozen=True, slots=True)
class PlateFit:
    """Result of `fit_plate`: rms per axis of the used stars, which were used, the order chosen."""

    plate: Plate
    rms_arcsec: float
    used: npt.NDArray[np.bool_]
    order: int


def fit_plate(plate: Plate, x: F64, y: F64, target: F64, error_pix: F64, max_order: int) -> PlateFit:
    """Fit the polynomial of a plate to matched stars, robustly, its order chosen by the data.

    Orders 1 … `max_order` are fitted by weighted least squares with iterated clipping at 3.5 sigma. A higher order
    is taken when it predicts stars left out of the fit better by 5 % (leave-one-out residuals r / (1 - h), h the
    leverage; Allen 1974) and there are 4 stars per term.

    Parameters
    ----------
    x, y : (n,) pixels;  target : (n, 2) tangent plane [arcsec];  error_pix : (n,) centroid errors [pix].
    """
    u, v = plate.base(x, y)
    variance = (error_pix**2 + _FLOOR_PIX**2) * plate.scale_arcsec**2
    best: PlateFit | None = None
    best_error = np.inf
    for order in range(1, max_order + 1):
        design = design_matrix(u, v, order)
        if order > 1 and len(x) < 4 * design.shape[1]:
            break
        start = best.used if best is not None else np.ones(len(x), bool)
        c, used = _robust_fit(design, target, variance, start)
        residual = target - design @ c
        error = _prediction_error(design, residual, variance, used if best is None else used & best.used)
        if best is None or (error < 0.95 * best_error and used.sum() >= 0.95 * best.used.sum()):
            rms = float(np.sqrt(np.mean(residual[used] ** 2))) if used.any() else float("inf")
            best = PlateFit(replace(plate, order=order, coefficients=c), rms, used, order)
            best_error = error
    assert best is not None
    return best


def _prediction_error(design: F64, residual: F64, variance: F64, used: npt.NDArray[np.bool_]) -> float:
    """Mean squared leave-one-out residual in units of the variance."""
    w = 1.0 / variance[used]
    q, _ = np.linalg.qr(design[used] * np.sqrt(w)[:, None])
    leverage = np.minimum((q**2).sum(axis=1), 0.99)
    return float(np.mean((residual[used] ** 2).sum(axis=1) * w / (1.0 - leverage) ** 2))


def _robust_fit(design: F64, target: F64, variance: F64, start: npt.NDArray[np.bool_]) -> tuple[
        F64, npt.NDArray[np.bool_]]:
    used = start.copy()
    terms = design.shape[1]
    extra = 0.0
    c = np.zeros((terms, 2))
    for _ in range(12):
        w = 1.0 / np.sqrt(variance + extra)
        c = _solve(design[used] * w[used, None], target[used] * w[used, None])
        residual = target - design @ c
        size = np.sqrt((residual**2).sum(axis=1) / 2.0)
        scatter = MAD_TO_SIGMA * float(np.median(np.abs(residual[used])))
        # scatter beyond the stated errors (catalogue, unmodelled distortion) is shared by all stars
        extra = max(0.0, scatter**2 - float(np.median(variance[used])))
        sigma = np.sqrt(np.maximum(variance + extra, (0.5 * scatter) ** 2))
        new = size < 3.5 * sigma
        if new.sum() < terms + 2 or bool((new == used).all()):
            break
        used = new
    return c, used
