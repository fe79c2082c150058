"""Badness set by hand, and handed on along the chain of products."""

import psycopg
import pytest

from seechange_mpi.db.badness import MARKABLE, hand_on, hold_marks, mark, stop_commits
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.references import add_reference
from seechange_mpi.model.errors import TransientError
from seechange_mpi.model.flags import BADNESS_MEANINGS, Badness, badness_bits, badness_words

GHOST, SKY = int(Badness.GHOST), int(Badness.BRIGHT_SKY)
REF_BAD, OLD = int(Badness.REF_BAD), int(Badness.REF_SUPERSEDED)
AT = [(150.0, 2.0), (150.01, 2.0)]
SUB_SIDE = ("detections", "cutouts", "measurement_sets", "measurements", "deepscore_sets", "deepscores")


@pytest.fixture
def commit(conn, bundles):
    """Commit an exposure; return the bundle's path."""

    def run(name="e1", mjd=60000.0, reference=None, at=AT, **more):
        section = {"ra": 150.0, "dec": 2.0} | ({} if at is None else {"at": at})
        section |= {k: more.pop(k) for k in ("badness", "bits") if k in more}
        if reference is not None:
            section["reference"] = str(reference)
        path = bundles({"S1": section}, name=name, mjd=mjd, **more)
        commit_bundle(conn, path, radius_arcsec=1.0)
        return path

    return run


@pytest.fixture
def survey(conn, commit):
    """A reference e0, an exposure e1 compared with it, and another one e2 that is not; return name -> image id."""
    commit("e0", 59990.0, at=None)
    add_reference(conn, "e0")
    commit("e1", 60000.0, reference=images(conn)["e0"])
    commit("e2", 60001.0)
    return images(conn)


def images(conn, *, sub=False):
    return dict(conn.execute("SELECT e.origin_identifier, i._id FROM images i JOIN exposures e "
                             "ON i.exposure_id = e._id WHERE is_sub = %s", (sub,)).fetchall())


def effective(conn):
    """Table -> effective bits of its rows, those without any left out."""
    out = {}
    for table in MARKABLE:
        found = sorted(r[0] for r in conn.execute(f"SELECT _bitflag | _upstream_bitflag FROM {table}"))
        if any(found):
            out[table] = [f for f in found if f]
    return out


def everything(conn):
    return {t: sorted(conn.execute(f"SELECT _id, _bitflag, _upstream_bitflag FROM {t}").fetchall()) for t in MARKABLE}


def test_words_go_both_ways():
    for bit, (_, word, _) in BADNESS_MEANINGS.items():
        assert badness_bits(word) == badness_bits(word.upper()) == badness_bits(bit.name) == bit
        assert badness_words(bit) == word
    assert badness_bits("bleed trail, ref is superceded,bad_pixel") == Badness.BLEED | OLD | Badness.BAD_PIXEL
    assert badness_bits(badness_words(1 << 50)) == 1 << 50
    assert badness_bits("") == 0
    with pytest.raises(ValueError, match="'gost' is no badness; there are: banding, "):
        badness_bits("ghost, gost")


@pytest.mark.db
def test_a_marked_image_marks_what_was_made_of_it(conn, survey):
    changed = mark(conn, {"images": [survey["e1"]]}, add=GHOST)
    assert changed == {"images": 2, "backgrounds": 1, "source_lists": 1, "psfs": 1, "world_coordinates": 1,
                       "zero_points": 1, "detections": 1, "cutouts": 1, "measurement_sets": 1, "measurements": 2,
                       "deepscore_sets": 1, "deepscores": 2}
    found = effective(conn)
    assert {t: len(v) for t, v in found.items()} == changed
    assert {b for bits in found.values() for b in bits} == {GHOST}
    assert mark(conn, {"images": [survey["e1"]]}, add=GHOST) == {}
    assert mark(conn, {"images": [survey["e1"]]}, remove=GHOST) == changed
    assert effective(conn) == {}


@pytest.mark.db
def test_an_exposure_marks_its_sections(conn, survey):
    exposure = conn.execute("SELECT _id FROM exposures WHERE origin_identifier = 'e2'").fetchone()[0]
    changed = mark(conn, {"exposures": [exposure]}, add=SKY)
    assert changed["exposures"] == 1
    assert changed["measurements"] == 2
    assert conn.execute("SELECT DISTINCT e.origin_identifier FROM images i JOIN exposures e ON i.exposure_id = e._id "
                        "WHERE i._upstream_bitflag = %s", (SKY,)).fetchall() == [("e2",)]


@pytest.mark.db
def test_a_marked_reference_makes_differences_doubtful_by_one_bit(conn, survey):
    changed = mark(conn, {"images": [survey["e0"]]}, add=SKY)
    assert changed["refs"] == 1
    found = effective(conn)
    assert found["refs"] == [SKY | REF_BAD]
    assert found["measurements"] == found["deepscores"] == [REF_BAD, REF_BAD]
    assert found["zero_points"] == [SKY], "the new image's own is as it was"
    mark(conn, {"images": [survey["e0"]]}, remove=SKY)
    assert effective(conn) == {}


@pytest.mark.db
def test_a_reference_that_is_superseded(conn, survey):
    ref = conn.execute("SELECT _id FROM refs").fetchone()[0]
    mark(conn, {"refs": [ref]}, add=OLD)
    assert {t: set(v) for t, v in effective(conn).items()} == {
        t: {OLD} for t in ("refs", "images", *SUB_SIDE)}


@pytest.mark.db
def test_bits_in_the_middle_stay_below(conn, survey):
    def one(table):
        return conn.execute(f"SELECT _id FROM {table} ORDER BY _id LIMIT 1").fetchone()[0]

    background = one("backgrounds")
    mark(conn, {"backgrounds": [background]}, add=int(Badness.TOO_DENSE))
    found = effective(conn)
    assert "images" not in found or len(found["images"]) == 1, "only a difference"
    assert found["psfs"] == found["zero_points"] == [int(Badness.TOO_DENSE)]
    mark(conn, {"backgrounds": [background]}, remove=int(Badness.TOO_DENSE))
    psf = one("psfs")
    mark(conn, {"psfs": [psf]}, add=int(Badness.PSF))
    assert "source_lists" not in effective(conn)
    assert effective(conn)["world_coordinates"] == [int(Badness.PSF)]
    mark(conn, {"psfs": [psf]}, remove=int(Badness.PSF))
    measurement = one("measurements")
    assert mark(conn, {"measurements": [measurement]}, add=GHOST) == {"measurements": 1, "deepscores": 1}
    assert mark(conn, {"deepscore_sets": [one("deepscore_sets")]}, add=SKY) == {"deepscore_sets": 1, "deepscores": 2}


@pytest.mark.db
def test_two_parents_one_of_which_is_cleared(conn, survey):
    rows = {"images": [survey["e1"]], "zero_points": [conn.execute(
        "SELECT z._id FROM zero_points z JOIN world_coordinates w ON z.wcs_id = w._id JOIN source_lists s "
        "ON w.sources_id = s._id WHERE s.image_id = %s", (survey["e1"],)).fetchone()[0]]}
    mark(conn, rows, add=GHOST)
    mark(conn, {"images": rows["images"]}, remove=GHOST)
    found = effective(conn)
    assert "psfs" not in found
    assert found["measurements"] == [GHOST, GHOST], "the zero point has it still"


@pytest.mark.db
def test_what_the_pipeline_found_is_what_follows(conn, commit):
    """Computed anew, nothing changes, whatever is bad."""
    commit("e0", 59990.0, at=None, badness=SKY)
    add_reference(conn, "e0")
    commit("e1", 60000.0, reference=images(conn)["e0"], badness=GHOST, bits=int(Badness.COSMIC_RAY))
    before = everything(conn)
    every = {t: [r[0] for r in conn.execute(f"SELECT _id FROM {t}")] for t in MARKABLE}
    changed = hand_on(conn, every)
    sub = conn.execute("SELECT _upstream_bitflag FROM images WHERE is_sub").fetchone()[0]
    assert sub == GHOST | REF_BAD
    assert changed == {}
    assert everything(conn) == before


@pytest.mark.db
def test_marks_survive_a_commit_of_the_same_bundle(conn, survey, commit):
    mark(conn, {"images": [survey["e1"]]}, add=GHOST)
    before = everything(conn)
    commit("e1", 60000.0, reference=survey["e0"])
    assert everything(conn) == before


@pytest.mark.db
def test_what_is_committed_later_meets_the_marks(conn, survey, commit):
    """A new extraction, a new scoring, a new exposure with the reference: all follow marks that were there before."""
    mark(conn, {"images": [survey["e1"]]}, add=GHOST)
    mark(conn, {"refs": [conn.execute("SELECT _id FROM refs").fetchone()[0]]}, add=OLD)
    marked = conn.execute("SELECT m._id FROM measurements m JOIN measurement_sets s ON m.measurementset_id = s._id "
                          "JOIN cutouts c ON s.cutouts_id = c._id JOIN detections d ON c.detections_id = d._id "
                          "WHERE d.image_id = %s ORDER BY m.ra LIMIT 1", (images(conn, sub=True)["e1"],)).fetchone()[0]
    mark(conn, {"measurements": [marked]}, add=SKY)
    commit("e1", 60000.0, reference=survey["e0"], scoring=1)
    rescored = conn.execute("SELECT p._upstream_bitflag FROM deepscores p JOIN deepscore_sets q ON "
                            "p.deepscoreset_id = q._id JOIN measurements m ON m.measurementset_id = "
                            "q.measurementset_id AND m.index_in_sources = p.index_in_sources WHERE m._id = %s",
                            (marked,)).fetchall()
    assert rescored == [(GHOST | OLD | SKY,)] * 2
    commit("e1", 60000.0, reference=survey["e0"], extraction=1)
    assert {r[0] for r in conn.execute("SELECT z._upstream_bitflag FROM zero_points z JOIN world_coordinates w ON "
                                       "z.wcs_id = w._id JOIN source_lists s ON w.sources_id = s._id WHERE "
                                       "s.image_id = %s", (survey["e1"],))} == {GHOST}
    commit("e3", 60002.0, reference=survey["e0"])
    sub = images(conn, sub=True)["e3"]
    assert conn.execute("SELECT _upstream_bitflag FROM images WHERE _id = %s", (sub,)).fetchone() == (OLD,)
    assert conn.execute("SELECT DISTINCT p._upstream_bitflag FROM deepscores p JOIN deepscore_sets q ON "
                        "p.deepscoreset_id = q._id JOIN measurement_sets s ON q.measurementset_id = s._id JOIN cutouts "
                        "c ON s.cutouts_id = c._id JOIN detections d ON c.detections_id = d._id WHERE d.image_id = %s",
                        (sub,)).fetchall() == [(OLD,)]


@pytest.mark.db
def test_replaced_rows_lose_their_own_marks_and_keep_those_from_above(conn, survey, bundles):
    exposure = conn.execute("SELECT _id FROM exposures WHERE origin_identifier = 'e2'").fetchone()[0]
    mark(conn, {"exposures": [exposure]}, add=SKY)
    mark(conn, {"images": [survey["e2"]]}, add=GHOST)
    other = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": AT, "zp": 26.0}}, name="e2", mjd=60001.0)
    commit_bundle(conn, other, radius_arcsec=1.0, replace=True)
    assert conn.execute("SELECT _bitflag, _upstream_bitflag, zero_point_estimate FROM images WHERE _id = %s",
                        (survey["e2"],)).fetchone() == (0, SKY, 26.0)
    assert {t: set(v) for t, v in effective(conn).items()} == {
        t: {SKY} for t in MARKABLE if t not in ("refs",)}


@pytest.mark.db
def test_a_mark_waits_for_a_commit_under_way(url, survey, conn):
    """So that it reaches what the commit brings."""
    conn.commit()
    with connect(url) as other:
        hold_marks(other)
        with connect(url) as third:
            hold_marks(third)  # commits do not wait for each other
        conn.execute("SET lock_timeout = '200ms'")
        conn.commit()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            mark(conn, {"images": [survey["e1"]]}, add=GHOST)
        other.rollback()
        conn.rollback()
        assert mark(conn, {"images": [survey["e1"]]}, add=GHOST)["images"] == 2
        conn.execute("RESET lock_timeout")


@pytest.mark.db
def test_commits_and_references_wait_for_a_mark_being_set(url, survey, conn, bundles):
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": AT}}, name="e5", mjd=60005.0)
    conn.execute("SET lock_timeout = '200ms'")
    conn.commit()
    with connect(url) as other:
        stop_commits(other)
        with pytest.raises(TransientError, match="lock timeout"):
            commit_bundle(conn, path, radius_arcsec=1.0)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            add_reference(conn, "e2")
    commit_bundle(conn, path, radius_arcsec=1.0)
    assert add_reference(conn, "e2") == ["S1"]
    conn.rollback()
    conn.execute("RESET lock_timeout")
