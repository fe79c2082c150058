"""Proper image subtraction (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27; "ZOGY").

Model: N = F_n f ⊗ P_n + noise, R = F_r f ⊗ P_r + noise, with unit-sum PSFs and white background noise of rms
σ_n, σ_r. With hats for Fourier transforms:

    den  = σ_n² F_r² |P̂_r|² + σ_r² F_n² |P̂_n|²
    D̂    = (F_r P̂_r N̂ − F_n P̂_n R̂) / √den                                   eq. 13: white, unit variance
    F_D  = F_r F_n / √(σ_n² F_r² + σ_r² F_n²)                                  eq. 15
    P̂_D  = F_r F_n P̂_r P̂_n / (F_D √den)                                       eq. 14
    Ŝ    = F_D D̂ P̂_D* = k̂_n N̂ − k̂_r R̂                                         eq. 12, 17
    k̂_n  = F_n F_r² P̂_n* |P̂_r|² / den,  k̂_r = F_r F_n² P̂_r* |P̂_n|² / den      eq. 28, 29
    V_S  = V_N ⊗ k_n² + V_R ⊗ k_r² + astrometric terms                         eq. 26, 27, 30–33
    S_corr = S / √V_S                                                          eq. 25
    α = S / F_S,  σ_α = √(V_N ⊗ k_n² + V_R ⊗ k_r²) / F_S                       eq. 41–43

F_S is the response to a unit transient; where part of its PSF is masked, only the rest counts. The filters are in
`difference_filter`, their application in `difference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seechange_mpi.gpu_kernels import checks
from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.difference import Pair, ReferenceCache, subtract
from seechange_mpi.gpu_kernels.difference_filter import FLOOR, DifferenceFilter, matched_filter
from seechange_mpi.gpu_kernels.fft import centred_kernel
from seechange_mpi.gpu_kernels.subtraction import Subtraction

ZogyResult = Subtraction

OfPosition = Callable[[float, float], Array]
"""(x, y) of pixels -> the odd, centred PSF stamp there, of one size everywhere."""

NoiseOfPosition = Callable[[float, float], float]
"""(x, y) of pixels -> the background rms there."""


def zogy_subtract(
    new: Array, ref: Array, psf_new: Array | OfPosition, psf_ref: Array | OfPosition, *,
    noise_new: float | NoiseOfPosition, noise_ref: float | NoiseOfPosition, flux_new: float = 1.0,
    flux_ref: float = 1.0, variance_new: Array | None = None, variance_ref: Array | None = None,
    sigma_x: float = 0.0, sigma_y: float = 0.0, mask: Array | None = None, tile: int | None = None,
    reference_cache: ReferenceCache | None = None,
) -> ZogyResult:
    """Subtract `ref` from `new`.

    Parameters
    ----------
    new, ref : (ny, nx) float, registered, background-subtracted, in any one unit each.
    psf_new, psf_ref : (n, n) odd, centred, unit sum, smaller than the image; or callables (x, y) -> stamp for a PSF
        that varies over the frame, asked at the centre of each tile.
    noise_new, noise_ref : float
        Background rms, read noise included, in each image's unit; or callables (x, y) -> rms.
    flux_new, flux_ref : float
        F_n, F_r: counts of each image per unit of f.
    variance_new, variance_ref : (ny, nx), optional
        Total variance per pixel. Default: noise² + image, right for images in electrons. Not clipped before
        the convolution: the mean over the kernel is what matters.
    sigma_x, sigma_y : float
        Rms of the relative astrometric error [pix].
    mask : (ny, nx) bool, optional
        True = bad in either image: left out of both (its value and variance count as zero, so that it adds
        neither signal nor noise elsewhere) and NaN in all outputs. Where both images show light around them, as on
        a star crossed by a bad column, masked pixels are filled from the rest of both images instead (`fill`): the
        star cancels, and S_corr and the flux of a transient beside them stay right, with larger errors. Non-finite
        pixels of an image or a variance are masked as well. Outside the image zeros hold as well, so that S_corr keeps
        unit variance up to the edge.
    tile : int, optional
        About the side of the tiles. Where callables are given, PSF and noise are constant in a tile (default 512) and
        neighbouring tiles are cross-faded over 32 pixels; else the result does not depend on it (default: what suits
        a CPU's cache; on a GPU the whole frame unless that is larger than 6144 pixels).
    reference_cache : optional
        Keeps the reference's transforms for the next exposure on the same grid.

    Returns
    -------
    ZogyResult
        NumPy and CuPy agree to 2e-3 in ``score_corr`` and ``difference`` [sigma] in float32, 1e-9 in float64.

    Raises
    ------
    ValueError
        Shapes do not fit, a PSF is even or larger than the image, a noise, flux or tile is not positive,
        or no pixel is good.

    Examples
    --------
    A transient of 2000 electrons at (40, 60) on two images of seeing 4 and 3 pixels:

    >>> import numpy as np
    >>> from seechange_mpi.gpu_kernels import zogy_subtract
    >>> rng = np.random.default_rng(1)
    >>> r2 = np.hypot(*np.mgrid[-12:13, -12:13]) ** 2
    >>> psf_new, psf_ref = (np.exp(-4 * np.log(2) * r2 / fwhm**2) for fwhm in (4.0, 3.0))
    >>> psf_new, psf_ref = psf_new / psf_new.sum(), psf_ref / psf_ref.sum()
    >>> new, ref = rng.normal(0, 10, (2, 128, 128)).astype(np.float32)
    >>> new[48:73, 28:53] += 2000 * psf_new
    >>> result = zogy_subtract(new, ref, psf_new, psf_ref, noise_new=10, noise_ref=10)
    >>> y, x = np.unravel_index(np.argmax(result.score_corr), new.shape)
    >>> int(x), int(y)
    (40, 60)
    >>> bool(abs(result.flux[y, x] - 2000) < 4 * result.flux_err[y, x])
    True
    """
    name = "zogy_subtract"
    checks.image_pair(name, new, ref, mask=mask, variance_new=variance_new, variance_ref=variance_ref)
    for key, value in (("flux_new", flux_new), ("flux_ref", flux_ref)):
        checks.positive(name, key, value)
    for key, value in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
        checks.not_negative(name, key, value)
    psf_n, psf_r = (checks.psf_of(name, key, p, new.shape)
                    for key, p in (("psf_new", psf_new), ("psf_ref", psf_ref)))
    noise_n, noise_r = (checks.noise_of(name, key, v)
                        for key, v in (("noise_new", noise_new), ("noise_ref", noise_ref)))
    xp = get_xp(new, ref)
    ratio = float(flux_new / flux_ref)

    def filter_at(x: float, y: float, shape: tuple[int, int], real: Any) -> DifferenceFilter:
        # a_n = P_r, a_r = (F_n / F_r) P_n
        p_n, p_r = (centred_kernel(xp.asarray(p(x, y), dtype=real), shape) for p in (psf_n, psf_r))
        return matched_filter(p_r, real(ratio) * p_n, p_n, shape, noise_new=noise_n(x, y), noise_ref=noise_r(x, y),
                              floor_n=FLOOR, floor_r=FLOOR * ratio)

    varying = any(callable(v) for v in (psf_new, psf_ref, noise_new, noise_ref))
    centre = (new.shape[1] - 1) / 2, (new.shape[0] - 1) / 2
    size = max(max(psf_n(*centre).shape), max(psf_r(*centre).shape))
    pair = Pair(new, ref, variance_new, variance_ref, noise_n, noise_r, float(flux_new), float(sigma_x),
                float(sigma_y), mask)
    with checks.named(name):
        return subtract(pair, filter_at, varying=varying, psf_size=size, tile=tile, cache=reference_cache)
