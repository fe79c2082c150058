"""Cosmic rays in a single exposure: Laplacian edge detection (van Dokkum 2001, PASP 113, 1420)."""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp

_LAPLACE = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=np.float32) / 4.0


def detect_cosmics(
    data: Array, variance: Array, mask: Array, *, sigma: float = 5.0, contrast: float = 5.0, grow: float = 0.5,
    iterations: int = 3,
) -> Array:
    """Return True on pixels hit by cosmic rays.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted.
    variance : (ny, nx) float32, total variance.
    mask : (ny, nx) bool, True = already bad (never returned).
    sigma : float
        Least significance of the Laplacian of the twice sub-sampled image, fine structure removed.
    contrast : float
        Least ratio of the Laplacian to the fine structure (difference of 3- and 7-pixel medians); sampled
        stars (FWHM of 2 pixels or more) stay below about 3.
    grow : float
        Neighbours of a hit need only this fraction of `sigma`.
    """
    d = np.where(asnumpy(mask), 0, asnumpy(data)).astype(np.float32)
    noise = np.sqrt(np.maximum(asnumpy(variance), 1e-12)).astype(np.float32)
    bad = asnumpy(mask)
    found = np.zeros(d.shape, bool)
    for _ in range(iterations):
        big = np.repeat(np.repeat(d, 2, axis=0), 2, axis=1)
        lap = np.maximum(scipy.ndimage.convolve(big, _LAPLACE, mode="nearest"), 0)
        lap = lap.reshape(d.shape[0], 2, d.shape[1], 2).mean(axis=(1, 3)) * 2.0
        s = lap / (2.0 * noise)
        s = s - scipy.ndimage.median_filter(s, 5)
        m3 = scipy.ndimage.median_filter(d, 3)
        fine = np.maximum(m3 - scipy.ndimage.median_filter(m3, 7), 0.01 * noise) / noise
        hit = (s > sigma) & (s / fine > contrast) & ~bad
        near = scipy.ndimage.binary_dilation(hit, structure=np.ones((3, 3))) & ~bad
        hit |= near & (s > sigma)
        near = scipy.ndimage.binary_dilation(hit, structure=np.ones((3, 3))) & ~bad
        hit |= near & (s > grow * sigma)
        new = hit & ~found
        if not new.any():
            break
        found |= hit
        d = np.where(found, scipy.ndimage.median_filter(np.where(found, m3, d), 5), d)
    return get_xp(data).asarray(found)
