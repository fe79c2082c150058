"""Deletion of exposures and images with everything that was made from them: shown first, then in one transaction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import sql

from seechange_mpi.db.linking import Patch, lock_sky
from seechange_mpi.db.replace import delete_subs, objects_of
from seechange_mpi.db.schema import metadata
from seechange_mpi.model.errors import ConfigError, SeeChangeError

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SETS_OF_IMAGES = (
    "FROM product_sets p JOIN images i ON p.exposure_id = i.exposure_id AND p.section_id = i.section_id "
    "JOIN source_lists s ON s.image_id = i._id AND s.provenance_id = p.provenance_id "
    "WHERE p.part = 'image' AND i._id = ANY(%(images)s)"
)
_SETS_OF_SUBS = (
    "FROM product_sets p JOIN images i ON p.exposure_id = i.exposure_id AND p.section_id = i.section_id "
    "JOIN detections d ON d.image_id = i._id JOIN cutouts c ON c.detections_id = d._id "
    "JOIN measurement_sets s ON s.cutouts_id = c._id JOIN deepscore_sets q ON q.measurementset_id = s._id "
    "AND q.provenance_id = p.provenance_id WHERE p.part = 'sub' AND i._id = ANY(%(images)s)"
)
_REPORTS = (
    "FROM reports r WHERE EXISTS (SELECT 1 FROM images i WHERE i._id = ANY(%(images)s) AND NOT i.is_sub AND "
    "i.exposure_id = r.exposure_id AND i.section_id = r.section_id) AND NOT EXISTS (SELECT 1 FROM images i WHERE "
    "i.exposure_id = r.exposure_id AND i.section_id = r.section_id AND NOT i.is_sub AND i._id <> ALL(%(images)s))"
)
"""Reports of sections of which no image is left."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image that goes."""

    id: UUID
    exposure_id: UUID
    exposure: str
    section: str
    is_sub: bool
    instrument: str


@dataclass(slots=True)
class Deletion:
    """What goes.

    Attributes
    ----------
    exposures : id -> identifier of exposures that go as a whole.
    images : all images that go.
    downstream : those of them that belong to other exposures and were made with one of the others as reference.
    rows : table -> rows that go.
    """

    exposures: dict[UUID, str] = field(default_factory=dict)
    images: list[ImageRow] = field(default_factory=list)
    downstream: list[ImageRow] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def sections(self) -> dict[str, set[str]]:
        """Exposure that stays -> its sections whose science image goes."""
        out: dict[str, set[str]] = {}
        for i in self.images:
            if not i.is_sub and i.exposure_id not in self.exposures:
                out.setdefault(i.exposure, set()).add(i.section)
        return out


def plan_deletion(conn: Connection, names: Sequence[str]) -> Deletion:
    """Find what goes with exposures and images; nothing is changed.

    Parameters
    ----------
    names : identifiers of exposures, ``EXPOSURE/SECTION`` (every image of it), or ids of images.

    Raises
    ------
    ConfigError
        There is no such exposure or image.
    """
    conn.rollback()
    try:
        return _plan(conn, names)
    finally:
        conn.rollback()


def _plan(conn: Connection, names: Sequence[str]) -> Deletion:
    plan = Deletion()
    roots: set[UUID] = set()
    for name in names:
        roots |= _resolve(conn, name, plan)
    roots |= {r[0] for r in _rows(conn, "SELECT _id FROM images WHERE exposure_id = ANY(%s)", list(plan.exposures))}
    subs = {r[0] for r in _rows(
        conn,
        "SELECT s.image_id FROM image_subtraction_components s JOIN zero_points z ON s.new_zp_id = z._id "
        "JOIN world_coordinates w ON z.wcs_id = w._id JOIN source_lists l ON w.sources_id = l._id "
        "WHERE l.image_id = ANY(%s)", list(roots))}
    others = {r[0] for r in _rows(
        conn, "SELECT image_id FROM image_subtraction_components WHERE ref_image_id = ANY(%s)", list(roots))}
    for r in _rows(conn, "SELECT i._id, i.exposure_id, e.origin_identifier, i.section_id, i.is_sub, i.instrument "
                         "FROM images i JOIN exposures e ON i.exposure_id = e._id WHERE i._id = ANY(%s) "
                         "ORDER BY e.origin_identifier, i.section_id, i.is_sub, i._id", list(roots | subs | others)):
        plan.images.append(ImageRow(*r))
    plan.downstream = [i for i in plan.images if i.id in others - roots - subs]
    plan.rows = _count(conn, plan)
    return plan


def _rows(conn: Connection, query: str, ids: list[UUID]) -> list[Any]:
    return conn.execute(query, (ids,)).fetchall()  # type: ignore[arg-type]


def _resolve(conn: Connection, name: str, plan: Deletion) -> set[UUID]:
    """Note the exposure that a name means, or return its images."""
    row: Any = conn.execute("SELECT _id FROM exposures WHERE origin_identifier = %s", (name,)).fetchone()
    if row is not None:
        plan.exposures[row[0]] = name
        return set()
    if _UUID.fullmatch(name):
        found: list[Any] = conn.execute("SELECT _id FROM images WHERE _id = %s", (UUID(name),)).fetchall()
    else:
        exposure, _, section = name.rpartition("/")
        found = conn.execute("SELECT i._id FROM images i JOIN exposures e ON i.exposure_id = e._id "
                             "WHERE e.origin_identifier = %s AND i.section_id = %s", (exposure, section)).fetchall()
    if not found:
        raise ConfigError(f"{name}: the database has no such exposure, EXPOSURE/SECTION or id of an image")
    return {r[0] for r in found}


def _count(conn: Connection, plan: Deletion) -> dict[str, int]:
    """Count the rows of every table that go, following the foreign keys that delete."""
    ids = {"images": [i.id for i in plan.images], "exposures": list(plan.exposures)}
    counts: dict[str, int] = {}
    doomed: set[str] = set()
    for table in metadata.sorted_tables:
        keys = [(c.name, fk.column.table.name) for c in table.columns for fk in c.foreign_keys
                if (fk.ondelete or "").upper() == "CASCADE" and fk.column.table.name in doomed]
        if not keys and table.name not in ids:
            continue
        conditions = [_hangs_on(c, parent) for c, parent in keys]
        if table.name in ids:
            conditions.append(sql.SQL("_id = ANY({})").format(sql.Literal(ids[table.name])))
        _doom(conn, table.name, sql.SQL(" OR ").join(conditions), has_id="_id" in table.columns)
        doomed.add(table.name)
        counts[table.name] = _number(conn, sql.SQL("SELECT count(*) FROM {}").format(
            sql.Identifier(f"doomed_{table.name}")), {})
    images = {"images": ids["images"]}
    doomed_sets = "AND p._id NOT IN (SELECT _id FROM doomed_product_sets)"
    counts["product_sets"] += sum(
        _number(conn, sql.SQL("SELECT count(DISTINCT p._id) " + part + " " + doomed_sets), images)  # type: ignore[arg-type]
        for part in (_SETS_OF_IMAGES, _SETS_OF_SUBS))
    counts["reports"] += _number(conn, sql.SQL(f"SELECT count(*) {_REPORTS} AND r._id NOT IN "
                                               "(SELECT _id FROM doomed_reports)"), images)
    _doom(conn, "objects", sql.SQL(
        "_id IN (SELECT m.object_id FROM measurements m JOIN doomed_measurements d ON m._id = d._id) AND NOT EXISTS "
        "(SELECT 1 FROM measurements m WHERE m.object_id = objects._id AND m._id NOT IN "
        "(SELECT _id FROM doomed_measurements))"), has_id=True)
    counts["objects"] = _number(conn, sql.SQL("SELECT count(*) FROM doomed_objects"), {})
    for table in metadata.sorted_tables:
        for column in table.columns:
            if any(fk.column.table.name == "objects" and fk.ondelete == "CASCADE" for fk in column.foreign_keys):
                counts[table.name] = counts.get(table.name, 0) + _number(conn, sql.SQL(
                    "SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(table.name),
                                                               _hangs_on(column.name, "objects")), {})
    return {t: n for t, n in counts.items() if n}


def _hangs_on(column: str, parent: str) -> sql.Composed:
    return sql.SQL("{} IN (SELECT _id FROM {})").format(sql.Identifier(column), sql.Identifier(f"doomed_{parent}"))


def _doom(conn: Connection, table: str, condition: sql.Composable, *, has_id: bool) -> None:
    """Write the ids of rows that go into a temporary table."""
    conn.execute(sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WHERE {}").format(
        sql.Identifier(f"doomed_{table}"), sql.SQL("_id" if has_id else "NULL::uuid AS _id"), sql.Identifier(table),
        condition))


def _number(conn: Connection, query: sql.SQL | sql.Composed, values: dict[str, Any]) -> int:
    row: Any = conn.execute(query, values).fetchone()
    return int(row[0])


def delete_rows(conn: Connection, names: Sequence[str], shown: Deletion, radius_arcsec: float) -> None:
    """Delete what was shown, in one transaction: all of it or nothing.

    Commits of the same exposures wait; of others only where they are near the measurements that go. Objects that lose
    their last measurement go too.

    Parameters
    ----------
    names, shown : as given to and returned by `plan_deletion`.
    radius_arcsec : largest distance of a measurement to its object.

    Raises
    ------
    SeeChangeError
        A run has claimed one of the exposures, or something has changed since.
    """
    conn.rollback()
    with conn.transaction():
        exposures = sorted({i.exposure for i in shown.images} | set(shown.exposures.values()))
        conn.execute("SELECT 1 FROM commit_fence WHERE exposure = ANY(%s) ORDER BY exposure FOR UPDATE", (exposures,))
        busy: list[Any] = conn.execute(
            "SELECT identifier FROM knownexposures WHERE identifier = ANY(%s) AND state = 'claimed' AND "
            "lease_expires >= now()", (exposures,)).fetchall()
        if busy:
            raise SeeChangeError(f"a run has claimed {', '.join(r[0] for r in busy)}: wait until it is done; nothing "
                                 "was deleted")
        subs = [i.id for i in shown.images if i.is_sub]
        lost, ra, dec = objects_of(conn, subs)
        if len(ra):
            lock_sky(conn, Patch.around(ra, dec, radius_arcsec))
        if _plan(conn, names).rows != shown.rows:
            raise SeeChangeError("the database has changed since this was shown: look again; nothing was deleted")
        science = {"images": [i.id for i in shown.images if not i.is_sub]}
        conn.execute("DELETE FROM product_sets WHERE _id IN (SELECT p._id " + _SETS_OF_IMAGES + ")", science)
        conn.execute("DELETE FROM reports WHERE _id IN (SELECT r._id " + _REPORTS + ")", science)
        for exposure_id in {i.exposure_id for i in shown.images if i.is_sub}:
            delete_subs(conn, exposure_id, [i.id for i in shown.images if i.is_sub and i.exposure_id == exposure_id],
                        lost)
        conn.execute("DELETE FROM images WHERE _id = ANY(%s)", (science["images"],))
        conn.execute("DELETE FROM exposures WHERE _id = ANY(%s)", (list(shown.exposures),))
