"""Tables of how things were made."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Integer, Table, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB

from seechange_mpi.db.schema.columns import identity, link_to, metadata, provenance, times

code_versions = Table(
    "code_versions",
    metadata,
    identity(),
    Column("process", Text, nullable=False),
    *(Column(f"version_{n}", Integer, nullable=False) for n in ("major", "minor", "patch")),
    *times(),
    UniqueConstraint("process", "version_major", "version_minor", "version_patch"),
)

provenances = Table(
    "provenances",
    metadata,
    Column("_id", Text, primary_key=True),
    Column("process", Text, nullable=False, index=True),
    link_to("code_versions", "code_version_id"),
    Column("parameters", JSONB, nullable=False, server_default="{}"),
    *(Column(n, Boolean, nullable=False, server_default="false") for n in ("is_bad", "is_outdated", "is_testing")),
    Column("bad_comment", Text),
    Column("replaced_by", Text, ForeignKey("provenances._id", ondelete="SET NULL"), index=True),
    *times(),
)

provenance_upstreams = Table(
    "provenance_upstreams",
    metadata,
    *(
        Column(n, Text, ForeignKey("provenances._id", ondelete="CASCADE"), primary_key=True)
        for n in ("upstream_id", "downstream_id")
    ),
)

provenance_tags = Table(
    "provenance_tags",
    metadata,
    identity(),
    Column("tag", Text, nullable=False, index=True),
    provenance(),
    *times(),
    UniqueConstraint("tag", "provenance_id"),
)
