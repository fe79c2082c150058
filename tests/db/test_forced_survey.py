"""Forced photometry of a small survey against its truth (`benchmarks/forced_photometry.py`)."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from forced_photometry import detected_fakes, make_survey, pulls_of

pytestmark = [pytest.mark.db, pytest.mark.slow]


def test_pulls_have_unit_width_and_limits_are_those_of_fakes(tmp_path):
    config, truths = make_survey(tmp_path, seed=1)
    p = pulls_of(config, truths)
    assert len(np.unique(p.star)) >= 30
    assert len(np.unique(p.mjd)) == 10
    assert np.std(p.pull) == pytest.approx(1.0, abs=0.1)
    assert abs(p.pull.mean()) < 0.3
    exposures = sorted(f.name for f in (tmp_path / "work" / "bundles").iterdir())
    found, put, _ = detected_fakes(config, exposures[1::3])
    assert put > 300
    assert found / put == pytest.approx(0.5, abs=0.1)
