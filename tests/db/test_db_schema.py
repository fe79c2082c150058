"""The migrated schema is the declared one, and goes away again."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psycopg
import pytest

from seechange_mpi.db import migrate
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.linking import Patch, lock_sky

pytestmark = pytest.mark.db


def test_migrated_schema_is_the_declared_one(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from seechange_mpi.db.schema import BY_TRIGGERS, metadata

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        # what q3c has on a server that has it is made beside the migrations: see test_db_q3c
        context = MigrationContext.configure(connection, opts={
            "compare_type": True, "compare_server_default": True,
            "include_object": lambda _object, name, *_: not str(name).endswith("_q3c_ang2ipix_idx")})
        differences = compare_metadata(context, metadata)
    keys = {f"fk_{t.name}_{c.name}" for t in metadata.tables.values() for c in t.columns for k in c.foreign_keys
            if k.info.get(BY_TRIGGERS)}
    assert {d[1].name for d in differences if d[0] == "add_fk"} == keys
    assert [d for d in differences if d[0] != "add_fk"] == []
    engine.dispose()


def test_up_and_down_and_up_again(empty_url):
    with connect(empty_url) as conn:
        assert migrate.current(conn) is None
        assert migrate.upgrade(conn) is True
        assert migrate.current(conn) == migrate.head() == migrate._HEAD
        assert migrate.upgrade(conn) is False
        migrate.downgrade(conn, "base")
        left = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert left == [("alembic_version",)]
        migrate.upgrade(conn)
        assert conn.execute("SELECT count(*) FROM images").fetchone() == (0,)


@pytest.mark.parametrize(("table", "column", "parent"), [("measurements", "measurementset_id", "measurement_sets"),
                                                          ("deepscores", "deepscoreset_id", "deepscore_sets")])
def test_rows_have_their_set_and_go_with_it(conn, bundles, table, column, parent):
    """What the triggers hold: no row without a set, none left when the set goes, no set lost under a row."""
    at = {"S1": (150.0, 2.0), "S2": (150.1, 2.0)}
    commit_bundle(conn, bundles({k: {"ra": p[0], "dec": p[1], "at": [p]} for k, p in at.items()}), radius_arcsec=2.0)
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match=f"is not in {parent}"), conn.transaction():
        conn.execute(f"UPDATE {table} SET {column} = gen_random_uuid() WHERE _id = (SELECT _id FROM {table} LIMIT 1)")
    sets = [r[0] for r in conn.execute(f"SELECT DISTINCT {column} FROM {table} ORDER BY 1")]
    total = conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    with conn.transaction():
        own = conn.execute(f"SELECT count(*) FROM {table} WHERE {column} = %s", (sets[0],)).fetchone()[0]
        assert 0 < own < total
        conn.execute(f"DELETE FROM {parent} WHERE _id = %s", (sets[0],))
        assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (total - own,)
    others = [r[0] for r in conn.execute("SELECT quote_ident(column_name) FROM information_schema.columns WHERE "
                                         "table_name = %s AND column_name <> ALL(%s)", (table, ["_id", column]))]
    names = ", ".join(others)
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match=f"is not in {parent}"), conn.transaction():
        conn.execute(f"INSERT INTO {table} (_id, {column}, {names}) SELECT gen_random_uuid(), %s, {names} FROM {table}",
                     (sets[0],))


def test_measurements_have_their_object_or_none(conn, bundles, url):
    """What the triggers hold: no object that is not there, NULL when it goes, which waits for commits of that sky."""
    bundle = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0), (150.01, 2.0)]}})
    commit_bundle(conn, bundle, radius_arcsec=2.0)
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="is not in objects"), conn.transaction():
        conn.execute("UPDATE measurements SET object_id = gen_random_uuid()")
    first = conn.execute("SELECT object_id FROM measurements ORDER BY ra LIMIT 1").fetchone()[0]
    conn.commit()
    with connect(url) as other, other.transaction():
        lock_sky(other, Patch.around(np.array([150.0]), np.array([2.0]), 2.0))
        conn.execute("SET lock_timeout = '200ms'")
        conn.commit()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            conn.execute("DELETE FROM objects WHERE _id = %s", (first,))
        conn.rollback()
    conn.execute("DELETE FROM objects WHERE _id = %s", (first,))
    left = conn.execute("SELECT object_id IS NULL FROM measurements ORDER BY ra").fetchall()
    assert left == [(True,), (False,)]


def test_two_processes_may_migrate_at_once(empty_url):
    from concurrent.futures import ThreadPoolExecutor

    def one(_):
        with connect(empty_url) as conn:
            return migrate.upgrade(conn)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))
    with connect(empty_url) as conn:
        assert migrate.current(conn) == migrate.head()


def test_names_of_seechange_are_kept(conn):
    """Tables and columns that people query by name."""
    sky = {"ra", "dec", "gallat", "gallon", "ecllat", "ecllon", "healpix"}
    corners = {f"{c}_corner_{n}" for c in ("ra", "dec") for n in ("00", "01", "10", "11")}
    flags = {"_bitflag", "_upstream_bitflag", "description"}
    common = {"created_at", "modified", "_id"}
    expected = {
        "code_versions": common | {"process", "version_major", "version_minor", "version_patch"},
        "provenances": common | {"process", "code_version_id", "parameters", "is_bad", "is_outdated", "is_testing",
                                 "bad_comment", "replaced_by"},
        "provenance_upstreams": {"upstream_id", "downstream_id"},
        "provenance_tags": common | {"tag", "provenance_id"},
        "exposures": common | sky | flags | {
            "filepath", "provenance_id", "_type", "_format", "info", "mjd", "exp_time", "filter", "airmass",
            "filter_array", "instrument", "project", "target", "preproc_bitflag", "origin_identifier"},
        "images": common | sky | corners | flags | {
            "minra", "maxra", "mindec", "maxdec", "filepath", "provenance_id", "_format", "_type", "exposure_id",
            "is_coadd", "is_sub", "coadd_alignment_target", "info", "mjd", "end_mjd", "exp_time", "instrument",
            "telescope", "filter", "section_id", "project", "target", "preproc_bitflag", "astro_cal_done",
            "sky_sub_done", "airmass", "fwhm_estimate", "zero_point_estimate", "lim_mag_estimate",
            "bkg_mean_estimate", "bkg_rms_estimate"},
        "source_lists": common | flags | {"filepath", "provenance_id", "image_id", "aper_rads", "inf_aper_num",
                                          "best_aper_num", "num_sources"},
        "psfs": common | flags | {"filepath", "sources_id", "fwhm_pixels"},
        "backgrounds": common | flags | {"filepath", "sources_id", "value", "noise"},
        "world_coordinates": common | flags | {"filepath", "sources_id", "provenance_id"},
        "zero_points": common | flags | {"provenance_id", "wcs_id", "zp", "dzp", "aper_cor_radii", "aper_cors"},
        "image_coadd_component": {"zp_id", "coadd_image_id"},
        "image_subtraction_components": {"image_id", "new_zp_id"},
        "refs": common | flags | {"provenance_id", "zp_id"},
        "refsets": common | {"name", "description", "provenance_id"},
        "cutouts": common | flags | {"filepath", "provenance_id"},
        "measurement_sets": common | flags | {"provenance_id", "cutouts_id"},
        "measurements": common | flags | {
            "ra", "dec", "healpix", "measurementset_id", "index_in_sources", "object_id", "flux_psf", "flux_psf_err",
            "flux_apertures", "flux_apertures_err", "aper_radii", "bkg_per_pix", "best_aperture", "center_x_pixel",
            "center_y_pixel", "x", "y", "gfit_x", "gfit_y", "major_width", "minor_width", "position_angle",
            "psf_fit_flags", "nbadpix", "negfrac", "negfluxfrac", "is_bad"},
        "deepscore_sets": common | flags | {"provenance_id", "measurementset_id"},
        "deepscores": common | flags | {"deepscoreset_id", "index_in_sources", "score", "info"},
        "objects": common | {"ra", "dec", "healpix", "name", "is_test", "is_bad"},
        "object_positions": common | {"ra", "dec", "provenance_id", "object_id", "dra", "ddec", "ra_dec_cov"},
        "object_legacy_survey_match": common | {"object_id", "lsid", "ra", "dec", "dist", "white_mag", "xgboost",
                                                "is_star"},
        "calibrator_files": common | {"flat_type", "instrument", "sensor_section", "image_id", "datafile_id",
                                      "validity_start", "validity_end"},
        "data_files": common | {"filepath", "provenance_id"},
        "reports": common | {
            "exposure_id", "section_id", "image_id", "start_time", "finish_time", "success", "cluster_id", "node_id",
            "error_step", "error_type", "error_message", "warnings", "process_provid", "process_memory",
            "process_runtime", "progress_steps_bitflag", "products_exist_bitflag", "products_committed_bitflag"},
        "knownexposures": common | {"instrument", "identifier", "params", "mjd"},
    }
    for table, columns in expected.items():
        found = {r[0] for r in conn.execute("SELECT column_name FROM information_schema.columns WHERE table_name = %s",
                                            (table,))}
        assert columns <= found, f"{table} lacks {columns - found}"


def test_an_exposure_has_a_section_once_per_provenance(conn):
    conn.execute("INSERT INTO code_versions (_id, process, version_major, version_minor, version_patch) "
                 "VALUES (gen_random_uuid(), 'p', 0, 1, 0)")
    conn.execute("INSERT INTO provenances (_id, process, code_version_id) SELECT 'X', 'p', _id FROM code_versions")
    conn.execute("INSERT INTO exposures (_id, filepath, origin_identifier, instrument, filter, mjd, provenance_id) "
                 "VALUES (gen_random_uuid(), 'f', 'e1', 'cam', 'r', 1, 'X')")
    insert = ("INSERT INTO images (_id, exposure_id, section_id, provenance_id, filepath, is_sub, instrument, filter, "
              "mjd) SELECT gen_random_uuid(), _id, 'S1', 'X', 'f', false, 'cam', 'r', 1 FROM exposures")
    conn.execute(insert)
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute(insert)


def test_migrations_are_in_the_package():
    """`setup.cfg` names them, so that an installed wheel can make its tables."""
    from configparser import ConfigParser

    root = Path(__file__).parents[2]
    cfg = ConfigParser()
    cfg.read(root / "setup.cfg")
    patterns = cfg["options.package_data"]["seechange_mpi.db"].split()
    db = Path(find_spec("seechange_mpi.db").origin).parent
    packaged = {p for pattern in patterns for p in db.glob(pattern)}
    needed = {p for p in (db / "migrations").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert needed <= packaged
