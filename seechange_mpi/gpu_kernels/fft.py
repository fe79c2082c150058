"""Real two-dimensional transforms in the arrays' own precision."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp

WORKERS = int(os.environ.get("SEECHANGE_FFT_WORKERS", "1"))
"""Threads of one CPU transform."""


def _module(xp: Any) -> Any:
    if xp is np:
        import scipy.fft

        return scipy.fft
    import cupyx.scipy.fft

    return cupyx.scipy.fft


def good_size(n: int) -> int:
    """Return the next size that transforms quickly (factors 2, 3 and 5)."""
    import scipy.fft

    return int(scipy.fft.next_fast_len(n, real=True))


def rfft2(array: Array, shape: tuple[int, int] | None = None) -> Array:
    """Real FFT over the last two axes, zero-padded to `shape`; float32 gives complex64."""
    xp = get_xp(array)
    if xp is np:
        return _module(xp).rfft2(array, s=shape, workers=WORKERS)
    return _module(xp).rfft2(array, s=shape)


def irfft2(array: Array, shape: tuple[int, int], *, overwrite: bool = False) -> Array:
    """Inverse of `rfft2` for an output of `shape`; `overwrite` gives the input up."""
    xp = get_xp(array)
    if xp is np:
        return _module(xp).irfft2(array, s=shape, workers=WORKERS, overwrite_x=overwrite)
    return _module(xp).irfft2(array, s=shape, overwrite_x=overwrite)


def centred_kernel(stamp: Array, shape: tuple[int, int], dtype: Any = None) -> Array:
    """Return the transform of an odd stamp whose centre pixel becomes the origin of a `shape` grid."""
    xp = get_xp(stamp)
    padded = xp.zeros(shape, dtype=dtype or stamp.dtype)
    h, w = stamp.shape
    padded[:h, :w] = stamp
    return rfft2(xp.roll(padded, (-(h // 2), -(w // 2)), axis=(0, 1)))
