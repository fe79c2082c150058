"""Classes for the rows of the science database, with the names that users of SeeChange know.

    from seechange_mpi.db.models import Image, SmartSession

There are no relationships between classes, only ids. Workers never import this.
"""

from seechange_mpi.db.exposures import FileFormat, ImageType
from seechange_mpi.db.models.base import (
    Base,
    FileOnDiskMixin,
    FourCorners,
    HasBitFlagBadness,
    SpatiallyIndexed,
    UUIDMixin,
)
from seechange_mpi.db.models.bookkeeping import (
    ArchivedFile,
    CalibratorFile,
    CatalogExcerpt,
    DataFile,
    KnownExposure,
    ProductSet,
    Report,
)
from seechange_mpi.db.models.differences import (
    Cutouts,
    DeepScore,
    DeepScoreSet,
    Detections,
    ForcedPhotometry,
    Measurements,
    MeasurementSet,
    Object,
    ObjectLegacySurveyMatch,
    ObjectPosition,
    Reference,
    RefSet,
)
from seechange_mpi.db.models.images import (
    PSF,
    Background,
    Exposure,
    Image,
    ImageCoaddComponent,
    ImageSubtractionComponents,
    SourceList,
    WorldCoordinates,
    ZeroPoint,
)
from seechange_mpi.db.models.provenance import CodeVersion, Provenance, ProvenanceTag
from seechange_mpi.db.models.session import SmartSession

__all__ = [
    "PSF", "ArchivedFile", "Background", "Base", "CalibratorFile", "CatalogExcerpt", "CodeVersion", "Cutouts",
    "DataFile", "DeepScore", "DeepScoreSet", "Detections", "Exposure", "FileFormat", "FileOnDiskMixin",
    "ForcedPhotometry", "FourCorners", "HasBitFlagBadness", "Image", "ImageCoaddComponent",
    "ImageSubtractionComponents", "ImageType", "KnownExposure", "MeasurementSet", "Measurements", "Object",
    "ObjectLegacySurveyMatch", "ObjectPosition", "ProductSet", "Provenance", "ProvenanceTag", "RefSet", "Reference",
    "Report", "SmartSession", "SourceList", "SpatiallyIndexed", "UUIDMixin", "WorldCoordinates", "ZeroPoint",
]
