"""Tables and columns, named as SeeChange names them where the concept exists there."""

from seechange_mpi.db.schema.bookkeeping import archived_files, commit_fence, knownexposures, product_sets, reports
from seechange_mpi.db.schema.columns import BY_TRIGGERS, CACHES, VOLATILE, metadata
from seechange_mpi.db.schema.images import (
    backgrounds,
    calibrator_files,
    catalog_excerpts,
    data_files,
    exposures,
    image_coadd_component,
    image_subtraction_components,
    images,
    psfs,
    refs,
    refsets,
    source_lists,
    world_coordinates,
    zero_points,
)
from seechange_mpi.db.schema.objects import (
    cutouts,
    deepscore_sets,
    deepscores,
    detections,
    forced_photometry,
    measurement_sets,
    measurements,
    object_legacy_survey_match,
    object_positions,
    objects,
)
from seechange_mpi.db.schema.provenance import code_versions, provenance_tags, provenance_upstreams, provenances

__all__ = [
    "BY_TRIGGERS", "CACHES", "VOLATILE", "archived_files", "backgrounds", "calibrator_files", "catalog_excerpts",
    "code_versions", "commit_fence", "cutouts", "data_files", "deepscore_sets", "deepscores", "detections",
    "exposures", "forced_photometry", "image_coadd_component", "image_subtraction_components", "images",
    "knownexposures", "measurement_sets", "measurements", "metadata", "object_legacy_survey_match",
    "object_positions", "objects", "product_sets", "provenance_tags", "provenance_upstreams", "provenances", "psfs",
    "refs", "refsets", "reports", "source_lists", "world_coordinates", "zero_points",
]
