"""Lists of sources without images: shared out, solved, refused ones helped by their neighbours; exposures' excerpts."""

import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from seechange_mpi.config.resolve import Config
from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.io.raw import read_exposure_info, section_footprints
from seechange_mpi.io.source_list import ListSettings, read_source_list
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.mpi.catalogs import catalog_spec, exposure_catalog
from seechange_mpi.pipeline.top_level import Pipeline
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky, separation_deg, sip_header

SHAPE = (1000, 1000)
SCALE = 0.5 / 3600


def true_header(ra, dec):
    cd = np.array([[-SCALE, 0], [0, SCALE]])
    a = {(2, 0): 4e-6, (0, 2): 2e-6, (1, 1): 0.0}
    b = {(2, 0): 0.0, (0, 2): 3e-6, (1, 1): 4e-6}
    return sip_header((499.5, 499.5), (ra, dec), cd, a, b, {(0, 0): 0.0}, {(0, 0): 0.0})


@pytest.fixture(scope="module")
def exposure(tmp_path_factory):
    """Nine lists in a square, headers linear and off by 8 arcsec; the middle one has few stars; the tenth has none."""
    folder = tmp_path_factory.mktemp("lists")
    rng = np.random.default_rng(0)
    all_ra, all_dec = [], []
    for k in range(10):
        ra, dec = 40.0 + 0.15 * (k % 3), -10.0 + 0.15 * (k // 3)
        truth = true_header(ra, dec)
        n = 8 if k == 4 else 0 if k == 9 else 45
        x, y = rng.uniform(0, 999, (2, n))
        sky = pixel_to_sky(truth, x, y) if n else (np.zeros(0), np.zeros(0))
        more = 25
        all_ra += [sky[0], ra + rng.uniform(-0.07, 0.07, more)]
        all_dec += [sky[1], dec + rng.uniform(-0.07, 0.07, more)]
        spurious = rng.uniform(0, 999, (2, 40))
        t = Table({"x": np.r_[x + rng.normal(0, 0.02, n), spurious[0]],
                   "y": np.r_[y + rng.normal(0, 0.02, n), spurious[1]]})
        t["x_err"] = t["y_err"] = np.float32(0.02)
        header = fits.Header([("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRPIX1", 500.0), ("CRPIX2", 500.0),
                              ("CRVAL1", ra + 8 / 3600), ("CRVAL2", dec - 3 / 3600), ("CD1_1", -SCALE), ("CD1_2", 0.0),
                              ("CD2_1", 0.0), ("CD2_2", SCALE), ("MJD-OBS", 60000.0)])
        fits.HDUList([fits.PrimaryHDU(header=header), fits.BinTableHDU(t)]).writeto(folder / f"list_{k}.fits")
    ra, dec = np.concatenate(all_ra), np.concatenate(all_dec)
    Table({"ra": ra, "dec": dec, "ref_epoch": np.full(len(ra), 2023.0)}).write(folder / "stars.fits")
    return folder


@pytest.mark.parametrize("ranks", [1, 3])
def test_lists_are_solved_by_any_number_of_ranks(exposure, tmp_path, ranks):
    lists = [str(exposure / f"list_{k}.fits") for k in range(10)]
    done = subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", "astrometry", "--catalog",
                           str(exposure / "stars.fits"), "-n", str(ranks), "--size", "1000x1000", "--out",
                           str(tmp_path), "--set", "extraction.wcs.min_matched_stars=6", *lists],
                          capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 3, done.stderr
    assert "9 of 10 solved" in done.stdout
    assert "list_9: astrocal: no shift" in done.stdout
    table = Table.read(tmp_path / "astrometry.ecsv")
    assert list(table["list"]) == [f"list_{k}" for k in range(10)]
    assert list(table["solved"]) == [True] * 9 + [False]
    gx, gy = np.meshgrid(np.linspace(0, 999, 9), np.linspace(0, 999, 9))
    for k in range(9):
        got = fits.getheader(tmp_path / f"list_{k}.wcs").tostring()
        truth = true_header(40.0 + 0.15 * (k % 3), -10.0 + 0.15 * (k // 3))
        error = separation_deg(*pixel_to_sky(got, gx, gy), *pixel_to_sky(truth, gx, gy)).max() * 3.6e6
        assert error < (250 if k == 4 else 60)
        assert table["header_offset_dec_arcsec"][k] == pytest.approx(3.0, abs=0.5)
    assert table["by_neighbours"][4]


def test_lists_are_read_as_they_come(exposure, tmp_path):
    image, sources = read_source_list(exposure / "list_0.fits", ListSettings((1000, 1200), 58000.0, 1))
    plain, other = read_source_list(exposure / "list_0.fits")
    assert image.shape == (1200, 1000)
    assert image.mjd == 58000.0
    np.testing.assert_allclose(sources.table["x"], other.table["x"] - 1)
    assert plain.mjd == 60000.0
    assert plain.shape[0] <= 1000
    Table({"a": [1.0]}).write(tmp_path / "none.fits")
    with pytest.raises(BadInput, match="a table with a column"):
        read_source_list(tmp_path / "none.fits")
    Table({"x": [1.0], "y": [2.0]}).write(tmp_path / "nowcs.fits")
    with pytest.raises(BadInput, match="a WCS"):
        read_source_list(tmp_path / "nowcs.fits")


def test_one_excerpt_serves_all_sections_and_later_exposures(tiny_survey, tmp_path):
    config = Config(tiny_survey.config(tmp_path / "work"))
    pipeline = Pipeline.from_settings(config.steps())
    spec = catalog_spec(config)
    camera = load_camera(str(tiny_survey.root / "tiny.yaml"))
    made = []
    for path in tiny_survey.exposures:
        corners = section_footprints(read_exposure_info(path, camera, {}), camera)
        made.append(exposure_catalog(spec, corners, config, pipeline))
        for section in corners.values():
            ra, dec = np.mean(section, axis=0)
            cone = (float(ra), float(dec), 0.05)
            np.testing.assert_array_equal(np.sort(read_catalog(made[-1], *cone).dec),
                                          np.sort(read_catalog(spec, *cone).dec))
    assert made[0]["identity"].startswith("catalog.fits:")
    count = len(list((tmp_path / "work" / "catalog-cache").iterdir()))
    assert count == 1, "the second exposure, a few arcseconds off, finds the excerpt of the first"
    for path in (tmp_path / "work" / "catalog-cache").iterdir():
        path.unlink()
    assert exposure_catalog(spec, corners, config, pipeline)["identity"] == made[-1]["identity"]
    assert exposure_catalog(spec, {}, config, pipeline) == spec
    with pytest.raises(ConfigError, match="no such file"):
        catalog_spec(config, str(tmp_path / "nothing"))


def test_a_mosaic_in_one_ldac_file_gives_one_solution_for_each_table(exposure, tmp_path, cli, capsys):
    hdus = [fits.PrimaryHDU()]
    for k in (0, 1):
        with fits.open(exposure / f"list_{k}.fits") as one:
            header = one[0].header.copy()
            header["NAXIS1"], header["NAXIS2"] = 1000, 1000
            cards = np.array([header.tostring(padding=False)])
            hdus.append(fits.BinTableHDU.from_columns([fits.Column("Field Header Card", f"{len(cards[0])}A",
                                                                   array=cards)], name="LDAC_IMHEAD"))
            t = one[1].data
            hdus.append(fits.BinTableHDU.from_columns(
                [fits.Column("XWIN_IMAGE", "D", array=t["x"] + 1), fits.Column("YWIN_IMAGE", "D", array=t["y"] + 1)],
                name="LDAC_OBJECTS"))
    fits.HDUList(hdus).writeto(tmp_path / "mosaic.ldac")
    assert cli("astrometry", "--catalog", exposure / "stars.fits", "--out", tmp_path / "out",
               tmp_path / "mosaic.ldac") == 0
    assert "2 of 2 solved" in capsys.readouterr().out
    for k in (0, 1):
        got = fits.getheader(tmp_path / "out" / f"mosaic_{k + 1}.wcs").tostring()
        x = np.array([100.0, 900.0])
        error = separation_deg(*pixel_to_sky(got, x, x), *pixel_to_sky(true_header(40.0 + 0.15 * k, -10.0), x, x))
        assert error.max() * 3.6e6 < 120
