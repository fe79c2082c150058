"""Find the similarity transformation between two star lists from pairs of stars.

Every pair of sources is compared with every pair of catalogue stars of about the same length and direction; each
agreement proposes a whole transformation (shift, rotation, scale). True ones pile up in one place, false ones spread
over the search. The heap that brings most sources onto stars is judged by how often chance does as well (compare
Lang et al. 2010, AJ 139, 1782, section 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from seechange_mpi.pipeline.matching import Similarity, chance_of_match, log10_binomial_tail, match_pairs

F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

LEVELS = ((40, 80), (80, 160), (300, 100), (160, 350))
"""How many of the brightest sources and stars are compared, in turn, until the answer is clear."""
_MOST_PAIRS = 900
_LEAST_HEAP = 3
_CLEAR = -15.0


@dataclass(frozen=True, slots=True)
class Search:
    """How far the guess may be wrong.

    Attributes
    ----------
    max_shift : largest distance of the centres;  max_angle_deg : largest rotation;  max_scale : largest relative
        change of scale;  tolerance : scatter of true pairs about a similarity (distortion included), all in the unit
        of the positions.
    extent : half size of the field along its axes, about the origin.
    """

    max_shift: float
    max_angle_deg: float
    max_scale: float
    tolerance: float
    extent: tuple[float, float]

    @property
    def reach(self) -> float:
        """Root mean square distance from the centre of positions in the field."""
        return float(np.hypot(*self.extent) / np.sqrt(3.0))

    @property
    def area(self) -> float:
        """Area of the field."""
        return 4.0 * self.extent[0] * self.extent[1]

    def log10_trials(self) -> float:
        """Return log10 of how many transformations of the search differ by more than the tolerance."""
        t = self.tolerance
        angles = 1.0 + 2.0 * np.radians(self.max_angle_deg) * self.reach / t
        scales = 1.0 + 2.0 * self.max_scale * self.reach / t
        return float(np.log10((1.0 + np.pi * (self.max_shift / t) ** 2) * angles * scales))


def find_similarity(first: F64, second: F64, search: Search, *, mirrored: bool = False,
                    levels: int = len(LEVELS)) -> Similarity:
    """Return the best transformation of the first list onto the second, with its likelihood against chance.

    Parameters
    ----------
    first, second : (n, 2), (m, 2)
        Positions about the field's centre; brightest first makes the answer quick.
    search : Search
    mirrored : bool
        The first list is seen in a mirror.
    levels : int
        How many of `LEVELS` are tried.
    """
    best = Similarity(mirrored=mirrored)
    if len(first) < 3 or len(second) < 3:
        return best
    seen: set[tuple[int, int]] = set()
    for n, m in LEVELS[:levels]:
        size = min(n, len(first)), min(m, len(second))
        if size in seen:
            continue
        seen.add(size)
        for candidate in _proposals(first[:n], second[:m], search, mirrored=mirrored):
            found = _settle(candidate, first[:400], second[:700], search)
            if found.log10_chance < best.log10_chance:
                best = found
        if best.log10_chance < _CLEAR:
            break
    return best


def _complex(xy: F64) -> npt.NDArray[np.complex128]:
    return np.asarray(xy[:, 0] + 1j * xy[:, 1])


def _pairs(z: npt.NDArray[np.complex128], shortest: float) -> tuple[Index, Index]:
    """Indices of at most `_MOST_PAIRS` pairs farther apart than `shortest`: half of them the brightest, half spread."""
    i, j = np.triu_indices(len(z), 1)
    keep = np.abs(z[j] - z[i]) > shortest
    i, j = i[keep], j[keep]
    if len(i) > _MOST_PAIRS:
        order = np.argsort(i + j, kind="stable")
        half = _MOST_PAIRS // 2
        spread = np.linspace(half, len(order) - 1, half).astype(int)
        order = np.r_[order[:half], order[spread]]
        i, j = i[order], j[order]
    return i, j


def _proposals(first: F64, second: F64, search: Search, *, mirrored: bool) -> list[Similarity]:
    """Transformations where agreements of pairs pile up, highest heap first; at most six."""
    a = _complex(first * np.array([-1.0, 1.0])) if mirrored else _complex(first)
    b = _complex(second)
    shortest = 0.5 * max(search.extent)
    i1, i2 = _pairs(a, shortest)
    j1, j2 = np.triu_indices(len(b), 1)
    keep = np.abs(b[j2] - b[j1]) > 0.9 * shortest
    j1, j2 = np.r_[j1[keep], j2[keep]], np.r_[j2[keep], j1[keep]]
    if len(i1) == 0 or len(j1) == 0:
        return []
    slack = 2.0 * search.tolerance / shortest
    length, angle = search.max_scale + slack, np.radians(search.max_angle_deg) + slack
    va, vb = np.log(a[i2] - a[i1]), np.log(b[j2] - b[j1])
    turn = 2.0 * np.pi
    near_edge = np.abs(vb.imag) > np.pi - angle
    lengths = np.r_[vb.real, vb.real[near_edge]] / length
    angles = np.r_[vb.imag, vb.imag[near_edge] - turn * np.sign(vb.imag[near_edge])] / angle
    star = np.r_[np.arange(len(j1)), np.flatnonzero(near_edge)]
    tree = cKDTree(np.stack([lengths, angles], -1))
    found = cKDTree(np.stack([va.real / length, va.imag / angle], -1)).sparse_distance_matrix(
        tree, 1.0, p=np.inf, output_type="ndarray")
    if len(found) == 0:
        return []
    p, q = found["i"], star[found["j"]]
    factor = (b[j2[q]] - b[j1[q]]) / (a[i2[p]] - a[i1[p]])
    shift = 0.5 * (b[j1[q]] + b[j2[q]]) - factor * 0.5 * (a[i1[p]] + a[i2[p]])
    log_factor = np.log(factor)
    good = np.abs(shift) <= search.max_shift + 2.0 * search.tolerance
    shift, log_factor = shift[good], log_factor[good]
    if len(shift) == 0:
        return []
    return _heaps(shift, log_factor, search, mirrored)


def _heaps(shift: npt.NDArray[np.complex128], log_factor: npt.NDArray[np.complex128], search: Search,
           mirrored: bool) -> list[Similarity]:
    points = np.stack([shift.real, shift.imag, log_factor.real * search.reach, log_factor.imag * search.reach], -1)
    points /= 2.0 * search.tolerance
    if len(points) > 20_000:
        points = points[:: len(points) // 20_000 + 1]
    tree = cKDTree(points)
    height = tree.query_ball_point(points, 1.0, return_length=True)
    out: list[Similarity] = []
    free = np.ones(len(points), bool)
    for _ in range(6):
        if not free.any():
            break
        top = int(np.argmax(np.where(free, height, -1)))
        if height[top] < _LEAST_HEAP:
            break
        members = np.asarray(tree.query_ball_point(points[top], 1.0), int)
        free[tree.query_ball_point(points[top], 2.0)] = False
        centre = np.median(points[members], axis=0) * 2.0 * search.tolerance
        out.append(Similarity(float(centre[0]), float(centre[1]), float(np.degrees(centre[3] / search.reach)),
                              float(np.exp(centre[2] / search.reach)), mirrored, len(members)))
    return out


def _settle(start: Similarity, first: F64, second: F64, search: Search) -> Similarity:
    """Refine by least squares on the matched stars, and judge."""
    now = start
    best = start
    for radius in (3.0, 2.0, 1.5, 1.5):
        i, j = match_pairs(now.apply(first), second, radius * search.tolerance)
        if len(i) < 3:
            break
        now = _least_squares(first[i], second[j], now.mirrored)
    else:
        outside = (np.hypot(now.dx, now.dy) > 1.2 * search.max_shift + 2.0 * search.tolerance
                   or abs(np.log(now.scale)) > 1.2 * search.max_scale + 2.0 * search.tolerance / search.reach
                   or abs(np.radians(now.angle_deg)) > 1.2 * np.radians(search.max_angle_deg)
                   + 2.0 * search.tolerance / search.reach)
        if not outside:
            best = judge(now, first, second, search)
    return best if best is not start else replace(start, log10_chance=0.0)


def _least_squares(first: F64, second: F64, mirrored: bool) -> Similarity:
    """Similarity by least squares, repeated once without pairs beyond three times the median residual."""
    a = _complex(first * np.array([-1.0, 1.0])) if mirrored else _complex(first)
    b = _complex(second)
    keep = np.ones(len(a), bool)
    for _ in range(2):
        ma, mb = a[keep].mean(), b[keep].mean()
        da, db = a[keep] - ma, b[keep] - mb
        factor = (np.conj(da) @ db) / max(float((np.abs(da) ** 2).sum()), 1e-30)
        shift = mb - factor * ma
        size = np.abs(b - factor * a - shift)
        keep = size <= 3.0 * max(float(np.median(size)), 1e-9)
        if keep.sum() < 3:
            break
    return Similarity(float(shift.real), float(shift.imag), float(np.degrees(np.angle(factor))),
                      float(abs(factor)), mirrored)


def judge(found: Similarity, first: F64, second: F64, search: Search) -> Similarity:
    """Return the transformation with its matches counted and weighed against chance.

    Only sources and stars inside the field common to both count; two of the matches are owed to the four free
    parameters.
    """
    moved = found.apply(first)
    radius = 1.5 * search.tolerance
    half = np.array(search.extent) * 1.02 + radius
    seen = second[(np.abs(second - np.array([found.dx, found.dy])) <= half + np.abs(
        np.radians(found.angle_deg)) * half[::-1]).all(axis=1)]
    i, _ = match_pairs(moved, seen, radius)
    p = chance_of_match(moved, seen, radius, search.area)
    # one-to-one: neither list can match more often than the shorter one has members
    n = min(len(moved), len(seen))
    p = min(1.0, p * len(moved) / max(n, 1))
    log10 = log10_binomial_tail(n, p, len(i) - 2) + search.log10_trials()
    return replace(found, n_matched=len(i), log10_chance=min(0.0, log10))
