"""Linking against brute force, at the poles, across RA 0, and between transactions that overlap or do not."""

import threading
import uuid

import hpgeom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from seechange_mpi.db import linking
from seechange_mpi.db.blocks import id_array, uuids, write_block
from seechange_mpi.db.engine import connect
from seechange_mpi.db.matching import assign, unit_vectors
from seechange_mpi.db.names import object_name, place_keys, place_names

ARCSEC = 1 / 3600


def separation_arcsec(a, b):
    """Angles between all pairs of unit vectors, accurate for small ones."""
    cross = np.linalg.norm(np.cross(a[:, None, :], b[None, :, :]), axis=-1)
    return np.degrees(np.arctan2(cross, a @ b.T)) * 3600


def around(rng, n, ra, dec, spread_arcsec):
    """Positions scattered about (ra, dec), valid at the poles."""
    centre = unit_vectors([ra], [dec])[0]
    v = centre + np.deg2rad(spread_arcsec * ARCSEC) * rng.normal(size=(n, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 360, np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 12), m=st.integers(0, 12),
       place=st.sampled_from([(0.0, 0.0), (359.9999, -30.0), (10.0, 90.0), (200.0, -89.9999), (123.4, 45.6)]),
       spread=st.sampled_from([0.3, 2.0, 20.0]))
def test_assignment_is_the_best_of_all(seed, n, m, place, spread):
    """As many pairs within the radius as possible, and of those the least sum of squares: brute force agrees."""
    rng = np.random.default_rng(seed)
    a = unit_vectors(*around(rng, n, *place, spread))
    b = unit_vectors(*around(rng, m, *place, spread))
    found = assign(a, b, 2.0)
    taken = found[found >= 0]
    assert len(set(taken)) == len(taken)
    d = separation_arcsec(a, b) if n and m else np.zeros((n, m))
    pairs = np.flatnonzero(found >= 0)
    assert (d[pairs, found[pairs]] <= 2.0 + 1e-6).all()
    if n and m:
        cost = np.where(d <= 2.0, d**2, 1e6)
        i, j = linear_sum_assignment(cost)
        near = cost[i, j] < 1e6
        assert len(pairs) == near.sum()
        assert np.isclose((d[pairs, found[pairs]] ** 2).sum(), cost[i, j][near].sum(), rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.sampled_from([7, 14]), size=st.floats(0.001, 1.0),
       place=st.sampled_from([(0.0, 0.0), (359.9999, -30.0), (10.0, 90.0), (200.0, -89.9999), (45.0, 41.8103)]))
def test_cells_near_are_all_that_a_circle_touches(seed, order, size, place):
    """hpgeom's inclusive search, which may add a few, contains ours, and ours everything found by dense sampling."""
    rng = np.random.default_rng(seed)
    radius = size * 58.6 * 3600 / 2**order / 6
    ra, dec = around(rng, 1, *place, 20 * radius)
    vector = unit_vectors(ra, dec)
    cells = linking.cells_near(vector, radius, order)
    v = vector + np.deg2rad(radius * ARCSEC) * np.sqrt(rng.random((2000, 1))) * _unit(rng.normal(size=(2000, 3)))
    v = _unit(v)
    v = v[separation_arcsec(v, vector)[:, 0] <= radius]
    touched = np.unique(hpgeom.vector_to_pixel(1 << order, *v.T, nest=True))
    assert np.isin(touched, cells).all()
    assert len(cells) <= 9


def _unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_identical_positions_are_matched():
    a = unit_vectors([10.0, 20.0], [5.0, 6.0])
    assert assign(a, a[::-1].copy(), 1.0).tolist() == [1, 0]


def test_the_nearest_is_taken_not_the_first():
    a = unit_vectors([10.0], [0.0])
    b = unit_vectors([10.0, 10.0, 10.0], [1.5 * ARCSEC, 0.2 * ARCSEC, -1.0 * ARCSEC])
    assert assign(a, b, 2.0).tolist() == [1]


@pytest.mark.parametrize(("place", "name"), [
    ((150.0, 2.2), "J100000.000+021200.00"), ((0.0, -0.5), "J000000.000-003000.00"),
    ((359.99999999, 90.0), "J235959.999+900000.00")])
def test_names_say_the_position(place, name):
    assert object_name(*place).endswith(name)


@given(st.lists(st.tuples(st.floats(0, 359.999999), st.floats(-90, 90)), min_size=1, max_size=20))
def test_names_are_the_digits_of_the_position(places):
    """Against the same formatted one by one."""
    for (ra, dec), name in zip(places, place_names(*np.array(places).T).tolist(), strict=True):
        ms, cas = int(ra / 15 * 3.6e6), int(abs(dec) * 3.6e5)
        assert name.decode() == (
            f"J{ms // 3_600_000:02d}{ms // 60_000 % 60:02d}{ms % 60_000 / 1000:06.3f}"
            f"{'-' if dec < 0 else '+'}{cas // 360_000:02d}{cas // 6000 % 60:02d}{cas % 6000 / 100:05.2f}")


def test_equal_names_have_equal_keys_and_others_have_not():
    rng = np.random.default_rng(3)
    ra, dec = 10 + rng.uniform(0, 3e-7, 500), rng.uniform(-1e-5, 1e-5, 500)
    names, keys = place_names(ra, dec), place_keys(ra, dec)
    assert 1 < len(set(names.tolist())) < 500
    pairs = set(zip(names.tolist(), keys.tolist(), strict=True))
    assert len(pairs) == len(set(names.tolist())) == len(set(keys.tolist()))


def ids(n):
    return [uuid.uuid5(uuid.NAMESPACE_OID, str(k)) for k in range(n)]


def link(conn, measurement_ids, ra, dec, good, radius, patch):
    known = linking.nearby_objects(conn, patch)
    matches = linking.match(known, ra, dec, good, radius)
    return linking.found(conn, matches, known, id_array(measurement_ids), ra, dec, good)


def link_and_store(conn, ids, ra, dec, good=None, radius=2.0):
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    good = np.ones(len(ra), bool) if good is None else np.asarray(good)
    with conn.transaction():
        patch = linking.Patch.around(ra, dec, radius)
        linking.lock_sky(conn, patch)
        links = link(conn, ids, ra, dec, good, radius, patch)
        write_block(conn, "objects", links.new_objects)
    return links


def found(links):
    """Ids of the objects, None where there is none."""
    return [None if no else i for i, no in zip(uuids(links.object_ids), links.without, strict=True)]


@pytest.mark.db
@pytest.mark.parametrize("place", [(0.0, 10.0), (77.0, 90.0), (180.0, -90.0), (359.9999, -5.0)])
def test_second_epoch_finds_the_objects_of_the_first(conn, place):
    rng = np.random.default_rng(5)
    ra, dec = around(rng, 40, *place, 300.0)
    first = link_and_store(conn, ids(80)[:40], ra, dec)
    assert first.is_new.all()
    ra2, dec2 = (ra + rng.normal(0, 0.1, 40) * ARCSEC / np.maximum(np.cos(np.deg2rad(dec)), 1e-3)) % 360, np.clip(
        dec + rng.normal(0, 0.1, 40) * ARCSEC, -90, 90)
    second = link_and_store(conn, ids(80)[40:], ra2, dec2)
    assert not second.is_new.any()
    assert found(second) == found(first)
    assert conn.execute("SELECT count(*) FROM objects").fetchone() == (40,)


@pytest.mark.db
def test_bad_measurements_found_nothing_and_take_what_is_left(conn):
    first = link_and_store(conn, ids(2), [10.0, 11.0], [0.0, 0.0], [True, False])
    assert found(first)[1] is None
    assert first.new_objects.n == 1
    # a bad one closer to the object than a good one: the good one has it
    both = link_and_store(conn, ids(2), [10.0, 10.0 + 0.5 * ARCSEC], [0.0, 0.0], [False, True])
    assert found(both) == [None, found(first)[0]]
    alone = link_and_store(conn, ids(1), [10.0], [0.1 * ARCSEC], [False])
    assert found(alone) == [found(first)[0]]


@pytest.mark.db
def test_ids_of_objects_derive_from_the_founding_measurement(conn):
    from seechange_mpi.model.ids import stable_id

    links = link_and_store(conn, ids(3), [1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    names = [n.decode() for n in links.new_objects.array("name")]
    assert found(links) == [stable_id("object", i, n) for i, n in zip(ids(3), names, strict=True)]
    assert conn.execute("SELECT name FROM objects ORDER BY ra LIMIT 1").fetchone() == ("SCM J000400.000+000000.00",)


@pytest.mark.db
def test_two_measurements_at_one_place_in_one_exposure_are_two_objects(conn):
    """Sections that overlap: never one object, and their names do not collide."""
    links = link_and_store(conn, ids(2), [10.0, 10.0], [5.0, 5.0])
    assert len(set(found(links))) == 2
    assert conn.execute("SELECT count(*) FROM objects").fetchone() == (2,)


@pytest.mark.db
def test_thousands_are_linked(conn):
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(10, 15, 5000), rng.uniform(-2, 2, 5000)
    link_and_store(conn, ids(5000), ra, dec)
    links = link_and_store(conn, ids(10000)[5000:], ra, dec)
    assert not links.is_new.any()


def _begin(url, ra, results, entered, go):
    with connect(url) as conn, conn.transaction():
        position = np.array([ra]), np.array([0.0])
        entered.set()
        patch = linking.Patch.around(*position, 2.0)
        linking.lock_sky(conn, patch)
        links = link(conn, [uuid.uuid4()], *position, np.array([True]), 2.0, patch)
        write_block(conn, "objects", links.new_objects)
        results.append(links)
        if go is not None:
            assert go.wait(20)


@pytest.mark.db
def test_commits_that_overlap_make_one_object_and_distant_ones_do_not_wait(url):
    """The second waits for the first and finds its object; a third elsewhere goes through meanwhile."""
    results, go = [], threading.Event()
    entered = [threading.Event() for _ in range(3)]
    first = threading.Thread(target=_begin, args=(url, 10.0, results, entered[0], go))
    first.start()
    while not results:
        assert first.is_alive()
        entered[0].wait(0.01)
    second = threading.Thread(target=_begin, args=(url, 10.0 + ARCSEC, results, entered[1], None))
    second.start()
    distant = threading.Thread(target=_begin, args=(url, 50.0, results, entered[2], None))
    distant.start()
    distant.join(10)
    assert not distant.is_alive()
    assert second.is_alive()
    assert len(results) == 2
    go.set()
    first.join(10)
    second.join(10)
    assert len(results) == 3
    assert results[2].object_ids == results[0].object_ids
    with connect(url) as conn:
        assert conn.execute("SELECT count(*) FROM objects").fetchone() == (2,)


@pytest.mark.db
def test_commits_in_opposite_order_do_not_deadlock(url):
    """Many wide commits at once over the same sky all go through."""
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(2)

    def one(k):
        order = rng.permutation(30) if k % 2 else np.arange(30)
        with connect(url) as conn:
            return link_and_store(conn, [uuid.uuid4() for _ in range(30)], 10 + order * 0.3, np.zeros(30))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(12)))
    with connect(url) as conn:
        assert conn.execute("SELECT count(*) FROM objects").fetchone() == (30,)
