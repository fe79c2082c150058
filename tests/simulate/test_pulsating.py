"""Pulsating stars follow their sine, and a survey without them is what it was."""

import numpy as np

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.sky import make_sky
from seechange_mpi.simulate.survey import _Survey


def test_magnitudes_follow_the_sine(tmp_path):
    pars = SimulationParameters(pulsating_per_section=5, transparency=[1.0], seed=3)
    survey = _Survey(tmp_path, pars)
    k = np.flatnonzero(survey.sky.kind == "pulsating")
    assert len(k) == 5 * len(survey.detectors)
    mean = survey.magnitudes("r")[k]
    for epoch in (0, 1, 7):
        turns = epoch * pars.cadence_days / survey.sky.period_d[k] + survey.sky.phase[k]
        mag = pars.zero_point_e - 2.5 * np.log10(survey.fluxes("r", epoch)[k])
        np.testing.assert_allclose(mag, mean + survey.sky.amplitude[k] * np.sin(2 * np.pi * turns), atol=1e-9)


def test_with_none_of_them_every_other_star_is_at_its_place():
    camera = load_camera("simulated")
    shapes = {s.id: (1024, 1024) for s in camera.sections[:1]}
    one = camera.model_copy(update={"sections": camera.sections[:1]})
    skies = [make_sky(SimulationParameters(pulsating_per_section=n), one, shapes, np.random.default_rng(1))
             for n in (0, 4)]
    others = skies[1].kind != "pulsating"
    np.testing.assert_array_equal(skies[0].xi, skies[1].xi[others])
    np.testing.assert_array_equal(skies[0].g_mag, skies[1].g_mag[others])
