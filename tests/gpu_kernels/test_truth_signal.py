"""Signal of known size comes back: S/N, flux, errors; and the equations of the paper, written independently."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import FITTED, METHODS, Paper, field_pair, grid_positions, say

SIDE = 170
"""Width of the columns of stars at either side, for methods that need them [pix]."""


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


def recovered(method, rng, shape, gain, *, step=36):
    """Expected S/N (transient noise included), score, flux / truth and pulls at the pixels where transients are.

    S/N 5 to 100, each decade equally populated, at integer positions, none left out.
    """
    side = SIDE if method in FITTED else 0
    y, x = (a.ravel() for a in np.meshgrid(np.arange(step, shape[0] - step + 1, step),
                                           np.arange(step, shape[1] - step + 1, step), indexing="ij"))
    x, y = side + x + rng.integers(-5, 6, x.size), y + rng.integers(-5, 6, y.size)
    shape = shape[0], shape[1] + 2 * side
    stars = None
    if side:
        at = [grid_positions(rng, (shape[0], side), step) for _ in range(2)]
        xs, ys = np.concatenate([at[0][0], shape[1] - at[1][0]]), np.concatenate([at[0][1], at[1][1]])
        stars = xs, ys, 10 ** rng.uniform(3.5, 5, len(xs))
    blank = field_pair(rng, (64, 64), gain=gain)
    size = tuple(m + 60 for m in shape)
    paper = Paper(size, blank.psf_new, blank.psf_ref, blank.noise_new, blank.noise_ref, blank.flux_new,
                  blank.flux_ref)
    flux = 10 ** rng.uniform(np.log10(5), 2, x.size) / np.sqrt(paper.f_s)
    pair = field_pair(rng, shape, gain=gain, transients=(x, y, flux), stars=stars)
    v = paper.variance(pair.variance("new", truth=True), pair.variance("ref", truth=True))[y, x]
    result = pair.subtract(METHODS[method], truth=True)
    assert np.isfinite(result.flux).all()
    expected = flux * paper.f_s / np.sqrt(v)
    return (expected, result.score_corr[y, x].astype(float), flux, result.flux[y, x].astype(float),
            result.flux_err[y, x].astype(float))


def check_recovery(method, gains, shape, seed, slope_tolerance, flux_tolerance, pull_tolerance):
    for gain in gains:
        rng = np.random.default_rng(seed)
        expected, score, truth, flux, error = recovered(method, rng, shape, gain)
        slope, offset = np.polyfit(expected, score, 1, w=np.ones_like(expected))
        weight = 1 / error**2
        bias = (weight * truth * flux).sum() / (weight * truth**2).sum() - 1
        faint = expected < 15
        faint_bias = (flux[faint] - truth[faint]).sum() / truth[faint].sum()
        pull, score_pull = (flux - truth) / error, score - expected
        say(f"{method}, gain {gain}: {len(truth)} transients, S/N slope {slope:.4f} offset {offset:+.3f}, "
            f"flux bias {bias:+.4f} (S/N < 15: {faint_bias:+.4f}), pull {pull.mean():+.3f} ± {pull.std():.3f}, "
            f"S_corr - S/N {score_pull.mean():+.3f} ± {score_pull.std():.3f}")
        assert slope == pytest.approx(1, abs=slope_tolerance)
        assert bias == pytest.approx(0, abs=flux_tolerance)
        assert pull.mean() == pytest.approx(0, abs=2 * pull_tolerance)
        assert pull.std() == pytest.approx(1, abs=pull_tolerance)
        assert score_pull.std() == pytest.approx(1, abs=pull_tolerance)
        # the flux of faint transients is known to 1 / (S/N √n)
        assert faint_bias == pytest.approx(0, abs=4 / (9 * np.sqrt(faint.sum())))


def test_injected_signal(method):
    check_recovery(method, (1.6,) if method in FITTED else (0.5, 1.6, 8.0), (900, 901), 21, 0.02, 0.005, 0.11)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_injected_signal_many(method):
    check_recovery(method, (0.5, 1.6, 8.0), (2048, 2400), 22, 0.01, 0.003, 0.04)


@pytest.mark.parametrize(("shape", "fwhm"), [((256, 301), (4.0, 3.0)), ((255, 300), (2.6, 4.4))])
def test_equations_of_the_paper(shape, fwhm):
    """Float64 products agree with the equations, evaluated with full complex transforms, to rounding."""
    rng = np.random.default_rng(31)
    star = (rng.uniform(0, shape[1], 40), rng.uniform(0, shape[0], 40), 10 ** rng.uniform(3, 5, 40))
    pair = field_pair(rng, shape, fwhm=fwhm, stars=star)
    new, ref, psf_new, psf_ref = (a.astype(np.float64) for a in (pair.new, pair.ref, pair.psf_new, pair.psf_ref))
    psf_new, psf_ref = psf_new / psf_new.sum(), psf_ref / psf_ref.sum()
    v_new, v_ref = pair.noise_new**2 + new / pair.gain, pair.noise_ref**2 + ref / pair.gain
    told = METHODS["zogy"](new, ref, psf_new, psf_ref, noise_new=pair.noise_new, noise_ref=pair.noise_ref,
                           flux_new=pair.flux_new, flux_ref=pair.flux_ref, variance_new=v_new, variance_ref=v_ref)
    paper = Paper(tuple(m + 150 for m in shape), psf_new, psf_ref, pair.noise_new, pair.noise_ref, pair.flux_new,
                  pair.flux_ref)
    s_n, s_r = paper.scores(new, ref)
    v = paper.variance(v_new, v_ref)
    inner = slice(50, -50), slice(50, -50)

    def worst(ours, theirs):
        return float(np.abs(ours - theirs)[inner].max() / np.abs(theirs)[inner].max())

    off = {"S": worst(told.score, s_n - s_r), "S_corr": worst(told.score_corr, (s_n - s_r) / np.sqrt(v)),
           "flux": worst(told.flux, (s_n - s_r) / paper.f_s), "flux_err": worst(told.flux_err, np.sqrt(v) / paper.f_s),
           "F_D": abs(told.flux_zero_point / paper.f_d - 1)}
    off_d = float(np.std((told.difference - paper.difference(new, ref))[inner]))
    say(f"largest relative difference from the paper, {shape}: " + ", ".join(f"{k} {q:.1e}" for k, q in off.items())
        + f"; rms difference of D {off_d:.1e} sigma")
    assert told.score.dtype == np.float64
    assert off.pop("F_D") < 1e-7, "the stamps' sums are 1 to single precision"
    assert max(off.values()) < 1e-9
    # where both PSFs have less than about 3e-4 of their power D is regularised: still white, but not the paper's
    assert off_d < 0.2


def test_astrometric_term_of_the_paper():
    """V_ast = σ_x² (∂S/∂x)² + σ_y² (∂S/∂y)² over S_N and S_R (eq. 30–33)."""
    rng = np.random.default_rng(32)
    star = (rng.uniform(0, 260, 30), rng.uniform(0, 260, 30), 10 ** rng.uniform(3, 5, 30))
    pair = field_pair(rng, (261, 260), stars=star)
    sigma_x, sigma_y = 0.3, 0.1
    told = pair.subtract(METHODS["zogy"], sigma_x=sigma_x, sigma_y=sigma_y)
    paper = Paper((400, 400), pair.psf_new, pair.psf_ref, pair.noise_new, pair.noise_ref, pair.flux_new, pair.flux_ref)
    s_n, s_r = paper.scores(pair.new, pair.ref)
    v = paper.variance(pair.variance("new"), pair.variance("ref"))
    for part in (s_n, s_r):
        gy, gx = np.gradient(part)
        v = v + sigma_x**2 * gx**2 + sigma_y**2 * gy**2
    inner = slice(50, -50), slice(50, -50)
    assert np.abs(told.score_corr - (s_n - s_r) / np.sqrt(v))[inner].max() < 2e-3
