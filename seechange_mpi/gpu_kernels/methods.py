"""The subtraction methods behind one call: the same arguments, the same result, chosen by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from seechange_mpi.gpu_kernels import checks
from seechange_mpi.gpu_kernels.alard_lupton import solve_alard_lupton
from seechange_mpi.gpu_kernels.backend import Array
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.matched import matched_subtract
from seechange_mpi.gpu_kernels.psf_model import fwhm_of
from seechange_mpi.gpu_kernels.sfft import solve_sfft
from seechange_mpi.gpu_kernels.subtraction import Subtraction
from seechange_mpi.gpu_kernels.zogy import zogy_subtract

PSFArgument = Array | Callable[[float, float], Array]
NoiseArgument = float | Callable[[float, float], float]


class Method(Protocol):
    """What every subtraction method takes; see `zogy.zogy_subtract` for the meaning."""

    def __call__(
        self, new: Array, ref: Array, psf_new: PSFArgument, psf_ref: PSFArgument, *, noise_new: NoiseArgument,
        noise_ref: NoiseArgument, flux_new: float = 1.0, flux_ref: float = 1.0, variance_new: Array | None = None,
        variance_ref: Array | None = None, sigma_x: float = 0.0, sigma_y: float = 0.0, mask: Array | None = None,
        tile: int | None = None,
    ) -> Subtraction:
        """Subtract `ref` from `new`."""
        ...


def alard_lupton_subtract(
    new: Array, ref: Array, psf_new: PSFArgument, psf_ref: PSFArgument, *, noise_new: NoiseArgument,
    noise_ref: NoiseArgument, flux_new: float = 1.0, flux_ref: float = 1.0, variance_new: Array | None = None,
    variance_ref: Array | None = None, sigma_x: float = 0.0, sigma_y: float = 0.0, mask: Array | None = None,
    tile: int | None = None, decorrelate: bool = True, kernel_degree: int = 2, background_degree: int = 1,
    **solver: Any,
) -> Subtraction:
    """Subtract with the kernel of Alard & Lupton (1998), decorrelated, with a score of unit variance.

    Parameters
    ----------
    new, ref, psf_new, psf_ref, noise_new, noise_ref, flux_new, variance_new, variance_ref, sigma_x, sigma_y, mask, tile
        As `zogy.zogy_subtract`.
    flux_ref : not used: the kernel finds the flux ratio (``solution.flux_scale``).
    decorrelate : False leaves ``difference`` the plain difference over its rms, with noise that κ correlates.
    kernel_degree, background_degree, **solver : see `alard_lupton.solve_alard_lupton`.

    Raises
    ------
    ValueError
        As `zogy.zogy_subtract` and `alard_lupton.solve_alard_lupton`.
    """
    def solve(fwhm: tuple[float, float], **variances: Array) -> KernelSolution:
        return solve_alard_lupton(new, ref, mask=mask, fwhm_new=fwhm[0], fwhm_ref=fwhm[1], kernel_degree=kernel_degree,
                                  background_degree=background_degree, **variances, **solver)

    return _subtract(
        "alard_lupton_subtract", solve, new, ref, psf_new, psf_ref, noise_new=noise_new, noise_ref=noise_ref,
        flux_new=flux_new, flux_ref=flux_ref, variance_new=variance_new, variance_ref=variance_ref, sigma_x=sigma_x,
        sigma_y=sigma_y, mask=mask, tile=tile, decorrelate=decorrelate)


def sfft_subtract(
    new: Array, ref: Array, psf_new: PSFArgument, psf_ref: PSFArgument, *, noise_new: NoiseArgument,
    noise_ref: NoiseArgument, flux_new: float = 1.0, flux_ref: float = 1.0, variance_new: Array | None = None,
    variance_ref: Array | None = None, sigma_x: float = 0.0, sigma_y: float = 0.0, mask: Array | None = None,
    tile: int | None = None, decorrelate: bool = True, kernel_degree: int = 1, background_degree: int = 1,
    half_width: int | None = None, **solver: Any,
) -> Subtraction:
    """Subtract with the delta-function kernel of SFFT (Hu et al. 2022), decorrelated, with a score of unit variance.

    Parameters
    ----------
    new, ref, psf_new, psf_ref, noise_new, noise_ref, flux_new, variance_new, variance_ref, sigma_x, sigma_y, mask, tile
        As `zogy.zogy_subtract`.
    flux_ref : brings both images to about one unit; the kernel finds the flux ratio (``solution.flux_scale``).
    decorrelate : False leaves ``difference`` the plain difference over its rms, with noise that κ correlates.
    half_width : of the kernel [pix]; default twice the larger FWHM, 5 to 12.
    kernel_degree, background_degree, **solver : see `sfft.solve_sfft`; ``convolve`` is "auto" here.

    Raises
    ------
    ValueError
        As `zogy.zogy_subtract` and `sfft.solve_sfft`.
    """
    def solve(fwhm: tuple[float, float], variance_new: Array, variance_ref: Array) -> KernelSolution:
        width = half_width if half_width is not None else min(12, max(5, round(2 * max(fwhm))))
        # the ridge of the solver is for images of one unit
        ratio = float(flux_new / flux_ref)
        solution = solve_sfft(
            new, ref * ratio, mask=mask, half_width=width, kernel_degree=kernel_degree,
            background_degree=background_degree,
            **{"convolve": "auto", "fwhm_new": fwhm[0], "fwhm_ref": fwhm[1], "variance_new": variance_new,
               "variance_ref": variance_ref * ratio**2, **solver})
        return _of_ref_times(solution, 1 / ratio)

    return _subtract(
        "sfft_subtract", solve, new, ref, psf_new, psf_ref, noise_new=noise_new, noise_ref=noise_ref,
        flux_new=flux_new, flux_ref=flux_ref, variance_new=variance_new, variance_ref=variance_ref, sigma_x=sigma_x,
        sigma_y=sigma_y, mask=mask, tile=tile, decorrelate=decorrelate)


def _of_ref_times(solution: KernelSolution, factor: float) -> KernelSolution:
    """The solution for the reference times `factor`."""
    kernel, background = (1 / factor, 1.0) if solution.convolved == "ref" else (factor, factor)
    scale = solution.flux_scale * kernel
    return dataclasses.replace(solution, planes=solution.planes * kernel, background=solution.background * background,
                               flux_scale=scale, figures={**solution.figures, "flux_scale": scale})


METHODS: dict[str, Method] = {
    "zogy": zogy_subtract, "alard_lupton": alard_lupton_subtract, "sfft": sfft_subtract}
"""By the name that the configuration uses."""


def _subtract(
    name: str, solve: Callable[..., KernelSolution], new: Array, ref: Array, psf_new: PSFArgument,
    psf_ref: PSFArgument, *, noise_new: NoiseArgument, noise_ref: NoiseArgument, flux_new: float, flux_ref: float,
    variance_new: Array | None, variance_ref: Array | None, sigma_x: float, sigma_y: float, mask: Array | None,
    tile: int | None, decorrelate: bool,
) -> Subtraction:
    """Check, find the kernel with `solve` (FWHM of both images, variances by name), apply it."""
    checks.image_pair(name, new, ref, mask=mask, variance_new=variance_new, variance_ref=variance_ref)
    for key, value in (("flux_new", flux_new), ("flux_ref", flux_ref)):
        checks.positive(name, key, value)
    for key, value in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
        checks.not_negative(name, key, value)
    x, y = (new.shape[1] - 1) / 2, (new.shape[0] - 1) / 2
    known = {}
    for key, image, noise, variance in (("new", new, noise_new, variance_new), ("ref", ref, noise_ref, variance_ref)):
        rms = checks.noise_of(name, f"noise_{key}", noise)(x, y)
        known[f"variance_{key}"] = image + rms**2 if variance is None else variance
    fwhm = tuple(float(fwhm_of(checks.psf_of(name, key, psf, new.shape)(x, y)))
                 for key, psf in (("psf_new", psf_new), ("psf_ref", psf_ref)))
    with checks.named(name):
        solution = solve(fwhm, **known)
    return matched_subtract(
        new, ref, psf_new, solution, noise_new=noise_new, noise_ref=noise_ref, flux_new=flux_new,
        variance_new=variance_new, variance_ref=variance_ref, sigma_x=sigma_x, sigma_y=sigma_y, mask=mask,
        decorrelate=decorrelate, tile=tile, name=name)
