"""CUDA C text: every shipped file compiles for devices old and new, kernels run on the host, mistakes are reported."""

from __future__ import annotations

from pathlib import Path

import cuda_on_host
import numpy as np
import nvrtc
import pytest

from seechange_mpi.gpu_kernels import cuda

ARCHITECTURES = (80, 90, 120)

TWO_KERNELS = r"""
// every thread one pixel
extern "C" __global__ void scale(const float* __restrict__ in, float* out, const float by, const int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = by * in[i];
}
extern "C" __global__ void __launch_bounds__(256) total(const float* in, double* out, long long n) {
  extern __shared__ double part[];
  const int t = threadIdx.x;
  part[t] = 0.0;
  for (long long i = blockIdx.x * blockDim.x + t; i < n; i += (long long)gridDim.x * blockDim.x) part[t] += in[i];
  __syncthreads();
  for (int s = blockDim.x / 2; s > 0; s >>= 1) {
    if (t < s) part[t] += part[t + s];
    __syncthreads();
  }
  if (t == 0) atomicAdd(out, part[0]);
}
"""

needs_nvrtc = pytest.mark.skipif(
    nvrtc.library() is None, reason="no NVRTC on this platform (nvidia-cuda-nvrtc, see requirements-gpu.lock)")
needs_compiler = pytest.mark.skipif(not cuda_on_host.have_compiler(), reason="no g++ to run CUDA kernels on the host")


def test_shipped_files_are_found_and_are_kernels():
    folder = sorted(p.name for p in Path(cuda.__file__).parent.glob("*.cu"))
    assert sorted(cuda.sources()) == folder
    for name, code in cuda.sources().items():
        assert cuda_on_host.kernel_names(code), f"{name} holds no kernel"
        assert "#include" not in code, f"{name}: NVRTC finds no headers without a toolkit"


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shipped_files_compile(arch):
    assert arch in nvrtc.architectures()
    for name, code in {**cuda.sources(), "two_kernels.cu": TWO_KERNELS}.items():
        ptx = nvrtc.compile_ptx(code, name, f"compute_{arch}")
        assert f".target sm_{arch}" in ptx
        for kernel in cuda_on_host.kernel_names(code):
            assert f".entry {kernel}(" in ptx, f"{name}: {kernel} is not extern \"C\""


@needs_nvrtc
def test_a_typo_is_reported_with_file_and_line():
    wrong = TWO_KERNELS.replace("by * in[i]", "by * inn[i]")
    with pytest.raises(nvrtc.CompileError, match=r'scale\.cu\(5\): error: identifier "inn" is undefined'):
        nvrtc.compile_ptx(wrong, "scale.cu", "compute_90")


@needs_compiler
def test_shipped_files_run_on_the_host():
    for code in cuda.sources().values():
        for kernel in cuda_on_host.kernel_names(code):
            assert cuda_on_host.signature(cuda_on_host.library(code), kernel)


@pytest.fixture
def two_kernels(monkeypatch):
    """The two kernels above as a shipped file."""
    cuda.kernel.cache_clear()
    monkeypatch.setattr(cuda, "sources", lambda: {"two.cu": TWO_KERNELS})


@needs_compiler
@pytest.mark.parametrize("n", [1, 255, 256, 1000])
def test_kernels_compute(cuda_device, two_kernels, n):
    xp = cuda_device.xp
    values = np.random.default_rng(n).normal(0, 1, n).astype(np.float32)
    x, y, s = cuda_device.asarray(values), xp.zeros(n, dtype=np.float32), xp.zeros(1)
    blocks = (-(-n // 128),)
    cuda.kernel("two", "scale")(blocks, (128,), (x, y, np.float32(3), np.int32(n)))
    np.testing.assert_array_equal(cuda_device.asnumpy(y), np.float32(3) * values)
    cuda.kernel("two.cu", "total")((2,), (64,), (x, s, np.int64(n)), shared_mem=64 * 8)
    assert float(s[0]) == pytest.approx(values.sum(dtype=float), rel=1e-12, abs=1e-12)
    assert cuda.kernel("two", "scale") is cuda.kernel("two", "scale")


def test_unknown_file_or_kernel_is_named(stand_in, two_kernels):
    with pytest.raises(ValueError, match=r"expected a file of \['two.cu'\], found 'three.cu'"):
        cuda.kernel("three", "scale")
    with pytest.raises(ValueError, match=r"two.cu has no 'scal'"):
        cuda.kernel("two", "scal")


@needs_compiler
@pytest.mark.parametrize(("change", "message"), [
    ({3: 10}, r"argument 3 is a scalar of i8, the parameter is i4; wrap it"),
    ({2: np.float64(1)}, r"argument 2 is a scalar of f8, the parameter is f4"),
    ({1: "double"}, r"argument 1 is an array of f8, the parameter is pf4"),
    ({0: "strided"}, r"argument 0 is not C-contiguous"),
    ({0: np.float32(1)}, r"argument 0 must be an array"),
    ({3: None}, r"4 parameters, 3 arguments")])
def test_wrong_arguments_are_refused(stand_in, two_kernels, change, message):
    xp = stand_in
    named = {"double": xp.zeros(10), "strided": xp.zeros(20, dtype=np.float32)[::2]}
    args = [xp.zeros(10, dtype=np.float32), xp.zeros(10, dtype=np.float32), np.float32(1), np.int32(10)]
    for k, value in change.items():
        args[k] = named.get(value, value) if isinstance(value, str) else value
    with pytest.raises(TypeError, match=message):
        cuda.kernel("two", "scale")((1,), (32,), tuple(a for a in args if a is not None))


@needs_compiler
def test_launches_a_device_would_refuse_are_refused(stand_in, two_kernels):
    xp = stand_in
    args = (xp.zeros(1, dtype=np.float32), xp.zeros(1, dtype=np.float32), np.float32(1), np.int32(1))
    for grid, block in (((0,), (32,)), ((1,), (2048,)), ((1,), (64, 64))):
        with pytest.raises(ValueError, match="scale"):
            cuda.kernel("two", "scale")(grid, block, args)


@needs_compiler
def test_what_the_host_cannot_do_is_said():
    code = 'extern "C" __global__ void f(int* a) { a[0] = __shfl_sync(0xffffffff, 1, 0); }'
    with pytest.raises(NotImplementedError, match="__shfl_sync is not supported"):
        cuda_on_host.library(code)
    with pytest.raises(RuntimeError, match=r"kernel.cu:1:.*nonsense"):
        cuda_on_host.library('extern "C" __global__ void f(int* a) { nonsense; }')
