"""Files, reports and the queue."""

from __future__ import annotations

from seechange_mpi.db import schema
from seechange_mpi.db.models.base import Base, FileOnDiskMixin, SpatiallyIndexed, UUIDMixin
from seechange_mpi.model.flags import badness_words


class DataFile(UUIDMixin, FileOnDiskMixin, Base):
    """A file that is no image."""

    __table__ = schema.data_files


class CalibratorFile(UUIDMixin, Base):
    """A calibration frame and the dates for which it holds; its file is that of ``datafile_id``."""

    __table__ = schema.calibrator_files


class CatalogExcerpt(UUIDMixin, FileOnDiskMixin, SpatiallyIndexed, Base):
    """A region of a star catalogue that has been brought here."""

    __table__ = schema.catalog_excerpts


class ArchivedFile(UUIDMixin, Base):
    """A file in an archive."""

    __table__ = schema.archived_files


class Report(UUIDMixin, Base):
    """How a section went."""

    __table__ = schema.reports

    @property
    def badness(self) -> str:
        """The words of the bits that the pipeline found in the section."""
        return badness_words(self._bitflag)


class ProductSet(UUIDMixin, Base):
    """What of a section has been committed, and the hash of its content."""

    __table__ = schema.product_sets


class KnownExposure(UUIDMixin, FileOnDiskMixin, Base):
    """An exposure in the queue."""

    __table__ = schema.knownexposures
