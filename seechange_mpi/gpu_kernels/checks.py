"""Checks of arguments that the kernels share; messages name the function, the argument and the value found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array


def image_pair(name: str, new: Array, ref: Array, **planes: Array | None) -> None:
    """Two images of one shape, and planes (mask, variances) of the same."""
    if new.ndim != 2 or new.shape != ref.shape:
        raise ValueError(f"{name}: new and ref must be images of one shape, found {new.shape} and {ref.shape}")
    for key, plane in planes.items():
        if plane is not None and plane.shape != new.shape:
            raise ValueError(f"{name}: {key} must have the images' shape {new.shape}, found {plane.shape}")
        _boolean(name, key, plane)


def same_shape(name: str, data: Array, **planes: Array | None) -> None:
    """Planes that have the shape of the image `data`."""
    for key, plane in planes.items():
        if plane is not None and plane.shape != data.shape:
            raise ValueError(f"{name}: {key} must have the shape of data, {data.shape}, found {plane.shape}")
        _boolean(name, key, plane)


def _boolean(name: str, key: str, plane: Array | None) -> None:
    if plane is not None and key == "mask" and plane.dtype != np.bool_:
        raise ValueError(f"{name}: mask must be boolean, True = bad, found {plane.dtype}")


def positive(name: str, key: str, value: Any) -> float:
    """A finite number above zero."""
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {key} must be positive, found {value}")
    return float(value)


def not_negative(name: str, key: str, value: Any) -> float:
    """A finite number, zero or above."""
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: {key} must not be negative, found {value}")
    return float(value)


def psf_stamp(name: str, key: str, psf: Array, shape: tuple[int, int]) -> Array:
    """An odd stamp, smaller than the image, finite, of unit sum."""
    if psf.ndim != 2 or psf.shape[0] % 2 == 0 or psf.shape[1] % 2 == 0:
        raise ValueError(f"{name}: {key} must be an odd stamp, found shape {psf.shape}")
    if psf.shape[0] >= shape[0] or psf.shape[1] >= shape[1]:
        raise ValueError(f"{name}: {key} {psf.shape} must be smaller than the image {shape}")
    total = float(psf.sum())
    if not abs(total - 1) < 0.01:
        raise ValueError(f"{name}: {key} must have unit sum, found {total:.6g}")
    return psf


def psf_of(name: str, key: str, psf: Array | Callable[[float, float], Array], shape: tuple[int, int]
           ) -> Callable[[float, float], Array]:
    """A checked PSF as a callable of position."""
    if callable(psf):
        given = psf
        return lambda x, y: psf_stamp(name, key, given(x, y), shape)
    stamp = psf_stamp(name, key, psf, shape)
    return lambda x, y: stamp


def noise_of(name: str, key: str, noise: float | Callable[[float, float], float]) -> Callable[[float, float], float]:
    """A checked background rms as a callable of position."""
    if callable(noise):
        given = noise
        return lambda x, y: positive(name, key, given(x, y))
    value = positive(name, key, noise)
    return lambda x, y: value


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the public function's name before the message of a ValueError from inside."""
    try:
        yield
    except ValueError as err:
        if str(err).startswith(f"{name}:"):
            raise
        raise ValueError(f"{name}: {err}") from None
