"""Rows that say how something was made."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Session

from seechange_mpi.db import schema
from seechange_mpi.db.models.base import Base, UUIDMixin


class CodeVersion(UUIDMixin, Base):
    """A version of one process."""

    __table__ = schema.code_versions


class Provenance(Base):
    """Process, parameters, code version."""

    __table__ = schema.provenances

    @hybrid_property
    def id(self) -> Any:
        """The id, 20 letters and digits."""
        return self._id

    def get_upstreams(self, session: Session) -> list[Provenance]:
        """Return the provenances that went in."""
        return self._linked(session, "downstream_id", "upstream_id")

    def get_downstreams(self, session: Session) -> list[Provenance]:
        """Return the provenances that this one went into."""
        return self._linked(session, "upstream_id", "downstream_id")

    def _linked(self, session: Session, mine: str, other: str) -> list[Provenance]:
        links = schema.provenance_upstreams.c
        ids = select(links[other]).where(links[mine] == self._id)
        c = schema.provenances.c
        return list(session.scalars(select(Provenance).where(c._id.in_(ids)).order_by(c.process, c._id)))


class ProvenanceTag(UUIDMixin, Base):
    """A name for a set of provenances, one of each process."""

    __table__ = schema.provenance_tags
