"""Source lists of real exposures, solved as a user solves them: ``seechange-mpi astrometry``."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.io.source_list import read_source_list
from seechange_mpi.pipeline.matching import match_pairs
from seechange_mpi.pipeline.wcs_tools import has_distortion, pixel_scale_arcsec, pixel_to_sky, sky_to_pixel

pytestmark = pytest.mark.realdata


def test_lco_field_gives_what_scamp_found(realdata, tmp_path, cli, capsys):
    """SCAMP found 117 matches at 0.2 arcsec."""
    folder = realdata / "catalogs" / "lco_kb76"
    out = tmp_path / "out"
    assert cli("astrometry", "--catalog", folder / "GAIA-DR2.cat", "--out", out, folder / "sextractor_ldac.fits") == 0
    assert "1 of 1 solved" in capsys.readouterr().out
    row = Table.read(out / "astrometry.ecsv")[0]
    assert row["n_matched"] >= 110
    assert row["rms_mas"] <= 200
    assert row["log10_chance"] < -100
    header = fits.getheader(out / "sextractor_ldac.wcs")
    text = header.tostring()
    image, sources = read_source_list(folder / "sextractor_ldac.fits")
    stars = read_catalog({"path": folder / "GAIA-DR2.cat"}, float(WCS(header).wcs.crval[0]),
                         float(WCS(header).wcs.crval[1]), 0.5)
    x, y = sky_to_pixel(text, *stars.positions_at(image.mjd))
    scale = pixel_scale_arcsec(text)
    i, j = match_pairs(np.stack([sources.table["x"], sources.table["y"]], -1), np.stack([x, y], -1), 0.6 / scale)
    distance = np.hypot(sources.table["x"][i] - x[j], sources.table["y"][i] - y[j]) * scale
    assert len(i) >= 110
    assert np.sqrt(np.mean(distance**2) / 2) <= 0.2


def test_scamp_headers_are_understood(realdata):
    folder = realdata / "catalogs" / "lco_kb76"
    for name, distorted in (("example_externcat_scamp.head", False), ("example_externcat_scamp_tpv.head", True)):
        text = (folder / name).read_text()
        assert has_distortion(text) == distorted
        x, y = np.array([0.0, 762.0, 1500.0]), np.array([0.0, 510.0, 1000.0])
        bx, by = sky_to_pixel(text, *pixel_to_sky(text, x, y))
        np.testing.assert_allclose(bx, x, atol=1e-3)
        np.testing.assert_allclose(by, y, atol=1e-3)


@pytest.mark.slow
def test_hsc_exposure_is_solved_or_refused_with_a_reason_by_four_workers(realdata, tmp_path):
    import subprocess
    import sys

    folder = realdata / "catalogs" / "hsc_v1180"
    config = tmp_path / "hsc.yaml"
    radians = {n: "rad/yr" if "pm" in n else "rad"
               for n in ("pmra", "pmdec", "ra_error", "dec_error", "pmra_error", "pmdec_error", "parallax")}
    config.write_text(yaml.safe_dump({"catalog": {
        "path": str(folder / "gaia_refCat.parquet"), "angle_unit": "rad", "columns": {"g": "phot_g_mean_flux"},
        "units": radians | {"g": "nJy"}}}))
    lists = sorted(folder.glob("1180_*.fits"))
    done = subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", "astrometry", "-c", str(config), "-n", "4",
                           "--size", "2048x4176", "--out", str(tmp_path / "out"), *map(str, lists)],
                          capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 3), done.stderr
    table = Table.read(tmp_path / "out" / "astrometry.ecsv")
    assert len(table) == len(lists) == 102
    solved = table[table["solved"]]
    assert len(solved) >= 97
    assert all(len(r) > 20 for r in table["refusal"][~table["solved"]])
    assert np.median(solved["n_matched"]) >= 16
    assert np.median(solved["rms_radial_mas"]) < 25
    assert solved["rms_radial_mas"].max() < 200
    assert solved["log10_chance"].max() < -5
    # the true error of a header is a few arcsec at most, and smooth: no solution stands apart
    offset = np.hypot(solved["header_offset_ra_arcsec"], solved["header_offset_dec_arcsec"])
    assert offset.max() < 4.0
    assert len(list((tmp_path / "out").glob("*.wcs"))) == len(solved)
