"""References: registered from committed exposures, chosen by footprint, filter, depth and age."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.references import add_reference, find_references, list_references, overlap, remove_reference
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.provenance import provenance_id

HALF = 50 / 3600


def square(ra, dec, half=HALF):
    """Corners of a square on the sky, in pixel order (as a section's footprint comes)."""
    w = half / np.cos(np.deg2rad(dec))
    return [((ra - w) % 360, dec - half), ((ra + w) % 360, dec - half), ((ra + w) % 360, dec + half),
            ((ra - w) % 360, dec + half)]


@settings(max_examples=50, deadline=None)
@given(dx=st.floats(-1.2, 1.2), dy=st.floats(-1.2, 1.2), ra=st.sampled_from([0.0, 10.0, 359.99]),
       dec=st.sampled_from([0.0, 60.0, -80.0]), order=st.permutations(range(4)))
def test_overlap_is_the_shared_area(dx, dy, ra, dec, order):
    a = square(ra, dec)
    b = square((ra + 2 * HALF * dx / np.cos(np.deg2rad(dec))) % 360, dec + 2 * HALF * dy)
    truth = max(0, 1 - abs(dx)) * max(0, 1 - abs(dy))
    assert overlap([a[k] for k in order], [b[k] for k in order]) == pytest.approx(truth, abs=0.06)


def test_overlap_knows_the_other_side_of_the_sky():
    assert overlap(square(10.0, 5.0), square(190.0, -5.0)) == 0
    assert overlap(square(10.0, 5.0), square(10.0, 5.0, 2 * HALF)) == 1
    assert overlap(square(10.0, 5.0, 2 * HALF), square(10.0, 5.0)) == pytest.approx(0.25, abs=0.06)


def find(conn, ra=150.0, dec=2.0, filter="r", **more):
    found = find_references(conn, {"S1": square(ra, dec)}, instrument="simulated", filters={"S1": filter}, **more)
    return found["S1"].exposure_identifier if found else None


@pytest.fixture
def ref(conn, bundles):
    """Commit an exposure of one section and register it."""

    def make(name, ra=150.0, dec=2.0, refset="default", **more):
        section = {"ra": ra, "dec": dec} | {k: more.pop(k) for k in ("lim_mag",) if k in more}
        commit_bundle(conn, bundles({"S1": section}, name=name, **more), radius_arcsec=2.0)
        return add_reference(conn, name, refset=refset)

    return make


@pytest.mark.db
def test_registered_once_with_its_provenances(conn, ref):
    from made_bundles import tree

    assert ref("e1") == ["S1"]
    assert add_reference(conn, "e1") == []
    link = find_references(conn, {"S1": square(150.0, 2.0)}, instrument="simulated", filters={"S1": "r"})["S1"]
    ids = {k: r.id for k, r in tree().items()}
    assert link.provenance_ids == {"preprocessing": ids["preprocessing"], "extraction": ids["extraction"]}
    assert (link.section_id, link.filter, link.instrument) == ("S1", "r", "simulated")
    assert link.path.endswith(".h5")
    row = conn.execute("SELECT p._id FROM refs r JOIN provenances p ON r.provenance_id = p._id").fetchone()
    assert row[0] == provenance_id("referencing", {"refset": "default"},
                                   [ids["preprocessing"], ids["extraction"]], "0.1.0")
    assert [(r[0], r[1], r[4]) for r in list_references(conn)] == [("default", "e1", "S1")]
    assert remove_reference(conn, "e1") == 1
    assert find(conn) is None


@pytest.mark.db
def test_unknown_exposures_and_sections_are_named(conn, ref):
    ref("e1")
    with pytest.raises(ConfigError, match=r"e9: no calibrated section.*exposures there: e1"):
        add_reference(conn, "e9")
    with pytest.raises(ConfigError, match="e1: no calibrated section S7"):
        add_reference(conn, "e1", sections=["S1", "S7"])


@pytest.mark.db
def test_the_choice(conn, ref):
    ref("far", ra=155.0)
    assert find(conn) is None
    ref("corner", ra=150.0 + 1.2 * HALF, dec=2.0)
    assert find(conn) is None, "covers less than half"
    assert find(conn, min_overlap=0.3) == "corner"
    ref("old", mjd=59000.0)
    assert find(conn) == "old", "covers more, though it is older"
    ref("new", mjd=59001.0)
    assert find(conn) == "new"
    ref("deep", mjd=58000.0, lim_mag=22.0)
    assert find(conn) == "deep"
    ref("unknown-depth", mjd=61000.0, lim_mag=float("nan"))
    assert find(conn) == "deep"
    assert find(conn, exclude="deep") == "new"
    assert find(conn, ra=150.0 + 0.1 * HALF) == "deep", "a pointing is only approximate"


@pytest.mark.db
def test_filters_and_sets_are_kept_apart(conn, ref):
    ref("g", filter="g")
    assert find(conn) is None
    assert find(conn, any_filter=True) == "g"
    ref("r")
    assert find(conn, any_filter=True) == "r", "the same filter is preferred"
    ref("other", refset="other", lim_mag=25.0)
    assert find(conn) == "r"
    assert find(conn, refset="other") == "other"
    assert find_references(conn, {"S1": square(150.0, 2.0)}, instrument="LS4", filters={"S1": "r"}) == {}
    assert find_references(conn, {}, instrument="simulated", filters={}) == {}


@pytest.mark.db
@pytest.mark.parametrize(("ra", "dec"), [(0.0, 1.0), (359.999, 1.0), (77.0, 89.99), (10.0, -89.9)])
def test_across_ra_zero_and_at_the_poles(conn, ref, ra, dec):
    ref("e1", ra=ra, dec=dec)
    corners = conn.execute("SELECT ra_corner_00, dec_corner_00, ra_corner_01, dec_corner_01, ra_corner_11, "
                           "dec_corner_11, ra_corner_10, dec_corner_10 FROM images").fetchone()
    footprint = [(corners[k], corners[k + 1]) for k in (0, 2, 4, 6)]
    found = find_references(conn, {"S1": footprint}, instrument="simulated", filters={"S1": "r"}, min_overlap=0.9)
    assert list(found) == ["S1"]


@pytest.mark.db
def test_many_references_elsewhere_cost_little(conn, ref):
    import time

    ref("e1")
    with conn.transaction():
        rows = conn.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'images'")
        columns = [r[0] for r in rows if r[0] not in ("_id", "section_id", "ra")]
        names = ", ".join(columns)
        conn.execute(f"INSERT INTO images (_id, section_id, ra, {names}) SELECT gen_random_uuid(), 'X' || n, n % 360, "
                     f"{names} FROM images, generate_series(1, 10000) n WHERE n % 360 NOT BETWEEN 140 AND 160")
        conn.execute("UPDATE images SET " + ", ".join(f"ra_corner_{k} = ra_corner_{k} - 150 + ra" for k in
                                                      ("00", "01", "10", "11")) + " WHERE section_id LIKE 'X%'")
        conn.execute("ALTER TABLE refs DROP CONSTRAINT IF EXISTS uq_refs_refset_id_zp_id")
        conn.execute("INSERT INTO refs (_id, refset_id, zp_id, image_id, provenance_id, instrument, filter, "
                     "section_id, filepath) SELECT gen_random_uuid(), refset_id, zp_id, i._id, r.provenance_id, "
                     "r.instrument, r.filter, i.section_id, r.filepath FROM refs r, images i "
                     "WHERE i.section_id LIKE 'X%'")
        conn.execute("ANALYZE images, refs, exposures")
    footprints = {f"S{k}": square(150.0 + 0.001 * k, 2.0) for k in range(32)}
    started = time.perf_counter()
    found = find_references(conn, footprints, instrument="simulated", filters=dict.fromkeys(footprints, "r"))
    assert time.perf_counter() - started < 1.0
    assert {f.exposure_identifier for f in found.values()} == {"e1"}
    with conn.transaction():
        conn.execute("DELETE FROM refs WHERE section_id LIKE 'X%'")
        conn.execute("ALTER TABLE refs ADD CONSTRAINT uq_refs_refset_id_zp_id UNIQUE (refset_id, zp_id)")
