"""Run CUDA C kernels on the host: compiled with g++, one call per thread, blocks one after the other.

For tests of what a kernel computes, not of how fast. Static and dynamic shared memory, ``__syncthreads`` (then each
CUDA thread is a real one) and atomics work; textures, warp intrinsics, cooperative groups and calls from one kernel to
another do not.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

MAX_THREADS = 1024
"""Threads of one block."""

SHARED_BYTES = 49152
"""Shared memory of one block."""

_UNSUPPORTED = re.compile(r"\b(__shfl\w*|__ballot\w*|__syncwarp|__any_sync|__all_sync|cooperative_groups|tex[123]D\w*|"
                          r"__activemask|wmma)\b")

_HEADER = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __constant__ static
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
struct dim3 { unsigned int x = 1, y = 1, z = 1; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
struct int2 { int x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;
template <class A, class B> static inline typename std::common_type<A, B>::type min(A a, B b) { return a < b ? a : b; }
template <class A, class B> static inline typename std::common_type<A, B>::type max(A a, B b) { return a > b ? a : b; }
template <class T> static inline T __ldg(const T *p) { return *p; }
#define __fmaf_rn(a, b, c) fmaf(a, b, c)
#define __fdividef(a, b) ((a) / (b))
#define __expf(a) expf(a)
#define __sinf(a) sinf(a)
#define __cosf(a) cosf(a)
#define rsqrtf(a) (1.0f / sqrtf(a))
#define rsqrt(a) (1.0 / sqrt(a))
#define sinpi(a) sin(M_PI * remainder(a, 2.0))
#define cospi(a) cos(M_PI * remainder(a, 2.0))
#define sinpif(a) ((float)sinpi(a))
#define cospif(a) ((float)cospi(a))
static inline int __float2int_rn(float a) { return (int)rintf(a); }
static inline int __float2int_rd(float a) { return (int)floorf(a); }
static inline int __double2int_rn(double a) { return (int)rint(a); }
static inline int __double2int_rd(double a) { return (int)floor(a); }
static std::mutex host_atomic_lock;
#define HOST_ATOMIC(NAME, VALUE) \
  template <class T, class U> static inline T NAME(T *at, U by_) { \
    std::lock_guard<std::mutex> lock(host_atomic_lock); T old = *at, by = (T)by_; *at = (VALUE); return old; }
HOST_ATOMIC(atomicAdd, old + by)
HOST_ATOMIC(atomicSub, old - by)
HOST_ATOMIC(atomicMax, old > by ? old : by)
HOST_ATOMIC(atomicMin, old < by ? old : by)
HOST_ATOMIC(atomicOr, old | by)
HOST_ATOMIC(atomicAnd, old & by)
HOST_ATOMIC(atomicExch, by)
template <class T> static inline T atomicCAS(T *at, T expected, T value) {
  std::lock_guard<std::mutex> lock(host_atomic_lock); T old = *at; if (old == expected) *at = value; return old; }

struct HostBarrier {
  std::mutex m; std::condition_variable c; int members, waiting = 0; long round = 0;
  explicit HostBarrier(int n) : members(n) {}
  void open() { waiting = 0; ++round; c.notify_all(); }
  void wait() { std::unique_lock<std::mutex> l(m); long r = round;
    if (++waiting == members) open(); else c.wait(l, [&] { return round != r; }); }
  void leave() { std::unique_lock<std::mutex> l(m); if (--members == waiting && members > 0) open(); }
};
static thread_local HostBarrier *host_barrier = nullptr;
static inline void __syncthreads() { if (host_barrier) host_barrier->wait(); }
static inline void __threadfence() {}

static dim3 host_unflatten(unsigned long k, dim3 n) {
  dim3 out; out.x = k % n.x; out.y = k / n.x % n.y; out.z = k / n.x / n.y; return out; }
template <class F> static void host_run(const unsigned *g, const unsigned *b, bool threads, F body) {
  dim3 grid, block; grid.x = g[0]; grid.y = g[1]; grid.z = g[2]; block.x = b[0]; block.y = b[1]; block.z = b[2];
  const unsigned long n_blocks = (unsigned long)g[0] * g[1] * g[2], n_threads = (unsigned long)b[0] * b[1] * b[2];
  auto one = [&](unsigned long k, unsigned long t) {
    gridDim = grid; blockDim = block; blockIdx = host_unflatten(k, grid); threadIdx = host_unflatten(t, block);
    body(); };
  for (unsigned long k = 0; k < n_blocks; ++k) {
    if (!threads) { for (unsigned long t = 0; t < n_threads; ++t) one(k, t); continue; }
    HostBarrier barrier((int)n_threads);
    std::vector<std::thread> crew;
    for (unsigned long t = 0; t < n_threads; ++t)
      crew.emplace_back([&, k, t] { host_barrier = &barrier; one(k, t); barrier.leave(); });
    for (auto &thread : crew) thread.join();
  }
}
template <class T> static std::string host_code() {
  using P = typename std::remove_cv<T>::type;
  if (std::is_pointer<P>::value) return "p" + host_code<typename std::remove_pointer<P>::type>();
  if (std::is_same<P, bool>::value) return "b1";
  if (std::is_same<P, float2>::value) return "c8";
  if (std::is_same<P, double2>::value) return "c16";
  if constexpr (std::is_void<P>::value) return "v";
  else return (std::is_floating_point<P>::value ? "f" : std::is_integral<P>::value ?
               (std::is_signed<P>::value ? "i" : "u") : "V") + std::to_string(sizeof(P));
}
template <class... A> static const char *host_signature(void (*)(A...)) {
  static std::string s; s.clear(); ((s += host_code<A>() + ","), ...); return s.c_str(); }
template <class... A, size_t... I>
static void host_call(void (*f)(A...), void **a, std::index_sequence<I...>) {
  (void)a; f(*reinterpret_cast<typename std::remove_cv<A>::type *>(a[I])...); }
template <class... A>
static void host_launch(void (*f)(A...), const unsigned *g, const unsigned *b, void **a, bool threads) {
  host_run(g, b, threads, [&] { host_call(f, a, std::index_sequence_for<A...>()); }); }
#line 1 "kernel.cu"
"""

_KERNEL_NAME = re.compile(r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+"
                          r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(")


def have_compiler() -> bool:
    """True where g++ is installed."""
    return shutil.which("g++") is not None


def without_comments(code: str) -> str:
    """The text with comments blanked, lines kept."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), code, flags=re.DOTALL)


def kernel_names(code: str) -> list[str]:
    """Names of the ``__global__`` functions."""
    return _KERNEL_NAME.findall(without_comments(code))


@lru_cache(maxsize=1)
def _build_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cuda_on_host_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=64)
def library(code: str, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile CUDA C text into a shared object and load it.

    Raises
    ------
    NotImplementedError
        The text uses what the host cannot do, or g++ is missing.
    RuntimeError
        g++ does not accept the text; the message is its own, with the line of the text.
    """
    plain = without_comments(code)
    if found := _UNSUPPORTED.search(plain):
        raise NotImplementedError(f"CUDA on the host: {found.group()} is not supported")
    if not have_compiler():
        raise NotImplementedError("CUDA on the host: g++ is missing")
    text = re.sub(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;",
                  rf"static \1 \2[{SHARED_BYTES} / sizeof(\1)];", plain)
    threads = "true" if "__syncthreads" in plain else "false"
    tail = "".join(
        f'\nextern "C" const char *host_signature_{name}() {{ return host_signature(&{name}); }}'
        f'\nextern "C" void host_launch_{name}(const unsigned *g, const unsigned *b, void **a) '
        f"{{ host_launch(&{name}, g, b, a, {threads}); }}" for name in kernel_names(code))
    stem = hashlib.sha256((text + repr(options)).encode()).hexdigest()[:16]
    source, target = _build_folder() / f"{stem}.cpp", _build_folder() / f"{stem}.so"
    source.write_text(_HEADER + text + tail + "\n")
    defines = [o for o in options if o.startswith("-D")]
    done = subprocess.run(
        ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-pthread", "-fno-strict-aliasing",
         *defines, "-o", str(target), str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"CUDA on the host: g++ failed\n{done.stderr}")
    return ctypes.CDLL(str(target))


def signature(lib: ctypes.CDLL, name: str) -> list[str]:
    """Codes of the parameters: kind and bytes as in numpy ("f4", "i8", "b1"), pointers with a leading p."""
    function = getattr(lib, f"host_signature_{name}")
    function.restype = ctypes.c_char_p
    return [c for c in function().decode().split(",") if c]


def launch(code: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...],
           options: tuple[str, ...] = (), shared_bytes: int = 0) -> None:
    """Run a kernel on numpy arrays and scalars, in place.

    Raises
    ------
    TypeError
        The arguments do not fit the kernel's parameters in number, type or memory layout.
    ValueError
        A launch that a device would refuse.
    """
    if name not in kernel_names(code):
        raise ValueError(f"no kernel {name!r} in the text, found {kernel_names(code)}")
    shape = []
    for what, dims, most in (("grid", grid, 2**31 - 1), ("block", block, MAX_THREADS)):
        full = tuple(int(d) for d in dims) + (1,) * (3 - len(dims))
        if len(full) != 3 or min(full) < 1 or max(full) > most:
            raise ValueError(f"{name}: invalid {what} {dims}")
        shape.append(full)
    if int(np.prod(shape[1])) > MAX_THREADS:
        raise ValueError(f"{name}: {shape[1]} are more than {MAX_THREADS} threads per block")
    if shared_bytes > SHARED_BYTES:
        raise ValueError(f"{name}: {shared_bytes} bytes of shared memory are more than {SHARED_BYTES}")
    lib = library(code, tuple(options))
    wanted = signature(lib, name)
    if len(wanted) != len(args):
        raise TypeError(f"{name}: {len(wanted)} parameters, {len(args)} arguments")
    cells = [_cell(name, k, code_, arg) for k, (code_, arg) in enumerate(zip(wanted, args, strict=True))]
    pointers = (ctypes.c_void_p * max(1, len(cells)))(*[c.ctypes.data for c in cells])
    dims = [(ctypes.c_uint * 3)(*s) for s in shape]
    getattr(lib, f"host_launch_{name}")(dims[0], dims[1], pointers)


def _cell(name: str, k: int, wanted: str, arg: Any) -> np.ndarray:
    """Memory that holds the argument as the kernel reads it: a pointer or a value."""
    if wanted.startswith("p"):
        if not isinstance(arg, np.ndarray):
            raise TypeError(f"{name}: argument {k} must be an array, found {type(arg).__name__}")
        found = f"{arg.dtype.kind}{arg.dtype.itemsize}"
        bytes_like = ("b1", "u1", "i1")
        if wanted not in ("pv", "p" + found) and not (wanted[1:] in bytes_like and found in bytes_like):
            raise TypeError(f"{name}: argument {k} is an array of {found}, the parameter is {wanted}")
        if not arg.flags.c_contiguous:
            raise TypeError(f"{name}: argument {k} is not C-contiguous; the kernel would read the wrong elements")
        return np.array([arg.ctypes.data], dtype=np.uintp)
    if isinstance(arg, np.ndarray):
        raise TypeError(f"{name}: argument {k} must be a scalar ({wanted}), found an array")
    value = np.array([arg])
    found = f"{value.dtype.kind}{value.dtype.itemsize}"
    if found != wanted:
        raise TypeError(f"{name}: argument {k} is a scalar of {found}, the parameter is {wanted}; "
                        "wrap it, for example numpy.int32(n)")
    return value
