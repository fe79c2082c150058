"""A run may stop after any step and go on later, or begin again at any step: the rows are those of an unbroken run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from database_copies import Databases, databases_of
from database_rows import dump
from surveys import TINY_CAMERA, Survey

from seechange_mpi.config.resolve import Config
from seechange_mpi.io.bundle import read_bundle, section_shards, validate_bundle
from seechange_mpi.io.shard import scan_shards
from seechange_mpi.model.task import STEPS

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Survey:
    """A reference and an exposure of one section."""
    import seechange_mpi.pipeline.preload  # noqa: F401 - once here, rather than in every run
    from seechange_mpi.simulate.parameters import SimulationParameters
    from seechange_mpi.simulate.survey import simulate_survey

    root = tmp_path_factory.mktemp("junctions")
    camera = root / "tiny.yaml"
    head, _, _ = TINY_CAMERA.partition("  - {id: T1")
    camera.write_text(head + "  - {id: T1, hdu: T1, offset_arcsec: [0.0, 0.0]}\n")
    simulate_survey(root, SimulationParameters(
        camera=str(camera), epochs=2, stars_per_sq_deg=16000, faint_mag=21.5, catalog_mag=20.8, seed=4,
        transients_per_section=4, variables_per_section=1, movers_per_section=1, galaxies_per_sq_deg=2000,
        trails_per_exposure=0))
    return Survey(root)


@pytest.fixture(scope="module")
def databases(survey, tmp_path_factory) -> Iterator[Databases]:
    with databases_of(survey, tmp_path_factory.mktemp("base")) as made:
        yield made


@pytest.fixture(scope="module")
def unbroken(survey, databases, cli) -> tuple[dict[str, list[tuple]], object]:
    """Rows and bundle of a run that was not interrupted."""
    config = databases.copy()
    assert cli("run", "--config", config, survey.exposures[1], "--no-report") == 0
    rows = dump(config)
    assert len(rows["measurements"]) > 3
    return rows, contents(config, survey.exposures[1])


@pytest.fixture(scope="module")
def halting(databases) -> Path:
    """A configuration under which the exposure goes one step further with every test."""
    return databases.copy()


def contents(config: Path, exposure: Path) -> object:
    """What the bundle of an exposure holds, by shard: their names tell content and origin."""
    (path,) = (Config(config).bundles / exposure.stem).glob("*.h5")
    assert validate_bundle(path) == []
    return path.name, {s: p.name for s, p in section_shards(path).items()}, sorted(
        p.id for p in read_bundle(path).provenances)


def completed_steps(config: Path, exposure: Path) -> set[str]:
    return {s.completed_step for s in scan_shards(Config(config).bundles / exposure.stem / "shards").shards}


@pytest.mark.parametrize("step", STEPS)
def test_stopping_after_a_step_or_beginning_again_at_it_changes_nothing(survey, databases, halting, unbroken, cli,
                                                                        step):
    exposure = survey.exposures[1]
    rows, bundle = unbroken
    assert cli("run", "--config", halting, exposure, "--through", step, "--no-report") == 0
    assert step in completed_steps(halting, exposure)
    config = databases.copy(halting)
    for more in ([], ["--from", step]):
        assert cli("run", "--config", config, exposure, "--no-report", *more) == 0
        found = dump(config)
        for table, wanted in rows.items():
            assert found[table] == wanted, f"{table} after {more}"
        assert contents(config, exposure) == bundle
