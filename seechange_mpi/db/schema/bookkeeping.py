"""Tables of reports, commits, archives and the queue."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from seechange_mpi.db.schema.columns import identity, link_to, metadata, times

reports = Table(
    "reports",
    metadata,
    identity(),
    link_to("exposures", "exposure_id"),
    Column("section_id", Text, nullable=False),
    Column("image_id", UUID(as_uuid=True), index=True),
    Column("provenance_id", Text, nullable=False),
    Column("success", Boolean, nullable=False),
    Column("caveat", Text, nullable=False, server_default=""),
    Column("start_time", DateTime(timezone=True)),
    Column("finish_time", DateTime(timezone=True)),
    Column("cluster_id", Text),
    Column("node_id", Text),
    Column("completed_step", Text),
    Column("error_step", Text),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("warnings", Text),
    Column("process_provid", JSONB),
    Column("process_memory", JSONB),
    Column("process_runtime", JSONB),
    Column("process_metrics", JSONB),
    Column("_bitflag", BigInteger, nullable=False, server_default="0", index=True),
    Column("progress_steps_bitflag", BigInteger, nullable=False, server_default="0"),
    Column("products_exist_bitflag", BigInteger, nullable=False, server_default="0"),
    Column("products_committed_bitflag", BigInteger, nullable=False, server_default="0"),
    *times(),
    UniqueConstraint("exposure_id", "section_id", "provenance_id"),
)

product_sets = Table(
    "product_sets",
    metadata,
    identity(),
    link_to("exposures", "exposure_id"),
    Column("section_id", Text, nullable=False),
    Column("part", Text, nullable=False),
    Column("provenance_id", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    *times(),
    UniqueConstraint("exposure_id", "section_id", "part", "provenance_id"),
    CheckConstraint("part IN ('image', 'sub')", name="part"),
)

archived_files = Table(
    "archived_files",
    metadata,
    identity(),
    Column("archive", Text, nullable=False),
    Column("filepath", Text, nullable=False),
    Column("exposure", Text, nullable=False, index=True),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("verified_at", DateTime(timezone=True)),
    *times(),
    UniqueConstraint("archive", "filepath"),
)

commit_fence = Table(
    "commit_fence", metadata, Column("exposure", Text, primary_key=True), Column("token", BigInteger, nullable=False)
)

knownexposures = Table(
    "knownexposures",
    metadata,
    identity(),
    Column("identifier", Text, nullable=False),
    Column("instrument", Text, nullable=False),
    Column("filepath", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("mjd", Double),
    Column("params", JSONB, nullable=False, server_default="{}"),
    Column("through_step", Text),
    Column("owner", Text),
    Column("claim_time", DateTime(timezone=True)),
    Column("lease_expires", DateTime(timezone=True)),
    Column("release_time", DateTime(timezone=True)),
    Column("token", BigInteger, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    Column("counts", JSONB, nullable=False, server_default="{}"),
    *times(),
    UniqueConstraint("instrument", "identifier"),
    CheckConstraint("state IN ('held', 'ready', 'claimed', 'done', 'partial', 'failed')", name="state"),
)
