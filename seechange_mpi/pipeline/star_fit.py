"""Robust linear fits to stars, with a part of them outliers: zero points, colour slopes, maps over a section.

Every value is drawn either from the model, with its stated variance and a scatter common to all, or from a broad
distribution about it (variables, blends, false matches). Parameters, scatter and the fraction of outliers are found by
expectation maximisation (Hogg, Bovy & Lang 2010, arXiv:1008.4686, eq. 17).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

OUTLIER_SIGMA = 0.5
"""Width of the distribution of outliers about the model [mag]."""


@dataclass(frozen=True, slots=True)
class StarFit:
    """Result of `fit_stars`.

    Attributes
    ----------
    coefficients : (k,);  covariance : (k, k), scatter included.
    scatter : weighted rms of the used values about the model.
    used : (n,) bool, values that rather belong to the model.
    outlier_fraction : part of the values that do not.
    log_likelihood : of all finite values.
    """

    coefficients: F64
    covariance: F64
    scatter: float
    used: Mask
    outlier_fraction: float
    log_likelihood: float


def fit_stars(design: F64, values: F64, variance: F64, floor: float) -> StarFit:
    """Fit ``values = design @ coefficients``.

    Parameters
    ----------
    design : (n, k), the first column constant 1.
    values : (n,) [mag];  variance : (n,) [mag²]; values that are not finite are left out.
    floor : least scatter common to all [mag].
    """
    finite = np.isfinite(values) & np.isfinite(variance) & np.isfinite(design).all(axis=1)
    a, v, var = design[finite], values[finite], np.maximum(variance[finite], 0.0)
    k = design.shape[1]
    if len(v) < k:
        nothing: F64 = np.full(k, np.nan)
        return StarFit(nothing, np.full((k, k), np.nan), float("nan"), np.zeros(len(values), bool), 0.0, -np.inf)
    c: npt.NDArray[np.floating] = np.zeros(k)
    c[0] = np.median(v)
    spread = MAD_TO_SIGMA * float(np.median(np.abs(v - c[0])))
    common = max(floor**2, spread**2 - float(np.median(var)))
    outliers, belongs = 0.1, np.ones(len(v))
    for _ in range(100):
        before = c.copy(), common
        belongs, _ = _membership(v - a @ c, var + common, outliers)
        w = belongs / (var + common)
        normal = (a * w[:, None]).T @ a
        c = np.linalg.pinv(normal, hermitian=True) @ (a * w[:, None]).T @ v
        r2 = (v - a @ c) ** 2
        # scatter: expected square of the part of a residual that the stated variance does not explain
        shrink = common / (var + common)
        freedom = max(1.0 - k / max(float(belongs.sum()), k + 1.0), 0.1)
        common = max(floor**2, float((belongs * (shrink * var + shrink**2 * r2 / freedom)).sum() / belongs.sum()))
        outliers = float(np.clip(1.0 - belongs.mean(), 0.005, 0.5))
        if np.abs(c - before[0]).max() < 1e-5 and abs(common - before[1]) < 1e-3 * common:
            break
    belongs, log_likelihood = _membership(v - a @ c, var + common, outliers)
    w = belongs / (var + common)
    covariance = np.asarray(np.linalg.pinv((a * w[:, None]).T @ a, hermitian=True), np.float64)
    residual = v - a @ c
    in_model = belongs > 0.5
    if not in_model.any():
        in_model = np.ones(len(v), bool)
    # a fit that scatters more than it says has larger errors
    excess = float((w[in_model] * residual[in_model] ** 2).sum() / max(in_model.sum() - k, 1))
    ww = w[in_model]
    scatter = float(np.sqrt((ww * residual[in_model] ** 2).sum() / ww.sum()))
    used = np.zeros(len(values), bool)
    used[np.flatnonzero(finite)[in_model]] = True
    return StarFit(np.asarray(c, np.float64), covariance * max(excess, 1.0), scatter, used, outliers, log_likelihood)


def _membership(residual: F64, variance: F64, outliers: float) -> tuple[F64, float]:
    """Probability of belonging to the model, and the log likelihood."""
    wide = variance + OUTLIER_SIGMA**2
    inside = np.log1p(-outliers) - 0.5 * (residual**2 / variance + np.log(variance))
    outside = np.log(outliers) - 0.5 * (residual**2 / wide + np.log(wide))
    total = np.logaddexp(inside, outside)
    return np.exp(inside - total), float(total.sum())


MAP_TERMS = {0: 0, 1: 2, 2: 5}
"""Degree of a map -> number of its terms."""


def map_design(x: F64, y: F64, shape: tuple[int, int], terms: int) -> F64:
    """Return (n, terms) the terms of a map over a section, each of zero mean over it: u, v, u², uv, v², where u and v
    run from −1 to 1 across it; Legendre polynomials for the squares."""
    u = 2.0 * np.asarray(x, float) / max(shape[1] - 1, 1) - 1.0
    v = 2.0 * np.asarray(y, float) / max(shape[0] - 1, 1) - 1.0
    columns = [u, v, 1.5 * u**2 - 0.5, u * v, 1.5 * v**2 - 0.5]
    return np.stack(columns[:terms], axis=-1) if terms else np.zeros((len(u), 0))
