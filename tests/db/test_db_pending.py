"""Bundles that never reached the database are found and committed; runs that have claimed them are left alone."""

import shutil
from pathlib import Path

import psycopg
import pytest

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.commit import commit_bundle, raise_fence
from seechange_mpi.db.engine import connect
from seechange_mpi.db.pending import PendingCommits, find_pending
from seechange_mpi.db.queue import LocalQueue
from seechange_mpi.instruments import camera
from seechange_mpi.model.errors import TransientError

pytestmark = pytest.mark.db
ONE = {"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}}


@pytest.fixture
def call(url, tmp_path):
    """Commit what is pending below the test's folder; return whether all of it was, and the lines."""

    def run(is_gone=lambda _owner: False, **more):
        lines = []
        config = Config.get(None, [f"paths.root={tmp_path}", "objects.association_radius_arcsec=2.0"])
        done = PendingCommits(config, lambda: connect(url), "me:1:1", is_gone, lines.append).run([tmp_path], **more)
        return done, lines

    return run


@pytest.fixture
def queue(url):
    q = LocalQueue(lambda: connect(url))
    yield q
    q.close()


def state(queue, identifier="e1"):
    return next((r.state, r.last_error, r.attempts) for r in queue.list() if r.identifier == identifier)


def test_what_is_missing_is_committed_in_the_order_of_exposures(conn, bundles, call):
    late, early = bundles(ONE, name="a", mjd=60002.0), bundles(ONE, name="b", mjd=60001.0)
    there = bundles(ONE, name="c", mjd=60000.0)
    commit_bundle(conn, there, radius_arcsec=2.0)
    done, lines = call()
    assert done
    assert [line.split(":")[0] for line in lines[:2]] == [early.name, late.name]
    assert lines[2:] == ["2 committed, 0 passed over, 1 were in the database"]
    assert call() == (True, ["nothing is pending: the database has all of 3 bundle(s)"])


def test_a_section_that_grew_is_pending_and_one_that_failed_is_not(conn, bundles, call, tmp_path):
    path = bundles({"S1": {"ra": 150.0, "dec": 2.0}, "S2": {"fails": "astrocal"}})
    commit_bundle(conn, path, radius_arcsec=2.0)
    assert find_pending(conn, [tmp_path]).pending == []
    bundles(ONE | {"S2": {"fails": "astrocal"}})
    assert [len(b.hashes) for b in find_pending(conn, [tmp_path]).pending] == [2]
    assert call()[0]


def test_the_newest_of_equal_provenance_counts(conn, bundles, call, tmp_path):
    bundles({"S1": ONE["S1"] | {"zp": 26.0}})
    newer = bundles(ONE, suffix="b")
    found = find_pending(conn, [tmp_path])
    assert [b.path for b in found.pending] == [newer]
    assert call()[0]


def test_the_queue_is_put_right(bundles, call, queue, tmp_path):
    raw = {n: tmp_path / f"{n}.fits" for n in ("whole", "some", "bad")}
    for path in raw.values():
        queue.add(path, "simulated")
    every = dict.fromkeys(camera.load_camera("simulated").section_ids_at(60000.0), ONE["S1"])
    bundles(every, name="whole")
    bundles({"S1": ONE["S1"]}, name="some")
    bundles(ONE | {"S2": {"fails": "astrocal"}}, name="bad")
    assert call()[0]
    assert state(queue, "whole") == ("done", None, 0)
    assert state(queue, "some") == ("partial" if len(every) > 1 else "done", None, 0)
    assert state(queue, "bad") == ("failed", "sections failed: S2", 0)


def test_a_live_claim_is_passed_over_and_a_dead_one_is_not(conn, bundles, call, queue, tmp_path):
    bundles(ONE)
    queue.add(tmp_path / "e1.fits", "simulated")
    claim = queue.claim("other:2:2", 600.0)
    done, lines = call()
    assert not done
    assert "a run has claimed e1" in lines[0]
    assert conn.execute("SELECT count(*) FROM images").fetchone() == (0,)
    conn.rollback()
    assert queue.heartbeat(claim, 600.0)
    assert call(is_gone=lambda owner: owner == "other:2:2")[0]
    assert not queue.heartbeat(claim, 600.0)


def test_without_a_row_the_newest_token_is_used(conn, bundles, call):
    bundles(ONE)
    raise_fence(conn, "e1", 7)
    conn.commit()
    assert call()[0]
    assert conn.execute("SELECT token FROM commit_fence").fetchall() == [(7,)]


def test_a_camera_file_is_found_by_the_identifier(bundles, call, queue, tmp_path):
    path = tmp_path / "mine.yaml"
    shutil.copy(next(Path(camera.__file__).parent.rglob("simulated.yaml")), path)
    queue.add(tmp_path / "e1.fits", str(path))
    bundles(ONE)
    assert call()[0]
    assert state(queue)[0] in ("done", "partial")


def test_damaged_and_refused_are_named_and_the_rest_is_committed(conn, bundles, call, queue, tmp_path):
    broken = bundles(ONE, name="broken")
    broken.write_bytes(broken.read_bytes()[:3000])
    commit_bundle(conn, bundles(ONE, name="other"), radius_arcsec=2.0)
    refused = bundles({"S1": ONE["S1"] | {"zp": 26.0}}, name="other", suffix="b")
    good = bundles(ONE, name="good")
    queue.add(tmp_path / "other.fits", "simulated")
    done, lines = call()
    assert not done
    text = "\n".join(lines)
    assert str(broken) in lines[0]
    assert f"{refused.name}: passed over: other: the database holds other content" in text
    assert f"{good.name}: 2 images" in text
    assert lines[-1] == "1 committed, 2 passed over, 0 were in the database"
    assert state(queue, "other")[0] == "ready"
    broken.unlink()
    assert call(replace=True)[0]


@pytest.mark.parametrize("written", [False, True])
def test_a_connection_lost_at_commit(url, conn, bundles, monkeypatch, written):
    """Killed just before the COMMIT nothing is there; just after it everything is: trying again is right in both."""
    path = bundles(ONE)
    real = psycopg.Transaction.__exit__
    entered = []

    def lose(self, kind, err, trace):
        def kill():
            with connect(url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))

        entered.append(kind)
        if len(entered) != 2 or kind is not None:  # the first stores the provenances
            return real(self, kind, err, trace)
        if not written:
            kill()
        out = real(self, kind, err, trace)
        kill()
        conn.execute("SELECT 1")  # the answer to COMMIT never arrives
        return out

    monkeypatch.setattr(psycopg.Transaction, "__exit__", lose)
    with pytest.raises(TransientError, match="all of the exposure or nothing"):
        commit_bundle(conn, path, radius_arcsec=2.0)
    monkeypatch.undo()
    with connect(url) as fresh:
        again = commit_bundle(fresh, path, radius_arcsec=2.0)
        assert again.unchanged is written
        assert fresh.execute("SELECT count(*) FROM images").fetchone() == (2,)
        assert fresh.execute("SELECT count(*) FROM objects").fetchone() == (1,)
