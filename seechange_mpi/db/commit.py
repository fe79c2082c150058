"""One exposure, one transaction: from its bundle into the database, idempotent, fenced, objects linked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import numpy as np
import psycopg

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.linking import link, lock_sky
from seechange_mpi.db.provenance import store_provenances
from seechange_mpi.db.rows import PartRows, exposure_row, image_part, report_row, sub_part
from seechange_mpi.io.bundle import read_bundle, read_section
from seechange_mpi.model.errors import SeeChangeError, TransientError
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

T = TypeVar("T")


class RefusedCommit(SeeChangeError):
    """The database holds something else for this exposure, or a newer claim has it."""


@dataclass(slots=True)
class CommitResult:
    """What a commit did.

    Attributes
    ----------
    inserted : table -> new rows.
    new_objects, linked : per section, measurements that founded an object / found one.
    unchanged : all products were there already.
    seconds : phase -> time.
    """

    inserted: dict[str, int] = field(default_factory=dict)
    new_objects: dict[str, int] = field(default_factory=dict)
    linked: dict[str, int] = field(default_factory=dict)
    unchanged: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, table: str, n: int) -> None:
        """Add to the rows of a table."""
        self.inserted[table] = self.inserted.get(table, 0) + n


def commit_bundle(
    conn: Connection,
    path: str | Path,
    *,
    radius_arcsec: float,
    token: int | None = None,
    replace: bool = False,
    tag: str | None = None,
    max_new_objects: int = 100_000,
) -> CommitResult:
    """Commit a bundle.

    Parameters
    ----------
    radius_arcsec : largest distance of a measurement to its object.
    token : fencing token of the claim; a smaller one than the database has seen is refused. None: no claim.
    replace : delete what differs and insert this instead.
    tag : provenance tag.
    max_new_objects : refuse (before writing anything visible) to create more.

    Raises
    ------
    RefusedCommit
        Other content is there under the same provenance (and not `replace`), the claim is stale, or there are
        absurdly many new objects.
    TransientError
        The database went away.
    BadInput
        The bundle is damaged.
    """
    started = time.perf_counter()
    info = read_bundle(path)
    sections = [read_section(path, s, pixels=False) for s in info.section_ids]
    parts = [p for s in sections for p in (image_part(info, s), sub_part(info, s)) if p is not None]
    result = CommitResult(seconds={"read": time.perf_counter() - started})

    def transaction() -> CommitResult:
        clock = time.perf_counter()
        with conn.transaction():
            _check_fence(conn, info.exposure.identifier, token)
            result.count("provenances", store_provenances(conn, info.provenances, tag))
            result.count("exposures", insert_rows(conn, "exposures", [exposure_row(info)]))
            new = _missing_parts(conn, info.exposure.identifier, parts, replace)
            result.unchanged = not new
            for part in new:
                for table, rows in part.rows.items():
                    result.count(table, insert_rows(conn, table, rows))
            result.seconds["products"] = time.perf_counter() - clock
            clock = time.perf_counter()
            _link_measurements(conn, new, radius_arcsec, max_new_objects, result)
            result.seconds["linking"] = time.perf_counter() - clock
            clock = time.perf_counter()
            for part in new:
                for table, rows in part.scores.items():
                    result.count(table, insert_rows(conn, table, rows))
            _store_reports(conn, [report_row(info, s) for s in sections])
            insert_rows(conn, "product_sets", [_product_set(info.exposure.identifier, p) for p in new])
        result.seconds["finish"] = time.perf_counter() - clock
        return result

    return _guarded(transaction)


def _guarded(work: Callable[[], T]) -> T:
    """Turn lost connections into `TransientError`."""
    try:
        return work()
    except (psycopg.OperationalError, psycopg.InterfaceError) as err:
        text = str(err).strip().splitlines()
        raise TransientError(
            f"the database went away during the commit: {text[0] if text else type(err).__name__}; "
            "nothing was written, the bundle is kept"
        ) from None


def raise_fence(conn: Connection, identifier: str, token: int) -> None:
    """Say that work under this token begins: older claims of the exposure can no longer commit."""
    with conn.transaction():
        conn.execute(
            "INSERT INTO commit_fence (exposure, token) VALUES (%s, %s) "
            "ON CONFLICT (exposure) DO UPDATE SET token = GREATEST(commit_fence.token, EXCLUDED.token)",
            (identifier, token),
        )


def _check_fence(conn: Connection, identifier: str, token: int | None) -> None:
    conn.execute("INSERT INTO commit_fence (exposure, token) VALUES (%s, 0) ON CONFLICT DO NOTHING", (identifier,))
    row = conn.execute("SELECT token FROM commit_fence WHERE exposure = %s FOR UPDATE", (identifier,)).fetchone()
    assert row is not None
    stored = int(str(row[0]))
    if token is not None and token < stored:
        raise RefusedCommit(
            f"{identifier}: the claim (token {token}) is older than the newest one ({stored}): "
            "another job has taken the exposure over; nothing was written"
        )


def _product_set(identifier: str, part: PartRows) -> dict[str, Any]:
    return {
        "_id": stable_id("set", identifier, part.provenance_id, part.section_id, part.part),
        "exposure_id": stable_id("exposure", identifier),
        "section_id": part.section_id,
        "part": part.part,
        "provenance_id": part.provenance_id,
        "content_hash": part.content_hash,
    }


def _missing_parts(conn: Connection, identifier: str, parts: list[PartRows], replace: bool) -> list[PartRows]:
    """Parts that the database does not have; with `replace`, differing ones are deleted first."""
    exposure_id = stable_id("exposure", identifier)
    stored = {
        (r[0], r[1], r[2]): r[3]
        for r in conn.execute(
            "SELECT section_id, part, provenance_id, content_hash FROM product_sets WHERE exposure_id = %s",
            (exposure_id,),
        )
    }
    new, differing = [], []
    for p in parts:
        found = stored.get((p.section_id, p.part, p.provenance_id))
        if found != p.content_hash:
            new.append(p)
            if found is not None:
                differing.append(p)
    if differing and not replace:
        names = ", ".join(f"{p.section_id} {p.part}" for p in differing)
        raise RefusedCommit(
            f"{identifier}: the database holds other content under the same provenance ({names}): "
            "other inputs went in. To put this in its place: seechange-mpi db commit --replace BUNDLE"
        )
    for p in differing:
        _delete(conn, exposure_id, p)
    return new


def _delete(conn: Connection, exposure_id: UUID, part: PartRows) -> None:
    image = part.rows["images"][0]
    lost = [
        r[0]
        for r in conn.execute(
            "SELECT DISTINCT m.object_id FROM measurements m JOIN measurement_sets s ON m.measurementset_id = s._id "
            "JOIN cutouts c ON s.cutouts_id = c._id JOIN detections d ON c.detections_id = d._id "
            "JOIN images i ON d.image_id = i._id WHERE i.exposure_id = %s AND i.section_id = %s AND "
            "i.provenance_id = %s "
            "AND m.object_id IS NOT NULL",
            (exposure_id, part.section_id, image["provenance_id"]),
        )
    ]
    conn.execute(
        "DELETE FROM images WHERE exposure_id = %s AND section_id = %s AND provenance_id = %s",
        (exposure_id, part.section_id, image["provenance_id"]),
    )
    conn.execute(
        "DELETE FROM objects o WHERE o._id = ANY(%s) AND NOT EXISTS "
        "(SELECT 1 FROM measurements m WHERE m.object_id = o._id)",
        (lost,),
    )
    conn.execute(
        "DELETE FROM product_sets WHERE exposure_id = %s AND section_id = %s AND part = %s AND provenance_id = %s",
        (exposure_id, part.section_id, part.part, part.provenance_id),
    )


def _link_measurements(
    conn: Connection, parts: list[PartRows], radius_arcsec: float, max_new: int, result: CommitResult
) -> None:
    """Link the measurements of all sections together, then insert objects and measurements."""
    rows = [m for p in parts for m in p.measurements]
    section = [p.section_id for p in parts for _ in p.measurements]
    if not rows:
        return
    ra, dec = np.array([m["ra"] for m in rows]), np.array([m["dec"] for m in rows])
    good = np.array([not m["is_bad"] for m in rows])
    lock_sky(conn, ra, dec, radius_arcsec)
    links = link(conn, [m["_id"] for m in rows], ra, dec, good, radius_arcsec)
    if len(links.new_objects) > max_new:
        raise RefusedCommit(
            f"{len(links.new_objects)} new objects in one exposure (limit {max_new}, "
            "objects.max_new_per_exposure): the subtraction is suspect; nothing was written"
        )
    result.count("objects", insert_rows(conn, "objects", links.new_objects))
    for m, object_id in zip(rows, links.object_ids, strict=True):
        m["object_id"] = object_id
    result.count("measurements", insert_rows(conn, "measurements", rows))
    for name, object_id, is_new in zip(section, links.object_ids, links.is_new, strict=True):
        if object_id is not None:
            counts = result.new_objects if is_new else result.linked
            counts[name] = counts.get(name, 0) + 1


def _store_reports(conn: Connection, rows: list[dict[str, Any]]) -> None:
    """Insert reports; the newest run of a section and provenance wins."""
    ids = [r["_id"] for r in rows]
    conn.execute("DELETE FROM reports WHERE _id = ANY(%s)", (ids,))
    insert_rows(conn, "reports", rows)
