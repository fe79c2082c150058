"""Mean positions of many objects at once: clipped, weighted by S/N, with their covariance.

Everything happens in the tangent plane of each object's first mean, which is the mean of unit vectors: right
ascension 0 and the poles are places like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.pipeline.wcs_tools import unit_vectors

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_PRIOR = 2.0
"""Degrees of freedom that the stated errors count for beside the scatter that is seen."""


@dataclass(slots=True)
class MeanPositions:
    """Result of `mean_positions`, one entry per object.

    Attributes
    ----------
    ra, dec : (m,) float64 [deg], ra in [0, 360); NaN where no measurement is left.
    dra, ddec : (m,) float64 [deg], standard errors on the sky (dra times cos dec), east and north at the position.
    cov : (m,) float64 [deg²], covariance of the two.
    n : (m,) int64, measurements used.
    used : (n,) bool, per measurement.
    """

    ra: F64
    dec: F64
    dra: F64
    ddec: F64
    cov: F64
    n: I64
    used: npt.NDArray[np.bool_]


def mean_positions(group: npt.ArrayLike, ra: npt.ArrayLike, dec: npt.ArrayLike, ra_err: npt.ArrayLike,
                   dec_err: npt.ArrayLike, snr: npt.ArrayLike, n_groups: int, *, sncut: float = 3.0,
                   sigma_clip: float = 3.0, weight_power: float = 1.0, rounds: int = 10) -> MeanPositions:
    """Return the mean position of each group of measurements.

    Measurements of |S/N| below `sncut` are left out. In every round those that lie farther than `sigma_clip` σ from
    the centre on either axis are left out, σ² being the square of their own error plus the scatter that the whole
    group shows beyond its errors; the centre is the median in the first round, the mean with weights w = |S/N|^p after.
    The covariance of the mean is (2 C_e + (n − 1) C_s) / (2 + n − 1): C_e follows from the stated errors, Σ w² σ² /
    (Σ w)², C_s from the scatter, Σ w² r rᵀ / (Σ w)² over its expectation for equal errors, 1 + Σ w² / (Σ w)² −
    2 Σ w³ / (Σ w Σ w²). A single measurement has its own errors.

    Parameters
    ----------
    group : (n,) int, which object each measurement is of, 0 … `n_groups` − 1.
    ra, dec : (n,) [deg].
    ra_err, dec_err : (n,) [deg], on the sky (ra_err times cos dec).
    snr : (n,) signed or not.
    sigma_clip, weight_power, rounds : k, p, most rounds.
    """
    g = np.asarray(group, np.int64)
    s = np.abs(np.asarray(snr, float))
    vectors = unit_vectors(ra, dec).reshape(-1, 3)
    errors = [np.asarray(e, float) for e in (ra_err, dec_err)]
    used = (s >= sncut) & np.isfinite(vectors).all(axis=1) & np.isfinite(errors[0]) & np.isfinite(errors[1])
    weight = np.where(used, np.where(s > 0, s, 1.0) ** weight_power, 0.0)
    vectors[~used] = 0.0
    first: F64 = np.stack([np.bincount(g, vectors[:, k] * weight, n_groups) for k in range(3)], axis=1).astype(float)
    east, north, centre = _axes(first)
    x, y = _plane(vectors, east[g], north[g], centre[g], used)
    own = _errors(np.asarray(ra, float), vectors, errors, east[g], north[g])
    cx, cy = _median(g, x, used, n_groups), _median(g, y, used, n_groups)
    # the medians of all measurements: scales that shrink with every round would clip on and on
    reach = [sigma_clip * np.sqrt(var + _extra(g, value - middle[g], var, used, n_groups)[g]) + 1e-15
             for value, middle, var in ((x, cx, own[0]), (y, cy, own[1]))]
    chosen = used
    for _ in range(rounds):
        near = chosen & (np.abs(x - cx[g]) <= reach[0]) & (np.abs(y - cy[g]) <= reach[1])
        # a group that would lose everything stays as it is
        near |= used & (np.bincount(g, near, n_groups) == 0)[g]
        done = bool((near == used).all())
        used = near
        w = weight * used
        total = np.maximum(np.bincount(g, w, n_groups), 1e-100)
        cx, cy = np.bincount(g, w * x, n_groups) / total, np.bincount(g, w * y, n_groups) / total
        if done:
            break
    n = np.bincount(g, used, n_groups).astype(np.int64)
    xx, yy, xy = _covariance(g, x - cx[g], y - cy[g], w, own, n, total)
    out_ra, out_dec = _to_sky(cx, cy, east, north, centre)
    lost = n == 0
    for values in (out_ra, out_dec, xx, yy, xy):
        values[lost] = np.nan
    return MeanPositions(out_ra, out_dec, np.degrees(np.sqrt(xx)), np.degrees(np.sqrt(yy)),
                         xy * np.degrees(1.0) ** 2, n, used)


def _axes(vectors: F64) -> tuple[F64, F64, F64]:
    """East, north and the direction itself of (m, 3) vectors; at a pole, east is that of ra 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    centre = np.where(length > 0, vectors / np.where(length > 0, length, 1.0), [1.0, 0.0, 0.0])
    ra = np.arctan2(centre[:, 1], centre[:, 0])
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=1)
    return east, np.cross(centre, east), centre


def _plane(vectors: F64, east: F64, north: F64, centre: F64, used: npt.NDArray[np.bool_]) -> tuple[F64, F64]:
    """Gnomonic coordinates [rad] of unit vectors."""
    depth = np.where(used, (vectors * centre).sum(axis=1), 1.0)
    return (vectors * east).sum(axis=1) / depth, (vectors * north).sum(axis=1) / depth


def _to_sky(x: F64, y: F64, east: F64, north: F64, centre: F64) -> tuple[F64, F64]:
    v = centre + x[:, None] * east + y[:, None] * north
    return (np.mod(np.degrees(np.arctan2(v[:, 1], v[:, 0])), 360.0),
            np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1]))))


def _errors(ra: F64, vectors: F64, errors: list[F64], east: F64, north: F64) -> tuple[F64, F64, F64]:
    """Variances and covariance [rad²] of the measurements along the axes of the plane.

    Near a pole the measurements' own east and north are turned against those of the plane.
    """
    a = np.radians(ra)
    own_east = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], axis=1)
    own_north = np.cross(vectors, own_east)
    va, vd = (np.radians(e) ** 2 for e in errors)
    ee, en = (own_east * east).sum(axis=1), (own_east * north).sum(axis=1)
    ne, nn = (own_north * east).sum(axis=1), (own_north * north).sum(axis=1)
    return ee**2 * va + ne**2 * vd, en**2 * va + nn**2 * vd, ee * en * va + ne * nn * vd


def _median(g: I64, values: F64, used: npt.NDArray[np.bool_], m: int) -> F64:
    """Median of each group's used values; 0 for groups without any."""
    out = np.zeros(m)
    index = np.flatnonzero(used)
    if index.size == 0:
        return out
    index = index[np.lexsort((values[index], g[index]))]
    sorted_groups, sorted_values = g[index], values[index]
    names, start, count = np.unique(sorted_groups, return_index=True, return_counts=True)
    out[names] = 0.5 * (sorted_values[start + (count - 1) // 2] + sorted_values[start + count // 2])
    return out


def _extra(g: I64, residual: F64, var: F64, used: npt.NDArray[np.bool_], m: int) -> F64:
    """Variance of each group beyond the stated one, from the median of |residuals|, which is low for small groups by
    (n − 0.8) / n (Croux & Rousseeuw 1992, COMPSTAT 1, 411)."""
    n = np.maximum(np.bincount(g, used, m), 1.0)
    spread = MAD_TO_SIGMA * _median(g, np.abs(residual), used, m) * n / (n - 0.8)
    return np.maximum(spread**2 - _median(g, var, used, m), 0.0)


def _covariance(g: I64, x: F64, y: F64, w: F64, own: tuple[F64, F64, F64], n: I64, total: F64) -> tuple[F64, F64, F64]:
    """Covariance of the means [rad²]: xx, yy, xy; stated errors and scatter together."""
    m = len(n)
    squares = np.bincount(g, w**2, m)
    cubes = np.bincount(g, w**3, m) / np.maximum(total * squares, 1e-300)
    seen = np.where(n > 1, n - 1.0, 0.0)
    loss = np.where(n > 1, 1.0 + squares / total**2 - 2.0 * cubes, 1.0)
    out = []
    for product, var in ((x * x, own[0]), (y * y, own[1]), (x * y, own[2])):
        stated = np.bincount(g, np.where(w > 0, w**2 * var, 0.0), m) / total**2
        scatter = np.bincount(g, w**2 * product, m) / total**2 / np.maximum(loss, 1e-12)
        out.append((_PRIOR * stated + seen * scatter) / (_PRIOR + seen))
    return out[0], out[1], out[2]
