"""How long a section will take: from this run's own sections, earlier runs, and the number of catalogue stars."""

from __future__ import annotations

import json
import math
from bisect import insort
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seechange_mpi.io.drafts import draft_of
from seechange_mpi.model.task import STEPS

_SHARES = dict(zip(STEPS, (0.18, 0.30, 0.08, 0.07, 0.25, 0.04, 0.01, 0.06, 0.01), strict=True))
"""Part of a whole section's time that each step takes; only used before anything was measured."""
_KEPT = 400
_MEMORY = 200.0
"""Sections after which older ones count half."""
_HALF = 0.5 ** (1.0 / _MEMORY)


@dataclass(slots=True)
class _Line:
    """Time of one kind of section as a straight line in the number of stars, older sections counting less."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    factors: dict[str, float] = field(default_factory=dict)
    """Section id -> how much longer it takes than the line says."""

    def base(self, stars: float) -> float:
        mean_x, mean_y = self.x / self.n, self.y / self.n
        # before there are many: half of the time goes with the stars, as if three sections had shown that
        prior, weight = 0.5 * mean_y / max(mean_x, 1e-9), 3.0 * (0.3 * mean_x) ** 2
        spread, common = self.xx - self.n * mean_x**2, self.xy - self.n * mean_x * mean_y
        slope = (max(common, 0.0) + weight * prior) / max(max(spread, 0.0) + weight, 1e-9)
        slope = min(slope, mean_y / max(mean_x, 1e-9))
        return max(mean_y + slope * (stars - mean_x), 0.1 * mean_y)

    def predict(self, section: str, stars: float) -> float:
        return self.base(stars) * self.factors.get(section, 1.0)

    def observe(self, section: str, stars: float, seconds: float) -> None:
        for name, value in (("n", 1.0), ("x", stars), ("y", seconds), ("xx", stars**2), ("xy", stars * seconds)):
            setattr(self, name, _HALF * getattr(self, name) + value)
        ratio = seconds / max(self.base(stars), 1e-9)
        self.factors[section] = 0.7 * self.factors.get(section, 1.0) + 0.3 * ratio


class Typical:
    """Durations seen so far, and the one that 95 of 100 stay below.

    Parameters
    ----------
    guess_s : what is assumed before any was seen [s].
    """

    def __init__(self, guess_s: float) -> None:
        self._guess_s = guess_s
        self._recent: list[float] = []

    def add(self, seconds: float) -> None:
        """Take one in."""
        self._recent = [*self._recent[1 - _KEPT :], seconds]

    def p95(self) -> float:
        """Return the 95th percentile [s]."""
        if not self._recent:
            return self._guess_s
        return sorted(self._recent)[math.ceil(0.95 * len(self._recent)) - 1]


class Predictor:
    """Predicted durations of sections, and how far to trust them.

    Parameters
    ----------
    guess_s : a whole section's duration before anything is known [s].
    """

    def __init__(self, guess_s: float = 60.0) -> None:
        self.guess_s = guess_s
        self._lines: dict[str, _Line] = {}
        self._ratios: list[float] = []
        self._recent: list[float] = []
        self.n_seen = 0
        """Sections observed in this run."""

    def predict(self, kind: str, section: str, stars: float, first_step: str, last_step: str,
                usual_stars: float = 0.0) -> float:
        """Return the predicted duration [s] of the steps `first_step` … `last_step` of a section.

        Parameters
        ----------
        kind : camera, or whatever else makes durations comparable.
        stars : catalogue stars on the section; 0 where unknown.
        usual_stars : mean over the exposure; before anything is known half of the time is taken to go with the stars.
        """
        line = self._lines.get(_key(kind, first_step, last_step))
        if line is not None:
            return line.predict(section, stars)
        share = sum(_SHARES[s] for s in STEPS[STEPS.index(first_step) : STEPS.index(last_step) + 1])
        whole = self._lines.get(_key(kind, STEPS[0], STEPS[-1]))
        if whole is not None:
            return share * whole.predict(section, stars)
        crowded = min(stars / usual_stars, 4.0) if usual_stars > 0 else 1.0
        return share * self.guess_s * (0.5 + 0.5 * crowded)

    def usual_s(self) -> float:
        """Return how long a whole section takes where nothing more is known of it: the slowest camera's mean [s]."""
        whole = [line.y / line.n for key, line in self._lines.items() if key.endswith(_key("", STEPS[0], STEPS[-1]))]
        return max(whole, default=self.guess_s)

    def observe(self, kind: str, section: str, stars: float, first_step: str, last_step: str, seconds: float) -> None:
        """Learn from a section that went through."""
        self.n_seen += 1
        key = _key(kind, first_step, last_step)
        if key in self._lines:
            ratio = seconds / max(self.predict(kind, section, stars, first_step, last_step), 1e-9)
            insort(self._ratios, ratio)
            self._recent.append(ratio)
            if len(self._recent) > _KEPT:
                self._ratios.remove(self._recent.pop(0))
        self._lines.setdefault(key, _Line()).observe(section, stars, seconds)

    def margin(self, fraction: float = 0.95) -> float:
        """Factor on a prediction that `fraction` of the sections stay below; 1.5 before ten are known."""
        if len(self._ratios) < 10:
            return 1.5
        return max(1.0, self._ratios[math.ceil(fraction * len(self._ratios)) - 1])

    def save(self, path: Path) -> None:
        """Keep what was learnt for the next run; a disk that is full keeps the old state."""
        state = {key: {f: getattr(line, f) for f in ("n", "x", "y", "xx", "xy", "factors")}
                 for key, line in self._lines.items()}
        draft = draft_of(path)
        try:
            draft.write_text(json.dumps(state))
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Go on from an earlier run, if there was one; damaged memories are forgotten."""
        try:
            state: dict[str, dict[str, Any]] = json.loads(path.read_text())
            lines = {key: _Line(**line) for key, line in state.items()}
        except (OSError, ValueError, TypeError):
            return
        self._lines.update({k: v for k, v in lines.items() if v.n > 0 and v.y > 0})


def _key(kind: str, first_step: str, last_step: str) -> str:
    return f"{kind} {first_step} {last_step}"
