"""Fit a plate to matched stars: robust, weighted with the errors of both lists, its order chosen by the data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.pipeline.plate import Plate
from seechange_mpi.pipeline.wcs_tools import design_matrix, polynomial_powers

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_TUKEY = 4.7
_CLIP = 3.5
_LEAST_KEPT = 0.85
"""An order that keeps a smaller part of the stars than order 1 does bends to a few of them."""


@dataclass(frozen=True, slots=True)
class MatchedStars:
    """Matched stars: base coordinates, places in the tangent plane, and variances of the two sides.

    Attributes
    ----------
    u, v : (n,) base coordinates of the sources;  target : (n, 2) catalogue places [arcsec].
    source_var, star_var : (n, 2) variances of the sources and of the catalogue in xi and eta [arcsec²].
    """

    u: F64
    v: F64
    target: F64
    source_var: F64
    star_var: F64


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Variance of a residual: (factor² × the source's) + the star's + floor²."""

    floor_arcsec: float
    factor: float

    def variance(self, m: MatchedStars) -> F64:
        """Return (n, 2) variances [arcsec²]."""
        return np.asarray(self.factor**2 * m.source_var + m.star_var + self.floor_arcsec**2)


@dataclass(frozen=True, slots=True)
class PlateFit:
    """Result of `fit_plate`.

    Attributes
    ----------
    plate : Plate;  residual : (n, 2) catalogue minus plate [arcsec];  used : (n,) bool, within 3.5 sigma.
    weight : (n,) robust weights 0 … 1;  errors : ErrorModel;  variance : (n, 2) by that model [arcsec²].
    covariance : two (n_terms, n_terms) of the coefficients [arcsec²].
    chi2_dof : float, of the used stars.
    """

    plate: Plate
    residual: F64
    used: Mask
    weight: F64
    errors: ErrorModel
    variance: F64
    covariance: tuple[F64, F64]
    chi2_dof: float

    @property
    def rms_arcsec(self) -> float:
        """Rms per axis of the used stars [arcsec]."""
        return float(np.sqrt(np.mean(self.residual[self.used] ** 2))) if self.used.any() else float("inf")

    def error_arcsec(self, x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
        """Return the radial error of the solution at pixels [arcsec], both axes added in squares."""
        d = design_matrix(*self.plate.base(x, y), self.plate.order)
        return np.asarray(np.sqrt(sum(np.einsum("ij,jk,ik->i", d, c, d) for c in self.covariance)), np.float64)


def fit_plate(plate: Plate, m: MatchedStars, max_order: int, *, floor_arcsec: float,
              stars_per_term: float = 2.0) -> PlateFit:
    """Fit the polynomial of a plate to matched stars.

    The highest order with `stars_per_term` stars for each term is fitted by iteratively re-weighted least squares
    (Tukey's biweight of the distance in units of its error, both axes together). The floor of the errors and the
    factor of the source errors follow from the likelihood of the residuals. With the errors so found every order is
    fitted, and that of the least Bayesian information criterion (Schwarz 1978) taken, with Tukey's bounded loss for
    chi², so that no few outliers call for a higher order; orders that explain a few stars perfectly and give up the
    others are passed over.

    Parameters
    ----------
    max_order : int
        Highest order tried.
    floor_arcsec : float
        Errors of centroids that no photon noise explains, as expected beforehand.
    """
    n = len(m.u)
    top = 1
    while top < max_order and n >= stars_per_term * len(polynomial_powers(top + 1)):
        top += 1
    kept = _Trial.of(plate, m, 1, floor_arcsec).kept if top > 1 else 0.0
    trial = _Trial.of(plate, m, top, floor_arcsec)
    while top > 1 and trial.kept < _LEAST_KEPT * kept:
        top -= 1
        trial = _Trial.of(plate, m, top, floor_arcsec)
    design, weight, errors = trial.design, trial.weight, trial.errors
    variance = errors.variance(m)
    best_order, best = top, np.inf
    for order in range(1, top + 1):
        part = design[:, : len(polynomial_powers(order))]
        loss = _bounded_loss(part, m.target - part @ plate.raised(order), variance, weight)
        criterion = loss + 2 * part.shape[1] * np.log(2.0 * max(float(weight.sum()), 1.0))
        if criterion < best - 1e-9:
            best_order, best = order, criterion
    if best_order < top:
        trial = _Trial.of(plate, m, best_order, floor_arcsec)
    residual = m.target - trial.design @ trial.coefficients
    return _result(replace(plate, order=best_order, coefficients=trial.coefficients), trial.design, residual, m,
                   trial.weight, trial.errors)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A robust fit of one order."""

    design: F64
    coefficients: F64
    weight: F64
    errors: ErrorModel
    kept: float
    """Stars within 3.5 sigma."""

    @staticmethod
    def of(plate: Plate, m: MatchedStars, order: int, floor_arcsec: float) -> _Trial:
        design = design_matrix(m.u, m.v, order)
        before = plate.raised(order)
        start = m.target - design @ before
        c, weight, errors = _robust(design, start, m, floor_arcsec)
        size2 = ((start - design @ c) ** 2 / errors.variance(m)).sum(axis=1)
        return _Trial(design, before + c, weight, errors, float((size2 < 2.0 * _CLIP**2).sum()))


def _bounded_loss(design: F64, target: F64, variance: F64, weight: F64) -> float:
    """Least sum of Tukey's loss: chi² for small residuals, 2 c² / 3 for outliers."""
    loss = np.inf
    for _ in range(5):
        r = target - design @ _solve(design, target, weight[:, None] / variance)
        inside = np.maximum(1.0 - (r**2 / variance).sum(axis=1) / (2.0 * _TUKEY**2), 0.0)
        loss = min(loss, float((2.0 * _TUKEY**2 / 3.0 * (1.0 - inside**3)).sum()))
        weight = inside**2
        if weight.sum() < design.shape[1] + 1:
            break
    return loss


def _result(plate: Plate, design: F64, residual: F64, m: MatchedStars, weight: F64, errors: ErrorModel) -> PlateFit:
    variance = errors.variance(m)
    used = (residual**2 / variance).sum(axis=1) < 2.0 * _CLIP**2
    chi2 = float((residual[used] ** 2 / variance[used]).sum())
    dof = max(2 * int(used.sum()) - 2 * design.shape[1], 1)
    inflate = max(1.0, chi2 / dof)
    covariance = tuple(inflate * np.linalg.pinv((design * (weight / variance[:, a])[:, None]).T @ design)
                       for a in (0, 1))
    return PlateFit(plate, residual, used, weight, errors, variance, (covariance[0], covariance[1]), chi2 / dof)


def _solve(design: F64, target: F64, weight: F64) -> F64:
    """Weighted least squares of both axes, (n, k) and (n, 2) -> (k, 2)."""
    out = np.empty((design.shape[1], 2))
    for a in (0, 1):
        weighted = design * weight[:, a, None]
        normal = weighted.T @ design
        normal[np.diag_indices_from(normal)] *= 1.0 + 1e-12
        try:
            out[:, a] = np.linalg.solve(normal, weighted.T @ target[:, a])
        except np.linalg.LinAlgError:
            out[:, a] = np.linalg.lstsq(normal, weighted.T @ target[:, a], rcond=None)[0]
    return out


def _robust(design: F64, target: F64, m: MatchedStars, floor: float) -> tuple[F64, F64, ErrorModel]:
    """Return coefficients, robust weights (n,), and the error model."""
    terms = design.shape[1]
    weight = np.ones(len(target))
    plain = ErrorModel(floor, 1.0).variance(m)
    c = np.zeros((terms, 2))
    errors = ErrorModel(floor, 1.0)
    for step in range(10):
        variance = errors.variance(m)
        c = _solve(design, target, weight[:, None] / variance)
        r = target - design @ c
        if step < 3:
            # before the errors are known: enough of a floor that half of the stars are within their errors
            excess = np.median(r**2) * MAD_TO_SIGMA**2 - np.median(plain)
            errors = ErrorModel(float(np.sqrt(max(excess, 0.0) + floor**2)), 1.0)
        elif step in (3, 6):
            errors = _likely_errors(r, m, weight, floor, terms)
        size2 = (r**2 / errors.variance(m)).sum(axis=1) / (2.0 * _TUKEY**2)
        new = np.maximum(1.0 - size2, 0.0) ** 2
        if new.sum() < terms + 1:
            break
        change = float(np.abs(new - weight).max())
        weight = new
        if step > 6 and change < 0.01:
            break
    return c, weight, errors


def _likely_errors(r: F64, m: MatchedStars, weight: F64, floor: float, terms: int) -> ErrorModel:
    """Floor and factor of the greatest likelihood, on a grid, with a weak prior about the expected floor and 1."""
    inside = np.flatnonzero(weight > 0.05)
    inside = inside[:: len(inside) // 500 + 1]
    w = weight[inside, None]
    dof = max(1.0 - terms / max(float(weight.sum()), terms + 1.0), 0.2)
    # biweights shrink the mean square of a Gaussian by 0.83
    r2 = r[inside] ** 2 / dof / 0.83 * w
    source, star = m.source_var[inside], m.star_var[inside]
    best, answer = np.inf, ErrorModel(floor, 1.0)
    top = max(float(np.sqrt(np.median(r[inside] ** 2))) * 2.0, 2.0 * floor)
    floors = np.geomspace(min(0.1 * floor, 0.05 * top), top, 16)
    for factor in (0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0):
        base = factor**2 * source + star
        for f in floors:
            variance = base + f**2
            loss = float((w * np.log(variance) + r2 / variance).sum())
            loss += (np.log(f / floor) / 1.5) ** 2 + (np.log(factor) / 0.3) ** 2
            if loss < best:
                best, answer = loss, ErrorModel(float(f), factor)
    return answer
