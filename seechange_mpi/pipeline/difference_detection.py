"""Detections in a difference image: extremes of its score, of both signs."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.detect import find_peaks, value_at_peaks
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import Detections, SubImage
from seechange_mpi.model.tables import DETECTIONS, empty_table
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky


class DetectionParameters(Parameters):
    """Parameters of ``Detector(subtraction=True)``."""

    section = "detection"
    subtraction: bool = par(True, "True: detections in a difference image")
    threshold: float = par(5.0, "least |score| of a detection", unit="sigma", gt=0)
    border: int = par(8, "pixels at the edge of the section where nothing is detected", unit="pix", ge=0)
    merge_radius_fwhms: float = par(1.0, "peaks closer than this are one detection", unit="FWHM", gt=0)
    max_per_mpix: float = par(3000.0, "refuse a difference image with more detections than this per million pixels: "
                                      "the subtraction has failed", gt=0)


def detect_difference(sub: SubImage, fwhm_pixels: float, wcs_header: str, pars: DetectionParameters) -> Detections:
    """Find the extremes of the score.

    Parameters
    ----------
    sub : SubImage
    fwhm_pixels : float, of the new image.
    wcs_header : str, WCS of the new image; gives ra and dec.

    Returns
    -------
    Detections
        Ordered by y, then x; may be empty.

    Raises
    ------
    AlgorithmError
        More detections than a subtraction that worked can have.
    """
    bad = (sub.flags != 0) | (sub.weight <= 0)
    b = pars.border
    if b:
        bad = bad.copy()
        bad[:b], bad[-b:], bad[:, :b], bad[:, -b:] = True, True, True, True
    radius = max(1.5, pars.merge_radius_fwhms * fwhm_pixels)
    peaks = find_peaks(sub.score, pars.threshold, bad, merge_radius=radius)
    n = len(peaks.x)
    if n > pars.max_per_mpix * max(sub.score.size, 1_000_000) / 1e6:
        raise AlgorithmError("detection", "far too many detections: the subtraction has failed",
                             {"detections": n, "score_std": sub.metrics.get("score_std", float("nan"))})
    table = empty_table(DETECTIONS, n)
    table["x"], table["y"] = peaks.x, peaks.y
    table["peak_x"], table["peak_y"] = peaks.peak_x, peaks.peak_y
    # between the pixels: the peak pixel is a few per cent low
    table["score"] = peaks.peak_value
    table["flux_psf"] = value_at_peaks(sub.flux, peaks, bad)
    table["flux_psf_err"] = sub.flux_err[peaks.peak_y, peaks.peak_x]
    table["num_pixels"], table["num_flagged"] = peaks.num_pixels, peaks.num_flagged
    table["peak_separation"] = np.inf
    if n:
        table["ra"], table["dec"] = pixel_to_sky(wcs_header, peaks.x, peaks.y)
    if n > 1:
        positions = np.stack([peaks.x, peaks.y], axis=1)
        table["peak_separation"] = cKDTree(positions).query(positions, k=2)[0][:, 1]
    return Detections(table)
