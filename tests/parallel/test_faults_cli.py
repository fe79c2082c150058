"""Everything that can go wrong in a run, from the command line: what is said, what is kept, and the exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from database_copies import Databases, databases_of

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import server
from seechange_mpi.db.queue import LocalQueue, QueueRow
from seechange_mpi.io.shard import scan_shards
from seechange_mpi.mpi.runlog import Record, latest_run, read_log

pytestmark = pytest.mark.db

SECTIONS = {"T1", "T2", "T3"}


@pytest.fixture(scope="module")
def databases(tiny_survey, tmp_path_factory) -> Iterator[Databases]:
    import seechange_mpi.pipeline.preload  # noqa: F401 - once here, rather than in every run

    with databases_of(tiny_survey, tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(scope="module")
def halted(databases, cli) -> Path:
    """A configuration under which the second exposure has come as far as subtraction."""
    config = databases.copy()
    assert cli("run", "--config", config, databases.survey.exposures[1], "--no-report", "--through", "subtraction") == 0
    return config


@pytest.fixture
def config(databases, halted) -> Path:
    return databases.copy(halted)


@pytest.fixture
def new(tiny_survey) -> Path:
    return tiny_survey.exposures[1]


def start(config: Path, ranks: int, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seechange_mpi.cli.main", "run", "--config", str(config), "--no-report",
               *(["-n", str(ranks)] if ranks > 1 else []), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def injected(*faults: str) -> list[str]:
    return [word for fault in faults for word in ("--inject", fault)]


def shards_through(config: Path, exposure: Path, step: str, *, success: bool) -> set[str]:
    """Sections with a shard that ends at a step."""
    return {s.section_id for s in scan_shards(Config(config).bundles / exposure.stem / "shards").shards
            if s.completed_step == step and s.success == success}


def queue_row(config: Path, exposure: Path) -> QueueRow:
    with server(Config(config)) as opened:
        queue = LocalQueue(opened)
        (row,) = (q for q in queue.list() if q.identifier == exposure.stem)
        queue.close()
    return row


def log_of(config: Path) -> list[Record]:
    folder = latest_run(Config(config).root)
    return list(read_log(folder)) if folder is not None else []


def begun(config: Path) -> set[str]:
    """Sections that the latest run began."""
    return {r["section"] for r in log_of(config) if r["kind"] == "section_begin"}


def longest(config: Path) -> float:
    """The longest time that the latest run was at a section [s]."""
    return max(r["seconds"] for r in log_of(config) if r["kind"] == "section_end")


def until(child: subprocess.Popen[str], config: Path, section: str, step: str, *, others: set[str]) -> Record:
    """Wait for a section to be at a step, and for others to be over; return the record of its beginning."""
    end = time.monotonic() + 60
    while time.monotonic() < end and child.poll() is None:
        records = log_of(config)
        at = [r for r in records if r["kind"] == "step_begin" and r["section"] == section and r["step"] == step]
        over = {r["section"] for r in records if r["kind"] == "section_end"}
        if at and over >= others:
            return at[0]
        time.sleep(0.05)
    child.kill()
    raise AssertionError("\n".join(map(str, child.communicate())))


@pytest.mark.parametrize(("fault", "code", "said"), [
    ("hang@cutting:T2", 3, r"T2: FAILED in .* at cutting: .* within 4 s"),
    ("stop@cutting:T2", 3, r"T2: FAILED in .* at cutting: .* and its process had to be killed"),
    ("raise@cutting:T2", 1, r"T2: cutting: RuntimeError: injected at cutting \(a bug"),
    ("kill@cutting:T2:*", 3, r"T2: cutting: ProcessDied: .*SIGKILL"),
    ("segv@cutting:T2:*", 1, r"T2: cutting: ProcessDied: .*SIGSEGV.*\(a bug"),
])
def test_a_section_that_fails_is_named_and_the_others_are_done(config, new, cli, capfd, fault, code, said):
    assert cli("run", "--config", config, new, "--no-report", *injected(fault), "--set", "run.step_timeout_s=4",
               "--set", "run.step_grace_s=0.5") == code
    assert longest(config) < 4 + 8
    out = capfd.readouterr().out
    assert re.search(said, out), out
    assert shards_through(config, new, "scoring", success=True) == {"T1", "T3"}
    durable = shards_through(config, new, "detection", success=False)
    assert durable == ({"T2"} if fault.startswith(("hang", "raise")) else set()), "what was done before is kept"
    row = queue_row(config, new)
    assert (row.state, row.last_error) == ("failed", "sections failed: T2")
    assert cli("run", "--config", config, new, "--no-report") == 0
    assert begun(config) == {"T2"}
    assert queue_row(config, new).state == "done"


@pytest.mark.parametrize(("fault", "said"), [
    ("kill@cutting:T2", "T2: cutting: the compute process died of SIGKILL (out of memory, or killed from outside); "
                          "trying again"),
    ("oom@cutting:T2", "T2: cutting: injected at cutting; trying again"),
])
def test_what_may_pass_is_tried_again(config, new, cli, capsys, fault, said):
    assert cli("run", "--config", config, new, "--no-report", *injected(fault)) == 0
    assert said in capsys.readouterr().out
    assert shards_through(config, new, "scoring", success=True) == SECTIONS
    assert queue_row(config, new).state == "done"


def test_ranks_do_the_same_about_a_hang_a_kill_and_a_lack_of_memory(config, new):
    faults = injected("hang@cutting:T1", "kill@cutting:T2", "oom@scoring:T3")
    child = start(config, 3, new, *faults, "--set", "run.step_timeout_s=4")
    out, err = child.communicate(timeout=60)
    assert longest(config) < 4 + 8
    assert "T2: cutting: the compute process died of SIGKILL" in out, out + err
    assert "T3: scoring: injected at scoring; trying again" in out
    assert child.returncode == 3
    assert "T1: cutting: StepTimeout" in out
    assert shards_through(config, new, "scoring", success=True) == {"T2", "T3"}
    assert shards_through(config, new, "detection", success=False) == {"T1"}, "what was done before is kept"


@pytest.mark.parametrize("how", ["lose", "from outside"])
def test_a_lost_rank_ends_the_run_and_the_next_one_resumes(config, new, cli, how):
    fault = "hang@cutting:T2" if how == "from outside" else "lose@cutting:T2"
    child = start(config, 3, new, *injected(fault), "--set", f"run.rank0_computes={str(how == 'lose').lower()}")
    if how == "from outside":
        at = until(child, config, "T2", "cutting", others={"T1", "T3"})
        lost_at, rank = time.time(), f"rank {at['rank']}"
        os.kill(at["pid"], signal.SIGKILL)
    out, err = child.communicate(timeout=60)
    if how == "lose":
        record = next(r for r in log_of(config) if r["kind"] == "step_begin" and r["section"] == "T2"
                      and r["step"] == "cutting")
        lost_at, rank = record["t"], f"rank {record['rank']}"
    assert time.time() - lost_at < 10
    assert child.returncode == 1, out + err
    last = err.strip().splitlines()[-1]
    assert f"{rank} was in T2 of {new.stem} at cutting" in last, err
    durable = shards_through(config, new, "scoring", success=True)
    assert cli("run", "--config", config, new, "--no-report") == 0
    assert begun(config) == SECTIONS - durable
    if how == "from outside":
        assert durable == {"T1", "T3"}
    assert queue_row(config, new).state == "done"


@pytest.mark.parametrize("ranks", [1, 3])
def test_usr1_gives_the_claim_back_and_keeps_what_is_durable(config, new, ranks):
    """The last section never ends by itself. (TERM: see test_mpi_restart.py.)"""
    child = start(config, ranks, new, *injected("hang@cutting:T2"), "--set", "run.usr1_s=2", "--set",
                  "run.commit_guess_s=1")
    until(child, config, "T2", "cutting", others={"T1", "T3"} if ranks > 1 else set())
    started = time.monotonic()
    child.send_signal(signal.SIGUSR1)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 5, out + err
    assert time.monotonic() - started < 15
    assert "stopped by SIGUSR1; what is durable is kept" in out
    row = queue_row(config, new)
    assert (row.state, row.attempts) == ("ready", 0)
    assert shards_through(config, new, "scoring", success=True) >= ({"T1", "T3"} if ranks > 1 else set())


def test_no_time_for_an_exposure_leaves_the_queue_alone(config, new, cli, capsys):
    assert cli("queue", "add", "--config", config, new, "--camera", Config(config).settings.camera.name) == 0
    before = queue_row(config, new)
    assert cli("run", "--config", config, "--time-limit", "5s") == 0
    said = capsys.readouterr().out
    assert re.search(r"no exposure was begun: stopped by the time limit \(one more exposure needs about \d+ s, \d s "
                     "were left", said), said
    assert queue_row(config, new) == before


def test_no_more_than_so_many_exposures_are_claimed(config, tiny_survey, cli, capsys):
    assert cli("run", "--config", config, *tiny_survey.exposures, "--max-exposures", 1, "--no-report") == 0
    states = sorted(queue_row(config, e).state for e in tiny_survey.exposures)
    assert states == ["done", "ready"]


def test_an_empty_queue_is_waited_for_and_then_left(config, cli, capsys):
    started = time.monotonic()
    assert cli("run", "--config", config, "--max-idle", "2s", "--set", "run.poll_s=0.3") == 0
    assert 2 < time.monotonic() - started < 10
    out = capsys.readouterr().out
    assert "the queue is empty: waiting for more" in out
    assert "no exposure was ready" in out


@pytest.mark.parametrize(("args", "said"), [
    (["--inject", "explode@cutting"], "no kind 'explode'"),
    (["--inject", "kill@lunch"], "no step 'lunch'"),
    (["--time-limit", "soon"], "a duration looks like"),
    (["--through", "lunch"], "no step 'lunch'"),
    (["--set", "run.step_timeout_s=-1"], "step_timeout_s"),
    (["--no-such-option"], "No such option"),
])
def test_usage_that_is_wrong_is_told_before_anything_begins(config, new, cli, capsys, args, said):
    assert cli("run", "--config", config, new, *args) == 2
    assert said in capsys.readouterr().err
    assert not (Config(config).root / "runs").exists()


def test_an_exposure_that_cannot_be_read_fails_alone(config, new, tmp_path, cli, capsys):
    broken = tmp_path / "broken.fits"
    broken.write_bytes(new.read_bytes()[:3000])
    assert cli("run", "--config", config, broken, new, "--no-report") == 4
    out = capsys.readouterr().out
    assert "broken.fits" in out
    assert queue_row(config, broken).state == "failed"
    assert queue_row(config, new).state == "done"
