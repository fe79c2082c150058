"""Benchmarks against rivals on the same data in the same run; prints a table for docs/benchmarks.md."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from seechange_mpi.gpu_kernels.background import fit_background
from seechange_mpi.gpu_kernels.resample import warp
from seechange_mpi.gpu_kernels.zogy import zogy_subtract

SHAPE = (4096, 2048)


def best_of(work: Callable[[], object], n: int = 3) -> float:
    """Least wall time of `n` calls [s]."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def gaussian(fwhm: float, size: int = 25) -> np.ndarray:
    """Unit-sum Gaussian stamp."""
    y, x = np.mgrid[:size, :size] - size // 2
    p = np.exp(-4 * np.log(2) * (x**2 + y**2) / fwhm**2)
    return (p / p.sum()).astype(np.float32)


def plain_zogy(new: np.ndarray, ref: np.ndarray, p_new: np.ndarray, p_ref: np.ndarray, noise: float) -> np.ndarray:
    """The formulas of the paper written down directly: full complex double-precision transforms, no padding."""
    def hat(stamp: np.ndarray) -> np.ndarray:
        full = np.zeros(new.shape)
        full[: stamp.shape[0], : stamp.shape[1]] = stamp
        return np.fft.fft2(np.roll(full, (-(stamp.shape[0] // 2), -(stamp.shape[1] // 2)), (0, 1)))

    pn, pr, n, r = hat(p_new), hat(p_ref), np.fft.fft2(new), np.fft.fft2(ref)
    den = noise**2 * (np.abs(pr) ** 2 + np.abs(pn) ** 2)
    k_n, k_r = np.conj(pn) * np.abs(pr) ** 2 / den, np.conj(pr) * np.abs(pn) ** 2 / den
    np.fft.ifft2((pr * n - pn * r) / np.sqrt(den))
    s = np.real(np.fft.ifft2(k_n * n - k_r * r))
    v = 0.0
    for k, image in ((k_n, new), (k_r, ref)):
        k2 = np.real(np.fft.ifft2(k)) ** 2
        v = v + np.real(np.fft.ifft2(np.fft.fft2(image + noise**2) * np.fft.fft2(k2)))
    return s / np.sqrt(v)


def main() -> None:
    """Run everything and print the table."""
    rng = np.random.default_rng(1)
    new, ref = (rng.normal(0, 20, SHAPE).astype(np.float32) for _ in range(2))
    p_new, p_ref = gaussian(4.0), gaussian(3.0)
    rows = []
    ours = best_of(lambda: zogy_subtract(new, ref, p_new, p_ref, noise_new=20.0, noise_ref=20.0))
    rival = best_of(lambda: plain_zogy(new, ref, p_new, p_ref, 20.0), 1)
    rows.append(("ZOGY: D, P_D, S, S_corr, flux and error, translient", ours, "same formulas, complex128, numpy.fft "
                 "(D, S, S_corr only)", rival))
    ours = best_of(lambda: warp(new, lambda x, y: (x + 0.3, y - 0.4), SHAPE), 1)
    import scipy.ndimage

    rival = best_of(lambda: scipy.ndimage.shift(new, (0.4, -0.3), order=3), 1)
    rows.append(("Lanczos-3 warp by a mapping grid, bad-pixel aware", ours, "scipy.ndimage.shift, cubic spline", rival))
    import sep

    ours = best_of(lambda: fit_background(new), 1)
    rival = best_of(lambda: sep.Background(new, bw=128, bh=128), 1)
    rows.append(("background with two source-masked passes", ours, "sep.Background, one pass, no mask", rival))
    print(f"{platform.processor() or platform.machine()}, one thread, {SHAPE[0]}×{SHAPE[1]} float32, "
          f"{datetime.now(UTC):%Y-%m-%d}, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB\n")
    print("| what | ours [s] | rival | rival [s] | ratio |\n|---|---|---|---|---|")
    for what, a, name, b in rows:
        print(f"| {what} | {a:.2f} | {name} | {b:.2f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()
