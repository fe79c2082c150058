"""Measurements of tests have objects of their own, and are no part of what is said about real ones."""

import json

import h5py
import numpy as np
import pytest
from made_bundles import tree

from seechange_mpi.config.history import ForcedPhotometrySettings, PositioningSettings
from seechange_mpi.data_store import DataStore
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.forced import plan, sub_footprints
from seechange_mpi.db.lightcurve import light_curve
from seechange_mpi.db.objects import find_objects, list_objects
from seechange_mpi.db.positions import position_objects
from seechange_mpi.db.references import add_reference
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.provenance import ids_of_tests, make_record

pytestmark = pytest.mark.db
ARCSEC = 1 / 3600
A, B = (150.0, 2.0), (150.01, 2.01)


@pytest.fixture
def epoch(conn, bundles):
    """Commit an epoch with one measurement near A (moved north by so many arcsec)."""
    def commit(name, mjd, *, testing=False, north=0.0, **more):
        section = {"ra": 150.0, "dec": 2.0, "at": [(A[0], A[1] + north * ARCSEC)]} | more
        path = bundles({"S1": section}, name=name, mjd=mjd, testing=testing)
        done = commit_bundle(conn, path, radius_arcsec=2.0)
        conn.commit()
        return done

    return commit


def links(conn):
    """(is the object a test's, is the measurement, exposure), of all measurements."""
    return sorted(conn.execute(
        "SELECT o.is_test, p.is_testing, e.origin_identifier FROM measurements m "
        "JOIN measurement_sets s ON m.measurementset_id = s._id JOIN provenances p ON s.provenance_id = p._id "
        "JOIN cutouts c ON s.cutouts_id = c._id JOIN detections d ON c.detections_id = d._id "
        "JOIN images i ON d.image_id = i._id JOIN exposures e ON i.exposure_id = e._id "
        "LEFT JOIN objects o ON m.object_id = o._id").fetchall())


@pytest.mark.parametrize("order", [(True, False, True, False), (False, True, False, True), (True, True, False, False)])
def test_the_same_sky_in_tests_and_for_real(conn, epoch, order):
    """Whoever comes first: two objects, one of each kind, and every later epoch finds its own."""
    for k, testing in enumerate(order):
        done = epoch(f"e{k}", 60000.0 + k, testing=testing, north=0.1 * k)
        first = testing not in order[:k]
        assert (done.new_objects, done.linked) == (({"S1": 1}, {}) if first else ({}, {"S1": 1}))
    assert links(conn) == sorted((t, t, f"e{k}") for k, t in enumerate(order))
    names = dict(conn.execute("SELECT is_test, name FROM objects").fetchall())
    assert names[True].startswith("TEST SCM J1000")
    assert names[False].startswith("SCM J1000")


@pytest.mark.parametrize("first", [True, False])
def test_one_exposure_in_a_test_and_for_real(conn, epoch, first):
    """At the very same place, from the same exposure: neither product is reused, neither object is found."""
    epoch("e1", 60000.0, testing=first)
    done = epoch("e1", 60000.0, testing=not first)
    assert done.inserted["images"] == 2
    assert done.new_objects == {"S1": 1}
    assert links(conn) == [(False, False, "e1"), (True, True, "e1")]
    assert epoch("e1", 60000.0, testing=first).unchanged


def test_which_provenances_are_of_a_test(conn, epoch):
    epoch("e1", 60000.0, testing=True)
    rows = dict(conn.execute("SELECT process, is_testing FROM provenances").fetchall())
    assert rows == {p: p != "acquire_exposure" for p in tree()}
    test, real = tree(testing=True), tree()
    assert {test[p].id == real[p].id for p in test if p != "acquire_exposure"} == {False}
    assert test["acquire_exposure"] == real["acquire_exposure"]
    assert ids_of_tests(real.values()) == frozenset()
    only = make_record("measuring", {"is_testing": True}, [real["cutting"].id])
    after = make_record("scoring", {}, [only.id])
    assert ids_of_tests([after, only, *real.values()]) == {only.id, after.id}
    assert ids_of_tests([make_record("measuring", {"is_testing": False}, [])]) == frozenset()


def test_what_is_said_of_real_objects_leaves_tests_out(conn, epoch, bundles):
    """A test committed last hides no real measurement, gives no limit, no position, no forced photometry."""
    epoch("e1", 60000.0)
    epoch("e1", 60000.0, testing=True, north=0.5)
    epoch("e2", 60001.0, testing=True, north=0.5)
    real, test = list_objects(conn), list_objects(conn, of_test=True)
    assert [len(real), len(test)] == [1, 1]
    assert (real[0].is_test, test[0].is_test) == (False, True)
    curve = light_curve(conn, real[0].id)
    assert curve["kind"].tolist() == ["measured"]
    assert curve["dec"].tolist() == [2.0]
    assert light_curve(conn, test[0].id)["exposure"].tolist() == ["e1", "e2"]
    assert [s.exposure for s in sub_footprints(conn)] == ["e1"]
    assert [s.exposure for s in sub_footprints(conn, of_test=True)] == ["e1", "e2"]
    settings = PositioningSettings(sncut=0)
    assert position_objects(conn, settings).new == 1
    assert position_objects(conn, settings, [test[0].id]).new == 1
    rows = dict(conn.execute("SELECT o.is_test, q.n_measurements FROM object_positions q "
                             "JOIN objects o ON q.object_id = o._id").fetchall())
    assert rows == {False: 1, True: 2}
    conn.commit()
    assert [t.exposure for t in plan(conn, ForcedPhotometrySettings())] == ["e1"]
    assert [t.exposure for t in plan(conn, ForcedPhotometrySettings(), object_ids=[test[0].id])] == ["e1", "e2"]
    for call in (lambda i: list(plan(conn, ForcedPhotometrySettings(), object_ids=i)),
                 lambda i: position_objects(conn, settings, i)):
        with pytest.raises(ConfigError, match="those of one kind"):
            call([real[0].id, test[0].id])


def test_the_store_hands_out_what_is_real(conn, epoch):
    epoch("e1", 60000.0, zp=25.0)
    epoch("e1", 60000.0, zp=26.0, testing=True)
    epoch("e2", 60001.0, zp=26.0, testing=True)
    ds = DataStore("e1", "S1", conn=conn)
    assert ds.get_zp().zp == 25.0
    assert ds.get_zp(tree(testing=True)["extraction"]).zp == 26.0
    assert DataStore("e2", "S1", conn=conn).get_zp().zp == 26.0


def test_a_test_is_no_reference(conn, epoch):
    epoch("e1", 60000.0, testing=True)
    with pytest.raises(ConfigError, match="no calibrated section of it is in the database, tests aside"):
        add_reference(conn, "e1")
    epoch("e1", 60000.0)
    assert add_reference(conn, "e1") == ["S1"]
    assert conn.execute("SELECT p.is_testing FROM refs r JOIN images i ON r.image_id = i._id "
                        "JOIN provenances p ON i.provenance_id = p._id").fetchall() == [(False,)]


def test_a_bundle_is_of_one_kind(conn, bundles):
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}, "S2": {"ra": 150.1, "dec": 2.0, "at": [B]}})
    test = tree(testing=True)
    more = [(r.id, r.process, r.code_version, json.dumps(dict(r.parameters)), json.dumps(list(r.upstream_ids)))
            for p, r in test.items() if p != "acquire_exposure"]
    with h5py.File(path, "r+") as f:
        rows = f["provenance"][...]
        del f["provenance"]
        f["provenance"] = np.concatenate([rows, np.array(more, rows.dtype)])
        f["sections/S2"].attrs["provenance_ids"] = json.dumps({p: r.id for p, r in test.items()})
    with pytest.raises(BadInput, match="expected those of a test or real ones, found both"):
        commit_bundle(conn, path, radius_arcsec=2.0)


def test_objects_of_tests_on_the_command_line(conn, epoch, verb):
    epoch("e1", 60000.0, testing=True)
    assert "there are no objects" in verb("object", "list")[1]
    out = verb("object", "list", "--test")[1]
    name = list_objects(conn, of_test=True)[0].name
    conn.commit()
    assert name in out
    assert "of a test" in verb("object", "show", name)[1]
    assert find_objects(conn, [name])[0].is_test
