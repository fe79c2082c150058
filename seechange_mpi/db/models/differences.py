"""References, and what is found in differences."""

from __future__ import annotations

from seechange_mpi.db import schema
from seechange_mpi.db.models.base import Base, FileOnDiskMixin, HasBitFlagBadness, SpatiallyIndexed, UUIDMixin


class RefSet(UUIDMixin, Base):
    """A named set of references."""

    __table__ = schema.refsets


class Reference(UUIDMixin, FileOnDiskMixin, HasBitFlagBadness, Base):
    """An image that others are compared with."""

    __table__ = schema.refs


class Detections(UUIDMixin, HasBitFlagBadness, Base):
    """The detections in a difference, as a set."""

    __table__ = schema.detections


class Cutouts(UUIDMixin, FileOnDiskMixin, HasBitFlagBadness, Base):
    """Stamps around detections."""

    __table__ = schema.cutouts


class MeasurementSet(UUIDMixin, HasBitFlagBadness, Base):
    """The measurements of one difference; there even where nothing was found."""

    __table__ = schema.measurement_sets


class Measurements(UUIDMixin, SpatiallyIndexed, HasBitFlagBadness, Base):
    """One measured detection."""

    __table__ = schema.measurements


class DeepScoreSet(UUIDMixin, HasBitFlagBadness, Base):
    """The scores of one set of measurements by one algorithm."""

    __table__ = schema.deepscore_sets


class DeepScore(UUIDMixin, HasBitFlagBadness, Base):
    """The score of one measurement."""

    __table__ = schema.deepscores


class Object(UUIDMixin, SpatiallyIndexed, Base):
    """Something in the sky."""

    __table__ = schema.objects


class ObjectPosition(UUIDMixin, SpatiallyIndexed, Base):
    """Mean position of an object."""

    __table__ = schema.object_positions


class ObjectLegacySurveyMatch(UUIDMixin, Base):
    """A source of the Legacy Survey near an object."""

    __table__ = schema.object_legacy_survey_match


class ForcedPhotometry(UUIDMixin, Base):
    """Flux at the place of an object in one difference."""

    __table__ = schema.forced_photometry
