"""Provenances in the database; ids as SeeChange computes them (see `model.provenance`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import (
    CODE_VERSIONS,
    UPSTREAM_STEPS,
    ProvenanceRecord,
    canonical_json,
    ids_of_tests,
    provenance_id,
)

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

__all__ = ["CODE_VERSIONS", "IS_TESTING", "UPSTREAM_STEPS", "ProvenanceRecord", "find_record", "has_provenances",
           "provenance_id", "records_of", "store_provenances", "upstream_tree"]

IS_TESTING = "({} IN (SELECT _id FROM provenances WHERE is_testing))"
"""SQL: whether a provenance's id is that of a test."""
_RECORDS = (
    "SELECT p._id, p.process, c.version_major, c.version_minor, c.version_patch, p.parameters, "
    "ARRAY(SELECT u.upstream_id FROM provenance_upstreams u WHERE u.downstream_id = p._id ORDER BY 1) "
    "FROM provenances p JOIN code_versions c ON p.code_version_id = c._id "
)
_SHORTEST = 4


def store_provenances(conn: Connection, records: Iterable[ProvenanceRecord], tag: str | None = None) -> int:
    """Insert provenances with code versions, upstream links and (optionally) a tag; return how many are new.

    Raises
    ------
    TagConflict
        The tag has another provenance of one of the processes; within a transaction nothing is written then.
    """
    records = sorted({r.id: r for r in records}.values(), key=lambda r: r.id)
    testing = ids_of_tests(records)
    versions, rows, links = {}, [], []
    for r in records:
        major, minor, patch = (int(n) for n in (r.code_version.split(".") + ["0", "0"])[:3])
        version_id = stable_id("code_version", r.process, r.code_version)
        versions[version_id] = {
            "_id": version_id,
            "process": r.process,
            "version_major": major,
            "version_minor": minor,
            "version_patch": patch,
        }
        rows.append(
            {
                "_id": r.id,
                "process": r.process,
                "code_version_id": version_id,
                "parameters": canonical_json(dict(r.parameters)),
                "is_testing": r.id in testing,
            }
        )
        links += [{"upstream_id": u, "downstream_id": r.id} for u in r.upstream_ids]
    if tag:
        from seechange_mpi.db.tags import check_tag

        check_tag(conn, tag, records)
    insert_rows(conn, "code_versions", list(versions.values()))
    new = insert_rows(conn, "provenances", rows)
    known = {
        str(i[0])
        for i in conn.execute(
            "SELECT _id FROM provenances WHERE _id = ANY(%s)", ([link["upstream_id"] for link in links],)
        )
    }
    insert_rows(conn, "provenance_upstreams", [link for link in links if link["upstream_id"] in known])
    if tag:
        from seechange_mpi.db.tags import tag_provenances

        tag_provenances(conn, tag, records)
    return new


def has_provenances(conn: Connection, records: Iterable[ProvenanceRecord], tag: str | None = None) -> bool:
    """Whether `store_provenances` would have nothing to do."""
    records = {r.id: r for r in records}.values()
    ids, links = [r.id for r in records], [(u, r.id) for r in records for u in r.upstream_ids]
    row: Any = conn.execute(
        "SELECT (SELECT count(*) FROM provenances WHERE _id = ANY(%(ids)s)), "
        "(SELECT count(*) FROM unnest(%(up)s::text[], %(down)s::text[]) AS l(up, down) JOIN provenances p "
        "ON p._id = l.up WHERE NOT EXISTS (SELECT 1 FROM provenance_upstreams u WHERE u.upstream_id = l.up AND "
        "u.downstream_id = l.down)), "
        "(SELECT count(*) FROM provenance_tags WHERE tag = %(tag)s AND provenance_id = ANY(%(ids)s))",
        {"ids": ids, "up": [u for u, _ in links], "down": [d for _, d in links], "tag": tag}).fetchone()
    return tuple(row) == (len(ids), 0, len(ids) if tag else 0)


def _record(row: Any) -> ProvenanceRecord:
    return ProvenanceRecord(row[0], row[1], ".".join(str(n) for n in row[2:5]), row[5], tuple(row[6]))


def records_of(conn: Connection, ids: Iterable[str]) -> dict[str, ProvenanceRecord]:
    """Return id -> record of those provenances that the database has."""
    rows: list[Any] = conn.execute(_RECORDS + "WHERE p._id = ANY(%s)", (list(ids),)).fetchall()
    return {r[0]: _record(r) for r in rows}


def find_record(conn: Connection, name: str) -> ProvenanceRecord:
    """Return the provenance with an id, or with an id that begins so.

    Raises
    ------
    ConfigError
        There is none, or there are several.
    """
    rows: list[Any] = conn.execute(
        _RECORDS + "WHERE p._id = %(name)s OR (starts_with(p._id, upper(%(name)s)) AND %(long)s) "
        "ORDER BY p._id = %(name)s DESC, p._id LIMIT 20",
        {"name": name, "long": len(name) >= _SHORTEST}).fetchall()
    if not rows:
        raise ConfigError(f"{name}: no provenance with this id (or the beginning of one, {_SHORTEST} letters at least) "
                          "is in the database; seechange-mpi prov tag list shows tags")
    if len(rows) > 1 and rows[0][0] != name:
        raise ConfigError(f"{name}: several provenances begin so: {', '.join(r[0] for r in rows)}; give more letters")
    return _record(rows[0])


def upstream_tree(conn: Connection, record: ProvenanceRecord) -> dict[str, ProvenanceRecord]:
    """Return id -> record of a provenance and everything upstream of it."""
    rows: list[Any] = conn.execute(
        "WITH RECURSIVE up(id) AS (SELECT %s::text UNION SELECT u.upstream_id FROM provenance_upstreams u "
        "JOIN up ON u.downstream_id = up.id) " + _RECORDS + "WHERE p._id IN (SELECT id FROM up)",
        (record.id,)).fetchall()
    return {r[0]: _record(r) for r in rows}
