"""Exposures, images, and what is extracted from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.hybrid import hybrid_property

from seechange_mpi.db import schema
from seechange_mpi.db.exposures import FileFormat, ImageType
from seechange_mpi.db.models.base import (
    Base,
    FileOnDiskMixin,
    FourCorners,
    HasBitFlagBadness,
    SpatiallyIndexed,
    UUIDMixin,
)


class _Typed(Base):
    """A row with ``_type`` and ``_format``."""

    __abstract__ = True
    if TYPE_CHECKING:
        _type: Any
        _format: int

    @hybrid_property
    def type(self) -> Any:
        """What it shows: the column ``_type``."""
        return ImageType(self._type)

    @type.inplace.expression
    @classmethod
    def _type_expression(cls) -> Any:
        return cls._type

    @property
    def format(self) -> FileFormat:
        """Format of the file: the column ``_format``."""
        return FileFormat(self._format)


class Exposure(UUIDMixin, FileOnDiskMixin, SpatiallyIndexed, HasBitFlagBadness, _Typed):
    """One opening of the shutter; its file is the raw one."""

    __table__ = schema.exposures


class Image(UUIDMixin, FileOnDiskMixin, SpatiallyIndexed, FourCorners, HasBitFlagBadness, _Typed):
    """One section, or its difference (``is_sub``); its file is the bundle of the exposure."""

    __table__ = schema.images


class ImageSubtractionComponents(Base):
    """What a difference was made from."""

    __table__ = schema.image_subtraction_components


class ImageCoaddComponent(Base):
    """What a coadd was made from."""

    __table__ = schema.image_coadd_component


class SourceList(UUIDMixin, FileOnDiskMixin, HasBitFlagBadness, Base):
    """Sources of an image."""

    __table__ = schema.source_lists


class PSF(UUIDMixin, FileOnDiskMixin, HasBitFlagBadness, Base):
    """Point spread function."""

    __table__ = schema.psfs


class Background(UUIDMixin, FileOnDiskMixin, HasBitFlagBadness, Base):
    """Sky level and noise."""

    __table__ = schema.backgrounds


class WorldCoordinates(UUIDMixin, FileOnDiskMixin, HasBitFlagBadness, Base):
    """Astrometric solution; ``header`` is FITS header text."""

    __table__ = schema.world_coordinates


class ZeroPoint(UUIDMixin, HasBitFlagBadness, Base):
    """Photometric calibration: mag = -2.5 log10(ADU) + zp."""

    __table__ = schema.zero_points
