"""Memory does not grow with the number of inputs."""

import platform
import tracemalloc

import numpy as np
import pytest

from seechange_mpi.calibration.stack import FrameStack, combine

SHAPE = (512, 1024)


def peak_mb(tmp_path, n, memory_mb):
    rng = np.random.default_rng(0)
    with FrameStack(tmp_path, SHAPE) as stack:
        noise = rng.normal(100, 5, SHAPE).astype(np.float32)
        for k in range(n):
            stack.append(np.roll(noise, 37 * k))
        planes = np.full(SHAPE, 25, np.float32), np.zeros(SHAPE, np.float32)
        tracemalloc.start()
        done = combine(stack, list(range(n)), np.ones(n), *planes, n_sigma=5.0, memory_mb=memory_mb)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    assert done.noise_measured == pytest.approx(5 / np.sqrt(n), rel=0.03)
    return peak


def test_combination_stays_within_its_memory(tmp_path):
    stack_mb = 40 * 4 * SHAPE[0] * SHAPE[1] / 1e6
    result_mb = 5 * 4 * SHAPE[0] * SHAPE[1] / 1e6
    few, many = peak_mb(tmp_path, 10, 8), peak_mb(tmp_path, 40, 8)
    assert many < result_mb + 8 + 16, "the planes of the result, the strip, and the figures"
    assert many < 0.5 * stack_mb
    assert many < few + 0.1 * 0.75 * stack_mb, "30 more inputs are 63 MB"


def test_the_result_does_not_depend_on_the_memory(tmp_path):
    rng = np.random.default_rng(1)
    planes = np.full((50, 60), 25, np.float32), np.full((50, 60), 0.5, np.float32)
    out = []
    for memory in (4, 0.1):
        with FrameStack(tmp_path, (50, 60)) as stack:
            rng = np.random.default_rng(1)
            for _ in range(9):
                stack.append(rng.normal(100, 9, (50, 60)).astype(np.float32))
            out.append(combine(stack, list(range(9)), np.ones(9), *planes, n_sigma=4.0, memory_mb=memory))
    np.testing.assert_array_equal(out[0].mean, out[1].mean)
    assert out[0].noise_measured == out[1].noise_measured


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / f"stack-{platform.node()}-{2**22 + 1}-5-abc"  # beyond the largest process id
    other = tmp_path / "stack-elsewhere-1-5-abc"
    for folder in (left, other):
        folder.mkdir()
    with FrameStack(tmp_path, (4, 4)), FrameStack(tmp_path, (4, 4)):
        assert not left.exists()
        assert other.exists()
        assert len(list(tmp_path.iterdir())) == 3


def test_the_stack_goes_away_with_its_folder(tmp_path):
    with FrameStack(tmp_path, (4, 4)) as stack:
        assert stack.append(np.zeros((4, 4), np.float32)) == 0
        assert list(tmp_path.iterdir()) == [stack.folder]
        with pytest.raises(ValueError, match=r"frames are \(4, 4\), found \(4, 5\)"):
            stack.append(np.zeros((4, 5), np.float32))
    assert not any(tmp_path.iterdir())
