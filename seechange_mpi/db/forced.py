"""What is left to be measured at the positions of objects, and where the results go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import psycopg

from seechange_mpi.config.history import ForcedPhotometrySettings
from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.matching import unit_vectors
from seechange_mpi.db.objects import of_tests, region_ranges
from seechange_mpi.db.provenance import IS_TESTING, store_provenances
from seechange_mpi.model.errors import ConfigError, TransientError
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.products import F64, Table
from seechange_mpi.model.provenance import make_record
from seechange_mpi.pipeline.forced import ForcedTask, Targets, inside

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_POSITIONS = (
    "SELECT o._id, COALESCE(p.ra, o.ra), COALESCE(p.dec, o.dec) FROM objects o LEFT JOIN LATERAL (SELECT ra, dec "
    "FROM object_positions q WHERE q.object_id = o._id ORDER BY q.modified DESC, q._id LIMIT 1) p ON true "
)
"""SQL: objects at the position made last, or where they were founded."""


@dataclass(frozen=True, slots=True)
class SubFootprint:
    """A difference image in the database: where it lies on the sky and in which bundle."""

    id: UUID
    section: str
    bundle: str
    exposure: str
    provenance_id: str
    mjd: float
    filter: str
    lim_mag: float
    """Of new image and reference together."""
    corners: F64
    """(4, 2) ra, dec [deg]."""

    def circle(self) -> tuple[float, float, float]:
        """ra, dec and radius [deg] of a circle around it."""
        v = unit_vectors(self.corners[:, 0], self.corners[:, 1])
        centre = v.mean(axis=0)
        centre /= np.linalg.norm(centre)
        chord = float(np.linalg.norm(v - centre, axis=1).max())
        return (float(np.degrees(np.arctan2(centre[1], centre[0]))) % 360.0,
                float(np.degrees(np.arctan2(centre[2], np.hypot(centre[0], centre[1])))),
                float(np.degrees(2 * np.arcsin(min(chord / 2, 1.0)))) + 2e-3)


def sub_footprints(conn: Connection, *, exposures: Sequence[str] | None = None,
                   near: tuple[float, float] | None = None, of_test: bool = False) -> list[SubFootprint]:
    """Return difference images in the order of time, of each section the version committed last.

    Parameters
    ----------
    exposures : only these. None: all.
    near : (ra, dec) [deg]: only those that may hold this position.
    of_test : those of tests in place of the real ones.
    """
    corners = ", ".join(f"i.ra_corner_{n}, i.dec_corner_{n}" for n in ("00", "01", "11", "10"))
    distance = ("acosd(least(1, greatest(-1, sind(i.dec) * sind({1}) + cosd(i.dec) * cosd({1}) * cosd(i.ra - {0}))))")
    rows: list[Any] = conn.execute(
        "SELECT * FROM (SELECT DISTINCT ON (i.exposure_id, i.section_id) i._id, i.section_id, i.filepath, "
        f"e.origin_identifier, i.provenance_id, i.mjd, i.filter, i.lim_mag_estimate, r.lim_mag_estimate, {corners} "
        "FROM images i JOIN exposures e ON i.exposure_id = e._id "
        "LEFT JOIN image_subtraction_components k ON k.image_id = i._id LEFT JOIN images r ON k.ref_image_id = r._id "
        f"WHERE i.is_sub AND {IS_TESTING.format('i.provenance_id')} = %(test)s "
        "AND (%(names)s::text[] IS NULL OR e.origin_identifier = ANY(%(names)s)) AND (%(ra)s::float8 IS NULL OR "
        f"{distance.format('%(ra)s', '%(dec)s')} <= 0.01 + 1.2 * "
        f"{distance.format('i.ra_corner_00', 'i.dec_corner_00')}) "
        "ORDER BY i.exposure_id, i.section_id, i.created_at DESC) newest ORDER BY mjd, origin_identifier, section_id",
        {"names": list(exposures) if exposures is not None else None, "ra": None if near is None else near[0],
         "dec": None if near is None else near[1], "test": of_test}).fetchall()
    return [SubFootprint(r[0], r[1], r[2], r[3], r[4], float(r[5]), r[6], _joint_limit(r[7], r[8]),
                         np.array(r[9:17], float).reshape(4, 2)) for r in rows]


def _joint_limit(new: float | None, ref: float | None) -> float:
    """Limiting magnitude of a difference from those of its images, whose noise adds; a lost reference adds none."""
    if new is None:
        return float("nan")
    flux = np.hypot(10 ** (-0.4 * new), 0.0 if ref is None or not np.isfinite(ref) else 10 ** (-0.4 * ref))
    return float(-2.5 * np.log10(flux))


def forced_provenances(conn: Connection, settings: ForcedPhotometrySettings, subs: Sequence[SubFootprint], *,
                       of_test: bool = False) -> dict[str, str]:
    """Provenance of a subtraction -> that of forced photometry in its images; stored if new."""
    parameters = settings.critical() | ({"is_testing": True} if of_test else {})
    records = {p: make_record("forcedphot", parameters, [p]) for p in {s.provenance_id for s in subs}}
    store_provenances(conn, records.values())
    return {p: r.id for p, r in records.items()}


def plan(conn: Connection, settings: ForcedPhotometrySettings, *, object_ids: Sequence[UUID] | None = None,
         exposures: Sequence[str] | None = None) -> Iterator[ForcedTask]:
    """Yield what is left to be measured, one task for each bundle, in the order of time.

    What is in the database is left out unless the object's position has moved by more than
    ``settings.move_arcsec`` since. The connection may be used between tasks.

    Parameters
    ----------
    object_ids : only these objects; None: all but those of tests.
    exposures : only these exposures; None: all.

    Raises
    ------
    ConfigError
        An exposure has no difference image in the database, or objects of tests and real ones are given together.
    """
    conn.commit()
    with conn.transaction():
        of_test = of_tests(conn, object_ids)
        subs = sub_footprints(conn, exposures=exposures, of_test=of_test)
        provenances = forced_provenances(conn, settings, subs, of_test=of_test)
        given = None if object_ids is None else _objects(conn, object_ids)
    lacking = sorted(set(exposures or ()) - {s.exposure for s in subs})
    if lacking:
        raise ConfigError(f"{', '.join(lacking)}: no difference image of it is in the database; process it with a "
                          "reference (seechange-mpi refs add, then run)")
    by_bundle: dict[tuple[float, str, str], list[SubFootprint]] = {}
    for s in subs:
        by_bundle.setdefault((s.mjd, s.exposure, s.bundle), []).append(s)
    for (mjd, exposure, bundle), group in by_bundle.items():
        with conn.transaction():
            sections = _targets(conn, settings, group, provenances, given)
        if sections:
            yield ForcedTask(exposure, bundle, mjd, sections)


def _objects(conn: Connection, ids: Sequence[UUID] | None = None, subs: Sequence[SubFootprint] = ()
             ) -> list[tuple[UUID, float, float]]:
    """(id, ra, dec) of objects, by id or those in the region of images."""
    if ids is not None:
        rows: Any = conn.execute(_POSITIONS + "WHERE o._id = ANY(%s) ORDER BY o._id", (list(ids),)).fetchall()
        return list(rows)
    low, high = region_ranges(*zip(*(s.circle() for s in subs), strict=True))
    rows = conn.execute(
        _POSITIONS + "JOIN unnest(%s::bigint[], %s::bigint[]) AS r(low, high) ON o.healpix BETWEEN r.low AND r.high "
        "WHERE NOT o.is_test AND NOT o.is_bad ORDER BY o._id", (low, high)).fetchall()
    return list(rows)


def _targets(conn: Connection, settings: ForcedPhotometrySettings, subs: list[SubFootprint],
             provenances: Mapping[str, str], given: list[tuple[UUID, float, float]] | None) -> dict[str, Targets]:
    objects = given if given is not None else _objects(conn, subs=subs)
    if not objects:
        return {}
    ra, dec = np.array([o[1] for o in objects], float), np.array([o[2] for o in objects], float)
    covered = {s.id: np.flatnonzero(inside(s.corners, ra, dec)) for s in subs}
    wanted = sorted({objects[k][0] for index in covered.values() for k in index})
    known: dict[tuple[Any, Any], Any] = {
        (r[0], r[1]): r[2:] for r in conn.execute(
            "SELECT object_id, image_id, ra, dec FROM forced_photometry WHERE image_id = ANY(%s) "
            "AND provenance_id = ANY(%s) AND object_id = ANY(%s)",
            ([s.id for s in subs], sorted(set(provenances.values())), wanted))}
    out = {}
    for s in subs:
        chosen = [int(k) for k in covered[s.id]
                  if _moved(known.get((objects[k][0], s.id)), ra[k], dec[k]) > settings.move_arcsec]
        if chosen:
            ids = tuple(str(objects[k][0]) for k in chosen)
            out[s.section] = Targets(str(s.id), provenances[s.provenance_id], s.filter, ids,
                                     tuple(float(ra[k]) for k in chosen), tuple(float(dec[k]) for k in chosen))
    return out


def _moved(old: tuple[float, float] | None, ra: float, dec: float) -> float:
    """Angle [arcsec] between a stored position and this one; infinite without one."""
    if old is None:
        return float("inf")
    a, b = unit_vectors([old[0], ra], [old[1], dec])
    return float(np.degrees(np.linalg.norm(a - b)) * 3600)


def store(conn: Connection, task: ForcedTask, tables: Mapping[str, Table]) -> int:
    """Write the results of a task in one transaction; return the number of rows.

    Raises
    ------
    TransientError
        An image or object has gone in the meantime.
    """
    now = datetime.now(UTC)
    rows = [_row(task, task.sections[section], k, table, now)
            for section, table in tables.items() for k in range(len(table))]
    conn.commit()
    try:
        with conn.transaction():
            return insert_rows(conn, "forced_photometry", rows, update=True)
    except psycopg.errors.ForeignKeyViolation:
        raise TransientError(f"{task.exposure}: an image or object was replaced in the database while it was measured; "
                             "run the same command again") from None


def _row(task: ForcedTask, t: Targets, k: int, table: Table, now: datetime) -> dict[str, Any]:
    row: dict[str, Any] = {
        "_id": stable_id("forced", t.object_ids[k], t.image_id, t.provenance_id), "object_id": t.object_ids[k],
        "image_id": t.image_id, "provenance_id": t.provenance_id, "ra": t.ra[k], "dec": t.dec[k], "mjd": task.mjd,
        "filter": t.filter}
    for name in table.dtype.names or ():
        value = table[name][k].item()
        row[name] = None if isinstance(value, float) and not np.isfinite(value) else value
    return row | {"modified": now}
