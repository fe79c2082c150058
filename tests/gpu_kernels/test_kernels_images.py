"""Background, statistics, transforms and the choice of backend."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from kernel_truth import add_stars

from seechange_mpi.gpu_kernels import background as bg
from seechange_mpi.gpu_kernels import fft
from seechange_mpi.gpu_kernels.backend import asnumpy, backend_name, get_xp, to_backend
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.gpu_kernels.stats import clipped, mad_std

# ---------------------------------------------------------------- background


def test_background_of_noise():
    rng = np.random.default_rng(1)
    data = rng.normal(200, 14, (1000, 1100)).astype(np.float32)
    mesh, rms = bg.fit_background(data)
    assert mesh.dtype == rms.dtype == np.float32
    assert np.mean(rms) == pytest.approx(14, rel=0.01)
    assert np.mean(mesh) == pytest.approx(200, abs=0.02 * 14)
    mesh, rms = bg.fit_mesh(data)
    assert np.mean(rms) == pytest.approx(14, rel=0.01)
    assert np.mean(mesh) == pytest.approx(200, abs=0.02 * 14)


@pytest.mark.parametrize("fwhm", [2.5, 4.5])
def test_background_under_stars(fwhm):
    """Stars on a fifth of the pixels, a gradient below: level to 0.02 sigma, rms to 1 %."""
    rng = np.random.default_rng(2)
    shape = (768, 768)
    sky = 200 + 20 * np.linspace(-1, 1, 768)[None, :] + np.zeros(shape)
    image = sky.copy()
    n = 700
    flux = np.minimum(3000 * (rng.uniform(size=n) + 1e-3) ** -1.0, 3e5)
    size = 31 if fwhm < 3 else 41
    add_stars(image, rng.uniform(0, 767, n), rng.uniform(0, 767, n), flux, fwhm, size)
    data = (rng.poisson(image * 2) / 2).astype(np.float32)
    mesh, rms = bg.fit_background(data)
    level = bg.render_mesh(mesh, 128, shape)
    noise = bg.render_mesh(rms, 128, shape)
    inner = (slice(100, -100), slice(100, -100))
    assert np.mean(level[inner] - sky[inner]) == pytest.approx(0, abs=0.02 * 10)
    assert np.mean(noise[inner] / np.sqrt(sky[inner] / 2)) == pytest.approx(1, abs=0.01)
    assert np.std(level[inner] - sky[inner]) < 0.1 * 10


def test_background_of_bad_pixels_and_holes():
    rng = np.random.default_rng(3)
    data = rng.normal(50, 2, (512, 512)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[:140, :140] = True
    data[mask] = 1e5
    data[300:310] = np.nan
    before = data.copy()
    mesh, rms = bg.fit_background(data, mask)
    assert np.isfinite(mesh).all()
    assert mesh == pytest.approx(50, abs=0.15)
    assert rms == pytest.approx(2, rel=0.04)
    assert np.array_equal(before, data, equal_nan=True)
    nothing, none = bg.fit_background(data, np.ones(data.shape, bool))
    assert not nothing.any()
    assert not none.any()


def test_rendered_mesh_stays_in_range():
    mesh = np.zeros((8, 6), np.float32)
    mesh[3, 3] = 100.0
    out = bg.render_mesh(mesh, 64, (500, 390))
    assert out.shape == (500, 390)
    assert out.min() >= 0
    assert out.max() <= 100
    assert out[int(3.5 * 500 / 8), int(3.5 * 390 / 6)] == pytest.approx(100, abs=1)
    assert (bg.render_mesh(np.full((1, 1), 3.0, np.float32), 64, (20, 21)) == 3).all()
    line = bg.render_mesh(np.array([[0.0, 10.0]], np.float32), 10, (5, 20))
    assert line[0, 0] == 0
    assert line[0, -1] == 10
    assert line[2, 10] == pytest.approx(5.5, abs=0.01)


# ---------------------------------------------------------------- statistics, stamps, transforms, backend


def test_clipped_statistics():
    rng = np.random.default_rng(6)
    v = rng.normal(10, 2, 100_000).astype(np.float32)
    v[:500] = 1e4
    v[500] = np.nan
    s = clipped(v)
    assert s.mean == pytest.approx(10, abs=0.03)
    assert s.median == pytest.approx(10, abs=0.03)
    assert s.std == pytest.approx(2, rel=0.03)
    assert mad_std(v) == pytest.approx(2, rel=0.02)
    mask = np.zeros(v.shape, bool)
    mask[:1000] = True
    assert mad_std(v, mask) == pytest.approx(2, rel=0.02)
    assert clipped(v, np.ones(v.shape, bool)).n == 0
    assert np.isnan(mad_std(np.full(3, np.nan)))
    assert clipped(np.full(9, 4.0)) == (4.0, 4.0, 0.0, 9)


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
