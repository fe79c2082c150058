"""Forced photometry: fluxes in difference images at given positions of the sky, whether or not anything is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from seechange_mpi.config.history import ForcedPhotometrySettings
from seechange_mpi.gpu_kernels.photometry import SKIPPED, aperture_photometry, psf_photometry
from seechange_mpi.gpu_kernels.psf_model import fwhm_of
from seechange_mpi.io.difference import Difference, read_differences
from seechange_mpi.model.products import F64, Table
from seechange_mpi.model.tables import FORCED, empty_table
from seechange_mpi.pipeline.wcs_tools import sky_to_pixel

OUTSIDE, BRIGHT = 32, 64
"""Bits of ``FORCED.flags``: off the section, on or near a bright source. The others are those of `PSFPhotometry`."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Positions in one section: ids of the rows to be, of the objects, and where to measure [deg]."""

    image_id: str
    provenance_id: str
    filter: str
    object_ids: tuple[str, ...]
    ra: tuple[float, ...]
    dec: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ForcedTask:
    """What is to be measured in one bundle: section -> `Targets`."""

    exposure: str
    bundle: str
    mjd: float
    sections: Mapping[str, Targets] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Measurements asked for."""
        return sum(len(t.object_ids) for t in self.sections.values())


def force(d: Difference, ra: npt.ArrayLike, dec: npt.ArrayLike, pars: ForcedPhotometrySettings) -> Table:
    """Measure a difference image at positions of the sky.

    Parameters
    ----------
    d : difference image with its PSF, WCS and zero point.
    ra, dec : (n,) ICRS [deg].

    Returns
    -------
    (n,) `tables.FORCED`, in the same order; fluxes in ADU of the new image, signed.
    """
    x, y = sky_to_pixel(d.wcs.header, np.asarray(ra, float), np.asarray(dec, float))
    out = empty_table(FORCED, len(x))
    if len(x) == 0:
        return out
    ny, nx = d.data.shape
    on = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    mask = (d.flags != 0) | ~(d.weight > 0)
    variance = np.where(mask, np.float32(1), 1 / np.where(mask, np.float32(1), d.weight)).astype(np.float32)
    fwhm = fwhm_of(d.psf)
    phot = psf_photometry(d.data, variance, mask, x, y, d.psf, radius=pars.radius_fwhms * fwhm, fit_position=False,
                          equal_weights=True)
    radius = pars.aperture_fwhms * fwhm
    flux, error, nbad = aperture_photometry(d.data, variance, mask, x, y, (radius,))
    part = _enclosed(d.psf, radius)
    whole = on & (nbad[:, 0] == 0)
    lost = ~on | ((phot.flags & SKIPPED) != 0)
    out["x"], out["y"] = x, y
    out["flux_psf"], out["flux_psf_err"] = np.where(lost, np.nan, phot.flux), np.where(lost, np.nan, phot.flux_err)
    out["chi2_psf"] = np.where(lost, np.nan, phot.chi2)
    out["flux_aperture"] = np.where(whole, flux[:, 0] / part, np.nan)
    out["flux_aperture_err"] = np.where(whole, error[:, 0] / part, np.nan)
    out["aper_radius"], out["nbadpix"] = radius, nbad[:, 0]
    out["flags"] = np.where(on, phot.flags, phot.flags | OUTSIDE | SKIPPED)
    out["flags"] |= np.where(_near_bright(d, x, y, out["flux_psf_err"] * pars.bright_snr, pars.bright_fwhms * fwhm),
                             BRIGHT, 0)
    out["zp"] = d.zp.at(np.clip(np.nan_to_num(x), 0, nx - 1), np.clip(np.nan_to_num(y), 0, ny - 1))
    out["lim_mag"] = out["zp"] - 2.5 * np.log10(pars.limit_sigma * out["flux_psf_err"])
    noise = float(np.median(variance[~mask])) if not mask.all() else np.nan
    typical = np.sqrt(noise / np.sum(d.psf.astype(float) ** 2))
    out["image_lim_mag"] = d.zp.zp - 2.5 * np.log10(pars.limit_sigma * typical)
    return out


def _near_bright(d: Difference, x: F64, y: F64, least: F64, reach: float) -> npt.NDArray[np.bool_]:
    """Which positions have a source of more than `least` [ADU] closer than `reach` [pix]."""
    out = np.zeros(len(x), bool)
    if d.sources is None or not reach > 0:
        return out
    t = d.sources.table
    flux = np.where(np.isfinite(t["x"]) & np.isfinite(t["y"]), t["flux_psf"], np.nan)
    t, flux = t[flux > 0], flux[flux > 0]
    asked = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & np.isfinite(least))
    if len(t) == 0 or len(asked) == 0:
        return out
    tree = cKDTree(np.stack([t["x"], t["y"]], axis=1))
    for k, near in zip(asked, tree.query_ball_point(np.stack([x[asked], y[asked]], axis=1), reach), strict=True):
        out[k] = bool(near) and bool((flux[near] > least[k]).any())
    return out


def _enclosed(psf: npt.NDArray[np.float32], radius: float) -> float:
    """Part of a centred PSF stamp of sum 1 within a radius [pix]."""
    middle = np.array([psf.shape[0] // 2], float)
    good = np.zeros(psf.shape, bool)
    flux, _, _ = aperture_photometry(psf, np.ones_like(psf), good, middle, middle, (radius,))
    return float(flux[0, 0] / psf.sum())


def measure(task: ForcedTask, settings: Mapping[str, Any]) -> dict[str, Table]:
    """Measure a task: section -> table, in the order of its targets. The bundle is opened once.

    Raises
    ------
    BadInput
        The bundle, one of its shards or a section is missing or damaged.
    """
    pars = ForcedPhotometrySettings(**settings)
    return {section: force(d, task.sections[section].ra, task.sections[section].dec, pars)
            for section, d in read_differences(task.bundle, tuple(task.sections))}


def inside(corners: F64, ra: npt.ArrayLike, dec: npt.ArrayLike, margin_arcsec: float = 2.0) -> npt.NDArray[np.bool_]:
    """Return which positions may lie on an image.

    Parameters
    ----------
    corners : (4, 2) ra, dec [deg] of its corners, in any order; the image is convex.
    ra, dec : (n,) [deg].
    margin_arcsec : the footprint is grown by this, since corners are stored in single precision.
    """
    from seechange_mpi.pipeline.wcs_tools import project, unit_vectors

    v = unit_vectors(corners[:, 0], corners[:, 1]).mean(axis=0)
    ra0, dec0 = float(np.degrees(np.arctan2(v[1], v[0]))), float(np.degrees(np.arctan2(v[2], np.hypot(v[0], v[1]))))
    corner = np.stack(project(corners[:, 0], corners[:, 1], ra0, dec0), axis=1)
    corner = corner[np.argsort(np.arctan2(corner[:, 1], corner[:, 0]))]
    x, y = project(ra, dec, ra0, dec0)
    out = np.isfinite(x)
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    for k in range(4):
        edge = corner[(k + 1) % 4] - corner[k]
        away = (edge[0] * (y - corner[k, 1]) - edge[1] * (x - corner[k, 0])) / max(float(np.hypot(*edge)), 1e-12)
        out &= away >= -margin_arcsec / 3600
    return out
