"""Astrometric calibration: match the sources with a catalogue and fit TAN + SIP (or TPV), or take the file's own WCS.

``catalog``: catalogue places at the epoch of the exposure; shift, rotation and scale of the header's guess from pairs
of stars (`pattern`); matching and a robust weighted polynomial fit in turn (`wcs_fit`), its order chosen by the data; a
solution is believed only if chance does not explain its matches.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import Image, SourceList, WorldCoordinates
from seechange_mpi.pipeline.matching import Similarity, chance_of_match, log10_binomial_tail, match_pairs
from seechange_mpi.pipeline.pattern import Search, find_similarity
from seechange_mpi.pipeline.plate import Plate, initial_plate
from seechange_mpi.pipeline.star_lists import StarLists, select_stars
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.wcs_figures import figures_of_fit, figures_of_header
from seechange_mpi.pipeline.wcs_fit import MatchedStars, PlateFit, fit_plate
from seechange_mpi.pipeline.wcs_tools import load_wcs, pixel_to_sky

F64 = npt.NDArray[np.float64]
Figures = dict[str, float | int | str]


class AstroCalParameters(Parameters):
    """Parameters of `AstroCalibrator`."""

    section = "extraction.wcs"
    method: Literal["catalog", "header"] = par("catalog", "catalog: fit to the catalogue; header: the file's own WCS")
    output: Literal["sip", "tpv"] = par("sip", "how distortion is written in the header: sip (TAN-SIP) or tpv")
    max_offset_arcsec: float = par(60.0, "how wrong the position in the header may be", unit="arcsec", gt=0)
    max_rotation_deg: float = par(1.5, "how wrong the orientation in the header may be", unit="deg", ge=0, le=10)
    max_scale_error: float = par(0.02, "how wrong the pixel scale in the header may be, relative", ge=0, le=0.2)
    crossid_radius: float = par(2.0, "radius of the first match after the shift is known", unit="arcsec", gt=0)
    max_sources_to_use: int = par(5000, "brightest sources and catalogue stars that are matched", ge=50)
    max_order: int = par(5, "highest order of the distortion polynomial", ge=1, le=5)
    centroid_floor_pix: float = par(0.01, "error of centroids beyond photon noise, as expected; the data correct it",
                                    unit="pix", gt=0)
    min_matched_stars: int = par(6, "refuse a solution with fewer", ge=4)
    min_frac_matched: float = par(0.1, "refuse a solution that matches a smaller part of the shorter list", ge=0, le=1)
    max_arcsec_residual: float = par(0.15, "refuse a solution with a larger weighted rms per axis", unit="arcsec",
                                     gt=0)
    max_log10_chance: float = par(-5.0, "refuse a solution that unrelated lists give more often than 10 to this power",
                                  le=0)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Positions that do not change during the fit: base coordinates of the sources, places of the stars."""

    stars: StarLists
    u: F64
    v: F64
    target: F64


class AstroCalibrator(Step[AstroCalParameters]):
    """Find the world coordinates of an image."""

    process = "extraction"
    parameters_class = AstroCalParameters

    @property
    def catalog_margin_arcsec(self) -> float:
        """How far outside an image catalogue stars may be needed [arcsec]."""
        return 60.0 + self.pars.max_offset_arcsec

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
        if catalog is None or len(catalog) == 0:
            return WorldCoordinates(header=image.header_wcs, method="header")
        stars = select_stars(image, sources, catalog, self.pars.max_sources_to_use)
        plate = initial_plate(image.header_wcs, image.shape)
        return figures_of_header(image.header_wcs, plate.sky_arcsec(stars.x, stars.y),
                                 plate.plane_arcsec(stars.ra, stars.dec), self.pars.crossid_radius)

    def _fit(self, image: Image, sources: SourceList, catalog: CatalogTable) -> WorldCoordinates:
        pars = self.pars
        stars = select_stars(image, sources, catalog, pars.max_sources_to_use, self.catalog_margin_arcsec)
        figures: Figures = {
            "sources": len(stars.x), "catalogue_stars": len(stars.ra), "catalogue_rows_in_cone": stars.in_cone,
            "catalogue": catalog.path}
        if stars.in_cone < pars.min_matched_stars or len(stars.ra) < pars.min_matched_stars:
            ra, dec = catalog.centre_deg
            raise AlgorithmError("astrocal", f"the catalogue does not cover this section at ra={ra:.4f} dec={dec:.4f}",
                                 figures | {"rows_in_file": catalog.rows_in_file, "required": pars.min_matched_stars})
        if len(stars.x) < pars.min_matched_stars:
            raise AlgorithmError("astrocal", "too few sources", figures | {"required": pars.min_matched_stars})
        plate = initial_plate(image.header_wcs, image.shape)
        u, v = plate.base(stars.x, stars.y)
        ready = _Prepared(stars, u, v, plate.plane_arcsec(stars.ra, stars.dec))
        found, search = self._search(plate, ready)
        figures |= {"offset_arcsec": round(float(np.hypot(found.dx, found.dy)), 2), "matched_at_first": found.n_matched,
                    "log10_chance": round(found.log10_chance, 1)}
        if not found.log10_chance < min(pars.max_log10_chance, -2.0):
            raise AlgorithmError("astrocal", "no shift of the header's position brings the sources onto the catalogue",
                                 figures | {"max_offset_arcsec": pars.max_offset_arcsec})
        fit, radius = self._refine(plate.moved(found), ready, max(pars.crossid_radius, 1.5 * search.tolerance), figures)
        log10_chance = self._accept(fit, radius, ready, search, figures)
        _warn_of_orientation(found)
        return replace(figures_of_fit(fit, pars.output), log10_chance=log10_chance)

    def _search(self, plate: Plate, ready: _Prepared) -> tuple[Similarity, Search]:
        """Shift, rotation and scale of the guess; upside down or mirrored only where it fails as it stands."""
        pars = self.pars
        first = plate.from_base(ready.u, ready.v)
        fine = max(1.0, 1.5 * plate.scale_arcsec)
        best: tuple[Similarity, Search] | None = None
        for mirrored, turned in ((False, 0.0), (True, 0.0), (True, 180.0), (False, 180.0)):
            seen = Similarity(angle_deg=turned).apply(first)
            as_it_stands = not mirrored and not turned
            for tolerance in (fine, 3.0 * fine) if as_it_stands else (1.5 * fine,):
                search = Search(pars.max_offset_arcsec, pars.max_rotation_deg, pars.max_scale_error, tolerance,
                                plate.extent_arcsec())
                found = find_similarity(seen, ready.target, search, mirrored=mirrored, levels=4 if as_it_stands else 2)
                if best is None or found.log10_chance < best[0].log10_chance:
                    # a turn before a mirror is the same turn after it
                    best = replace(found, angle_deg=found.angle_deg + turned), search
                if best[0].log10_chance < -12:
                    return best
            if best is not None and best[0].log10_chance < pars.max_log10_chance:
                break
        assert best is not None
        return best

    def _refine(self, plate: Plate, ready: _Prepared, radius: float, figures: Figures) -> tuple[PlateFit, float]:
        """Match and fit in turn. Distortion keeps the corners out of the first matches: the radius shrinks only when
        no more stars come in."""
        pars = self.pars
        j11, j12, j21, j22 = (plate.jacobian() ** 2).ravel()
        vx, vy = ready.stars.var_pix.T
        source_var = np.stack([j11 * vx + j12 * vy, j21 * vx + j22 * vy], axis=-1)
        before, growing = 0, True
        for step in range(14):
            i, j = match_pairs(plate.from_base(ready.u, ready.v), ready.target, radius)
            if len(i) < max(4, pars.min_matched_stars // 2):
                raise AlgorithmError("astrocal", "too few sources match the catalogue", figures | {
                    "n_matched": len(i), "required": pars.min_matched_stars, "radius_arcsec": round(radius, 3)})
            matched = MatchedStars(ready.u[i], ready.v[i], ready.target[j], source_var[i], ready.stars.star_var[j])
            order = min(step + 1, 3) if growing else pars.max_order
            fit = fit_plate(plate, matched, min(order, pars.max_order),
                            floor_arcsec=pars.centroid_floor_pix * plate.scale_arcsec)
            plate = fit.plate
            n = int(fit.used.sum())
            was_growing = growing
            growing = growing and step < 8 and (step < 2 or n > 1.01 * before)
            before = n
            if growing:
                continue
            spread = 5.0 * float(np.percentile(np.hypot(*fit.residual[fit.used].T), 90)) if n else radius
            wanted = float(np.clip(spread, 0.3 * plate.scale_arcsec, radius))
            if not was_growing and wanted > 0.95 * radius:
                break
            radius = wanted
        return fit, radius

    def _accept(self, fit: PlateFit, radius: float, ready: _Prepared, search: Search, figures: Figures) -> float:
        """Refuse a solution that is poor or may be chance; return log10 of its chance."""
        pars = self.pars
        ny, nx = fit.plate.shape
        corners = fit.plate.sky_arcsec([-0.5, nx - 0.5, nx - 0.5, -0.5], [-0.5, -0.5, ny - 0.5, ny - 0.5])
        lower, upper = corners.min(axis=0), corners.max(axis=0)
        seen = ready.target[((ready.target > lower) & (ready.target < upper)).all(axis=1)]
        moved = fit.plate.from_base(ready.u, ready.v)
        shorter = max(min(len(moved), len(seen)), 1)
        p = chance_of_match(moved, seen, radius, float(np.prod(upper - lower)))
        n = int(fit.used.sum())
        # every term of the polynomial can bring one source onto one star
        log10 = log10_binomial_tail(shorter, min(1.0, p * len(moved) / shorter), n - len(fit.plate.coefficients))
        log10 = min(0.0, log10 + replace(search, tolerance=max(radius, 0.1)).log10_trials())
        weight = fit.weight[:, None] / fit.variance
        rms = float(np.sqrt((weight * fit.residual**2).sum() / max(weight.sum(), 1e-30)))
        figures |= {"n_matched": n, "rms_arcsec": round(rms, 4), "order": fit.plate.order,
                    "log10_chance": round(log10, 1), "stars_in_image": len(seen), "required": pars.min_matched_stars}
        if n < pars.min_matched_stars or n < pars.min_frac_matched * shorter:
            raise AlgorithmError("astrocal", "too few sources match the catalogue", figures)
        if not log10 <= pars.max_log10_chance:
            raise AlgorithmError("astrocal", "the matches may be chance", figures | {
                "max_log10_chance": pars.max_log10_chance})
        if not rms <= pars.max_arcsec_residual:
            raise AlgorithmError("astrocal", "the solution does not fit the catalogue", figures | {
                "max_arcsec_residual": pars.max_arcsec_residual})
        return log10


def _warn_of_orientation(found: Similarity) -> None:
    if found.mirrored or abs(found.angle_deg) > 90:
        what = "mirrored" if found.mirrored else "upside down"
        if found.mirrored and abs(found.angle_deg) > 90:
            what = "mirrored in declination"
        warnings.warn(f"the header's WCS is {what}; the solution corrects it, the camera's description should too",
                      stacklevel=2)
