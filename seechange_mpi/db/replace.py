"""What a bundle has that the database lacks or holds differently, and how the new takes the old one's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.matching import F64
from seechange_mpi.db.rows import TABLES_IN_ORDER, PartRows

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_OF_IMAGES = (
    "measurements m JOIN measurement_sets s ON m.measurementset_id = s._id JOIN cutouts c ON s.cutouts_id = c._id "
    "JOIN detections d ON c.detections_id = d._id JOIN images i ON d.image_id = i._id"
)


def compare_parts(
    conn: Connection, exposure_id: UUID, parts: list[PartRows]
) -> tuple[list[PartRows], list[PartRows], list[UUID]]:
    """Return the parts the database does not have as they are, those of them that it has differently, and the
    difference images that would have to go."""
    stored = {
        (r[0], r[1], r[2]): r[3]
        for r in conn.execute(
            "SELECT section_id, part, provenance_id, content_hash FROM product_sets WHERE exposure_id = %s",
            (exposure_id,),
        )
    }
    subs: dict[tuple[object, object], Any] = {
        (r[0], r[1]): r[2]
        for r in conn.execute(
            "SELECT section_id, provenance_id, _id FROM images WHERE exposure_id = %s AND is_sub", (exposure_id,)
        )
    }
    new, differing, old_subs = [], [], []
    for p in parts:
        found = stored.get((p.section_id, p.part, p.provenance_id))
        image = p.rows["images"][0]
        other = subs.get((p.section_id, image["provenance_id"])) if p.part == "sub" else None
        # another reference under one provenance of the subtraction: another difference image, whatever the scoring
        if found == p.content_hash and other in (None, image["_id"]):
            continue
        new.append(p)
        if found is not None or (other is not None and other != image["_id"]):
            differing.append(p)
            if other is not None:
                old_subs.append(other)
    return new, differing, old_subs


def objects_of(conn: Connection, images: list[UUID]) -> tuple[list[UUID], F64, F64]:
    """Return ids, ra and dec [deg] of the objects that measurements of these difference images have."""
    rows: list[Any] = conn.execute(
        f"SELECT DISTINCT o._id, o.ra, o.dec FROM {_OF_IMAGES} JOIN objects o ON m.object_id = o._id "
        "WHERE i._id = ANY(%s)",
        (images,),
    ).fetchall()
    return [r[0] for r in rows], np.array([r[1] for r in rows], float), np.array([r[2] for r in rows], float)


def delete_subs(conn: Connection, exposure_id: UUID, images: list[UUID], objects: list[UUID]) -> dict[UUID, str]:
    """Delete difference images with all that hangs on them, and those of the objects that nothing else has.

    Returns the names of these objects.
    """
    conn.execute(
        "DELETE FROM product_sets p USING images i, detections d, cutouts c, measurement_sets s, deepscore_sets q "
        "WHERE i._id = ANY(%s) AND d.image_id = i._id AND c.detections_id = d._id AND s.cutouts_id = c._id AND "
        "q.measurementset_id = s._id AND p.exposure_id = %s AND p.section_id = i.section_id AND p.part = 'sub' AND "
        "p.provenance_id = q.provenance_id",
        (images, exposure_id),
    )
    conn.execute("DELETE FROM images WHERE _id = ANY(%s)", (images,))
    gone: list[Any] = conn.execute(
        "DELETE FROM objects o WHERE o._id = ANY(%s) AND NOT EXISTS "
        "(SELECT 1 FROM measurements m WHERE m.object_id = o._id) RETURNING o._id, o.name",
        (objects,),
    ).fetchall()
    return dict(gone)


def write_products(conn: Connection, new: list[PartRows], differing: list[PartRows]) -> dict[str, int]:
    """Insert the rows of parts; rows of differing images are rewritten in place, so that references to them and
    products of other provenances stay. Return rows per table."""
    counts: dict[str, int] = {}
    rewritten = [p for p in differing if p.part == "image"]
    inserted = [p for p in new if p not in rewritten]
    for table in TABLES_IN_ORDER:
        for parts, update in ((inserted, False), (rewritten, True)):
            rows = [r for p in parts for r in p.rows.get(table, ())]
            counts[table] = counts.get(table, 0) + insert_rows(conn, table, rows, update=update)
    if rewritten:
        conn.execute(
            "UPDATE refs SET filepath = i.filepath FROM images i WHERE refs.image_id = i._id AND i._id = ANY(%s)",
            ([p.rows["images"][0]["_id"] for p in rewritten],),
        )
    return counts


def objects_taken(conn: Connection, exposure_id: UUID, measuring: list[str]) -> frozenset[UUID]:
    """Return objects that measurements of the exposure, made with these provenances, have already."""
    rows: list[Any] = conn.execute(
        f"SELECT DISTINCT m.object_id FROM {_OF_IMAGES} WHERE i.exposure_id = %s AND s.provenance_id = ANY(%s) "
        "AND m.object_id IS NOT NULL",
        (exposure_id, measuring),
    ).fetchall()
    return frozenset(r[0] for r in rows)
