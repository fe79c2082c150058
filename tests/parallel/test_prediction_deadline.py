"""How long sections take, and when a run must be over."""

from __future__ import annotations

import math
import random
import signal

import pytest

from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.task import STEPS
from seechange_mpi.mpi.deadline import Deadline, job_end, parse_duration
from seechange_mpi.mpi.prediction import Predictor, Typical

WHOLE = (STEPS[0], STEPS[-1])


def taught(n: int = 100, seed: int = 1) -> Predictor:
    """Sections take 2 s and 1 s for every 1000 stars, S3 half as much again, all to 5 %."""
    rng, predictor = random.Random(seed), Predictor()
    for k in range(n):
        stars = rng.uniform(500, 8000)
        factor = 1.5 if k % 8 == 3 else 1.0
        seconds = (2 + stars / 1000) * factor * rng.gauss(1, 0.05)
        predictor.observe("cam", f"S{k % 8}", stars, *WHOLE, seconds)
    return predictor


def test_durations_are_learnt():
    predictor = taught()
    assert predictor.predict("cam", "S1", 6000, *WHOLE) == pytest.approx(8, rel=0.1)
    assert predictor.predict("cam", "S1", 1000, *WHOLE) == pytest.approx(3, rel=0.2)
    assert predictor.predict("cam", "S3", 6000, *WHOLE) == pytest.approx(12, rel=0.15)
    assert 1.05 < predictor.margin() < 1.4
    assert predictor.predict("another", "S1", 6000, *WHOLE) == 60.0, "the guess, for cameras never seen"


def test_before_anything_is_known_more_stars_are_longer_and_fewer_steps_shorter():
    predictor = Predictor(40.0)
    few, many = (predictor.predict("c", "S1", n, *WHOLE, usual_stars=1000) for n in (500, 2000))
    assert few < 40 < many
    assert predictor.predict("c", "S1", 0, "subtraction", STEPS[-1]) < 20
    assert predictor.margin() == 1.5


def test_an_unknown_exposure_takes_as_long_as_those_of_earlier_runs(tmp_path):
    p = Predictor(60.0)
    assert p.usual_s() == 60.0
    p.observe("cam", "S1", 100, STEPS[0], "photocal", 1.0)
    assert p.usual_s() == 60.0, "a part of the steps says nothing of the whole"
    for kind, seconds in (("cam", 2.0), ("other", 8.0)):
        p.observe(kind, "S1", 100, STEPS[0], STEPS[-1], seconds)
    p.save(tmp_path / "m.json")
    after = Predictor(60.0)
    after.load(tmp_path / "m.json")
    assert after.usual_s() == pytest.approx(8.0)


def test_what_was_learnt_survives_a_run(tmp_path):
    path = tmp_path / "durations.json"
    taught().save(path)
    again = Predictor()
    again.load(path)
    assert again.predict("cam", "S1", 6000, *WHOLE) == taught().predict("cam", "S1", 6000, *WHOLE)
    path.write_text('{"cam": {"n": "no"')
    fresh = Predictor()
    fresh.load(path)
    fresh.load(tmp_path / "none.json")
    assert fresh.predict("cam", "S1", 6000, *WHOLE) == 60.0


def test_typical_durations():
    t = Typical(7.0)
    assert t.p95() == 7.0
    for k in range(100):
        t.add(float(k))
    assert t.p95() == 94.0


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("25m", 1500), ("1h30m", 5400), ("00:29:30", 1770),
                                               ("1.5s", 1.5), ("2d", 172800), ("5:00", 300)])
def test_durations_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "5x", "1h 30m", "m5"])
def test_other_durations_are_refused(text):
    with pytest.raises(ConfigError, match="a duration looks like"):
        parse_duration(text)


def test_the_end_of_the_job_comes_from_slurm(tmp_path, monkeypatch):
    assert job_end({}) is None
    assert job_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    command = tmp_path / "scontrol"
    command.write_text("#!/bin/sh\necho JobId=$4 TimeLimit=00:30:00 EndTime=2026-11-25T08:00:00 Deadline=N/A\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    assert job_end({"SLURM_JOB_ID": "7"}) == 1795593600.0
    command.write_text("#!/bin/sh\necho JobId=7 EndTime=Unknown\n")
    assert job_end({"SLURM_JOB_ID": "7"}) is None
    command.write_text("#!/bin/sh\nexit 1\n")
    assert job_end({"SLURM_JOB_ID": "7"}) is None


def test_signals_shorten_the_time():
    now = [0.0]
    deadline = Deadline(1000.0, signal_s=60.0, term_s=10.0, clock=lambda: now[0])
    deadline.hear(None, 0)
    assert deadline.left_s() == 1000
    deadline.hear(signal.SIGUSR1, 1)
    assert (deadline.left_s(), deadline.reason) == (60, "SIGUSR1")
    now[0] = 20.0
    deadline.hear(signal.SIGUSR1, 1)
    assert deadline.left_s() == 40, "one signal counts once"
    deadline.hear(signal.SIGTERM, 2)
    assert deadline.left_s() <= 10
    deadline.hear(signal.SIGTERM, 3)
    assert deadline.left_s() <= 0, "the second one means at once"
    assert math.isinf(Deadline().left_s())
