"""Columns and tables that users of SeeChange know, filled for the rows that are there."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from seechange_mpi.db.q3c import drop_indexes, make_indexes

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SKY = ("gallat", "gallon", "ecllat", "ecllon")
_BOUNDS = ("minra", "maxra", "mindec", "maxdec")
_FILES = ("psfs", "backgrounds", "world_coordinates")


def _column(name: str, kind: Any, default: str | None = None) -> sa.Column:
    return sa.Column(name, kind, server_default=default, nullable=default is None)


_SMALL, _FALSE = sa.SmallInteger(), "false"


def _columns() -> dict[str, tuple[sa.Column, ...]]:
    """Table -> columns that are new."""
    return {
        "provenances": (_column("bad_comment", sa.Text()), _column("replaced_by", sa.Text())),
        "exposures": (
            _column("filter_array", sa.ARRAY(sa.Text())), _column("healpix", sa.BigInteger()),
            *(_column(n, sa.Double()) for n in _SKY), _column("_type", _SMALL, "1"), _column("_format", _SMALL, "1"),
            _column("preproc_bitflag", _SMALL, "0")),
        "images": (
            _column("is_coadd", sa.Boolean(), _FALSE), _column("coadd_alignment_target", sa.UUID()),
            _column("_type", _SMALL, "1"), _column("_format", _SMALL, "2"),
            *(_column(n, sa.Text(), "") for n in ("telescope", "project", "target")), _column("end_mjd", sa.Double()),
            _column("airmass", sa.REAL()),
            *(_column(n, sa.Boolean(), _FALSE) for n in ("astro_cal_done", "sky_sub_done")),
            _column("healpix", sa.BigInteger()), *(_column(n, sa.Double()) for n in _SKY),
            *(_column(n, sa.REAL()) for n in _BOUNDS)),
        "source_lists": (_column("inf_aper_num", _SMALL), _column("best_aper_num", _SMALL)),
        **{t: (_column("filepath", sa.Text()),) for t in _FILES},
        "refsets": (_column("provenance_id", sa.Text()),),
        "reports": (_column("image_id", sa.UUID()), _column("cluster_id", sa.Text()),
                    _column("products_committed_bitflag", sa.BigInteger(), "0")),
    }


INDEXED: dict[str, tuple[str, ...]] = {
    "provenances": ("replaced_by",),
    "exposures": ("_type", "healpix", "gallat", "ecllat"),
    "images": ("_type", "healpix", "gallat", "ecllat", "coadd_alignment_target"),
    "refsets": ("provenance_id",),
    "reports": ("image_id",),
}
KEYS = (("provenances", "replaced_by", "provenances", "SET NULL"),
        ("images", "coadd_alignment_target", "images", "RESTRICT"),
        ("refsets", "provenance_id", "provenances", "SET NULL"))


def upgrade() -> None:
    """Add and fill columns, make tables, and the indexes of q3c where it is there."""
    for table, columns in _columns().items():
        for new in columns:
            op.add_column(table, new)
    for table, column, target, ondelete in KEYS:
        op.create_foreign_key(op.f(f"fk_{table}_{column}"), table, target, [column], ["_id"], ondelete=ondelete)
    _fill()
    for table in _FILES:
        op.alter_column(table, "filepath", nullable=False)
    op.create_check_constraint(op.f("ck_exposures_filter"), "exposures",
                               "filter IS NOT NULL OR filter_array IS NOT NULL")
    for table, names in INDEXED.items():
        for name in names:
            op.create_index(op.f(f"ix_{table}_{name}"), table, [name])
    op.create_index("ix_images_bounds", "images", ["mindec", "maxdec", "minra", "maxra"])
    _make_tables()
    make_indexes(_connection())


def _connection() -> Any:
    """The psycopg connection."""
    return op.get_bind().connection.driver_connection


def _make_tables() -> None:
    def to(table: str, column: str, target: str, ondelete: str) -> sa.ForeignKeyConstraint:
        return sa.ForeignKeyConstraint([column], [f"{target}._id"], name=op.f(f"fk_{table}_{column}"),
                                       ondelete=ondelete)

    coadds, survey = "image_coadd_component", "object_legacy_survey_match"
    op.create_table(
        coadds,
        sa.Column("zp_id", sa.UUID(), nullable=False),
        sa.Column("coadd_image_id", sa.UUID(), nullable=False),
        to(coadds, "zp_id", "zero_points", "RESTRICT"),
        to(coadds, "coadd_image_id", "images", "CASCADE"),
        sa.PrimaryKeyConstraint("zp_id", "coadd_image_id", name=op.f(f"pk_{coadds}")),
    )
    op.create_index(op.f(f"ix_{coadds}_coadd_image_id"), coadds, ["coadd_image_id"])
    op.create_table(
        survey,
        sa.Column("_id", sa.UUID(), nullable=False),
        sa.Column("object_id", sa.UUID(), nullable=False),
        sa.Column("lsid", sa.BigInteger(), nullable=False),
        *(sa.Column(n, sa.Double(), nullable=False) for n in ("ra", "dec", "dist")),
        sa.Column("white_mag", sa.Double()),
        sa.Column("xgboost", sa.REAL()),
        sa.Column("is_star", sa.Boolean()),
        *(sa.Column(n, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
          for n in ("created_at", "modified")),
        to(survey, "object_id", "objects", "CASCADE"),
        sa.PrimaryKeyConstraint("_id", name=op.f(f"pk_{survey}")),
        sa.UniqueConstraint("object_id", "lsid", name=op.f(f"uq_{survey}_object_id_lsid")),
    )
    for name in ("created_at", "object_id"):
        op.create_index(op.f(f"ix_{survey}_{name}"), survey, [name])


def _fill() -> None:
    """Give the rows that are there what a commit of their bundles would."""
    op.execute(
        "UPDATE exposures e SET _format = CASE WHEN e.filepath LIKE '%.fz' THEN 17 ELSE 1 END, "
        "preproc_bitflag = CASE WHEN p.parameters->>'proc_type' = 'reduced' THEN 127 ELSE 0 END, "
        "filter = NULLIF(e.filter, ''), filter_array = CASE WHEN COALESCE(e.filter, '') = '' THEN "
        "ARRAY(SELECT DISTINCT i.filter FROM images i WHERE i.exposure_id = e._id ORDER BY 1) END "
        "FROM provenances p WHERE p._id = e.provenance_id")
    op.execute("UPDATE source_lists SET inf_aper_num = cardinality(aper_rads) - 1, best_aper_num = -1 "
               "WHERE aper_rads IS NOT NULL")
    for table in _FILES:
        op.execute(f"UPDATE {table} p SET filepath = s.filepath FROM source_lists s WHERE s._id = p.sources_id")
    op.execute("UPDATE refsets s SET provenance_id = (SELECT r.provenance_id FROM refs r WHERE r.refset_id = s._id "
               "ORDER BY r.created_at DESC, r._id DESC LIMIT 1)")
    op.execute(
        "UPDATE reports r SET image_id = i._id, products_committed_bitflag = 126 FROM images i, product_sets p "
        "WHERE i.exposure_id = r.exposure_id AND i.section_id = r.section_id AND NOT i.is_sub AND "
        "i.provenance_id = r.process_provid->>'preprocessing' AND p.exposure_id = r.exposure_id AND "
        "p.section_id = r.section_id AND p.part = 'image' AND p.provenance_id = r.process_provid->>'extraction'")
    op.execute(
        "UPDATE reports r SET products_committed_bitflag = 126 | 3968 FROM product_sets p WHERE r.image_id IS NOT NULL "
        "AND p.exposure_id = r.exposure_id AND p.section_id = r.section_id AND p.part = 'sub' AND "
        "p.provenance_id = r.process_provid->>'scoring'")
    _fill_exposures()
    _fill_images()


def _fill_exposures() -> None:
    """Coordinates, which PostgreSQL cannot compute."""
    from seechange_mpi.db.sky import sky_columns

    rows = _connection().execute("SELECT _id, ra, dec FROM exposures WHERE ra IS NOT NULL AND dec IS NOT NULL "
                                 ).fetchall()
    if rows:
        columns = sky_columns([r[1] for r in rows], [r[2] for r in rows])
        _copy("filled_exposures", {"healpix": "int8"} | dict.fromkeys(_SKY, "float8"), [r[0] for r in rows], columns)
        op.execute("UPDATE exposures e SET healpix = f.healpix, " + ", ".join(f"{n} = f.{n}" for n in _SKY)
                   + " FROM filled_exposures f WHERE f._id = e._id")


def _fill_images() -> None:
    """Everything of an image at once: its row is written once."""
    from seechange_mpi.db.exposures import telescope_of
    from seechange_mpi.db.sky import RING, bounds, sky_columns

    conn = _connection()
    types = {"healpix": "int8"} | dict.fromkeys(_SKY, "float8") | dict.fromkeys(_BOUNDS, "float4")
    corners = ", ".join(f"{c}_corner_{n}::double precision" for c in ("ra", "dec") for n in RING)
    rows = conn.execute(f"SELECT _id, ra, dec, {corners} FROM images WHERE ra IS NOT NULL AND dec IS NOT NULL "
                        f"AND num_nulls({corners}) = 0").fetchall()
    ra, dec = [r[1] for r in rows], [r[2] for r in rows]
    columns = sky_columns(ra, dec) | bounds(ra, [r[3:7] for r in rows], [r[7:11] for r in rows]) if rows else {}
    _copy("filled_images", types, [r[0] for r in rows], columns)
    op.execute("CREATE TEMPORARY TABLE telescopes (instrument text, header text, name text) ON COMMIT DROP")
    for instrument, header in conn.execute(
            "SELECT DISTINCT instrument, coalesce(info->>'TELESCOP', '') FROM exposures").fetchall():
        conn.execute("INSERT INTO telescopes VALUES (%s, %s, %s)",
                     (instrument, header, telescope_of(instrument, {"TELESCOP": header})))
    op.execute(
        "CREATE TEMPORARY TABLE calibrated ON COMMIT DROP AS SELECT s.image_id FROM source_lists s "
        "JOIN world_coordinates w ON w.sources_id = s._id WHERE w.method = 'catalog' UNION SELECT c.image_id "
        "FROM image_subtraction_components c JOIN zero_points z ON z._id = c.new_zp_id "
        "JOIN world_coordinates w ON w._id = z.wcs_id WHERE w.method = 'catalog'")
    op.execute("ANALYZE filled_images")
    op.execute("ANALYZE calibrated")
    op.execute(
        "UPDATE images i SET _type = CASE WHEN i.is_sub THEN 3 ELSE 1 END, sky_sub_done = i.is_sub, "
        "project = e.project, target = e.target, airmass = e.airmass, telescope = t.name, "
        "end_mjd = i.mjd + i.exp_time::double precision / 86400, "
        "astro_cal_done = EXISTS (SELECT 1 FROM calibrated c WHERE c.image_id = i._id), "
        + ", ".join(f"{n} = f.{n}" for n in types)
        + " FROM images j JOIN exposures e ON e._id = j.exposure_id JOIN telescopes t ON t.instrument = e.instrument "
        "AND t.header = coalesce(e.info->>'TELESCOP', '') LEFT JOIN filled_images f ON f._id = j._id "
        "WHERE j._id = i._id")


def _copy(table: str, types: dict[str, str], ids: list[Any], columns: dict[str, Any]) -> None:
    """Make a temporary table of ids and figures."""
    op.execute(f"CREATE TEMPORARY TABLE {table} (_id uuid, " + ", ".join(f"{n} {t}" for n, t in types.items())
               + ") ON COMMIT DROP")
    with _connection().cursor().copy(f"COPY {table} (_id, {', '.join(types)}) FROM STDIN") as copy:
        for row in zip(ids, *(columns[n].tolist() for n in types), strict=True) if ids else ():
            copy.write_row(row)


def downgrade() -> None:
    """Take all of it away."""
    drop_indexes(_connection())
    for table in ("object_legacy_survey_match", "image_coadd_component"):
        op.drop_table(table)
    op.drop_constraint(op.f("ck_exposures_filter"), "exposures")
    op.execute("UPDATE exposures SET filter = '' WHERE filter IS NULL")
    op.drop_index("ix_images_bounds", "images")
    for table, columns in _columns().items():
        for new in columns:
            op.drop_column(table, new.name)
