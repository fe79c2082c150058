"""Corrected inputs on disk, combined strip by strip: memory does not grow with the number of inputs."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.backend import asnumpy, to_backend
from seechange_mpi.gpu_kernels.combine import combine_clipped
from seechange_mpi.gpu_kernels.stats import clipped, truncated_variance
from seechange_mpi.model.processes import began, is_gone
from seechange_mpi.model.products import F32, F64

_COPIES = 10
"""Arrays of the size of the stack that the combination holds at once."""
_ENOUGH = 500_000


class FrameStack:
    """Frames of one shape as float32 files in a folder of their own, which goes away with the stack.

    Parameters
    ----------
    scratch : folder in which the stack makes its own.
    shape : (ny, nx).
    """

    def __init__(self, scratch: Path, shape: tuple[int, int]) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        _clear_orphans(scratch)
        pid = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix=f"stack-{platform.node()}-{pid}-{began(pid)}-", dir=scratch))
        self.shape = shape
        self.size = 0

    def __enter__(self) -> FrameStack:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.f32"

    def append(self, frame: F32) -> int:
        """Store a frame; return its index."""
        self.put(self.size, frame)
        self.size += 1
        return self.size - 1

    def put(self, index: int, frame: F32) -> None:
        """Store a frame in place of another."""
        if frame.shape != self.shape:
            raise ValueError(f"FrameStack: frames are {self.shape}, found {frame.shape}")
        np.ascontiguousarray(frame, dtype=np.float32).tofile(self._path(index))

    def read(self, index: int, rows: slice | None = None) -> F32:
        """Return a frame, or some rows of it."""
        ny, nx = self.shape
        first, last = (0, ny) if rows is None else (rows.start, rows.stop)
        values = np.fromfile(self._path(index), np.float32, count=(last - first) * nx, offset=4 * first * nx)
        return values.reshape(last - first, nx)

    def strips(self, indices: Sequence[int], memory_mb: int) -> Iterator[tuple[slice, F32]]:
        """Yield (rows, (n, rows, nx) float32) that let the combination stay within the memory."""
        ny, nx = self.shape
        height = int(np.clip(memory_mb * 1e6 / (_COPIES * 4 * nx * max(len(indices), 1)), 1, ny))
        out = np.empty((len(indices), height, nx), np.float32)
        for first in range(0, ny, height):
            rows = slice(first, min(first + height, ny))
            n = rows.stop - rows.start
            for k, index in enumerate(indices):
                out[k, :n] = self.read(index, rows)
            yield rows, out[:, :n]


def _clear_orphans(scratch: Path) -> None:
    """Remove the stacks of processes of this host that were killed."""
    for folder in scratch.glob(f"stack-{platform.node()}-*"):
        numbers = folder.name.rsplit("-", 3)[1:3]
        if all(n.isdigit() for n in numbers) and is_gone(*map(int, numbers)):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class StackMean:
    """A combined frame, unit as the scaled inputs.

    Attributes
    ----------
    mean, chi2 : (ny, nx) float32; NaN where no input has a value.
    kept : (ny, nx) uint16
    noise_expected, noise_measured : float, of a usual pixel.
    clipped_fraction : float, outliers over good values.
    """

    mean: F32
    chi2: F32
    kept: npt.NDArray[np.uint16]
    noise_expected: float
    noise_measured: float
    clipped_fraction: float


def combine(
    stack: FrameStack, indices: Sequence[int], scales: F64, read_variance: F32, unit_per_electron: F32, *,
    pedestal: float = 0.0, weights: F64 | None = None, n_sigma: float, memory_mb: int,
) -> StackMean:
    """Combine scaled frames by `combine_clipped`.

    Parameters
    ----------
    indices : frames to combine;  scales : (n,), factor of each.
    read_variance : (ny, nx) float32, variance of an unexposed pixel [unit of the stored frames²].
    unit_per_electron : (ny, nx) float32, what an electron is worth in the stored frames.
    pedestal : float, signal that was taken off the stored frames, in units of the scaled ones.
    weights : (n,), optional.
    """
    ny, nx = stack.shape
    if weights is not None:  # halves of equal weight share the noise of the bias equally
        order = np.argsort(weights, kind="stable")
        indices, scales, weights = [indices[k] for k in order], scales[order], weights[order]
    mean, chi2, half = (np.full((ny, nx), np.nan, np.float32) for _ in range(3))
    variance = np.full((ny, nx), np.nan, np.float32)
    kept = np.zeros((ny, nx), np.uint16)
    n_clipped = 0
    s = np.asarray(scales, np.float32)[:, None, None]
    same = s[:1] if (s == s[0]).all() else s
    w = None if weights is None else to_backend(np.asarray(weights, np.float32))
    for rows, strip in stack.strips(indices, memory_mb):
        done = combine_clipped(
            to_backend(strip * s), read_variance=to_backend(same * same * read_variance[rows]),
            poisson=to_backend(same * unit_per_electron[rows]), pedestal=pedestal, weights=w, n_sigma=n_sigma)
        for plane, part in ((mean, done.mean), (chi2, done.chi2), (half, done.half_difference),
                            (variance, done.variance), (kept, done.kept)):
            plane[rows] = asnumpy(part)
        n_clipped += int(done.clipped.sum())
    total = int(kept.sum()) + n_clipped
    return StackMean(mean, chi2, kept, _typical(variance), robust_std(half), n_clipped / max(total, 1))


def _typical(variance: F32) -> float:
    """Root of the mean variance, without pixels far above the middle."""
    v = variance[np.isfinite(variance)]
    return float(np.sqrt(v[v <= 4 * np.median(v)].mean())) if v.size else 0.0


def robust_std(values: F32) -> float:
    """Return the standard deviation without outliers beyond 4 σ, of half a million values at most.

    Unlike the median absolute deviation it does not stick to the steps of rounded values.
    """
    flat = values.reshape(-1)
    found = clipped(flat[:: max(1, flat.size // _ENOUGH)], n_sigma=4.0)
    return float(found.std / truncated_variance(4.0) ** 0.5)
