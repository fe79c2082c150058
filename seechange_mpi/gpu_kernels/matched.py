"""Subtraction with a matching kernel κ(x, y): I ≈ κ ⊗ T + B, whoever found it (`alard_lupton`, `sfft`).

With the reference convolved, D_raw = N − κ ⊗ R − B; with the new image convolved, D_raw = κ ⊗ N + B − R. Its noise is
correlated by κ. In tiles, cross-faded, D_raw is decorrelated (DMTN-021, Reiss & Lupton 2016; the filter
ψ̂ ∝ 1/√(σ_n² |â_n|² + σ_r² |â_r|²) of `difference_filter`), and the score is the matched filter of D with the variance
of both images carried through the same filters: it has unit variance with or without decorrelation.

The filters of a tile are those of the κ_c at its centre. The light of the sources is convolved with the κ of each
pixel nevertheless: (κ(x, y) − κ_c) ⊗ T, a sum over the terms of the polynomial, is taken off with the background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels import checks, polynomials
from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.convolve import convolve_fft
from seechange_mpi.gpu_kernels.difference import Pair, subtract
from seechange_mpi.gpu_kernels.difference_filter import DifferenceFilter, matched_filter
from seechange_mpi.gpu_kernels.fft import centred_kernel
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.subtraction import Subtraction

OfPosition = Callable[[float, float], Array]


def matched_subtract(
    new: Array, ref: Array, psf_new: Array | OfPosition, solution: KernelSolution, *,
    noise_new: float | Callable[[float, float], float], noise_ref: float | Callable[[float, float], float],
    flux_new: float = 1.0, variance_new: Array | None = None, variance_ref: Array | None = None,
    sigma_x: float = 0.0, sigma_y: float = 0.0, mask: Array | None = None, decorrelate: bool = True,
    tile: int | None = None, name: str = "matched_subtract",
) -> Subtraction:
    """Subtract with a matching kernel.

    Parameters
    ----------
    new, ref, noise_new, noise_ref, flux_new, variance_new, variance_ref, sigma_x, sigma_y, mask, tile
        As `zogy.zogy_subtract`.
    psf_new : (n, n) odd, centred, unit sum; or a callable (x, y) -> stamp.
    solution : the matching kernel.
    decorrelate : False leaves ``difference`` the plain difference over its rms, with noise that κ correlates.
    name : the public function, for messages.

    Raises
    ------
    ValueError
        As `zogy.zogy_subtract`; or the kernel is larger than the image.
    """
    checks.image_pair(name, new, ref, mask=mask, variance_new=variance_new, variance_ref=variance_ref)
    checks.positive(name, "flux_new", flux_new)
    for key, value in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
        checks.not_negative(name, key, value)
    psf = checks.psf_of(name, "psf_new", psf_new, new.shape)
    noise_n, noise_r = (checks.noise_of(name, key, v)
                        for key, v in (("noise_new", noise_new), ("noise_ref", noise_ref)))
    if max(solution.planes.shape[1:]) >= min(new.shape):
        raise ValueError(f"{name}: the kernel {solution.planes.shape[1:]} must be smaller than the image {new.shape}")
    of_ref = solution.convolved == "ref"
    kernel = _Kernel(solution, new, ref, mask)

    def filter_at(x: float, y: float, shape: tuple[int, int], real: Any) -> DifferenceFilter:
        xp = get_xp(new, ref)
        p_n = centred_kernel(xp.asarray(psf(x, y), dtype=real), shape)
        convolved = centred_kernel(xp.asarray(solution.kernel_at(x, y), dtype=real), shape)
        a_n, a_r = (xp.ones_like(convolved), convolved) if of_ref else (convolved, xp.ones_like(convolved))
        return matched_filter(a_n, a_r, p_n, shape, noise_new=noise_n(x, y), noise_ref=noise_r(x, y),
                              decorrelate=decorrelate)

    varying = bool(kernel.changes) or any(callable(v) for v in (psf_new, noise_new, noise_ref))
    size = max(psf((new.shape[1] - 1) / 2, (new.shape[0] - 1) / 2).shape[0], solution.planes.shape[1])
    # new − B, or ref − B
    pair = Pair(new, ref, variance_new, variance_ref, noise_n, noise_r, float(flux_new), float(sigma_x),
                float(sigma_y), mask, solution.background_at, background_of_ref=not of_ref,
                rest=kernel.rest if kernel.changes else None)
    with checks.named(name):
        result = subtract(pair, filter_at, varying=varying, psf_size=size, tile=tile)
    result.solution = solution
    return result


class _Kernel:
    """What of κ changes over a tile.

    Attributes
    ----------
    changes : (i, j, planes[p] ⊗ T) of each term u^i v^j that varies; empty for a constant kernel.
    """

    def __init__(self, solution: KernelSolution, new: Array, ref: Array, mask: Array | None) -> None:
        self.solution, self.xp = solution, get_xp(new, ref)
        self.changes: list[tuple[int, int, Array]] = []
        terms = [(power, plane) for power, plane in zip(polynomials.powers(solution.degree), solution.planes,
                                                        strict=True) if power != (0, 0) and np.any(plane)]
        if terms:
            bad = ~self.xp.isfinite(new + ref)
            if mask is not None:
                bad |= mask
            image = ref if solution.convolved == "ref" else new
            convolved = convolve_fft(image, np.stack([plane for _, plane in terms]), bad)
            self.changes = [(i, j, plane) for ((i, j), _), plane in zip(terms, convolved, strict=True)]

    def rest(self, part: tuple[slice, slice], x: float, y: float) -> Array:
        """(κ(pixel) − κ(x, y)) ⊗ T on a part of the frame."""
        xp, s = self.xp, self.solution
        real = self.changes[0][2].dtype.type
        u0, v0 = (x - s.x0) / s.x_scale, (y - s.y0) / s.y_scale
        v, u = ((xp.arange(at.start, at.stop) - zero) / scale
                for at, zero, scale in zip(part, (s.y0, s.x0), (s.y_scale, s.x_scale), strict=True))
        total: Array = real(0)
        for i, j, convolved in self.changes:
            weight = (u**i).astype(real)[None, :] * (v**j).astype(real)[:, None]
            weight -= real(u0**i * v0**j)
            weight *= convolved[part]
            total = total + weight
        return total
