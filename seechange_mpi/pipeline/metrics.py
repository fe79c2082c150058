"""What a step costs: time, memory, GPU memory, bytes read and written."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from seechange_mpi.model.task import StepRecord

_MB = 1024.0 * 1024.0
_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_IO = Path("/proc/self/io")


class _Peak:
    """High-water resident memory since `begin`, through all resets of the kernel's own mark."""

    high_mb = 0.0


def begin_section() -> None:
    """Forget the high-water mark of what was done before."""
    _reset()
    _Peak.high_mb = 0.0


def peak_rss_mb() -> float:
    """High-water resident memory of this process since `begin_section` [MiB]; since its start where marks stay."""
    _Peak.high_mb = max(_Peak.high_mb, _marked_mb())
    return _Peak.high_mb


def _marked_mb() -> float:
    """The kernel's mark, which `_reset` lowers where that is allowed."""
    with suppress(OSError, ValueError):
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) / 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _reset() -> None:
    with suppress(OSError), _RESET.open("wb", buffering=0) as f:
        f.write(b"5")


def _transferred_mb() -> tuple[float, float]:
    """MiB read and written by this process so far; 0 where the kernel does not tell."""
    with suppress(OSError, ValueError, KeyError):
        pairs = dict(line.split(b": ", 1) for line in _IO.read_bytes().splitlines())
        return int(pairs[b"rchar"]) / _MB, int(pairs[b"wchar"]) / _MB
    return 0.0, 0.0


def _gpu_pool() -> Any:
    """CuPy's memory pool; None unless something has imported CuPy and has a device."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return None
    with suppress(Exception):
        return cupy.get_default_memory_pool()
    return None


def _gpu_hook(pool: Any) -> Any:
    """Return a memory hook that notes the most that was in use of a pool; None where CuPy has no hooks."""
    base: Any = getattr(getattr(sys.modules.get("cupy"), "cuda", None), "MemoryHook", None)
    if pool is None or base is None:
        return None

    class HighWater(base):  # type: ignore[misc, valid-type]
        name = "SeeChangeHighWater"
        used = peak = int(pool.used_bytes())

        def malloc_postprocess(self, **said: Any) -> None:
            self.used += said["mem_size"]
            self.peak = max(self.peak, self.used)

        def free_postprocess(self, **said: Any) -> None:
            self.used -= said["mem_size"]

    return HighWater()


class StepMeter:
    """Measures from its making to `record`."""

    def __init__(self) -> None:
        peak_rss_mb()
        _reset()
        self._hook: Any = None
        with suppress(Exception):  # a GPU in trouble must not keep a step from running
            self._hook = _gpu_hook(_gpu_pool())
            if self._hook is not None:
                self._hook.__enter__()
        self._read, self._written = _transferred_mb()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def record(self, step: str, status: str) -> StepRecord:
        """Return the record of a step that ends now."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        read, written = _transferred_mb()
        rss = _marked_mb()
        _Peak.high_mb = max(_Peak.high_mb, rss)
        return StepRecord(step, status, wall, cpu, rss, self._gpu_mb(), read - self._read, written - self._written)

    def _gpu_mb(self) -> float:
        with suppress(Exception):
            if self._hook is not None:
                self._hook.__exit__(None, None, None)
                return float(self._hook.peak) / _MB
            pool = _gpu_pool()
            # CuPy came with this step: all its pool has ever held is the step's
            return float(pool.total_bytes()) / _MB if pool is not None else 0.0
        return 0.0
