"""Which position belongs to which: one-to-one within a radius, by separation or by likelihood."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

F64 = npt.NDArray[np.float64]


def unit_vectors(ra: npt.ArrayLike, dec: npt.ArrayLike) -> F64:
    """Unit vectors (n, 3) of positions [deg]."""
    a, d = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1).reshape(-1, 3)


def neighbours(first: F64, second: F64, radius_arcsec: float
               ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], F64]:
    """Find all pairs of unit vectors within a radius: by `first`, then by distance (then by `second`).

    Returns
    -------
    indices into `first` and `second`, and distances [arcsec].
    """
    if len(first) == 0 or len(second) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # a little more, so that rounding loses none at the very edge; distances then decide
    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2) + 1e-15
    pairs = cKDTree(first).sparse_distance_matrix(cKDTree(second), chord, output_type="ndarray")
    angle = np.rad2deg(2 * np.arcsin(np.clip(pairs["v"] / 2, 0, 1))) * 3600
    order = np.lexsort((pairs["j"], angle, pairs["i"]))
    order = order[angle[order] <= radius_arcsec]
    return pairs["i"][order].astype(np.int64), pairs["j"][order].astype(np.int64), angle[order]


def assign(first: F64, second: F64, radius_arcsec: float, errors: tuple[F64, F64] | None = None
           ) -> npt.NDArray[np.int64]:
    """Match unit vectors one-to-one within a radius, as many pairs as possible at the least summed cost.

    Parameters
    ----------
    errors : of ra (on the sky) and dec [deg] of both, (n, 2) and (m, 2). With them the cost of a pair is that of
        `deviances`: the assignment is the likeliest. Without, it is the squared separation.

    Returns
    -------
    (n,) index into `second` of each of `first`, -1 = none.
    """
    out = np.full(len(first), -1, dtype=np.int64)
    if len(first) == 0 or len(second) == 0:
        return out
    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)
    pairs = cKDTree(first).sparse_distance_matrix(cKDTree(second), chord, output_type="coo_matrix")
    if pairs.nnz == 0:
        return out
    i, j, costs = pairs.row, pairs.col, pairs.data**2
    n, m = len(first), len(second)
    alone = (np.bincount(i, minlength=n)[i] == 1) & (np.bincount(j, minlength=m)[j] == 1)
    out[i[alone]] = j[alone]
    i, j, costs = i[~alone], j[~alone], costs[~alone]
    if len(i) == 0:
        return out
    if errors is not None:
        costs = deviances(first[i], second[j], errors[0][i], errors[1][j])
        costs -= costs.min()  # every assignment that is compared has the same number of pairs
    graph = coo_matrix((np.ones(len(i)), (i, j + n)), shape=(n + m, n + m))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label[i], kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(label[i][order]) > 0])
    for part in np.split(order, starts[1:]):
        rows, r = np.unique(i[part], return_inverse=True)
        cols, c = np.unique(j[part], return_inverse=True)
        # a pair out of reach costs more than all pairs within reach together
        beyond = 10.0 * (float(costs[part].max()) or 1.0) * (len(part) + 1)
        cost = np.full((len(rows), len(cols)), beyond)
        cost[r, c] = costs[part]
        a, b = linear_sum_assignment(cost)
        near = cost[a, b] < beyond
        out[rows[a[near]]] = cols[b[near]]
    return out


def deviances(first: F64, second: F64, errors_first: F64, errors_second: F64) -> F64:
    """Return −2 ln likelihood, but for a constant, of pairs of unit vectors being one source.

    It is r² + 2 ln(σ_ra σ_dec): r is the separation over the combined errors σ (the dimensionless radius of de Ruiter,
    Willis & Arp 1977, A&AS 28, 211), and the second term that of their likelihood ratio at equal densities. Without it
    badly known objects would take what belongs to well-known ones.

    Parameters
    ----------
    first, second : (n, 3).
    errors_first, errors_second : (n, 2), of ra (on the sky) and dec [deg].
    """
    angle = np.arctan2(first[:, 1], first[:, 0])
    east = np.stack([-np.sin(angle), np.cos(angle), np.zeros(len(angle))], axis=1)
    north = np.cross(first, east)
    away = np.degrees(np.stack([np.sum((second - first) * axis, axis=1) for axis in (east, north)], axis=1))
    variance = errors_first**2 + errors_second**2
    return np.asarray(np.sum(away**2 / variance + np.log(variance), axis=1))


def with_floor(errors: F64, floor_mas: float, radius_arcsec: float) -> F64:
    """Errors [deg] with that of the astrometry; unknown ones, and those beyond the radius, are the radius."""
    floor, most = floor_mas / 3.6e6, radius_arcsec / 3600
    known = np.where(np.isfinite(errors) & (errors > 0), errors, most)
    return np.asarray(np.minimum(np.hypot(known, floor), np.hypot(most, floor)))
