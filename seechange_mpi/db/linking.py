"""Measurements to objects: nearest, one-to-one over an exposure, right at the poles and across RA 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

F64 = npt.NDArray[np.float64]
ORDER = 16
"""HEALPix order (nested) of the sky index of tables: pixels of 3.2 arcsec."""
_LOCK_ORDER = 7
_LOCK_SPACE = 0x5EE


@dataclass(slots=True)
class Links:
    """Result of `link`.

    Attributes
    ----------
    object_ids : one per measurement; None = a bad measurement near no object.
    new_objects : rows to insert.
    is_new : (n,) bool, the measurement founded its object.
    """

    object_ids: list[UUID | None]
    new_objects: list[dict[str, object]]
    is_new: npt.NDArray[np.bool_]


def healpix(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Nested HEALPix index of order 16 of positions [deg]."""
    import hpgeom

    return np.asarray(
        hpgeom.angle_to_pixel(
            1 << ORDER, np.asarray(ra, float), np.asarray(dec, float), nest=True, lonlat=True, degrees=True
        ),
        dtype=np.int64,
    )


def unit_vectors(ra: npt.ArrayLike, dec: npt.ArrayLike) -> F64:
    """Unit vectors (n, 3) of positions [deg]."""
    a, d = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1).reshape(-1, 3)


def assign(first: F64, second: F64, radius_arcsec: float) -> npt.NDArray[np.int64]:
    """Match unit vectors one-to-one within a radius, as many pairs as possible at the least summed squared distance.

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
    i, j, d2 = pairs.row, pairs.col, pairs.data**2
    n, m = len(first), len(second)
    graph = coo_matrix((np.ones(len(i)), (i, j + n)), shape=(n + m, n + m))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label[i], kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(label[i][order]) > 0])
    for part in np.split(order, starts[1:]):
        rows, r = np.unique(i[part], return_inverse=True)
        cols, c = np.unique(j[part], return_inverse=True)
        # a pair out of reach costs more than all pairs within reach together
        cost = np.full((len(rows), len(cols)), 10.0 * chord**2 * (len(part) + 1))
        cost[r, c] = d2[part]
        a, b = linear_sum_assignment(cost)
        near = cost[a, b] <= chord**2
        out[rows[a[near]]] = cols[b[near]]
    return out


def lock_sky(conn: Connection, ra: F64, dec: F64, radius_arcsec: float) -> int:
    """Take transaction locks on the coarse sky cells that the positions, grown by the radius, touch.

    Cells are locked in ascending order, so that concurrent commits cannot deadlock; commits elsewhere on the
    sky never wait. Returns the number of cells.
    """
    import hpgeom

    cells: set[int] = set()
    for pixel_ra, pixel_dec in zip(*_coarse(ra, dec), strict=True):
        cells.update(
            int(c)
            for c in hpgeom.query_circle(
                1 << _LOCK_ORDER,
                float(pixel_ra),
                float(pixel_dec),
                radius_arcsec / 3600 + 0.01,
                inclusive=True,
                nest=True,
            )
        )
    conn.execute(
        "SELECT pg_advisory_xact_lock(%s, c) FROM unnest(%s::int[]) WITH ORDINALITY AS t(c, n) ORDER BY n",
        (_LOCK_SPACE, sorted(cells)),
    )
    return len(cells)


def _coarse(ra: F64, dec: F64) -> tuple[F64, F64]:
    """Positions thinned to one per 13 arcsec pixel (order 14); the locks' margin of 36 arcsec covers the rest."""
    import hpgeom

    pixels = np.unique(hpgeom.angle_to_pixel(1 << 14, ra, dec, nest=True, lonlat=True, degrees=True))
    lon, lat = hpgeom.pixel_to_angle(1 << 14, pixels, nest=True, lonlat=True, degrees=True)
    return np.asarray(lon), np.asarray(lat)


@dataclass(frozen=True, slots=True)
class Nearby:
    """Objects near some positions: ids, unit vectors (n, 3), names."""

    ids: list[UUID]
    vectors: F64
    names: frozenset[str]


def nearby_objects(conn: Connection, ra: F64, dec: F64, radius_arcsec: float) -> Nearby:
    """Return all objects that may lie within the radius of a position."""
    import hpgeom

    pixels: set[int] = set()
    for a, d in zip(ra, dec, strict=True):
        pixels.update(
            int(p)
            for p in hpgeom.query_circle(
                1 << ORDER, float(a), float(d), radius_arcsec / 3600, inclusive=True, nest=True
            )
        )
    rows: list[Any] = conn.execute(
        "SELECT _id, ra, dec, name FROM objects WHERE healpix = ANY(%s) AND NOT is_test ORDER BY _id", (sorted(pixels),)
    ).fetchall()
    vectors = unit_vectors([r[1] for r in rows], [r[2] for r in rows])
    return Nearby([r[0] for r in rows], vectors, frozenset(r[3] for r in rows))


def object_name(ra_deg: float, dec_deg: float) -> str:
    """IAU-like name from the founding position, e.g. ``SCM J100000.000+021200.00``."""
    ms = int(ra_deg / 15 * 3.6e6)
    cas = int(abs(dec_deg) * 3.6e5)
    return (
        f"SCM J{ms // 3_600_000:02d}{ms // 60_000 % 60:02d}{ms % 60_000 / 1000:06.3f}"
        f"{'-' if dec_deg < 0 else '+'}{cas // 360_000:02d}{cas // 6000 % 60:02d}{cas % 6000 / 100:05.2f}"
    )


def _free_name(ra_deg: float, dec_deg: float, used: set[str]) -> str:
    """Name of a position; a number is added where sections overlap and two objects have one position."""
    name = base = object_name(ra_deg, dec_deg)
    n = 1
    while name in used:
        n += 1
        name = f"{base}-{n}"
    used.add(name)
    return name


def link(
    conn: Connection,
    ids: list[UUID],
    ra: F64,
    dec: F64,
    good: npt.NDArray[np.bool_],
    radius_arcsec: float,
    taken: frozenset[UUID] = frozenset(),
) -> Links:
    """Give every measurement of an exposure its object.

    Good measurements take the nearest object, one-to-one; those left found new objects, whose ids derive from
    the measurements' ids and positions. Bad ones may take an object that is left over, and found none. The caller
    holds the locks of `lock_sky` and inserts the rows.

    Parameters
    ----------
    taken : objects that other measurements of the same exposure have already.
    """
    object_ids: list[UUID | None] = [None] * len(ids)
    is_new = np.zeros(len(ids), bool)
    new: list[dict[str, object]] = []
    if not ids:
        return Links(object_ids, new, is_new)
    known = nearby_objects(conn, ra, dec, radius_arcsec)
    positions = unit_vectors(ra, dec)
    free = np.array([i not in taken for i in known.ids], bool)
    for chosen in (np.flatnonzero(good), np.flatnonzero(~good)):
        left = np.flatnonzero(free)
        found = assign(positions[chosen], known.vectors[left], radius_arcsec)
        for k, f in zip(chosen, found, strict=True):
            if f >= 0:
                object_ids[k] = known.ids[left[f]]
                free[left[f]] = False
    names = set(known.names)
    for k in np.flatnonzero(good):
        if object_ids[k] is None:
            name = _free_name(float(ra[k]), float(dec[k]), names)
            # with the name (the place), so that a replaced measurement elsewhere cannot meet its predecessor's object
            object_id = stable_id("object", ids[k], name)
            object_ids[k], is_new[k] = object_id, True
            new.append(
                {
                    "_id": object_id,
                    "name": name,
                    "ra": float(ra[k]),
                    "dec": float(dec[k]),
                    "healpix": int(healpix(ra[k], dec[k])),
                }
            )
    return Links(object_ids, new, is_new)
