"""The PSF of an image: which stars make it, how fast it varies over the image, and the fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import curve_fit
from scipy.special import fdtrc

from seechange_mpi.gpu_kernels.photometry import moments
from seechange_mpi.gpu_kernels.psf_model import PSFFit, fit_psf, shifted
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import F32, F64, PSF
from seechange_mpi.pipeline.star_selection import StellarLocus, isolated, on_locus, spread_evenly

Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]


_ENOUGH = 80
"""Stars that tell a PSF of degree 1 well."""


@dataclass(frozen=True, slots=True)
class StarChoice:
    """What decides which stars make the PSF.

    Attributes
    ----------
    min_snr, max_stars, min_stars : see the parameters of the extraction;  size : side of the stamp [pix].
    """

    min_snr: float
    max_stars: int
    min_stars: int
    size: int


def choose_stars(
    x: F64, y: F64, flux: F64, snr: F64, radius: F64, good: Mask, locus: StellarLocus, shape: tuple[int, int],
    choice: StarChoice, *, cleaned: bool = False,
) -> Index:
    """Return indices of the PSF stars: on the stellar locus, unflagged, whole, apart from others, spread evenly.

    Where few stars stand alone, those with fainter and nearer neighbours are taken as well: the fit leaves out
    pixels that neighbours brighten.

    Parameters
    ----------
    cleaned : bool, neighbours have been subtracted: only other PSF stars must be far.
    """
    ny, nx = shape
    edge = choice.size // 2 + 1
    inside = (x > edge) & (x < nx - 1 - edge) & (y > edge) & (y < ny - 1 - edge)
    stars = good & inside & on_locus(radius, snr, locus, x, y)
    chosen = np.zeros(0, np.intp)
    reaches = ((0.3, 1.0),) if cleaned else ((0.45, 0.05), (0.3, 0.1), (0.2, 0.2), (0.12, 0.3))
    wanted = 3 * choice.min_stars
    for reach, contrast in reaches:
        alone = stars & isolated(x, y, flux, reach * choice.size, contrast)
        for least in (choice.min_snr, 0.5 * choice.min_snr):
            chosen = np.flatnonzero(alone & (snr > least))
            if len(chosen) >= wanted:
                break
        if len(chosen) >= max(wanted, min(40, int(0.1 * (stars & (snr > choice.min_snr)).sum()))):
            break
    return chosen[spread_evenly(x[chosen], y[chosen], flux[chosen], shape, choice.max_stars)]


def choose_degree(x: F64, y: F64, shapes: F64, shape: tuple[int, int], highest: int, stars: int) -> int:
    """Return the degree of a polynomial in position that the shapes of the stars call for.

    Degree 1 where there are 80 stars: optics are never quite even, and a change of half a per cent, which moments do
    not show, leaves residuals of bright stars. With fewer its noise would tilt the fluxes by more than that.
    Otherwise each of the columns of `shapes` is fitted by polynomials of growing degree, outliers clipped; a degree is
    taken when it lowers the summed squares by more than chance would in one of a thousand images (F test), with 6
    stars per term.

    Parameters
    ----------
    shapes : (n, k), for example size and two ellipticities of the brighter stars;  stars : how many there are in all.
    """
    ok = np.isfinite(shapes).all(axis=1)
    for column in shapes.T:
        middle = np.median(column[ok]) if ok.any() else 0.0
        spread = 1.4826 * np.median(np.abs(column[ok] - middle)) if ok.any() else 0.0
        ok &= np.abs(column - middle) <= 5 * max(spread, 1e-12)
    n = int(ok.sum())
    u, v = 2 * x[ok] / shape[1] - 1, 2 * y[ok] / shape[0] - 1
    taken = min(1, highest) if stars >= _ENOUGH else 0
    for degree in range(taken + 1, highest + 1):
        terms, more = ((d + 1) * (d + 2) // 2 for d in (taken, degree))
        if n < 6 * more:
            break
        squares, new = _left(u, v, shapes[ok], taken), _left(u, v, shapes[ok], degree)
        added, free = more - terms, n - more
        f = ((squares - new) / added) / np.maximum(new / free, 1e-30)
        # one of the columns is enough, so each is asked more
        if fdtrc(added, free, f).min() < 1e-3 / shapes.shape[1]:
            taken = degree
    return taken


def _left(u: F64, v: F64, shapes: F64, degree: int) -> F64:
    """Summed squares that a polynomial leaves of each column."""
    a = np.stack([u**i * v**j for j in range(degree + 1) for i in range(degree + 1 - j)], axis=-1)
    return np.asarray(((shapes - a @ np.linalg.lstsq(a, shapes, rcond=None)[0]) ** 2).sum(axis=0))


def with_model_wings(psf: PSF) -> PSF:
    """Replace the wings by the continuation of a Moffat profile that fits the flanks.

    Under a crowd of stars too faint to be found, wings cannot be told from sky, and a PSF of unit sum with too much
    light in them makes all fluxes too large. The profile is kept within 1.5 FWHM and does not vary beyond 2.
    """
    basis = psf.basis.astype(np.float64)
    half = basis.shape[-1] // 2
    u = np.arange(-half, half + 1)
    r = np.hypot(u[:, None], u[None, :]) / psf.fwhm_pixels
    flank = (r > 0.6) & (r < 1.6)
    top = float(basis[0].max())

    def moffat(radius: F64, height: float, width: float, beta: float) -> F64:
        return np.asarray(height * (1 + (radius / width) ** 2) ** -beta)

    try:
        (height, width, beta), _ = curve_fit(moffat, r[flank], basis[0][flank] / top, p0=(1.0, 1.0, 3.0),
                                             bounds=((0.1, 0.2, 1.6), (5.0, 5.0, 10.0)))
    except RuntimeError:
        return psf
    inner = np.clip((2.0 - r) / 0.5, 0.0, 1.0)
    basis *= inner
    basis[0] += (1 - inner) * top * moffat(r, height, width, beta)
    return replace(psf, basis=(basis / basis[0].sum()).astype(np.float32))


def fit_stars(
    data: F32, variance: F32, mask: Mask, x: F64, y: F64, chosen: Index, size: int, degree: int, min_stars: int,
    figures: dict[str, float | int | str], *, rounds: int = 4,
) -> tuple[PSF, Index]:
    """Fit the PSF to the chosen stars, in `rounds` of stars and profile; return it and the stars that were used.

    Raises
    ------
    AlgorithmError
        Too few stars, before or after clipping, with the figures.
    """
    figures = figures | {"candidates": len(chosen), "required": min_stars}
    if len(chosen) < min_stars:
        raise AlgorithmError("extraction", "too few stars to make a PSF from", figures)
    try:
        fit = fit_psf(data, variance, mask, x[chosen], y[chosen], size=size, degree=degree,
                      iterations=rounds)
    except ValueError as err:
        raise AlgorithmError("extraction", str(err), figures) from None
    used = np.asarray(fit.used)
    if used.sum() < min_stars:
        raise AlgorithmError("extraction", "too few stars fit one PSF", figures | {"used": int(used.sum())})
    return _product(fit, used), chosen[used]


def _product(fit: PSFFit, used: Mask) -> PSF:
    """The fit as a product; its windowed centroid at the centre of the image is put in the middle of the stamp."""
    basis = np.asarray(fit.basis, dtype=np.float64)
    size = basis.shape[-1]
    half = np.array([float(size // 2)])
    stamp = np.asarray(basis[0] / basis[0].max(), dtype=np.float32)
    m = moments(stamp, np.zeros(stamp.shape, bool), half, half, fit.fwhm / 2.3548)
    n = len(basis)
    basis = shifted(basis, np.repeat(half - m.x, n), np.repeat(half - m.y, n), size)
    chi2 = float(np.median(np.asarray(fit.chi2)[used]))
    return PSF(np.asarray(basis, dtype=np.float32), fit.degree, float(fit.x0), float(fit.y0), float(fit.x_scale),
               float(fit.y_scale), fwhm_pixels=float(fit.fwhm), n_stars=int(used.sum()), chi2=chi2)
