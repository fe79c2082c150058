"""Cut many stamps at once."""

from __future__ import annotations

from typing import Any

from seechange_mpi.gpu_kernels.backend import Array, get_xp


def cut_stamps(image: Array, x: Array, y: Array, size: int, fill: Any = 0) -> tuple[Array, Array]:
    """Return stamps of `size` × `size` pixels centred on the pixels (x, y), and where they lie inside.

    Parameters
    ----------
    image : (ny, nx)
    x, y : (n,) int, centre pixels (0-based); may lie outside.
    size : int, odd.
    fill : value of pixels off the image.

    Returns
    -------
    stamps : (n, size, size) of the image's dtype;  inside : (n, size, size) bool.
    """
    index, inside = stamp_index(image.shape, get_xp(image).asarray(x), y, size)
    return take_stamps(image, index, inside, fill), inside


def stamp_index(shape: tuple[int, ...], x: Array, y: Array, size: int) -> tuple[Array, Array]:
    """Return (n, size, size): places of the stamps' pixels in the flattened image, and whether they lie inside.

    `x` decides the array module. Stamps at positions that are not finite lie outside.
    """
    xp = get_xp(x)
    half = size // 2
    offset = xp.arange(-half, half + 1)
    ny, nx = shape
    # held near the image: what is far away would not fit into integers
    column, row = (xp.where(xp.isfinite(c), xp.clip(c, -4 * size, n + 4 * size), -4 * size).astype(xp.int64)[:, None]
                   + offset[None, :] for c, n in ((x, nx), (xp.asarray(y), ny)))
    inside = ((row >= 0) & (row < ny))[:, :, None] & ((column >= 0) & (column < nx))[:, None, :]
    return xp.clip(row, 0, ny - 1)[:, :, None] * nx + xp.clip(column, 0, nx - 1)[:, None, :], inside


def take_stamps(image: Array, index: Array, inside: Array, fill: Any = 0) -> Array:
    """Return the pixels at `stamp_index`, `fill` where they lie outside: (n, size, size) of the image's dtype."""
    xp = get_xp(image)
    return xp.where(inside, xp.take(image.ravel(), index), xp.asarray(fill, dtype=image.dtype))
