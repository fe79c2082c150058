"""Convolution with small kernels: by transforms, directly for stamps, and with kernels that vary over the frame.

    out[y, x] = Σ_vu kernel[v, u] image[y - (v - h // 2), x - (u - w // 2)]

Kernels are odd stamps whose centre pixel is the origin; pixels beyond the edges and masked ones count as zero, so that
results within half a kernel of them lack flux (divide by the convolved good pixels where a mean is wanted). Images that
are not float32 or float64 are treated as float32. NumPy and CuPy agree within 1e-6 of Σ|kernel| max|image|.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.fft import centred_kernel, irfft2, rfft2
from seechange_mpi.gpu_kernels.tiles import cut, layout

KernelAt = Callable[[float, float], Array]


def _checked(who: str, image: Array, kernel: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Return the image, 0 where masked or not finite, and the kernel in its dtype."""
    xp = get_xp(image)
    if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"{who}: kernel must be an odd stamp, found shape {kernel.shape}")
    if mask is not None and mask.shape != image.shape:
        raise ValueError(f"{who}: mask must have the shape of image, {image.shape}, found {mask.shape}")
    data = image.astype(xp.float64 if image.dtype.type is np.float64 else xp.float32, copy=False)
    lost = ~xp.isfinite(data)
    if mask is not None:
        lost |= xp.asarray(mask)
    return xp.where(lost, data.dtype.type(0), data), xp.asarray(kernel, dtype=data.dtype)


def convolve_fft(image: Array, kernel: Array, mask: Array | None = None) -> Array:
    """Convolve an image with a kernel, or with each of several, by real transforms of overlapping tiles.

    Parameters
    ----------
    image : (ny, nx) float32 or float64
    kernel : (kh, kw) or (k, kh, kw), sides odd; centre pixel = origin. Several share the transforms of the image.
    mask : (ny, nx) bool, optional, True = counted as zero, like pixels that are not finite.

    Returns
    -------
    (ny, nx) or (k, ny, nx) of the dtype of the image. The error is about 1e-7 (float32) of the largest value nearby
    (a tile of about 500 pixels on a CPU, the frame on a GPU) times Σ|k|: next to a bright star faint pixels are less
    exact than with `convolve_direct`.

    Raises
    ------
    ValueError
        The kernel is not an odd stamp or a stack of them, or the mask has another shape.
    """
    stack = kernel[None] if kernel.ndim == 2 else kernel
    if stack.ndim != 3 or len(stack) == 0:
        raise ValueError(f"convolve_fft: kernel must be an odd stamp or a stack of them, found shape {kernel.shape}")
    data, _ = _checked("convolve_fft", image, stack[0], mask)
    xp = get_xp(data)
    sides = stack.shape[-2:]
    count, grid = layout(data.shape, max(sides) // 2, False, None, on_cpu=xp is np, least=max(sides))
    hats = [centred_kernel(xp.asarray(one, dtype=data.dtype), grid) for one in stack]
    out = xp.empty((len(hats), *data.shape), dtype=data.dtype)
    buffer = xp.zeros(grid, dtype=data.dtype)
    for tile in cut(data.shape, count, max(sides) // 2, False):
        wide, at, core = tile.slices(data.shape, grid)
        buffer[:] = 0
        buffer[at] = data[wide]
        spectrum = rfft2(buffer)
        for plane, hat in zip(out, hats, strict=True):
            plane[tile.y, tile.x] = irfft2(spectrum * hat, grid, overwrite=True)[core]
    return out[0] if kernel.ndim == 2 else out


def convolve_direct(image: Array, kernel: Array, mask: Array | None = None) -> Array:
    """Convolve small images with a kernel by summing shifted copies.

    Parameters
    ----------
    image : (..., ny, nx) float32 or float64, one image or a stack of stamps.
    kernel, mask : as for `convolve_fft`; one kernel for the whole stack.

    Returns
    -------
    (..., ny, nx) of the dtype of the image.

    Raises
    ------
    ValueError
        As `convolve_fft`.
    """
    data, k = _checked("convolve_direct", image, kernel, mask)
    xp = get_xp(data)
    ny, nx = data.shape[-2:]
    (kh, kw), weights = k.shape, asnumpy(k)
    out = xp.zeros_like(data)
    for v, u in np.argwhere(weights).tolist():
        dy, dx = v - kh // 2, u - kw // 2
        if abs(dy) >= ny or abs(dx) >= nx:
            continue
        to = (..., slice(max(dy, 0), ny + min(dy, 0)), slice(max(dx, 0), nx + min(dx, 0)))
        source = (..., slice(max(-dy, 0), ny - max(dy, 0)), slice(max(-dx, 0), nx - max(dx, 0)))
        out[to] += data[source] * weights[v, u]
    return out


def _nodes(n: int, tile: int) -> np.ndarray:
    """Positions of the kernels along an axis, ends included, at most `tile` apart."""
    return np.linspace(0, max(n - 1, 1), max(2, int(np.ceil((n - 1) / tile)) + 1))


def _ramp(nodes: np.ndarray, k: int, n: int) -> tuple[int, np.ndarray]:
    """First pixel and values of the piecewise linear function that is 1 at node k and 0 at the others."""
    first = 0 if k == 0 else int(np.floor(nodes[k - 1])) + 1
    last = n - 1 if k == len(nodes) - 1 else int(np.ceil(nodes[k + 1])) - 1
    return first, np.interp(np.arange(first, last + 1), nodes, np.eye(len(nodes))[k])


def convolve_varying(image: Array, kernel_at: KernelAt, mask: Array | None = None, *, tile: int = 256) -> Array:
    """Convolve an image with a kernel that varies over it.

    The kernel is taken at the nodes of a grid and interpolated linearly between them in x and y: the result at (x, y)
    is the sum over the four nodes around it of their weight times the image convolved with their kernel, each done by
    a transform of the tile that the node reaches. There are no joins; a kernel linear in x and y is exact, and for
    others the error is tile² / 8 times its second derivatives.

    Parameters
    ----------
    image : (ny, nx) float32 or float64
    kernel_at : callable, (x, y) -> (kh, kw) odd stamp of constant shape: the kernel of the result at (x, y), 0-based.
    mask : (ny, nx) bool, optional, as for `convolve_fft`.
    tile : int, largest distance between nodes [pix].

    Returns
    -------
    (ny, nx) of the dtype of the image.

    Raises
    ------
    ValueError
        As `convolve_fft`; the kernels differ in shape; `tile` is less than 1.
    """
    if tile < 1:
        raise ValueError(f"convolve_varying: tile must be at least 1, found {tile}")
    xp = get_xp(image)
    ny, nx = image.shape
    nodes_y, nodes_x = _nodes(ny, tile), _nodes(nx, tile)
    data, k = _checked("convolve_varying", image, kernel_at(0.0, 0.0), mask)
    half_y, half_x = k.shape[0] // 2, k.shape[1] // 2
    out = xp.zeros_like(data)
    for j, y in enumerate(nodes_y):
        y0, ramp_y = _ramp(nodes_y, j, ny)
        for i, x in enumerate(nodes_x):
            x0, ramp_x = _ramp(nodes_x, i, nx)
            if not ramp_y.size or not ramp_x.size:
                continue
            stamp = xp.asarray(kernel_at(float(x), float(y)), dtype=data.dtype)
            if stamp.shape != k.shape:
                raise ValueError(f"convolve_varying: kernel_at must give stamps of shape {k.shape}, "
                                 f"found {stamp.shape} at ({x:.0f}, {y:.0f})")
            top, left = max(y0 - half_y, 0), max(x0 - half_x, 0)
            piece = data[top: y0 + len(ramp_y) + half_y, left: x0 + len(ramp_x) + half_x]
            part = convolve_fft(piece, stamp)[y0 - top:, x0 - left:][: len(ramp_y), : len(ramp_x)]
            weight = xp.asarray((ramp_y[:, None] * ramp_x).astype(data.dtype))
            out[y0: y0 + len(ramp_y), x0: x0 + len(ramp_x)] += weight * part
    return out


def convolve_variance(variance: Array, kernel: Array, mask: Array | None = None) -> Array:
    """Variance per pixel of a convolved image whose pixels are independent: variance ⊗ kernel².

    The convolved pixels are correlated: on large scales the noise power is (Σ kernel)² times the variance. For a
    varying kernel give `convolve_varying` the variance and the squares of its kernels.

    Parameters
    ----------
    variance : (ny, nx) float32 or float64
    kernel, mask : as for `convolve_fft`; masked pixels were counted as zero and add no variance.

    Returns
    -------
    (ny, nx), not negative.
    """
    xp = get_xp(variance)
    return xp.maximum(convolve_fft(variance, kernel * kernel, mask), 0)
