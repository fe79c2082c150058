"""Runs that fail, stop early, take a part, are stopped by a signal: the queue and the bundle stay true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import server
from seechange_mpi.db.queue import LocalQueue, QueueRow
from seechange_mpi.io.bundle import read_bundle, validate_bundle

pytestmark = pytest.mark.db


def queue_row(config, exposure) -> QueueRow:
    with server(Config(config)) as opened:
        queue = LocalQueue(opened)
        try:
            (row,) = (q for q in queue.list() if q.identifier == exposure.stem)
        finally:
            queue.close()
    return row


def bundle(config, exposure):
    (path,) = (Config(config).bundles / exposure.stem).glob("*.h5")
    return path


@pytest.fixture(scope="module")
def finished(tiny_survey, tmp_path_factory, cli):
    """A configuration under which the first exposure is finished."""
    config = tiny_survey.config(tmp_path_factory.mktemp("restart"))
    assert cli("run", "--config", config, tiny_survey.exposures[0], "--no-report") == 0
    return config


def test_a_part_of_the_sections_keeps_the_others_in_the_bundle(finished, tiny_survey, cli):
    new = tiny_survey.exposures[0]
    assert cli("run", "--config", finished, new, "--sections", "T2", "--from", "photocal", "--no-report") == 0
    path = bundle(finished, new)
    assert read_bundle(path).section_ids == ("T1", "T2", "T3")
    assert validate_bundle(path) == []


def test_stopping_early_takes_nothing_away(finished, tiny_survey, cli, capsys):
    new = tiny_survey.exposures[0]
    before = bundle(finished, new).read_bytes()
    assert cli("run", "--config", finished, new, "--through", "extraction", "--no-report") == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert bundle(finished, new).read_bytes() == before
    assert queue_row(finished, new).state == "done"


def test_a_truncated_bundle_is_made_again_from_its_shards(finished, tiny_survey, cli, capsys):
    new = tiny_survey.exposures[0]
    path = bundle(finished, new)
    path.write_bytes(path.read_bytes()[:3000])
    assert cli("run", "--config", finished, new, "--no-report") == 0
    assert "sections on" not in capsys.readouterr().out, "nothing is computed"
    assert validate_bundle(path) == []


def test_from_after_through_is_refused(finished, tiny_survey, cli, capsys):
    assert cli("run", "--config", finished, "--from", "scoring", "--through", "extraction") == 2
    assert "--from scoring comes after --through extraction" in capsys.readouterr().err


def test_an_exposure_without_a_good_section_is_never_done(finished, tiny_survey, cli, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("made to fail")

    monkeypatch.setattr("seechange_mpi.pipeline.section._SectionRun._preprocessing", refuse)
    new = tiny_survey.exposures[1]
    assert cli("run", "--config", finished, new, "--no-report") == 1
    row = queue_row(finished, new)
    assert row.state == "failed"
    assert "T1, T2, T3" in (row.last_error or "")


def run_in_ranks(config, exposure, ranks, *args):
    return subprocess.Popen([sys.executable, "-m", "seechange_mpi.cli.main", "run", "-n", str(ranks), "--config",
                             str(config), str(exposure), "--no-report", *args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_the_exit_code_comes_through_mpiexec(finished, tiny_survey):
    away = "database.url=postgresql://nobody@127.0.0.1:9/none"
    child = run_in_ranks(finished, tiny_survey.exposures[0], 2, "--set", away, "--set", "database.attempts=1")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 4
    assert err.count("error: ") == 1, err
    assert "does not answer after 1 attempts" in err


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_gives_the_claim_back(finished, tiny_survey, ranks):
    exposure = tiny_survey.exposures[1]
    child = run_in_ranks(finished, exposure, ranks, "--from", "preprocessing")
    assert child.stdout is not None
    assert "3 sections on " in child.stdout.readline()
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 5, out + err
    assert "stopped by SIGTERM; what is durable is kept" in out
    row = queue_row(finished, exposure)
    assert (row.state, row.attempts) == ("ready", 0)
