"""Mean positions of objects from their measurements, stored with the provenance of how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from seechange_mpi.config.history import PositioningSettings
from seechange_mpi.db.bulk import stage_rows
from seechange_mpi.db.linking import healpix
from seechange_mpi.db.objects import of_tests
from seechange_mpi.db.provenance import IS_TESTING, store_provenances
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import ProvenanceRecord, make_record
from seechange_mpi.pipeline.positioning import MeanPositions, mean_positions

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

BATCH = 50_000
"""Objects whose measurements are fetched with one query."""
_LOCK = 0x5EEC0B1E
"""Advisory lock that lets one process at a time write positions."""

OF_MEASUREMENTS = (
    "measurements m JOIN measurement_sets s ON m.measurementset_id = s._id JOIN cutouts c ON s.cutouts_id = c._id "
    "JOIN detections d ON c.detections_id = d._id JOIN images i ON d.image_id = i._id "
    "JOIN image_subtraction_components k ON k.image_id = i._id JOIN zero_points z ON k.new_zp_id = z._id "
    "JOIN world_coordinates w ON z.wcs_id = w._id"
)
NEWEST_ONLY = (
    "NOT EXISTS (SELECT 1 FROM images i2 JOIN detections d2 ON d2.image_id = i2._id "
    "JOIN cutouts c2 ON c2.detections_id = d2._id JOIN measurement_sets s2 ON s2.cutouts_id = c2._id "
    "WHERE i2.exposure_id = i.exposure_id AND i2.section_id = i.section_id AND i2.is_sub "
    f"AND {IS_TESTING.format('i2.provenance_id')} = {IS_TESTING.format('i.provenance_id')} "
    "AND s2.created_at > s.created_at)"
)
"""SQL: of several versions of a section's measurements only the one committed last counts, among tests and among real
ones."""


@dataclass(slots=True)
class PositionsDone:
    """What `position_objects` did: objects with a new, a changed, the same position, and without one (too faint)."""

    provenance_id: str
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    without: int = 0


def positioning_provenance(conn: Connection, settings: PositioningSettings, *, is_test: bool = False
                           ) -> ProvenanceRecord:
    """Provenance of positions made now: upstream are all measuring provenances there are, of tests or of real data.

    Raises
    ------
    ConfigError
        Nothing was ever measured.
    """
    measuring = [str(r[0]) for r in conn.execute(
        f"SELECT DISTINCT provenance_id FROM measurement_sets WHERE {IS_TESTING.format('provenance_id')} = %s "
        "ORDER BY 1", (is_test,))]
    if not measuring:
        raise ConfigError("there are no measurements in the database yet: process exposures with a reference first "
                          "(seechange-mpi run, refs add)")
    parameters = settings.critical() | ({"is_testing": True} if is_test else {})
    return make_record("positioning", parameters, measuring)


def position_objects(conn: Connection, settings: PositioningSettings, object_ids: Sequence[UUID] | None = None
                     ) -> PositionsDone:
    """Bring the positions of objects up to date; doing it twice changes nothing.

    Each batch of objects is a transaction of its own.

    Parameters
    ----------
    object_ids : None: all objects with measurements but those of tests.

    Raises
    ------
    ConfigError
        Nothing was ever measured, or objects of tests and real ones are given together.
    """
    conn.commit()
    with conn.transaction():
        record = positioning_provenance(conn, settings, is_test=of_tests(conn, object_ids))
        store_provenances(conn, [record])
    done = PositionsDone(record.id)
    for batch in _batches(conn, object_ids):
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            ids, means = _means(conn, settings, batch)
            _store(conn, record.id, ids, means, done)
            done.without += len(batch) - int((means.n > 0).sum())
    return done


def _batches(conn: Connection, object_ids: Sequence[UUID] | None) -> Iterator[list[UUID]]:
    if object_ids is not None:
        wanted = sorted(set(object_ids))
        yield from (wanted[k: k + BATCH] for k in range(0, len(wanted), BATCH))
        return
    last = UUID(int=0)
    while True:
        rows: list[Any] = conn.execute(
            "SELECT _id FROM objects WHERE _id > %s AND NOT is_test ORDER BY _id LIMIT %s", (last, BATCH)).fetchall()
        conn.commit()
        if not rows:
            return
        last = rows[-1][0]
        yield [r[0] for r in rows]


def _means(conn: Connection, settings: PositioningSettings, ids: list[UUID]) -> tuple[list[UUID], MeanPositions]:
    """Mean positions of objects; the error of the astrometric solution adds to that of each measurement."""
    rows: list[Any] = conn.execute(
        "SELECT m.object_id, m.ra, m.dec, m.ra_err, m.dec_err, m.flux_psf / NULLIF(m.flux_psf_err, 0), "
        f"COALESCE(w.error_centre_mas, 0) FROM {OF_MEASUREMENTS} WHERE m.object_id = ANY(%(ids)s) "
        "AND (%(bad)s OR NOT m.is_bad) AND (%(filter)s::text IS NULL OR i.filter = %(filter)s) "
        f"AND (%(until)s::float8 IS NULL OR i.mjd <= %(until)s) AND {NEWEST_ONLY} ORDER BY m._id",
        {"ids": ids, "bad": settings.use_bad, "filter": settings.filter, "until": settings.until_mjd}).fetchall()
    number = {object_id: k for k, object_id in enumerate(ids)}
    group = np.array([number[r[0]] for r in rows], np.int64)
    table = np.array([[np.nan if v is None else v for v in r[1:]] for r in rows], float).reshape(-1, 6)
    # the solution's error is radial
    frame = np.nan_to_num(table[:, 5]) / 3.6e6 / np.sqrt(2)
    means = mean_positions(group, table[:, 0], table[:, 1], np.hypot(table[:, 2], frame),
                           np.hypot(table[:, 3], frame), np.nan_to_num(table[:, 4]), len(ids), sncut=settings.sncut,
                           sigma_clip=settings.sigma_clip, weight_power=settings.weight_power)
    return ids, means


def _store(conn: Connection, provenance_id: str, ids: list[UUID], means: MeanPositions, done: PositionsDone) -> None:
    """Insert what is new, rewrite what differs, delete what has no measurement any more."""
    there = means.n > 0
    conn.execute("DELETE FROM object_positions WHERE provenance_id = %s AND object_id = ANY(%s)",
                 (provenance_id, [i for i, t in zip(ids, there, strict=True) if not t]))
    chosen = np.flatnonzero(there)
    if not len(chosen):
        return
    pixels = healpix(means.ra[chosen], means.dec[chosen])
    rows = [{
        "_id": stable_id("object_position", ids[k], provenance_id), "object_id": ids[k],
        "provenance_id": provenance_id, "ra": float(means.ra[k]), "dec": float(means.dec[k]), "healpix": int(p),
        "dra": float(means.dra[k]), "ddec": float(means.ddec[k]), "ra_dec_cov": float(means.cov[k]),
        "n_measurements": int(means.n[k])} for k, p in zip(chosen, pixels, strict=True)]
    stage_rows(conn, "object_positions", rows)
    names = ", ".join(rows[0])
    new = conn.execute(f"INSERT INTO object_positions ({names}) SELECT {names} FROM new_object_positions ORDER BY _id "
                       "ON CONFLICT DO NOTHING").rowcount
    values = "{0}.ra, {0}.dec, {0}.dra, {0}.ddec, {0}.ra_dec_cov, {0}.n_measurements"
    changed = conn.execute(
        "UPDATE object_positions p SET ra = n.ra, dec = n.dec, healpix = n.healpix, dra = n.dra, ddec = n.ddec, "
        "ra_dec_cov = n.ra_dec_cov, n_measurements = n.n_measurements, modified = now() FROM new_object_positions n "
        "WHERE p.object_id = n.object_id AND p.provenance_id = n.provenance_id "
        f"AND ({values.format('p')}) IS DISTINCT FROM ({values.format('n')})").rowcount
    done.new += new
    done.changed += changed
    done.unchanged += len(rows) - new - changed


def newest_position(conn: Connection, object_id: UUID) -> tuple[Any, ...] | None:
    """(ra, dec, dra, ddec, ra_dec_cov, n_measurements, provenance_id, modified) made last for an object, or None."""
    return conn.execute(
        "SELECT ra, dec, dra, ddec, ra_dec_cov, n_measurements, provenance_id, modified FROM object_positions "
        "WHERE object_id = %s ORDER BY modified DESC, _id LIMIT 1", (object_id,)).fetchone()
