"""Sources and PSF of an image; and, with ``subtraction=True``, detections in a difference image.

Order: find sources (sep, Barbary 2016; Bertin & Arnouts 1996), windowed centroids, half-light radii, the stellar
locus, the PSF from isolated unsaturated stars, PSF fluxes of everything with a noise-free variance model, apertures.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.photometry import SKIPPED, psf_photometry, render_sources
from seechange_mpi.gpu_kernels.psf_model import PSFFit, fit_psf, render
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.model.errors import AlgorithmError, ConfigError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, F64, PSF, Background, Detections, Image, SourceList, SubImage
from seechange_mpi.model.tables import N_APERTURES, SOURCES, empty_table
from seechange_mpi.pipeline.backgrounding import render_rms, subtract_background
from seechange_mpi.pipeline.star_selection import find_stellar_locus, isolated, on_locus, spread_evenly
from seechange_mpi.pipeline.step import Step

_NOT_FOR_SEARCH = (PixelFlag.BAD_PIXEL | PixelFlag.ZERO_WEIGHT | PixelFlag.OUT_OF_BOUNDS | PixelFlag.NO_DATA
                   | PixelFlag.COSMIC_RAY)
"""Pixels that sources are not searched in; saturated ones are, so that bright stars stay one source."""

BLENDED, SATURATED, TRUNCATED, INCOMPLETE, NEAR_BAD = 2, 4, 8, 16, 1
"""SExtractor's bits used in ``sources.flags``."""
_SEP_MERGED, _SEP_TRUNC = 1, 2


class DetectorParameters(Parameters):
    """Parameters of `Detector` for sources of an image."""

    section = "extraction.sources"
    subtraction: bool = par(False, "False: sources of an image; True: detections in a difference image")
    threshold: float = par(4.0, "least signal-to-noise ratio of a source", unit="sigma", gt=1)
    min_area: int = par(5, "least number of connected pixels", unit="pix", ge=1)
    apers: list[float] = par([1.0, 2.0, 3.0, 5.0], "aperture radii; the last one takes in all the light",
                             min_length=N_APERTURES, max_length=N_APERTURES)
    aperunit: Literal["fwhm", "pixel"] = par("fwhm", "unit of apers")
    psf_degree: int = par(1, "degree of the PSF's polynomial in position; lowered when stars are few", ge=0, le=3)
    psf_size_fwhms: float = par(6.0, "side of the PSF stamp", unit="FWHM", ge=4, le=12)
    psf_min_snr: float = par(30.0, "least signal-to-noise ratio of a PSF star; halved once if stars are few",
                             unit="sigma", gt=5)
    psf_max_stars: int = par(300, "most PSF stars", ge=10)
    min_psf_stars: int = par(5, "refuse an image with fewer PSF stars", ge=3)


class Detector(Step[Any]):
    """Find sources in images, or (``subtraction=True``) detections in difference images.

    Parameters are `DetectorParameters`, or those of `pipeline.difference_detection` with ``subtraction=True``.
    """

    process = "extraction"
    parameters_class = DetectorParameters

    def __init__(self, **parameters: Any) -> None:
        if parameters.get("subtraction"):
            from seechange_mpi.pipeline.difference_detection import DetectionParameters

            self.pars = DetectionParameters(**parameters)
        else:
            self.pars = DetectorParameters(**parameters)

    def detect(self, sub: SubImage, fwhm_pixels: float, wcs_header: str) -> Detections:
        """Find detections in a difference image; see `difference_detection.detect_difference`."""
        from seechange_mpi.pipeline.difference_detection import detect_difference

        if not self.pars.subtraction:
            raise ConfigError("this Detector finds sources in images; build it with Detector(subtraction=True)")
        return detect_difference(sub, fwhm_pixels, wcs_header, self.pars)

    def extract(self, image: Image, background: Background) -> tuple[SourceList, PSF]:
        """Find the sources of an image and model its PSF.

        Returns
        -------
        sources : SourceList
            Sorted by y, then x; ra and dec NaN.
        psf : PSF

        Raises
        ------
        AlgorithmError
            Too few sources or PSF stars, with the figures.
        """
        if self.pars.subtraction:
            raise ConfigError("this Detector works on difference images; build it with Detector()")
        work = _Work(self.pars, image, background)
        # sep's own 3 × 3 filter for the bright ones, which tell the seeing; then a filter that fits it
        objects = find_sources(work.data, work.rms, work.search_mask, 3.0 * self.pars.threshold, self.pars.min_area)
        objects = find_sources(work.data, work.rms, work.search_mask, 0.75 * self.pars.threshold, self.pars.min_area,
                               seeing_kernel(work.seeing(objects)))
        if len(objects) < self.pars.min_psf_stars:
            raise AlgorithmError("extraction", "too few sources", {
                "sources": len(objects), "required": self.pars.min_psf_stars, "noise": background.noise})
        work.measure_shapes(objects)
        work.build_psf()
        return work.source_list(objects), work.psf


def find_sources(
    data: F32, rms: F32, mask: npt.NDArray[np.bool_], threshold: float, min_area: int, kernel: F32 | None = None
) -> npt.NDArray[np.void]:
    """Find sources with sep, matched filter; its limits are raised where an image needs more.

    Its cleaning is off: with a matched filter it mixes units and removes half of the faint sources.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], background-subtracted;  rms : (ny, nx) float32 [ADU], of the sky.
    mask : (ny, nx) bool, True = bad;  threshold : of a filtered pixel [sigma].
    kernel : (k, k) float32, odd; default: sep's 3 × 3 pyramid.

    Raises
    ------
    AlgorithmError
        sep cannot work on the image even with its largest limits.
    """
    import sep

    size, objects = max(300_000, data.size // 10), 4096
    extra = {} if kernel is None else {"filter_kernel": kernel}
    while True:
        sep.set_extract_pixstack(size)
        sep.set_sub_object_limit(objects)
        try:
            found: npt.NDArray[np.void] = sep.extract(
                np.ascontiguousarray(data), threshold, err=np.ascontiguousarray(rms), mask=mask, minarea=min_area,
                clean=False, **extra)
            return found
        except Exception as err:  # noqa: BLE001 - sep raises plain Exception
            message = str(err)
            if "pixel" in message and "full" in message and size < 4 * data.size:
                size *= 4
            elif "deblending" in message and objects < 1_000_000:
                objects *= 8
            else:
                raise AlgorithmError("extraction", f"sep: {message}", {"pixels": data.size}) from None


def seeing_kernel(fwhm: float) -> F32:
    """Return a Gaussian filter somewhat narrower than the seeing, which detects nearly as well and deblends better."""
    sigma = 0.8 * float(np.clip(fwhm, 1.5, 12.0)) / 2.3548
    half = max(1, int(np.ceil(2.0 * sigma)))
    u = np.arange(-half, half + 1)
    return np.asarray(np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / sigma**2), dtype=np.float32)


class _Work:
    """The arrays of one extraction."""

    def __init__(self, pars: DetectorParameters, image: Image, background: Background) -> None:
        self.pars, self.image, self.background = pars, image, background
        self.data = np.where(image.flags & int(_NOT_FOR_SEARCH), 0, subtract_background(image, background))
        self.data = np.ascontiguousarray(self.data, dtype=np.float32)
        self.rms = render_rms(background)
        self.search_mask = (image.flags & int(_NOT_FOR_SEARCH)) != 0
        self.mask = (image.flags != 0) | ~(image.weight > 0)
        # the pixel's own noise is kept out of its variance: it would bias every weighted flux low
        smooth = np.maximum(scipy.ndimage.gaussian_filter(self.data, 1.2), 0)
        self.variance: F32 = (self.rms**2 + smooth / np.float32(image.gain)).astype(np.float32)

    def seeing(self, objects: npt.NDArray[np.void]) -> float:
        """FWHM guessed from the stellar locus of bright sources; 2.5 where they are too few [pix]."""
        if len(objects) < 3:
            return 2.5
        self.measure_shapes(objects)
        locus = find_stellar_locus(self.radius, self.snr, (self.flags == 0) & (self.pixel_flags == 0))
        return 2.0 * locus.radius if locus is not None else 2.5

    def measure_shapes(self, objects: npt.NDArray[np.void]) -> None:
        """Half-light radii, windowed centroids, flags."""
        import sep

        # positions of sep are C doubles; its arrays must be contiguous
        x, y = objects["x"].astype(float), objects["y"].astype(float)
        rmax = np.maximum(6.0 * objects["a"], 4.0)
        self.radius, flag_r = sep.flux_radius(self.data, x, y, rmax, 0.5, mask=self.search_mask, subpix=5)
        self.radius = np.where(np.isfinite(self.radius) & (self.radius > 0), self.radius, np.nan)
        sigma = np.nan_to_num(np.clip(self.radius, 0.5, 10.0), nan=1.0) * 2.0 / 2.35
        xw, yw, flag_w = sep.winpos(self.data, x, y, sigma, mask=self.search_mask)
        near = np.hypot(xw - x, yw - y) < np.maximum(objects["a"], 1.0)
        settled = near & np.isfinite(xw) & np.isfinite(yw)
        self.x, self.y = np.where(settled, xw, x), np.where(settled, yw, y)
        f = objects["flag"].astype(int)
        self.flags = (np.where(f & _SEP_MERGED, BLENDED, 0) | np.where(f & _SEP_TRUNC, TRUNCATED, 0)
                      | np.where((flag_r | flag_w) & sep.APER_TRUNC, INCOMPLETE, 0))
        signal = np.maximum(objects["flux"], 0.0)
        noise = np.sqrt(objects["npix"] * float(self.background.noise) ** 2 + signal / self.image.gain)
        self.snr = signal / noise
        self.flux = signal
        self.pixel_flags = or_flags(self.image.flags, self.x, self.y, np.nanmedian(self.radius))
        self.flags |= np.where(self.pixel_flags & int(PixelFlag.SATURATED), SATURATED, 0)
        self.flags |= np.where(self.pixel_flags & ~int(PixelFlag.SATURATED), NEAR_BAD, 0)

    def build_psf(self) -> None:
        """Choose the PSF stars and fit the PSF."""
        pars = self.pars
        good = (self.flags == 0) & (self.pixel_flags == 0)
        locus = find_stellar_locus(self.radius, self.snr, good)
        figures: dict[str, float | int | str] = {"sources": len(self.x), "unflagged": int(good.sum()),
                                                 "required": pars.min_psf_stars}
        if locus is None:
            raise AlgorithmError("extraction", "no stars to make a PSF from", figures)
        self.locus = locus
        guess = 2.0 * locus.radius
        self.size = int(np.clip(2 * int(np.ceil(pars.psf_size_fwhms * guess / 2)) + 1, 15, 75))
        ny, nx = self.image.shape
        edge = self.size // 2 + 1
        inside = (self.x > edge) & (self.x < nx - 1 - edge) & (self.y > edge) & (self.y < ny - 1 - edge)
        alone = isolated(self.x, self.y, self.flux, 0.45 * self.size)
        stars = good & inside & alone & on_locus(self.radius, self.snr, locus)
        for least in (pars.psf_min_snr, 0.5 * pars.psf_min_snr):
            chosen = np.flatnonzero(stars & (self.snr > least))
            if len(chosen) >= 3 * pars.min_psf_stars:
                break
        figures |= {"candidates": len(chosen), "fwhm_guess": guess}
        if len(chosen) < pars.min_psf_stars:
            raise AlgorithmError("extraction", "too few stars to make a PSF from", figures)
        chosen = chosen[spread_evenly(self.x[chosen], self.y[chosen], self.flux[chosen], self.image.shape,
                                      pars.psf_max_stars)]
        try:
            fit = fit_psf(self.data, self.variance, self.mask, self.x[chosen], self.y[chosen],
                          size=self.size, degree=pars.psf_degree)
        except ValueError as err:
            raise AlgorithmError("extraction", str(err), figures) from None
        used = np.asarray(fit.used)
        if used.sum() < pars.min_psf_stars:
            raise AlgorithmError("extraction", "too few stars fit one PSF", figures | {"used": int(used.sum())})
        self.psf_star = np.zeros(len(self.x), bool)
        self.psf_star[chosen[used]] = True
        self.psf = _product(fit, used)

    def source_list(self, objects: npt.NDArray[np.void]) -> SourceList:
        """PSF and aperture photometry of all sources; the table."""
        phot = psf_photometry(self.data, self.variance, self.mask, self.x, self.y, self.psf)
        bright = np.isfinite(phot.flux) & (phot.flux > 0)
        model = render_sources(self.image.shape, phot.x[bright], phot.y[bright], phot.flux[bright], self.psf)
        smooth = (self.variance - self.rms**2) * np.float32(self.image.gain)
        variance = (self.rms**2 + np.maximum(model, smooth) / np.float32(self.image.gain)).astype(np.float32)
        phot = psf_photometry(self.data, variance, self.mask, self.x, self.y, self.psf)
        scale = self.psf.fwhm_pixels if self.pars.aperunit == "fwhm" else 1.0
        radii = tuple(float(a) * scale for a in self.pars.apers)
        aper, aper_err = aperture_fluxes(self.data, variance, self.mask, self.x, self.y, radii)
        table = empty_table(SOURCES, len(self.x))
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = phot.flux / phot.flux_err
        table["x"], table["y"] = self.x, self.y
        table["x_err"] = np.where(np.isfinite(phot.x_err), phot.x_err, np.sqrt(objects["errx2"]))
        table["y_err"] = np.where(np.isfinite(phot.y_err), phot.y_err, np.sqrt(objects["erry2"]))
        table["ra"] = table["dec"] = np.nan
        table["flux_psf"], table["flux_psf_err"], table["chi2_psf"] = phot.flux, phot.flux_err, phot.chi2
        table["flux_apertures"], table["flux_apertures_err"] = aper, aper_err
        for name in ("peak", "a", "b", "theta"):
            table[name] = objects[name]
        table["half_light_radius"] = self.radius
        table["flags"], table["pixel_flags"] = self.flags, self.pixel_flags
        table["psf_star"] = self.psf_star
        table["is_star"] = self._is_star(snr, phot.flux, phot.flux_err, aper[:, 1], aper_err[:, 1])
        saturated = (self.pixel_flags & int(PixelFlag.SATURATED)) != 0
        measured = (phot.flags & SKIPPED) == 0
        keep = (measured & (snr >= self.pars.threshold)) | saturated
        table = table[keep]
        order = np.lexsort((table["x"], table["y"]))
        return SourceList(table[order], radii)

    def _is_star(self, snr: F64, flux: F64, flux_err: F64, wide: F64, wide_err: F64) -> npt.NDArray[np.bool_]:
        """Point-like in half-light radius, and no more light in a wide aperture than a star has."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = wide / flux
            error = np.hypot(wide_err / wide, flux_err / flux)
            typical = np.nanmedian(ratio[self.psf_star]) if self.psf_star.any() else 1.0
            compact = np.abs(ratio / typical - 1.0) < 0.1 + 3.0 * error
        good = (self.pixel_flags == 0) & np.isfinite(snr) & (snr > 5)
        return np.asarray(self.psf_star | (good & compact & on_locus(self.radius, snr, self.locus)))


def _product(fit: PSFFit, used: npt.NDArray[np.bool_]) -> PSF:
    chi2 = float(np.median(np.asarray(fit.chi2)[used]))
    return PSF(np.asarray(fit.basis, dtype=np.float32), fit.degree, float(fit.x0), float(fit.y0), float(fit.x_scale),
               float(fit.y_scale), fwhm_pixels=float(fit.fwhm), n_stars=int(used.sum()), chi2=chi2)


def or_flags(flags: npt.NDArray[np.uint16], x: F64, y: F64, radius: float) -> npt.NDArray[np.int32]:
    """Return (n,) the OR of the image flags within `radius` pixels (at least 1) of each position."""
    r = max(1.0, float(radius))
    size = 2 * int(np.ceil(r)) + 1
    stamps, _ = cut_stamps(flags, np.round(x), np.round(y), size)
    offset = np.arange(size) - size // 2
    disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= r**2
    out: npt.NDArray[np.int32] = np.bitwise_or.reduce(stamps[:, disc], axis=1).astype(np.int32)
    return out


def aperture_fluxes(
    data: F32, variance: F32, mask: npt.NDArray[np.bool_], x: F64, y: F64, radii: tuple[float, ...]
) -> tuple[F64, F64]:
    """Return fluxes and errors, each (n, len(radii)) [ADU]; masked pixels are replaced by the mean of the aperture."""
    import sep

    flux, err = np.zeros((len(x), len(radii))), np.zeros((len(x), len(radii)))
    for k, radius in enumerate(radii):
        flux[:, k], err[:, k], _ = sep.sum_circle(data, x, y, radius, var=variance, mask=mask, subpix=5)
    return flux, err


def psf_noise_area(psf: PSF, shape: tuple[int, int]) -> float:
    """Return 1 / Σp², the noise-equivalent area of the PSF at the image centre [pix]."""
    stamp = render(psf, np.array([(shape[1] - 1) / 2]), np.array([(shape[0] - 1) / 2]), phase=False)[0]
    return float(1.0 / np.sum(stamp.astype(float) ** 2))
