"""Stars and galaxies of a local catalogue near objects: looked up after a commit, never as part of it.

All sources within a radius of the place where an object was founded, each with its distance; none for objects of tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql

from seechange_mpi.config.resolve import Config
from seechange_mpi.config.settings import ObjectSettings
from seechange_mpi.db.blocks import Block, concatenate, id_array, id_texts, ids_of, read_columns, uuids, write_block
from seechange_mpi.db.engine import notice_lost_client
from seechange_mpi.db.linking import ORDER
from seechange_mpi.db.matching import neighbours, unit_vectors
from seechange_mpi.io.catalog_excerpt import bounding_cone
from seechange_mpi.io.source_catalog import SourceCatalog, source_magnitude, star_flag, star_probability
from seechange_mpi.model.errors import ConfigError, SeeChangeError, TransientError
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

TABLE = "object_legacy_survey_match"
LATER = "seechange-mpi object match --missing makes up for it"
BATCH = 10_000
"""Objects matched in one transaction."""
_GROUP_ORDER = 5
"""HEALPix order of the cells (1.8 degrees) whose objects are looked up in one cone of the catalogue."""
_OBJECT = {"_id": ("o._id", "V16"), "ra": ("o.ra", "f8"), "dec": ("o.dec", "f8"), "healpix": ("o.healpix", "i8")}
_UNMATCHED = f"NOT EXISTS (SELECT 1 FROM {TABLE} t WHERE t.object_id = o._id)"
_OF_EXPOSURE = (
    "FROM (SELECT DISTINCT m.object_id, s.created_at FROM images i JOIN detections d ON d.image_id = i._id "
    "JOIN cutouts c ON c.detections_id = d._id JOIN measurement_sets s ON s.cutouts_id = c._id "
    "JOIN measurements m ON m.measurementset_id = s._id WHERE i.exposure_id = {exposure} "
    "AND m.object_id IS NOT NULL) k JOIN objects o ON o._id = k.object_id AND o.created_at = k.created_at "
    f"WHERE NOT o.is_test AND {_UNMATCHED}")
"""Objects that were founded by the transaction that committed the measurements."""
_Objects = npt.NDArray[Any]
"""Structured: ``_id`` (V16), ``ra``, ``dec`` [deg], ``healpix``."""


@dataclass(slots=True)
class Matched:
    """What was done: objects that were looked up, those of them with a source nearby, rows that are new."""

    objects: int = 0
    with_sources: int = 0
    rows: int = 0

    def __str__(self) -> str:
        return f"{self.objects} objects, {self.with_sources} with a source nearby, {self.rows} new matches"


@dataclass(frozen=True, slots=True)
class ObjectMatch:
    """A source near an object; dist [arcsec], ra, dec [deg], mag; None where the catalogue does not tell."""

    source_id: int
    ra: float
    dec: float
    dist: float
    mag: float | None
    star_probability: float | None
    is_star: bool | None


class Crossmatcher:
    """Looks objects up in the catalogue of a configuration.

    Parameters
    ----------
    stop : asked between parts of the work whether time is up.

    Raises
    ------
    ConfigError
        No catalogue is configured, or nothing lies at its path.
    BadInput
        It is unreadable or lacks a column.
    """

    def __init__(self, settings: ObjectSettings, stop: Callable[[], bool] = lambda: False) -> None:
        if not settings.crossmatch_catalog:
            raise ConfigError("objects.crossmatch_catalog names no catalogue; give a FITS or Parquet file, or a folder "
                              "made by 'seechange-mpi catalog build --sources'")
        self.catalog = SourceCatalog(settings.crossmatch_catalog)
        self.radius_arcsec, self.stop = settings.crossmatch_radius_arcsec, stop

    def exposure(self, conn: Connection, identifier: str) -> Matched:
        """Look up the objects that an exposure has founded, those that have no match.

        Raises
        ------
        TransientError
            Time is up; what was stored stays.
        """
        source = sql.SQL(_OF_EXPOSURE).format(exposure=sql.Literal(stable_id("exposure", identifier)))
        objects = read_columns(conn, source, _OBJECT)
        objects = objects[np.argsort(objects["healpix"], kind="stable")]
        done = Matched()
        for k in range(0, len(objects), BATCH):
            self._batch(conn, objects[k:k + BATCH], done, afresh=False)
        return done

    def named(self, conn: Connection, object_ids: Sequence[UUID]) -> Matched:
        """Look up these objects anew; what they had is replaced."""
        done = Matched()
        for k in range(0, len(object_ids), BATCH):
            which = sql.SQL("FROM objects o WHERE NOT o.is_test AND o._id = ANY({})").format(
                sql.Literal(list(object_ids[k:k + BATCH])))
            self._batch(conn, read_columns(conn, which, _OBJECT), done, afresh=True)
        return done

    def all(self, conn: Connection, *, missing: bool) -> Matched:
        """Look up all objects anew, or (`missing`) those without a match."""
        done = Matched()
        for objects in _pages(conn, missing):
            self._batch(conn, objects, done, afresh=not missing)
        return done

    def _batch(self, conn: Connection, objects: _Objects, done: Matched, *, afresh: bool) -> None:
        """Read the catalogue, then store what was found in a transaction of its own."""
        conn.commit()
        rows = concatenate([self.near(group) for group in _groups(objects)])
        with conn.transaction():
            notice_lost_client(conn)
            # they cannot be deleted any more; locked in order, so that nobody is deadlocked
            there = id_array([i for i, in conn.execute(  # type: ignore[misc]
                "SELECT _id FROM objects WHERE _id = ANY(%s) ORDER BY _id FOR KEY SHARE", (uuids(objects["_id"]),))])
            if afresh:
                conn.execute(f"DELETE FROM {TABLE} WHERE object_id = ANY(%s)", (uuids(there),))
            if rows.n:
                rows = _chosen(rows, np.isin(rows.columns["object_id"].view("S16"), there.view("S16")))
            done.rows += write_block(conn, TABLE, rows)
        done.objects += len(there)
        done.with_sources += len(np.unique(rows.columns["object_id"].view("S16"))) if rows.n else 0

    def near(self, objects: _Objects) -> Block:
        """Return the rows of objects that lie close together; of a source that is twice in the catalogue the nearer."""
        if self.stop():
            raise TransientError("time is up")
        reach = self.radius_arcsec / 3600
        found = self.catalog.near(*bounding_cone(zip(objects["ra"], objects["dec"], np.full(len(objects), reach),
                                                     strict=True)))
        assert found.ids is not None
        i, j, dist = neighbours(unit_vectors(objects["ra"], objects["dec"]), unit_vectors(found.ra, found.dec),
                                self.radius_arcsec)
        order = np.lexsort((found.ids[j], i))  # stable: the nearer one of two with one id comes first
        i, j, dist = i[order], j[order], dist[order]
        first = (np.diff(i, prepend=-1) != 0) | np.append(True, np.diff(found.ids[j]) != 0)[:len(i)]
        i, j, dist = i[first], j[first], dist[first]
        ids, sources = objects["_id"][i], found.ids[j]
        figures = {"white_mag": source_magnitude(found)[j], "xgboost": star_probability(found)[j],
                   "is_star": star_flag(found)[j]}
        nulls = {name: ~np.isfinite(values) for name, values in figures.items()}
        pairs = (f"{a}|{b}" for a, b in zip(id_texts(ids), sources.tolist(), strict=True))
        return Block(len(i), {
            "_id": ids_of(TABLE, numbers=pairs), "object_id": ids, "lsid": sources, "ra": found.ra[j],
            "dec": found.dec[j], "dist": dist, "white_mag": figures["white_mag"], "xgboost": figures["xgboost"],
            "is_star": figures["is_star"] == 1}, nulls)


def _groups(objects: _Objects) -> Iterator[_Objects]:
    """Split objects by cells of the sky."""
    cells = objects["healpix"] >> 2 * (ORDER - _GROUP_ORDER)
    order = np.argsort(cells, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(cells[order])) + 1):
        if len(part):
            yield objects[part]


def _chosen(block: Block, which: npt.NDArray[np.bool_]) -> Block:
    return Block(int(which.sum()), {k: v[which] for k, v in block.columns.items()},
                 {k: v[which] for k, v in block.nulls.items()})


def _pages(conn: Connection, missing: bool) -> Iterator[_Objects]:
    """Yield the real objects (without a match) along the sky, so that a batch needs little of the catalogue."""
    last = (-1, UUID(int=0))
    while True:
        page = sql.SQL("FROM (SELECT _id, ra, dec, healpix FROM objects o WHERE NOT o.is_test AND "
                       "(o.healpix, o._id) > ({}, {}) AND {} ORDER BY healpix, _id LIMIT {}) o").format(
            sql.Literal(last[0]), sql.Literal(last[1]), sql.SQL(_UNMATCHED if missing else "true"), sql.Literal(BATCH))
        objects = read_columns(conn, page, _OBJECT)
        if not len(objects):
            return
        ids = uuids(objects["_id"])
        last = max(zip(objects["healpix"].tolist(), ids, strict=True))
        yield objects


def matches_of(conn: Connection, object_id: UUID) -> list[ObjectMatch]:
    """Return the sources near an object, the nearest first."""
    rows: list[Any] = conn.execute(
        f"SELECT lsid, ra, dec, dist, white_mag, xgboost, is_star FROM {TABLE} WHERE object_id = %s "
        "ORDER BY dist, lsid", (object_id,)).fetchall()
    return [ObjectMatch(*r) for r in rows]


class AfterCommit:
    """Matches the objects of committed exposures; whatever goes wrong is said once, and never fails one.

    Parameters
    ----------
    opened : opens database connections.
    tell : told what an operator should read.
    stop : asked whether time is up.
    """

    def __init__(self, config: Config, opened: Callable[[], Connection], tell: Callable[[str], None],
                 stop: Callable[[], bool] = lambda: False) -> None:
        self.settings, self.opened, self.tell, self.stop = config.settings.objects, opened, tell, stop
        self._told: set[str] = set()

    def __call__(self, identifier: str) -> Matched | None:
        """Look up the objects of an exposure; None where no catalogue is configured, or where it failed."""
        if not self.settings.crossmatch_catalog:
            return None
        try:
            matcher = Crossmatcher(self.settings, self.stop)
            with self.opened() as conn:
                return matcher.exposure(conn, identifier)
        except SeeChangeError as err:
            why = str(err)
        except Exception as err:  # noqa: BLE001 - the exposure is committed, whatever happens here
            why = f"{type(err).__name__}: {err}"
        if why not in self._told:
            self.tell(f"{identifier}: committed, but its objects are not matched with a catalogue: {why}; {LATER}")
        self._told.add(why)
        return None
