"""Processes are killed at random; afterwards everything is as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from database_rows import dump
from surveys import TINY_CAMERA, Survey

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import server
from seechange_mpi.db.queue import LocalQueue
from seechange_mpi.db.server import EmbeddedServer
from seechange_mpi.io.bundle import read_bundle, read_section, validate_bundle
from seechange_mpi.io.shard import scan_shards
from seechange_mpi.model.task import STEPS
from seechange_mpi.mpi.runlog import read_log

pytestmark = pytest.mark.db

RANKS = 3
KINDS = ("compute", "everything", "rank", "rank 0", "nursery", "launcher", "mpiexec")
HEALS = ("", "compute", "nursery")
"""What a run may survive: a nursery only if its rank has no further section to do."""
_DEPTHS = {"launcher": 0, "mpiexec": 1, "rank": 2, "rank 0": 2, "nursery": 3, "compute": 4}


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Survey:
    """A reference and three epochs of four sections."""
    from seechange_mpi.simulate.parameters import SimulationParameters
    from seechange_mpi.simulate.survey import simulate_survey

    root = tmp_path_factory.mktemp("chaos")
    camera = root / "tiny.yaml"
    camera.write_text(TINY_CAMERA + "  - {id: T4, hdu: T4, offset_arcsec: [-500.0, 0.0]}\n")
    simulate_survey(root, SimulationParameters(
        camera=str(camera), epochs=4, stars_per_sq_deg=16000, faint_mag=21.5, catalog_mag=20.8, seed=4,
        transients_per_section=4, variables_per_section=1, movers_per_section=1, galaxies_per_sq_deg=2000,
        trails_per_exposure=0))
    return Survey(root)


def command(config: Path, *args: object) -> list[str]:
    return [sys.executable, "-m", "seechange_mpi.cli.main", *map(str, args), "--config", str(config)]


@pytest.fixture(scope="module")
def begun(survey, tmp_path_factory) -> Path:
    """A folder in which the first exposure is the reference; its database is not running."""
    folder = tmp_path_factory.mktemp("begun") / "w"
    config = survey.config(folder)
    subprocess.run(command(config, "run", survey.exposures[0], "--no-report"), check=True, capture_output=True)
    subprocess.run(command(config, "refs", "add", survey.exposures[0].stem), check=True, capture_output=True)
    return folder


def copied(begun: Path, survey: Survey, folder: Path) -> Path:
    """Copy the folder and the database, wherever that lies; it is not running."""
    shutil.copytree(begun, folder, ignore=shutil.ignore_patterns("postgres"))
    data = EmbeddedServer(folder).data
    subprocess.run(["cp", "-a", EmbeddedServer(begun).data, data], check=True)
    return survey.config(folder)


@dataclass
class Tree:
    """The processes of a run by their depth below the one that was started; database servers left out."""

    levels: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, pid: int) -> Tree:
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
            except (OSError, IndexError):
                continue
            if name.startswith(("python", "mpiexec", "prterun")) and rest.split()[0] != "Z":
                children.setdefault(int(rest.split()[1]), []).append(int(stat.parent.name))
        levels, depth, here = {}, 0, [pid]
        while here:
            levels[depth] = sorted(here)
            here = [c for p in here for c in children.get(p, [])]
            depth += 1
        return cls(levels)

    def pids(self) -> list[int]:
        return [p for level in self.levels.values() for p in level]

    def strike(self, kind: str, rng: random.Random) -> bool:
        """Kill; return whether there was something of that kind."""
        if kind == "everything":
            victims = self.pids()
        else:
            level = self.levels.get(_DEPTHS[kind], [])
            if kind.startswith("rank"):
                level = level[:1] if kind == "rank 0" else level[1:]
            victims = [rng.choice(level)] if level else []
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        return bool(victims)


def gone(pids: list[int], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(_alive(p) for p in pids):
            return True
        time.sleep(0.02)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def complete_sections(config: Path, exposures: list[Path]) -> set[tuple[str, str]]:
    """Exposure and section of what is durable and complete."""
    return {(e.stem, shard.section_id) for e in exposures
            for shard in scan_shards(Config(config).bundles / e.stem / "shards").shards
            if shard.success and shard.completed_step == STEPS[-1]}


def begun_sections(folder: Path) -> set[tuple[str, str]]:
    return {(r["exposure"], r["section"]) for r in read_log(folder) if r["kind"] == "section_begin"}


def contents(config: Path, exposures: list[Path]) -> dict[str, object]:
    """What the bundles hold, by exposure."""
    out: dict[str, object] = {}
    for e in exposures:
        folder = Config(config).bundles / e.stem
        there = [p.name for p in folder.rglob("*")] if folder.is_dir() else "no such folder"
        bundles = list(folder.glob("*.h5"))
        assert len(bundles) == 1, f"{folder}: {there}"
        (path,) = bundles
        assert validate_bundle(path) == []
        info = read_bundle(path)
        sections = {s: read_section(path, s, pixels=False) for s in info.section_ids}
        parts = {s: (p.content_hash, p.provenance_ids, p.inputs, p.report.caveat) for s, p in sections.items()}
        out[path.name] = (parts, sorted(p.id for p in info.provenances))
    return out


def durable_files(config: Path, exposures: list[Path]) -> dict[Path, tuple[int, int]]:
    """Shard -> its inode and the time of its last change."""
    found = [p for e in exposures for p in (Config(config).bundles / e.stem / "shards").glob("[!.]*.h5")]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def kill_and_resume(config: Path, exposures: list[Path], kinds: list[str], rng: random.Random) -> list[str]:
    """Run again and again, killing the next kind of process in each, until a run ends by itself; return what is left.

    A run that heals is struck again.
    """
    left = list(kinds)
    runs = Config(config).root / "runs"
    while True:
        complete, files = complete_sections(config, exposures), durable_files(config, exposures)
        logs = set(runs.glob("*/"))
        child = subprocess.Popen(command(config, "run", "-n", RANKS, *exposures, "--no-report"),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        struck = ""
        while left and struck in ("", "compute") and at_work(child, runs, logs, rng):
            tree = Tree.of(child.pid)
            if tree.strike(left[0], rng):
                struck = left.pop(0)
        if struck not in HEALS:
            assert gone(tree.pids(), 10.0), f"killing {struck} has left processes behind for 10 s"
        _, err = child.communicate(timeout=120)
        for folder in set(runs.glob("*/")) - logs:
            assert not begun_sections(folder) & complete, f"durable work was repeated after killing {struck}"
        now = durable_files(config, exposures)
        assert {p: now.get(p) for p in files} == files, f"killing {struck} has cost a shard"
        assert struck in HEALS or child.returncode != 0, f"{struck}: {err}"
        assert struck not in ("", "compute") or child.returncode == 0, err
        if child.returncode == 0:
            return left


def at_work(child: subprocess.Popen[str], runs: Path, logs: set[Path], rng: random.Random) -> bool:
    """Wait for a random moment: of the start of a run, or of what follows; False if it has ended before."""
    early = rng.random() < 0.2
    end = time.monotonic() + rng.uniform(0.3, 3.0) if early else 0.0
    while child.poll() is None:
        if not end and set(runs.glob("*/")) - logs:
            end = time.monotonic() + rng.uniform(0.0, 3.0)
        if end and time.monotonic() > end:
            return True
        time.sleep(0.02)
    return False


def check(config: Path, undisturbed: Path, survey: Survey) -> None:
    wanted, found = dump(undisturbed), dump(config)
    assert len(wanted["measurements"]) > 40
    for table, rows in wanted.items():
        assert found[table] == rows, table
    assert contents(config, survey.exposures[1:]) == contents(undisturbed, survey.exposures[1:])
    root = Config(config).root
    left = [p for p in root.rglob(".*") if p.is_file() and "postgres" not in p.relative_to(root).parts]
    assert left == []
    with server(Config(config)) as opened:
        queue = LocalQueue(opened)
        assert {(q.identifier, q.state) for q in queue.list()} == {(e.stem, "done") for e in survey.exposures}
        queue.close()


@pytest.fixture(scope="module")
def undisturbed(survey, begun, tmp_path_factory) -> Path:
    config = copied(begun, survey, tmp_path_factory.mktemp("undisturbed") / "w")
    subprocess.run(command(config, "run", "-n", RANKS, *survey.exposures[1:], "--no-report"), check=True,
                   capture_output=True)
    return config


def kill(survey: Survey, begun: Path, undisturbed: Path, folder: Path, kills: int, seed: int) -> None:
    """Kill so often, in as many surveys as that takes, and look at each."""
    rng, rounds = random.Random(seed), 0
    left = [KINDS[k % len(KINDS)] for k in range(kills)]
    while left:
        config = copied(begun, survey, folder / f"w{rounds}")
        left = kill_and_resume(config, survey.exposures[1:], left, rng)
        check(config, undisturbed, survey)
        rounds += 1


def test_five_kills_leave_no_trace(survey, begun, undisturbed, tmp_path):
    kill(survey, begun, undisturbed, tmp_path, 5, 5)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_kills_leave_no_trace(survey, begun, undisturbed, tmp_path, seed):
    kill(survey, begun, undisturbed, tmp_path, 10, seed)
