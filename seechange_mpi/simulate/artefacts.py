"""What an exposure has besides the sky: trails, overflowing charge, fringes, dark current, bent counts, crosstalk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

TRAIL, BLEED = 1, 2
"""Bits of the truth planes."""


@dataclass(frozen=True)
class Streak:
    """A trail through the focal plane: a point of it [arcsec], its direction [rad] and peak [e- per pixel]."""

    xi: float
    eta: float
    angle: float
    peak_e: float


def make_streaks(number: int, extent: float, brightness: list[float], noise_e: float, rng: np.random.Generator
                 ) -> list[Streak]:
    """Draw trails that pass within a third of the field's radius of its centre."""
    out = []
    for _ in range(number):
        reach, around = extent / 3 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        peak = noise_e * np.exp(rng.uniform(*np.log(brightness)))
        out.append(Streak(reach * np.cos(around), reach * np.sin(around), rng.uniform(0, np.pi), float(peak)))
    return out


def add_streak(image: F64, ends: tuple[F64, F64], peak: float, fwhm: float) -> Bool:
    """Add a straight trail through two points (x, y) [pix]; return where it is above half of its peak."""
    (x0, y0), (x1, y1) = ends
    length = float(np.hypot(x1 - x0, y1 - y0))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    across = ((y - y0) * (x1 - x0) - (x - x0) * (y1 - y0)) / length
    near = np.abs(across) < 4 * fwhm
    image[near] += peak * np.exp(-4 * np.log(2) * (across[near] / fwhm) ** 2)
    return np.asarray(np.abs(across) < 0.5 * fwhm)


def spill(electrons: F64, full_well: float) -> Bool:
    """Let charge above the full well run along its column, half of it to either side; return where pixels are full.

    What reaches the end of a column is lost.
    """
    for column in np.flatnonzero((electrons > full_well).any(axis=0)):
        charge = electrons[:, column]
        over = np.maximum(charge - full_well, 0)
        charge -= over
        for direction in (1, -1):
            carried = 0.0
            for row in range(len(charge))[::direction]:
                carried += 0.5 * over[row]
                if carried > 0:
                    taken = min(carried, full_well - charge[row])
                    charge[row] += taken
                    carried -= taken
    return np.asarray(electrons >= 0.999 * full_well)


def fringe_pattern(shape: tuple[int, int], rng: np.random.Generator) -> F64:
    """Return wavy interference rings of zero mean and unit amplitude."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    phase = rng.uniform(0, 2 * np.pi, 4)
    thickness = (x / 14.0 + 5 * np.sin(y / 90.0 + phase[0]) + 3 * np.cos((x + 2 * y) / 170.0 + phase[1]))
    pattern = np.sin(thickness + phase[2]) * (0.7 + 0.3 * np.cos(y / 120.0 + phase[3]))
    return np.asarray(pattern - pattern.mean())


def dark_rate(shape: tuple[int, int], mean: float, rng: np.random.Generator) -> F64:
    """Return the dark current [e-/s]: uneven by a fifth, with one hot pixel in a thousand of up to a hundredfold."""
    rate = mean * (1 + 0.2 * np.clip(rng.standard_normal(shape), -3, 3))
    hot = rng.random(shape) < 1e-3
    rate[hot] *= 10 ** rng.uniform(0, 2, int(hot.sum()))
    return np.asarray(rate)


def bend(linear: F64, coefficient: float) -> F64:
    """Return the counts of which linear = counts (1 + coefficient counts)."""
    if coefficient == 0:
        return linear
    return np.asarray((-1 + np.sqrt(np.maximum(1 + 4 * coefficient * linear, 0))) / (2 * coefficient))
