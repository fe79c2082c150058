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
    xp = get_xp(image)
    half = size // 2
    offset = xp.arange(-half, half + 1)
    yy = xp.asarray(y).astype(int)[:, None] + offset[None, :]
    xx = xp.asarray(x).astype(int)[:, None] + offset[None, :]
    ny, nx = image.shape
    inside = ((yy >= 0) & (yy < ny))[:, :, None] & ((xx >= 0) & (xx < nx))[:, None, :]
    stamps = image[xp.clip(yy, 0, ny - 1)[:, :, None], xp.clip(xx, 0, nx - 1)[:, None, :]]
    return xp.where(inside, stamps, xp.asarray(fill, dtype=image.dtype)), inside
