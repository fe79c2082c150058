"""Bring a reference onto the pixel grid of a new image: registration, warp, PSF and flux scale there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline
from scipy.spatial import cKDTree

from seechange_mpi.gpu_kernels.photometry import SKIPPED, psf_photometry
from seechange_mpi.gpu_kernels.psf_model import fit_psf, render
from seechange_mpi.gpu_kernels.resample import warp
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, F64, PSF, U16, Image, Reference, SectionProducts, Table
from seechange_mpi.pipeline.backgrounding import render_rms, subtract_background
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky, sky_to_pixel

_NOT_INTERPOLATED = (PixelFlag.BAD_PIXEL | PixelFlag.ZERO_WEIGHT | PixelFlag.OUT_OF_BOUNDS | PixelFlag.NO_DATA
                     | PixelFlag.COSMIC_RAY | PixelFlag.BLEED | PixelFlag.TRAIL | PixelFlag.CROSSTALK)
Mapping = Callable[[F64, F64], tuple[F64, F64]]


@dataclass(slots=True)
class Registration:
    """New pixel positions to reference pixel positions, refined with stars.

    Attributes
    ----------
    xy_of : callable, (x_new, y_new) -> (x_ref, y_ref).
    new_index, ref_index : matched rows of the two source lists.
    sigma_x, sigma_y : float, astrometric error per axis beyond the centroids' own [pix].
    shift : float, size of the mean correction to the two WCS [pix].
    """

    xy_of: Mapping
    new_index: npt.NDArray[np.int64]
    ref_index: npt.NDArray[np.int64]
    sigma_x: float
    sigma_y: float
    shift: float


@dataclass(slots=True)
class WarpedReference:
    """A reference on the grid of the new image, background-subtracted, in its own ADU.

    Attributes
    ----------
    data : (ny, nx) float32;  rms : (ny, nx) float32, background noise as a matched filter sees it.
    variance : (ny, nx) float32, rms² + sources.
    flags : (ny, nx) uint16;  psf : PSF on the new grid.
    flux_ratio : float, counts of the new image per count of this;  ratio_scatter : its star-to-star scatter.
    """

    data: F32
    rms: F32
    variance: F32
    flags: U16
    psf: PSF
    flux_ratio: float
    ratio_scatter: float
    n_ratio: int


def _good_stars(table: Table) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = table["flux_psf"] / table["flux_psf_err"]
    return np.asarray((table["pixel_flags"] == 0) & ((table["flags"] & 0b11111100) == 0) & (snr > 12)
                      & np.isfinite(snr))


def register(
    new: SectionProducts, reference: Reference, *, radius_pix: float, min_matched: int
) -> Registration:
    """Match the sources of the two images and refine the mapping between them.

    The WCS of both give the first mapping; a shift (and, from 12 stars, a linear term) fitted robustly to the
    stars' positions removes what is left, so that the registration is as good as the centroids.

    Raises
    ------
    AlgorithmError
        Fewer than `min_matched` stars match.
    """
    assert new.sources is not None
    assert new.wcs is not None
    assert new.image is not None
    header_new, header_ref = new.wcs.header, reference.wcs.header

    def by_wcs(x: F64, y: F64) -> tuple[F64, F64]:
        return sky_to_pixel(header_ref, *pixel_to_sky(header_new, x, y))

    tn, tr = new.sources.table, reference.sources.table
    rows_n, rows_r = np.flatnonzero(_good_stars(tn)), np.flatnonzero(_good_stars(tr))
    figures: dict[str, float | int | str] = {"stars_new": len(rows_n), "stars_ref": len(rows_r),
                                             "required": min_matched}
    if len(rows_n) < min_matched or len(rows_r) < min_matched:
        raise AlgorithmError("subtraction", "too few stars to register the reference", figures)
    px, py = by_wcs(tn["x"][rows_n], tn["y"][rows_n])
    positions = np.stack([tr["x"][rows_r], tr["y"][rows_r]], axis=1)
    distance, index = cKDTree(positions).query(np.nan_to_num(np.stack([px, py], axis=1), nan=-1e9))
    near = distance < radius_pix
    figures["matched"] = int(near.sum())
    if near.sum() < min_matched:
        raise AlgorithmError("subtraction", "the reference cannot be registered: too few stars match", figures)
    a, b = rows_n[near], rows_r[index[near]]
    ny, nx = new.image.shape
    u, v = (tn["x"][a] - nx / 2) / (nx / 2), (tn["y"][a] - ny / 2) / (ny / 2)
    dx, dy = tr["x"][b] - px[near], tr["y"][b] - py[near]
    error = np.hypot(np.hypot(tn["x_err"][a], tr["x_err"][b]), 0.01)
    design = np.stack([np.ones_like(u), u, v], axis=1) if len(a) >= 12 else np.ones((len(u), 1))
    cx, cy, keep = _robust_fit(design, dx, dy, error)

    def refined(x: F64, y: F64) -> tuple[F64, F64]:
        x, y = np.asarray(x, float), np.asarray(y, float)
        rx, ry = by_wcs(x, y)
        terms = np.stack([np.ones_like(x), (x - nx / 2) / (nx / 2), (y - ny / 2) / (ny / 2)], axis=-1)
        terms = terms[..., : design.shape[1]]
        return rx + terms @ cx, ry + terms @ cy

    sigma = []
    for d, c, key in ((dx, cx, "x_err"), (dy, cy, "y_err")):
        residual = (d - design @ c)[keep]
        own = np.hypot(tn[key][a], tr[key][b])[keep]
        bright = own < 0.05
        use = bright if bright.sum() >= 8 else np.ones(len(own), bool)
        spread = MAD_TO_SIGMA * np.median(np.abs(residual[use]))
        sigma.append(float(np.sqrt(max(spread**2 - np.median(own[use]) ** 2, 0.0))))
    return Registration(refined, a[keep], b[keep], sigma[0], sigma[1], float(np.hypot(cx[0], cy[0])))


def _robust_fit(design: F64, dx: F64, dy: F64, error: F64) -> tuple[F64, F64, npt.NDArray[np.bool_]]:
    """Weighted linear fit of both axes with iterated 3.5 sigma clipping about a median start."""
    r = np.hypot(dx - np.median(dx), dy - np.median(dy))
    keep = r <= np.median(r) + 5 * MAD_TO_SIGMA * np.median(np.abs(r - np.median(r))) + 0.05
    cx = cy = np.zeros(design.shape[1])
    for _ in range(6):
        w = 1 / error[keep]
        cx, cy = (np.linalg.lstsq(design[keep] * w[:, None], d[keep] * w, rcond=None)[0] for d in (dx, dy))
        pull = np.hypot(dx - design @ cx, dy - design @ cy) / error
        scale = max(1.0, float(np.median(pull[keep])) / 1.18)
        again = pull < 3.5 * scale * 1.4
        if (again == keep).all() or again.sum() < design.shape[1] + 2:
            break
        keep = again
    return cx, cy, keep


def warp_reference(
    new: SectionProducts, reference: Reference, registration: Registration, *, min_stars: int, psf_degree: int,
    flux_ratio: float | None = None,
) -> WarpedReference:
    """Resample the reference, refit its PSF on the new grid, and find the flux ratio.

    The noise that matters to a matched filter is the noise power on the scale of the PSF, which interpolation
    leaves as it was, not the (lower) scatter of the resampled pixels: ``rms`` is that of the reference's own
    pixels, scaled by the square root of the pixel area ratio.

    Parameters
    ----------
    flux_ratio : counts of the new image per count of the reference; None = found from matched stars.

    Raises
    ------
    AlgorithmError
        Too few stars for the PSF or the flux ratio.
    """
    assert new.image is not None
    assert new.sources is not None
    image: Image = reference.image
    shape = new.image.shape
    data = subtract_background(image, reference.background)
    bad = (image.flags & int(_NOT_INTERPOLATED)) != 0
    out = warp(data, registration.xy_of, shape, flags=image.flags, bad=bad)
    assert out.flags is not None
    rms = _noise_on_grid(render_rms(reference.background), registration.xy_of, shape)
    flags = out.flags.astype(np.uint16)
    flags[~out.inside] |= np.uint16(PixelFlag.OUT_OF_BOUNDS)
    variance = (rms**2 + out.data / np.float32(image.gain)).astype(np.float32)
    mask = flags != 0
    stars = registration.new_index
    table = new.sources.table
    psf = _refit_psf(out.data, np.maximum(variance, rms**2), mask, table, stars, reference, registration,
                     min_stars=min_stars, degree=psf_degree)
    if flux_ratio is not None:
        return WarpedReference(out.data, rms, variance, flags, psf, flux_ratio, float("nan"), 0)
    x, y = table["x"][stars], table["y"][stars]
    phot = psf_photometry(out.data, np.maximum(variance, rms**2), mask, x, y, psf, fit_position=False)
    ratio, scatter, n = _flux_ratio(table[stars], phot.flux, phot.flux_err, (phot.flags & SKIPPED) == 0, min_stars)
    return WarpedReference(out.data, rms, variance, flags, psf, ratio, scatter, n)


def _noise_on_grid(rms: F32, xy_of: Mapping, shape: tuple[int, int], step: int = 32) -> F32:
    """Noise of the reference's pixels × √(area of a new pixel in reference pixels), on the new grid.

    Both vary on the scale of the background's mesh or more: they are evaluated every `step` pixels and interpolated.
    """
    gy, gx = (np.linspace(0, n - 1, max(2, -(-n // step) + 1)) for n in shape)
    xx, yy = np.meshgrid(gx, gy)
    x_in, y_in = (np.asarray(v, float).reshape(xx.shape) for v in xy_of(xx.ravel(), yy.ravel()))
    area = np.abs(np.gradient(x_in, gx, axis=1) * np.gradient(y_in, gy, axis=0)
                  - np.gradient(x_in, gy, axis=0) * np.gradient(y_in, gx, axis=1))
    near_x = np.clip(np.round(x_in), 0, rms.shape[1] - 1).astype(int)
    near_y = np.clip(np.round(y_in), 0, rms.shape[0] - 1).astype(int)
    coarse = rms[near_y, near_x] * np.sqrt(area)
    out: F32 = RectBivariateSpline(gy, gx, coarse, kx=1, ky=1, s=0)(
        np.arange(shape[0]), np.arange(shape[1])).astype(np.float32)
    return out


def _refit_psf(data: F32, variance: F32, mask: npt.NDArray[np.bool_], table: Table, stars: npt.NDArray[np.int64],
               reference: Reference, registration: Registration, *, min_stars: int, degree: int) -> PSF:
    # isolated stars first: those that made the PSF of either image
    star = table["is_star"][stars]
    chosen = stars[star]
    was = table["psf_star"][chosen] | reference.sources.table["psf_star"][registration.ref_index[star]]
    chosen = chosen[was] if was.sum() >= min_stars + 2 else chosen
    size = reference.psf.basis.shape[-1]
    try:
        fit = fit_psf(data, variance, mask, table["x"][chosen], table["y"][chosen], size=size, degree=degree)
    except ValueError as err:
        raise AlgorithmError("subtraction", f"the warped reference has no {err}", {"stars": len(chosen)}) from None
    used = np.asarray(fit.used)
    return PSF(np.asarray(fit.basis), fit.degree, fit.x0, fit.y0, fit.x_scale, fit.y_scale, fit.fwhm, int(used.sum()),
               float(np.median(fit.chi2[used])))


def _flux_ratio(stars: Table, flux: F64, error: F64, good: npt.NDArray[np.bool_], min_stars: int
                ) -> tuple[float, float, int]:
    """Weighted mean of new / reference fluxes with iterated clipping; intrinsic scatter is allowed for."""
    ok = good & np.isfinite(flux) & (flux > 10 * error) & stars["is_star"]
    if ok.sum() < min_stars:
        ok = good & np.isfinite(flux) & (flux > 5 * error)
    if ok.sum() < min_stars:
        raise AlgorithmError("subtraction", "too few stars for the flux ratio to the reference",
                             {"stars": int(ok.sum()), "required": min_stars})
    q = np.log(stars["flux_psf"][ok].astype(float) / flux[ok])
    e = np.hypot(stars["flux_psf_err"][ok] / stars["flux_psf"][ok], error[ok] / flux[ok])
    finite = np.isfinite(q) & np.isfinite(e)
    q, e = q[finite], e[finite]
    mean, extra = float(np.median(q)), 0.0
    for _ in range(10):
        extra = float(np.sqrt(max((MAD_TO_SIGMA * np.median(np.abs(q - mean))) ** 2 - np.median(e) ** 2, 1e-6)))
        sigma = np.hypot(e, extra)
        keep = np.abs(q - mean) < 3 * sigma
        w = keep / sigma**2
        mean = float((w * q).sum() / w.sum())
    return float(np.exp(mean)), extra, int(keep.sum())


def centre_stamp(psf: PSF, x: float, y: float) -> F32:
    """Return the centred, unit-sum stamp of a PSF at a position."""
    stamp: F32 = render(psf, np.array([x]), np.array([y]), phase=False)[0]
    return stamp
