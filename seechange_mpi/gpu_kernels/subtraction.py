"""What every subtraction method returns."""

from __future__ import annotations

from dataclasses import dataclass

from seechange_mpi.gpu_kernels.backend import Array
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution


@dataclass
class Subtraction:
    """Products of a subtraction; images are (ny, nx) of the inputs' precision, NaN where masked.

    Attributes
    ----------
    difference : D, unit variance on empty sky [sigma]; D ≈ flux_zero_point · f ⊗ psf + noise, and the noise is white
        unless the method was told to leave it correlated.
    psf : (n, n), P_D at the centre of the frame, centred, unit sum, n odd.
    score : S, the matched filter of D.
    score_corr : S_corr, unit variance everywhere, bright stars included [sigma].
    flux, flux_err : estimate of f at each pixel, and its error (the units of f: image / F).
    translient : squared gradient statistic of S, chi-squared with two degrees of freedom on empty sky;
        large where a source moved (after Springer et al. 2024, arXiv:2403.09771).
    flux_zero_point : F_D at the centre of the frame.
    flux_zero_points : (ny, nx) F_D at each pixel where PSF or noise vary over the frame, else None.
    solution : the matching kernel, for methods that fit one.
    """

    difference: Array
    psf: Array
    score: Array
    score_corr: Array
    flux: Array
    flux_err: Array
    translient: Array
    flux_zero_point: float
    flux_zero_points: Array | None = None
    solution: KernelSolution | None = None
