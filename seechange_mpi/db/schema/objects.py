"""Tables of what is found in differences, and of objects."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB

from seechange_mpi.db.schema.columns import (
    flags,
    identity,
    link_to,
    metadata,
    object_link,
    position,
    provenance,
    reals,
    set_of,
    times,
)


def _set(name: str, parent: str, column: str, *extra: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        identity(),
        link_to(parent, column),
        provenance(),
        *extra,
        *flags(),
        *times(),
        UniqueConstraint(column, "provenance_id"),
    )


detections = _set("detections", "images", "image_id", Column("num_detections", Integer, nullable=False))
cutouts = _set("cutouts", "detections", "detections_id", Column("filepath", Text, nullable=False))
measurement_sets = _set(
    "measurement_sets", "cutouts", "cutouts_id", Column("num_measurements", Integer, nullable=False)
)

objects = Table(
    "objects",
    metadata,
    identity(),
    Column("name", Text, nullable=False, unique=True),
    *position(),
    Column("is_test", Boolean, nullable=False, server_default="false"),
    Column("is_bad", Boolean, nullable=False, server_default="false"),
    *times(large=True),
    *reals("ra_err", "dec_err"),
)

object_positions = Table(
    "object_positions",
    metadata,
    identity(),
    link_to("objects", "object_id"),
    provenance(),
    *position(),
    *reals("dra", "ddec", "ra_dec_cov"),
    Column("n_measurements", Integer),
    *times(),
    UniqueConstraint("object_id", "provenance_id"),
)

object_legacy_survey_match = Table(
    "object_legacy_survey_match",
    metadata,
    identity(),
    link_to("objects", "object_id"),
    Column("lsid", BigInteger, nullable=False),
    *(Column(n, Double, nullable=False) for n in ("ra", "dec", "dist")),
    Column("white_mag", Double),
    *reals("xgboost"),
    Column("is_star", Boolean),
    *times(),
    UniqueConstraint("object_id", "lsid"),
)

forced_photometry = Table(
    "forced_photometry",
    metadata,
    identity(),
    link_to("objects", "object_id"),
    link_to("images", "image_id"),
    provenance(),
    Column("ra", Double, nullable=False),
    Column("dec", Double, nullable=False),
    Column("mjd", Double, nullable=False, index=True),
    Column("filter", Text, nullable=False),
    Column("x", Double),
    Column("y", Double),
    *reals("flux_psf", "flux_psf_err", "chi2_psf", "flux_aperture", "flux_aperture_err", "aper_radius", "zp", "lim_mag",
           "image_lim_mag"),
    Column("flags", Integer, nullable=False),
    Column("nbadpix", Integer),
    *times(),
    UniqueConstraint("object_id", "image_id", "provenance_id"),
)

measurements = Table(
    "measurements",
    metadata,
    identity(),
    set_of("measurement_sets", "measurementset_id"),
    Column("index_in_sources", Integer, nullable=False),
    object_link(),
    *position(),
    *reals("ra_err", "dec_err"),
    Column("x", Double),
    Column("y", Double),
    Column("center_x_pixel", Integer),
    Column("center_y_pixel", Integer),
    *reals("score", "flux_psf", "flux_psf_err", "chi2_psf"),
    Column("flux_apertures", ARRAY(REAL)),
    Column("flux_apertures_err", ARRAY(REAL)),
    Column("aper_radii", ARRAY(REAL)),
    Column("best_aperture", SmallInteger),
    *reals("bkg_per_pix", "mag", "mag_err", "gfit_x", "gfit_y", "major_width", "minor_width", "position_angle"),
    Column("psf_fit_flags", Integer),
    Column("nbadpix", Integer),
    *reals("negfrac", "negfluxfrac", "dist_to_star"),
    Column("is_negative", Boolean, nullable=False),
    Column("is_bad", Boolean, nullable=False),
    Column("bad_reasons", Text, nullable=False, server_default=""),
    *flags(large=True),
    *times(large=True),
    UniqueConstraint("measurementset_id", "index_in_sources"),
)

deepscore_sets = Table(
    "deepscore_sets",
    metadata,
    identity(),
    link_to("measurement_sets", "measurementset_id"),
    provenance(),
    Column("algorithm", Text, nullable=False),
    *flags(),
    *times(),
    UniqueConstraint("measurementset_id", "algorithm", "provenance_id"),
)

deepscores = Table(
    "deepscores",
    metadata,
    identity(),
    set_of("deepscore_sets", "deepscoreset_id"),
    Column("index_in_sources", Integer, nullable=False),
    Column("score", REAL, nullable=False),
    Column("info", JSONB, nullable=False, server_default="{}"),
    *flags(large=True),
    *times(large=True),
    UniqueConstraint("deepscoreset_id", "index_in_sources"),
)
