"""Stars displaced between the images: the astrometric term keeps them from being detected, and transients to be."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import (
    FITTED,
    METHODS,
    Census,
    detections,
    field_pair,
    grid_positions,
    known_kernel,
    recipe_pair,
    say,
)

JITTER = 0.2
"""Relative displacement of a star between the images, rms per axis [pix]."""


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


@pytest.fixture
def subtract(method):
    return METHODS[method]


def census(subtract, seeds, shape, jitter, *told, n=None):
    """Pooled detections for each σ in `told`."""
    total = [Census() for _ in told]
    for seed in seeds:
        pair = recipe_pair(seed, shape, jitter=jitter, n_transients=n)
        for k, sigma in enumerate(told):
            total[k] += detections(pair.subtract(subtract, sigma_x=sigma, sigma_y=sigma).score_corr, pair)
    return total


@pytest.mark.parametrize("method", ["zogy", *(pytest.param(m, marks=pytest.mark.slow) for m in FITTED)])
def test_recipe_without_jitter(method):
    """Ideal completeness is 0.95: the scatter of S/N 5–8 about the threshold of 5."""
    seeds = range(41, 44)
    (found,) = census(METHODS[method], seeds, (1024, 1024), (0.0, 0.0), 0.0, n=60)
    say(f"{method}, no jitter: {found}")
    assert found.completeness > 0.88
    assert found.purity > 0.95
    assert found.false_negative <= 2


def test_recipe_with_jitter(method):
    seeds = range(44, 47 if method == "zogy" else 45)
    told, untold = census(METHODS[method], seeds, (1024, 1024), (JITTER, 0.0), JITTER, 0.0, n=60)
    say(f"{method}, jitter {JITTER}: {told}; without the astrometric term {untold}")
    assert told.completeness >= 0.82
    assert told.purity >= 0.95
    assert told.false_negative <= 2
    assert untold.false_positive > 13 * len(seeds)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_recipe_many_seeds(method):
    """Purity ≥ 0.98 (0.95 with a fitted kernel) and completeness ≥ 0.82 at 5 σ over 12 frames.

    hotpants and sfft have a purity of 0.2 with the same displaced stars. Noise peaks are included: 1.2 a frame are
    expected (`test_peaks_of_much_empty_sky`), which alone makes 0.98.
    """
    shape, subtract = (2048, 4096), METHODS[method]
    (ideal,) = census(subtract, range(1, 5), shape, (0.0, 0.0), 0.0)
    say(f"{method}, no jitter, 4 seeds: {ideal}")
    told, untold = census(subtract, range(1, 13), shape, (JITTER, 0.0), JITTER, 0.0)
    say(f"{method}, jitter {JITTER} pix per axis between the images, 12 seeds: {told}; without the astrometric term "
        f"{untold}")
    split = JITTER / np.sqrt(2)
    (shared,) = census(subtract, range(1, 5), shape, (split, split), JITTER)
    say(f"{method}, the same jitter shared between both images, 4 seeds: {shared}")
    assert ideal.completeness > 0.92
    assert ideal.purity > 0.95
    assert told.purity >= (0.98 if method == "zogy" else 0.95)
    assert told.completeness >= 0.82
    assert shared.completeness >= 0.82
    assert untold.purity < 0.5


def jittered_stars(rng, shape, sx, sy):
    x, y = grid_positions(rng, shape, 48)
    flux = 10 ** rng.uniform(3.5, 5, len(x))
    move = sx * rng.normal(size=len(x)), sy * rng.normal(size=len(x))
    return field_pair(rng, shape, stars=(x, y, flux), move=move)


@pytest.mark.parametrize(("method", "axis"), [("zogy", "x"), ("zogy", "y"), ("alard_lupton", "x")])
def test_each_axis(subtract, axis):
    """Displacements along one axis are covered by the σ of that axis, and hardly by that of the other."""
    rng = np.random.default_rng(51)
    s = {"x": (0.3, 0.0), "y": (0.0, 0.3)}[axis]
    pair = jittered_stars(rng, (900, 901), *s)
    right = pair.subtract(subtract, sigma_x=s[0], sigma_y=s[1]).score_corr
    wrong = pair.subtract(subtract, sigma_x=s[1], sigma_y=s[0]).score_corr
    over = [int((np.abs(a) > 5).sum()) for a in (right, wrong)]
    say(f"jitter along {axis}: {over[0]} pixels above 5 sigma with its σ, {over[1]} with the other axis' σ")
    assert over[0] <= 5
    assert over[1] > 300


@pytest.mark.parametrize("method", ["zogy", "sfft"])
def test_size_of_the_term(subtract):
    """On the flanks of displaced bright stars S_corr has about unit rms when σ is told.

    Exactly 1 where V_ast is σ² |∇S_N|² for the relative σ; 0.71 where S_N and S_R each count with the relative σ.
    """
    rng = np.random.default_rng(52)
    pair = jittered_stars(rng, (900, 901), JITTER, JITTER)
    told = pair.subtract(subtract, sigma_x=JITTER, sigma_y=JITTER).score_corr
    untold = pair.subtract(subtract).score_corr
    flank = np.abs(untold) > 4
    strong = flank & (pair.signal_new / pair.gain > pair.noise_new**2)
    gy, gx = np.gradient(pair.signal_ref)
    steep = np.hypot(gx, gy) > 5 * pair.noise_ref
    rms = float(np.sqrt(np.mean(told[steep] ** 2)))
    say(f"rms of S_corr where the gradient exceeds 5 noise/pix: {rms:.3f} told, "
        f"{np.sqrt(np.mean(untold[steep] ** 2)):.2f} untold ({int(strong.sum())} pixels above 4 sigma untold)")
    assert 0.6 < rms < 1.15
    assert np.sqrt(np.mean(untold[steep] ** 2)) > 2


def test_term_leaves_the_sky_alone(method):
    """On empty sky the term adds the gradient noise only."""
    subtract = known_kernel(method) if method in FITTED else METHODS[method]
    rng = np.random.default_rng(53)
    pair = field_pair(rng, (800, 801))
    score = pair.subtract(subtract, sigma_x=JITTER, sigma_y=JITTER).score_corr
    assert np.std(score) == pytest.approx(1, abs=0.03)
