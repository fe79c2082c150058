"""Objects matched by separation over combined errors, against brute force, and where it matters."""

import itertools
import uuid

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from seechange_mpi.config.settings import ObjectSettings
from seechange_mpi.db import linking
from seechange_mpi.db.blocks import id_array, write_block
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.linking import Linkage
from seechange_mpi.db.matching import assign, deviances, unit_vectors

ARCSEC = 1 / 3600
LIKELY = Linkage("likelihood")
PLACES = [(0.0, 0.0), (359.9999, -30.0), (200.0, -89.0), (123.4, 45.6)]


def offsets(place, east, north):
    """ra, dec [deg] of offsets [arcsec] about a place."""
    dec = place[1] + np.asarray(north) * ARCSEC
    return (place[0] + np.asarray(east) * ARCSEC / np.cos(np.deg2rad(place[1]))) % 360, dec


@pytest.mark.parametrize("place", PLACES)
def test_deviances_are_those_of_a_normal_distribution(place):
    """−2 ln of the density of the offset, east and north, whose variance is the sum of both; a constant aside."""
    a = unit_vectors(*offsets(place, [0.0, 0.0], [0.0, 0.0]))
    b = unit_vectors(*offsets(place, [0.3, 0.1], [0.2, -0.4]))
    one, two = np.array([[0.3, 0.1], [0.2, 0.2]]), np.array([[0.4, 0.2], [0.1, 0.6]])
    found = deviances(a, b, one * ARCSEC, two * ARCSEC)
    density = [multivariate_normal([0, 0], np.diag(one[k]**2 + two[k]**2)).logpdf(d)
               for k, d in enumerate(([0.3, 0.2], [0.1, -0.4]))]
    assert found[1] - found[0] == pytest.approx(-2 * (density[1] - density[0]), abs=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_the_assignment_is_the_likeliest_of_all(seed):
    """As many pairs within the radius as possible, of those the greatest likelihood: all permutations agree."""
    rng = np.random.default_rng(seed)
    place = PLACES[seed % 4]
    n, m = (int(k) for k in rng.integers(1, 6, 2))
    a, b = (unit_vectors(*offsets(place, rng.normal(0, 0.8, k), rng.normal(0, 0.8, k))) for k in (n, m))
    ea, eb = (rng.uniform(0.02, 0.8, (k, 2)) * ARCSEC for k in (n, m))
    found = assign(a, b, 1.5, (ea, eb))
    i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
    costs = deviances(a[i.ravel()], b[j.ravel()], ea[i.ravel()], eb[j.ravel()]).reshape(n, m)
    near = np.linalg.norm(a[:, None] - b[None], axis=2) <= np.deg2rad(1.5 * ARCSEC)

    def score(pairs):
        return -len(pairs), sum(costs[p] for p in pairs)

    slots = list(range(m)) + [-1] * n
    best = min(score([(k, s) for k, s in enumerate(choice) if s >= 0])
               for choice in set(itertools.permutations(slots, n))
               if all(s < 0 or near[k, s] for k, s in enumerate(choice)))
    mine = score([(k, s) for k, s in enumerate(found.tolist()) if s >= 0])
    assert mine[0] == best[0]
    assert mine[1] == pytest.approx(best[1])


def test_equal_errors_give_the_nearest():
    rng = np.random.default_rng(3)
    a, b = (unit_vectors(*offsets((150.0, 2.0), rng.normal(0, 20, 300), rng.normal(0, 20, 300))) for _ in range(2))
    same = np.full((300, 2), 0.2 * ARCSEC)
    assert np.array_equal(assign(a, b, 3.0), assign(a, b, 3.0, (same, same)))
    assert assign(a[:1], a[:1], 3.0, (same[:1], same[:1])).tolist() == [0]


def test_neighbours_of_unequal_brightness_are_told_apart_better():
    """Pairs 0.5" apart, one bright and one faint, both seen again: links that are wrong."""
    rng = np.random.default_rng(4)
    sigma = np.array([[0.03], [0.35]])
    errors = (sigma * ARCSEC).repeat(2, axis=1)
    wrong = {"nearest": 0, "likelihood": 0}
    for _ in range(400):
        truth = np.array([[0.0, 0.0], [0.5, 0.0]])
        founded, seen = (unit_vectors(*offsets((150.0, 2.0), *(truth + rng.normal(size=(2, 2)) * sigma).T))
                         for _ in range(2))
        wrong["nearest"] += int((assign(seen, founded, 2.0) != [0, 1]).any())
        wrong["likelihood"] += int((assign(seen, founded, 2.0, (errors, errors)) != [0, 1]).any())
    assert wrong["likelihood"] < 0.2 * wrong["nearest"], wrong


def link(conn, at, errors_arcsec, how=LIKELY):
    ra, dec = np.array(at, float).T
    errors = np.array(errors_arcsec, float)[:, None].repeat(2, axis=1) * ARCSEC
    with conn.transaction():
        patch = linking.Patch.around(ra, dec, 2.0)
        linking.lock_sky(conn, patch)
        known = linking.nearby_objects(conn, patch, errors=how.matching == "likelihood")
        good = np.ones(len(ra), bool)
        matches = linking.match(known, ra, dec, good, 2.0, errors=errors, how=how)
        links = linking.found(conn, matches, known, id_array([uuid.uuid4() for _ in at]), ra, dec, good, errors=errors,
                              how=how)
        write_block(conn, "objects", links.new_objects)
    return links


@pytest.mark.db
@pytest.mark.parametrize(("how", "expected"), [(Linkage(), 0), (LIKELY, 1)])
def test_a_precise_measurement_belongs_to_the_object_that_is_badly_known(conn, how, expected):
    """0.4" from an object known to 20 mas, 0.6" from one known to 0.5"."""
    objects = link(conn, [(150.0, 2.0), (150.0, 2.0 + ARCSEC)], [0.02, 0.5])
    assert objects.is_new.all()
    stored = conn.execute("SELECT ra_err, dec_err FROM objects ORDER BY dec").fetchall()
    assert np.array(stored) == pytest.approx(np.array([[0.02, 0.02], [0.5, 0.5]]) * ARCSEC, rel=1e-6)
    found = link(conn, [(150.0, 2.0 + 0.4 * ARCSEC)], [0.02], how)
    assert not found.is_new.any()
    assert found.object_ids[0] == objects.object_ids[expected]


@pytest.mark.db
def test_the_radius_is_the_same_and_the_floor_counts(conn):
    objects = link(conn, [(150.0, 2.0), (150.0, 2.0 + ARCSEC)], [0.001, 0.001])
    assert link(conn, [(150.0, 2.0 - 2.1 * ARCSEC)], [2.0]).is_new.all(), "large errors do not reach further"
    # far in units of the stated errors, but nearest; with the floor the errors are equal
    near = link(conn, [(150.0, 2.0 + 0.45 * ARCSEC)], [0.001])
    assert near.object_ids[0] == objects.object_ids[0]


@pytest.mark.db
def test_unknown_errors_are_as_large_as_the_radius(conn):
    link(conn, [(150.0, 2.0), (150.0, 2.0 + ARCSEC)], [np.nan, 0.02])
    assert conn.execute("SELECT ra_err FROM objects ORDER BY dec LIMIT 1").fetchone() == (None,)
    first = conn.execute("SELECT _id FROM objects ORDER BY dec").fetchone()[0]
    conn.commit()
    found = link(conn, [(150.0, 2.0 + 0.7 * ARCSEC)], [0.02])
    assert uuid.UUID(bytes=bytes(found.object_ids[0])) == first
    assert not link(conn, [(150.0, 2.0 + 0.2 * ARCSEC)], [np.nan]).is_new.any()


@pytest.mark.db
def test_the_setting_on_the_command_line(conn, verb, bundles, monkeypatch):
    """Errors come from the measurements of the bundle."""
    import made_bundles

    plain = made_bundles.add_subtraction
    errors = {}

    def with_errors(p, ra, dec, *args):
        p = plain(p, ra, dec, *args)
        table = p.measurements.table
        table["ra_err"] = table["dec_err"] = [errors[d] for d in dec]
        return p

    monkeypatch.setattr(made_bundles, "add_subtraction", with_errors)
    north = [2.0, 2.0 + ARCSEC, 2.0 + 0.4 * ARCSEC]
    errors.update(zip(north, np.array([0.02, 0.5, 0.02]) * ARCSEC, strict=True))
    commit_bundle(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, d) for d in north[:2]]}}, name="e1"),
                  radius_arcsec=2.0)
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, north[2])]}}, name="e2", mjd=60001.0)
    assert verb("db", "commit", path, "--set", "objects.matching=likelihood", "--set",
                "objects.association_radius_arcsec=2")[0] == 0
    assert conn.execute("SELECT o.dec FROM objects o JOIN measurements m ON m.object_id = o._id GROUP BY 1 "
                        "HAVING count(*) = 2").fetchone() == (north[1],)


@pytest.mark.db
def test_objects_from_before_get_the_errors_of_their_founders(empty_url):
    from made_bundles import tree

    from seechange_mpi.db import migrate
    from seechange_mpi.db.provenance import store_provenances

    with connect(empty_url) as conn:
        migrate.upgrade(conn)
        store_provenances(conn, tree().values())
        conn.commit()
        before = migrate.revisions()[-2]
        migrate.downgrade(conn, before)
        conn.execute("ALTER TABLE measurements ALTER measurementset_id DROP NOT NULL")
        conn.execute("INSERT INTO objects (_id, name, ra, dec, healpix) VALUES (gen_random_uuid(), 'a', 10, 1, 0), "
                     "(gen_random_uuid(), 'b', 20, 1, 0)")
        conn.execute("INSERT INTO measurements (_id, index_in_sources, object_id, ra, dec, healpix, ra_err, dec_err, "
                     "is_negative, is_bad) SELECT gen_random_uuid(), k, _id, ra + k, dec, 0, 0.1 + k, 0.2 + k, false, "
                     "false FROM objects, generate_series(0, 1) k WHERE name = 'a'")
        conn.commit()
        migrate.upgrade(conn)
        rows = conn.execute("SELECT name, ra_err, dec_err FROM objects ORDER BY 1").fetchall()
        assert rows == [("a", pytest.approx(0.1), pytest.approx(0.2)), ("b", None, None)]


def test_the_floor_is_an_error():
    from seechange_mpi.model.errors import ConfigError

    with pytest.raises(ConfigError, match="error_floor_mas"):
        ObjectSettings(error_floor_mas=0)
