"""Which GPU a process uses, how much of its memory, and what happens when that runs out.

Nothing here happens at import. MPI is not asked: every launcher tells a process its place on the node in the
environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PLACES = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),  # MVAPICH
    ("PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),  # Cray
    ("JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),  # IBM
    ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    # after the launchers: their ranks inherit the values of the batch step, which has one task
    ("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)
"""Variables of node-local rank and number of ranks on the node, in the order of trust."""

POOL_SHARE = 0.9
"""Part of the free memory that the pools of all ranks of a device may take together."""


def driver_present() -> bool:
    """True unless there is plainly no NVIDIA driver; costs microseconds, unlike importing CuPy."""
    if any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def local_place(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Return (rank, number of ranks) of this process on its node; (0, 1) outside of any launcher.

    ``SLURM_STEP_TASKS_PER_NODE`` reads like "4(x2),3": its largest count is taken.
    """
    env = os.environ if environ is None else environ
    for rank_name, size_name in _PLACES:
        if not re.fullmatch(r"\d+", env.get(rank_name, "")):
            continue
        rank = int(env[rank_name])
        sizes = [int(n) for n in re.findall(r"(?:^|,)(\d+)", env.get(size_name, ""))]
        return rank, max([rank + 1, *sizes])
    return 0, 1


def ranks_sharing(rank: int, ranks: int, devices: int, environ: Mapping[str, str] | None = None) -> int:
    """Return how many of the node's `ranks` use the device of `rank`, device ``rank % devices``.

    With ``SLURM_GPUS_PER_TASK`` each rank sees only devices of its own.
    """
    if "SLURM_GPUS_PER_TASK" in (os.environ if environ is None else environ):
        return 1
    return len(range(rank % devices, ranks, devices))


@lru_cache(maxsize=1)
def _chosen() -> dict[str, int]:
    """The device of this process, once chosen."""
    return {}


def use_device(pool_mb: float | None = None) -> int:
    """Make the device of this process current in this thread, return its number.

    The first call chooses it and limits its memory pool; later ones change neither.

    The device is the node-local rank modulo the number of devices. `pool_mb` limits the memory pool [MB];
    default: the environment variable ``SEECHANGE_GPU_POOL_MB``, or else the memory that is free now, divided by the
    ranks that share the device, times 0.9. 0 means no limit.

    Raises
    ------
    RuntimeError
        ``SEECHANGE_GPU_POOL_MB`` is not a number ≥ 0.
    """
    import cupy

    chosen = _chosen()
    if "device" not in chosen:
        rank, ranks = local_place()
        devices = int(cupy.cuda.runtime.getDeviceCount())
        device = rank % devices
        # the limit of the pool holds for the current device
        cupy.cuda.Device(device).use()
        limit = _pool_limit_mb() if pool_mb is None else pool_mb
        if limit is None:
            free = int(cupy.cuda.Device(device).mem_info[0])
            size = int(free / ranks_sharing(rank, ranks, devices) * POOL_SHARE)
        else:
            size = int(limit * 2**20)
        cupy.get_default_memory_pool().set_limit(size=size)
        chosen["device"] = device
    cupy.cuda.Device(chosen["device"]).use()
    return chosen["device"]


def _pool_limit_mb() -> float | None:
    text = os.environ.get("SEECHANGE_GPU_POOL_MB", "").strip()
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        raise RuntimeError(f"SEECHANGE_GPU_POOL_MB: expected megabytes, 0 for no limit, found {text!r}")
    return float(text)


_FALLBACKS: Counter[str] = Counter()


def fallback_counts() -> dict[str, int]:
    """Calls of `with_fallback` that ended on the CPU since the last reset, by name."""
    return dict(_FALLBACKS)


def reset_fallback_counts() -> None:
    """Begin a new count."""
    _FALLBACKS.clear()


def with_fallback(name: str, gpu_call: Callable[[], T], cpu_call: Callable[[], T],
                  smaller: Sequence[Callable[[], T]] = ()) -> T:
    """Return the result of `gpu_call`; when the GPU's memory runs out, of a smaller call, or of `cpu_call`.

    Parameters
    ----------
    name : str
        What is done, singular: "subtraction". `fallback_counts` counts the calls that ended on the CPU by it.
    gpu_call, cpu_call : callable
        The same work on the device and on the host. They should start from host arrays, so that nothing stays on
        the device between two attempts.
    smaller : sequence of callables
        The work on the device in smaller pieces, tried in turn.

    Errors other than exhausted memory pass through.
    """
    for attempt in (gpu_call, *smaller):
        try:
            return attempt()
        except Exception as err:
            if not is_out_of_memory(err):
                raise
        # only here, after the frames of the failed call, and with them its arrays, are gone
        free_memory()
    _FALLBACKS[name] += 1
    return cpu_call()


def is_out_of_memory(err: BaseException) -> bool:
    """True for every way in which CUDA and its libraries say that memory ran out."""
    kind = f"{type(err).__module__}.{type(err).__name__}"
    if not kind.startswith("cupy"):
        return False
    text = str(err)
    return (type(err).__name__ == "OutOfMemoryError" or "ALLOC_FAILED" in text or "cudaErrorMemoryAllocation" in text)


def free_memory() -> None:
    """Give everything that the pools and the FFT plans hold without need back to the device."""
    import cupy

    gc.collect()
    with contextlib.suppress(ImportError):  # without cuFFT there are no plans
        cupy.fft.config.get_plan_cache().clear()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
