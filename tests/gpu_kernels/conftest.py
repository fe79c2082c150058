"""The `device` fixture: every kernel test that takes it runs on NumPy, on a strict stand-in for CuPy and on a GPU."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fake_cupy
import numpy as np
import pytest

import seechange_mpi.gpu_kernels
from seechange_mpi.gpu_kernels.device import driver_present


@dataclass(frozen=True)
class ArrayDevice:
    """Where the arrays of a test live."""

    name: str
    xp: Any

    def asarray(self, array: Any, dtype: Any = None) -> Any:
        """Put an array (or None) on the device."""
        return None if array is None else self.xp.asarray(array, dtype=dtype)

    def asnumpy(self, array: Any) -> np.ndarray:
        """Bring an array home; one that is not on the device is an error."""
        assert self.owns(array), f"expected an array on {self.name}, found {type(array)}"
        return array if self.xp is np else array.get()

    def owns(self, array: Any) -> bool:
        """True for an array of this device."""
        return isinstance(array, self.xp.ndarray)


@lru_cache(maxsize=1)
def gpu_answers() -> bool:
    """True where the real CuPy finds a device."""
    if not driver_present():
        return False
    try:
        import cupy

        return bool(cupy.cuda.is_available())
    except Exception:  # noqa: BLE001 - a broken driver is no device
        return False


def forget_caches() -> None:
    """Clear every cache of the kernels: they may hold arrays of another device."""
    for info in pkgutil.walk_packages(seechange_mpi.gpu_kernels.__path__, "seechange_mpi.gpu_kernels."):
        for value in vars(importlib.import_module(info.name)).values():
            clear: Callable[[], None] | None = getattr(value, "cache_clear", None)
            if callable(clear):
                clear()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, names in (("device", ["numpy", "stand-in"]), ("cuda_device", ["stand-in"])):
        if fixture in metafunc.fixturenames:
            gpu = [pytest.param("cupy", marks=pytest.mark.gpu)] if gpu_answers() else []
            metafunc.parametrize(fixture, [*names, *gpu], indirect=True)


@contextlib.contextmanager
def _array_device(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArrayDevice]:
    forget_caches()
    if name == "numpy":
        yield ArrayDevice(name, np)
    elif name == "stand-in":
        yield ArrayDevice(name, fake_cupy.install(monkeypatch))
    else:
        import cupy

        yield ArrayDevice(name, cupy)
        cupy.get_default_memory_pool().free_all_blocks()
    monkeypatch.undo()
    forget_caches()


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArrayDevice]:
    """NumPy, the stand-in for CuPy, and CuPy where a device answers."""
    with _array_device(request.param, monkeypatch) as found:
        yield found


@pytest.fixture
def cuda_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArrayDevice]:
    """Like `device`, without NumPy."""
    with _array_device(request.param, monkeypatch) as found:
        yield found


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for CuPy, in its place."""
    with _array_device("stand-in", monkeypatch) as found:
        yield found.xp
