"""Figures of an astrometric solution: residuals, errors at centre and corners, what was wrong with the header."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.products import WorldCoordinates
from seechange_mpi.pipeline.matching import match_pairs
from seechange_mpi.pipeline.plate import initial_plate
from seechange_mpi.pipeline.wcs_fit import PlateFit
from seechange_mpi.pipeline.wcs_header import WcsForm
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky

F64 = npt.NDArray[np.float64]
_MAS = 1000.0


def figures_of_fit(fit: PlateFit, form: WcsForm) -> WorldCoordinates:
    """Return the product of a fit: its header and figures."""
    plate = fit.plate
    ny, nx = plate.shape
    r = fit.residual[fit.used] * _MAS
    variance = fit.variance[fit.used] * _MAS**2
    size = np.hypot(*r.T)
    error = fit.error_arcsec([(nx - 1) / 2, -0.5, nx - 0.5, -0.5, nx - 0.5],
                             [(ny - 1) / 2, -0.5, -0.5, ny - 0.5, ny - 0.5]) * _MAS
    header = plate.header(form)
    dx, dy, angle, scale = header_change(plate.source, header, plate.shape)
    mean = (r / variance).sum(axis=0) / (1.0 / variance).sum(axis=0)
    return WorldCoordinates(
        header, "catalog", int(fit.used.sum()), float(np.sqrt(np.mean(r**2))),
        rms_radial_mas=float(np.sqrt(np.mean(size**2))), rms_ra_mas=float(np.sqrt(np.mean(r[:, 0] ** 2))),
        rms_dec_mas=float(np.sqrt(np.mean(r[:, 1] ** 2))), max_residual_mas=float(size.max()),
        mean_ra_mas=float(mean[0]), mean_dec_mas=float(mean[1]), chi2_dof=fit.chi2_dof, order=plate.order,
        floor_mas=fit.errors.floor_arcsec * _MAS, error_centre_mas=float(error[0]),
        error_corner_mas=float(error[1:].max()), header_offset_ra_arcsec=dx, header_offset_dec_arcsec=dy,
        header_rotation_deg=angle, header_scale=scale)


def figures_of_header(header: str, sources: F64, stars: F64, radius: float) -> WorldCoordinates:
    """Return the product of a header that is taken as it is, with the residuals of stars within `radius` [arcsec]."""
    wcs = WorldCoordinates(header=header, method="header")
    i, j = match_pairs(sources, stars, radius)
    if len(i) >= 4:
        r = (stars[j] - sources[i]) * _MAS
        size = np.hypot(*r.T)
        wcs.n_matched, wcs.rms_mas = len(i), float(np.sqrt(np.mean(r**2)))
        wcs.rms_radial_mas, wcs.max_residual_mas = float(np.sqrt(np.mean(size**2))), float(size.max())
        wcs.rms_ra_mas, wcs.rms_dec_mas = (float(v) for v in np.sqrt(np.mean(r**2, axis=0)))
        wcs.mean_ra_mas, wcs.mean_dec_mas = (float(v) for v in np.median(r, axis=0))
    return wcs


def displacement(before: str, after: str, shape: tuple[int, int]) -> tuple[F64, F64]:
    """Return the tangent-plane positions [arcsec] of 9 × 9 pixels by two headers, about the middle of the first."""
    ny, nx = shape
    gx, gy = (g.ravel() for g in np.meshgrid(np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9)))
    guess = initial_plate(before, shape)
    return guess.sky_arcsec(gx, gy), guess.plane_arcsec(*pixel_to_sky(after, gx, gy))


def header_change(before: str, after: str, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return what takes one header to another: shift of the middle (RA, Dec) [arcsec], rotation [deg], scale."""
    p, q = displacement(before, after, shape)
    a, b = p[:, 0] + 1j * p[:, 1], q[:, 0] + 1j * q[:, 1]
    da, db = a - a.mean(), b - b.mean()
    norm = max(float((np.abs(da) ** 2).sum()), 1e-30)
    straight, mirrored = (np.conj(da) @ db) / norm, (da @ db) / norm
    factor = straight if abs(straight) >= abs(mirrored) else mirrored
    shift = q[len(q) // 2] - p[len(p) // 2]
    return float(shift[0]), float(shift[1]), float(np.degrees(np.angle(factor))), float(abs(factor))
