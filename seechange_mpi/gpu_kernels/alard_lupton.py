"""The matching kernel of Alard & Lupton (1998, ApJ 503, 325; AL98) with the variation of Alard (2000, A&AS 144, 363;
AL00).

Minimises Σ [κ(x, y) ⊗ T + B(x, y) − I]² / V over stamps around stars, κ = Σ_n a_n(x, y) φ_n, φ = exp(−r²/2σ²) u^i v^j,
a_n polynomials of the position. κ is constant inside a stamp, so that every stamp gives one normal matrix and the
matrix of the frame is their sum with polynomial weights (AL00). All φ but φ_0 sum to zero and the
coefficient of φ_0 does not vary: Σκ, the flux scale, is one number (AL00).

The noise of T adds to the normal matrix, so that plain least squares makes κ smoother and Σκ smaller than they are
(for images of one FWHM: residuals of 5 % of the peak of bright stars). The last solution takes that noise out.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from seechange_mpi.gpu_kernels import alard_lupton_stamps as als
from seechange_mpi.gpu_kernels.alard_lupton_fit import STAMPS_PER_TERM, Fit, Setup, fit_direction
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

FWHM_TO_SIGMA = 1 / 2.354820045030949
NEARLY_EQUAL = 0.1
"""Relative difference of the two FWHM below which both directions are fitted."""
HOPELESS = 2.0
"""FWHM of the convolved image over that of the other above which deconvolution is refused."""
TIE = 0.02
"""Relative difference of two figures of merit below which the sharper image is convolved."""

_NAME = "solve_alard_lupton"


def default_basis(fwhm_image: float, fwhm_convolved: float) -> tuple[tuple[float, int], ...]:
    """Return the Gaussians (σ_m, 4), (0.5σ_m, 6), (w, 2) with σ_m² = |σ_I² − σ_T²|, hotpants' rule but for w.

    The first is φ_0, what κ is where the stars show nothing else. w is 2σ_m or the FWHM of the broader image,
    whichever is larger: the wings of a matching kernel are as wide as those of the PSF, not as σ_m, and a kernel
    without them gives its missing flux to the background and comes out 0.6 % low in Σκ for Moffat profiles. The
    narrower two are at least 1 and 0.7 pixel, which the pixel grid can hold; where σ_m is less than 1 pixel, a
    Gaussian of σ_m, in the end a single pixel, goes before them.
    """
    sigma_m = FWHM_TO_SIGMA * abs(fwhm_image**2 - fwhm_convolved**2) ** 0.5
    rule = ((max(sigma_m, 1.0), 4), (max(0.5 * sigma_m, 0.7), 6), (max(2 * sigma_m, fwhm_image, fwhm_convolved), 2))
    return rule if sigma_m >= 1 else ((max(sigma_m, 0.1), 0), *rule)


def solve_alard_lupton(
    new: Array, ref: Array, *, variance_new: Array, variance_ref: Array, mask: Array | None = None,
    fwhm_new: float, fwhm_ref: float, x: Array | None = None, y: Array | None = None,
    half_width: int | None = None, basis: als.Basis | None = None, kernel_degree: int = 2, background_degree: int = 1,
    constant_flux: bool = True, convolve: Literal["auto", "ref", "new"] = "auto",
    stamps_per_axis: tuple[int, int] = (10, 10), max_stamps: int = 200, clip_sigma: float = 3.0, iterations: int = 5,
) -> KernelSolution:
    """Fit κ(x, y) and B(x, y) with I ≈ κ ⊗ T + B, T being the sharper of the two images.

    Parameters
    ----------
    new, ref : (ny, nx), registered, background-subtracted (what is left of the background is fitted), any one unit.
    variance_new, variance_ref : (ny, nx), total variance of each pixel [unit²].
    mask : (ny, nx) bool, True = bad in either image.
    fwhm_new, fwhm_ref : FWHM of the PSFs [pixel].
    x, y : (n,), positions of stars to use [pixel]; default: isolated peaks of at least 20 σ in both images (10 σ if
        those are fewer than half of `max_stamps`).
    half_width : of κ [pixel]; default: 3 times the σ of the widest Gaussian, 5 to 25.
    basis : (σ, degree) of the Gaussians; default: `default_basis`.
    kernel_degree, background_degree : of the polynomials of the position. Lowered where there are fewer than
        3 stamps for each of their terms.
    constant_flux : one Σκ for the frame; else Σκ varies like the other coefficients.
    convolve : "ref", "new", or "auto": the sharper image, and where the FWHM differ by less than 10 % the direction
        with the smaller figure of merit: median over the stamps of the mean of residual² / V, V = V_I + κ² ⊗ V_T,
        but not more than V_I + (Σκ)² V_T, so that noise amplified by a sharpening κ counts against it; within 2 %
        the sharper image is convolved.
    stamps_per_axis : (cells in y, cells in x); every cell gives its brightest star first.
    max_stamps : most stamps.
    clip_sigma : stamps are left out whose χ² or flux lie this many robust σ off.
    iterations : most rounds of fit and clipping.

    Returns
    -------
    KernelSolution
        figures: stamps_offered, stamps_used, chi2_median (per pixel), condition (of the scaled normal matrix),
        flux_scale, flux_scale_spread (robust relative scatter of the stamps' fluxes, noise included), kernel_degree,
        background_degree, half_width, merit, merit_other (NaN unless both directions were fitted), deconvolution
        (1 where the convolved image is the broader one), noise_gain (Σκ² / (Σκ)² at the centre).

    Raises
    ------
    ValueError
        Shapes that differ, FWHM that are no positive numbers, nothing unmasked, fewer than 3 usable stamps, a forced
        direction that would deconvolve by more than a factor 2, parameters out of range.
    """
    images = (new, ref, variance_new, variance_ref)
    _check(images, mask, fwhm_new, fwhm_ref, convolve, stamps_per_axis, max_stamps, x, y)
    fwhm = {"new": float(fwhm_new), "ref": float(fwhm_ref)}
    setup = _prepare(new.shape, fwhm, half_width, basis, kernel_degree, background_degree, constant_flux, clip_sigma,
                     iterations)
    at_x, at_y = _choose_stamps(images, mask, x, y, setup, stamps_per_axis, max_stamps)
    fits = {d: fit_direction(images, mask, at_x, at_y, d, setup) for d in _directions(convolve, fwhm)}
    chosen = min(fits, key=lambda d: fits[d].merit * (1 + TIE * (fwhm[d] > min(fwhm.values()))))
    return _solution(fits, chosen, len(at_x), fwhm, setup)


def _check(images: als.Images, mask: Array | None, fwhm_new: float, fwhm_ref: float,
           convolve: str, stamps_per_axis: tuple[int, int], max_stamps: int, x: Array | None, y: Array | None) -> None:
    shape = images[0].shape
    if len(shape) != 2:
        raise ValueError(f"{_NAME}: new must have two axes, found shape {shape}")
    named = [("ref", images[1]), ("variance_new", images[2]), ("variance_ref", images[3])]
    for name, array in named + ([] if mask is None else [("mask", mask)]):
        if array.shape != shape:
            raise ValueError(f"{_NAME}: {name} must have the shape of new, {shape}, found {array.shape}")
    for name, value in (("fwhm_new", fwhm_new), ("fwhm_ref", fwhm_ref)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{_NAME}: {name} must be a positive number of pixels, found {value}")
    if convolve not in ("auto", "ref", "new"):
        raise ValueError(f"{_NAME}: convolve must be 'auto', 'ref' or 'new', found {convolve!r}")
    if min(stamps_per_axis) < 1 or max_stamps < 1:
        raise ValueError(f"{_NAME}: stamps_per_axis and max_stamps must be positive, found {stamps_per_axis} "
                         f"and {max_stamps}")
    if (x is None) != (y is None):
        raise ValueError(f"{_NAME}: x and y go together, found only {'y' if x is None else 'x'}")
    if x is not None and y is not None and (x.shape != y.shape or x.ndim != 1):
        raise ValueError(f"{_NAME}: x and y must be lists of one length, found shapes {x.shape} and {y.shape}")
    if mask is not None and bool(mask.all()):
        raise ValueError(f"{_NAME}: mask leaves no pixel of {shape}")


def _prepare(shape: tuple[int, int], fwhm: dict[str, float], half_width: int | None, basis: als.Basis | None,
             kernel_degree: int, background_degree: int, constant_flux: bool, clip_sigma: float,
             iterations: int) -> Setup:
    basis = tuple(basis) if basis is not None else default_basis(fwhm["new"], fwhm["ref"])
    if not basis or any(not (np.isfinite(s) and s > 0) or d < 0 for s, d in basis):
        raise ValueError(f"{_NAME}: basis must be pairs of a positive σ and a degree, found {basis}")
    for name, value, least in (("kernel_degree", kernel_degree, 0), ("background_degree", background_degree, 0),
                               ("iterations", iterations, 1), ("clip_sigma", clip_sigma, 0),
                               ("half_width", 1 if half_width is None else half_width, 1)):
        if value < least:
            raise ValueError(f"{_NAME}: {name} must be at least {least}, found {value}")
    if half_width is None:
        half_width = int(np.clip(np.ceil(3 * max(s for s, _ in basis)), 5, 25))
    sigma_m = max(FWHM_TO_SIGMA * abs(fwhm["new"] ** 2 - fwhm["ref"] ** 2) ** 0.5, 1.0)
    size = 2 * max(half_width + 3, int(np.ceil(3 * max(fwhm.values())))) + 1
    ny, nx = shape
    if min(shape) < size + 2 * half_width:
        raise ValueError(f"{_NAME}: no stamp of {size + 2 * half_width} pixels fits into new of shape {shape}")
    return Setup(basis, half_width, min(half_width, int(np.ceil(2 * sigma_m))), size, kernel_degree,
                 background_degree, constant_flux, clip_sigma, iterations,
                 ((nx - 1) / 2, (ny - 1) / 2, nx / 2, ny / 2))


def _directions(convolve: str, fwhm: dict[str, float]) -> tuple[Literal["ref", "new"], ...]:
    if convolve == "auto":
        if abs(fwhm["new"] - fwhm["ref"]) < NEARLY_EQUAL * max(fwhm.values()):
            return ("ref", "new")
        return ("ref",) if fwhm["ref"] < fwhm["new"] else ("new",)
    other = "new" if convolve == "ref" else "ref"
    if fwhm[convolve] > HOPELESS * fwhm[other]:
        raise ValueError(f"{_NAME}: convolve={convolve!r} would have to sharpen a FWHM of {fwhm[convolve]} pixels "
                         f"to {fwhm[other]}; convolve {other!r} instead")
    return ("ref",) if convolve == "ref" else ("new",)


def _choose_stamps(images: als.Images, mask: Array | None, x: Array | None, y: Array | None,
                   setup: Setup, per_axis: tuple[int, int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre pixels of the stamps, in the order in which they were chosen."""
    shape = images[0].shape
    wide = setup.size + 2 * setup.half_width
    margin = wide // 2
    at_x, at_y = np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    for threshold in (20.0, 10.0) if x is None else (-np.inf,):
        if x is None:
            px, py, snr = als.find_peaks(images, mask, threshold)
        else:
            px, py, snr = _given_positions(images, mask, x, y)
        inside = (px >= margin) & (px < shape[1] - margin) & (py >= margin) & (py < shape[0] - margin)
        px, py, snr = px[inside], py[inside], snr[inside]
        order = als.spread_order(px, py, snr, shape, per_axis)[: 2 * most]
        px, py = px[order], py[order]
        worth = asnumpy(als.usable(als.bad_pixels(images, mask, px, py, wide), setup.size, setup.reach)[1])
        at_x, at_y = px[worth][:most], py[worth][:most]
        if len(at_x) >= most / 2:
            break
    if len(at_x) < STAMPS_PER_TERM:
        what = "isolated peaks of 10 σ in both images" if x is None else f"of {x.size} given positions"
        raise ValueError(f"{_NAME}: needs at least {STAMPS_PER_TERM} usable stamps, found {len(at_x)} ({what})")
    return at_x, at_y


def _given_positions(images: als.Images, mask: Array | None, x: Array,
                     y: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels nearest to positions on the frame and their S/N there; one per pixel."""
    xp = get_xp(images[0])
    px, py = asnumpy(x).astype(np.float64), asnumpy(y).astype(np.float64)
    ok = np.isfinite(px) & np.isfinite(py)
    pixels = np.unique(np.rint(np.stack([px[ok], py[ok]])).astype(int), axis=1)
    ny, nx = images[0].shape
    px, py = pixels[:, (pixels >= 0).all(axis=0) & (pixels[0] < nx) & (pixels[1] < ny)]
    at = (xp.asarray(py), xp.asarray(px))
    snr = als.signal_to_noise(als.part_of(images, at), None if mask is None else mask[at])
    return px, py, asnumpy(snr)


def _solution(fits: dict[Literal["ref", "new"], Fit], chosen: Literal["ref", "new"], offered: int,
              fwhm: dict[str, float], setup: Setup) -> KernelSolution:
    fit = fits[chosen]
    other: Literal["ref", "new"] = "new" if chosen == "ref" else "ref"
    planes = np.tensordot(fit.coefficients, fit.images, axes=1)
    flux_scale = float(planes[0].sum())
    errors = fit.flux_error[fit.used]
    figures: dict[str, Any] = {
        "stamps_offered": offered, "stamps_used": fit.used.sum(), "chi2_median": np.median(fit.chi2[fit.used]),
        "condition": fit.condition, "flux_scale": flux_scale,
        "flux_scale_spread": MAD_TO_SIGMA * np.median(np.abs(errors - np.median(errors))),
        "kernel_degree": fit.degree, "background_degree": fit.background_degree, "half_width": setup.half_width,
        "merit": fit.merit, "merit_other": fits[other].merit if other in fits else np.nan,
        "deconvolution": fwhm[chosen] > fwhm[other], "noise_gain": (planes[0] ** 2).sum() / flux_scale**2,
    }
    x0, y0, x_scale, y_scale = setup.frame
    return KernelSolution(planes, fit.degree, fit.background, fit.background_degree, x0, y0, x_scale, y_scale, chosen,
                          flux_scale, {name: float(value) for name, value in figures.items()})
