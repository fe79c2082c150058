"""Columns that tables share, and what comparisons of two databases leave out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import REAL, BigInteger, Column, DateTime, Double, ForeignKey, Index, MetaData, Text, text
from sqlalchemy.dialects.postgresql import UUID

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

VOLATILE: frozenset[str] = frozenset(
    {
        "created_at",
        "modified",
        "start_time",
        "finish_time",
        "process_runtime",
        "process_memory",
        "process_metrics",
        "node_id",
        "cluster_id",
        "lease_expires",
        "claim_time",
        "release_time",
        "owner",
        "token",
        "filepath",
        "counts",
    }
)
"""Columns that differ between equal runs: times, hosts, costs, places."""
CACHES: frozenset[str] = frozenset({"catalog_excerpts"})
"""Tables of what has been brought here, not of results: equal runs may differ in them."""


def times(*, large: bool = False) -> list[Any]:
    """Columns of every table; in a `large` one the index is a few pages (BRIN) and costs an insertion nothing."""
    created = Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()"),
                     index=not large)
    return [
        created,
        *([Index(None, created, postgresql_using="brin")] if large else []),
        Column("modified", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    ]


def identity() -> Column[Any]:
    return Column("_id", UUID(as_uuid=True), primary_key=True)


def link_to(table: str, column: str, *, nullable: bool = False, ondelete: str = "CASCADE") -> Column[Any]:
    return Column(
        column, UUID(as_uuid=True), ForeignKey(f"{table}._id", ondelete=ondelete), nullable=nullable, index=True
    )


def provenance() -> Column[Any]:
    return Column("provenance_id", Text, ForeignKey("provenances._id", ondelete="CASCADE"), nullable=False, index=True)


def flags(*, large: bool = False) -> list[Any]:
    """Badness; a `large` table indexes only the rows that have some."""
    bits = [Column(n, BigInteger, nullable=False, server_default="0", index=not large)
            for n in ("_bitflag", "_upstream_bitflag")]
    partial = [Index(None, b, postgresql_where=b != 0) for b in bits] if large else []
    return [*bits, Column("description", Text), *partial]


BY_TRIGGERS = "by_triggers"
"""Key of `info` of foreign keys that triggers (revision 0010) hold, once per statement: constraints of PostgreSQL's
own would look the parent up for every one of 100,000 rows."""


def set_of(table: str, column: str) -> Column[Any]:
    """The set that a row of a large table belongs to; the table's unique key begins with it."""
    key = ForeignKey(f"{table}._id", ondelete="CASCADE", info={BY_TRIGGERS: True})
    return Column(column, UUID(as_uuid=True), key, nullable=False)


def object_link() -> Column[Any]:
    key = ForeignKey("objects._id", ondelete="SET NULL", info={BY_TRIGGERS: True})
    return Column("object_id", UUID(as_uuid=True), key, index=True)


def position() -> list[Column[Any]]:
    return [
        Column("ra", Double, nullable=False),
        Column("dec", Double, nullable=False),
        Column("healpix", BigInteger, nullable=False, index=True),
    ]


def on_the_sky() -> list[Column[Any]]:
    """What follows from a position; NULL without one."""
    return [Column("healpix", BigInteger, index=True),
            *(Column(n, Double, index=n.endswith("lat")) for n in ("gallat", "gallon", "ecllat", "ecllon"))]


def reals(*names: str) -> list[Column[Any]]:
    return [Column(n, REAL) for n in names]
