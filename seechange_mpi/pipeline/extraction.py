"""Sources and PSF of an image; and, with ``subtraction=True``, detections in a difference image.

Order: peaks of the matched-filtered image, their shapes, the stellar locus, the PSF from unsaturated stars; then PSF
fluxes and positions of all sources together, in turn with the search for what the model has left, and in crowded
fields with a PSF from stars whose neighbours are subtracted; apertures free of neighbours.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.joint import joint_photometry
from seechange_mpi.gpu_kernels.photometry import EDGE, MOVED_AWAY, SKIPPED, aperture_photometry, render_sources
from seechange_mpi.gpu_kernels.psf_model import polynomial_terms, render
from seechange_mpi.model.errors import AlgorithmError, ConfigError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, F64, PSF, Background, Detections, Image, SourceList, SubImage
from seechange_mpi.model.tables import N_APERTURES, SOURCES, empty_table
from seechange_mpi.pipeline.backgrounding import render_rms, subtract_background
from seechange_mpi.pipeline.psf_building import StarChoice, choose_degree, choose_stars, fit_stars, with_model_wings
from seechange_mpi.pipeline.source_finding import (
    Filtered,
    Found,
    core_radii,
    cover,
    find_in_residual,
    find_sources,
    gaussian,
    matched,
    not_doubled,
)
from seechange_mpi.pipeline.source_shapes import (
    BLENDED,
    TRUNCATED,
    Shapes,
    measure_shapes,
    or_flags,
)
from seechange_mpi.pipeline.star_selection import find_stellar_locus
from seechange_mpi.pipeline.step import Step

_NOT_FOR_SEARCH = (PixelFlag.BAD_PIXEL | PixelFlag.ZERO_WEIGHT | PixelFlag.OUT_OF_BOUNDS | PixelFlag.NO_DATA
                   | PixelFlag.COSMIC_RAY | PixelFlag.BLEED | PixelFlag.TRAIL | PixelFlag.CROSSTALK)
"""Pixels that sources are not searched in; saturated ones are, so that bright stars stay one source."""

_EXTENDED = 0.003
"""Excess of `spread_model` that imperfect PSFs give bright stars."""
_FIRST_SIGMA = 1.2
"""Of the Gaussian that finds the bright sources before the seeing is known [pix]."""
_CROWDED = 0.1
"""Part of the image that the sources' discs cover, above which the field is crowded."""
_BLENDED_LIGHT = 0.1
"""Light of neighbours, in units of a source's own, that makes it blended."""


class DetectorParameters(Parameters):
    """Parameters of `Detector` for sources of an image."""

    section = "extraction.sources"
    subtraction: bool = par(False, "False: sources of an image; True: detections in a difference image")
    threshold: float = par(4.5, "least signal-to-noise ratio of a source", unit="sigma", gt=1)
    max_rounds: int = par(5, "most rounds of fitting all sources and searching what is left; two are enough where "
                             "few sources overlap", ge=1, le=20)
    apers: list[float] = par([1.0, 2.0, 3.0, 5.0], "aperture radii; the last one takes in all the light",
                             min_length=N_APERTURES, max_length=N_APERTURES)
    aperunit: Literal["fwhm", "pixel"] = par("fwhm", "unit of apers")
    psf_degree: int = par(2, "highest degree of the PSF's polynomial in position; beyond 1 the stars decide", ge=0,
                          le=3)
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
        work.find()
        if len(work.found) < self.pars.min_psf_stars:
            raise AlgorithmError("extraction", "too few sources", {
                "sources": len(work.found), "required": self.pars.min_psf_stars, "noise": background.noise})
        work.build_psf()
        work.fit()
        return work.source_list(), work.psf


class _Work:
    """The arrays of one extraction, and the sources as they become known."""

    def __init__(self, pars: DetectorParameters, image: Image, background: Background) -> None:
        self.pars, self.image, self.background = pars, image, background
        self.data = np.where(image.flags & int(_NOT_FOR_SEARCH), 0, subtract_background(image, background))
        self.data = np.ascontiguousarray(self.data, dtype=np.float32)
        self.sky_variance: F32 = render_rms(background) ** 2
        self.search_mask = (image.flags & int(_NOT_FOR_SEARCH)) != 0
        self.saturated = (image.flags & int(PixelFlag.SATURATED)) != 0
        self.mask = (image.flags != 0) | ~(image.weight > 0)
        # the pixel's own noise is kept out of its variance: it would bias every weighted flux low
        self.smooth: F32 = gaussian(self.data, _FIRST_SIGMA)
        self.variance = self._variance(self.smooth)

    def _variance(self, light: F32) -> F32:
        out = np.maximum(light, np.float32(0))
        out /= np.float32(self.image.gain)
        out += self.sky_variance
        return out

    def find(self) -> None:
        """Peaks of the image filtered by its own seeing, which the bright ones tell; their shapes."""
        threshold = self.pars.threshold
        first = Filtered.of(self.smooth, self.variance, _FIRST_SIGMA)
        bright = find_sources(first, 3.0 * threshold, self.search_mask, self.saturated, 2.5)
        self.guess = self._seeing(first, bright.taken(np.argsort(-bright.height, kind="stable")[:1000]))
        filtered = matched(self.data, self.variance, self.search_mask, self.guess)
        self.found = find_sources(filtered, 0.9 * threshold, self.search_mask, self.saturated, self.guess)
        ny, nx = self.image.shape
        share = len(self.found) * np.pi * (1.5 * self.guess) ** 2 / (ny * nx)
        self.crowded = share > _CROWDED
        self.shapes = self._shapes(self.found)
        # half-light radii of crowded stars are those of a crowd
        self.star_radius = (core_radii(filtered, self.found.x, self.found.y) if self.crowded else self.shapes.radius)

    def _shapes(self, found: Found) -> Shapes:
        return measure_shapes(self.data, self.search_mask, self.image.flags, found.x, found.y, self.guess,
                              crowded=self.crowded)

    def _seeing(self, filtered: Filtered, found: Found) -> float:
        """FWHM guessed from the tops of bright sources; 2.5 where they are too few [pix]."""
        if len(found) < 3:
            return 2.5
        flags = or_flags(self.image.flags, found.x, found.y, 2.0)
        good = (flags == 0) & ~found.saturated
        locus = find_stellar_locus(core_radii(filtered, found.x, found.y), found.score, good, found.x, found.y)
        return float(np.clip(2.0 * locus.radius, 1.5, 20.0)) if locus is not None else 2.5

    def build_psf(self) -> None:
        """Choose the PSF stars and fit the PSF."""
        pars, found, shapes = self.pars, self.found, self.shapes
        good = (shapes.flags == 0) & (shapes.pixel_flags == 0) & ~found.saturated
        figures: dict[str, float | int | str] = {"sources": len(found), "unflagged": int(good.sum()),
                                                 "required": pars.min_psf_stars}
        locus = find_stellar_locus(self.star_radius, found.score, good, found.x, found.y)
        if locus is None:
            raise AlgorithmError("extraction", "no stars to make a PSF from", figures)
        self.locus = locus
        guess = 2.0 * locus.radius
        figures["fwhm_guess"] = guess
        self.size = int(np.clip(2 * int(np.ceil(pars.psf_size_fwhms * guess / 2)) + 1, 15, 75))
        choice = StarChoice(pars.psf_min_snr, pars.psf_max_stars, pars.min_psf_stars, self.size)
        chosen = choose_stars(shapes.x, shapes.y, found.height, found.score, self.star_radius, good, locus,
                              self.image.shape, choice)
        self.figures = figures
        self._fit_psf(self.data, shapes.x, shapes.y, chosen)

    def _fit_psf(self, data: F32, x: F64, y: F64, chosen: npt.NDArray[np.intp], rounds: int = 4) -> None:
        pars, s = self.pars, self.shapes
        e = (s.a**2 - s.b**2) / (s.a**2 + s.b**2)
        shapes = np.stack([s.a**2 + s.b**2, e * np.cos(2 * s.theta), e * np.sin(2 * s.theta)], axis=-1)[chosen]
        bright = self.found.score[chosen] > np.median(self.found.score[chosen]) if len(chosen) > 100 else slice(None)
        degree = choose_degree(x[chosen][bright], y[chosen][bright], shapes[bright], self.image.shape, pars.psf_degree,
                               len(chosen))
        self.psf, used = fit_stars(data, self.variance, self.mask, x, y, chosen, self.size, degree,
                                   pars.min_psf_stars, self.figures, rounds=rounds)
        if self.crowded:
            self.psf = with_model_wings(self.psf)
        self.psf_star = np.zeros(len(self.found), bool)
        self.psf_star[used] = True

    def fit(self) -> None:
        """PSF fluxes of all sources together; in turn with the search for what the model leaves."""
        x, y = self.found.x, self.found.y
        for round_ in range(self.pars.max_rounds):
            self.phot = joint_photometry(self.data, self.variance, self.mask, x, y, self.psf,
                                         iterations=2 if self.crowded else 3)
            model = self.data - self.phot.residual
            # galaxies have light that the model lacks
            self.variance = self._variance(np.maximum(model, self.smooth))
            last = round_ == self.pars.max_rounds - 1 or (round_ == 1 and not self.crowded)
            new = self._look_for_more(model) if not last else None
            few = new is None or len(new) < 0.01 * len(self.found)
            if last or (round_ > 0 and few):
                break
            if self.crowded and round_ < 2:
                self._clean_psf()
            keep = self._kept()
            self._select(keep)
            assert new is not None
            self._append(new)
            x = np.concatenate([self.phot.x[keep], new.x])
            y = np.concatenate([self.phot.y[keep], new.y])

    def _look_for_more(self, model: F32) -> Found:
        """Peaks of the residual image, away from what the model cannot describe: galaxies, saturated stars."""
        p = self.phot
        where = self.mask.copy()
        with np.errstate(invalid="ignore"):
            extended = (p.spread > np.maximum(5 * p.spread_err, _EXTENDED)) & (p.flux > 20 * p.flux_err)
        if self.crowded:
            # blends look extended there, and galaxies are few among the stars
            extended[:] = False
        wide = np.flatnonzero(self.found.saturated | extended)
        radius = np.where(self.found.saturated, 3.0 * self.guess, 3.0 * np.nan_to_num(self.shapes.radius))
        cover(where, self.found.x[wide], self.found.y[wide], np.clip(radius[wide], self.guess, 20.0 * self.guess))
        return find_in_residual(p.residual, model, self.variance, where, self.psf.fwhm_pixels, self.pars.threshold,
                                contrast=0.05, known_x=p.x, known_y=p.y)

    def _kept(self) -> npt.NDArray[np.bool_]:
        """Sources that are worth another round: still significant, and not the same as a brighter one."""
        p = self.phot
        with np.errstate(invalid="ignore", divide="ignore"):
            lit = np.asarray((p.flux > 2.5 * p.flux_err) | ((p.flags & SKIPPED) != 0), bool)
        return lit & not_doubled(p.x, p.y, np.nan_to_num(p.flux), 0.4 * self.psf.fwhm_pixels)

    def _select(self, keep: npt.NDArray[np.bool_]) -> None:
        self.found, self.psf_star = self.found.taken(keep), self.psf_star[keep]
        self.shapes = self.shapes.taken(keep)

    def _append(self, new: Found) -> None:
        if len(new) == 0:
            return
        self.found = self.found.joined(new)
        self.shapes = self.shapes.joined(self._shapes(new))
        self.psf_star = np.concatenate([self.psf_star, np.zeros(len(new), bool)])

    def _clean_psf(self) -> None:
        """Fit the PSF again with the neighbours of its stars subtracted."""
        p, pars = self.phot, self.pars
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = np.nan_to_num(p.flux / p.flux_err)
            point = (np.abs(p.spread) < np.maximum(5 * p.spread_err, _EXTENDED)) & (p.blend < 1.0)
        good = (self.shapes.pixel_flags == 0) & point & ((p.flags & SKIPPED) == 0) & ~self.found.saturated
        choice = StarChoice(pars.psf_min_snr, pars.psf_max_stars, pars.min_psf_stars, self.size)
        point_like = np.exp(self.locus.log_radius_at(p.x, p.y))
        chosen = choose_stars(p.x, p.y, np.nan_to_num(p.flux), snr, point_like, good, self.locus, self.image.shape,
                              choice, cleaned=True)
        if len(chosen) < pars.min_psf_stars:
            return
        own = render_sources(self.image.shape, p.x[chosen], p.y[chosen], p.flux[chosen], self.psf)
        self._fit_psf(p.residual + own, p.x, p.y, chosen, rounds=2)

    def source_list(self) -> SourceList:
        """The table, from the last fit of all sources."""
        p, shapes = self.phot, self.shapes
        scale = self.psf.fwhm_pixels if self.pars.aperunit == "fwhm" else 1.0
        radii = tuple(float(a) * scale for a in self.pars.apers)
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = p.flux / p.flux_err
        flags = shapes.flags | np.where(p.flags & EDGE, TRUNCATED, 0) | np.where(p.blend > _BLENDED_LIGHT, BLENDED, 0)
        star = self.psf_star | self._is_star(snr, flags)
        measured = (p.flags & (SKIPPED | MOVED_AWAY)) == 0
        windowed = ~measured | ~(star | (flags & BLENDED != 0))
        x, y = np.where(windowed, shapes.x, p.x), np.where(windowed, shapes.y, p.y)
        aper, aper_err = self._apertures(x, y, radii)
        table = empty_table(SOURCES, len(x))
        table["x"], table["y"], table["x_win"], table["y_win"] = x, y, shapes.x, shapes.y
        # a centroid good to the seeing over the signal-to-noise ratio, where the fit tells nothing
        fallback = 0.6 * self.guess / np.maximum(self.found.score, 1.0)
        table["x_err"] = np.where(np.isfinite(p.x_err), p.x_err, fallback)
        table["y_err"] = np.where(np.isfinite(p.y_err), p.y_err, fallback)
        table["ra"] = table["dec"] = np.nan
        table["flux_psf"], table["flux_psf_err"], table["chi2_psf"] = p.flux, p.flux_err, p.chi2
        table["flux_apertures"], table["flux_apertures_err"] = aper, aper_err
        table["peak"] = self.data[np.clip(np.rint(y).astype(int), 0, self.data.shape[0] - 1),
                                  np.clip(np.rint(x).astype(int), 0, self.data.shape[1] - 1)]
        for name in ("a", "b", "theta"):
            table[name] = getattr(shapes, name)
        table["half_light_radius"] = shapes.radius
        table["spread_model"], table["spread_model_err"] = p.spread, p.spread_err
        table["flags"], table["pixel_flags"] = flags, shapes.pixel_flags
        table["psf_star"], table["is_star"] = self.psf_star, star
        once = not_doubled(p.x, p.y, np.nan_to_num(p.flux), 0.4 * self.psf.fwhm_pixels)
        keep = (((p.flags & SKIPPED) == 0) & (snr >= self.pars.threshold) & once) | self.found.saturated
        table = table[keep]
        return SourceList(table[np.lexsort((table["x"], table["y"]))], radii)

    def _apertures(self, x: F64, y: F64, radii: tuple[float, ...]) -> tuple[F64, F64]:
        """Aperture fluxes free of neighbours: the residual image in the aperture, and the source's own PSF in it."""
        p = self.phot
        flux, err = aperture_fluxes(p.residual, self.variance, self.mask, x, y, radii)
        own = encircled(self.psf, x, y, radii)
        return flux + np.nan_to_num(p.flux)[:, None] * own, err

    def _is_star(self, snr: F64, flags: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """As wide as the PSF within the errors, and unflagged."""
        p = self.phot
        with np.errstate(invalid="ignore"):
            tolerance = np.hypot(3.5 * p.spread_err, _EXTENDED)
            return np.asarray((self.shapes.pixel_flags == 0) & (snr > 5) & (np.abs(p.spread) < tolerance))


def aperture_fluxes(
    data: F32, variance: F32, mask: npt.NDArray[np.bool_], x: F64, y: F64, radii: tuple[float, ...]
) -> tuple[F64, F64]:
    """Return fluxes and errors, each (n, len(radii)) [ADU]; masked pixels are replaced by the mean of the aperture."""
    import sep

    flux, err = np.zeros((len(x), len(radii))), np.zeros((len(x), len(radii)))
    x, y = np.ascontiguousarray(x, dtype=float), np.ascontiguousarray(y, dtype=float)
    for k, radius in enumerate(radii):
        flux[:, k], err[:, k], _ = sep.sum_circle(data, x, y, radius, var=variance, mask=mask, subpix=5)
    return flux, err


def encircled(psf: PSF, x: F64, y: F64, radii: tuple[float, ...]) -> F64:
    """Return (n, len(radii)): the part of a star's light inside each radius, for a star in the middle of a pixel."""
    size = psf.basis.shape[-1]
    one = np.ones((size, size), np.float32)
    middle = np.full(1, (size - 1) / 2)
    none = np.zeros((size, size), bool)
    out = np.empty((len(x), len(radii)))
    # the curve of growth is a linear function of the stamp: one number per term of the polynomial
    per_term = np.stack([aperture_photometry(term.astype(np.float32), one, none, middle, middle, radii)[0][0]
                         for term in psf.basis])
    total = psf.basis.sum(axis=(1, 2))
    terms = polynomial_terms(psf, x, y)
    out[:] = (terms @ per_term) / (terms @ total)[:, None]
    return out


def psf_noise_area(psf: PSF, shape: tuple[int, int]) -> float:
    """Return 1 / Σp², the noise-equivalent area of the PSF at the image centre [pix]."""
    stamp = render(psf, np.array([(shape[1] - 1) / 2]), np.array([(shape[0] - 1) / 2]), phase=False)[0]
    return float(1.0 / np.sum(stamp.astype(float) ** 2))
