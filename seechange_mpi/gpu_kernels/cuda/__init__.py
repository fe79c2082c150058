"""CUDA C kernels: text files ``*.cu`` beside this one, compiled by CuPy when first launched.

Each file is self-contained (no includes) and its kernels are ``extern "C" __global__ void``. Scalars are passed as
numpy scalars of exactly the parameter's type, arrays C-contiguous.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any


@cache
def sources() -> dict[str, str]:
    """Return the text of every CUDA file by its name, "lanczos.cu" for example."""
    return {f.name: f.read_text(encoding="utf-8")
            for f in sorted(resources.files(__name__).iterdir(), key=lambda f: f.name) if f.name.endswith(".cu")}


@cache
def kernel(file: str, name: str) -> Any:
    """Return the kernel `name` of a file, as a cupy.RawKernel.

    Parameters
    ----------
    file : str
        Name of the file, with or without ``.cu``.

    Raises
    ------
    ValueError
        No such file, or no such kernel in it.
    """
    import cupy

    full = file if file.endswith(".cu") else f"{file}.cu"
    if full not in sources():
        raise ValueError(f"kernel: expected a file of {sorted(sources())}, found {full!r}")
    code = sources()[full]
    if f"{name}(" not in code:
        raise ValueError(f"kernel: {full} has no {name!r}")
    return cupy.RawKernel(code, name)
