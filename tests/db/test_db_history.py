"""Positions, light curves and forced photometry of objects, from bundles with real difference images."""

import csv

import made_bundles
import numpy as np
import pytest
import yaml
from made_bundles import SHAPE, wcs_header
from surveys import run_cli

from seechange_mpi.config.history import ForcedPhotometrySettings, PositioningSettings
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.forced import plan, store
from seechange_mpi.db.lightcurve import light_curve
from seechange_mpi.db.objects import find_objects, list_objects
from seechange_mpi.db.positions import newest_position, position_objects
from seechange_mpi.gpu_kernels.photometry import render_sources
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.pipeline.forced import measure
from seechange_mpi.pipeline.wcs_tools import separation_deg, sky_to_pixel

pytestmark = pytest.mark.db
CENTRE = (150.0, 2.0)
A, B = (150.0, 2.0), (150.005, 2.004)
NOISE, MAS = 4.0, 1 / 3.6e6
NJY = 10 ** (0.4 * (31.4 - 25.0))
POSITIONING, FORCED = PositioningSettings(), ForcedPhotometrySettings()


class Night:
    """Commits exposures of one section; sources are (ra, dec) -> flux in the difference [ADU]."""

    def __init__(self, conn, bundles, monkeypatch):
        self.conn, self.bundles, self.n = conn, bundles, 0
        self.sources, self.paths = {}, []
        original = made_bundles.add_subtraction

        def with_pixels(p, ra, dec, *args):
            original(p, ra, dec, *args)
            rng = np.random.default_rng(self.n)
            u = np.arange(15) - 7
            psf = np.exp(-4 * np.log(2) * (u[:, None] ** 2 + u[None, :] ** 2) / 3.0**2)
            psf = (psf / psf.sum()).astype(np.float32)
            data = rng.normal(0, NOISE, SHAPE)
            for (sra, sdec), flux in self.sources.items():
                x, y = sky_to_pixel(p.wcs.header, [sra], [sdec])
                data += render_sources(SHAPE, x, y, np.array([flux]), psf)
            p.sub.data, p.sub.psf = data.astype(np.float32), psf
            p.sub.weight, p.sub.flags = np.full(SHAPE, 1 / NOISE**2, np.float32), np.zeros(SHAPE, np.uint16)
            t = p.measurements.table
            t["ra_err"] = t["dec_err"] = 50 * MAS
            t["mag"] = 25 - 2.5 * np.log10(t["flux_psf"])
            return p

        monkeypatch.setattr(made_bundles, "add_subtraction", with_pixels)

    def __call__(self, at, name=None, centre=CENTRE, replace=False, **more):
        self.n += 1
        section = {"ra": centre[0], "dec": centre[1], "at": at} | more.pop("section", {})
        path = self.bundles({"S1": section}, name=name or f"e{self.n}",
                            mjd=60001.0 if name else 60000.0 + self.n, **more)
        commit_bundle(self.conn, path, radius_arcsec=2.0, replace=replace)
        self.paths.append(path)
        return path


@pytest.fixture
def night(conn, bundles, monkeypatch):
    return Night(conn, bundles, monkeypatch)


def off(place, east_mas=0.0, north_mas=0.0):
    return (place[0] + east_mas * MAS / np.cos(np.deg2rad(place[1]))) % 360, place[1] + north_mas * MAS


def force_all(conn, settings=FORCED, **which):
    done = 0
    for task in plan(conn, settings, **which):
        done += store(conn, task, measure(task, settings.model_dump()))
    return done


def only_object(conn):
    return conn.execute("SELECT _id FROM objects ORDER BY ra LIMIT 1").fetchone()[0]


def test_positions_follow_the_measurements_and_are_stored_once(conn, night):
    shifts = [(100, 0), (-100, 40), (0, -40), (20, 0)]
    for east, north in shifts:
        night([off(A, east, north)])
    done = position_objects(conn, POSITIONING)
    assert (done.new, done.changed, done.unchanged, done.without) == (1, 0, 0, 0)
    ra, dec, dra, ddec, _, n, provenance, _ = newest_position(conn, only_object(conn))
    mean = off(A, *np.mean(shifts, axis=0))
    assert separation_deg(ra, dec, *mean) < 1 * MAS
    assert n == 4
    assert 20 < dra / MAS < 70
    assert 20 < ddec / MAS < 50
    upstream = conn.execute("SELECT p.process FROM provenance_upstreams u JOIN provenances p ON u.upstream_id = p._id "
                            "WHERE u.downstream_id = %s", (provenance,)).fetchall()
    assert upstream == [("measuring",)]
    before = conn.execute("SELECT * FROM object_positions").fetchall()
    again = position_objects(conn, POSITIONING)
    assert (again.new, again.changed, again.unchanged) == (0, 0, 1)
    assert conn.execute("SELECT * FROM object_positions").fetchall() == before
    night([off(A, 300)])
    more = position_objects(conn, POSITIONING)
    assert (more.new, more.changed, more.unchanged) == (0, 1, 0)
    assert newest_position(conn, only_object(conn))[0] > ra


def test_settings_choose_measurements_and_make_another_provenance(conn, night):
    night([off(A, 100)])
    night([off(A, -100)], filter="i")
    night([A, B], section={"bad": [True, False]})
    all_ = position_objects(conn, POSITIONING)
    assert (all_.new, all_.without) == (2, 0)
    for settings, n, east in ((PositioningSettings(filter="i"), 1, -100),
                              (PositioningSettings(until_mjd=60001.5), 1, 100),
                              (PositioningSettings(use_bad=True), 3, 0)):
        done = position_objects(conn, settings, [only_object(conn)])
        assert done.provenance_id != all_.provenance_id
        row = conn.execute("SELECT ra, dec, n_measurements FROM object_positions WHERE provenance_id = %s",
                           (done.provenance_id,)).fetchone()
        assert row[2] == n
        assert separation_deg(row[0], row[1], *off(A, east)) < 1 * MAS
    assert position_objects(conn, PositioningSettings(sncut=1000)).without == 2


def test_positions_are_right_across_right_ascension_0(conn, night):
    place = (0.0, 10.0)
    for east in (-400, 400, -200, 200):
        night([off(place, east)], centre=place)
    assert conn.execute("SELECT count(*) FROM objects").fetchone() == (1,)
    position_objects(conn, POSITIONING)
    ra, dec, *_ = newest_position(conn, only_object(conn))
    assert separation_deg(ra, dec, *place) < 1 * MAS


def test_of_two_versions_of_an_exposure_the_last_counts(conn, night):
    night([off(A, 400)], name="e1")
    night([off(A, -400)], name="e1", extraction=1)
    position_objects(conn, POSITIONING)
    ra, dec, *_, n, _, _ = newest_position(conn, only_object(conn))
    assert n == 1
    assert separation_deg(ra, dec, *off(A, -400)) < 1 * MAS
    assert len(light_curve(conn, only_object(conn))) == 1
    force_all(conn)
    assert conn.execute("SELECT count(*), count(DISTINCT image_id) FROM forced_photometry").fetchone() == (1, 1)


def test_a_position_without_measurements_goes_away(conn, night):
    night([A])
    position_objects(conn, POSITIONING)
    conn.execute("DELETE FROM measurements")
    assert position_objects(conn, POSITIONING).without == 1
    assert newest_position(conn, only_object(conn)) is None


def test_without_measurements_positions_are_refused(conn):
    with pytest.raises(ConfigError, match="no measurements"):
        position_objects(conn, POSITIONING)


def test_forced_photometry_is_made_once_and_goes_on(conn, night):
    night.sources = {A: 900.0}
    night([A])
    night.sources = {A: -300.0}
    night([])
    assert force_all(conn) == 2
    assert force_all(conn) == 0
    rows = conn.execute("SELECT flux_psf, flux_psf_err, flux_aperture, zp, lim_mag, flags, mjd, filter, ra FROM "
                        "forced_photometry ORDER BY mjd").fetchall()
    for row, flux, mjd in zip(rows, (900, -300), (60001.0, 60002.0), strict=True):
        assert abs(row[0] - flux) < 4 * row[1]
        assert abs(row[2] - flux) < 8 * row[1]
        assert row[3] == 25.0
        assert row[4] == pytest.approx(25 - 2.5 * np.log10(5 * row[1]), abs=1e-4)
        assert row[5:9] == (0, mjd, "r", 150.0)
    night.sources = {A: 100.0}
    night([])
    assert [t.exposure for t in plan(conn, FORCED)] == ["e3"]
    assert force_all(conn) == 1
    assert force_all(conn, ForcedPhotometrySettings(radius_fwhms=2.0)) == 3
    assert conn.execute("SELECT count(*) FROM forced_photometry").fetchone() == (6,)


def test_only_what_covers_an_object_is_opened(conn, night):
    night([A])
    far = night([(150.2, 2.0)], centre=(150.2, 2.0))
    far.unlink()
    tasks = list(plan(conn, FORCED, object_ids=[only_object(conn)]))
    assert [(t.exposure, t.n) for t in tasks] == [("e1", 1)]
    assert [(t.exposure, t.n) for t in plan(conn, FORCED)] == [("e1", 1), ("e2", 1)]
    assert [t.exposure for t in plan(conn, FORCED, exposures=["e1"])] == ["e1"]
    with pytest.raises(ConfigError, match="e9: no difference image"):
        list(plan(conn, FORCED, exposures=["e9", "e1"]))
    with pytest.raises(BadInput, match=far.name):
        force_all(conn)


def test_a_moved_object_is_measured_again(conn, night):
    night([A])
    assert force_all(conn) == 1
    night([off(A, 900)])
    position_objects(conn, POSITIONING)
    assert force_all(conn) == 2
    assert force_all(conn) == 0
    ra = [r[0] for r in conn.execute("SELECT ra FROM forced_photometry")]
    assert separation_deg(ra[0], 2.0, *off(A, 450)) < 1 * MAS
    assert ra[0] == ra[1]


def test_a_replaced_difference_is_measured_again(conn, night):
    night.sources = {A: 900.0}
    night([A, B], name="e1")
    assert force_all(conn) == 2
    night.sources = {A: 500.0}
    night([A], name="e1", replace=True)
    assert conn.execute("SELECT count(*) FROM forced_photometry").fetchone() == (0,)
    assert force_all(conn) == 1
    flux, error = conn.execute("SELECT flux_psf, flux_psf_err FROM forced_photometry").fetchone()
    assert abs(flux - 500) < 4 * error


def test_a_light_curve_has_measurements_forced_fluxes_and_limits(conn, night):
    night.sources = {A: 1000.0}
    night([A])
    night.sources = {}
    night([])
    night([], centre=(150.0, 2.5))
    target = only_object(conn)
    table = light_curve(conn, target)
    assert [(r["kind"], r["mjd"]) for r in table] == [("measured", 60001.0), ("limit", 60002.0)]
    assert table["flux_njy"][0] == pytest.approx(1000 * NJY, rel=1e-5)
    assert table["flux_err_njy"][0] == pytest.approx(10 * NJY, rel=1e-5)
    assert table["mag"][0] == pytest.approx(17.5, abs=1e-5)
    assert table["rb"][0] == pytest.approx(0.9)
    assert table["lim_mag"][1] == pytest.approx(20.5)
    force_all(conn)
    table = light_curve(conn, target)
    assert [(r["kind"], r["mjd"]) for r in table] == [("measured", 60001.0), ("forced", 60001.0), ("forced", 60002.0)]
    forced = table[1:]
    assert abs(forced["flux_njy"][0] - 1000 * NJY) < 4 * forced["flux_err_njy"][0]
    assert abs(forced["flux_njy"][1]) < 4 * forced["flux_err_njy"][1]
    assert forced["mag"][0] < forced["lim_mag"][0]
    assert not forced["is_bad"].any()
    assert list(table["exposure"]) == ["e1", "e1", "e2"]


def test_objects_are_found_by_name_id_and_place(conn, night):
    night([A, B])
    night([A])
    first, second = list_objects(conn)
    assert (first.n_measurements, second.n_measurements) == (2, 1)
    assert (first.first_mjd, first.last_mjd) == (60001.0, 60002.0)
    loose = first.name.lower().replace(" ", "_")
    assert [o.id for o in find_objects(conn, [loose, str(second.id), first.name])] == [first.id, second.id]
    with pytest.raises(ConfigError, match="no object 'SN1987A'"):
        find_objects(conn, ["SN1987A"])
    assert [o.id for o in list_objects(conn, near=(*B, 5.0))] == [second.id]
    assert [o.id for o in list_objects(conn, near=(*off(B, 1000), 60.0))] == [second.id, first.id]
    assert list_objects(conn, near=(10.0, -80.0, 5.0)) == []
    assert [o.id for o in list_objects(conn, min_measurements=2)] == [first.id]


@pytest.fixture
def object_verb(url, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"database": {"url": url}, "paths": {"root": str(tmp_path)}}))

    def verb(*args):
        code = run_cli("object", *args, "--config", path)
        said = capsys.readouterr()
        return code, said.out + said.err

    return verb


def test_verbs_show_position_measure_and_write(conn, night, object_verb, tmp_path):
    night.sources = {A: 900.0}
    night([A])
    night([off(A, 100)])
    name = list_objects(conn)[0].name
    conn.commit()
    assert "no mean position" in object_verb("show", name)[1]
    code, said = object_verb("forced", "--plan")
    assert code == 0
    assert "2 measurements in 2 bundles are left" in said
    code, said = object_verb("forced", "-n", "2")
    assert code == 0
    assert "2 measurements are new" in said
    assert "0 measurements are new" in object_verb("forced")[1]
    assert "0 new, 0 changed, 1 unchanged" in object_verb("position", name)[1]
    code, said = object_verb("show", name.lower())
    assert code == 0
    assert "2 measurements" in said
    assert "forced       2 in r" in said
    assert name in object_verb("list", "--near", "150,2")[1]
    assert object_verb("list", "--near", "150;2")[0] == 2
    assert "forced" in object_verb("lightcurve", name)[1]
    out, png = tmp_path / "lc.csv", tmp_path / "lc.png"
    assert object_verb("lightcurve", name, "--csv", out, "--plot", png)[0] == 0
    rows = list(csv.DictReader(out.open()))
    assert [r["kind"] for r in rows] == ["measured", "forced", "measured", "forced"]
    assert float(rows[1]["flux_njy"]) == pytest.approx(900 * NJY, rel=0.1)
    assert rows[0]["lim_mag"] == ""
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert object_verb("lightcurve", name, "--csv", tmp_path / "no" / "lc.csv")[0] == 2
    assert object_verb("show", "nobody")[0] == 2


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_damaged_bundle_is_named_and_the_others_are_measured(conn, night, object_verb, processes):
    for _ in range(3):
        night([A])
    shard = next(night.paths[1].parent.rglob("S1_*.h5"))
    shard.write_bytes(shard.read_bytes()[:3000])
    conn.commit()
    code, said = object_verb("forced", "-n", processes)
    assert code == 3
    assert shard.name in said
    assert "2 measurements are new; 1 bundles could not be read" in said


def test_the_footprint_of_the_made_sections_is_theirs():
    """What the tests above rely on: 100 arcsec around the centre."""
    x, y = sky_to_pixel(wcs_header(*CENTRE), [B[0]], [B[1]])
    assert 0 < x[0] < SHAPE[1]
    assert 0 < y[0] < SHAPE[0]
