"""Linearity: raw counts above the pedestal in, linear counts out, amplifier by amplifier.

The correction comes from the file of kind ``linearity`` or, without one, from the amplifier's coefficients in the
camera's definition. The file is a FITS binary table in one of two forms:

* one row per amplifier, columns ``amplifier`` (its name) and ``coefficients``: linear = Σ c_k counts**k, from k = 0;
* one row per level, columns ``counts`` (or ``ADU``) and ``linear_<amplifier>`` (or ``ADU_LINEAR_<amplifier>``, as
  DECam's tables have them), interpolated linearly; beyond its ends the correction stays what it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import F32, F64

_STRIP_PIXELS = 65_536


@dataclass(frozen=True)
class Polynomial:
    """linear = Σ c_k counts**k."""

    coefficients: tuple[float, ...]

    def apply(self, counts: F32) -> None:
        """Correct counts (ny, nx) [ADU above the pedestal] in place."""
        for part in _strips(counts):
            value = np.full(part.shape, self.coefficients[-1], np.float32)
            for c in self.coefficients[-2::-1]:
                value *= part
                value += np.float32(c)
            part[...] = value


@dataclass(frozen=True)
class Lookup:
    """linear(counts) by interpolation between levels."""

    counts: F64
    linear: F64

    def apply(self, counts: F32) -> None:
        """Correct counts (ny, nx) [ADU above the pedestal] in place."""
        correction = self.linear - self.counts
        for part in _strips(counts):
            part += np.interp(part, self.counts, correction).astype(np.float32)


Linearity = Polynomial | Lookup


def _strips(counts: F32) -> list[F32]:
    rows = max(1, _STRIP_PIXELS // counts.shape[1])
    return [counts[first: first + rows] for first in range(0, len(counts), rows)]


def polynomial(coefficients: Sequence[float], path: str, name: str, top: float) -> Polynomial:
    """Check coefficients: counts must grow with counts up to saturation at `top` [ADU].

    Raises
    ------
    BadInput
        They are not numbers, there are less than two, or linear counts fall where counts grow.
    """
    what, wanted = f"linearity of amplifier {name or '1'}", "coefficients c0, c1, … of linear = Σ c_k counts**k"
    values = tuple(float(c) for c in coefficients)
    if len(values) < 2 or not np.isfinite(values).all():
        raise BadInput(path, what, wanted, values)
    slopes = np.polynomial.polynomial.polyval(np.linspace(0, top if np.isfinite(top) else 65535.0, 200),
                                              np.polynomial.polynomial.polyder(values))
    if not slopes.min() > 0:
        raise BadInput(path, what, f"{wanted} that grows up to {top:g} ADU", values)
    return Polynomial(values)


def read_linearity(path: str, tops: dict[str, float]) -> dict[str, Linearity]:
    """Read a table.

    Parameters
    ----------
    tops : amplifier -> saturation above the pedestal [ADU]; each must be in the table.

    Raises
    ------
    BadInput
        Unreadable, an amplifier is missing, or its correction does not grow.
    """
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as hdus:
            table = next((h.data for h in hdus if isinstance(h, fits.BinTableHDU)), None)
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, "linearity", "a readable FITS table", err) from None
    if table is None:
        raise BadInput(path, "linearity", "a FITS binary table", "none in the file")
    columns = {n.lower().replace("adu_linear", "linear"): n for n in table.names}
    if "coefficients" in columns and "amplifier" in columns:
        rows = {str(a).strip(): np.atleast_1d(c).tolist() for a, c in zip(table[columns["amplifier"]],
                                                               table[columns["coefficients"]], strict=True)}
        found: dict[str, Any] = {n: polynomial(rows[n], path, n, top) for n, top in tops.items() if n in rows}
    else:
        counts = columns.get("counts", columns.get("adu"))
        if counts is None:
            raise BadInput(path, "linearity", "columns amplifier and coefficients, or counts and linear_<amplifier>",
                           ", ".join(table.names))
        found = {n: _lookup(table[counts], table[columns[key]], path, n) for n in tops
                 if (key := f"linear_{n.lower()}") in columns}
    missing = sorted(set(tops) - set(found))
    if missing:
        raise BadInput(path, "linearity", f"amplifier {missing[0]}", ", ".join(found) or "none that the section has")
    return found


def _lookup(counts: Any, linear: Any, path: str, name: str) -> Lookup:
    x, y = np.asarray(counts, np.float64), np.asarray(linear, np.float64)
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()
                          and (np.diff(x) > 0).all() and (np.diff(y) > 0).all()):
        raise BadInput(path, f"linearity of amplifier {name or '1'}", "counts and linear counts that grow", "others")
    return Lookup(x, y)
