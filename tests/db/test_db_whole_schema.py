"""Columns that users of SeeChange know: filled from the bundle, filled by the migration, right on the sky."""

import dataclasses

import numpy as np
import psycopg
import pytest

from seechange_mpi.db import migrate
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.exposures import ImageType, telescope_of
from seechange_mpi.db.matching import unit_vectors
from seechange_mpi.db.references import add_reference
from seechange_mpi.db.schema import VOLATILE, metadata
from seechange_mpi.db.sky import bounds, ecliptic, galactic, inside, ring, touch

AT = [(150.001, 2.0), (150.002, 2.001), (150.003, 2.002)]


def dump(conn):
    out = {}
    for table in metadata.sorted_tables:
        names = ", ".join(f'"{c.name}"' for c in table.columns if c.name not in VOLATILE)
        out[table.name] = sorted(map(repr, conn.execute(f"SELECT {names} FROM {table.name}")))
    return out


def committed(conn, bundles):
    reference = bundles({"S1": {"ra": 150.0, "dec": 2.0}}, name="e0", mjd=59990.0)
    commit_bundle(conn, reference, radius_arcsec=1.0)
    add_reference(conn, "e0")
    image = conn.execute("SELECT _id FROM images").fetchone()[0]
    new = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": AT, "reference": str(image)}, "S2": {"ra": 0.005, "dec": -2.0},
                   "S3": {"fails": "extraction"}})
    commit_bundle(conn, new, radius_arcsec=1.0, tag="t")
    return new


@pytest.mark.db
def test_the_migration_gives_old_rows_what_a_commit_gives(fresh_url, bundles):
    with connect(fresh_url) as conn:
        committed(conn, bundles)
        conn.commit()
        before = dump(conn)
        assert all(before[t] for t in ("images", "psfs", "refsets", "reports", "measurements"))
        migrate.downgrade(conn, "0009")
        left = {r[0] for r in conn.execute("SELECT column_name FROM information_schema.columns WHERE table_name = "
                                           "'images'")}
        assert {"minra", "_type", "telescope"} & left == set()
        migrate.upgrade(conn)
        after = dump(conn)
        for table, rows in before.items():
            assert after[table] == rows, table


@pytest.mark.db
def test_columns_are_filled_from_the_bundle(conn, bundles):
    committed(conn, bundles)

    def rows(what):
        return conn.execute(what).fetchall()

    assert rows("SELECT DISTINCT filter, filter_array, _type, _format, preproc_bitflag FROM exposures") == [
        ("r", None, 1, 1, 0)]
    [(gallat, gallon)] = rows("SELECT DISTINCT gallat, gallon FROM exposures")
    assert (gallon, gallat) == pytest.approx((236.95, 41.91), abs=0.01)
    science = rows("SELECT section_id, _type, _format, is_coadd, telescope, round((end_mjd - mjd)::numeric * 86400), "
                   "astro_cal_done, sky_sub_done, airmass, minra, maxra, mindec, maxdec, gallat IS NULL "
                   "FROM images WHERE NOT is_sub AND mjd = 60000 ORDER BY 1")
    assert [r[:9] for r in science] == [
        (s, ImageType.SCI, 2, False, "invented 1 m", 45, True, False, pytest.approx(1.1)) for s in ("S1", "S2")]
    assert science[0][9:13] == pytest.approx((149.986, 150.014, 1.986, 2.014), abs=0.001)
    assert science[1][9:11] == pytest.approx((359.991, 0.019), abs=0.001), "it crosses RA 0"
    assert not any(r[13] for r in science)
    assert rows("SELECT _type, sky_sub_done, astro_cal_done FROM images WHERE is_sub") == [(3, True, True)]
    assert rows("SELECT DISTINCT inf_aper_num, best_aper_num FROM source_lists") == [(3, -1)]
    for table in ("psfs", "backgrounds", "world_coordinates"):
        assert rows(f"SELECT count(*) FROM {table} WHERE filepath LIKE '%.h5'") == [(3,)]
    assert rows("SELECT r.section_id, products_committed_bitflag, i.section_id FROM reports r LEFT JOIN images i "
                "ON r.image_id = i._id WHERE products_exist_bitflag IS NOT NULL AND start_time IS NOT NULL "
                "AND r.exposure_id IN (SELECT _id FROM exposures WHERE mjd = 60000) ORDER BY 1") == [
        ("S1", 4094, "S1"), ("S2", 126, "S2")]
    assert rows("SELECT image_id, products_committed_bitflag FROM reports WHERE section_id = 'S3'") == [(None, 0)]
    assert rows("SELECT s.provenance_id = r.provenance_id FROM refsets s JOIN refs r ON r.refset_id = s._id") == [
        (True,)]


@pytest.mark.db
def test_an_exposure_has_a_filter_or_those_of_its_sections(conn, bundles):
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0}}, filter="")
    commit_bundle(conn, path, radius_arcsec=1.0)
    assert conn.execute("SELECT filter, filter_array FROM exposures").fetchone() == (None, [""])
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("UPDATE exposures SET filter_array = NULL")


@pytest.mark.db
def test_filters_of_sections_that_come_later_are_added(conn, bundles):
    from seechange_mpi.db.exposures import exposure_row, store_exposure
    from seechange_mpi.db.provenance import store_provenances
    from seechange_mpi.io.bundle import read_bundle, read_tables

    path = bundles({"S1": {"ra": 150.0, "dec": 2.0}, "S2": {"ra": 150.1, "dec": 2.0}}, filter="")
    info, sections = read_bundle(path), read_tables(path)
    store_provenances(conn, info.provenances)
    for section, band in zip(sections, ("z", "g"), strict=True):
        section.products.image = dataclasses.replace(section.products.image, filter=band)
    assert store_exposure(conn, exposure_row(info, sections[:1])) == 1
    for chosen in (sections[1:], sections[1:], sections):
        assert store_exposure(conn, exposure_row(info, chosen)) == 0
        assert conn.execute("SELECT filter, filter_array FROM exposures").fetchone() == (None, ["g", "z"])


def test_telescope_is_the_cameras_or_what_the_header_says():
    assert telescope_of("DECam", {"TELESCOP": "else"}) == "CTIO 4 m Blanco"
    assert telescope_of("own", {"TELESCOP": " 1 m "}) == "1 m"
    assert telescope_of("own", {}) == ""


def test_coordinates_agree_with_astropy():
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 200), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 200)))
    there = SkyCoord(ra, dec, unit="deg")
    for found, true in ((galactic(ra, dec), there.galactic), (ecliptic(ra, dec), there.barycentricmeanecliptic)):
        away = SkyCoord(*found, unit="deg").separation(SkyCoord(true.spherical.lon, true.spherical.lat))
        assert away.max() < 0.05 * u.arcsec


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, 30.0), (359.999, -89.0), (10.0, 89.5), (10.0, 90.0),
                                         (200.0, -90.0)])
def test_bounds_hold_the_whole_outline(ra, dec):
    """Also of an image that is rotated, across RA 0, and with a pole in it."""
    centre = unit_vectors(ra, dec)[0]
    east = np.cross([0.0, 0.0, 1.0], centre)
    east = np.array([1.0, 0, 0]) if np.linalg.norm(east) < 1e-9 else east / np.linalg.norm(east)
    north = np.cross(centre, east)
    angle = np.deg2rad(20.0)
    u, v = np.cos(angle) * east + np.sin(angle) * north, np.cos(angle) * north - np.sin(angle) * east
    half = np.deg2rad(0.6)

    def at(x, y):
        p = centre + np.multiply.outer(half * np.asarray(x), u) + np.multiply.outer(half * np.asarray(y), v)
        p /= np.linalg.norm(p, axis=-1, keepdims=True)
        return np.rad2deg(np.arctan2(p[..., 1], p[..., 0])) % 360, np.rad2deg(np.arcsin(p[..., 2]))

    b = {k: v[0] for k, v in bounds(ra, *at([-1, -1, 1, 1], [-1, 1, 1, -1])).items()}
    corners = ring(unit_vectors(*at([-1, -1, 1, 1], [-1, 1, 1, -1])))
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, 49), np.linspace(-1.2, 1.2, 49))
    ras, decs = at(x.ravel(), y.ravel())
    within = (np.abs(x) <= 1).ravel() & (np.abs(y) <= 1).ravel()
    assert (inside(corners, unit_vectors(ras, decs)) == within).all()
    assert not inside(corners, -unit_vectors(ras, decs)).any(), "the far side of the sky"
    low, high = b["minra"], b["maxra"]
    by_ra = (ras >= low - 1e-4) & (ras <= high + 1e-4) if high >= low else (ras >= low - 1e-4) | (ras <= high + 1e-4)
    by_dec = (decs >= b["mindec"] - 1e-4) & (decs <= b["maxdec"] + 1e-4)
    assert (by_ra & by_dec)[within].all()
    if abs(dec) < 85:
        assert (by_ra & by_dec).mean() < 0.95, "they are not the whole sky"


def test_outlines_touch():
    def square(ra, dec, half=0.5):
        return ring(unit_vectors([ra - half, ra + half, ra + half, ra - half],
                                 [dec - half, dec - half, dec + half, dec + half]))

    assert touch(square(0.0, 0.0), square(359.5, 0.7))
    assert not touch(square(0.0, 0.0), square(358.9, 0.0))
    assert touch(square(10.0, 0.0, 5.0), square(10.0, 1.0, 0.1)), "one within the other"
    assert not touch(square(0.0, 0.0), square(180.0, 0.0)), "the far side"


@pytest.mark.db
def test_uncertainties_reach_their_columns(bundles):
    from seechange_mpi.db.rows import section_parts
    from seechange_mpi.io.bundle import read_bundle, read_tables

    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": AT}})
    info, (section,) = read_bundle(path), read_tables(path)
    section.products.measurements.table["ra_err"] = 1e-5
    image, sub = section_parts(info, section)
    assert image.rows["zero_points"][0]["dzp"] == 0.01
    assert np.allclose(sub.measurements.array("ra_err"), 1e-5)


def test_reports_name_the_cluster(bundles):
    from seechange_mpi.db.rows import report_row
    from seechange_mpi.io.bundle import read_bundle, read_tables

    path = bundles({"S1": {"ra": 150.0, "dec": 2.0}})
    info, (section,) = read_bundle(path), read_tables(path)
    assert report_row(info, section)["cluster_id"] is None
    section.report.cluster = "perlmutter"
    assert report_row(info, section)["cluster_id"] == "perlmutter"
