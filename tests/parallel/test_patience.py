"""What may pass is tried again for as long as patience lasts, and nothing else is."""

from __future__ import annotations

import psycopg
import pytest

from seechange_mpi.conductor_client.patience import PatientSource, patiently
from seechange_mpi.conductor_client.protocol import Claim, WorkSource
from seechange_mpi.model.errors import BadInput, CommittedError, ConfigError, Drain, TransientError


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.naps = 0.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds


def away_until(time, end, error=TransientError, answer=7):
    calls = []

    def call():
        calls.append(time.now)
        if time.now < end:
            raise error("away")
        return answer

    call.calls = calls
    return call


@pytest.mark.parametrize("error", [TransientError, psycopg.OperationalError, psycopg.InterfaceError,
                                   psycopg.errors.AdminShutdown, psycopg.errors.CannotConnectNow,
                                   psycopg.errors.TooManyConnections, psycopg.errors.DeadlockDetected,
                                   psycopg.errors.SerializationFailure])
def test_two_minutes_of_absence_are_outlasted(error):
    time, said = Time(), []
    call = away_until(time, 120, error)
    assert patiently(call, patience_s=180, clock=time.clock, sleep=time.sleep, tell=said.append) == 7
    assert 8 < len(call.calls) < 60, "neither hammering nor asleep"
    gaps = [b - a for a, b in zip(call.calls, call.calls[1:], strict=False)]
    assert min(gaps) >= 0.5
    assert max(gaps) <= 15.1
    assert len(said) == 2
    assert said[0].startswith("the database is away (away); trying again for 180 s")
    assert "is back after" in said[1]


@pytest.mark.parametrize("error", [BadInput("f", "x", 1, 2), CommittedError("there"), ConfigError("no"),
                                   psycopg.errors.UndefinedTable("bug"), psycopg.errors.InvalidPassword("no"),
                                   ValueError("bug")])
def test_what_waiting_does_not_mend_is_not_tried_again(error):
    time, calls = Time(), []

    def call():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently(call, patience_s=180, clock=time.clock, sleep=time.sleep)
    assert len(calls) == 1
    assert time.naps == []


def test_patience_ends_on_time_and_says_for_how_long():
    time = Time()
    with pytest.raises(TransientError, match=r"away \(tried \d+ times in 180 s\)"):
        patiently(away_until(time, 1e9), patience_s=180, clock=time.clock, sleep=time.sleep)
    assert time.now == pytest.approx(180)
    with pytest.raises(TransientError, match=r"^away$"):
        patiently(away_until(time, 1e9), patience_s=0, clock=time.clock, sleep=time.sleep)


def test_a_stop_ends_the_wait_within_half_a_second():
    time = Time()
    with pytest.raises(TransientError, match="told to stop"):
        patiently(away_until(time, 1e9), patience_s=180, clock=time.clock, sleep=time.sleep,
                  stop=lambda: time.now > 20)
    assert time.now < 20.6

    def raising():
        if time.now > 40:
            raise Drain("signal")

    with pytest.raises(Drain):
        patiently(away_until(time, 1e9), patience_s=180, clock=time.clock, sleep=time.sleep, stop=raising)
    assert time.now < 40.6


class Absent:
    """A source that is away until a time."""

    def __init__(self, time, end):
        self.time, self.end, self.heard, self.beats = time, end, [], 0

    def _listen(self, *what):
        if self.time.now < self.end:
            raise TransientError("away")
        self.heard.append(what)

    def claim(self, owner, lease_s):
        self._listen("claim", owner)

    def heartbeat(self, claim, lease_s):
        self.beats += 1
        self._listen("beat")
        return True

    def release(self, claim, status, counts, message=""):
        self._listen(status, counts, message)

    def fail(self, claim, message, counts):
        self._listen("failed", message)


CLAIM = Claim("e1", "cam", "/raw/e1.fits", 1, 1, None)


def patient(time, end, stop=lambda: False):
    behind = Absent(time, end)
    source: WorkSource = PatientSource(behind, 180, stop, clock=time.clock, sleep=time.sleep)
    return source, behind


def test_claims_and_releases_outlast_the_absence_and_heartbeats_do_not_wait():
    time = Time()
    source, behind = patient(time, 100)
    with pytest.raises(TransientError):
        source.heartbeat(CLAIM, 600)
    assert (behind.beats, time.now) == (1, 0)
    assert source.claim("me", 600) is None
    behind.end = time.now + 100
    source.release(CLAIM, "done", {"sections": 4})
    behind.end = time.now + 100
    source.fail(CLAIM, "no good", {})
    assert behind.heard == [("claim", "me"), ("done", {"sections": 4}, ""), ("failed", "no good")]


def test_a_release_is_told_even_when_the_run_is_to_stop():
    time = Time()
    source, behind = patient(time, 100, stop=lambda: True)
    with pytest.raises(TransientError):
        source.claim("me", 600)
    source.release(CLAIM, "given_back", {}, "interrupted")
    assert behind.heard == [("given_back", {}, "interrupted")]


def test_a_release_that_cannot_be_told_says_what_happens_now():
    time = Time()
    source, _ = patient(time, 1e9)
    with pytest.raises(TransientError, match=r"could not be told that e1 is given back: away .* lease will expire"):
        source.release(CLAIM, "given_back", {})
