"""Measurements to objects: nearest, one-to-one over an exposure, right at the poles and across RA 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql

from seechange_mpi.db.blocks import Block, id_array, id_texts, ids_of, read_columns, uuids, write_block
from seechange_mpi.db.matching import F64, assign, unit_vectors, with_floor
from seechange_mpi.db.names import PREFIX, counter_names, free_names, place_keys, place_names

if TYPE_CHECKING:
    from seechange_mpi.config.settings import ObjectSettings
    from seechange_mpi.db.engine import Connection

ORDER = 16
"""HEALPix order (nested) of the sky index of tables: pixels of 3.2 arcsec."""
_LOCK_ORDER = 7
_LOCK_SPACE = 0x5EE


@dataclass(frozen=True, slots=True)
class Linkage:
    """How objects are found and founded.

    Attributes
    ----------
    matching : ``nearest``, or ``likelihood``, by separations and combined errors (`deviances`).
    error_floor_mas : of the astrometry, adds to those errors.
    naming : ``position``, or ``counter``: numbered within `year`. Objects of tests are named by position always.
    prefix : what names begin with.
    year : of the exposure; needed for ``counter``, with `names.prepare_counter` called before.
    is_test : the measurements are those of a test, which has objects of its own.
    former : names of objects that have just been deleted, which they get again if they are founded again.
    """

    matching: str = "nearest"
    error_floor_mas: float = 30.0
    naming: str = "position"
    prefix: str = PREFIX
    year: int = 0
    is_test: bool = False
    former: Mapping[UUID, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: ObjectSettings) -> Linkage:
        """Take the settings of a configuration."""
        return cls(settings.matching, settings.error_floor_mas, settings.naming, settings.name_prefix)

    @property
    def counts(self) -> bool:
        """Whether names are counted."""
        return self.naming == "counter" and not self.is_test


@dataclass(slots=True)
class Links:
    """Result of `found`.

    Attributes
    ----------
    object_ids : (n,) V16, one per measurement.
    without : (n,) bool, the measurement has no object: a bad one near none.
    is_new : (n,) bool, the measurement founded its object.
    new_objects : rows to insert.
    """

    object_ids: npt.NDArray[np.void]
    without: npt.NDArray[np.bool_]
    is_new: npt.NDArray[np.bool_]
    new_objects: Block


def healpix(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Nested HEALPix index of order 16 of positions [deg]."""
    import hpgeom

    return np.asarray(
        hpgeom.angle_to_pixel(
            1 << ORDER, np.asarray(ra, float), np.asarray(dec, float), nest=True, lonlat=True, degrees=True
        ),
        dtype=np.int64,
    )


def cells_near(vectors: F64, radius_arcsec: float, order: int) -> npt.NDArray[np.int64]:
    """Return all cells (nested, sorted) that lie within a radius of any of some unit vectors.

    Cells must be at least six times as large as the radius. A cell that reaches into the circle holds its centre or one
    of 16 points on the circle of twice the radius: seen from a corner within the circle, its angle (45 deg at least)
    spans more of that circle than lies between two of them.
    """
    import hpgeom

    if len(vectors) == 0:
        return np.zeros(0, np.int64)
    pole = np.where(np.abs(vectors[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    east = np.cross(pole, vectors)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north = np.cross(vectors, east)
    reach = np.deg2rad(2 * radius_arcsec / 3600)
    found = [hpgeom.vector_to_pixel(1 << order, *vectors.T, nest=True)]
    for angle in np.arange(16) * np.pi / 8:
        around = np.cos(reach) * vectors + np.sin(reach) * (np.cos(angle) * east + np.sin(angle) * north)
        found.append(hpgeom.vector_to_pixel(1 << order, *around.T, nest=True))
    return _unique(np.concatenate(found))


def _unique(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sorted, each once; several times faster than `numpy.unique` of version 2.3."""
    ordered = np.sort(np.asarray(numbers, np.int64))
    return np.asarray(ordered[np.diff(ordered, prepend=-1) != 0])


def _order_for(radius_arcsec: float) -> int:
    """Finest order whose cells are at least six times as large as the radius, the order of the index at most."""
    return min(ORDER, int(np.floor(np.log2(58.6 * 3600 / (6 * radius_arcsec)))))


@dataclass(frozen=True, slots=True)
class Patch:
    """The sky within a radius of some positions, as sorted cells of one order."""

    cells: npt.NDArray[np.int64]
    order: int

    @classmethod
    def around(cls, ra: F64, dec: F64, radius_arcsec: float) -> Patch:
        """Cover positions [deg]."""
        order = _order_for(radius_arcsec)
        return cls(cells_near(unit_vectors(ra, dec), radius_arcsec, order), order)


def lock_sky(conn: Connection, patch: Patch) -> int:
    """Take transaction locks on the coarse sky cells that a patch touches.

    Cells are locked in ascending order, so that concurrent commits cannot deadlock; commits elsewhere on the
    sky never wait. Returns the number of cells.
    """
    cells = _unique(patch.cells >> 2 * max(0, patch.order - _LOCK_ORDER))
    conn.execute(
        "SELECT pg_advisory_xact_lock(%s, c) FROM unnest(%s::int[]) WITH ORDINALITY AS t(c, n) ORDER BY n",
        (_LOCK_SPACE, cells.tolist()),
    )
    return len(cells)


_ERRORS = {n: (f"COALESCE(o.{n}, 0)::float8", "f8") for n in ("ra_err", "dec_err")}


@dataclass(frozen=True, slots=True)
class Nearby:
    """Objects near some positions, in the order of their ids.

    Attributes
    ----------
    ids, vectors, keys : V16, (n, 3) unit vectors, `place_keys`.
    errors : (n, 2), of ra (on the sky) and dec [deg], if they were asked for.
    """

    ids: npt.NDArray[np.void]
    vectors: F64
    keys: npt.NDArray[np.int64]
    errors: F64 | None = None

    def names(self, conn: Connection, which: npt.NDArray[np.bool_]) -> set[bytes]:
        """Return the names of some of them."""
        rows = conn.execute("SELECT name FROM objects WHERE _id = ANY(%s)", (uuids(self.ids[which]),))
        return {str(r[0]).encode() for r in rows}


def nearby_objects(conn: Connection, patch: Patch, *, is_test: bool = False, errors: bool = False) -> Nearby:
    """Return the objects of a patch: the real ones, or else those of tests.

    One index scan for each range of the sky index: the cost follows the positions, not the size of the table.
    """
    cells, shift = patch.cells, 2 * (ORDER - patch.order)
    begins = np.flatnonzero(np.diff(cells, prepend=-2) != 1)
    ends = np.append(begins[1:], len(cells)) - 1
    conn.execute("CREATE TEMPORARY TABLE IF NOT EXISTS sky_ranges (low int8, high int8) ON COMMIT DROP")
    conn.execute("TRUNCATE sky_ranges")
    write_block(conn, "sky_ranges", Block(len(begins), {"low": cells[begins] << shift,
                                                        "high": ((cells[ends] + 1) << shift) - 1}), fresh=True)
    conn.execute("SET LOCAL enable_seqscan = off")
    conn.execute("SET LOCAL enable_bitmapscan = off")
    rows = read_columns(conn, sql.SQL("FROM sky_ranges r JOIN objects o ON o.healpix BETWEEN r.low AND r.high "
                                      "WHERE o.is_test = {}").format(sql.Literal(is_test)),
                        {"_id": ("o._id", "V16"), "ra": ("o.ra", "f8"), "dec": ("o.dec", "f8")}
                        | (_ERRORS if errors else {}))
    conn.execute("SET LOCAL enable_seqscan = DEFAULT")
    conn.execute("SET LOCAL enable_bitmapscan = DEFAULT")
    rows = rows[np.argsort(rows["_id"].view("S16"), kind="stable")]
    return Nearby(rows["_id"], unit_vectors(rows["ra"], rows["dec"]), place_keys(rows["ra"], rows["dec"]),
                  np.stack([rows["ra_err"], rows["dec_err"]], axis=1) if errors else None)


@dataclass(slots=True)
class Matches:
    """Result of `match`.

    Attributes
    ----------
    object_ids : (n,) V16, one per measurement.
    without : (n,) bool, the measurement has no object so far.
    """

    object_ids: npt.NDArray[np.void]
    without: npt.NDArray[np.bool_]


def match(known: Nearby, ra: F64, dec: F64, good: npt.NDArray[np.bool_], radius_arcsec: float, *,
          errors: F64 | None = None, how: Linkage = Linkage(), taken: frozenset[UUID] = frozenset()) -> Matches:
    """Give the measurements of an exposure the objects that there are; the database is not asked.

    Good measurements take the nearest object (or the likeliest, see `Linkage`), one-to-one; bad ones may take an
    object that is left over.

    Parameters
    ----------
    errors : (n, 2), of ra (on the sky) and dec [deg]; None: not known.
    taken : objects that other measurements of the same exposure have already.
    """
    out = Matches(np.zeros(len(ra), "V16"), np.ones(len(ra), bool))
    positions = unit_vectors(ra, dec)
    errors = np.full((len(ra), 2), np.nan) if errors is None else errors
    free = ~np.isin(known.ids.view("S16"), id_array(list(taken)).view("S16"))
    for chosen in (np.flatnonzero(good), np.flatnonzero(~good)):
        left = np.flatnonzero(free)
        nearest = assign(positions[chosen], known.vectors[left], radius_arcsec, None if known.errors is None else (
            with_floor(errors[chosen], how.error_floor_mas, radius_arcsec),
            with_floor(known.errors[left], 0.0, radius_arcsec)))
        hit = nearest >= 0
        out.object_ids[chosen[hit]] = known.ids[left[nearest[hit]]]
        out.without[chosen[hit]] = False
        free[left[nearest[hit]]] = False
    return out


def found(conn: Connection, matches: Matches, known: Nearby, ids: npt.NDArray[np.void], ra: F64, dec: F64,
          good: npt.NDArray[np.bool_], *, errors: F64 | None = None, how: Linkage = Linkage()) -> Links:
    """Let good measurements without an object found one; the ids derive from the measurements' ids and positions.

    The caller holds the locks of `lock_sky` and inserts the rows.

    Parameters
    ----------
    ids : (n,) V16, of the measurements.
    errors : (n, 2), of ra (on the sky) and dec [deg]; None: not known.
    """
    object_ids, without = matches.object_ids.copy(), matches.without.copy()
    is_new = good & without
    new = np.flatnonzero(is_new)
    places = place_names(ra[new], dec[new])
    # with the place, so that a replaced measurement elsewhere cannot meet its predecessor's object
    founded = zip(id_texts(ids[new]), places.tolist(), strict=True)
    object_ids[new] = ids_of("object", numbers=[f"{i}|{PREFIX} {p.decode()}" for i, p in founded])
    without[new] = False
    # a measurement that comes back after its rows were deleted may have founded an object that others keep alive
    rows = np.flatnonzero(~np.isin(object_ids[new].view("S16"), known.ids.view("S16")))
    at = new[rows]
    errors = np.full((len(ra), 2), np.nan) if errors is None else errors
    return Links(object_ids, without, is_new, Block(len(at), {
        "_id": object_ids[at], "name": _names(conn, object_ids[at], places[rows], place_keys(ra[at], dec[at]), known,
                                              how),
        "ra": ra[at], "dec": dec[at], "healpix": healpix(ra[at], dec[at]), "is_test": how.is_test,
        "ra_err": errors[at, 0], "dec_err": errors[at, 1]},
        {n: ~np.isfinite(errors[at, k]) for k, n in enumerate(("ra_err", "dec_err"))}))


def _names(conn: Connection, ids: npt.NDArray[np.void], places: npt.NDArray[np.bytes_], keys: npt.NDArray[np.int64],
           known: Nearby, how: Linkage) -> npt.NDArray[np.bytes_]:
    """Names of new objects: those they had, else new ones in the order given."""
    if not len(ids):
        return np.zeros(0, "S1")
    former = [how.former.get(i, "").encode() for i in uuids(ids)] if how.former else [b""] * len(ids)
    lacking = np.array([k for k, name in enumerate(former) if not name], np.intp)
    if how.counts:
        fresh = [n.encode() for n in counter_names(conn, how.prefix, how.year, len(lacking))]
    else:
        prefix = f"TEST {how.prefix} " if how.is_test else f"{how.prefix} "
        fresh = free_names(conn, np.char.add(prefix.encode(), places[lacking]), keys[lacking], known, former)
    for k, name in zip(lacking.tolist(), fresh, strict=True):
        former[k] = name
    return np.array(former, "S")
