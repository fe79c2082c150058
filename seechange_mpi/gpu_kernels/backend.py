"""NumPy or CuPy, found from the arguments.

``SEECHANGE_BACKEND`` = ``auto`` (CuPy where a device answers, else NumPy), ``numpy`` or ``cupy`` decides
where `to_backend` puts arrays; kernels follow the arrays they are given. The device is chosen on first need, see
`device.use_device`.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.device import driver_present, use_device

Array = Any
"""A numpy.ndarray or cupy.ndarray."""


def get_xp(*arrays: Array) -> Any:
    """Return the array module (numpy or cupy) of the arguments; cupy is not imported for NumPy arrays."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def get_ndimage(xp: Any) -> Any:
    """Return scipy.ndimage or its CuPy twin."""
    if xp is np:
        import scipy.ndimage

        return scipy.ndimage
    import cupyx.scipy.ndimage

    return cupyx.scipy.ndimage


def asnumpy(array: Array) -> np.ndarray:
    """Return the array in host memory."""
    return array.get() if hasattr(array, "get") and not isinstance(array, np.ndarray) else np.asarray(array)


@lru_cache(maxsize=1)
def backend_name() -> str:
    """Return ``numpy`` or ``cupy`` for this process; with CuPy the process has its device from now on.

    ``auto`` does not import CuPy where there is plainly no driver.

    Raises
    ------
    RuntimeError
        ``SEECHANGE_BACKEND=cupy`` and no CuPy or no device, or an unknown value; ``SEECHANGE_GPU_POOL_MB`` is not
        a number.
    """
    wanted = os.environ.get("SEECHANGE_BACKEND", "auto").lower()
    if wanted not in ("auto", "numpy", "cupy"):
        raise RuntimeError(f"SEECHANGE_BACKEND: expected auto, numpy or cupy, found {wanted!r}")
    if wanted == "numpy" or (wanted == "auto" and not driver_present()):
        return "numpy"
    try:
        import cupy
    except ImportError:
        reason = "the package cupy is missing: pip install 'seechange-mpi[gpu]'"
    else:
        if cupy.cuda.is_available():
            use_device()
            return "cupy"
        reason = "no CUDA device answers"
    if wanted == "cupy":
        raise RuntimeError(f"SEECHANGE_BACKEND=cupy, but {reason}")
    return "numpy"


def to_backend(array: np.ndarray) -> Array:
    """Move an array to the device of this process's backend (no copy on NumPy)."""
    if backend_name() == "numpy":
        return array
    import cupy

    use_device()
    return cupy.asarray(array)
