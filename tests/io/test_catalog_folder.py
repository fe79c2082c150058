"""Catalogue folders: cones equal those of the files they were built from; builds are atomic and resumable."""

import gzip
import json

import numpy as np
import pytest
from astropy.table import Table

from seechange_mpi.io import catalog_build
from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.io.catalog_build import BuildOptions, build_folder
from seechange_mpi.io.catalog_folder import cell_path, cells_in_cone, damaged_cells, read_index
from seechange_mpi.io.star_file import content_digest
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.pipeline.wcs_tools import separation_deg

CONES = [(0.05, 3.0, 14.0), (210.0, 88.0, 8.0), (33.0, -90.0, 9.0), (100.0, 45.0, 3.0), (10.0, 0.0, 180.0)]


def gaia_text(table, extra=True):
    """A CSV as Gaia writes it: ECSV comments, more columns than wanted, null for what is missing."""
    names = [*table.colnames, *(["random_index", "has_xp"] if extra else [])]
    lines = ["# %ECSV 1.0", "# ---", "# delimiter: ','", ",".join(names)]
    for k, row in enumerate(table):
        cells = ["null" if not np.isfinite(v) else repr(float(v)) for v in row]
        lines.append(",".join(cells + ([str(k), '"True"'] if extra else [])))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def sky():
    rng = np.random.default_rng(5)
    n = 3000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    pm = rng.normal(0, 10, (n, 2))
    pm[::9] = np.nan
    error = rng.uniform(0.02, 0.5, n)
    return Table({"ra": ra, "dec": dec, "ra_error": error, "dec_error": error, "parallax": rng.normal(1, 1, n),
                  "pmra": pm[:, 0], "pmdec": pm[:, 1], "pmra_error": error, "pmdec_error": error,
                  "ruwe": rng.uniform(0.9, 2, n), "ref_epoch": np.full(n, 2016.0),
                  "phot_g_mean_mag": rng.uniform(10, 21, n)})


@pytest.fixture
def files(sky, tmp_path):
    """The sky in four files of four kinds."""
    parts = [sky[k::4] for k in range(4)]
    (tmp_path / "a.csv").write_text(gaia_text(parts[0]))
    with gzip.open(tmp_path / "b.csv.gz", "wt") as f:
        f.write(gaia_text(parts[1]))
    parts[2].write(tmp_path / "c.fits")
    parts[3].write(tmp_path / "d.ecsv")
    return [tmp_path / n for n in ("a.csv", "b.csv.gz", "c.fits", "d.ecsv")]


def test_cones_are_those_of_the_files(sky, files, tmp_path):
    index = build_folder(tmp_path / "out", files, BuildOptions(order=1, max_mag=20.0, chunk_rows=1000))
    kept = sky[sky["phot_g_mean_mag"] <= 20.0]
    assert index.rows == len(kept)
    assert index.columns["pmra_error"] == "mas/yr"
    assert not (tmp_path / "out.building").exists()
    for cone in CONES:
        got = read_catalog({"path": tmp_path / "out"}, *cone)
        inside = kept[separation_deg(kept["ra"], kept["dec"], cone[0], cone[1]) <= cone[2]]
        assert len(got) == len(inside)
        order = np.argsort(inside["ra"])
        mine = np.argsort(got.ra)
        np.testing.assert_array_equal(got.ra[mine], inside["ra"][order])
        np.testing.assert_array_equal(got.dec[mine], inside["dec"][order])
        np.testing.assert_allclose(got.mags["g"][mine], inside["phot_g_mean_mag"][order], rtol=1e-6)
        np.testing.assert_allclose(got.pmra[mine], np.nan_to_num(inside["pmra"][order]), rtol=1e-6)
        np.testing.assert_allclose(got.astrometry["ruwe"][mine], inside["ruwe"][order], rtol=1e-6)
    assert damaged_cells(tmp_path / "out") == []


def test_only_the_cells_of_the_cone_are_opened(files, tmp_path):
    out = tmp_path / "out"
    build_folder(out, files, BuildOptions(order=2))
    wanted = set(cells_in_cone(2, 100.0, 45.0, 3.0).tolist())
    assert len(wanted) < 6
    for pixel in read_index(out).cells:
        if pixel not in wanted:
            cell_path(out, pixel).unlink()
    assert len(read_catalog({"path": out}, 100.0, 45.0, 3.0)) > 0
    with pytest.raises(BadInput, match=r"cell \d+ of the catalogue.*found none"):
        read_catalog({"path": out}, 280.0, 45.0, 12.0)


def test_an_interrupted_build_goes_on_and_gives_the_same(files, tmp_path, monkeypatch):
    options = BuildOptions(order=1, chunk_rows=1000)
    whole = build_folder(tmp_path / "whole", files, options)
    calls = []
    real = catalog_build._spool_file

    def stops(path, *rest):
        calls.append(path.name)
        if path.name == "c.fits":
            real(path, *rest)  # its rows are spooled, but the journal does not know
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(catalog_build, "_spool_file", stops)
    with pytest.raises(KeyboardInterrupt):
        build_folder(tmp_path / "cut", files, options)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(catalog_build, "_spool_file", lambda p, *r: calls.append(p.name) or real(p, *r))
    with pytest.raises(ConfigError, match="unfinished build"):
        build_folder(tmp_path / "cut", files, BuildOptions(order=3))
    again = build_folder(tmp_path / "cut", files, options)
    assert calls == ["a.csv", "b.csv.gz", "c.fits", "c.fits", "d.ecsv"]
    assert {k: c.sha256 for k, c in again.cells.items()} == {k: c.sha256 for k, c in whole.cells.items()}


def test_damage_is_one_clear_error(files, tmp_path, sky):
    out = tmp_path / "out"
    index = build_folder(out, files, BuildOptions(order=1))
    pixel = next(iter(index.cells))
    path = cell_path(out, pixel)
    good = path.read_bytes()
    path.write_bytes(good[:-2880])
    with pytest.raises(BadInput, match=f"cell {pixel} .* bytes"):
        read_catalog({"path": out}, 0.0, 0.0, 180.0)
    path.write_bytes(good[:-500] + bytes(500))
    assert len(damaged_cells(out)) == 1
    with pytest.raises(BadInput, match=r"catalog\.json"):
        read_catalog({"path": tmp_path}, 0.0, 0.0, 1.0)
    raw = json.loads((out / "catalog.json").read_text())
    (out / "catalog.json").write_text(json.dumps(raw | {"version": 99}))
    with pytest.raises(BadInput, match="version 99"):
        read_catalog({"path": out}, 0.0, 0.0, 1.0)
    with pytest.raises(ConfigError, match="exists"):
        build_folder(out, files, BuildOptions())
    (tmp_path / "short.csv").write_text("ra,dec,phot_g_mean_mag\n1,2,3\n1,2\n")
    with pytest.raises(BadInput, match="3 values each"):
        build_folder(tmp_path / "o2", [tmp_path / "short.csv"], BuildOptions())
    (tmp_path / "other.csv").write_text("ra,dec,phot_g_mean_mag\n1,2,3\n")
    with pytest.raises(BadInput, match="those of the first file"):
        build_folder(tmp_path / "o3", [files[0], tmp_path / "other.csv"], BuildOptions())
    with pytest.raises(BadInput, match="within the magnitude limits"):
        build_folder(tmp_path / "o4", files, BuildOptions(max_mag=1.0))


def test_the_order_of_rows_does_not_change_the_digest(sky, tmp_path):
    sky[:500].write(tmp_path / "a.fits")
    sky[:500][::-1].write(tmp_path / "b.fits")
    sky[:499].write(tmp_path / "c.fits")
    a, b, c = (content_digest(read_catalog({"path": tmp_path / f"{n}.fits"}, 0, 0, 180)) for n in "abc")
    assert a == b != c


def test_verbs_build_and_show(files, tmp_path, cli, capsys):
    out = tmp_path / "folder"
    assert cli("catalog", "build", out, "--from", tmp_path / "a.csv", "--from", str(tmp_path / "b.c*"), "--order", 2,
               "--max-mag", 19, "--keep", "g") == 0
    assert cli("catalog", "show", out, "--ra", 10, "--dec", 5, "--radius", 20, "--check") == 0
    text = capsys.readouterr().out
    assert "HEALPix order 2" in text
    assert "0 damaged" in text
    assert "within 20 deg of 10.0000 +5.0000" in text
    next(out.glob("cells/*.fits")).unlink()
    assert cli("catalog", "show", out, "--check") == 4
    assert cli("catalog", "build", tmp_path / "x", "--from", str(tmp_path / "none*.csv")) == 2
