"""Sources of a catalogue near objects: found after the commit, made up for later, never in the way of anything."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from surveys import run_cli

from seechange_mpi.config.resolve import Config
from seechange_mpi.config.settings import ObjectSettings
from seechange_mpi.db import crossmatch
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.crossmatch import LATER, AfterCommit, Crossmatcher, matches_of
from seechange_mpi.db.engine import connect
from seechange_mpi.db.matching import neighbours, unit_vectors
from seechange_mpi.db.objects import find_objects
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.ids import stable_id

pytestmark = pytest.mark.db
ARCSEC = 1 / 3600
BIG = 2**53 + 2**40 + 1
"""An id of the Legacy Survey's size, which no float64 holds."""
HERE = (150.0, 2.0)
FAR = (150.0, 2.02)
SOURCES = Table({
    "lsid": np.array([BIG, BIG + 2, 7, 8], np.int64),
    "ra": [150.0, 150.0, 150.0, 150.0],
    "dec": [2.0 + 3 * ARCSEC, 2.0 - 1 * ARCSEC, 2.02, 2.02 + 11 * ARCSEC],
    "white_mag": [21.5, 18.25, np.nan, 20.0],
    "xgboost": np.array([0.125, 0.75, np.nan, 0.5], np.float32),
})


@pytest.fixture
def catalog(tmp_path):
    path = tmp_path / "sources.fits"
    SOURCES.write(path)
    return path


@pytest.fixture
def settings(catalog):
    return ObjectSettings(crossmatch_catalog=str(catalog), crossmatch_radius_arcsec=10.0)


@pytest.fixture
def commit(conn, bundles):
    """Commit an exposure with measurements at some places; return the bundle."""
    def commit(*at, name="e1", **more):
        path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": list(at)}}, name=name, **more)
        commit_bundle(conn, path, radius_arcsec=2.0)
        conn.commit()
        return path

    return commit


def rows(conn):
    """Object's declination, source, distance, of all matches."""
    return conn.execute("SELECT round(o.dec::numeric, 2)::float8, m.lsid, round(m.dist::numeric, 4)::float8 FROM "
                        "object_legacy_survey_match m JOIN objects o ON m.object_id = o._id ORDER BY o.dec, m.dist"
                        ).fetchall()


FOUND = [(2.0, BIG + 2, 1.0), (2.0, BIG, 3.0), (2.02, 7, 0.0)]


@pytest.mark.parametrize("place", [(0.0, 0.0), (359.9999, 60.0), (12.0, 90.0), (200.0, -90.0)])
def test_neighbours_are_those_of_brute_force(place):
    """Across RA 0 and at the poles, too."""
    rng = np.random.default_rng(3)
    first, second = (SkyCoord(_near(rng, place, 60, n), unit="deg") for n in (80, 300))
    i, j, dist = neighbours(unit_vectors(first.ra.deg, first.dec.deg), unit_vectors(second.ra.deg, second.dec.deg), 9.0)
    truth = first[:, None].separation(second[None, :]).arcsec
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == set(map(tuple, np.argwhere(truth <= 9.0).tolist()))
    assert len(i) > 200
    np.testing.assert_allclose(dist, truth[i, j], atol=1e-7)
    assert np.all((np.diff(i) > 0) | ((np.diff(i) == 0) & (np.diff(dist) >= 0)))


def test_no_neighbours_of_nothing():
    for first, second in ((0, 3), (3, 0), (0, 0)):
        assert [len(a) for a in neighbours(np.zeros((first, 3)), np.ones((second, 3)), 5.0)] == [0, 0, 0]


def test_an_exposure_is_matched_once(conn, commit, settings):
    commit(HERE, FAR)
    matcher = Crossmatcher(settings)
    done = matcher.exposure(conn, "e1")
    assert (done.objects, done.with_sources, done.rows) == (2, 2, 3)
    assert rows(conn) == FOUND
    again = matcher.exposure(conn, "e1")
    assert (again.objects, again.rows) == (0, 0)
    assert rows(conn) == FOUND


def test_what_is_known_of_a_source(conn, commit, settings):
    commit(HERE, FAR)
    Crossmatcher(settings).exposure(conn, "e1")
    here, far = (matches_of(conn, r[0]) for r in conn.execute("SELECT _id FROM objects ORDER BY dec").fetchall())
    assert [(m.source_id, m.mag, m.star_probability, m.is_star) for m in here] == [
        (BIG + 2, 18.25, 0.75, True), (BIG, 21.5, 0.125, False)]
    assert [(m.source_id, m.mag, m.star_probability, m.is_star) for m in far] == [(7, None, None, None)]
    assert (here[0].ra, here[0].dec) == (150.0, 2.0 - ARCSEC)
    assert conn.execute("SELECT m._id FROM object_legacy_survey_match m WHERE lsid = 7").fetchone()[0] == stable_id(
        crossmatch.TABLE, find_objects(conn, [str(_ids(conn)[1])])[0].id, 7)


def test_only_new_objects_and_none_of_tests(conn, commit, settings):
    matcher = Crossmatcher(settings)
    commit(HERE)
    matcher.exposure(conn, "e1")
    conn.execute("DELETE FROM object_legacy_survey_match")  # HERE is e1's object, also where it has no match
    commit(HERE, FAR, name="e2", mjd=60001.0)
    assert matcher.exposure(conn, "e2").objects == 1
    assert rows(conn) == FOUND[2:]
    assert matcher.exposure(conn, "e1").objects == 1
    commit((150.0, 2.0 + 2 * ARCSEC), name="t1", mjd=60002.0, testing=True)
    assert conn.execute("SELECT count(*) FROM objects WHERE is_test").fetchone() == (1,)
    assert matcher.exposure(conn, "t1").objects == 0
    assert matcher.all(conn, missing=True).objects == 0
    assert matcher.all(conn, missing=False).objects == 2
    assert matcher.named(conn, _ids(conn, "is_test")).objects == 0
    assert rows(conn) == FOUND


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_all_objects_in_batches_are_those_of_brute_force(conn, commit, tmp_path, monkeypatch, batch):
    """Objects on both sides of RA 0 and around a pole, in small batches; the catalogue is a file."""
    monkeypatch.setattr(crossmatch, "BATCH", batch)
    rng = np.random.default_rng(5)
    centres = [(0.0, 10.0), (0.0, 90.0), (80.0, -30.0)]
    at = [_near(rng, c, 40, 3) for c in centres]
    objects = [p for part in at for p in part]
    for k, part in enumerate(at):
        commit(*part, name=f"e{k}", mjd=60000.0 + k)
    sources = [p for c in centres for p in _near(rng, c, 40, 60)]
    path = tmp_path / "cat.parquet"
    _write_parquet(path, sources)
    matcher = Crossmatcher(ObjectSettings(crossmatch_catalog=str(path), crossmatch_radius_arcsec=12.0))
    done = matcher.all(conn, missing=True)
    truth = SkyCoord(objects, unit="deg")[:, None].separation(SkyCoord(sources, unit="deg")[None, :]).arcsec
    assert done.objects == len(objects) == 9
    assert done.rows == np.count_nonzero(truth <= 12.0) > 20
    stored = conn.execute("SELECT o.ra, o.dec, m.lsid, m.dist FROM object_legacy_survey_match m JOIN objects o ON "
                          "m.object_id = o._id").fetchall()
    for ra, dec, lsid, dist in stored:
        k = int(np.argmin(SkyCoord(objects, unit="deg").separation(SkyCoord(ra, dec, unit="deg"))))
        assert dist == pytest.approx(truth[k, lsid], abs=1e-6)


def test_a_folder_gives_what_the_file_gives(conn, commit, catalog, tmp_path, settings, capsys):
    folder = tmp_path / "folder"
    assert run_cli("catalog", "build", folder, "--from", catalog, "--sources", "--order", 8) == 0
    capsys.readouterr()
    assert run_cli("catalog", "show", folder, "--ra", 150, "--dec", 2, "--radius", 0.002) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[4] for line in shown[-3:]] == ["id", str(BIG + 2), str(BIG)]
    commit(HERE, FAR)
    Crossmatcher(settings.model_copy(update={"crossmatch_catalog": str(folder)})).exposure(conn, "e1")
    assert rows(conn) == FOUND
    assert matches_of(conn, _ids(conn)[0])[0].mag == 18.25


def test_a_source_that_is_twice_in_the_catalogue(conn, commit, tmp_path):
    path = tmp_path / "twice.fits"
    Table({"id": [5, 5, 6], "ra": [150.0] * 3, "dec": [2.0 + 4 * ARCSEC, 2.0 + 2 * ARCSEC, 2.0 + 3 * ARCSEC],
           "is_star": [True, True, False]}).write(path)
    commit(HERE)
    matcher = Crossmatcher(ObjectSettings(crossmatch_catalog=str(path)))
    assert matcher.exposure(conn, "e1").rows == 2
    assert rows(conn) == [(2.0, 5, 2.0), (2.0, 6, 3.0)]
    found = matches_of(conn, _ids(conn)[0])
    assert [(m.star_probability, m.is_star, m.mag) for m in found] == [(1.0, True, None), (0.0, False, None)]


@pytest.mark.parametrize(("columns", "expected"), [
    ({"ra": [1.0], "dec": [2.0]}, "column of ids"),
    ({"ra": [1.0], "dec": [2.0], "id": ["a"]}, "found texts"),
    ({"ra": [1.0], "dec": [2.0], "id": [float(BIG)]}, "floats too large"),
    ({"ra": [1.0], "dec": [2.0], "id": [0.5]}, "found fractions"),
    ({"id": [1], "dec": [2.0]}, "column for ra"),
])
def test_catalogues_that_do_not_do(tmp_path, columns, expected):
    path = tmp_path / "bad.fits"
    Table(columns).write(path)
    with pytest.raises(BadInput, match=expected):
        Crossmatcher(ObjectSettings(crossmatch_catalog=str(path))).catalog.near(1.0, 2.0, 1.0)


def test_after_commits_a_failure_is_said_once_and_made_up_for(conn, url, commit, catalog, tmp_path):
    config = Config.from_values({"objects": {"crossmatch_catalog": str(catalog), "crossmatch_radius_arcsec": 10.0}})
    away = catalog.rename(tmp_path / "away.fits")
    notes = []
    match = AfterCommit(config, lambda: connect(url), notes.append)
    for k, place in enumerate((HERE, FAR)):
        commit(place, name=f"e{k}", mjd=60000.0 + k)
        assert match(f"e{k}") is None
    assert len(notes) == 1
    assert notes[0].startswith("e0: committed, but its objects are not matched with a catalogue: ")
    assert notes[0].endswith(f"{catalog}: no such file or folder; {LATER}")
    away.rename(catalog)
    assert match("e1").rows == 1
    assert Crossmatcher(config.settings.objects).all(conn, missing=True).objects == 1
    assert rows(conn) == FOUND
    stopped = AfterCommit(config, lambda: connect(url), notes.append, lambda: True)
    commit((150.0, 1.99), name="e2", mjd=60002.0)
    assert stopped("e2") is None
    assert "time is up" in notes[1]
    assert AfterCommit(Config.from_values({}), lambda: 1 / 0, notes.append)("e0") is None
    assert len(notes) == 2


def test_objects_that_are_gone_meanwhile_are_passed_over(conn, url, commit, settings, monkeypatch):
    commit(HERE, FAR)
    matcher = Crossmatcher(settings)
    look = matcher.near

    def delete_one_first(objects):
        with connect(url) as other:
            other.execute("DELETE FROM objects WHERE dec > 2.01")
        return look(objects)

    monkeypatch.setattr(matcher, "near", delete_one_first)
    done = matcher.exposure(conn, "e1")
    assert (done.objects, done.with_sources, done.rows) == (1, 1, 2)
    assert rows(conn) == FOUND[:2]


def test_verbs(conn, commit, verb, bundles, catalog):
    """From the commit to what is shown; another radius replaces what was noted."""
    given = ("--set", f"objects.crossmatch_catalog={catalog}", "--set", "objects.crossmatch_radius_arcsec=10")
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [HERE]}})
    assert verb("db", "commit", path, *given, "--set", "objects.association_radius_arcsec=2")[0] == 0
    assert rows(conn) == FOUND[:2]
    conn.commit()
    code, out, _ = verb("object", "match", "--missing", *given)
    assert (code, out) == (0, "0 objects, 0 with a source nearby, 0 new matches\n")
    commit(FAR, name="e2", mjd=60001.0)
    assert verb("object", "match", "--missing", *given)[1] == "1 objects, 1 with a source nearby, 1 new matches\n"
    assert rows(conn) == FOUND
    name = conn.execute("SELECT name FROM objects ORDER BY dec").fetchone()[0]
    conn.commit()
    shown = verb("object", "show", name)[1].splitlines()
    assert shown[-2:] == [
        f'  near         1.00" star (star: 0.75), mag 18.25, 150.000000 +1.999722, id {BIG + 2}',
        f'  near         3.00" galaxy (star: 0.12), mag 21.50, 150.000000 +2.000833, id {BIG}']
    assert verb("object", "match", name, *given[:2], "--set", "objects.crossmatch_radius_arcsec=2")[0] == 0
    assert rows(conn) == [FOUND[0], FOUND[2]]
    conn.commit()
    assert verb("object", "match", "--all", *given)[1] == "2 objects, 2 with a source nearby, 3 new matches\n"
    assert rows(conn) == FOUND


def test_refusals(conn, commit, verb, catalog, tmp_path):
    assert verb.refused("object", "match", "--all")[0] == 2
    code, err = verb.refused("object", "match", "--all", "--set", "objects.crossmatch_catalog=/nowhere")
    assert code == 2
    assert "/nowhere: no such file or folder" in err
    given = f"objects.crossmatch_catalog={catalog}"
    assert verb.refused("object", "match", "--set", given)[0] == 2
    assert verb.refused("object", "match", "--all", "--missing", "--set", given)[0] == 2
    (tmp_path / "junk.fits").write_bytes(b"SIMPLE")
    assert verb.refused("object", "match", "--all", "--set", f"objects.crossmatch_catalog={tmp_path / 'junk.fits'}"
                        )[0] == 4
    commit(HERE, testing=True)
    test = str(_ids(conn, "is_test")[0])
    conn.commit()
    assert "objects of tests are not matched" in verb.refused("object", "match", test, "--set", given)[1]
    with pytest.raises(ConfigError, match="names no catalogue"):
        Crossmatcher(ObjectSettings())


def test_a_commit_without_its_catalogue_succeeds(conn, verb, bundles):
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [HERE]}})
    code, out, err = verb("db", "commit", path, "--set", "objects.crossmatch_catalog=/nowhere", "--set",
                          "objects.association_radius_arcsec=2")
    assert code == 0
    assert "1 new objects" in out
    assert err.count("not matched with a catalogue") == 1
    assert LATER in err
    assert conn.execute("SELECT count(*) FROM objects").fetchone() == (1,)


def _ids(conn, where="true"):
    return [r[0] for r in conn.execute(f"SELECT _id FROM objects WHERE {where} ORDER BY dec").fetchall()]


def _near(rng, place, radius_arcsec, n):
    """Places [deg] spread evenly over a circle."""
    angle, away = rng.uniform(0, 360, n), radius_arcsec * np.sqrt(rng.uniform(0, 1, n))
    p = SkyCoord(*place, unit="deg").directional_offset_by(angle * u.deg, away * u.arcsec)
    return list(zip(p.ra.deg.tolist(), p.dec.deg.tolist(), strict=True))


def _write_parquet(path, places):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    ra, dec = np.array(places).T
    pq.write_table(pa.table({"RA": ra, "DEC": dec, "ID": np.arange(len(ra))}), path)
