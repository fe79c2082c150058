"""Rows that a person means: by exposure, section and product, or by id; and what marking them would change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from seechange_mpi.db.badness import MARKABLE, mark
from seechange_mpi.model.errors import ConfigError

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SCIENCE = "exposures e JOIN images i ON i.exposure_id = e._id AND NOT i.is_sub"
_SUB = "exposures e JOIN images i ON i.exposure_id = e._id AND i.is_sub"
_EXTRACTED = f"{_SCIENCE} JOIN source_lists s ON s.image_id = i._id"
_DETECTED = f"{_SUB} JOIN detections d ON d.image_id = i._id"
_MEASURED = f"{_DETECTED} JOIN cutouts c ON c.detections_id = d._id JOIN measurement_sets m ON m.cutouts_id = c._id"


@dataclass(frozen=True, slots=True)
class _Product:
    """Where the rows of a product are: the last alias, and the one that has the provenance."""

    table: str
    source: str
    alias: str
    provenance: str = ""


PRODUCTS: dict[str, _Product] = {
    "exposure": _Product("exposures", "exposures e", "e"),
    "image": _Product("images", _SCIENCE, "i"),
    "background": _Product("backgrounds", f"{_EXTRACTED} JOIN backgrounds x ON x.sources_id = s._id", "x", "s"),
    "sources": _Product("source_lists", _EXTRACTED, "s"),
    "psf": _Product("psfs", f"{_EXTRACTED} JOIN psfs x ON x.sources_id = s._id", "x", "s"),
    "wcs": _Product("world_coordinates", f"{_EXTRACTED} JOIN world_coordinates x ON x.sources_id = s._id", "x"),
    "zp": _Product("zero_points", f"{_EXTRACTED} JOIN world_coordinates w ON w.sources_id = s._id "
                                  "JOIN zero_points x ON x.wcs_id = w._id", "x"),
    "reference": _Product("refs", f"{_SCIENCE} JOIN refs x ON x.image_id = i._id", "x"),
    "sub": _Product("images", _SUB, "i"),
    "detections": _Product("detections", _DETECTED, "d"),
    "cutouts": _Product("cutouts", f"{_DETECTED} JOIN cutouts x ON x.detections_id = d._id", "x"),
    "measurements": _Product("measurement_sets", _MEASURED, "m"),
    "scores": _Product("deepscore_sets", f"{_MEASURED} JOIN deepscore_sets x ON x.measurementset_id = m._id", "x"),
}
"""Products that have a name on the command line; ``measurements`` and ``scores`` are whole sets."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be marked; exposure, section and provenance are empty where only an id was given."""

    table: str
    id: UUID
    product: str
    exposure: str
    section: str
    provenance: str
    own: int
    upstream: int


def find_rows(conn: Connection, names: Iterable[str], *, products: Sequence[str] = (), provenance: str = ""
              ) -> list[Row]:
    """Return the rows that names mean.

    Parameters
    ----------
    names : identifiers of exposures, ``EXPOSURE/SECTION``, or ids of rows of any table that has badness.
    products : of `PRODUCTS`; none: the exposure itself, of a section its image.
    provenance : beginning of an id; rows of other provenances are passed over.

    Raises
    ------
    ConfigError
        A name means nothing, or there is no such product.
    """
    unknown = [p for p in products if p not in PRODUCTS]
    if unknown:
        raise ConfigError(f"'{unknown[0]}' is no product; there are: {', '.join(PRODUCTS)}")
    out: list[Row] = []
    for name in names:
        found = _by_id(conn, UUID(name)) if _UUID.fullmatch(name) else _by_name(conn, name, products, provenance)
        out += [r for r in found if r not in out]
    return out


def _by_id(conn: Connection, row_id: UUID) -> list[Row]:
    for table in MARKABLE:
        row: Any = conn.execute(f"SELECT _bitflag, _upstream_bitflag FROM {table} WHERE _id = %s",  # type: ignore[arg-type]
                                (row_id,)).fetchone()
        if row is not None:
            return [Row(table, row_id, table, "", "", "", row[0], row[1])]
    raise ConfigError(f"{row_id}: no row with this id can be marked; tables: {', '.join(MARKABLE)}")


def _by_name(conn: Connection, name: str, products: Sequence[str], provenance: str) -> list[Row]:
    exposure, section = name, ""
    if not _known(conn, exposure):
        exposure, _, section = name.rpartition("/")
        if not _known(conn, exposure):
            raise ConfigError(f"{name}: the database has no such exposure, EXPOSURE/SECTION or id")
    chosen = list(products) or ["image" if section else "exposure"]
    if section and "exposure" in chosen:
        raise ConfigError(f"{name}: an exposure is marked as a whole; leave /{section} away, or name another product")
    out = []
    for product in chosen:
        p = PRODUCTS[product]
        place = "''" if product == "exposure" else "i.section_id"
        rows: list[Any] = conn.execute(
            f"SELECT {p.alias}._id, {place}, {p.provenance or p.alias}.provenance_id, "  # type: ignore[arg-type]
            f"{p.alias}._bitflag, {p.alias}._upstream_bitflag FROM {p.source} WHERE e.origin_identifier = %s "
            f"AND starts_with({p.provenance or p.alias}.provenance_id, %s) AND (%s = '' OR {place} = %s) "
            f"ORDER BY 2, {p.alias}.created_at, {p.alias}._id",
            (exposure, provenance.upper(), section, section)).fetchall()
        out += [Row(p.table, r[0], product, exposure, r[1], r[2], r[3], r[4]) for r in rows]
    if not out:
        raise ConfigError(f"{name}: the database has no {' or '.join(chosen)} of it"
                          + (f" with provenance {provenance}" if provenance else ""))
    return out


def _known(conn: Connection, exposure: str) -> bool:
    return conn.execute("SELECT 1 FROM exposures WHERE origin_identifier = %s", (exposure,)).fetchone() is not None


def _ids(rows: Iterable[Row]) -> dict[str, list[UUID]]:
    out: dict[str, list[UUID]] = {}
    for r in rows:
        out.setdefault(r.table, []).append(r.id)
    return out


def preview(conn: Connection, rows: Iterable[Row], *, add: int = 0, remove: int = 0) -> dict[str, int]:
    """Return table -> rows that `set_marks` would change; nothing is changed."""
    conn.rollback()
    with conn.transaction(force_rollback=True):
        return mark(conn, _ids(rows), add=add, remove=remove)


def set_marks(conn: Connection, rows: Iterable[Row], *, add: int = 0, remove: int = 0) -> dict[str, int]:
    """Set and clear own bits of rows, hand them on, in one transaction; return table -> rows that changed."""
    conn.rollback()
    with conn.transaction():
        return mark(conn, _ids(rows), add=add, remove=remove)
