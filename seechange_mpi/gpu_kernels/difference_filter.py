"""The linear filters that make a difference image, its score and their normalisation, in Fourier space.

Every method here is of one form: D = d_n ⊗ N − d_r ⊗ R, with (d_n, d_r) ∝ (a_n, a_r), where a_n ⊗ N and a_r ⊗ R show
the static sky alike: ZOGY has a_n = F_r P_r, a_r = F_n P_n; a matching kernel κ of the reference has a_n = δ, a_r = κ.
With N = F_n f ⊗ P_n + ε_n on a transient f, ε_n and ε_r white of rms σ_n, σ_r, and hats for Fourier transforms:

    den  = σ_n² |â_n|² + σ_r² |â_r|²                                 noise power of a_n ⊗ N − a_r ⊗ R
    d̂_n, d̂_r = (â_n, â_r) / √den                                      D white with unit variance
    F_D P̂_D  = F_n P̂_n d̂_n                                            response of D to f; P_D has unit sum
    k̂_n, k̂_r = (F_D P̂_D)* (d̂_n, d̂_r)                                  S = k_n ⊗ N − k_r ⊗ R, the matched filter of D
    F_S  = mean over the plane of k̂_n F_n P̂_n                         response of S to a unit transient

For ZOGY these are eq. 12–17, 28, 29 and 42 of Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27); for a matching kernel the
division by √den is the decorrelation of DMTN-021 (Reiss & Lupton 2016).

Single precision needs numbers near 1: the filters are made for F_n f in place of f (F_n = 1), and S and its kernels are
σ_n / F_n times those above. `difference` puts the factors back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.fft import irfft2, rfft2

FLOOR = 3e-4
"""Weight of the delta function that stands for both PSFs where they have no power."""


@dataclass
class DifferenceFilter:
    """Filters on the half plane of a `shape` grid; see the module for their meaning.

    Attributes
    ----------
    d_n, d_r, k_n, k_r : (ty, tx // 2 + 1) complex.
    kk_n, kk_r : transforms of k_n² and k_r² (squared in image space): they carry variances to S.
    response_hat : transform of k_n(v) P_n(−v): what the pixel at offset −v from a unit transient adds to S.
    psf_hat : transform of P_D, F_D taken out.
    noise_new : σ_n, by which S is scaled.
    f_s, f_d : F_S and F_D for F_n = 1, F_S scaled as S.
    s_var : variance of S on empty sky;  gx_var, gy_var : the same of its central differences.
    """

    shape: tuple[int, int]
    d_n: Array
    d_r: Array
    k_n: Array
    k_r: Array
    kk_n: Array
    kk_r: Array
    response_hat: Array
    psf_hat: Array
    noise_new: float
    f_s: float
    f_d: float
    s_var: float
    gx_var: float
    gy_var: float


def matched_filter(
    a_n: Array, a_r: Array, p_n: Array, shape: tuple[int, int], *, noise_new: float, noise_ref: float,
    floor_n: float = 0.0, floor_r: float = 0.0, decorrelate: bool = True,
) -> DifferenceFilter:
    """Build the filters from transforms on the half plane of a `shape` grid.

    Parameters
    ----------
    a_n, a_r : (ty, tx // 2 + 1) complex, static sky alike after them.
    p_n : transform of the PSF of the new image, unit sum.
    noise_new, noise_ref : background rms σ_n, σ_r.
    floor_n, floor_r : added to a_n, a_r for D only. Where both have no power their ratio, and with it the kernel
        of D, would be rounding noise that spreads sharp edges over the whole image; a small delta function in
        both makes D there the scaled plain difference: still white, of unit variance, and local.
    decorrelate : False leaves D as a_n ⊗ N − a_r ⊗ R over its rms; S is then the matched filter for white noise,
        correctly normalised all the same, because V(S) is taken through k_n² and k_r².
    """
    xp = get_xp(a_n, a_r)
    real = a_r.real.dtype.type
    noise = _power(a_n, a_r, noise_new, noise_ref, real)
    noise = xp.maximum(noise, real(1e-12) * noise[0, 0])
    if decorrelate:
        weight: Any = 1 / noise
        q_n, q_r = _with_floor(a_n, a_r, floor_n, floor_r, real) if floor_n else (a_n, a_r)
        root = 1 / xp.sqrt(_power(q_n, q_r, noise_new, noise_ref, real))
        scale = 1 / float(noise[0, 0]) ** 0.5
    else:
        q_n, q_r = a_n, a_r
        variance = _mean_over_plane(noise, shape, xp)
        scale = 1 / np.sqrt(variance)
        weight, root = real(1 / variance), real(scale)
    d_n, d_r = q_n * root, q_r * root
    common = xp.conj(p_n * a_n)
    common *= weight * real(noise_new)
    k_n, k_r = common * a_n, common * a_r
    spectrum = _power(k_n, k_r, noise_new, noise_ref, real)
    kernel_n, kernel_r = irfft2(k_n, shape), irfft2(k_r, shape)
    response = kernel_n * irfft2(xp.conj(p_n), shape)
    f_s = float(response.sum(dtype=xp.float64))
    psf_hat = p_n * d_n
    # of the filters as they are without the floor
    f_d = float(abs(p_n[0, 0] * a_n[0, 0])) * scale
    ky = xp.sin(2 * np.pi * xp.arange(shape[0]) / shape[0]).astype(spectrum.dtype)[:, None]
    kx = xp.sin(2 * np.pi * xp.arange(shape[1] // 2 + 1) / shape[1]).astype(spectrum.dtype)[None, :]
    return DifferenceFilter(
        shape, d_n, d_r, k_n, k_r, rfft2(kernel_n**2), rfft2(kernel_r**2), rfft2(response),
        psf_hat / psf_hat[0, 0],
        noise_new, f_s, f_d,
        _mean_over_plane(spectrum, shape, xp), _mean_over_plane(spectrum * kx**2, shape, xp),
        _mean_over_plane(spectrum * ky**2, shape, xp))


def _with_floor(a_n: Array, a_r: Array, floor_n: float, floor_r: float, real: Any) -> tuple[Array, Array]:
    """a_n and a_r with the floor where both have less power than it, and the less of it the more power one has."""
    weight = real(1) + _power(a_n, a_r, 1 / floor_n, 1 / floor_r, real)
    weight = 1 / weight
    return a_n + real(floor_n) * weight, a_r + real(floor_r) * weight


def reach(filters: DifferenceFilter, tolerance: float = 1e-6) -> int:
    """Half width beyond which no filter exceeds `tolerance` of its peak; at most a quarter of the grid."""
    xp = get_xp(filters.d_n)
    ny, nx = filters.shape
    farthest = 1
    for k in (filters.d_n, filters.d_r, filters.k_n, filters.k_r):
        size = xp.abs(irfft2(k, filters.shape))
        large = size > tolerance * size.max()
        for axis, n in ((1, ny), (0, nx)):
            index = xp.arange(n)
            distance = xp.minimum(index, n - index)
            farthest = max(farthest, int((distance * large.any(axis=axis)).max()))
    return min(farthest, min(ny, nx) // 4)


def psf_stamp(filters: DifferenceFilter, size: int) -> Array:
    """P_D cut out with an odd size, centred, unit sum."""
    xp = get_xp(filters.psf_hat)
    half = min(size, min(filters.shape) - 1) // 2
    full = xp.roll(irfft2(filters.psf_hat, filters.shape), (half, half), axis=(0, 1))
    stamp = full[: 2 * half + 1, : 2 * half + 1]
    return (stamp / stamp.sum()).astype(full.dtype)


def _power(a_n: Array, a_r: Array, noise_new: float, noise_ref: float, real: Any) -> Array:
    """σ_n² |a_n|² + σ_r² |a_r|²."""
    total = a_n.real**2 + a_n.imag**2
    total *= real(noise_new**2)
    other = a_r.real**2 + a_r.imag**2
    other *= real(noise_ref**2)
    total += other
    return total


def _mean_over_plane(half: Array, shape: tuple[int, int], xp: Any) -> float:
    """Mean over the full Fourier plane of a real, symmetric quantity given on the half plane."""
    columns = half.sum(axis=0, dtype=xp.float64)
    single = columns[0] + (columns[-1] if shape[1] % 2 == 0 else 0)
    return float((2 * columns.sum() - single) / (shape[0] * shape[1]))
