"""Time every kernel on the GPU and on the CPU of this machine; print one Markdown table.

To add a kernel add a `Row` to `ROWS`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from bench_scene import SHAPE, SIZE, SKY, Scene, best_of, cpu_name, scene

from seechange_mpi.gpu_kernels.background import fit_background
from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics
from seechange_mpi.gpu_kernels.device import free_memory, use_device
from seechange_mpi.gpu_kernels.methods import alard_lupton_subtract, sfft_subtract
from seechange_mpi.gpu_kernels.photometry import psf_photometry
from seechange_mpi.gpu_kernels.psf_model import fit_psf
from seechange_mpi.gpu_kernels.resample import warp
from seechange_mpi.gpu_kernels.zogy import zogy_subtract

CPU_LIMIT_S = 6.0
"""A CPU call that took longer is not repeated."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    inputs : scene -> the arguments by name, in host memory.
    call : the kernel, called with them as keywords; on the device its arrays are there already.
    transfers : the arrays start in pinned host memory and the images of the result end there.
    """

    name: str
    inputs: Callable[[Scene], dict[str, Any]]
    call: Callable[..., Any]
    transfers: bool = False


def subtraction_inputs(s: Scene) -> dict[str, Any]:
    return {"new": s.new, "ref": s.ref, "psf_new": s.psf_new, "psf_ref": s.psf_ref, "noise_new": SKY, "noise_ref": SKY,
            "variance_new": s.variance_new, "variance_ref": s.variance_ref, "mask": s.mask, "sigma_x": 0.05,
            "sigma_y": 0.05}


def warp_inputs(s: Scene) -> dict[str, Any]:
    return {"data": s.new, "xy_of": lambda x, y: (x + 1e-3 * y + 0.3, y - 1e-3 * x - 0.4), "shape": s.new.shape,
            "variance": s.variance_new, "flags": s.mask.astype(np.uint16), "bad": s.mask}


def photometry_inputs(s: Scene) -> dict[str, Any]:
    return {"data": s.new, "variance": s.variance_new, "mask": s.mask, "x": s.x, "y": s.y, "psf": s.psf_new}


def psf_inputs(s: Scene) -> dict[str, Any]:
    every = slice(None, None, max(1, len(s.x) // 300))
    return {"data": s.new, "variance": s.variance_new, "mask": s.mask, "x": s.x[every], "y": s.y[every], "size": SIZE}


ROWS = [
    Row("zogy_subtract", subtraction_inputs, zogy_subtract),
    Row("zogy_subtract with transfers", subtraction_inputs, zogy_subtract, transfers=True),
    Row("alard_lupton_subtract, kernel of degree 1", lambda s: {**subtraction_inputs(s), "kernel_degree": 1},
        alard_lupton_subtract),
    Row("sfft_subtract, kernel of degree 1", lambda s: {**subtraction_inputs(s), "kernel_degree": 1}, sfft_subtract),
    Row("warp: data, variance, flags", warp_inputs, warp),
    Row("psf_photometry of all stars", photometry_inputs, psf_photometry),
    Row("fit_background", lambda s: {"data": s.new, "mask": s.mask}, fit_background),
    Row("detect_cosmics", lambda s: {"data": s.new, "variance": s.variance_new, "mask": s.mask}, detect_cosmics),
    Row("fit_psf, 300 stars", psf_inputs, fit_psf),
]


def images(result: Any) -> list[Any]:
    """The arrays of a result."""
    if dataclasses.is_dataclass(result):
        result = [getattr(result, f.name) for f in dataclasses.fields(result)]
    return [a for a in (result if isinstance(result, tuple | list) else [result]) if hasattr(a, "get")]


def gpu_work(row: Row, given: dict[str, Any]) -> Callable[[], None]:
    """One synchronised call of a kernel on the device."""
    import cupy
    import cupyx

    if not row.transfers:
        there = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}

        def resident() -> None:
            row.call(**there)
            cupy.cuda.Stream.null.synchronize()
        return resident
    pinned = {}
    for k, v in given.items():
        if isinstance(v, np.ndarray):
            pinned[k] = cupyx.empty_pinned(v.shape, v.dtype)
            pinned[k][...] = v
    back: dict[int, np.ndarray] = {}

    def carried() -> None:
        there = {k: cupy.asarray(v) for k, v in pinned.items()}
        for k, a in enumerate(images(row.call(**{**given, **there}))):
            if k not in back:
                back[k] = cupyx.empty_pinned(a.shape, a.dtype)
            a.get(out=back[k])
        cupy.cuda.Stream.null.synchronize()
    return carried


def measure(row: Row, stage: Scene, n: int) -> tuple[float, float, float]:
    """Return the CPU's and the GPU's best time [s] and the peak of the device's memory pool [MB]."""
    import cupy

    given = row.inputs(stage)
    cpu = best_of(lambda: row.call(**given), n, CPU_LIMIT_S, time.perf_counter)
    free_memory()
    pool = cupy.get_default_memory_pool()
    work = gpu_work(row, given)
    work()
    # the pool keeps what it took: its size after the first call is the peak
    peak = pool.total_bytes() / 2**20
    gpu = best_of(work, max(n, 5), 20.0, time.perf_counter)
    del work
    free_memory()
    return cpu, gpu, peak


def table(shape: tuple[int, int], n_stars: int, n: int = 3) -> bool:
    """Print the table; False if a kernel failed."""
    import cupy

    number = use_device(pool_mb=0)
    gpu_name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    stage = scene(shape, n_stars)
    print(f"{gpu_name}; one process on {cpu_name()}; {shape[0]}×{shape[1]} float32, {len(stage.x)} stars, best of {n} "
          f"or more, synchronised; CuPy {cupy.__version__}, NumPy {np.__version__}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| kernel | CPU [ms] | GPU [ms] | ratio | peak GPU memory [MB] |\n|---|---|---|---|---|", flush=True)
    good = True
    for row in ROWS:
        try:
            cpu, gpu, peak = measure(row, stage, n)
        except Exception as err:  # noqa: BLE001 - the other rows are worth having
            good = False
            reason = str(err).splitlines()[0] if str(err) else ""
            print(f"| {row.name} | failed: {type(err).__name__}: {reason} | | | |", flush=True)
            continue
        print(f"| {row.name} | {1e3 * cpu:.0f} | {1e3 * gpu:.1f} | {cpu / gpu:.1f} | {peak:.0f} |", flush=True)
    return good


def main() -> int:
    """Print the table; 2 where no device answers, 1 where a kernel failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=SHAPE, metavar=("NY", "NX"))
    parser.add_argument("--stars", type=int, default=5000)
    options = parser.parse_args()
    try:
        import cupy

        if not cupy.cuda.is_available():
            raise RuntimeError("no CUDA device answers")
    except (ImportError, RuntimeError) as err:
        print(f"gpu_table: {err}", file=sys.stderr)
        return 2
    return 0 if table(tuple(options.shape), options.stars) else 1


if __name__ == "__main__":
    sys.exit(main())
