"""Errors of the background against truth."""

import numpy as np
import pytest

from seechange_mpi.gpu_kernels.background import measure_background


def test_errors_of_the_level_are_honest():
    """Levels of 12 noise images about the truth, in units of their errors: all of the error and little more."""
    pulls = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        data = rng.normal(100.0, 7.0, (512, 512)).astype(np.float32)
        mask = np.zeros(data.shape, bool)
        mask[::3] = True
        fit = measure_background(data, mask, 64)
        # boxes at the edges have fewer neighbours to be compared with
        pulls.append(((fit.level - 100.0) / fit.error)[1:-1, 1:-1].ravel())
    assert np.sqrt(np.mean(np.concatenate(pulls) ** 2)) == pytest.approx(1, abs=0.2)


def test_errors_grow_where_little_is_left():
    """A quarter of the pixels: twice the error, of a box by itself."""
    rng = np.random.default_rng(1)
    data = rng.normal(0.0, 1.0, (256, 256)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[:, 128:] = True
    mask[::2, ::2] = True
    mask[:, 128:] &= ~((np.arange(256) % 2 == 0)[:, None] & (np.arange(128) % 2 == 0)[None, :])
    error = measure_background(data, mask, 64, 1).error
    assert np.median(error[:, 2:]) == pytest.approx(np.sqrt(3) * np.median(error[:, :2]), rel=0.15)
