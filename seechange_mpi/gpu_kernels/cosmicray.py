"""Cosmic rays in a single exposure: Laplacian edge detection (van Dokkum 2001, PASP 113, 1420).

The medians of the method are taken only around pixels whose Laplacian stands out, a few per thousand.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.lib.stride_tricks import sliding_window_view

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp

_CHUNK = 20_000


def laplacian(data: np.ndarray) -> np.ndarray:
    """Laplacian of the twice sub-sampled image, negative values cut, binned back (van Dokkum's eq. 8–10, times 2).

    A quarter of pixel p touches one vertical neighbour v and one horizontal h: its Laplacian is (2p − v − h) / 4.
    """
    padded = np.pad(data, 1, mode="edge")
    centre = 2 * data
    out = np.zeros_like(data)
    for v in (padded[:-2, 1:-1], padded[2:, 1:-1]):
        for h in (padded[1:-1, :-2], padded[1:-1, 2:]):
            out += np.maximum(centre - v - h, 0)
    return np.asarray(out / 8, dtype=data.dtype)


def _medians(image: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """Median over size × size pixels around each position (k, 2) of (y, x); the image is mirrored at its edges."""
    windows = sliding_window_view(np.pad(image, size // 2, mode="symmetric"), (size, size))
    out = np.empty(len(at), image.dtype)
    for first in range(0, len(at), _CHUNK):
        part = at[first: first + _CHUNK]
        out[first: first + _CHUNK] = np.median(windows[part[:, 0], part[:, 1]].reshape(len(part), -1), axis=1)
    return out


def _fine_structure(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Median over 3 × 3 pixels less the 7 × 7 median of such medians, at each position."""
    windows = sliding_window_view(np.pad(image, 4, mode="symmetric"), (9, 9))
    out = np.empty(len(at), image.dtype)
    for first in range(0, len(at), _CHUNK // 10):
        part = at[first: first + _CHUNK // 10]
        patch = windows[part[:, 0], part[:, 1]]
        m3 = np.median(sliding_window_view(patch, (3, 3), axis=(1, 2)).reshape(len(part), 7, 7, 9), axis=3)
        out[first: first + _CHUNK // 10] = m3[:, 3, 3] - np.median(m3.reshape(len(part), -1), axis=1)
    return out


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
    bad = asnumpy(mask)
    d = np.where(bad, 0, asnumpy(data)).astype(np.float32)
    noise = np.sqrt(np.maximum(asnumpy(variance), 1e-12)).astype(np.float32)
    found = np.zeros(d.shape, bool)
    square = np.ones((3, 3), bool)
    for _ in range(iterations):
        s = laplacian(d) / (2.0 * noise)
        # the Laplacian is positive, so taking its local median away can only lower it
        at = np.argwhere((s > grow * sigma) & ~bad)
        significance = np.zeros_like(s)
        significance[at[:, 0], at[:, 1]] = s[at[:, 0], at[:, 1]] - _medians(s, at, 5)
        strong = at[significance[at[:, 0], at[:, 1]] > sigma]
        fine = np.maximum(_fine_structure(d, strong) / noise[strong[:, 0], strong[:, 1]], 0.01)
        sharp = strong[significance[strong[:, 0], strong[:, 1]] / fine > contrast]
        hit = np.zeros_like(found)
        hit[sharp[:, 0], sharp[:, 1]] = True
        for least in (sigma, grow * sigma):
            near = scipy.ndimage.binary_dilation(hit, structure=square) & ~bad
            hit |= near & (significance > least)
        if not (hit & ~found).any():
            break
        found |= hit
        at = np.argwhere(found)
        filled = d.copy()
        filled[found] = _medians(d, at, 3)
        d[found] = _medians(filled, at, 5)
    return get_xp(data).asarray(found)
