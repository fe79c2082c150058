"""Measurements that fail deletion thresholds: in the bundle with their reasons, not in the database; counted by cut."""

import json

import numpy as np
import pytest

from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.io.bundle import read_section

pytestmark = pytest.mark.db
A, B, C, D = (150.0, 2.0), (150.01, 2.01), (150.005, 1.995), (149.995, 1.99)
SECTIONS = {
    "S1": {"ra": 150.0, "dec": 2.0, "at": [A, B, C, D], "reasons": ["", "negfrac", "negfrac,chi2", "star"],
           "deleted": ["", "", "negfrac,chi2", "star"]},
    "S2": {"ra": 150.1, "dec": 2.0, "at": [(150.1, 2.0)], "reasons": ["chi2"]},
    "S3": {"ra": 150.2, "dec": 2.0},
}


def rows(conn, what):
    return sorted(conn.execute(f"SELECT {what}").fetchall())


def test_deleted_measurements_stay_out_of_the_database(conn, bundles):
    path = bundles(SECTIONS)
    done = commit_bundle(conn, path, radius_arcsec=2.0)
    assert done.inserted["measurements"] == done.inserted["deepscores"] == 3
    assert rows(conn, "ra, is_bad, bad_reasons FROM measurements") == [
        (150.0, False, ""), (150.01, True, "negfrac"), (150.1, True, "chi2")]
    assert rows(conn, "index_in_sources FROM deepscores") == [(0,), (0,), (1,)]
    assert rows(conn, "num_measurements FROM measurement_sets") == [(1,), (2,)]
    assert rows(conn, "num_detections FROM detections") == [(1,), (4,)]
    assert rows(conn, "ra FROM objects") == [(150.0,)]
    table = read_section(path, "S1").products.measurements.table
    assert table["deletion_reasons"].tolist() == [b"", b"", b"negfrac,chi2", b"star"]
    assert commit_bundle(conn, path, radius_arcsec=2.0).unchanged


def test_a_deleted_measurement_is_not_linked_to_the_object_at_its_place(conn, bundles):
    commit_bundle(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [C]}}, name="e0"), radius_arcsec=2.0)
    commit_bundle(conn, bundles(SECTIONS), radius_arcsec=2.0)
    found = rows(conn, "o.ra, count(m._id) FROM objects o LEFT JOIN measurements m ON m.object_id = o._id GROUP BY 1")
    assert found == [(150.0, 1), (150.005, 1)]


def test_a_set_of_which_everything_is_deleted_counts_as_done(conn, bundles):
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A], "reasons": ["star"], "deleted": ["star"]}})
    commit_bundle(conn, path, radius_arcsec=2.0)
    assert rows(conn, "num_measurements FROM measurement_sets") == [(0,)]
    assert rows(conn, "count(*) FROM measurements") == rows(conn, "count(*) FROM deepscores") == [(0,)]
    assert commit_bundle(conn, path, radius_arcsec=2.0).unchanged


def test_explain_counts_by_cut_and_section(verb, bundles):
    one, two = bundles(SECTIONS), bundles(SECTIONS, name="e2")
    code, out, err = verb("measuring", "explain", one, two)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert out.splitlines()[0] == ("2 bundles, 2 sections, 10 measurements: 2 good, 4 bad (marked in the database), "
                                   "4 deleted (not in the database)")
    by_cut = {x[0]: x[-3:] for x in lines if len(x) == 7}
    assert by_cut["negfrac"] == ["4", "2", "2"]
    assert by_cut["chi2"] == ["4", "2", "2"]
    assert by_cut["star"] == ["2", "2", "2"]
    assert by_cut["fit"] == ["0", "0", "0"]
    by_section = {x[0]: x[1:5] for x in lines if x and x[0] in ("S1", "S2", "sum")}
    assert by_section == {"S1": ["8", "2", "2", "4"], "S2": ["2", "0", "2", "0"], "sum": ["10", "2", "4", "4"]}
    assert verb("measuring", "explain", one.parents[1])[1] == out, "a folder stands for the bundles below it"


def test_explain_for_programs(verb, bundles):
    path = bundles(SECTIONS)
    said = json.loads(verb("measuring", "explain", path, "--json")[1])
    assert said["sum"]["failed"] == {"negfrac": 2, "chi2": 2, "star": 1}
    assert said["sum"]["only"] == {"negfrac": 1, "star": 1, "chi2": 1}
    assert said["bundles"][str(path)]["S2"]["bad"] == said["sections"]["S2"]["measurements"] == 1
    assert said["sum"]["good"] + said["sum"]["bad"] + said["sum"]["deleted"] == said["sum"]["measurements"] == 5


def test_explain_goes_on_beside_a_damaged_bundle(verb, bundles, tmp_path):
    path = bundles(SECTIONS)
    (path.parent / "half.h5").write_bytes(path.read_bytes()[:3000])
    code, out, err = verb("measuring", "explain", path.parents[1])
    assert code == 3
    assert out.startswith("1 bundles, 2 sections, 5 measurements")
    assert err.startswith(f"passed over: {path.parent / 'half.h5'}")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "expected bundles, or the log of a run, found neither" in verb.refused("measuring", "explain", empty)[1]
    assert verb.refused("measuring", "explain", "no-such-run")[0] == 2
    assert "no run has left a log" in verb.refused("measuring", "explain")[1]


def test_a_bundle_from_before_deletion_thresholds(conn, verb, bundles):
    """Its table lacks the column: nothing is deleted, and it is committed and explained."""
    import h5py
    from numpy.lib.recfunctions import drop_fields

    path = bundles({"S1": SECTIONS["S1"] | {"deleted": None}})
    with h5py.File(path, "r+") as f:
        g = f["sections/S1"]
        table = drop_fields(g["measurements"][...], "deletion_reasons")
        del g["measurements"]
        g["measurements"] = np.asarray(table)
    commit_bundle(conn, path, radius_arcsec=2.0)
    assert rows(conn, "count(*) FROM measurements") == [(4,)]
    assert "4 measurements: 1 good, 3 bad (marked in the database), 0 deleted" in verb("measuring", "explain", path)[1]
