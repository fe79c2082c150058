"""How faint a point source may be: the flux of which half of all sources, at random places, are detected at 5 sigma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtr

from seechange_mpi.gpu_kernels.photometry import EDGE, MASKED, psf_photometry
from seechange_mpi.model.products import F64, PSF, Background, Image, SourceList
from seechange_mpi.pipeline.backgrounding import subtract_background

_PLASTIC = (0.7548776662466927, 0.5698402909980532)
"""Steps of a sequence that fills the square evenly (Roberts 2018)."""
_BLEND, _CONTRAST, _REACH = 0.8, 0.05, 4.0
"""A source is lost within _BLEND FWHM of one of at least half its flux, and where its top is below _CONTRAST of the
other's light at the same place, within _REACH FWHM: how the extraction searches the residual image."""


@dataclass(frozen=True, slots=True)
class Depth:
    """Limit of detection.

    Attributes
    ----------
    flux : of the limit [ADU];  noise : median error of a PSF flux over the unmasked positions [ADU].
    blocked : part of the positions where a source of that flux is lost beside a brighter one.
    good_fraction : part of the positions without masked pixels.
    """

    flux: float
    noise: float
    blocked: float
    good_fraction: float


def measure_depth(image: Image, background: Background, psf: PSF, sources: SourceList, positions: int = 2000) -> Depth:
    """Find the flux F of half completeness in the unmasked part of the section.

    PSF fluxes at positions spread evenly tell the noise σ: it follows the PSF, the sky and the sources of every place.
    A source of flux F is measured σ²/F too bright, as its position is fitted; it passes with probability
    Φ(F/σ + σ/F − 5), unless it is blended with a brighter one.
    """
    good = image.weight > 0
    variance = np.where(good, 1.0 / np.where(good, image.weight, 1), 1.0).astype(np.float32)
    k = np.arange(positions)
    x, y = (((0.5 + k * step) % 1.0) * (n - 1) for step, n in zip(_PLASTIC, image.shape[::-1], strict=True))
    phot = psf_photometry(subtract_background(image, background), variance, (image.flags != 0) | ~good, x, y, psf,
                          fit_position=False)
    error = np.asarray(phot.flux_err)
    usable = np.isfinite(error) & (error > 0)
    clean = usable & ((np.asarray(phot.flags) & (MASKED | EDGE)) == 0)
    if clean.sum() >= 20:
        usable = clean
    if not usable.any():
        return Depth(float("nan"), float("nan"), 0.0, 0.0)
    noise = float(np.median(error[usable]))
    hidden = np.sort(_hidden_below(x[usable], y[usable], sources, psf.fwhm_pixels))
    flux = noise * 10 ** np.linspace(0.4, 3.0, 1000)
    blocked = 1.0 - np.searchsorted(hidden, flux) / len(hidden)
    passes = (1.0 - blocked) * ndtr(flux / noise + noise / flux - 5.0)
    first = int(np.argmax(passes >= 0.5))
    if first == 0:
        return Depth(float("nan"), noise, float(blocked[0]), float(clean.mean()))
    limit = float(np.interp(0.5, passes[first - 1: first + 1], flux[first - 1: first + 1]))
    return Depth(limit, noise, float(np.interp(limit, flux, blocked)), float(clean.mean()))


def _hidden_below(x: F64, y: F64, sources: SourceList, fwhm: float) -> F64:
    """Flux below which a source at each position is lost beside a detected one [ADU]."""
    t = sources.table
    out = np.zeros(len(x))
    if len(t) == 0:
        return out
    flux = np.where(np.isfinite(t["flux_psf"]), t["flux_psf"], t["flux_apertures"][:, 1]).astype(float)
    pairs = cKDTree(np.stack([x, y], axis=-1)).sparse_distance_matrix(
        cKDTree(np.stack([t["x"], t["y"]], axis=-1)), _REACH * fwhm, output_type="ndarray")
    f = np.maximum(flux[pairs["j"]], 0.0)
    distance = pairs["v"] / fwhm
    # a Moffat profile of beta 3
    light = (1.0 + (2.0 * distance) ** 2 * (2.0 ** (1.0 / 3.0) - 1.0)) ** -3
    np.maximum.at(out, pairs["i"], f * np.where(distance < _BLEND, 2.0, _CONTRAST * light))
    return out
