"""Provenance ids are SeeChange's, and records are stored once."""

import pytest

from seechange_mpi.db.provenance import has_provenances, provenance_id, store_provenances
from seechange_mpi.model.provenance import ProvenanceRecord

DECAM = {"instrument": "DECam", "method": "download", "proc_type": "raw"}
PREPROCESSING = {"calibset": "externally_supplied", "flattype": "externally_supplied", "preprocessing": "internal",
                 "steps_required": ["overscan", "linearity", "flat", "fringe"]}


def test_the_vectors_of_seechange():
    assert provenance_id("acquire_exposure", DECAM, [], "0.1.0") == "6JS3XBTYW6JQ7WLB63HH"
    assert provenance_id("preprocessing", PREPROCESSING, ["6JS3XBTYW6JQ7WLB63HH"], "0.1.1") == "Q6PAJHPFOC5XOLTIVFGS"
    assert provenance_id("preprocessing", PREPROCESSING | {"test_parameter": "test_value"}, ["6JS3XBTYW6JQ7WLB63HH"],
                         "0.1.1") == "JGZHA57GFJG6DRDAJXWG"


@pytest.mark.db
def test_records_are_stored_once_with_links_and_tag(conn):
    first = ProvenanceRecord("6JS3XBTYW6JQ7WLB63HH", "acquire_exposure", "0.1.0", DECAM, ())
    second = ProvenanceRecord("Q6PAJHPFOC5XOLTIVFGS", "preprocessing", "0.1.1", PREPROCESSING, (first.id,))
    with conn.transaction():
        assert store_provenances(conn, [second, first, first], "current") == 2
        assert store_provenances(conn, [first, second], "current") == 0
    stored = conn.execute("SELECT parameters FROM provenances WHERE _id = %s", (second.id,)).fetchone()
    assert stored == (PREPROCESSING,)
    assert conn.execute("SELECT upstream_id, downstream_id FROM provenance_upstreams").fetchall() == [
        (first.id, second.id)]
    assert conn.execute("SELECT tag, count(*) FROM provenance_tags GROUP BY tag").fetchall() == [("current", 2)]
    rows = conn.execute("SELECT process, version_major, version_minor, version_patch FROM code_versions ORDER BY 1")
    assert rows.fetchall() == [("acquire_exposure", 0, 1, 0), ("preprocessing", 0, 1, 1)]


@pytest.mark.db
def test_what_is_stored_already_is_recognised(conn):
    """A link is lacking only where the database has both ends; a tag counts if one is asked for."""
    first = ProvenanceRecord("6JS3XBTYW6JQ7WLB63HH", "acquire_exposure", "0.1.0", DECAM, ())
    second = ProvenanceRecord("Q6PAJHPFOC5XOLTIVFGS", "preprocessing", "0.1.1", PREPROCESSING, (first.id,))
    assert not has_provenances(conn, [second])
    store_provenances(conn, [second])
    assert has_provenances(conn, [second, second])
    assert not has_provenances(conn, [second], "current")
    store_provenances(conn, [first])
    assert not has_provenances(conn, [second]), "its link can be stored now"
    store_provenances(conn, [first, second], "current")
    assert has_provenances(conn, [first, second], "current")
    assert not has_provenances(conn, [first, second], "another")
