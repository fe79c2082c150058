"""NVRTC, the CUDA compiler library, through ctypes: works without driver and device."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from importlib import metadata


class CompileError(Exception):
    """The compiler's log."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """NVRTC of the package nvidia-cuda-nvrtc, or of the system; None where there is none."""
    try:
        files = metadata.files("nvidia-cuda-nvrtc") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [str(f.locate()) for f in files if f.name.startswith("libnvrtc.so")]
    for name in (*found, "libnvrtc.so.13", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compile_ptx(code: str, file: str, arch: str) -> str:
    """Return the PTX of CUDA C text for an architecture, "compute_90" for example.

    Raises
    ------
    CompileError
        With the compiler's log, which names file and line.
    """
    lib = library()
    assert lib is not None
    program = ctypes.c_void_p()
    _ok(lib, lib.nvrtcCreateProgram(ctypes.byref(program), code.encode(), file.encode(), 0, None, None))
    try:
        options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17"]
        status = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            raise CompileError(f"{file} for {arch}:\n{_text(lib, program, 'ProgramLog')}")
        return _text(lib, program, "PTX")
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def architectures() -> list[int]:
    """Compute capabilities that the compiler knows, 90 for 9.0."""
    lib = library()
    assert lib is not None
    n = ctypes.c_int()
    _ok(lib, lib.nvrtcGetNumSupportedArchs(ctypes.byref(n)))
    out = (ctypes.c_int * n.value)()
    _ok(lib, lib.nvrtcGetSupportedArchs(out))
    return list(out)


def _text(lib: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _ok(lib, getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _ok(lib, getattr(lib, f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode(errors="replace")


def _ok(lib: ctypes.CDLL, status: int) -> None:
    if status:
        lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {lib.nvrtcGetErrorString(status).decode()}")
