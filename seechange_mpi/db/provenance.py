"""Provenances in the database; ids as SeeChange computes them (see `model.provenance`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import (
    CODE_VERSIONS,
    UPSTREAM_STEPS,
    ProvenanceRecord,
    canonical_json,
    provenance_id,
)

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

__all__ = ["CODE_VERSIONS", "UPSTREAM_STEPS", "ProvenanceRecord", "provenance_id", "store_provenances"]


def store_provenances(conn: Connection, records: Iterable[ProvenanceRecord], tag: str | None = None) -> int:
    """Insert provenances with code versions, upstream links and (optionally) a tag; return how many are new."""
    records = sorted({r.id: r for r in records}.values(), key=lambda r: r.id)
    versions, rows, links, tags = {}, [], [], []
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
            }
        )
        links += [{"upstream_id": u, "downstream_id": r.id} for u in r.upstream_ids]
        if tag:
            tags.append({"_id": stable_id("tag", tag, r.id), "tag": tag, "provenance_id": r.id})
    insert_rows(conn, "code_versions", list(versions.values()))
    new = insert_rows(conn, "provenances", rows)
    known = {
        str(i[0])
        for i in conn.execute(
            "SELECT _id FROM provenances WHERE _id = ANY(%s)", ([link["upstream_id"] for link in links],)
        )
    }
    insert_rows(conn, "provenance_upstreams", [link for link in links if link["upstream_id"] in known])
    insert_rows(conn, "provenance_tags", tags)
    return new
