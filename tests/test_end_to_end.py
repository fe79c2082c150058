"""From raw exposures to the database: the same rows at any number of processes; nothing is done twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from database_copies import Databases, databases_of
from database_rows import dump

from seechange_mpi.config.resolve import Config
from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind

RANKS = (1, 5, "mpiexec -n 3")
"""Processes of ``run -n N``; 1 is one plain process; the last is started by hand under mpiexec."""


def run(config: Path, ranks: int | str, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "seechange_mpi.cli.main", "run", "--config", str(config), *map(str, args)]
    env = dict(os.environ)
    if isinstance(ranks, str):
        mpiexec = find_mpiexec()
        command = [mpiexec, *ranks.split()[1:], *command]
        env |= launch_environment(mpi_kind(mpiexec))
    elif ranks > 1:
        command += ["-n", str(ranks)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=env)


def process(databases: Databases, ranks: int | str) -> Path:
    config = databases.copy()
    done = run(config, ranks, databases.survey.exposures[1], *(["--no-report"] if ranks != 1 else []))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "T3" in done.stdout
    return config


@pytest.fixture(scope="module")
def by_ranks(tiny_survey, tmp_path_factory):
    """The same survey processed in every way; the reference in one."""
    with databases_of(tiny_survey, tmp_path_factory.mktemp("base")) as databases:
        yield {n: process(databases, n) for n in RANKS}


@pytest.mark.db
@pytest.mark.parametrize("ranks", RANKS[1:])
def test_any_number_of_processes_gives_the_same_rows(by_ranks, ranks):
    one, many = dump(by_ranks[1]), dump(by_ranks[ranks])
    assert len(one["measurements"]) > 8
    assert len(one["objects"]) > 5
    for table, rows in one.items():
        assert many[table] == rows, f"{table} differs between 1 process and {ranks}"


@pytest.mark.db
@pytest.mark.parametrize("ranks", RANKS[:2])
def test_runs_register_the_excerpt_of_the_field(by_ranks, ranks, cli, capfd):
    config = by_ranks[ranks]
    made = sorted((Config(config).root / "catalog-cache").iterdir())
    assert len(made) == 1
    assert cli("catalog", "show", "--config", config) == 0
    text = capfd.readouterr().out
    assert made[0].name in text
    assert "(gone)" not in text


@pytest.mark.db
def test_results_agree_with_the_truth(by_ranks, tiny_survey):
    from astropy.table import Table

    from seechange_mpi.simulate.compare import Comparison, compare_exposure

    config = Config(by_ranks[1])
    new = tiny_survey.exposures[1].stem
    truths = [Table.read(tiny_survey.root / "truth" / f"{e.stem}.ecsv") for e in tiny_survey.exposures]
    comparison = Comparison()
    compare_exposure(next((config.bundles / new).glob("*.h5")), truths[1], truths[0], comparison)
    assert abs(comparison.worst_zp_error) < 0.03, "about 20 stars per section"
    assert comparison.astrometric_rms_mas < 50
    assert comparison.completeness >= 0.8
    assert comparison.purity >= 0.8
    assert abs(np.median(comparison.flux_ratios) - 1) < 0.05


@pytest.mark.db
def test_a_second_run_does_nothing_and_a_lost_shard_is_made_again(by_ranks, tiny_survey, cli, capsys):
    config = by_ranks[1]
    before = dump(config)
    new = tiny_survey.exposures[1]
    assert cli("run", "--config", config, new) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    shards = sorted((Config(config).bundles / new.stem / "shards").glob("*.h5"))
    lost = next(s for s in shards if s.name.startswith("T2"))
    lost.unlink()
    assert cli("run", "--config", config, new) == 0
    out = capsys.readouterr().out
    assert "1 sections on 1 process, 2 already complete" in out
    assert lost.exists(), "the same content has the same name"
    assert dump(config) == before


@pytest.mark.db
def test_a_damaged_shard_is_made_again(by_ranks, tiny_survey, cli, capsys):
    config = by_ranks[5]
    new = tiny_survey.exposures[1]
    shard = next((Config(config).bundles / new.stem / "shards").glob("T1_*.h5"))
    shard.write_bytes(shard.read_bytes()[:2000])
    assert cli("run", "--config", config, new, "--no-report") == 0
    out = capsys.readouterr().out
    assert "damaged shard" in out
    assert "1 sections on 1 process" in out


@pytest.mark.db
def test_the_database_can_be_rebuilt_from_bundles(by_ranks, tiny_survey, tmp_path, cli):
    config = Config(by_ranks[5])
    bundles = sorted(config.bundles.glob("*/*.h5"))
    fresh = tiny_survey.config(tmp_path / "fresh")
    assert cli("db", "commit", "--config", fresh, *bundles) == 0
    old, new = dump(by_ranks[5]), dump(fresh)
    for table in ("exposures", "images", "zero_points", "measurements", "objects", "deepscores", "product_sets",
                  "reports"):
        assert new[table] == old[table], table


@pytest.mark.db
def test_stopping_early_is_partial_and_the_plan_says_what_is_left(tiny_survey, tmp_path, cli, capsys):
    config = tiny_survey.config(tmp_path / "w")
    first = tiny_survey.exposures[0]
    assert cli("run", "--config", config, first, "--through", "extraction", "--sections", "T1", "--no-report") == 0
    assert "partial" in capsys.readouterr().out
    assert cli("queue", "why", "--config", config, first.stem) == 0
    assert "partial" in capsys.readouterr().out
    assert cli("run", "--config", config, first, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "astrocal … photocal (the rest is reused)" in plan
    assert "preprocessing … photocal" in plan



@pytest.mark.db
def test_a_changed_parameter_redoes_its_step_and_what_follows(by_ranks, tiny_survey, cli, capsys):
    config = by_ranks[5]
    new = tiny_survey.exposures[1]
    assert cli("run", "--config", config, new, "--dry-run", "--set", "detection.threshold=7") == 0
    out = capsys.readouterr().out
    assert out.count("detection … scoring (the rest is reused)") == 3
    assert "refused" not in out
    (bundle,) = (Config(config).bundles / new.stem).glob("*.h5")
    assert cli("prov", "tag", "add", "dr1", bundle, "--config", config) == 0
    changed = ("--set", "detection.threshold=7", "--set", "run.provenance_tag=dr1")
    assert cli("run", "--config", config, new, "--dry-run", *changed) == 0
    assert "a run would be refused: tag 'dr1' has another provenance of cutting" in capsys.readouterr().out
    before = dump(config)
    assert cli("run", "--config", config, new, "--no-report", *changed) == 4
    assert "tag 'dr1' has another provenance of cutting" in capsys.readouterr().out, "before anything is computed"
    assert {t: r for t, r in dump(config).items() if t not in ("knownexposures", "commit_fence")} == {
        t: r for t, r in before.items() if t not in ("knownexposures", "commit_fence")}
    plan = ("run", "--config", config, new, "--dry-run", "--set", "detection.threshold=7", "--set")
    assert cli(*plan, "run.provenance_tag=other") == 0
    assert "refused" not in capsys.readouterr().out
    assert cli("run", "--config", config, new, "--dry-run", "--set", "run.report=false") == 0
    assert capsys.readouterr().out.count("complete") == 3
