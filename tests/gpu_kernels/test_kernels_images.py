"""Stamps, transforms and the choice of backend."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from seechange_mpi.gpu_kernels import fft
from seechange_mpi.gpu_kernels.backend import asnumpy, backend_name, get_xp, to_backend
from seechange_mpi.gpu_kernels.stamps import cut_stamps


def test_stamps_at_the_edge():
    image = np.arange(30, dtype=np.float32).reshape(5, 6)
    stamps, inside = cut_stamps(image, np.array([0, 3]), np.array([0, 2]), 3, fill=-1)
    assert (stamps[1] == image[1:4, 2:5]).all()
    assert inside[1].all()
    assert stamps[0].tolist() == [[-1, -1, -1], [-1, 0, 1], [-1, 6, 7]]
    assert inside[0].sum() == 4


@pytest.mark.parametrize("shape", [(31, 40), (32, 45), (33, 33)])
def test_transforms_convolve(shape):
    rng = np.random.default_rng(7)
    image = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(5, 7)).astype(np.float32)
    padded = tuple(fft.good_size(n + 7) for n in shape)
    assert all(p >= n + 7 for p, n in zip(padded, shape, strict=True))
    k_hat = fft.centred_kernel(kernel, padded)
    assert k_hat.dtype == np.complex64
    got = fft.irfft2(fft.rfft2(image, padded) * k_hat, padded)[: shape[0], : shape[1]]
    from scipy.signal import convolve2d

    assert np.allclose(got, convolve2d(image, kernel, mode="same"), atol=1e-4)


def test_backend_follows_the_arrays():
    assert get_xp(np.zeros(3)) is np
    assert asnumpy([1, 2]).tolist() == [1, 2]


def test_backend_is_chosen_by_the_environment(monkeypatch):
    try:
        for value in ("numpy", "NumPy"):
            monkeypatch.setenv("SEECHANGE_BACKEND", value)
            backend_name.cache_clear()
            assert backend_name() == "numpy"
        a = np.zeros(3)
        assert to_backend(a) is a
        monkeypatch.setenv("SEECHANGE_BACKEND", "gpu")
        backend_name.cache_clear()
        with pytest.raises(RuntimeError, match="expected auto, numpy or cupy, found 'gpu'"):
            backend_name()
        monkeypatch.setenv("SEECHANGE_BACKEND", "cupy")
        monkeypatch.setitem(sys.modules, "cupy", None)  # as if not installed
        backend_name.cache_clear()
        with pytest.raises(RuntimeError, match=r"SEECHANGE_BACKEND=cupy, but the package cupy is missing: pip"):
            backend_name()
        monkeypatch.setenv("SEECHANGE_BACKEND", "auto")
        backend_name.cache_clear()
        assert backend_name() == "numpy"
    finally:
        backend_name.cache_clear()


def test_kernels_do_not_import_cupy_or_the_rest():
    code = ("import sys\n"
            "from seechange_mpi.gpu_kernels import backend, zogy, fft, psf_model, photometry, detect, resample\n"
            "bad = [m for m in sys.modules if m.split('.')[0] in ('cupy', 'astropy', 'mpi4py', 'sqlalchemy')\n"
            "       or m.startswith(('seechange_mpi.model', 'seechange_mpi.config', 'seechange_mpi.pipeline'))]\n"
            "print(bad)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
