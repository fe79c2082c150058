"""One section of three epochs, processed: a reference and two that were compared with it."""

import pytest
from database_copies import databases_of
from surveys import TINY_CAMERA, Survey, run_cli


@pytest.fixture(scope="session")
def processed(tmp_path_factory):
    """(configuration, survey); the server runs meanwhile."""
    from seechange_mpi.simulate.parameters import SimulationParameters
    from seechange_mpi.simulate.survey import simulate_survey

    root = tmp_path_factory.mktemp("survey")
    one = TINY_CAMERA[: TINY_CAMERA.index("  - {id: T2")]
    (root / "tiny.yaml").write_text(one)
    simulate_survey(root, SimulationParameters(
        camera=str(root / "tiny.yaml"), epochs=3, stars_per_sq_deg=16000, faint_mag=21.5, catalog_mag=20.8, seed=4,
        transients_per_section=4, variables_per_section=2, movers_per_section=0, galaxies_per_sq_deg=2000,
        trails_per_exposure=0))
    survey = Survey(root)
    with databases_of(survey, tmp_path_factory.mktemp("base")) as databases:
        assert run_cli("run", "--config", databases.base, *survey.exposures[1:], "--no-report", "--set",
                       "run.provenance_tag=current") == 0
        yield databases.base, survey
