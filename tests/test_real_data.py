"""Real observations, processed as docs/quickstart-laptop.md tells; skipped, visibly, where they are missing."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import session
from seechange_mpi.io.bundle import read_section

pytestmark = [pytest.mark.realdata, pytest.mark.db]

SUPERNOVA = (7.60162, -42.29824)
PIXEL_ARCSEC = 0.263
GIVEN = ("--param", "exp_time=200", "--param", "gain=4.0", "--no-report")


def configuration(folder, **zp):
    settings = {"paths": {"root": str(folder)}, "camera": {"name": "generic-fits"},
                "extraction": {"wcs": {"method": "header"}, "zp": {"method": "relative", **zp}}}
    if zp.get("allow_other_filter"):
        settings["subtraction"] = {"allow_other_filter": True}
    path = folder / "des.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_supernova_comes_out_and_becomes_an_object(realdata, tmp_path, cli):
    old = realdata / "des_sne1" / "sneE1_ccd05_g_exp247897_20131028_1001px.fits"
    new = realdata / "des_sne1" / "sneE1_ccd05_r_exp255883_20131118_1001px.fits"
    config = configuration(tmp_path, allow_other_filter=True, min_stars=5, max_scatter=1.0)
    saturation = ("--param", "saturation=50000")
    assert cli("run", "-c", config, *GIVEN, *saturation, "--param", "mjd=56593.1", "--param", "filter=g", old) == 0
    assert cli("refs", "add", "-c", config, old.stem) == 0
    assert cli("run", "-c", config, *GIVEN, *saturation, "--param", "mjd=56614.1", "--param", "filter=r", new) == 0
    with session(Config(config)) as conn:
        rows = conn.execute("SELECT m.ra, m.dec, m.flux_psf / m.flux_psf_err, o.ra, o.dec FROM measurements m "
                            "JOIN objects o ON m.object_id = o._id WHERE NOT m.is_bad").fetchall()
    table = np.array(rows, float)
    separation = np.hypot((table[:, 0] - SUPERNOVA[0]) * np.cos(np.radians(SUPERNOVA[1])),
                          table[:, 1] - SUPERNOVA[1]) * 3600 / PIXEL_ARCSEC
    nearest = separation.argmin()
    assert separation[nearest] < 1.0
    assert table[nearest, 2] > 15


def test_same_band_pair_leaves_nothing_unexplained(realdata, tmp_path, cli):
    folder = realdata / "des_sne1"
    config = configuration(tmp_path, min_stars=5)
    common = (*GIVEN, "--param", "saturation=45000", "--param", "filter=g")
    assert cli("run", "-c", config, *common, "--param", "mjd=56593.1", folder / "pair_otherccd_g_expA_1001px.fits") == 0
    assert cli("refs", "add", "-c", config, "pair_otherccd_g_expA_1001px") == 0
    new = folder / "pair_otherccd_g_expB_1001px.fits"
    assert cli("run", "-c", config, *common, "--param", "mjd=56614.1", new) == 0
    bundle = next((Config(config).bundles / new.stem).glob("*.h5"))
    table = read_section(bundle, "1").products.measurements.table
    kept = table[~table["is_bad"]]
    assert len(kept) <= 2, "cosmic rays, trails and saturated cores are flagged"
    assert (np.abs(kept["score"]) < 8).all(), "what is left are weak residuals on stars"
