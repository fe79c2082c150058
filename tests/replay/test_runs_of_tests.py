"""A run that is a test: the verb, the setting, and what is in the database then."""

import pytest
from surveys import run_cli

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import session
from seechange_mpi.io.bundle import read_bundle

pytestmark = pytest.mark.db


def test_a_run_marked_as_a_test_leaves_real_objects_alone(processed, capsys):
    config, survey = processed
    count = ("SELECT o.is_test, count(DISTINCT o._id), count(m._id) FROM objects o JOIN measurements m "
             "ON m.object_id = o._id GROUP BY 1 ORDER BY 1")
    with session(Config(config)) as conn:
        before = conn.execute(count).fetchall()
    again = ("run", "--config", config, survey.exposures[2], "--no-report", "--set", "run.is_testing=true")
    assert run_cli(*again) == 0
    with session(Config(config)) as conn:
        after = conn.execute(count).fetchall()
    assert after[0] == before[0], "real objects and their measurements are what they were"
    assert after[1][0] is True
    assert 0 < after[1][1] == after[1][2]
    written = sorted((Config(config).bundles / survey.exposures[2].stem).glob("*.h5"), key=lambda p: p.stat().st_mtime)
    assert len(written) == 2
    parameters = {r.process: r.parameters for r in read_bundle(written[-1]).provenances}
    assert parameters["preprocessing"]["is_testing"] is True
    capsys.readouterr()
    assert run_cli(*again) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert run_cli("replay", "--config", config, written[-1], "--section", "T1", "--step", "measuring") == 0
