"""One exposure, one transaction: from its bundle into the database, idempotent, fenced, objects linked."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import numpy as np
import psycopg

from seechange_mpi.db.badness import hold_marks, meet_marks
from seechange_mpi.db.blocks import concatenate, write_block
from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.checks import check_bundle
from seechange_mpi.db.engine import notice_lost_client
from seechange_mpi.db.exposures import exposure_row, store_exposure
from seechange_mpi.db.linking import Linkage, Patch, found, lock_sky, match, nearby_objects
from seechange_mpi.db.names import prepare_counter, year_of
from seechange_mpi.db.provenance import has_provenances, store_provenances
from seechange_mpi.db.replace import compare_parts, delete_subs, objects_of, objects_taken, write_products
from seechange_mpi.db.rows import PartRows, report_row, section_parts
from seechange_mpi.io.bundle import BundleInfo, read_bundle, read_tables
from seechange_mpi.model.errors import SeeChangeError, TransientError
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import ids_of_tests

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
    how: Linkage = Linkage(),
) -> CommitResult:
    """Commit a bundle.

    Parameters
    ----------
    radius_arcsec : largest distance of a measurement to its object.
    token : fencing token of the claim; a smaller one than the database has seen is refused. None: no claim.
    replace : delete what differs and insert this instead.
    tag : provenance tag.
    max_new_objects : refuse (before writing anything visible) to create more.
    how : how objects are matched and named.

    Raises
    ------
    RefusedCommit
        Other content is there under the same provenance (and not `replace`), the claim is stale, or there are
        absurdly many new objects.
    TransientError
        The database went away.
    BadInput
        The bundle is damaged, of a later version, or not a bundle.
    """
    started = time.perf_counter()
    info = read_bundle(path)
    sections = read_tables(path)
    check_bundle(info, sections)
    parts = [p for s in sections for p in section_parts(info, s)]
    result = CommitResult(seconds={"read": time.perf_counter() - started})
    measuring = [p.id for p in info.provenances if p.process == "measuring"]
    is_test = not ids_of_tests(info.provenances).isdisjoint(measuring)
    how = replaced(how, is_test=is_test, year=year_of(info.exposure.mjd))

    def transaction() -> CommitResult:
        conn.commit()  # what the caller has read or written so far: this is a transaction of its own
        clock = time.perf_counter()
        exposure_id = stable_id("exposure", info.exposure.identifier)
        result.count("provenances", _store_provenances(conn, info, token, tag))
        if how.counts:
            prepare_counter(conn, how.year)
        with conn.transaction():
            conn.execute("SET LOCAL jit = off")  # compiling takes longer than any of these queries
            notice_lost_client(conn)
            hold_marks(conn)
            _check_fence(conn, info.exposure.identifier, token)
            result.count("exposures", store_exposure(conn, exposure_row(info, sections)))
            new, differing, old_subs = compare_parts(conn, exposure_id, parts)
            if differing and not replace:
                _refuse(info.exposure.identifier, differing)
            result.unchanged = not new
            patch, former = _lock_and_delete(conn, exposure_id, new, old_subs, radius_arcsec)
            lacking = _without_measurements(conn, new)
            for table, n in write_products(conn, new, differing).items():
                result.count(table, n)
            result.seconds["products"] = time.perf_counter() - clock
            clock = time.perf_counter()
            taken = objects_taken(conn, exposure_id, measuring)
            _link_and_store(conn, new, lacking, (radius_arcsec, patch, taken), replaced(how, former=former),
                            max_new_objects, result)
            result.seconds["linking"] = time.perf_counter() - clock
            clock = time.perf_counter()
            meet_marks(conn, exposure_id, new, lacking)
            made = {s.section_id: [p.part for p in parts if p.section_id == s.section_id] for s in sections}
            _store_reports(conn, exposure_id, [(report_row(info, s, made[s.section_id]), s.provenance_ids)
                                               for s in sections])
            sets = [_product_set(info.exposure.identifier, p) for p in new]
            insert_rows(conn, "product_sets", sets, update=True)
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
            "it has all of the exposure or nothing, and the bundle is kept: committing it again is safe"
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
    """Lock the exposure's fence until the end of the transaction, raise it, and refuse an older token."""
    row: Any = conn.execute(
        "INSERT INTO commit_fence (exposure, token) VALUES (%s, %s) "
        "ON CONFLICT (exposure) DO UPDATE SET token = GREATEST(commit_fence.token, EXCLUDED.token) RETURNING token",
        (identifier, token or 0),
    ).fetchone()
    if token is not None and token < int(row[0]):
        raise RefusedCommit(
            f"{identifier}: the claim (token {token}) is older than the newest one ({row[0]}): "
            "another job has taken the exposure over; nothing was written"
        )


def _store_provenances(conn: Connection, info: BundleInfo, token: int | None, tag: str | None) -> int:
    """Store provenances in a transaction of their own, unless they are there: exposures of all fields have the same
    ones, and whoever inserts a row that another transaction has inserted waits for the end of that transaction."""
    if has_provenances(conn, info.provenances, tag):
        conn.commit()
        return 0
    conn.commit()
    with conn.transaction():
        _check_fence(conn, info.exposure.identifier, token)
        return store_provenances(conn, info.provenances, tag)


def _refuse(identifier: str, differing: list[PartRows]) -> None:
    names = ", ".join(f"{p.section_id} {p.part}" for p in differing)
    raise RefusedCommit(
        f"{identifier}: the database holds other content under the same provenance ({names}): "
        "other inputs went in. To put this in its place: seechange-mpi db commit --replace BUNDLE"
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


def _lock_and_delete(
    conn: Connection, exposure_id: UUID, new: list[PartRows], old_subs: list[UUID], radius_arcsec: float
) -> tuple[Patch, dict[UUID, str]]:
    """Take all sky locks at once (of what comes and of what goes), then delete what goes; return the sky locked, and
    the names of objects that are gone."""
    blocks = [p.measurements for p in new if p.measurements is not None]
    lost, ra, dec = objects_of(conn, old_subs)
    ra = np.concatenate([ra, *(b.array("ra") for b in blocks)])
    dec = np.concatenate([dec, *(b.array("dec") for b in blocks)])
    patch = Patch.around(ra, dec, radius_arcsec)
    lock_sky(conn, patch)
    return patch, delete_subs(conn, exposure_id, old_subs, lost) if old_subs else {}


def _without_measurements(conn: Connection, parts: list[PartRows]) -> list[PartRows]:
    """Return the parts whose set of measurements the database does not have; it has all of a set or nothing."""
    wanted = {p.rows["measurement_sets"][0]["_id"]: p for p in parts if p.measurements is not None}
    known = {r[0] for r in conn.execute("SELECT _id FROM measurement_sets WHERE _id = ANY(%s)", (list(wanted),))}
    return [p for i, p in wanted.items() if i not in known]


def _link_and_store(
    conn: Connection, parts: list[PartRows], lacking: list[PartRows], within: tuple[float, Patch, frozenset[UUID]],
    how: Linkage, max_new: int, result: CommitResult,
) -> None:
    """Link the measurements of all sections together; insert scores, objects and measurements.

    Scores need no object: the server takes them while the measurements are matched here.
    """
    radius_arcsec, patch, taken = within
    blocks = [(p.section_id, p.measurements) for p in lacking if p.measurements is not None and p.measurements.n]
    if not blocks:
        _store_scores(conn, parts, result)
        return
    rows = concatenate([b for _, b in blocks])
    ra, dec, good = rows.array("ra"), rows.array("dec"), ~rows.array("is_bad")
    errors = np.stack([rows.array(n).astype(float) for n in ("ra_err", "dec_err")], axis=1)
    known = nearby_objects(conn, patch, is_test=how.is_test, errors=how.matching == "likelihood")
    with ThreadPoolExecutor(1, "scores") as beside:
        stored = beside.submit(_store_scores, conn, parts, result)
        matches = match(known, ra, dec, good, radius_arcsec, errors=errors, how=how, taken=taken)
        stored.result()
    links = found(conn, matches, known, rows.array("_id"), ra, dec, good, errors=errors, how=how)
    n_new = int(np.count_nonzero(links.is_new))
    if n_new > max_new:
        raise RefusedCommit(
            f"{n_new} new objects in one exposure (limit {max_new}, "
            "objects.max_new_per_exposure): the subtraction is suspect; nothing was written"
        )
    result.count("objects", write_block(conn, "objects", links.new_objects, fresh=True))
    rows.columns["object_id"], rows.nulls["object_id"] = links.object_ids, links.without
    result.count("measurements", write_block(conn, "measurements", rows, fresh=True))
    section = np.repeat(np.arange(len(blocks)), [b.n for _, b in blocks])
    old = ~links.without & ~links.is_new
    for k, (name, _) in enumerate(blocks):
        for counts, which in ((result.new_objects, links.is_new), (result.linked, old)):
            n = int(np.count_nonzero(which & (section == k)))
            if n:
                counts[name] = n


def _store_scores(conn: Connection, parts: list[PartRows], result: CommitResult) -> None:
    """Insert sets of scores with their rows; the database has all of a set or nothing."""
    wanted = [r["_id"] for p in parts for r in p.score_sets]
    known = {r[0] for r in conn.execute("SELECT _id FROM deepscore_sets WHERE _id = ANY(%s)", (wanted,))}
    new = [(r, b) for p in parts for r, b in zip(p.score_sets, p.scores, strict=True) if r["_id"] not in known]
    result.count("deepscore_sets", insert_rows(conn, "deepscore_sets", [r for r, _ in new]))
    result.count("deepscores", write_block(conn, "deepscores", concatenate([b for _, b in new]), fresh=True))


def _store_reports(conn: Connection, exposure_id: UUID, reports: list[tuple[dict[str, Any], dict[str, str]]]) -> None:
    """Insert reports. The newest run of a section wins over its earlier, shorter ones along the same provenances."""
    chain = [(r["section_id"], p) for r, ids in reports for p in {r["provenance_id"], *ids.values()}]
    conn.execute(
        "DELETE FROM reports r USING unnest(%s::text[], %s::text[]) AS t(section, provenance) "
        "WHERE r.exposure_id = %s AND r.section_id = t.section AND r.provenance_id = t.provenance",
        ([c[0] for c in chain], [c[1] for c in chain], exposure_id),
    )
    insert_rows(conn, "reports", [r for r, _ in reports])
