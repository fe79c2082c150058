"""Images with known truth for the tests of the kernels."""

from __future__ import annotations

import numpy as np


def moffat(size: int, fwhm: float, dx: float = 0.0, dy: float = 0.0, beta: float = 3.5, sub: int = 7) -> np.ndarray:
    """Pixel-integrated Moffat profile of unit sum (of the infinite profile), centred (dx, dy) off the middle."""
    half = size // 2
    fine = (np.arange(size * sub) + 0.5) / sub - 0.5 - half
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    r2 = (fine[None, :] - dx) ** 2 + (fine[:, None] - dy) ** 2
    norm = (beta - 1) / (np.pi * alpha**2)
    v = norm * (1 + r2 / alpha**2) ** -beta
    return v.reshape(size, sub, size, sub).mean(axis=(1, 3))


def stamp(size: int, fwhm: float) -> np.ndarray:
    """Centred Moffat stamp of unit sum."""
    p = moffat(size, fwhm)
    return p / p.sum()


def add_stars(image: np.ndarray, x, y, flux, fwhm, size: int = 31) -> None:
    """Add pixel-integrated stars, normalised like `stamp`; `fwhm` is a number or one per star."""
    unit = {w: moffat(size, w).sum() for w in set(np.broadcast_to(fwhm, len(x)).tolist())}
    half = size // 2
    ny, nx = image.shape
    for xk, yk, fk, wk in zip(x, y, flux, np.broadcast_to(fwhm, len(x)), strict=True):
        i, j = round(float(xk)), round(float(yk))
        p = fk / unit[float(wk)] * moffat(size, wk, xk - i, yk - j)
        y0, y1, x0, x1 = max(j - half, 0), min(j + half + 1, ny), max(i - half, 0), min(i + half + 1, nx)
        image[y0:y1, x0:x1] += p[y0 - j + half: y1 - j + half, x0 - i + half: x1 - i + half]


def grid_positions(rng: np.random.Generator, shape: tuple[int, int], step: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions on a grid with random sub-pixel phases."""
    yy, xx = np.meshgrid(np.arange(step, shape[0] - step + 1, step), np.arange(step, shape[1] - step + 1, step),
                         indexing="ij")
    n = yy.size
    return xx.ravel() + rng.uniform(-0.5, 0.5, n), yy.ravel() + rng.uniform(-0.5, 0.5, n)
