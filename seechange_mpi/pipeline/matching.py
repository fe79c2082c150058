"""Match two star lists in a tangent plane: shift and rotation by voting, then one-to-one nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from scipy.spatial import cKDTree

F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Offset:
    """Rigid motion that takes the first list onto the second: rotate about the origin, then shift.

    Attributes
    ----------
    dx, dy : shift, in the unit of the positions;  angle_deg : rotation, counter-clockwise.
    votes : float, pairs in the winning cell;  expected : float, pairs there by chance.
    """

    dx: float
    dy: float
    angle_deg: float
    votes: float
    expected: float

    @property
    def significance(self) -> float:
        """Excess of votes over chance in units of its Poisson error."""
        return (self.votes - self.expected) / float(np.sqrt(max(self.expected, 0.25)))

    def apply(self, xy: F64) -> F64:
        """Return moved positions (n, 2)."""
        return np.asarray(rotate(xy, self.angle_deg) + np.array([self.dx, self.dy]), dtype=np.float64)


def rotate(xy: F64, angle_deg: float) -> F64:
    """Rotate (n, 2) positions counter-clockwise about the origin."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.asarray(xy @ np.array([[c, s], [-s, c]]), dtype=np.float64)


def find_offset(first: F64, second: F64, *, max_shift: float, cell: float, max_angle_deg: float = 0.0) -> Offset:
    """Find the shift and small rotation shared by most pairs of the two lists (2-D histogram of differences).

    Parameters
    ----------
    first, second : (n, 2), (m, 2) positions, brightest first makes the vote clearest.
    max_shift : largest shift along an axis;  cell : size of a histogram cell, about the scatter of true pairs.
    max_angle_deg : largest rotation tried; the step moves the outermost star by one cell.
    """
    reach = float(np.max(np.hypot(first[:, 0], first[:, 1]), initial=cell))
    step = np.degrees(1.5 * cell / reach)
    count = int(np.ceil(max_angle_deg / step)) if max_angle_deg > 0 else 0
    angles = sorted((k * step for k in range(-count, count + 1)), key=lambda a: (abs(a), a))
    n = max(3, 2 * int(np.ceil(max_shift / cell)) + 1)
    edges = (np.arange(n + 1) - n / 2) * cell
    tree = cKDTree(second)
    best = Offset(0.0, 0.0, 0.0, 0.0, 0.0)
    for angle in angles:
        moved = rotate(first, angle)
        near = tree.query_ball_point(moved, np.sqrt(2) * (max_shift + cell))
        lengths = np.array([len(v) for v in near])
        if lengths.sum() == 0:
            continue
        i = np.repeat(np.arange(len(moved)), lengths)
        j = np.concatenate([np.asarray(v, int) for v in near if v])
        d = second[j] - moved[i]
        votes = np.histogram2d(d[:, 0], d[:, 1], bins=(edges, edges))[0]
        summed = scipy.ndimage.uniform_filter(votes, 3, mode="constant") * 9.0
        peak = float(summed.max())
        if peak > best.votes + 0.5:
            k = np.unravel_index(int(np.argmax(summed)), summed.shape)
            centre = np.array([(edges[k[0]] + edges[k[0] + 1]) / 2, (edges[k[1]] + edges[k[1] + 1]) / 2])
            member = np.all(np.abs(d - centre) <= 1.5 * cell, axis=1)
            shift = np.median(d[member], axis=0)
            expected = float((votes.sum() - peak) * 9.0 / max(votes.size - 9, 1))
            best = Offset(float(shift[0]), float(shift[1]), float(angle), peak, expected)
    return best


def match_pairs(first: F64, second: F64, radius: float) -> tuple[Index, Index]:
    """Return indices of mutual nearest neighbours within `radius`, one-to-one, in the order of `first`."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    distance, j = cKDTree(second).query(first, distance_upper_bound=radius)
    _, back = cKDTree(first).query(second)
    i = np.flatnonzero(np.isfinite(distance))
    i = i[back[j[i]] == i]
    return i, j[i]


def chance_matches(n_first: int, n_second: int, area: float, radius: float) -> float:
    """Return how many of `n_first` positions have one of `n_second` random ones in `area` within `radius`."""
    return n_first * (1.0 - float(np.exp(-n_second / max(area, 1e-30) * np.pi * radius**2)))
