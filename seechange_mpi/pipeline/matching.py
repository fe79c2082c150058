"""Match two star lists in a tangent plane: one-to-one nearest neighbours, similarity transformations, chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import betaln, xlog1py, xlogy

F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Similarity:
    """Takes the first list onto the second: mirror, rotate and scale about the origin, then shift.

    Attributes
    ----------
    dx, dy : shift, in the unit of the positions;  angle_deg : rotation, counter-clockwise;  scale : factor.
    mirrored : bool, the first coordinate changes sign before the rotation.
    n_matched : pairs that agree;  log10_chance : decimal logarithm of the expected number of unrelated
        transformations in the whole search that would match as many.
    """

    dx: float = 0.0
    dy: float = 0.0
    angle_deg: float = 0.0
    scale: float = 1.0
    mirrored: bool = False
    n_matched: int = 0
    log10_chance: float = 0.0

    def matrix(self) -> F64:
        """Return the (2, 2) linear part, for row vectors multiplied from the left."""
        c, s = np.cos(np.radians(self.angle_deg)), np.sin(np.radians(self.angle_deg))
        m = self.scale * np.array([[c, s], [-s, c]])
        return np.asarray(np.diag([-1.0, 1.0]) @ m if self.mirrored else m, np.float64)

    def apply(self, xy: F64) -> F64:
        """Return moved positions (n, 2)."""
        return np.asarray(xy @ self.matrix() + np.array([self.dx, self.dy]), np.float64)


def rotate(xy: F64, angle_deg: float) -> F64:
    """Rotate (n, 2) positions counter-clockwise about the origin."""
    return Similarity(angle_deg=angle_deg).apply(xy)


def match_pairs(first: F64, second: F64, radius: float) -> tuple[Index, Index]:
    """Return indices of mutual nearest neighbours within `radius`, one-to-one, in the order of `first`."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    distance, j = cKDTree(second).query(first, distance_upper_bound=radius)
    i = np.flatnonzero(np.isfinite(distance))
    if len(i) == 0:
        return i, i
    _, back = cKDTree(first).query(second[j[i]])
    i = i[back == i]
    return i, j[i]


def log10_binomial_tail(n: int, p: float, at_least: float) -> float:
    """Return log10 of the probability of `at_least` or more successes in `n` trials of probability `p`.

    The sum of the tail is bounded by its first term over (1 - ratio of the next to it); `at_least` may be a
    fraction.
    """
    k = float(at_least)
    if k <= n * p or k <= 0:
        return 0.0
    if k > n:
        k = float(n)
    p = min(max(p, 1e-300), 1 - 1e-12)
    log_choose = -np.log(n + 1.0) - betaln(n - k + 1.0, k + 1.0)
    first = log_choose + xlogy(k, p) + xlog1py(n - k, -p)
    ratio = (n - k) * p / ((k + 1.0) * (1.0 - p))
    return float(min(0.0, (first - np.log1p(-min(ratio, 0.999))) / np.log(10.0)))


def chance_of_match(first: F64, second: F64, radius: float, area: float) -> float:
    """Return the probability that a position of the first list finds one of the second by accident.

    The larger of Poisson's 1 - exp(-density π r²) and the rate that is found with the first list displaced by
    10 to 20 radii, in eight directions: real lists are clustered.
    """
    if len(first) == 0 or len(second) == 0:
        return 0.0
    poisson = 1.0 - float(np.exp(-len(second) / max(area, 1e-30) * np.pi * radius**2))
    tree = cKDTree(second)
    found = 0
    for k in range(8):
        step = (10.0 + 1.25 * k) * radius * np.array([np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)])
        found += int(np.isfinite(tree.query(first + step, distance_upper_bound=radius)[0]).sum())
    return max(poisson, found / (8.0 * len(first)), 1e-12)
