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
    α = S / F_S,  σ_α = √V_S / F_S                                             eq. 41–43

F_S is the response to a unit transient; where part of its PSF is masked, only the rest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.fft import centred_kernel, good_size, irfft2, rfft2

_FLOOR = 1e-5
"""Weight of the delta function that stands for both PSFs where they have no power."""


@dataclass
class ZogyResult:
    """Products of `zogy_subtract`; images are (ny, nx), NaN where masked.

    Attributes
    ----------
    difference : D, white with unit variance on empty sky [sigma]; D ≈ flux_zero_point · f ⊗ psf + noise.
    psf : (n, n), P_D, centred, unit sum, n odd.
    score : S, the matched filter of D.
    score_corr : S_corr, unit variance everywhere [sigma].
    flux, flux_err : estimate of f at each pixel, and its error (the units of f: image / F).
    translient : squared gradient statistic of S, chi-squared with two degrees of freedom on empty sky;
        large where a source moved (after Springer et al. 2024, arXiv:2403.09771).
    flux_zero_point : F_D.
    """

    difference: Array
    psf: Array
    score: Array
    score_corr: Array
    flux: Array
    flux_err: Array
    translient: Array
    flux_zero_point: float


def zogy_subtract(
    new: Array, ref: Array, psf_new: Array, psf_ref: Array, *,
    noise_new: float, noise_ref: float, flux_new: float = 1.0, flux_ref: float = 1.0,
    variance_new: Array | None = None, variance_ref: Array | None = None,
    sigma_x: float = 0.0, sigma_y: float = 0.0, mask: Array | None = None,
) -> ZogyResult:
    """Subtract `ref` from `new`.

    Parameters
    ----------
    new, ref : (ny, nx) float, registered, background-subtracted, in any one unit each.
    psf_new, psf_ref : (n, n) odd, centred, unit sum, smaller than the image.
    noise_new, noise_ref : float
        Background rms, read noise included, in each image's unit.
    flux_new, flux_ref : float
        F_n, F_r: counts of each image per unit of f.
    variance_new, variance_ref : (ny, nx), optional
        Total variance per pixel. Default: noise² + image, right for images in electrons. Not clipped before
        the convolution: the mean over the kernel is what matters.
    sigma_x, sigma_y : float
        Rms of the relative astrometric error [pix].
    mask : (ny, nx) bool, optional
        True = bad in either image: left out of both (its value and variance count as zero, so that it adds
        neither signal nor noise elsewhere) and NaN in all outputs. Non-finite pixels are masked as well.
        Outside the image the same holds, so that S_corr keeps unit variance up to the edge.

    Raises
    ------
    ValueError
        Shapes do not fit, a PSF is even or larger than the image, a noise or flux is not positive, or no
        pixel is good.
    """
    xp = get_xp(new, ref)
    _check(new, ref, psf_new, psf_ref, noise_new, noise_ref, flux_new, flux_ref)
    real = xp.float32 if new.dtype == xp.float32 else xp.float64
    bad = ~(xp.isfinite(new) & xp.isfinite(ref))
    if mask is not None:
        bad |= mask
    if bool(bad.all()):
        raise ValueError("zogy_subtract: no pixel is good in both images")
    n = xp.where(bad, 0, new).astype(real)
    r = xp.where(bad, 0, ref).astype(real)
    v_n = _variance(variance_new, n, noise_new, bad, xp)
    v_r = _variance(variance_ref, r, noise_ref, bad, xp)
    ny, nx = n.shape
    pad = max(*psf_new.shape, *psf_ref.shape)
    shape = (good_size(ny + pad), good_size(nx + pad))
    view = (slice(0, ny), slice(0, nx))

    p_n, p_r = (centred_kernel(xp.asarray(p, dtype=real), shape) for p in (psf_new, psf_ref))
    abs_n, abs_r = _abs2(p_n), _abs2(p_r)
    fn, fr = float(flux_new), float(flux_ref)
    den = real(noise_new**2 * fr**2) * abs_r + real(noise_ref**2 * fn**2) * abs_n
    # where both PSFs have no power there is no information either
    den = xp.maximum(den, real(1e-12) * den[0, 0])
    k_n = real(fn * fr**2) * xp.conj(p_n) * abs_r / den
    k_r = real(fr * fn**2) * xp.conj(p_r) * abs_n / den
    spectrum = real(fn**2 * fr**2) * abs_n * abs_r / den
    f_s = _mean_over_plane(spectrum, shape, xp)
    f_d = fr * fn / float(np.sqrt(noise_new**2 * fr**2 + noise_ref**2 * fn**2))

    n_hat, r_hat = rfft2(n, shape), rfft2(r, shape)
    d, psf_hat = _difference(n_hat, r_hat, p_n, p_r, (fn, fr), (noise_new, noise_ref), shape, xp)
    d = d[view].astype(real)
    s_n = irfft2(k_n * n_hat, shape)[view]
    s_r = irfft2(k_r * r_hat, shape)[view]
    s = s_n - s_r
    kernel_n = irfft2(k_n, shape)
    seen = _seen(bad, kernel_n, p_n, real(fn), f_s, shape, xp)[view]
    k_n2, k_r2 = rfft2(kernel_n**2), rfft2(irfft2(k_r, shape) ** 2)
    v_s = irfft2(rfft2(v_n, shape) * k_n2 + rfft2(v_r, shape) * k_r2, shape)[view]
    floor = 1e-3 * float(xp.median(v_s[~bad][::7]))
    v_s = xp.maximum(v_s, floor)
    flux_err = xp.sqrt(v_s) / seen
    if sigma_x or sigma_y:
        for part in (s_n, s_r):
            gy, gx = xp.gradient(part)
            v_s = v_s + real(sigma_x**2) * gx**2 + real(sigma_y**2) * gy**2
    moving = _translient(s, v_s, spectrum, shape, f_s, xp)
    return ZogyResult(
        difference=_masked(d, bad, xp), psf=_psf_stamp(psf_hat, shape, pad, xp), score=_masked(s, bad, xp),
        score_corr=_masked(s / xp.sqrt(v_s), bad, xp), flux=_masked(s / seen, bad, xp),
        flux_err=_masked(flux_err, bad, xp), translient=_masked(moving, bad, xp),
        flux_zero_point=f_d)


def _difference(n_hat: Array, r_hat: Array, p_n: Array, p_r: Array, flux: tuple[float, float],
                noise: tuple[float, float], shape: tuple[int, int], xp: Any) -> tuple[Array, Array]:
    """D of eq. 13 and the transform of F_D-normalised P_D of eq. 14.

    Where both PSFs have no power their ratio, and with it the kernel of D, would be rounding noise that spreads
    sharp edges over the whole image. A delta function of weight `_FLOOR` added to both makes D there the scaled
    plain difference: still white, of unit variance, and local.
    """
    real = p_n.real.dtype.type
    (fn, fr), (sn, sr) = flux, noise
    q_n, q_r = p_n + real(_FLOOR), p_r + real(_FLOOR)
    root = xp.sqrt(real((sn * fr) ** 2) * _abs2(q_r) + real((sr * fn) ** 2) * _abs2(q_n))
    q_n *= real(fn) / root
    q_r *= real(fr) / root
    d = irfft2(q_r * n_hat - q_n * r_hat, shape)
    f_d = fr * fn / float(np.sqrt(sn**2 * fr**2 + sr**2 * fn**2))
    return d, q_r * p_n * real(fn / f_d)


def _seen(bad: Array, kernel_n: Array, p_n: Array, fn: Any, f_s: float, shape: tuple[int, int], xp: Any) -> Array:
    """F_S at each pixel: the score of a unit transient there, what is masked or off the image left out.

    S(x) of a transient at x is Σ_v k_n(v) F_n P_n(−v) good(x − v), which is F_S where every pixel is good. Held
    above a tenth of F_S.
    """
    response = fn * kernel_n * irfft2(xp.conj(p_n), shape)
    seen = irfft2(rfft2((~bad).astype(response.dtype), shape) * rfft2(response), shape)
    return xp.maximum(seen, response.dtype.type(0.1 * f_s))


def _check(new: Array, ref: Array, psf_new: Array, psf_ref: Array, *positive: float) -> None:
    if new.ndim != 2 or new.shape != ref.shape:
        raise ValueError("zogy_subtract: new and ref must be images of one shape, "
                         f"found {new.shape} and {ref.shape}")
    for name, p in (("psf_new", psf_new), ("psf_ref", psf_ref)):
        if p.ndim != 2 or p.shape[0] % 2 == 0 or p.shape[1] % 2 == 0:
            raise ValueError(f"zogy_subtract: {name} must be an odd stamp, found shape {p.shape}")
        if p.shape[0] >= new.shape[0] or p.shape[1] >= new.shape[1]:
            raise ValueError(f"zogy_subtract: {name} {p.shape} must be smaller than the image {new.shape}")
    for name, value in zip(("noise_new", "noise_ref", "flux_new", "flux_ref"), positive, strict=True):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"zogy_subtract: {name} must be positive, found {value}")


def _variance(variance: Array | None, image: Array, noise: float, bad: Array, xp: Any) -> Array:
    total = image + image.dtype.type(noise**2) if variance is None else xp.asarray(variance, dtype=image.dtype)
    return xp.where(bad | ~xp.isfinite(total), 0, total).astype(image.dtype)


def _abs2(a: Array) -> Array:
    return a.real**2 + a.imag**2


def _mean_over_plane(half: Array, shape: tuple[int, int], xp: Any) -> float:
    """Mean over the full Fourier plane of a real, symmetric quantity given on the half plane."""
    weight = xp.full(half.shape[1], 2.0)
    weight[0] = 1.0
    if shape[1] % 2 == 0:
        weight[-1] = 1.0
    return float((half.sum(axis=0, dtype=xp.float64) * weight).sum() / (shape[0] * shape[1]))


def _psf_stamp(psf_hat: Array, shape: tuple[int, int], pad: int, xp: Any) -> Array:
    """Centre P_D, cut it out with odd size, unit sum."""
    size = min(pad + pad // 2, min(shape) - 1) // 2 * 2 + 1
    full = xp.roll(irfft2(psf_hat, shape), (size // 2, size // 2), axis=(0, 1))[:size, :size]
    return (full / full.sum()).astype(full.dtype)


def _masked(image: Array, bad: Array, xp: Any) -> Array:
    out = image.astype(image.dtype, copy=True)
    out[bad] = xp.nan
    return out


def _translient(s: Array, v_s: Array, spectrum: Array, shape: tuple[int, int], f_s: float, xp: Any) -> Array:
    """(∂S/∂x)² + (∂S/∂y)², each over its noise variance; S has power spectrum `spectrum` on empty sky."""
    ky = xp.sin(2 * np.pi * xp.fft.fftfreq(shape[0]))[:, None]
    kx = xp.sin(2 * np.pi * xp.fft.rfftfreq(shape[1]))[None, :]
    var_y = _mean_over_plane(spectrum * ky**2, shape, xp)
    var_x = _mean_over_plane(spectrum * kx**2, shape, xp)
    gy, gx = xp.gradient(s)
    return ((gx**2 / var_x + gy**2 / var_y) * (f_s / v_s)).astype(s.dtype)
