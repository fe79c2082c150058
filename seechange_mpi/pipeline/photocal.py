"""Photometric zero point of PSF fluxes: from a catalogue, or relative to the reference image.

mag = −2.5 log10(flux_psf) + zp; an aperture flux takes ``aper_cors[a]`` on top. The zero point belongs to fluxes
measured with this image's PSF, so that differences measured with the same PSF need no further correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA
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
from seechange_mpi.pipeline.extraction import psf_noise_area
from seechange_mpi.pipeline.matching import match_pairs
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.wcs_tools import pixel_scale_arcsec, pixel_to_sky, project

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
INSTRUMENTAL_ZERO_POINT = 25.0
_MAG = 2.5 / np.log(10.0)


class PhotCalParameters(Parameters):
    """Parameters of `PhotCalibrator`."""

    section = "extraction.zp"
    method: Literal["catalog", "relative"] = par(
        "catalog", "catalog: stars of the catalogue; relative: stars of the reference (without one: zero point 25)")
    match_radius: float = par(1.0, "radius of the match in position", unit="arcsec", gt=0)
    min_stars: int = par(10, "refuse a zero point from fewer stars", ge=3)
    min_snr: float = par(10.0, "least signal-to-noise ratio of a star", unit="sigma", gt=3)
    mag_floor: float = par(0.01, "error of a star's magnitude that its stated errors leave out", unit="mag", ge=0)
    max_scatter: float = par(0.2, "refuse a zero point whose stars scatter more", unit="mag", gt=0)
    allow_other_filter: bool = par(False, "relative to a reference in another filter, as if all stars were grey")


@dataclass(frozen=True, slots=True)
class _Fit:
    zp: float
    error: float
    scatter: float
    used: Mask


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
        stars = usable_stars(sources.table, self.pars.min_snr)
        if self.pars.method == "catalog":
            zp = self._from_catalog(image, sources.table, stars, catalog, camera)
        elif reference is None:
            zp = ZeroPoint(INSTRUMENTAL_ZERO_POINT, 0.0, "instrumental", n_stars=int(stars.sum()))
        else:
            zp = self._relative(image, sources.table, stars, wcs, reference)
        zp.aper_cor_radii = sources.aper_radii
        zp.aper_cors = aperture_corrections(sources.table, stars)
        limit = 5.0 * background.noise * float(np.sqrt(psf_noise_area(psf, image.shape)))
        zp.lim_mag = zp.zp - 2.5 * float(np.log10(limit))
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
        mag = magnitude[usable][matches]
        flux, err = table["flux_psf"][rows].astype(float), table["flux_psf_err"][rows].astype(float)
        figures: dict[str, float | int | str] = {
            "n_matched": len(rows), "required": self.pars.min_stars, "stars": int(stars.sum()),
            "catalogue_stars": int(usable.sum()), "catalogue": catalog.path}
        fit = self._fit(mag + 2.5 * np.log10(flux), (_MAG * err / flux) ** 2, figures)
        term = rule.terms[1] if len(rule.terms) > 1 else 0.0
        return ZeroPoint(fit.zp, fit.error, "catalog", int(fit.used.sum()), fit.scatter, colour_term=float(term))

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
        delta = 2.5 * np.log10(flux / rflux)
        fit = self._fit(reference.zp.zp + delta, (_MAG * err / flux) ** 2 + (_MAG * rerr / rflux) ** 2, figures)
        error = float(np.hypot(fit.error, reference.zp.dzp))
        return ZeroPoint(fit.zp, error, "relative", int(fit.used.sum()), fit.scatter)

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

    def _fit(self, values: F64, variance: F64, figures: dict[str, float | int | str]) -> _Fit:
        if len(values) < self.pars.min_stars:
            raise AlgorithmError("photocal", "too few stars for a zero point", figures)
        fit = robust_mean(values, variance, self.pars.mag_floor)
        figures |= {"n_used": int(fit.used.sum()), "scatter": fit.scatter, "max_scatter": self.pars.max_scatter}
        if fit.used.sum() < self.pars.min_stars:
            raise AlgorithmError("photocal", "too few stars agree on a zero point", figures)
        if not fit.scatter <= self.pars.max_scatter:
            raise AlgorithmError("photocal", "the stars' zero points scatter too much", figures)
        return fit


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


def robust_mean(values: F64, variance: F64, floor: float, n_sigma: float = 3.0) -> _Fit:
    """Return the clipped inverse-variance mean with its error.

    Scatter beyond the stated errors enters every star's variance, so that a few bright stars do not decide alone;
    the error of the mean is the larger of the formal one and scatter / √n.
    """
    used = np.isfinite(values) & np.isfinite(variance)
    extra = floor**2
    mean = float(np.median(values[used])) if used.any() else float("nan")
    finite = used.copy()
    for _ in range(20):
        residual = values - mean
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residual[used])))
        extra = max(floor**2, spread**2 - float(np.median(variance[used])))
        new = finite & (np.abs(residual) <= n_sigma * np.sqrt(variance + extra))
        if not new.any():
            break
        w = 1.0 / (variance[new] + extra)
        updated = float((w * values[new]).sum() / w.sum())
        done = bool((new == used).all()) and abs(updated - mean) < 1e-7
        used, mean = new, updated
        if done:
            break
    w = 1.0 / (variance[used] + extra)
    residual = values[used] - mean
    scatter = float(np.sqrt((w * residual**2).sum() / w.sum()))
    n = max(int(used.sum()), 1)
    error = max(float(1.0 / np.sqrt(w.sum())), scatter / float(np.sqrt(n)))
    return _Fit(mean, error, scatter, used)


def aperture_corrections(table: Table, stars: Mask) -> tuple[float, ...]:
    """Return per aperture −2.5 log10⟨f_psf / f_aperture⟩ [mag], NaN where fewer than 3 stars tell.

    Added to an aperture magnitude it gives the PSF magnitude, which the zero point is made for.
    """
    out: list[float] = []
    flux = table["flux_psf"].astype(float)
    for k in range(table["flux_apertures"].shape[1]):
        aper = table["flux_apertures"][:, k].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = np.where(stars & (aper > 0), aper / table["flux_apertures_err"][:, k], 0.0)
        # neighbours and the sky's error weigh on faint stars in wide apertures: the 20 best, or all that are good
        good = snr >= max(5.0, min(50.0, float(np.sort(snr)[-20:][0]) if len(snr) else 5.0))
        if good.sum() < 3:
            out.append(float("nan"))
            continue
        out.append(robust_mean(-2.5 * np.log10(flux[good] / aper[good]), (_MAG / snr[good]) ** 2, 0.005).zp)
    return tuple(out)
