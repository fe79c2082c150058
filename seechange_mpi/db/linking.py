"""Measurements to objects: nearest, one-to-one over an exposure, right at the poles and across RA 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from seechange_mpi.db.blocks import Block, id_array, id_texts, ids_of, read_columns, uuids, write_block
from seechange_mpi.db.names import free_names, place_keys

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

F64 = npt.NDArray[np.float64]
ORDER = 16
"""HEALPix order (nested) of the sky index of tables: pixels of 3.2 arcsec."""
_LOCK_ORDER = 7
_LOCK_SPACE = 0x5EE


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
    alone = (np.bincount(i, minlength=n)[i] == 1) & (np.bincount(j, minlength=m)[j] == 1)
    out[i[alone]] = j[alone]
    i, j, d2 = i[~alone], j[~alone], d2[~alone]
    if len(i) == 0:
        return out
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


@dataclass(frozen=True, slots=True)
class Nearby:
    """Objects near some positions, in the order of their ids: ids (V16), unit vectors (n, 3), `place_keys`."""

    ids: npt.NDArray[np.void]
    vectors: F64
    keys: npt.NDArray[np.int64]

    def names(self, conn: Connection, which: npt.NDArray[np.bool_]) -> set[bytes]:
        """Return the names of some of them."""
        rows = conn.execute("SELECT name FROM objects WHERE _id = ANY(%s)", (uuids(self.ids[which]),))
        return {str(r[0]).encode() for r in rows}


def nearby_objects(conn: Connection, patch: Patch) -> Nearby:
    """Return the objects of a patch, test objects left out.

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
                                      "WHERE NOT o.is_test"),
                        {"_id": ("o._id", "V16"), "ra": ("o.ra", "f8"), "dec": ("o.dec", "f8")})
    conn.execute("SET LOCAL enable_seqscan = DEFAULT")
    conn.execute("SET LOCAL enable_bitmapscan = DEFAULT")
    rows = rows[np.argsort(rows["_id"].view("S16"), kind="stable")]
    return Nearby(rows["_id"], unit_vectors(rows["ra"], rows["dec"]), place_keys(rows["ra"], rows["dec"]))


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


def match(known: Nearby, ra: F64, dec: F64, good: npt.NDArray[np.bool_], radius_arcsec: float,
          taken: frozenset[UUID] = frozenset()) -> Matches:
    """Give the measurements of an exposure the objects that there are; the database is not asked.

    Good measurements take the nearest object, one-to-one; bad ones may take an object that is left over.

    Parameters
    ----------
    taken : objects that other measurements of the same exposure have already.
    """
    out = Matches(np.zeros(len(ra), "V16"), np.ones(len(ra), bool))
    positions = unit_vectors(ra, dec)
    free = ~np.isin(known.ids.view("S16"), id_array(list(taken)).view("S16"))
    for chosen in (np.flatnonzero(good), np.flatnonzero(~good)):
        left = np.flatnonzero(free)
        found = assign(positions[chosen], known.vectors[left], radius_arcsec)
        hit = found >= 0
        out.object_ids[chosen[hit]] = known.ids[left[found[hit]]]
        out.without[chosen[hit]] = False
        free[left[found[hit]]] = False
    return out


def found(conn: Connection, matches: Matches, known: Nearby, ids: npt.NDArray[np.void], ra: F64, dec: F64,
          good: npt.NDArray[np.bool_]) -> Links:
    """Let good measurements without an object found one; the ids derive from the measurements' ids and positions.

    The caller holds the locks of `lock_sky` and inserts the rows.

    Parameters
    ----------
    ids : (n,) V16, of the measurements.
    """
    object_ids, without = matches.object_ids.copy(), matches.without.copy()
    is_new = good & without
    new = np.flatnonzero(is_new)
    names = free_names(conn, ra[new], dec[new], known)
    # with the name (the place), so that a replaced measurement elsewhere cannot meet its predecessor's object
    object_ids[new] = ids_of("object", numbers=[f"{i}|{n.decode()}" for i, n in zip(id_texts(ids[new]), names.tolist(),
                                                                                     strict=True)])
    without[new] = False
    # a measurement that comes back after its rows were deleted may have founded an object that others keep alive
    rows = np.flatnonzero(~np.isin(object_ids[new].view("S16"), known.ids.view("S16")))
    at = new[rows]
    return Links(object_ids, without, is_new, Block(len(at), {
        "_id": object_ids[at], "name": names[rows], "ra": ra[at], "dec": dec[at], "healpix": healpix(ra[at], dec[at])}))
