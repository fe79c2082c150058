"""Tables and columns, named as SeeChange names them where the concept exists there.

One list of volatile columns says what comparisons of two databases leave out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

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


def _times(*, large: bool = False) -> list[Any]:
    """Columns of every table; in a `large` one the index is a few pages (BRIN) and costs an insertion nothing."""
    created = Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()"),
                     index=not large)
    return [
        created,
        *([Index(None, created, postgresql_using="brin")] if large else []),
        Column("modified", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    ]


def _id() -> Column[Any]:
    return Column("_id", UUID(as_uuid=True), primary_key=True)


def _to(table: str, column: str, *, nullable: bool = False, ondelete: str = "CASCADE") -> Column[Any]:
    return Column(
        column, UUID(as_uuid=True), ForeignKey(f"{table}._id", ondelete=ondelete), nullable=nullable, index=True
    )


def _provenance() -> Column[Any]:
    return Column("provenance_id", Text, ForeignKey("provenances._id", ondelete="CASCADE"), nullable=False, index=True)


def _flags(*, large: bool = False) -> list[Any]:
    """Badness; a `large` table indexes only the rows that have some."""
    bits = [Column(n, BigInteger, nullable=False, server_default="0", index=not large)
            for n in ("_bitflag", "_upstream_bitflag")]
    partial = [Index(None, b, postgresql_where=b != 0) for b in bits] if large else []
    return [*bits, Column("description", Text), *partial]


BY_TRIGGERS = "by_triggers"
"""Key of `info` of foreign keys that triggers (revision 0010) hold, once per statement: constraints of PostgreSQL's
own would look the parent up for every one of 100,000 rows."""


def _set_of(table: str, column: str) -> Column[Any]:
    """The set that a row of a large table belongs to; the table's unique key begins with it."""
    key = ForeignKey(f"{table}._id", ondelete="CASCADE", info={BY_TRIGGERS: True})
    return Column(column, UUID(as_uuid=True), key, nullable=False)


def _object() -> Column[Any]:
    key = ForeignKey("objects._id", ondelete="SET NULL", info={BY_TRIGGERS: True})
    return Column("object_id", UUID(as_uuid=True), key, index=True)


def _position() -> list[Column[Any]]:
    return [
        Column("ra", Double, nullable=False),
        Column("dec", Double, nullable=False),
        Column("healpix", BigInteger, nullable=False, index=True),
    ]


def _on_the_sky() -> list[Column[Any]]:
    """What follows from a position; NULL without one."""
    return [Column("healpix", BigInteger, index=True),
            *(Column(n, Double, index=n.endswith("lat")) for n in ("gallat", "gallon", "ecllat", "ecllon"))]


def _real(*names: str) -> list[Column[Any]]:
    return [Column(n, REAL) for n in names]


code_versions = Table(
    "code_versions",
    metadata,
    _id(),
    Column("process", Text, nullable=False),
    *(Column(f"version_{n}", Integer, nullable=False) for n in ("major", "minor", "patch")),
    *_times(),
    UniqueConstraint("process", "version_major", "version_minor", "version_patch"),
)

provenances = Table(
    "provenances",
    metadata,
    Column("_id", Text, primary_key=True),
    Column("process", Text, nullable=False, index=True),
    _to("code_versions", "code_version_id"),
    Column("parameters", JSONB, nullable=False, server_default="{}"),
    *(Column(n, Boolean, nullable=False, server_default="false") for n in ("is_bad", "is_outdated", "is_testing")),
    Column("bad_comment", Text),
    Column("replaced_by", Text, ForeignKey("provenances._id", ondelete="SET NULL"), index=True),
    *_times(),
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
    _id(),
    Column("tag", Text, nullable=False, index=True),
    _provenance(),
    *_times(),
    UniqueConstraint("tag", "provenance_id"),
)

exposures = Table(
    "exposures",
    metadata,
    _id(),
    Column("filepath", Text, nullable=False),
    Column("origin_identifier", Text, nullable=False, unique=True),
    Column("instrument", Text, nullable=False, index=True),
    Column("project", Text, nullable=False, server_default=""),
    Column("target", Text, nullable=False, server_default=""),
    Column("filter", Text),
    Column("filter_array", ARRAY(Text)),
    Column("mjd", Double, nullable=False, index=True),
    Column("exp_time", REAL),
    *_real("airmass"),
    Column("ra", Double),
    Column("dec", Double),
    *_on_the_sky(),
    Column("_type", SmallInteger, nullable=False, server_default="1", index=True),
    Column("_format", SmallInteger, nullable=False, server_default="1"),
    Column("preproc_bitflag", SmallInteger, nullable=False, server_default="0"),
    Column("info", JSONB, nullable=False, server_default="{}"),
    _provenance(),
    *_flags(),
    *_times(),
    CheckConstraint("filter IS NOT NULL OR filter_array IS NOT NULL", name="filter"),
)

images = Table(
    "images",
    metadata,
    _id(),
    _to("exposures", "exposure_id"),
    Column("section_id", Text, nullable=False, index=True),
    _provenance(),
    Column("filepath", Text, nullable=False),
    Column("is_sub", Boolean, nullable=False),
    Column("is_coadd", Boolean, nullable=False, server_default="false"),
    Column("coadd_alignment_target", UUID(as_uuid=True), ForeignKey("images._id", ondelete="RESTRICT"), index=True),
    Column("_type", SmallInteger, nullable=False, server_default="1", index=True),
    Column("_format", SmallInteger, nullable=False, server_default="2"),
    Column("instrument", Text, nullable=False),
    *(Column(n, Text, nullable=False, server_default="") for n in ("telescope", "project", "target")),
    Column("filter", Text, nullable=False, index=True),
    Column("mjd", Double, nullable=False, index=True),
    Column("end_mjd", Double),
    Column("exp_time", REAL),
    *_real("airmass"),
    *(Column(n, Boolean, nullable=False, server_default="false") for n in ("astro_cal_done", "sky_sub_done")),
    Column("ra", Double),
    Column("dec", Double),
    *_on_the_sky(),
    *_real(
        "ra_corner_00",
        "ra_corner_01",
        "ra_corner_10",
        "ra_corner_11",
        "dec_corner_00",
        "dec_corner_01",
        "dec_corner_10",
        "dec_corner_11",
        "minra",
        "maxra",
        "mindec",
        "maxdec",
        "gain",
    ),
    Column("preproc_bitflag", SmallInteger, nullable=False, server_default="0"),
    *_real("fwhm_estimate", "zero_point_estimate", "lim_mag_estimate", "bkg_mean_estimate", "bkg_rms_estimate"),
    Column("info", JSONB, nullable=False, server_default="{}"),
    *_flags(),
    *_times(),
    UniqueConstraint("exposure_id", "section_id", "provenance_id"),
    Index("ix_images_bounds", "mindec", "maxdec", "minra", "maxra"),
)

source_lists = Table(
    "source_lists",
    metadata,
    _id(),
    _to("images", "image_id"),
    _provenance(),
    Column("filepath", Text, nullable=False),
    Column("num_sources", Integer, nullable=False),
    Column("aper_rads", ARRAY(REAL)),
    Column("inf_aper_num", SmallInteger),
    Column("best_aper_num", SmallInteger),
    *_flags(),
    *_times(),
    UniqueConstraint("image_id", "provenance_id"),
)

psfs = Table(
    "psfs",
    metadata,
    _id(),
    _to("source_lists", "sources_id"),
    Column("filepath", Text, nullable=False),
    Column("fwhm_pixels", REAL, nullable=False),
    Column("n_stars", Integer),
    *_real("chi2"),
    *_flags(),
    *_times(),
    UniqueConstraint("sources_id"),
)

backgrounds = Table(
    "backgrounds",
    metadata,
    _id(),
    _to("source_lists", "sources_id"),
    Column("filepath", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("noise", Double, nullable=False),
    *_flags(),
    *_times(),
    UniqueConstraint("sources_id"),
)

world_coordinates = Table(
    "world_coordinates",
    metadata,
    _id(),
    _to("source_lists", "sources_id"),
    _provenance(),
    Column("filepath", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("n_matched", Integer),
    *_real("rms_mas"),
    Column("header", Text, nullable=False),
    Column("fit_order", Integer),
    *_real("rms_radial_mas", "max_residual_mas", "mean_ra_mas", "mean_dec_mas", "chi2_dof", "floor_mas",
           "error_centre_mas", "error_corner_mas", "header_offset_ra_arcsec", "header_offset_dec_arcsec",
           "header_rotation_deg", "header_scale", "log10_chance"),
    *_flags(),
    *_times(),
    UniqueConstraint("sources_id", "provenance_id"),
)

zero_points = Table(
    "zero_points",
    metadata,
    _id(),
    _to("world_coordinates", "wcs_id"),
    _provenance(),
    Column("zp", REAL, nullable=False),
    Column("dzp", REAL),
    Column("method", Text, nullable=False),
    Column("n_stars", Integer),
    *_real("lim_mag"),
    Column("aper_cor_radii", ARRAY(REAL)),
    Column("aper_cors", ARRAY(REAL)),
    *_real("scatter", "colour_term", "colour_slope", "colour_slope_err", "colour_ref", "outlier_fraction", "wing",
           "wing_err", "blocked", "map_err"),
    Column("map", ARRAY(REAL)),
    *_flags(),
    *_times(),
    UniqueConstraint("wcs_id", "provenance_id"),
)

refsets = Table(
    "refsets",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("description", Text),
    Column("provenance_id", Text, ForeignKey("provenances._id", ondelete="SET NULL"), index=True),
    *_times(),
)

refs = Table(
    "refs",
    metadata,
    _id(),
    _to("refsets", "refset_id"),
    _to("zero_points", "zp_id"),
    _to("images", "image_id"),
    _provenance(),
    Column("instrument", Text, nullable=False),
    Column("filter", Text, nullable=False),
    Column("section_id", Text, nullable=False),
    Column("filepath", Text, nullable=False),
    *_flags(),
    *_times(),
    UniqueConstraint("refset_id", "zp_id"),
    Index("ix_refs_lookup", "refset_id", "instrument", "filter"),
)

data_files = Table(
    "data_files",
    metadata,
    _id(),
    _provenance(),
    Column("filepath", Text, nullable=False, unique=True),
    Column("sha256", Text, nullable=False),
    *_times(),
)

calibrator_files = Table(
    "calibrator_files",
    metadata,
    _id(),
    Column("type", Text, nullable=False, index=True),
    Column("calibrator_set", Text, nullable=False, index=True),
    Column("flat_type", Text),
    Column("instrument", Text, nullable=False),
    Column("sensor_section", Text, nullable=False),
    Column("filter", Text),
    _to("images", "image_id", nullable=True),
    _to("data_files", "datafile_id", nullable=True),
    Column("validity_start", DateTime(timezone=True), index=True),
    Column("validity_end", DateTime(timezone=True), index=True),
    Column("info", JSONB, nullable=False, server_default="{}"),
    *_times(),
    CheckConstraint("calibrator_set IN ('externally_supplied', 'general', 'nightly')", name="calibrator_set"),
    CheckConstraint("num_nonnulls(image_id, datafile_id) = 1", name="one_file"),
    Index("ix_calibrator_files_lookup", "instrument", "sensor_section", "type"),
)

image_coadd_component = Table(
    "image_coadd_component",
    metadata,
    Column("zp_id", UUID(as_uuid=True), ForeignKey("zero_points._id", ondelete="RESTRICT"), primary_key=True),
    Column("coadd_image_id", UUID(as_uuid=True), ForeignKey("images._id", ondelete="CASCADE"), primary_key=True,
           index=True),
)

catalog_excerpts = Table(
    "catalog_excerpts",
    metadata,
    _id(),
    Column("origin", Text, nullable=False),
    Column("num_items", Integer, nullable=False),
    *_real("minmag", "maxmag"),
    Column("filters", ARRAY(Text), nullable=False),
    *_position(),
    Column("radius", Double, nullable=False),
    *(Column(f"{c}_corner_{n}", Double, nullable=False) for n in ("00", "01", "10", "11") for c in ("ra", "dec")),
    Column("filepath", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    *_times(),
)

image_subtraction_components = Table(
    "image_subtraction_components",
    metadata,
    Column("image_id", UUID(as_uuid=True), ForeignKey("images._id", ondelete="CASCADE"), primary_key=True),
    _to("zero_points", "new_zp_id"),
    Column("ref_image_id", UUID(as_uuid=True), nullable=False, index=True),
)


def _set(name: str, parent: str, column: str, *extra: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        _id(),
        _to(parent, column),
        _provenance(),
        *extra,
        *_flags(),
        *_times(),
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
    _id(),
    Column("name", Text, nullable=False, unique=True),
    *_position(),
    Column("is_test", Boolean, nullable=False, server_default="false"),
    Column("is_bad", Boolean, nullable=False, server_default="false"),
    *_times(large=True),
    *_real("ra_err", "dec_err"),
)

object_positions = Table(
    "object_positions",
    metadata,
    _id(),
    _to("objects", "object_id"),
    _provenance(),
    *_position(),
    *_real("dra", "ddec", "ra_dec_cov"),
    Column("n_measurements", Integer),
    *_times(),
    UniqueConstraint("object_id", "provenance_id"),
)

object_legacy_survey_match = Table(
    "object_legacy_survey_match",
    metadata,
    _id(),
    _to("objects", "object_id"),
    Column("lsid", BigInteger, nullable=False),
    *(Column(n, Double, nullable=False) for n in ("ra", "dec", "dist")),
    Column("white_mag", Double),
    *_real("xgboost"),
    Column("is_star", Boolean),
    *_times(),
    UniqueConstraint("object_id", "lsid"),
)

forced_photometry = Table(
    "forced_photometry",
    metadata,
    _id(),
    _to("objects", "object_id"),
    _to("images", "image_id"),
    _provenance(),
    Column("ra", Double, nullable=False),
    Column("dec", Double, nullable=False),
    Column("mjd", Double, nullable=False, index=True),
    Column("filter", Text, nullable=False),
    Column("x", Double),
    Column("y", Double),
    *_real("flux_psf", "flux_psf_err", "chi2_psf", "flux_aperture", "flux_aperture_err", "aper_radius", "zp", "lim_mag",
           "image_lim_mag"),
    Column("flags", Integer, nullable=False),
    Column("nbadpix", Integer),
    *_times(),
    UniqueConstraint("object_id", "image_id", "provenance_id"),
)

measurements = Table(
    "measurements",
    metadata,
    _id(),
    _set_of("measurement_sets", "measurementset_id"),
    Column("index_in_sources", Integer, nullable=False),
    _object(),
    *_position(),
    *_real("ra_err", "dec_err"),
    Column("x", Double),
    Column("y", Double),
    Column("center_x_pixel", Integer),
    Column("center_y_pixel", Integer),
    *_real("score", "flux_psf", "flux_psf_err", "chi2_psf"),
    Column("flux_apertures", ARRAY(REAL)),
    Column("flux_apertures_err", ARRAY(REAL)),
    Column("aper_radii", ARRAY(REAL)),
    Column("best_aperture", SmallInteger),
    *_real("bkg_per_pix", "mag", "mag_err", "gfit_x", "gfit_y", "major_width", "minor_width", "position_angle"),
    Column("psf_fit_flags", Integer),
    Column("nbadpix", Integer),
    *_real("negfrac", "negfluxfrac", "dist_to_star"),
    Column("is_negative", Boolean, nullable=False),
    Column("is_bad", Boolean, nullable=False),
    Column("bad_reasons", Text, nullable=False, server_default=""),
    *_flags(large=True),
    *_times(large=True),
    UniqueConstraint("measurementset_id", "index_in_sources"),
)

deepscore_sets = Table(
    "deepscore_sets",
    metadata,
    _id(),
    _to("measurement_sets", "measurementset_id"),
    _provenance(),
    Column("algorithm", Text, nullable=False),
    *_flags(),
    *_times(),
    UniqueConstraint("measurementset_id", "algorithm", "provenance_id"),
)

deepscores = Table(
    "deepscores",
    metadata,
    _id(),
    _set_of("deepscore_sets", "deepscoreset_id"),
    Column("index_in_sources", Integer, nullable=False),
    Column("score", REAL, nullable=False),
    Column("info", JSONB, nullable=False, server_default="{}"),
    *_flags(large=True),
    *_times(large=True),
    UniqueConstraint("deepscoreset_id", "index_in_sources"),
)

reports = Table(
    "reports",
    metadata,
    _id(),
    _to("exposures", "exposure_id"),
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
    *_times(),
    UniqueConstraint("exposure_id", "section_id", "provenance_id"),
)

product_sets = Table(
    "product_sets",
    metadata,
    _id(),
    _to("exposures", "exposure_id"),
    Column("section_id", Text, nullable=False),
    Column("part", Text, nullable=False),
    Column("provenance_id", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    *_times(),
    UniqueConstraint("exposure_id", "section_id", "part", "provenance_id"),
    CheckConstraint("part IN ('image', 'sub')", name="part"),
)

archived_files = Table(
    "archived_files",
    metadata,
    _id(),
    Column("archive", Text, nullable=False),
    Column("filepath", Text, nullable=False),
    Column("exposure", Text, nullable=False, index=True),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("verified_at", DateTime(timezone=True)),
    *_times(),
    UniqueConstraint("archive", "filepath"),
)

commit_fence = Table(
    "commit_fence", metadata, Column("exposure", Text, primary_key=True), Column("token", BigInteger, nullable=False)
)

knownexposures = Table(
    "knownexposures",
    metadata,
    _id(),
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
    *_times(),
    UniqueConstraint("instrument", "identifier"),
    CheckConstraint("state IN ('held', 'ready', 'claimed', 'done', 'partial', 'failed')", name="state"),
)
