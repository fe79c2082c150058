"""The local queue: claims, leases, tokens, attempts, and what people do to it."""

import threading
import time
from contextlib import contextmanager

import psycopg
import pytest

from seechange_mpi.conductor_client.protocol import WorkSource
from seechange_mpi.db.engine import connect
from seechange_mpi.db.queue import LocalQueue
from seechange_mpi.model.errors import ConfigError, TransientError

pytestmark = pytest.mark.db


@pytest.fixture
def queue(url):
    queue = LocalQueue(lambda: connect(url), max_attempts=2)
    yield queue
    queue.close()


def states(queue):
    return {r.identifier: r.state for r in queue.list()}


def expire(url):
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE knownexposures SET lease_expires = now() - interval '1 second' WHERE state = 'claimed'")


def test_it_is_a_work_source(queue):
    source: WorkSource = queue
    assert source.claim("me", 60) is None


def test_order_is_priority_then_age(queue):
    for name, priority in (("a", 0), ("b", 0), ("c", 5)):
        assert queue.add(f"/raw/{name}.fits.fz", "cam", priority=priority) == name
    assert [queue.claim("me", 60).identifier for _ in range(3)] == ["c", "a", "b"]
    assert queue.claim("me", 60) is None


def test_adding_again_keeps_what_is_there(queue):
    queue.add("/raw/a.fits", "cam", params={"gain": 2})
    claim = queue.claim("me", 60)
    assert (claim.path, claim.params, claim.token, claim.attempt) == ("/raw/a.fits", {"gain": 2}, 1, 1)
    queue.add("/raw/a.fits", "cam", params={"gain": 3})
    queue.add("/raw/a.fits", "cam", params={"gain": 3}, again=True)
    assert states(queue) == {"a": "claimed"}
    queue.release(claim, "done", {"sections": 4})
    queue.add("/raw/a.fits", "cam", params={"gain": 3})
    assert states(queue) == {"a": "done"}
    queue.add("/raw/a.fits", "cam", params={"gain": 3}, again=True)
    assert queue.claim("me", 60).params == {"gain": 3}


def test_two_cameras_may_have_one_name(queue):
    queue.add("/raw/a.fits", "cam1")
    queue.add("/raw/a.fits", "cam2")
    assert {queue.claim("me", 60).instrument, queue.claim("me", 60).instrument} == {"cam1", "cam2"}


def test_a_lease_that_runs_out_goes_to_another_and_the_first_is_told(queue, url):
    queue.add("/raw/a.fits", "cam")
    first = queue.claim("one", 60)
    assert queue.heartbeat(first, 60)
    assert queue.claim("two", 60) is None
    expire(url)
    assert queue.heartbeat(first, 60), "late, but nobody has taken it"
    expire(url)
    second = queue.claim("two", 60)
    assert (second.token, second.attempt) == (first.token + 1, 2)
    assert not queue.heartbeat(first, 60)
    queue.release(first, "done", {})
    queue.fail(first, "too late", {})
    assert states(queue) == {"a": "claimed"}
    queue.release(second, "done", {"sections": 4})
    assert states(queue) == {"a": "done"}
    queue.release(second, "partial", {})
    assert states(queue) == {"a": "done"}, "a release is said once"


def test_spent_attempts_end_in_failed_with_a_reason(queue, url):
    queue.add("/raw/a.fits", "cam")
    for owner in ("one", "two"):
        assert queue.claim(owner, 60) is not None
        expire(url)
    assert queue.claim("three", 60) is None
    row = queue.list()[0]
    assert row.state == "failed"
    assert row.last_error == "given up after 2 attempts: the last owner, two, did not finish and its lease ran out"
    assert queue.set_state(["a"], "ready", ["failed"]) == 1
    assert queue.claim("four", 60).attempt == 1


def test_an_explicit_run_takes_over_a_dead_claim(queue, url):
    queue.add("/raw/a.fits", "cam")
    for _ in range(2):
        queue.claim("dead", 60)
        expire(url)
    queue.add("/raw/a.fits", "cam", again=True)
    assert queue.claim("me", 60).attempt == 1


def test_given_back_is_not_an_attempt(queue, url):
    queue.add("/raw/a.fits", "cam")
    for _ in range(5):
        run = LocalQueue(lambda: connect(url), max_attempts=2)
        claim = run.claim("me", 60)
        assert claim.attempt == 1
        run.release(claim, "given_back", {})
        run.close()
    assert claim.token == 5


def test_a_run_is_not_handed_what_it_gave_back(queue, url):
    for name in "abc":
        queue.add(f"/raw/{name}.fits", "cam")
    claims = [queue.claim("me", 60) for _ in range(2)]
    assert queue.waiting() == 1
    for claim in claims:
        queue.release(claim, "given_back", {}, "interrupted")
    assert queue.waiting() == 1
    assert queue.claim("me", 60).identifier == "c"
    assert queue.claim("me", 60) is None
    other = LocalQueue(lambda: connect(url), only=["a", "c"])
    assert other.waiting() == 1
    assert other.claim("you", 60).identifier == "a"
    other.close()


def test_waiting_counts_what_a_claim_would_get(queue, url):
    for name in "abcd":
        queue.add(f"/raw/{name}.fits", "cam", hold=name == "d")
    queue.fail(queue.claim("me", 60), "no", {})
    queue.claim("me", 60)
    assert queue.waiting() == 1
    expire(url)
    assert queue.waiting() == 2
    assert queue.claim("me", 60).attempt == 2
    expire(url)
    assert queue.waiting() == 1, "one has spent its attempts"


class LosesTheAnswer:
    """A connection whose first transaction is committed by the server, but nobody hears of it."""

    def __init__(self, conn):
        self._conn, self.loses = conn, True

    def __getattr__(self, name):
        return getattr(self._conn, name)

    @contextmanager
    def transaction(self):
        with self._conn.transaction():
            yield
        if self.loses:
            self.loses = False
            raise psycopg.OperationalError("server closed the connection unexpectedly")


def test_a_claim_whose_answer_was_lost_is_found_again(url):
    """Else the exposure would wait for its lease, and the run would hold two."""
    setup = LocalQueue(lambda: connect(url))
    setup.add("/raw/a.fits", "cam")
    setup.add("/raw/b.fits", "cam")
    connections = iter([True, False])

    def opened():
        conn = connect(url)
        return LosesTheAnswer(conn) if next(connections, False) else conn

    queue = LocalQueue(opened)
    with pytest.raises(TransientError):
        queue.claim("me", 60)
    claim = queue.claim("me", 60)
    assert (claim.identifier, claim.token, claim.attempt) == ("a", 1, 1)
    assert queue.claim("me", 60).identifier == "b"
    assert queue.claim("me", 60) is None
    queue.close()
    setup.close()


def test_a_token_exceeds_all_that_the_database_has_seen(queue, url):
    """A queue row that is new (or of another camera) does not begin below the fence of an earlier one."""
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO commit_fence (exposure, token) VALUES ('a', 41)")
    queue.add("/raw/a.fits", "cam")
    assert queue.claim("me", 60).token == 42


def test_one_exposure_many_runs_one_winner(url):
    first = LocalQueue(lambda: connect(url), max_attempts=100)
    first.add("/raw/a.fits", "cam")
    for round_ in range(5):
        barrier, won, lock = threading.Barrier(4), [], threading.Lock()

        def work(barrier=barrier, won=won, lock=lock):
            run = LocalQueue(lambda: connect(url), max_attempts=100)
            run.list()
            barrier.wait(10)
            claim = run.claim("w", 60)
            run.close()
            if claim is not None:
                with lock:
                    won.append(claim.token)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        assert won == [round_ + 1]
        expire(url)
    first.close()


def test_taking_one_exposure_respects_a_live_claim_and_puts_it_back(queue, url):
    queue.add("/raw/a.fits", "cam")
    claim = queue.claim("run", 60)
    assert queue.take("cam", "a", "me", 60) is None
    queue.fail(claim, "the database went away", {})
    mine, before = queue.take("cam", "a", "me", 60)
    assert (before, mine.token, mine.attempt) == ("failed", 2, 1)
    queue.put_back(mine, before)
    row = queue.list()[0]
    assert (row.state, row.last_error) == ("failed", "the database went away")
    assert queue.take("cam", "unknown", "me", 60) is None


def test_failed_stays_failed_and_says_why(queue):
    queue.add("/raw/a.fits", "cam")
    queue.fail(queue.claim("me", 60), "a.fits: truncated", {"sections": 4, "failed": 4})
    row = queue.list(["failed"])[0]
    assert (row.last_error, row.counts) == ("a.fits: truncated", {"sections": 4, "failed": 4})
    assert queue.claim("me", 60) is None


def test_hold_and_release(queue):
    queue.add("/raw/a.fits", "cam", hold=True)
    assert queue.claim("me", 60) is None
    assert queue.set_state(["a"], "ready", ["held"]) == 1
    assert queue.set_state(["a"], "held", ["ready"]) == 1
    assert queue.set_state(["a"], "held", ["ready"]) == 0
    with pytest.raises(ConfigError, match="not in the queue: b"):
        queue.set_state(["a", "b"], "ready", ["held"])
    assert states(queue) == {"a": "held"}


def test_only_the_named_are_claimed(url):
    queue = LocalQueue(lambda: connect(url), only=["b"])
    queue.add("/raw/a.fits", "cam")
    queue.add("/raw/b.fits", "cam", through_step="photocal")
    claim = queue.claim("me", 60)
    assert (claim.identifier, claim.through_step) == ("b", "photocal")
    assert queue.claim("me", 60) is None
    queue.close()


def test_many_claimants_never_share(url):
    first = LocalQueue(lambda: connect(url))
    names = [first.add(f"/raw/{k:02d}.fits", "cam") for k in range(40)]
    taken, lock = [], threading.Lock()

    def work():
        queue = LocalQueue(lambda: connect(url))
        while (claim := queue.claim("w", 60)) is not None:
            with lock:
                taken.append(claim.identifier)
        queue.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert sorted(taken) == names
    first.close()


def test_heartbeats_from_another_thread_do_not_disturb(queue):
    """The heartbeat thread and rank 0 use one queue."""
    queue.add("/raw/a.fits", "cam")
    claim = queue.claim("me", 60)
    errors, end = [], time.monotonic() + 0.5

    def beat():
        try:
            while time.monotonic() < end:
                assert queue.heartbeat(claim, 60)
        except Exception as err:  # noqa: BLE001
            errors.append(err)

    threads = [threading.Thread(target=beat) for _ in range(3)]
    for t in threads:
        t.start()
    while time.monotonic() < end:
        queue.list()
    for t in threads:
        t.join()
    assert errors == []


def test_a_connection_that_died_is_opened_anew(queue, url):
    queue.add("/raw/a.fits", "cam")
    claim = queue.claim("me", 60)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                     "AND pid <> pg_backend_pid()")
    assert queue.heartbeat(claim, 60)


def test_a_database_that_is_down_is_transient(tmp_path):
    def opened():
        return connect(f"postgresql://u:secret@/x?host={tmp_path}", attempts=2)

    started = time.monotonic()
    with pytest.raises(TransientError, match=r"does not answer after 2 attempts.*db status") as caught:
        LocalQueue(opened).claim("me", 60)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 5
