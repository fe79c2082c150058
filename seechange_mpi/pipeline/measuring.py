"""Measure detections: PSF and aperture fluxes, positions, shapes, and what tells artefacts from sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.photometry import SKIPPED, aperture_photometry, moments, psf_photometry
from seechange_mpi.gpu_kernels.psf_model import fwhm_of
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.model.products import (
    F64,
    Cutouts,
    Detections,
    Measurements,
    Reference,
    SectionProducts,
    SubImage,
    Table,
)
from seechange_mpi.model.tables import MEASUREMENTS, empty_table
from seechange_mpi.pipeline.badness import judge_measurements
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky, sky_to_pixel

_POGSON = 2.5 / np.log(10)


class BadThresholds(Parameters):
    """A measurement at or beyond any of these is marked bad (and kept for inspection)."""

    section = "measuring.bad_thresholds"
    psf_fit_flags_bitmask: int = par(0b11110, "fit flags that are bad: edge, not converged, skipped, moved away", ge=0)
    nbadpix: int = par(3, "flagged pixels within one FWHM", unit="pix", ge=1)
    detection_dist: float = par(1.5, "PSF-fit position from the detection", unit="pix", gt=0)
    chi2_psf: float = par(3.0, "chi2 per degree of freedom of the PSF fit, beyond a model error of 3 %", gt=0)
    width_ratio: float = par(2.0, "mean width over the PSF's, or its inverse, for S/N > 10", gt=1)
    elongation: float = par(2.5, "major over minor width, for S/N > 10", gt=1)
    negfrac: float = par(0.3, "pixels of opposite sign, beyond 3 sigma and a quarter of the peak, over those of its "
                              "own sign", gt=0)
    negfluxfrac: float = par(0.3, "the same for their summed score", gt=0)
    star_residual: float = par(0.025, "|flux| over that of the star it sits on (within 1 FWHM), at least", ge=0)


class DeletionThresholds(Parameters):
    """A measurement at or beyond any of these does not enter the database; it stays in the bundle, marked bad."""

    section = "measuring.deletion_thresholds"
    psf_fit_flags_bitmask: int | None = par(None, "fit flags; here and below null = nothing is deleted for this", ge=0)
    nbadpix: int | None = par(None, "flagged pixels within one FWHM", unit="pix", ge=1)
    detection_dist: float | None = par(None, "PSF-fit position from the detection", unit="pix", gt=0)
    chi2_psf: float | None = par(None, "chi2 per degree of freedom of the PSF fit, beyond a model error of 3 %", gt=0)
    width_ratio: float | None = par(None, "mean width over the PSF's, or its inverse, for S/N > 10", gt=1)
    elongation: float | None = par(None, "major over minor width, for S/N > 10", gt=1)
    negfrac: float | None = par(None, "pixels of opposite sign over those of its own sign", gt=0)
    negfluxfrac: float | None = par(None, "the same for their summed score", gt=0)
    star_residual: float | None = par(None, "|flux| over that of the star it sits on, at least", ge=0)


CUTS: dict[str, str] = {
    "fit": "psf_fit_flags_bitmask", "badpix": "nbadpix", "moved": "detection_dist", "chi2": "chi2_psf",
    "width": "width_ratio", "elongation": "elongation", "negfrac": "negfrac", "negflux": "negfluxfrac",
    "star": "star_residual",
}
"""Name of a cut in ``bad_reasons`` and ``deletion_reasons`` -> the threshold it compares with."""


class MeasuringParameters(Parameters):
    """Parameters of `Measurer`."""

    section = "measuring"
    diag_box_halfsize: float = par(1.0, "half size of the box searched for opposite residuals", unit="FWHM", gt=0)
    bad_thresholds: BadThresholds = par(BadThresholds(), "limits beyond which a measurement is marked bad")
    deletion_thresholds: DeletionThresholds = par(DeletionThresholds(), "limits beyond which it stays out of the "
                                                                        "database")


class Measurer(Step[MeasuringParameters]):
    """Measure every detection of a section."""

    process = "measuring"
    parameters_class = MeasuringParameters

    def run(self, new: SectionProducts, sub: SubImage, detections: Detections, cutouts: Cutouts,
            reference: Reference) -> Measurements:
        """Return one row per detection, in the same order; ``is_bad`` where a threshold is reached, and
        ``deletion_reasons`` where one is by which it stays out of the database.

        Fluxes are of the difference image, with its own PSF, in ADU of the new image (zero point ``sub.zp``).
        """
        assert new.sources is not None
        assert new.wcs is not None
        assert new.psf is not None
        d = detections.table
        table = empty_table(MEASUREMENTS, len(d))
        if len(d) == 0:
            return Measurements(table)
        mask = (sub.flags != 0) | (sub.weight <= 0)
        variance = np.where(mask, np.float32(1), 1 / np.where(mask, np.float32(1), sub.weight)).astype(np.float32)
        fwhm = fwhm_of(sub.psf)
        sign = np.sign(d["score"])
        table["index_in_sources"] = np.arange(len(d))
        table["center_x_pixel"], table["center_y_pixel"], table["score"] = d["peak_x"], d["peak_y"], d["score"]
        table["is_negative"] = sign < 0
        self._photometry(table, sub, variance, mask, d, new.sources.aper_radii, fwhm)
        if new.zp is not None and new.zp.map:
            table["mag"] += new.zp.at(table["x"], table["y"]) - new.zp.zp
        self._shapes(table, sub, mask, fwhm)
        self._artefacts(table, sub, d, sign, fwhm)
        table["ra"], table["dec"] = pixel_to_sky(new.wcs.header, table["x"], table["y"])
        self._errors(table, new.wcs.header)
        ratio = _on_star(table, new.sources.table, reference, new.wcs.header, new.psf.fwhm_pixels,
                         sub.metrics.get("flux_ratio", 1.0))
        self._judge(table, d, ratio, fwhm)
        out = Measurements(table)
        moved = np.hypot(table["x"] - d["x"], table["y"] - d["y"]) >= self.pars.bad_thresholds.detection_dist
        judge_measurements(out, sub, fwhm, np.asarray(moved))
        return out

    def _photometry(self, table: Table, sub: SubImage, variance: npt.NDArray[np.float32],
                    mask: npt.NDArray[np.bool_], d: Table, radii: tuple[float, ...], fwhm: float) -> None:
        phot = psf_photometry(sub.data, variance, mask, d["x"], d["y"], sub.psf, radius=1.5 * fwhm)
        lost = (phot.flags & SKIPPED) != 0
        # too many masked pixels for a fit: the matched filter's flux at the peak stands in
        table["flux_psf"] = np.where(lost, d["flux_psf"], phot.flux)
        # the fit's own error and the matched filter's differ by noise beyond the fit disc: the larger is honest
        table["flux_psf_err"] = np.where(lost, d["flux_psf_err"], np.maximum(phot.flux_err, d["flux_psf_err"]))
        table["x"], table["y"] = np.where(lost, d["x"], phot.x), np.where(lost, d["y"], phot.y)
        table["chi2_psf"], table["psf_fit_flags"] = phot.chi2, phot.flags
        table["flux_apertures"], table["flux_apertures_err"], _ = aperture_photometry(
            sub.data, variance, mask, table["x"], table["y"], radii)
        table["aper_radii"] = radii
        table["best_aperture"] = -1
        with np.errstate(divide="ignore", invalid="ignore"):
            flux = np.abs(table["flux_psf"])
            table["mag"] = sub.zp - 2.5 * np.log10(flux)
            table["mag_err"] = _POGSON * table["flux_psf_err"] / flux

    def _shapes(self, table: Table, sub: SubImage, mask: npt.NDArray[np.bool_], fwhm: float) -> None:
        m = moments(sub.data, mask, table["x"], table["y"], sigma=fwhm / 2.355 * 1.2)
        table["gfit_x"], table["gfit_y"] = m.x, m.y
        table["major_width"], table["minor_width"] = 2.355 * m.a, 2.355 * m.b
        table["position_angle"] = m.theta

    def _artefacts(self, table: Table, sub: SubImage, d: Table, sign: F64, fwhm: float) -> None:
        """Flagged and opposite pixels around the detection, judged on the score, where noise has unit variance."""
        half = max(3, round(self.pars.diag_box_halfsize * fwhm))
        scores, _ = cut_stamps(sub.score, d["peak_x"], d["peak_y"], 2 * half + 1)
        s = scores * sign[:, None, None]
        # a dipole's lobes are alike; weaker opposite residuals, of a host or a neighbour, do not count
        least = np.maximum(3.0, 0.25 * np.abs(d["score"]))[:, None, None]
        up, down = s > least, s < -least
        table["negfrac"] = down.sum(axis=(1, 2)) / np.maximum(up.sum(axis=(1, 2)), 1)
        table["negfluxfrac"] = -np.where(down, s, 0).sum(axis=(1, 2)) / np.maximum(
            np.where(up, s, 0).sum(axis=(1, 2)), 1e-3)
        inner = max(1, round(fwhm))
        bad, _ = cut_stamps(sub.flags != 0, d["peak_x"], d["peak_y"], 2 * inner + 1, fill=True)
        offset = np.arange(-inner, inner + 1)
        disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= inner**2
        table["nbadpix"] = (bad & disc).sum(axis=(1, 2))

    def _errors(self, table: Table, header: str) -> None:
        """Position errors on the sky from the S/N: FWHM / (2.355 S/N) per axis (King 1983, PASP 95, 163)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = np.abs(table["flux_psf"]) / table["flux_psf_err"]
            sigma = np.clip(0.5 * (table["major_width"] + table["minor_width"]), 1.0, 20.0) / 2.355 / snr
        ra, dec = pixel_to_sky(header, table["x"] + 1.0, table["y"])
        scale = np.hypot((ra - table["ra"]) * np.cos(np.deg2rad(dec)), dec - table["dec"])
        table["ra_err"] = table["dec_err"] = sigma * scale

    def _judge(self, table: Table, d: Table, ratio: F64, fwhm: float) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = np.abs(table["flux_psf"]) / table["flux_psf_err"]
            width = 0.5 * (table["major_width"] + table["minor_width"]) / self._psf_width(fwhm)
            figures = _Figures(table, snr > 10, width, table["major_width"] / table["minor_width"],
                               np.hypot(table["x"] - d["x"], table["y"] - d["y"]), (0.03 * snr) ** 2, ratio)
        deleted = failed_cuts(figures, self.pars.deletion_thresholds)
        bad = failed_cuts(figures, self.pars.bad_thresholds)
        bad = {name: bad[name] | deleted[name] for name in CUTS}
        table["is_bad"] = np.any(list(bad.values()), axis=0)
        table["bad_reasons"], table["deletion_reasons"] = _names(bad, len(table)), _names(deleted, len(table))

    def _psf_width(self, fwhm: float) -> float:
        return max(fwhm, 1.0)


@dataclass(frozen=True, slots=True)
class _Figures:
    """What cuts are made on; all of shape (n,).

    Attributes
    ----------
    bright : S/N > 10.  width : mean width over the PSF's.  elongation : major over minor width.
    moved : PSF-fit position from the detection [pix].  model_error : part of chi2 that an error of the PSF explains.
    ratio : |flux| over that of the star it sits on.
    """

    table: Table
    bright: npt.NDArray[np.bool_]
    width: F64
    elongation: F64
    moved: F64
    model_error: F64
    ratio: F64


def failed_cuts(f: _Figures, limits: BadThresholds | DeletionThresholds) -> dict[str, npt.NDArray[np.bool_]]:
    """Return for every cut (`CUTS`) which measurements fail it; where there is no limit, none does."""
    tests: dict[str, Callable[[Any], npt.NDArray[np.bool_]]] = {
        "fit": lambda mask: (f.table["psf_fit_flags"] & mask) != 0,
        "badpix": lambda limit: f.table["nbadpix"] >= limit,
        "moved": lambda limit: f.moved >= limit,
        "chi2": lambda limit: ~(f.table["chi2_psf"] < limit + f.model_error),
        "width": lambda limit: f.bright & ((f.width >= limit) | (f.width <= 1 / limit)),
        "elongation": lambda limit: f.bright & (f.elongation >= limit),
        "negfrac": lambda limit: f.table["negfrac"] >= limit,
        "negflux": lambda limit: f.table["negfluxfrac"] >= limit,
        "star": lambda limit: f.ratio < limit,
    }
    out = {}
    for name, threshold in CUTS.items():
        limit = limits[threshold]
        out[name] = np.zeros(len(f.table), bool) if limit is None else np.asarray(tests[name](limit))
    return out


def _names(cuts: dict[str, npt.NDArray[np.bool_]], n: int) -> list[bytes]:
    return [",".join(name for name, hit in cuts.items() if hit[k]).encode() for k in range(n)]


def _on_star(table: Table, new: Table, reference: Reference, header: str, fwhm: float, flux_ratio: float) -> F64:
    """Return |flux| over the flux of the brightest source within one FWHM (inf: none); fills ``dist_to_star``.

    Sources of the new image and of the reference count, the latter scaled to the new image.
    """
    rx, ry = sky_to_pixel(header, reference.sources.table["ra"], reference.sources.table["dec"])
    ref_flux = reference.sources.table["flux_psf"] * flux_ratio
    x, y = np.concatenate([new["x"], rx]), np.concatenate([new["y"], ry])
    flux = np.concatenate([new["flux_psf"], ref_flux]).astype(float)
    ok = np.isfinite(x) & np.isfinite(y) & np.isfinite(flux)
    ratio = np.full(len(table), np.inf)
    table["dist_to_star"] = np.inf
    if not ok.any():
        return ratio
    tree = cKDTree(np.stack([x[ok], y[ok]], axis=1))
    flux = flux[ok]
    here = np.stack([table["x"], table["y"]], axis=1)
    for k, found in enumerate(tree.query_ball_point(here, fwhm)):
        if found:
            ratio[k] = abs(float(table["flux_psf"][k])) / max(float(flux[found].max()), 1e-30)
    bright = flux > 10 * np.median(np.abs(table["flux_psf"]))
    if bright.any():
        table["dist_to_star"] = cKDTree(tree.data[bright]).query(here)[0]
    return ratio
