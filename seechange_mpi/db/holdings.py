"""Where the database says that products lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


@dataclass(frozen=True, slots=True)
class StoredExposure:
    """An exposure in the database.

    Attributes
    ----------
    bundles : files that hold products of it, as they were committed, the newest first.
    hashes : (section, part, provenance id) -> hash of the committed content.
    """

    id: UUID
    identifier: str
    bundles: tuple[Path, ...]
    hashes: dict[tuple[str, str, str], str]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in the database: of what it is, and its own provenance."""

    exposure: str
    section_id: str
    process: str
    provenance_id: str


def find_exposure(conn: Connection, name: str | UUID) -> StoredExposure | None:
    """Return an exposure by its id or its identifier; None if it is not there."""
    row: Any = conn.execute(
        "SELECT _id, origin_identifier FROM exposures WHERE _id = %s OR origin_identifier = %s",
        (_uuid(name), str(name))).fetchone()
    if row is None:
        return None
    exposure = {"exposure": row[0]}
    paths: list[Any] = conn.execute(
        "WITH i AS (SELECT _id, filepath, created_at FROM images WHERE exposure_id = %(exposure)s), "
        "files AS (SELECT filepath, created_at FROM i "
        "UNION ALL SELECT s.filepath, s.created_at FROM source_lists s JOIN i ON s.image_id = i._id "
        "UNION ALL SELECT c.filepath, c.created_at FROM cutouts c JOIN detections d ON c.detections_id = d._id "
        "JOIN i ON d.image_id = i._id) "
        "SELECT filepath FROM files GROUP BY filepath ORDER BY max(created_at) DESC, filepath", exposure).fetchall()
    sets: list[Any] = conn.execute(
        "SELECT section_id, part, provenance_id, content_hash FROM product_sets WHERE exposure_id = %(exposure)s",
        exposure).fetchall()
    return StoredExposure(row[0], row[1], tuple(Path(p[0]) for p in paths), {(s[0], s[1], s[2]): s[3] for s in sets})


def find_image(conn: Connection, image_id: str | UUID) -> StoredImage | None:
    """Return an image by its id; None if it is not there."""
    row: Any = conn.execute(
        "SELECT e.origin_identifier, i.section_id, i.is_sub, i.provenance_id FROM images i "
        "JOIN exposures e ON i.exposure_id = e._id WHERE i._id = %s", (_uuid(image_id),)).fetchone()
    if row is None:
        return None
    return StoredImage(row[0], row[1], "subtraction" if row[2] else "preprocessing", row[3])


def _uuid(name: str | UUID) -> UUID | None:
    try:
        return UUID(str(name))
    except ValueError:
        return None
