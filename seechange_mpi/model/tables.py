"""Column definitions of every table a section produces: name, dtype, unit, meaning.

Positions x, y are 0-based pixel centres; fluxes are ADU of the image (mag = -2.5 log10(ADU) + zp).
``dtype_of`` gives the numpy structured dtype; the bundle writes units as attributes and the database
takes its columns from the same place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

N_APERTURES = 4
"""Number of aperture radii in every table that has aperture fluxes."""


class Column(NamedTuple):
    """One column: name, numpy dtype (with sub-shape), unit, meaning; older files may lack ``optional`` ones."""

    name: str
    dtype: object
    unit: str
    help: str
    optional: bool = False


_APER = ("f4", (N_APERTURES,))

SOURCES: tuple[Column, ...] = (
    Column("x", "f8", "pix", "position: of the PSF fit for stars and blends, else the windowed centroid"),
    Column("y", "f8", "pix", "position: of the PSF fit for stars and blends, else the windowed centroid"),
    Column("x_err", "f4", "pix", "error of x"),
    Column("y_err", "f4", "pix", "error of y"),
    Column("ra", "f8", "deg", "ICRS, NaN before astrocal"),
    Column("dec", "f8", "deg", "ICRS, NaN before astrocal"),
    Column("flux_psf", "f4", "ADU", "PSF flux"),
    Column("flux_psf_err", "f4", "ADU", "error of flux_psf"),
    Column("chi2_psf", "f4", "", "chi2 per degree of freedom of the PSF fit"),
    Column("flux_apertures", _APER, "ADU", "aperture fluxes"),
    Column("flux_apertures_err", _APER, "ADU", "errors of flux_apertures"),
    Column("peak", "f4", "ADU", "brightest pixel above background"),
    Column("a", "f4", "pix", "rms along the major axis"),
    Column("b", "f4", "pix", "rms along the minor axis"),
    Column("theta", "f4", "rad", "position angle of the major axis, from x towards y"),
    Column("half_light_radius", "f4", "pix", "radius of half the flux"),
    Column("x_win", "f8", "pix", "windowed centroid"),
    Column("y_win", "f8", "pix", "windowed centroid"),
    Column("spread_model", "f4", "", "width beyond the PSF's: 0 for stars, positive for galaxies"),
    Column("spread_model_err", "f4", "", "error of spread_model"),
    Column("flags", "i4", "", "extraction flags: SExtractor's bits 0-7"),
    Column("pixel_flags", "i4", "", "OR of the image flags under the source"),
    Column("is_star", "?", "", "point-like"),
    Column("psf_star", "?", "", "used to build the PSF"),
)

DETECTIONS: tuple[Column, ...] = (
    Column("x", "f8", "pix", "centroid in the difference image"),
    Column("y", "f8", "pix", "centroid in the difference image"),
    Column("ra", "f8", "deg", "ICRS"),
    Column("dec", "f8", "deg", "ICRS"),
    Column("peak_x", "i4", "pix", "pixel of the extreme score"),
    Column("peak_y", "i4", "pix", "pixel of the extreme score"),
    Column("score", "f4", "sigma", "signed extreme of the detection statistic"),
    Column("flux_psf", "f4", "ADU", "matched-filter flux at the peak, signed"),
    Column("flux_psf_err", "f4", "ADU", "error of flux_psf"),
    Column("num_pixels", "i4", "", "pixels above threshold"),
    Column("num_flagged", "i4", "", "flagged pixels within the label"),
    Column("peak_separation", "f4", "pix", "distance to the nearest other detection"),
)

MEASUREMENTS: tuple[Column, ...] = (
    Column("index_in_sources", "i4", "", "row in detections"),
    Column("x", "f8", "pix", "PSF-fit position"),
    Column("y", "f8", "pix", "PSF-fit position"),
    Column("center_x_pixel", "i4", "pix", "centre of the cutout"),
    Column("center_y_pixel", "i4", "pix", "centre of the cutout"),
    Column("ra", "f8", "deg", "ICRS"),
    Column("dec", "f8", "deg", "ICRS"),
    Column("ra_err", "f4", "deg", "error of ra (on the sky, times cos dec)"),
    Column("dec_err", "f4", "deg", "error of dec"),
    Column("score", "f4", "sigma", "detection statistic of the detection"),
    Column("flux_psf", "f4", "ADU", "PSF flux in the difference, signed"),
    Column("flux_psf_err", "f4", "ADU", "error of flux_psf"),
    Column("chi2_psf", "f4", "", "chi2 per degree of freedom of the PSF fit"),
    Column("flux_apertures", _APER, "ADU", "aperture fluxes in the difference"),
    Column("flux_apertures_err", _APER, "ADU", "errors of flux_apertures"),
    Column("aper_radii", _APER, "pix", "aperture radii"),
    Column("best_aperture", "i2", "", "-1 = PSF flux"),
    Column("bkg_per_pix", "f4", "ADU", "local background"),
    Column("mag", "f4", "mag", "magnitude of |flux_psf|"),
    Column("mag_err", "f4", "mag", "error of mag"),
    Column("gfit_x", "f4", "pix", "moment centroid"),
    Column("gfit_y", "f4", "pix", "moment centroid"),
    Column("major_width", "f4", "pix", "FWHM along the major axis"),
    Column("minor_width", "f4", "pix", "FWHM along the minor axis"),
    Column("position_angle", "f4", "rad", "from x towards y"),
    Column("psf_fit_flags", "i4", "", "0 good; bit 0 masked pixels in the fit box, 1 off the edge, "
                                      "2 not converged, 3 skipped, 4 left the fit box"),
    Column("nbadpix", "i4", "", "flagged pixels in the diagnostic box"),
    Column("negfrac", "f4", "", "significantly negative over significantly positive pixels"),
    Column("negfluxfrac", "f4", "", "the same for flux"),
    Column("dist_to_star", "f4", "pix", "distance to the nearest bright source of new or reference"),
    Column("is_negative", "?", "", "fainter than in the reference"),
    Column("is_bad", "?", "", "fails a threshold; kept for inspection"),
    Column("bad_reasons", "S64", "", "names of the thresholds that failed, comma separated"),
    Column("bitflag", "i8", "", "badness bits of this measurement alone (flags.Badness)", optional=True),
    Column("deletion_reasons", "S64", "", "names of the deletion thresholds that failed; such a measurement is bad and "
                                          "does not enter the database", optional=True),
)

SCORES: tuple[Column, ...] = (
    Column("index_in_sources", "i4", "", "row in detections"),
    Column("score", "f4", "", "0 bogus .. 1 real"),
)

FORCED: tuple[Column, ...] = (
    Column("x", "f8", "pix", "where it was measured; NaN beyond the reach of the WCS"),
    Column("y", "f8", "pix", "where it was measured"),
    Column("flux_psf", "f4", "ADU", "PSF flux in the difference at the fixed position; NaN where it cannot be had"),
    Column("flux_psf_err", "f4", "ADU", "error of flux_psf"),
    Column("chi2_psf", "f4", "", "chi2 per degree of freedom"),
    Column("flux_aperture", "f4", "ADU", "aperture flux, corrected for the part of the PSF beyond the aperture; NaN "
                                         "where pixels of it are masked"),
    Column("flux_aperture_err", "f4", "ADU", "error of flux_aperture"),
    Column("aper_radius", "f4", "pix", "radius of the aperture"),
    Column("zp", "f4", "mag", "zero point at the position: mag = zp - 2.5 log10(flux)"),
    Column("lim_mag", "f4", "mag", "magnitude of forcedphot.limit_sigma times flux_psf_err"),
    Column("image_lim_mag", "f4", "mag", "the same for the whole PSF at a typical place of the difference image"),
    Column("flags", "i4", "", "0 good; bit 0 masked pixels in the disc, 1 disc reaches over the edge, 3 too few good "
                              "pixels for a flux, 5 position off the section, 6 on or near a bright source"),
    Column("nbadpix", "i4", "", "masked or missing pixels in the aperture"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "sources": SOURCES, "detections": DETECTIONS, "measurements": MEASUREMENTS, "scores": SCORES,
}  # fmt: skip


def dtype_of(columns: tuple[Column, ...]) -> np.dtype:
    """Return the numpy structured dtype of a table."""
    fields: list[object] = []
    for c in columns:
        if isinstance(c.dtype, tuple):
            fields.append((c.name, c.dtype[0], c.dtype[1]))
        else:
            fields.append((c.name, c.dtype))
    return np.dtype(fields)  # type: ignore[arg-type]


def empty_table(columns: tuple[Column, ...], n: int = 0) -> npt.NDArray[np.void]:
    """Return a zero-filled structured array of `n` rows."""
    return np.zeros(n, dtype=dtype_of(columns))
