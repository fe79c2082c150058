"""Astrometric calibration: match the sources with a catalogue and fit TAN + SIP, or take the file's own WCS.

``catalog``: catalogue positions moved to the epoch of the exposure; shift and small rotation of the header's guess
by voting; then matching and a robust weighted polynomial fit in turn, its order chosen by the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import Image, SourceList, WorldCoordinates
from seechange_mpi.pipeline.matching import Offset, chance_matches, find_offset, match_pairs
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.wcs_fit import Plate, fit_plate, initial_plate
from seechange_mpi.pipeline.wcs_tools import load_wcs, pixel_scale_arcsec, pixel_to_sky, project

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_UNUSABLE = (PixelFlag.BAD_PIXEL | PixelFlag.NO_DATA | PixelFlag.COSMIC_RAY | PixelFlag.OUT_OF_BOUNDS
             | PixelFlag.BLEED | PixelFlag.TRAIL | PixelFlag.CROSSTALK)


class AstroCalParameters(Parameters):
    """Parameters of `AstroCalibrator`."""

    section = "extraction.wcs"
    method: Literal["catalog", "header"] = par("catalog", "catalog: fit to the catalogue; header: the file's own WCS")
    max_offset_arcsec: float = par(60.0, "how wrong the position in the header may be", unit="arcsec", gt=0)
    max_rotation_deg: float = par(1.5, "how wrong the orientation in the header may be", unit="deg", ge=0, le=10)
    crossid_radius: float = par(2.0, "radius of the first match after the shift is known", unit="arcsec", gt=0)
    max_sources_to_use: int = par(2000, "brightest sources and catalogue stars that are matched", ge=50)
    max_order: int = par(3, "highest order of the distortion polynomial", ge=1, le=3)
    min_matched_stars: int = par(10, "refuse a solution with fewer", ge=4)
    min_frac_matched: float = par(0.1, "refuse a solution that matches a smaller part of the shorter list", ge=0, le=1)
    max_arcsec_residual: float = par(0.15, "refuse a solution with a larger rms per axis", unit="arcsec", gt=0)


@dataclass(slots=True)
class _Stars:
    """The two lists, brightest first."""

    x: F64
    y: F64
    error_pix: F64
    sky_ra: F64
    sky_dec: F64
    in_cone: int


class AstroCalibrator(Step[AstroCalParameters]):
    """Find the world coordinates of an image."""

    process = "extraction"
    parameters_class = AstroCalParameters

    def run(
        self, image: Image, sources: SourceList, catalog: CatalogTable | None
    ) -> tuple[WorldCoordinates, SourceList]:
        """Calibrate; return the solution and the sources with ra and dec filled in.

        With ``method="header"`` nothing is fitted; with a catalogue at hand the rms of the header's own WCS is told.

        Raises
        ------
        AlgorithmError
            No usable WCS to start from, no catalogue stars there, or no trustworthy solution (with the figures).
        """
        load_wcs(image.header_wcs)
        if self.pars.method == "header":
            wcs = self._from_header(image, sources, catalog)
        else:
            if catalog is None:
                raise AlgorithmError("astrocal", "no catalogue: name one in catalog.path, or use the file's own WCS "
                                                 "with extraction.wcs.method=header")
            wcs = self._fit(image, sources, catalog)
        table = sources.table.copy()
        table["ra"], table["dec"] = pixel_to_sky(wcs.header, table["x"], table["y"])
        return wcs, SourceList(table, sources.aper_radii)

    def _from_header(self, image: Image, sources: SourceList, catalog: CatalogTable | None) -> WorldCoordinates:
        wcs = WorldCoordinates(header=image.header_wcs, method="header")
        if catalog is None or len(catalog) == 0:
            return wcs
        stars = select_stars(image, sources, catalog, self.pars.max_sources_to_use)
        plate = initial_plate(image.header_wcs, image.shape)
        d = plate.sky_arcsec(stars.x, stars.y), plate.plane_arcsec(stars.sky_ra, stars.sky_dec)
        i, j = match_pairs(*d, self.pars.crossid_radius)
        if len(i) >= 4:
            wcs.n_matched = len(i)
            wcs.rms_mas = 1000.0 * float(np.sqrt(np.mean((d[0][i] - d[1][j]) ** 2)))
        return wcs

    def _fit(self, image: Image, sources: SourceList, catalog: CatalogTable) -> WorldCoordinates:
        pars = self.pars
        stars = select_stars(image, sources, catalog, pars.max_sources_to_use)
        figures: dict[str, float | int | str] = {
            "sources": len(stars.x), "catalogue_stars": len(stars.sky_ra), "catalogue_rows_in_cone": stars.in_cone,
            "catalogue": catalog.path}
        if stars.in_cone < pars.min_matched_stars or len(stars.sky_ra) < pars.min_matched_stars:
            ra, dec = catalog.centre_deg
            raise AlgorithmError("astrocal", f"the catalogue does not cover this section at ra={ra:.4f} dec={dec:.4f}",
                                 figures | {"rows_in_file": catalog.rows_in_file, "required": pars.min_matched_stars})
        if len(stars.x) < pars.min_matched_stars:
            raise AlgorithmError("astrocal", "too few sources", figures | {"required": pars.min_matched_stars})
        plate = initial_plate(image.header_wcs, image.shape)
        offset = self._vote(plate, stars)
        figures |= {"votes": offset.votes, "votes_by_chance": round(offset.expected, 1)}
        if offset.votes < 4 or offset.significance < 4:
            raise AlgorithmError("astrocal", "no shift of the header's position brings the sources onto the catalogue",
                                 figures | {"max_offset_arcsec": pars.max_offset_arcsec})
        plate = plate.moved(offset)
        return self._refine(plate, stars, image, figures)

    def _vote(self, plate: Plate, stars: _Stars) -> Offset:
        """Shift and rotation from the brightest of both lists; more of them where that is not clear."""
        best = Offset(0.0, 0.0, 0.0, 0.0, 0.0)
        first = plate.sky_arcsec(stars.x, stars.y)
        second = plate.plane_arcsec(stars.sky_ra, stars.sky_dec)
        cell = max(1.0, 1.5 * plate.scale_arcsec)
        for n in (60, 150, 400):
            for m in (n, 3 * n):
                found = find_offset(first[:n], second[:m], max_shift=self.pars.max_offset_arcsec, cell=cell,
                                    max_angle_deg=self.pars.max_rotation_deg)
                if found.significance > best.significance:
                    best = found
            if best.significance > 12 and best.votes > 0.3 * min(n, len(first), len(second)):
                break
        return best

    def _refine(self, plate: Plate, stars: _Stars, image: Image,
                figures: dict[str, float | int | str]) -> WorldCoordinates:
        pars = self.pars
        target = plate.plane_arcsec(stars.sky_ra, stars.sky_dec)
        radius = pars.crossid_radius
        area = image.shape[0] * image.shape[1] * plate.scale_arcsec**2
        fitted = None
        before = 0
        growing = True
        for step in range(16):
            i, j = match_pairs(plate.sky_arcsec(stars.x, stars.y), target, radius)
            if len(i) < max(4, pars.min_matched_stars // 2):
                raise AlgorithmError("astrocal", "too few sources match the catalogue", figures | {
                    "n_matched": len(i), "required": pars.min_matched_stars, "radius_arcsec": radius})
            fitted = fit_plate(plate, stars.x[i], stars.y[i], target[j], stars.error_pix[i],
                               1 if step == 0 else pars.max_order)
            plate = fitted.plate
            n = int(fitted.used.sum())
            # distortion keeps the corners out of the first matches: shrink the radius only when no more come in
            growing = growing and step < 10 and (step < 2 or n > 1.01 * before)
            before = n
            if growing:
                continue
            new_radius = float(np.clip(6.0 * fitted.rms_arcsec, 0.3 * plate.scale_arcsec, radius))
            if abs(new_radius - radius) < 0.02 * radius:
                break
            radius = new_radius
        assert fitted is not None
        n, shorter = int(fitted.used.sum()), min(len(stars.x), len(stars.sky_ra))
        chance = chance_matches(len(stars.x), len(stars.sky_ra), area, radius)
        figures |= {"n_matched": n, "rms_arcsec": fitted.rms_arcsec, "order": fitted.order,
                    "matched_by_chance": round(chance, 1), "required": pars.min_matched_stars}
        if n < pars.min_matched_stars or n < pars.min_frac_matched * shorter or n < 3 * chance:
            raise AlgorithmError("astrocal", "too few sources match the catalogue", figures)
        if not fitted.rms_arcsec <= pars.max_arcsec_residual:
            raise AlgorithmError("astrocal", "the solution does not fit the catalogue", figures | {
                "max_arcsec_residual": pars.max_arcsec_residual})
        return WorldCoordinates(plate.header(), "catalog", n, 1000.0 * fitted.rms_arcsec)


def select_stars(image: Image, sources: SourceList, catalog: CatalogTable, limit: int) -> _Stars:
    """Return usable sources and the catalogue stars at the exposure's epoch, brightest first.

    Point sources come before others; catalogue stars farther than two arcminutes outside the image's circle are
    left out.
    """
    t = sources.table
    flux = np.where(np.isfinite(t["flux_psf"]), t["flux_psf"], t["flux_apertures"][:, 1]).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = t["flux_psf"] / t["flux_psf_err"]
    good = ((t["pixel_flags"] & int(_UNUSABLE)) == 0) & ((t["flags"] & 8) == 0) & (flux > 0)
    saturated = (t["pixel_flags"] & int(PixelFlag.SATURATED)) != 0
    for preferred in (~saturated & (snr > 10), ~saturated):
        # saturated cores and faint sources have poor centres: only where there is little else
        if (good & preferred).sum() >= 30:
            good &= preferred
            break
    order = np.flatnonzero(good)
    order = order[np.lexsort((-flux[order], ~t["is_star"][order]))][:limit]
    error = np.hypot(t["x_err"][order], t["y_err"][order]) / np.sqrt(2)
    error = np.where(np.isfinite(error), error, 1.0) + 0.5 * saturated[order]
    ra, dec = catalog.positions_at(image.mjd)
    mag = next((catalog.mags[k] for k in ("g", "rp", "bp", *sorted(catalog.mags)) if k in catalog.mags),
               np.zeros(len(ra)))
    keep = np.isfinite(ra) & np.isfinite(dec)
    if len(ra):
        margin_deg = 120.0 / 3600.0
        ny, nx = image.shape
        scale = pixel_scale_arcsec(image.header_wcs) / 3600.0
        ra0, dec0 = (float(v) for v in pixel_to_sky(image.header_wcs, (nx - 1) / 2, (ny - 1) / 2))
        xi, eta = project(ra, dec, ra0, dec0)
        with np.errstate(invalid="ignore"):
            keep &= np.hypot(xi, eta) < 0.5 * np.hypot(nx, ny) * scale + margin_deg
    stars = np.flatnonzero(keep)
    stars = stars[np.argsort(np.where(np.isfinite(mag[stars]), mag[stars], 99.0), kind="stable")][:limit]
    return _Stars(t["x"][order].astype(float), t["y"][order].astype(float), error, ra[stars], dec[stars],
                  int(keep.sum()))
