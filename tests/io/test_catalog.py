"""Catalogue files of every kind give the same stars; cuts are right at the poles and across RA 0."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.pipeline.wcs_tools import separation_deg

N = 4000


@pytest.fixture(scope="module")
def sky():
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, N), np.degrees(np.arcsin(rng.uniform(-1, 1, N)))
    g = rng.uniform(12, 21, N)
    pm = rng.normal(0, 20, (N, 2))
    pm[::10] = np.nan
    return Table({"ra": ra, "dec": dec, "pmra": pm[:, 0], "pmdec": pm[:, 1], "phot_g_mean_mag": g,
                  "phot_bp_mean_mag": g + 0.5, "phot_rp_mean_mag": g - 0.7, "source_id": np.arange(N)})


def write(table, path):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({n: np.asarray(table[n]) for n in table.colnames}), path)
    elif path.suffix == ".ecsv":
        table.write(path, format="ascii.ecsv")
    else:
        table.write(path, format="fits")
    return path


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".ecsv", ".fits.gz"])
@pytest.mark.parametrize("cone", [(0.1, 5.0, 8.0), (123.0, 89.5, 10.0), (10.0, -90.0, 12.0), (200.0, 30.0, 0.01),
                                  (359.99, -20.0, 15.0)])
def test_every_format_gives_exactly_the_cone(sky, tmp_path, suffix, cone):
    path = write(sky, tmp_path / f"stars{suffix}")
    got = read_catalog({"path": path}, *cone)
    expected = np.flatnonzero(separation_deg(sky["ra"], sky["dec"], cone[0], cone[1]) <= cone[2])
    np.testing.assert_allclose(got.ra, sky["ra"][expected])
    np.testing.assert_allclose(got.dec, sky["dec"][expected])
    np.testing.assert_allclose(got.mags["g"], sky["phot_g_mean_mag"][expected])
    np.testing.assert_allclose(got.magnitude("bp_rp"), np.full(len(expected), 1.2), atol=1e-12)
    assert np.isfinite(got.pmra).all()
    assert got.rows_in_file == N
    assert got.path == str(path)
    assert (got.ref_epoch == 2016.0).all()
    assert got.ra.dtype == np.float64
    assert got.ra.dtype.isnative


def test_columns_units_and_epoch_are_mapped(tmp_path):
    path = tmp_path / "odd.fits"
    Table({"alpha": np.radians([10.0, 11.0]), "delta": np.radians([-5.0, -5.1]), "Rmag": [15.0, 16.0],
           "muA": [100.0, 0.0]}).write(path)
    got = read_catalog({"path": path, "angle_unit": "rad", "ref_epoch": 2000.0,
                        "columns": {"ra": "alpha", "dec": "delta", "r": "Rmag", "pmra": "muA"}}, 10.5, -5.0, 1.0)
    np.testing.assert_allclose(got.ra, [10.0, 11.0])
    assert got.mags.keys() == {"r"}
    assert got.pmra.tolist() == [100.0, 0.0]
    assert (got.ref_epoch == 2000.0).all()


def test_names_are_understood_in_any_case(tmp_path):
    path = tmp_path / "upper.fits"
    Table({"RA": [1.0], "DEC": [2.0], "PMRA": [3.0], "REF_EPOCH": [2015.5], "BP_RP": [0.8]}).write(path)
    got = read_catalog({"path": path}, 1.0, 2.0, 0.1)
    assert got.pmra[0] == 3.0
    assert got.ref_epoch[0] == 2015.5
    assert got.magnitude("bp_rp")[0] == 0.8


@pytest.mark.parametrize(("ra", "dec"), [(0.0001, 10.0), (150.0, 89.9999), (30.0, -60.0)])
def test_proper_motion_moves_by_its_length_and_direction(tmp_path, ra, dec):
    path = tmp_path / "pm.fits"
    Table({"ra": [ra, ra], "dec": [dec, dec], "pmra": [-800.0, 0.0], "pmdec": [0.0, 600.0]}).write(path)
    got = read_catalog({"path": path, "ref_epoch": 2016.0}, ra, dec, 0.1)
    mjd = 51544.5 + 365.25 * 26.0
    new_ra, new_dec = got.positions_at(mjd)
    moved = separation_deg(new_ra, new_dec, ra, dec) * 3.6e6
    np.testing.assert_allclose(moved, [8000.0, 6000.0], rtol=1e-6)
    if dec < 89:
        assert (new_ra[0] - ra + 180) % 360 - 180 < 0
        assert new_dec[1] > dec
    same_ra, same_dec = got.positions_at(51544.5 + 365.25 * 16.0)
    np.testing.assert_allclose(separation_deg(same_ra, same_dec, ra, dec), 0, atol=1e-12)


def test_ldac_file_takes_the_table_with_positions(tmp_path):
    head = fits.BinTableHDU.from_columns([fits.Column("Field Header Card", "80A", array=["END"])])
    stars = fits.BinTableHDU.from_columns([
        fits.Column("X_WORLD", "1D", array=[5.0]), fits.Column("Y_WORLD", "1D", array=[6.0]),
        fits.Column("MAG", "1E", array=[14.0])])
    path = tmp_path / "stars.cat"
    fits.HDUList([fits.PrimaryHDU(), head, stars]).writeto(path)
    got = read_catalog({"path": path}, 5.0, 6.0, 1.0)
    assert got.mags["g"][0] == 14.0


def test_no_star_in_the_cone_is_an_empty_table(sky, tmp_path):
    got = read_catalog({"path": write(sky, tmp_path / "s.fits")}, 50.0, 10.0, 1e-6)
    assert len(got) == 0
    assert got.positions_at(60000.0)[0].shape == (0,)


def test_bad_files_and_settings_say_what_is_wrong(sky, tmp_path):
    with pytest.raises(BadInput, match="no_such"):
        read_catalog({"path": tmp_path / "no_such.fits"}, 0, 0, 1)
    text = tmp_path / "notes.txt"
    text.write_text("ra,dec\n1,2\n")
    with pytest.raises(BadInput, match="FITS, Parquet or ECSV"):
        read_catalog({"path": text}, 0, 0, 1)
    good = write(sky, tmp_path / "s.fits")
    with pytest.raises(BadInput, match=r"catalog\.columns\.g.*columns ra, dec"):
        read_catalog({"path": good, "columns": {"g": "nope"}}, 0, 0, 1)
    with pytest.raises(ConfigError, match="angle_unit"):
        read_catalog({"path": good, "angle_unit": "hours"}, 0, 0, 1)
    with pytest.raises(BadInput, match="angle_unit"):
        read_catalog({"path": good, "angle_unit": "rad"}, 0, 0, 1)
    with pytest.raises(BadInput, match="magnitude 'u'"):
        read_catalog({"path": good}, 0, 0, 90).magnitude("u")
    cut = tmp_path / "cut.fits"
    cut.write_bytes(good.read_bytes()[:20000])
    with pytest.raises(BadInput, match=r"cut\.fits"):
        read_catalog({"path": cut}, 0, 0, 1)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(BadInput, match="Parquet"):
        read_catalog({"path": broken}, 0, 0, 1)
    image = tmp_path / "image.fits"
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(image)
    with pytest.raises(BadInput, match="binary table"):
        read_catalog({"path": image}, 0, 0, 1)
    nopos = tmp_path / "nopos.fits"
    Table({"a": [1.0]}).write(nopos)
    with pytest.raises(BadInput, match="column for ra"):
        read_catalog({"path": nopos}, 0, 0, 1)


def test_masked_magnitudes_are_nan(tmp_path):
    path = tmp_path / "masked.ecsv"
    t = Table({"ra": [1.0, 1.0], "dec": [1.0, 1.0], "phot_g_mean_mag": np.ma.array([15.0, 0.0], mask=[False, True])})
    t.write(path, format="ascii.ecsv")
    got = read_catalog({"path": path}, 1.0, 1.0, 1.0)
    assert got.mags["g"][0] == 15.0
    assert np.isnan(got.mags["g"][1])


@pytest.mark.realdata
def test_gaia_in_radians(realdata):
    """The HSC field's reference catalogue keeps its angles in radians."""
    path = realdata / "catalogs" / "hsc_v1180" / "gaia_refCat.parquet"
    got = read_catalog({"path": path, "angle_unit": "rad"}, 0.0, 0.0, 180.0)
    assert got.rows_in_file == 13_005
    # 2727 rows have no position
    assert len(got) == 10_278
    assert np.ptp(got.dec) < 5
    # its epoch is an mjd
    np.testing.assert_allclose(got.ref_epoch, 2016.0, atol=0.01)
