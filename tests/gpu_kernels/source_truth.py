"""Scenes of isolated stars on white noise, with the Cramér–Rao limits of what can be measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from kernel_truth import moffat, stamp


@dataclass
class StarScene:
    """Stars with S/N of 10 to 200, every one of a few sub-pixel phases many times; limits are 1-sigma errors."""

    data: np.ndarray
    variance: np.ndarray
    psf: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    snr: np.ndarray
    flux_limit: np.ndarray
    x_limit: np.ndarray
    y_limit: np.ndarray


def profiles(size: int, fwhm: float, dx: float, dy: float, eps: float = 2e-3) -> np.ndarray:
    """Unit-flux Moffat star at (dx, dy) and its derivatives with respect to dx and dy: (3, size, size)."""
    norm = moffat(size, fwhm).sum()
    slope = [(moffat(size, fwhm, dx + ex, dy + ey) - moffat(size, fwhm, dx - ex, dy - ey)) / (2 * eps)
             for ex, ey in ((eps, 0.0), (0.0, eps))]
    return np.stack([moffat(size, fwhm, dx, dy), *slope]) / norm


def star_scene(fwhm: float, seed: int, *, phases: int = 30, each: int = 14, snr: tuple[float, float] = (10.0, 200.0),
               noise: float = 10.0) -> StarScene:
    """A grid of `phases` × `each` stars. The S/N is that of the flux with the position known."""
    rng = np.random.default_rng(seed)
    size = 2 * int(np.ceil(3.5 * fwhm)) + 1
    half, step = size // 2, size + 3
    n = phases * each
    side = int(np.ceil(np.sqrt(n)))
    place = rng.permutation(side * side)[:n]
    px, py = place % side * step + half + 2, place // side * step + half + 2
    s = np.exp(rng.uniform(*np.log(snr), n))
    image = np.zeros((side * step + 3, side * step + 3))
    x, y, flux = np.empty(n), np.empty(n), np.empty(n)
    limit = np.empty((3, n))
    for k in range(phases):
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        p = profiles(size, fwhm, dx, dy)
        error = noise / np.sqrt((p[0] ** 2).sum())
        for i in range(k * each, (k + 1) * each):
            x[i], y[i], flux[i] = px[i] + dx, py[i] + dy, s[i] * error
            a = (p * np.array([1.0, flux[i], flux[i]])[:, None, None]).reshape(3, -1)
            limit[:, i] = noise * np.sqrt(np.diag(np.linalg.inv(a @ a.T)))
            image[py[i] - half: py[i] + half + 1, px[i] - half: px[i] + half + 1] += flux[i] * p[0]
    data = (image + rng.normal(0, noise, image.shape)).astype(np.float32)
    return StarScene(data, np.full(data.shape, noise**2, np.float32), stamp(size, fwhm), x, y, flux, s, *limit)
