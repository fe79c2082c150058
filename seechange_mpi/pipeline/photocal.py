"""Photometric zero point of PSF fluxes: from a catalogue, or relative to the reference image.

mag = −2.5 log10(flux_psf) + zp; an aperture flux takes ``aper_cors[a]`` on top. The zero point belongs to fluxes
measured with this image's PSF, so that differences measured with the same PSF need no further correction. Where the
stars show that it changes over the section, a map of it is part of the product (`ZeroPoint.at`). The light that PSF
fluxes miss beyond the PSF's stamp is measured and told (`ZeroPoint.wing`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.instruments.camera import Camera, Photometry
from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.errors import AlgorithmError, ConfigError
from seechange_mpi.model.products import (
    PSF,
    Background,
    Image,
    Reference,
    SourceList,
    Table,
    WorldCoordinates,
    ZeroPoint,
)
from seechange_mpi.pipeline.backgrounding import subtract_background
from seechange_mpi.pipeline.depth import measure_depth
from seechange_mpi.pipeline.growth import Growth, growth_curve
from seechange_mpi.pipeline.matching import match_pairs
from seechange_mpi.pipeline.star_fit import MAP_TERMS, fit_stars, map_design
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.wcs_tools import pixel_scale_arcsec, pixel_to_sky, project

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
INSTRUMENTAL_ZERO_POINT = 25.0
_MAG = 2.5 / np.log(10.0)
_COLOUR_STARS, _COLOUR_SPREAD = 30, 0.15
"""Stars, and standard deviation of their colours [mag], from which a colour slope is told."""


class PhotCalParameters(Parameters):
    """Parameters of `PhotCalibrator`."""

    section = "extraction.zp"
    method: Literal["catalog", "relative"] = par(
        "catalog", "catalog: stars of the catalogue; relative: stars of the reference (without one: zero point 25)")
    match_radius: float = par(1.0, "radius of the match in position", unit="arcsec", gt=0)
    min_stars: int = par(6, "refuse a zero point from fewer stars", ge=3)
    min_snr: float = par(10.0, "least signal-to-noise ratio of a star", unit="sigma", gt=3)
    mag_floor: float = par(0.01, "error of a star's magnitude that its stated errors leave out", unit="mag", ge=0)
    max_scatter: float = par(0.2, "refuse a zero point whose stars scatter more", unit="mag", gt=0)
    error_floor: float = par(0.001, "error of the zero point that the scatter of stars does not tell", unit="mag", ge=0)
    max_map_degree: int = par(2, "highest degree of the zero point's polynomial in position; 0: one zero point for the "
                                 "section", ge=0, le=2)
    map_chance: float = par(0.005, "a higher degree is taken where one as good would come by chance this rarely", gt=0,
                            lt=0.5)
    allow_other_filter: bool = par(False, "relative to a reference in another filter, as if all stars were grey")


class PhotCalibrator(Step[PhotCalParameters]):
    """Find the zero point, aperture corrections and limiting magnitude of an image."""

    process = "extraction"
    parameters_class = PhotCalParameters

    def run(
        self, image: Image, background: Background, psf: PSF, sources: SourceList, wcs: WorldCoordinates,
        catalog: CatalogTable | None, camera: Camera, reference: Reference | None,
    ) -> ZeroPoint:
        """Calibrate.

        Parameters
        ----------
        catalog : CatalogTable or None, needed by ``method="catalog"``.
        camera : Camera, its ``photometry`` turns catalogue magnitudes into those of the image's filter.
        reference : Reference or None, used by ``method="relative"``; None: the zero point is 25 by convention.

        Raises
        ------
        AlgorithmError
            No catalogue, too few stars, or too much scatter (with the figures).
        ConfigError
            The camera has no transformation for the filter, or the reference is of another filter and
            ``allow_other_filter`` is not set.
        """
        table = sources.table
        stars = usable_stars(table, self.pars.min_snr)
        if self.pars.method == "catalog":
            zp = self._from_catalog(image, table, stars, catalog, camera)
        elif reference is None:
            zp = ZeroPoint(INSTRUMENTAL_ZERO_POINT, 0.0, "instrumental", n_stars=int(stars.sum()))
        else:
            zp = self._relative(image, table, stars, wcs, reference)
        bad = (image.flags != 0) | ~(image.weight > 0)
        growth = growth_curve(subtract_background(image, background), bad, background.noise, image.gain, table, stars,
                              psf.fwhm_pixels)
        zp.aper_cor_radii = sources.aper_radii
        zp.aper_cors = aperture_corrections(table, stars, sources.aper_radii, growth)
        if growth is not None:
            zp.wing = float(2.5 * np.log10(growth.total))
            zp.wing_err = float(_MAG * growth.total_error / growth.total)
        depth = measure_depth(image, background, psf, sources)
        zp.lim_mag, zp.blocked = zp.zp - 2.5 * float(np.log10(depth.flux)), depth.blocked
        return zp

    def _from_catalog(self, image: Image, table: Table, stars: Mask, catalog: CatalogTable | None,
                      camera: Camera) -> ZeroPoint:
        if catalog is None:
            raise AlgorithmError("photocal", "no catalogue: name one in catalog.path, or use extraction.zp.method="
                                             "relative")
        rule = camera.photometry.get(image.filter)
        if rule is None:
            raise ConfigError(f"camera {camera.name}: no photometry for filter '{image.filter}'; there is "
                              f"{', '.join(camera.photometry) or 'none'}; or use extraction.zp.method=relative")
        magnitude, colour = transformed_magnitude(catalog, rule)
        low, high = rule.colour_range
        with np.errstate(invalid="ignore"):
            usable = np.isfinite(magnitude) & (colour >= low) & (colour <= high)
        ra, dec = catalog.positions_at(image.mjd)
        rows, matches = self._match(table, stars, ra[usable], dec[usable])
        flux, err = table["flux_psf"][rows].astype(float), table["flux_psf_err"][rows].astype(float)
        values = magnitude[usable][matches] + 2.5 * np.log10(flux)
        variance = (_MAG * err / flux) ** 2 + transformed_error(catalog, rule)[usable][matches] ** 2
        figures: dict[str, float | int | str] = {
            "n_matched": len(rows), "required": self.pars.min_stars, "stars": int(stars.sum()),
            "catalogue_stars": int(usable.sum()), "catalogue": catalog.path}
        zp = self._solve("catalog", table[rows], values, variance, image.shape, figures)
        zp.colour_term = float(rule.terms[1]) if len(rule.terms) > 1 else 0.0
        self._colour_slope(zp, table[rows], colour[usable][matches], values, variance)
        return zp

    def _relative(self, image: Image, table: Table, stars: Mask, wcs: WorldCoordinates,
                  reference: Reference) -> ZeroPoint:
        if reference.image.filter != image.filter and not self.pars.allow_other_filter:
            raise ConfigError(
                f"the reference is in filter '{reference.image.filter}', the image in '{image.filter}'; set "
                "extraction.zp.allow_other_filter=true to compare them all the same")
        other = reference.sources.table
        ref_stars = usable_stars(other, self.pars.min_snr)
        ra, dec = pixel_to_sky(reference.wcs.header, other["x"][ref_stars], other["y"][ref_stars])
        radius = max(self.pars.match_radius, pixel_scale_arcsec(wcs.header))
        rows, matches = self._match(table, stars, ra, dec, radius)
        ref = other[ref_stars][matches]
        flux, err = table["flux_psf"][rows].astype(float), table["flux_psf_err"][rows].astype(float)
        rflux, rerr = ref["flux_psf"].astype(float), ref["flux_psf_err"].astype(float)
        figures: dict[str, float | int | str] = {
            "n_matched": len(rows), "required": self.pars.min_stars, "stars": int(stars.sum()),
            "reference_stars": int(ref_stars.sum()), "reference": reference.exposure_identifier}
        values = reference.zp.at(ref["x"], ref["y"]) + 2.5 * np.log10(flux / rflux)
        variance = (_MAG * err / flux) ** 2 + (_MAG * rerr / rflux) ** 2
        zp = self._solve("relative", table[rows], values, variance, image.shape, figures)
        zp.dzp = float(np.hypot(zp.dzp, reference.zp.dzp))
        return zp

    def _match(self, table: Table, stars: Mask, ra: F64, dec: F64, radius: float | None = None) -> tuple[
            npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Rows of `table` and indices of positions that belong together."""
        index = np.flatnonzero(stars)
        if len(index) == 0 or len(ra) == 0:
            return np.zeros(0, np.intp), np.zeros(0, np.intp)
        centre = index[len(index) // 2]
        ra0, dec0 = float(table["ra"][centre]), float(table["dec"][centre])
        first = 3600.0 * np.stack(project(table["ra"][index], table["dec"][index], ra0, dec0), axis=-1)
        second = 3600.0 * np.stack(project(ra, dec, ra0, dec0), axis=-1)
        known = np.flatnonzero(np.isfinite(second).all(axis=1))
        i, j = match_pairs(first, second[known], radius or self.pars.match_radius)
        return index[i], known[j]

    def _solve(self, method: str, stars: Table, values: F64, variance: F64, shape: tuple[int, int],
               figures: dict[str, float | int | str]) -> ZeroPoint:
        """Zero point of the stars, and its map where they show one."""
        pars = self.pars
        if len(values) < pars.min_stars:
            raise AlgorithmError("photocal", "too few stars for a zero point", figures)
        fit = fit_stars(np.ones((len(values), 1)), values, variance, pars.mag_floor)
        terms = 0
        for degree in range(1, pars.max_map_degree + 1):
            n = MAP_TERMS[degree]
            if fit.used.sum() < 10 * (n + 1):
                break
            design = np.hstack([np.ones((len(values), 1)), map_design(stars["x"], stars["y"], shape, n)])
            other = fit_stars(design, values, variance, pars.mag_floor)
            gain = 2.0 * (other.log_likelihood - fit.log_likelihood)
            if chdtrc(n - terms, max(gain, 0.0)) < pars.map_chance:
                fit, terms = other, n
        figures |= {"n_used": int(fit.used.sum()), "scatter": fit.scatter, "max_scatter": pars.max_scatter}
        if fit.used.sum() < pars.min_stars:
            raise AlgorithmError("photocal", "too few stars agree on a zero point", figures)
        if not fit.scatter <= pars.max_scatter:
            raise AlgorithmError("photocal", "the stars' zero points scatter too much", figures)
        error = float(np.hypot(np.sqrt(fit.covariance[0, 0]), pars.error_floor))
        zp = ZeroPoint(float(fit.coefficients[0]), error, method, int(fit.used.sum()), fit.scatter,
                       outlier_fraction=fit.outlier_fraction)
        if terms:
            zp.map, zp.map_shape = tuple(float(c) for c in fit.coefficients[1:]), shape
            # mean squares of the terms over the section
            power = np.array([1 / 3, 1 / 3, 1 / 5, 1 / 9, 1 / 5])[:terms]
            zp.map_err = float(np.sqrt((np.diag(fit.covariance)[1:] * power).sum()))
        return zp

    def _colour_slope(self, zp: ZeroPoint, stars: Table, colour: F64, values: F64, variance: F64) -> None:
        """What the stars show beyond the camera's colour terms; told, not applied."""
        known = np.isfinite(colour)
        if known.sum() < _COLOUR_STARS or float(np.std(colour[known])) < _COLOUR_SPREAD:
            return
        zp.colour_ref = float(np.median(colour[known]))
        values = values - (zp.at(stars["x"], stars["y"]) - zp.zp)
        design = np.stack([np.ones(len(values)), colour - zp.colour_ref], axis=-1)
        fit = fit_stars(design, values, variance, self.pars.mag_floor)
        zp.colour_slope, zp.colour_slope_err = float(fit.coefficients[1]), float(np.sqrt(fit.covariance[1, 1]))


def usable_stars(table: Table, min_snr: float) -> Mask:
    """Return True for unflagged point sources with a good PSF flux."""
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = table["flux_psf"] / table["flux_psf_err"]
        return np.asarray(table["is_star"] & (table["pixel_flags"] == 0) & ((table["flags"] & ~2) == 0)
                          & np.isfinite(snr) & (snr >= min_snr))


def transformed_magnitude(catalog: CatalogTable, rule: Photometry) -> tuple[F64, F64]:
    """Return magnitudes in the camera's filter, band + Σ cᵢ colourⁱ, and the colours [mag]."""
    colour = (catalog.magnitude("bp_rp") if tuple(rule.colour) == ("bp", "rp")
              else catalog.magnitude(rule.colour[0]) - catalog.magnitude(rule.colour[1]))
    terms = sum(c * colour**i for i, c in enumerate(rule.terms))
    return catalog.magnitude(rule.band) + terms, colour


def transformed_error(catalog: CatalogTable, rule: Photometry) -> F64:
    """Return errors of `transformed_magnitude` from those that the catalogue states; 0 where it states none [mag]."""
    colour = (catalog.magnitude("bp_rp") if tuple(rule.colour) == ("bp", "rp")
              else catalog.magnitude(rule.colour[0]) - catalog.magnitude(rule.colour[1]))
    slope = sum(i * c * colour ** (i - 1) for i, c in enumerate(rule.terms) if i > 0)
    error = np.hypot(*(catalog.magnitude_error(name) for name in rule.colour))
    return np.asarray(np.hypot(catalog.magnitude_error(rule.band), slope * error))


def robust_mean(values: F64, variance: F64, floor: float) -> tuple[float, float]:
    """Return the mean of values of which a part are outliers, and its error."""
    fit = fit_stars(np.ones((len(values), 1)), values, variance, floor)
    return float(fit.coefficients[0]), float(np.sqrt(fit.covariance[0, 0]))


def aperture_corrections(table: Table, stars: Mask, radii: tuple[float, ...],
                         growth: Growth | None) -> tuple[float, ...]:
    """Return per aperture −2.5 log10⟨f_psf / f_aperture⟩ [mag], NaN where fewer than 3 stars tell.

    Added to an aperture magnitude it gives the PSF magnitude, which the zero point is made for. Wide apertures take it
    from the curve of growth, which leaves neighbours out; they raise every flux in a wide aperture of a crowded field.
    """
    out: list[float] = []
    flux = table["flux_psf"].astype(float)
    for k, radius in enumerate(radii):
        light = growth.within(radius)[0] if growth is not None else float("nan")
        if np.isfinite(light):
            out.append(float(2.5 * np.log10(light)))
            continue
        aper = table["flux_apertures"][:, k].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = np.where(stars & (aper > 0), aper / table["flux_apertures_err"][:, k], 0.0)
        # neighbours and the sky's error weigh on faint stars in wide apertures: the 20 best, or all that are good
        good = snr >= max(5.0, min(50.0, float(np.sort(snr)[-20:][0]) if len(snr) else 5.0))
        if good.sum() < 3:
            out.append(float("nan"))
            continue
        out.append(robust_mean(-2.5 * np.log10(flux[good] / aper[good]), (_MAG / snr[good]) ** 2, 0.005)[0])
    return tuple(out)
