"""The clipped mean against Gaussian truth: no bias, the expected noise, outliers gone."""

import numpy as np
import pytest

from seechange_mpi.gpu_kernels.combine import combine_clipped, expected_loss, mad_factor

SHAPE = (120, 130)


def noise_of(n, seed=1, sigma=4.0):
    rng = np.random.default_rng(seed)
    return rng.normal(100.0, sigma, (n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("n", [3, 5, 10, 25])
@pytest.mark.parametrize("n_sigma", [3.0, 5.0])
def test_clipping_gaussian_noise_is_unbiased_and_costs_little(n, n_sigma):
    stack = noise_of(n)
    done = combine_clipped(stack, read_variance=np.float32(16), n_sigma=n_sigma)
    error = 4.0 / np.sqrt(n)
    pixels = stack[0].size
    assert done.mean.mean() == pytest.approx(100.0, abs=4 * error / np.sqrt(pixels))
    # the variance of a sample variance: 2 / pixels; clipping at 3 sigma costs 3 %, of three values 7 %
    cost = 0.0 if n_sigma == 5 else 0.07 if n == 3 else 0.04
    assert done.mean.var() / error**2 == pytest.approx(1.0 + cost / 2, abs=4 * np.sqrt(2 / pixels) + cost / 2)
    assert np.median(done.variance) == pytest.approx(error**2, rel=0.02)
    lost = done.clipped.sum() / stack.size
    assert lost <= 2 * expected_loss(n_sigma) + 2e-5


@pytest.mark.parametrize("n", [3, 4, 7, 20])
def test_cosmic_rays_are_left_out(n):
    rng = np.random.default_rng(2)
    stack = noise_of(n)
    which = rng.integers(0, n, SHAPE)
    hit = rng.random(SHAPE) < 0.05
    charge = 10 ** rng.uniform(2, 4, SHAPE)
    for k in range(n):
        stack[k][hit & (which == k)] += charge[hit & (which == k)].astype(np.float32)
    done = combine_clipped(stack, read_variance=np.float32(16))
    sigma = 4.0 / np.sqrt(n - 1)
    assert abs(done.mean[hit].mean() - 100.0) < 5 * sigma / np.sqrt(hit.sum()) + 0.05 * sigma
    assert done.mean[hit].std() < 1.15 * sigma
    assert (done.kept[hit] == n - 1).mean() > 0.97


def test_half_difference_measures_the_noise_and_what_the_model_does_not_know():
    n = 10
    stack = noise_of(n)
    done = combine_clipped(stack, read_variance=np.float32(16))
    assert done.half_difference.std() == pytest.approx(4.0 / np.sqrt(n), rel=0.02)
    assert np.median(done.chi2) == pytest.approx(0.927, abs=0.03), "median of chi2 with 9 degrees of freedom, over 9"
    wrong = combine_clipped(stack, read_variance=np.float32(4))
    assert wrong.half_difference.std() == pytest.approx(4.0 / np.sqrt(n), rel=0.03)
    assert wrong.chi2.mean() > 3.5


def test_noisy_pixels_are_judged_by_their_own_scatter():
    stack = noise_of(20)
    rng = np.random.default_rng(4)
    stack[:, 10, :] += rng.normal(0, 60, (20, SHAPE[1])).astype(np.float32)
    done = combine_clipped(stack, read_variance=np.float32(16))
    assert done.kept[10].mean() > 19
    assert done.chi2[10].mean() > 100


def test_poisson_term_weights_and_pedestal():
    rng = np.random.default_rng(5)
    times = np.array([10, 10, 40, 40, 160, 160], np.float32)
    rate, gain, read = 5.0, 2.0, 3.0
    counts = rng.poisson(rate * times[:, None, None] * np.ones(SHAPE)) / gain + rng.normal(0, read, (6, *SHAPE))
    scaled = (counts / times[:, None, None]).astype(np.float32)
    t = times[:, None, None]
    model = {"read_variance": (read / t) ** 2, "poisson": 1 / (gain * t), "weights": times}
    done = combine_clipped(scaled, **model)
    truth = rate / gain
    assert done.mean.mean() == pytest.approx(truth, abs=3e-3)
    assert done.mean.var() == pytest.approx(np.median(done.variance), rel=0.05)
    exact = (rate * times.sum() / gain**2 + 6 * read**2) / times.sum() ** 2
    assert np.median(done.variance) == pytest.approx(exact, rel=0.03)
    shifted = combine_clipped((scaled - np.float32(truth)).astype(np.float32), **model, pedestal=truth)
    np.testing.assert_allclose(shifted.mean + truth, done.mean, atol=1e-4)


def test_masks_nan_and_too_few_values():
    stack = noise_of(4)
    mask = np.zeros(stack.shape, bool)
    mask[:, 0, 0] = True
    mask[1:, 0, 1] = True
    stack[2, 0, 2] = np.nan
    done = combine_clipped(stack, read_variance=np.float32(16), mask=mask)
    assert np.isnan(done.mean[0, 0])
    assert done.kept[0, 0] == 0
    assert done.mean[0, 1] == stack[0, 0, 1]
    assert np.isnan(done.half_difference[0, 1])
    assert done.kept[0, 2] == 3
    pair = np.stack([stack[0], stack[0] + 900]).astype(np.float32)
    assert (combine_clipped(pair, read_variance=np.float32(16)).kept == 2).all(), "nobody knows which of two is wrong"


def test_without_a_model_the_scatter_of_each_pixel_is_its_noise():
    stack = noise_of(15)
    stack[3, 5, 5] = 5000
    done = combine_clipped(stack)
    assert done.kept[5, 5] == 14
    assert done.mean.std() == pytest.approx(4.0 / np.sqrt(15), rel=0.05)
    still = np.full((5, 3, 3), 7, np.float32)
    assert (combine_clipped(still).kept == 5).all()


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 10, 30])
def test_small_sample_factor(n):
    x = np.random.default_rng(n).normal(size=(60000, n))
    mad = np.median(np.abs(x - np.median(x, axis=1, keepdims=True)), axis=1)
    assert (mad_factor(n) * mad).mean() == pytest.approx(1.0, abs=0.03)


def test_inputs_that_cannot_be_combined():
    stack = noise_of(3)
    with pytest.raises(ValueError, match="combine_clipped: stack must be"):
        combine_clipped(stack[0])
    with pytest.raises(ValueError, match=r"weights must be \(3,\)"):
        combine_clipped(stack, weights=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="nor all zero"):
        combine_clipped(stack, weights=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="mask must have the shape"):
        combine_clipped(stack, mask=np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="n_sigma must be positive"):
        combine_clipped(stack, n_sigma=0)


def test_half_difference_holds_for_uneven_halves():
    n = 9
    rng = np.random.default_rng(6)
    stack = noise_of(n)
    mask = rng.random(stack.shape) < 0.3
    weights = np.array([1, 5, 1, 5, 1, 5, 1, 5, 1], np.float32)
    done = combine_clipped(stack, read_variance=np.float32(16), mask=mask, weights=weights)
    measured = np.nanmean(done.half_difference**2 / done.variance)
    assert measured == pytest.approx(1.0, abs=0.04)
