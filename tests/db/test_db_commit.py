"""One exposure, one transaction: what is in the database after commits of every kind."""

import threading

import psycopg
import pytest

from seechange_mpi.db.commit import RefusedCommit, commit_bundle, raise_fence
from seechange_mpi.db.engine import connect
from seechange_mpi.db.schema import VOLATILE, metadata
from seechange_mpi.model.errors import BadInput, TransientError

pytestmark = pytest.mark.db
A, B, C = (150.0, 2.0), (150.01, 2.01), (150.005, 1.995)
PRODUCTS = ("images", "source_lists", "psfs", "backgrounds", "world_coordinates", "zero_points",
            "image_subtraction_components", "detections", "cutouts", "measurement_sets", "measurements",
            "deepscore_sets", "deepscores", "objects")


def commit(conn, path, **more):
    return commit_bundle(conn, path, radius_arcsec=2.0, **more)


def count(conn, table):
    return conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def dump(conn, *skip):
    """All rows of all tables, volatile columns aside."""
    out = {}
    for t in metadata.sorted_tables:
        if t.name not in skip:
            columns = ", ".join(f'"{c.name}"' for c in t.columns if c.name not in VOLATILE)
            out[t.name] = sorted(map(repr, conn.execute(f"SELECT {columns} FROM {t.name}")))
    return out


def two_sections(**more):
    return {"S1": {"ra": 150.0, "dec": 2.0, "at": [A, B]} | more, "S2": {"ra": 150.1, "dec": 2.0, "at": [(150.1, 2.0)]}}


def test_an_exposure_with_the_name_of_another_is_refused(conn, bundles):
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}}))
    before = dump(conn)
    with pytest.raises(BadInput, match=r"e1 of simulated at MJD 60000\.000000, which the database has under this name"):
        commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}}, mjd=60001.0))
    assert dump(conn) == before


def test_everything_of_a_bundle_is_there(conn, bundles):
    sections = two_sections(bad=[False, True])
    done = commit(conn, bundles(sections), tag="current")
    assert not done.unchanged
    assert {t: count(conn, t) for t in PRODUCTS} == {
        "images": 4, "source_lists": 2, "psfs": 2, "backgrounds": 2, "world_coordinates": 2, "zero_points": 2,
        "image_subtraction_components": 2, "detections": 2, "cutouts": 2, "measurement_sets": 2, "measurements": 3,
        "deepscore_sets": 2, "deepscores": 3, "objects": 2}
    assert done.inserted["measurements"] == 3
    assert done.new_objects == {"S1": 1, "S2": 1}
    rows = conn.execute("SELECT m.is_bad, m.object_id IS NULL, m.bad_reasons, m.flux_psf, m.ra, d.score "
                        "FROM measurements m JOIN deepscore_sets s USING (measurementset_id) "
                        "JOIN deepscores d ON d.deepscoreset_id = s._id AND d.index_in_sources = m.index_in_sources "
                        "ORDER BY m.ra").fetchall()
    assert [(r[0], r[1], r[2], r[3]) for r in rows] == [
        (False, False, "", 1000.0), (True, True, "negfrac", 1000.0), (False, False, "", 1000.0)]
    assert rows[0][4] == 150.0
    assert rows[0][5] == pytest.approx(0.9)
    image = conn.execute("SELECT ra, dec, ra_corner_00, ra_corner_11, dec_corner_01, zero_point_estimate, "
                         "fwhm_estimate FROM images WHERE NOT is_sub AND section_id = 'S1'").fetchone()
    assert image[0] == pytest.approx(150.0)
    assert image[1] == pytest.approx(2.0)
    # 100 pixels of 1 arcsec; 00 is low RA and low Dec, as in SeeChange
    half = 49.5 / 3600
    assert image[2] == pytest.approx(150.0 - half, abs=1e-4)
    assert image[3] == pytest.approx(150.0 + half, abs=1e-4)
    assert image[4] == pytest.approx(2.0 + half, abs=1e-4)
    assert image[5:] == (25.0, 2.5)
    report = conn.execute("SELECT success, progress_steps_bitflag, process_runtime FROM reports LIMIT 1").fetchone()
    assert report == (True, sum(1 << b for b in (1, 2, 4, 5, 6, 7, 8, 9, 10)), {"preprocessing": 1.0})


def test_again_changes_nothing(conn, bundles):
    path = bundles(two_sections())
    commit(conn, path)
    before = dump(conn)
    again = commit(conn, path)
    assert again.unchanged
    assert sum(again.inserted.values()) == 0
    assert dump(conn) == before


def test_a_rerun_with_other_times_and_hosts_is_the_same(conn, bundles):
    commit(conn, bundles(two_sections()))
    before = dump(conn)
    assert commit(conn, bundles(two_sections(), host="h2")).unchanged
    assert dump(conn) == before


def test_zero_detections_count_as_done(conn, bundles):
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": []}}))
    assert count(conn, "measurement_sets") == count(conn, "deepscore_sets") == 1
    assert count(conn, "measurements") == count(conn, "objects") == 0


def test_subtraction_comes_later_without_conflict(conn, bundles):
    """A section without reference is committed up to its zero point, and continued by a later bundle."""
    plain = {"S1": {"ra": 150.0, "dec": 2.0}}
    first = commit(conn, bundles(plain))
    assert first.inserted["images"] == 1
    assert conn.execute("SELECT caveat FROM reports").fetchall() == [("no_reference",)]
    zp = conn.execute("SELECT _id FROM zero_points").fetchall()
    second = commit(conn, bundles({"S1": plain["S1"] | {"at": [A]}}))
    assert second.inserted["images"] == 1
    assert conn.execute("SELECT _id FROM zero_points").fetchall() == zp
    assert conn.execute("SELECT new_zp_id FROM image_subtraction_components").fetchall() == zp


def test_failed_sections_leave_a_report_and_success_replaces_it(conn, bundles):
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}, "S2": {"fails": "astrocal"}}))
    rows = conn.execute("SELECT section_id, success, error_step, error_message FROM reports ORDER BY 1").fetchall()
    assert rows == [("S1", True, None, None), ("S2", False, "astrocal", "no stars")]
    assert count(conn, "images") == 2
    good = {"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}, "S2": {"ra": 150.1, "dec": 2.0, "at": [(150.1, 2.0)]}}
    commit(conn, bundles(good))
    assert conn.execute("SELECT section_id, success FROM reports ORDER BY 1, 2").fetchall() == [
        ("S1", True), ("S2", True)]


def test_other_content_is_refused_and_nothing_is_written(conn, bundles):
    commit(conn, bundles(two_sections()))
    before = dump(conn)
    with pytest.raises(RefusedCommit, match=r"S1 image.*--replace"):
        commit(conn, bundles(two_sections(zp=25.5)))
    with pytest.raises(RefusedCommit, match="S1 sub"):
        commit(conn, bundles(two_sections(at=[A])))
    assert dump(conn) == before


def test_replace_gives_what_a_fresh_database_would_have(conn, bundles, fresh_url):
    commit(conn, bundles(two_sections()))
    path = bundles(two_sections(zp=25.5, at=[C]))
    done = commit(conn, path, replace=True)
    assert done.inserted["measurements"] == 1
    assert not commit(conn, path).inserted.get("measurements")
    with connect(fresh_url) as fresh:
        commit(fresh, path)
        assert dump(conn, "commit_fence") == dump(fresh, "commit_fence")


def test_replacing_the_image_keeps_references_and_the_subtraction(conn, bundles):
    """A new zero point of a section does not silently take it out of the references, nor lose its difference."""
    from seechange_mpi.db.references import add_reference, list_references

    commit(conn, bundles(two_sections()))
    assert add_reference(conn, "e1") == ["S1", "S2"]
    commit(conn, bundles(two_sections(zp=25.5)), replace=True)
    assert [r[4] for r in list_references(conn)] == ["S1", "S2"]
    assert count(conn, "image_subtraction_components") == 2
    assert count(conn, "measurements") == 3


def test_replaced_objects_live_on_if_others_see_them(conn, bundles):
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A, B]}}))
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}}, name="e2", mjd=60001.0))
    assert count(conn, "objects") == 2
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [C]}}), replace=True)
    places = conn.execute("SELECT ra, dec FROM objects ORDER BY ra").fetchall()
    assert places == [A, C]


def test_two_extractions_of_one_image_live_side_by_side(conn, bundles):
    """Another extraction provenance shares the image; replacing one leaves the other whole."""
    commit(conn, bundles(two_sections()))
    commit(conn, bundles(two_sections(), extraction=1))
    assert count(conn, "images") == 6
    assert count(conn, "source_lists") == 4
    commit(conn, bundles(two_sections(zp=25.5)), replace=True)
    assert count(conn, "source_lists") == 4
    assert count(conn, "zero_points") == 4
    assert count(conn, "measurements") == 6
    zps = conn.execute("SELECT zp, count(*) FROM zero_points GROUP BY zp ORDER BY zp").fetchall()
    assert zps == [(25.0, 3), (25.5, 1)]


def test_two_scorings_share_their_measurements(conn, bundles):
    commit(conn, bundles(two_sections()))
    again = commit(conn, bundles(two_sections(score=0.2), scoring=1))
    assert (count(conn, "measurements"), count(conn, "objects")) == (3, 3)
    assert not again.inserted.get("objects")
    assert count(conn, "deepscore_sets") == 4


def test_another_reference_under_the_same_provenance_is_refused(conn, bundles):
    """Also when the scoring is new: rows never mix two subtractions."""
    other = "99999999-2222-3333-4444-555555555555"
    commit(conn, bundles(two_sections()))
    for scoring in (0, 1):
        with pytest.raises(RefusedCommit, match="S1 sub"):
            commit(conn, bundles(two_sections(reference=other), scoring=scoring))
    path = bundles(two_sections(reference=other), scoring=1)
    commit(conn, path, replace=True)
    used = conn.execute("SELECT ref_image_id::text FROM image_subtraction_components ORDER BY 1").fetchall()
    assert used[-1] == (other,)
    assert commit(conn, path).unchanged


def test_an_exposure_never_gives_an_object_two_measurements(conn, bundles):
    """Overlapping sections, whether they come in one bundle or in two, make the same objects."""
    near = (A[0] + 0.5 / 3600, A[1])
    s1, s2 = {"ra": 150.0, "dec": 2.0, "at": [A]}, {"ra": 150.02, "dec": 2.0, "at": [near]}
    commit(conn, bundles({"S1": s1, "S2": {"fails": "extraction"}}))
    commit(conn, bundles({"S1": s1, "S2": s2}))
    per_object = conn.execute("SELECT count(*) FROM measurements GROUP BY object_id").fetchall()
    assert per_object == [(1,), (1,)]


def test_a_stale_claim_is_refused(conn, bundles):
    path = bundles(two_sections())
    raise_fence(conn, "e1", 5)
    with pytest.raises(RefusedCommit, match=r"token 4.*newest one .5."):
        commit(conn, path, token=4)
    assert count(conn, "images") == 0
    commit(conn, path, token=5)
    raise_fence(conn, "e1", 3)
    commit(conn, path, token=6)
    assert conn.execute("SELECT token FROM commit_fence").fetchone() == (6,)


def test_absurdly_many_new_objects_are_refused(conn, bundles):
    with pytest.raises(RefusedCommit, match="3 new objects in one exposure"):
        commit(conn, bundles(two_sections()), max_new_objects=2)
    assert count(conn, "images") == 0


def test_a_commit_is_a_transaction_of_its_own(url, conn, bundles):
    """Also when the connection was used before: the rows are there for others, and no lock is kept."""
    conn.execute("SELECT count(*) FROM images")
    commit(conn, bundles(two_sections()))
    with connect(url) as other:
        assert count(other, "images") == 4
        assert count(other, "pg_locks WHERE locktype = 'advisory'") == 0


def test_a_lost_connection_is_transient_and_writes_nothing(url, conn, bundles):
    path = bundles(two_sections())
    with connect(url) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(TransientError, match="all of the exposure or nothing"):
        commit(conn, path)
    with connect(url) as fresh:
        assert count(fresh, "images") == 0
        assert not commit(fresh, path).unchanged


def test_a_damaged_bundle_is_bad_input(conn, bundles):
    path = bundles(two_sections())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadInput):
        commit(conn, path)
    assert count(conn, "exposures") == 0


def test_the_bundle_alone_is_enough(conn, bundles):
    """Shards gone: rows can still be rebuilt."""
    import shutil

    path = bundles(two_sections())
    shutil.rmtree(path.parent / "shards")
    commit(conn, path)
    assert count(conn, "measurements") == 3


def test_concurrent_epochs_make_one_object(url, bundles):
    """Six epochs of one place committed by six threads at once: one object."""
    paths = [bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A, B]}}, name=f"e{k}", mjd=60000.0 + k) for k in range(6)]
    errors = []

    def one(path):
        try:
            with connect(url) as conn:
                commit(conn, path)
        except Exception as err:  # noqa: BLE001
            errors.append(err)

    threads = [threading.Thread(target=one, args=(p,)) for p in paths]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert errors == []
    with connect(url) as conn:
        assert (count(conn, "objects"), count(conn, "measurements")) == (2, 12)


def test_the_same_bundle_committed_twice_at_once(url, bundles):
    path = bundles(two_sections())
    results = []

    def one():
        with connect(url) as conn:
            results.append(commit(conn, path).unchanged)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert sorted(results) == [False, True, True]


def test_errors_in_sql_are_not_hidden(fresh_url, bundles):
    """A broken schema is a bug, not something to wait for."""
    with connect(fresh_url) as conn:
        conn.execute("DROP TABLE deepscores")
        conn.commit()
        with pytest.raises(psycopg.errors.UndefinedTable):
            commit(conn, bundles(two_sections()))


def test_one_condition_selects_good_data(conn, bundles):
    """Bits of an image reach everything made from it; a measurement adds its own; the reference tells the whole."""
    from seechange_mpi.db.references import add_reference, list_references
    from seechange_mpi.model.flags import Badness

    cosmic = int(Badness.COSMIC_RAY)
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A, B], "bits": [0, cosmic]},
                          "S2": {"ra": 150.1, "dec": 2.0, "at": [(150.1, 2.0)], "badness": int(Badness.BANDING)}}))
    tables = ("images", "source_lists", "psfs", "backgrounds", "world_coordinates", "zero_points", "detections",
              "cutouts", "measurement_sets", "deepscore_sets")
    for table in tables:
        bad = conn.execute(f"SELECT count(*) FROM {table} WHERE (_bitflag | _upstream_bitflag) <> 0").fetchone()[0]
        assert 2 * bad == count(conn, table), table
    good = conn.execute("SELECT ra, dec FROM measurements WHERE (_bitflag | _upstream_bitflag) = 0").fetchall()
    assert good == [A]
    assert conn.execute("SELECT count(*) FROM measurements WHERE _bitflag = %s AND _upstream_bitflag = 0",
                        (cosmic,)).fetchone() == (1,)
    assert conn.execute("SELECT count(*) FROM deepscores WHERE (_bitflag | _upstream_bitflag) = 0").fetchone() == (1,)
    assert sorted(conn.execute("SELECT section_id, _bitflag FROM reports").fetchall()) == [("S1", 0), ("S2", 2)]
    add_reference(conn, "e1")
    assert [(r[4], r[-1]) for r in list_references(conn)] == [
        ("S1", 0), ("S2", int(Badness.REF_BAD | Badness.BANDING))]
