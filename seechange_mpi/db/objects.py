"""Objects by name, id or place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from seechange_mpi.db.linking import ORDER
from seechange_mpi.db.matching import unit_vectors
from seechange_mpi.model.errors import ConfigError

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_COARSE = 11
"""HEALPix order of the pixels (100 arcsec) by which objects in a region are looked up."""
_FOUND = "SELECT _id, name, ra, dec, is_bad, is_test FROM objects "


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object; ra, dec [deg] are where it was founded."""

    id: UUID
    name: str
    ra: float
    dec: float
    is_bad: bool
    is_test: bool = False
    n_measurements: int = 0
    first_mjd: float | None = None
    last_mjd: float | None = None


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def find_objects(conn: Connection, names: Iterable[str]) -> list[FoundObject]:
    """Return objects by name (case, spaces and underscores do not matter) or id, in the given order, each once.

    Raises
    ------
    ConfigError
        There is no such object.
    """
    out: dict[UUID, FoundObject] = {}
    for name in names:
        key = _as_uuid(name.strip())
        row: Any = conn.execute(
            _FOUND + ("WHERE _id = %s" if key is not None else "WHERE name = %s"), (key or name.strip(),)).fetchone()
        if row is None and key is None:
            row = conn.execute(
                _FOUND + "WHERE translate(lower(name), ' _', '') = %s ORDER BY _id",
                (name.lower().replace(" ", "").replace("_", ""),)).fetchone()
        if row is None:
            raise ConfigError(f"there is no object '{name}'; seechange-mpi object list shows what there is")
        out.setdefault(row[0], FoundObject(*row))
    return list(out.values())


def of_tests(conn: Connection, object_ids: Sequence[UUID] | None) -> bool:
    """Whether objects are those of tests; None stands for all real ones.

    Raises
    ------
    ConfigError
        Some are and some are not.
    """
    kinds = sorted(bool(r[0]) for r in conn.execute("SELECT DISTINCT is_test FROM objects WHERE _id = ANY(%s)",
                                                    (list(object_ids or ()),)))
    if len(kinds) > 1:
        raise ConfigError("objects of tests and real ones cannot be measured together: name those of one kind")
    return kinds == [True]


def list_objects(conn: Connection, *, near: tuple[float, float, float] | None = None, min_measurements: int = 1,
                 with_bad: bool = False, limit: int | None = None, of_test: bool = False) -> list[FoundObject]:
    """Return objects with most measurements first.

    Parameters
    ----------
    near : (ra, dec, radius) [deg, deg, arcsec]: only those, the nearest first.
    min_measurements : of measurements that passed all thresholds.
    with_bad : also objects marked as bad.
    of_test : those of tests in place of the real ones.
    """
    low, high = ([0], [1 << 62]) if near is None else region_ranges([near[0]], [near[1]], [near[2] / 3600])
    rows: list[Any] = conn.execute(
        "SELECT o._id, o.name, o.ra, o.dec, o.is_bad, o.is_test, count(m._id), min(i.mjd), max(i.mjd) "
        "FROM objects o JOIN unnest(%(low)s::bigint[], %(high)s::bigint[]) AS r(low, high) "
        "ON o.healpix BETWEEN r.low AND r.high "
        "LEFT JOIN (measurements m JOIN measurement_sets s ON m.measurementset_id = s._id "
        "JOIN cutouts c ON s.cutouts_id = c._id JOIN detections d ON c.detections_id = d._id "
        "JOIN images i ON d.image_id = i._id) ON m.object_id = o._id AND NOT m.is_bad "
        "WHERE o.is_test = %(test)s AND (%(bad)s OR NOT o.is_bad) GROUP BY o._id HAVING count(m._id) >= %(least)s "
        "ORDER BY count(m._id) DESC, o.name LIMIT %(limit)s",
        {"bad": with_bad, "least": min_measurements, "limit": None if near is not None else limit, "low": low,
         "high": high, "test": of_test}).fetchall()
    found = [FoundObject(*r) for r in rows]
    if near is None or not found:
        return found
    distance = separation_arcsec([o.ra for o in found], [o.dec for o in found], near[0], near[1])
    order = [int(k) for k in np.argsort(distance, kind="stable") if distance[k] <= near[2]]
    return [found[k] for k in order[:limit]]


def separation_arcsec(ra: Sequence[float], dec: Sequence[float], ra0: float, dec0: float) -> np.ndarray:
    """Angles [arcsec] between positions and one position, all in degrees."""
    chord = np.linalg.norm(unit_vectors(ra, dec) - unit_vectors(ra0, dec0), axis=1)
    return np.asarray(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600)


def region_ranges(ra: Sequence[float], dec: Sequence[float], radius_deg: Sequence[float]
                  ) -> tuple[list[int], list[int]]:
    """Ranges, low and high, of the ``healpix`` column that cover circles (and a little more)."""
    import hpgeom

    pixels: set[int] = set()
    for a, d, r in zip(ra, dec, radius_deg, strict=True):
        pixels.update(int(p) for p in hpgeom.query_circle(1 << _COARSE, float(a) % 360.0, float(d), float(r),
                                                          inclusive=True, nest=True))
    shift = 2 * (ORDER - _COARSE)
    low: list[int] = []
    high: list[int] = []
    for p in sorted(pixels):
        if high and high[-1] + 1 == p << shift:
            high[-1] = ((p + 1) << shift) - 1
        else:
            low.append(p << shift)
            high.append(((p + 1) << shift) - 1)
    return low, high
