"""A `Plate` maps pixels to a fixed tangent plane in two steps: a base (scaled pixels, or the distorted WCS of the
header) and a polynomial on top of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seechange_mpi.pipeline.matching import Similarity
from seechange_mpi.pipeline.wcs_header import Surface, WcsForm, write_header
from seechange_mpi.pipeline.wcs_tools import (
    deproject,
    design_matrix,
    has_distortion,
    pixel_scale_arcsec,
    pixel_to_sky,
    polynomial_powers,
    project,
)

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plate:
    """Pixels to tangent-plane coordinates [arcsec] about (ra0, dec0), the place of the image's centre.

    Attributes
    ----------
    source : header text whose WCS is the base.
    shape : (ny, nx) of the image.
    distorted : bool, the base is the full WCS of `source`; else its coordinates are scaled pixels.
    unit : what the base coordinates are divided by, so that they run from about -1 to 1 on both axes.
    order, coefficients : polynomial from base coordinates to (xi, eta) [arcsec], (n_terms, 2).
    """

    source: str
    shape: tuple[int, int]
    ra0: float
    dec0: float
    scale_arcsec: float
    distorted: bool
    unit: tuple[float, float]
    order: int
    coefficients: F64

    def base(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[F64, F64]:
        """Return base coordinates, about -1 .. 1 over the image."""
        ny, nx = self.shape
        if self.distorted:
            xi, eta = project(*pixel_to_sky(self.source, x, y), self.ra0, self.dec0)
            return xi / self.unit[0], eta / self.unit[1]
        return ((np.asarray(x, float) - (nx - 1) / 2) / self.unit[0],
                (np.asarray(y, float) - (ny - 1) / 2) / self.unit[1])

    def sky_arcsec(self, x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
        """Return (n, 2) tangent-plane positions of pixels [arcsec]."""
        return self.from_base(*self.base(x, y))

    def from_base(self, u: F64, v: F64) -> F64:
        """Return (n, 2) tangent-plane positions of base coordinates [arcsec]."""
        return np.asarray(design_matrix(u, v, self.order) @ self.coefficients)

    def plane_arcsec(self, ra: npt.ArrayLike, dec: npt.ArrayLike) -> F64:
        """Return (n, 2) tangent-plane positions of sky positions [arcsec]."""
        return np.stack(project(ra, dec, self.ra0, self.dec0), axis=-1) * 3600.0

    def moved(self, by: Similarity) -> Plate:
        """Return the plate after a similarity transformation in the tangent plane."""
        c = self.coefficients @ by.matrix()
        c[0] += (by.dx, by.dy)
        return replace(self, coefficients=c)

    def raised(self, order: int) -> F64:
        """Return the coefficients as those of a polynomial of `order`; terms above it are dropped."""
        n = len(polynomial_powers(order))
        out = np.zeros((n, 2))
        out[: min(n, len(self.coefficients))] = self.coefficients[:n]
        return out

    def jacobian(self) -> F64:
        """Return (2, 2) derivatives of (xi, eta) [arcsec] by (x, y) [pix] at the centre."""
        ny, nx = self.shape
        x, y = (nx - 1) / 2, (ny - 1) / 2
        p = self.sky_arcsec([x + 5, x - 5, x, x], [y, y, y + 5, y - 5])
        return np.stack([(p[0] - p[1]) / 10.0, (p[2] - p[3]) / 10.0], axis=-1)

    def extent_arcsec(self) -> tuple[float, float]:
        """Return half the size of the image in xi and eta [arcsec]."""
        ny, nx = self.shape
        corners = self.sky_arcsec([-0.5, nx - 0.5, -0.5, nx - 0.5], [-0.5, -0.5, ny - 0.5, ny - 0.5])
        half = np.ptp(corners, axis=0) / 2
        return float(half[0]), float(half[1])

    def header(self, form: WcsForm = "sip") -> str:
        """Return TAN, TAN-SIP or TPV header text, exact to better than 0.1 mas."""
        ny, nx = self.shape

        def plane(x: F64, y: F64) -> F64:
            return self.sky_arcsec(x, y) / 3600.0

        exact = None if self.distorted else self.order
        return write_header(Surface(plane, (ny, nx), self.ra0, self.dec0), form, exact)


def initial_plate(header: str, shape: tuple[int, int]) -> Plate:
    """Return the plate of a header's own WCS."""
    ny, nx = shape
    ra0, dec0 = (float(v) for v in pixel_to_sky(header, (nx - 1) / 2, (ny - 1) / 2))
    scale = pixel_scale_arcsec(header)
    distorted = has_distortion(header)
    gx, gy = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    target = np.stack(project(*pixel_to_sky(header, gx.ravel(), gy.ravel()), ra0, dec0), axis=-1)
    unit = (float(np.abs(target[:, 0]).max()), float(np.abs(target[:, 1]).max())) if distorted else (nx / 2, ny / 2)
    plate = Plate(header, shape, ra0, dec0, scale, distorted, unit, 1, np.zeros((3, 2)))
    if distorted:
        c = np.array([[0.0, 0.0], [unit[0], 0.0], [0.0, unit[1]]]) * 3600.0
    else:
        design = design_matrix(*plate.base(gx.ravel(), gy.ravel()), 1)
        c = np.asarray(np.linalg.lstsq(design, target * 3600.0, rcond=None)[0], np.float64)
    return replace(plate, coefficients=c)


def sky_of_plane(plate: Plate, xy_arcsec: F64) -> tuple[F64, F64]:
    """Return right ascension and declination [deg] of (n, 2) tangent-plane positions [arcsec]."""
    return deproject(xy_arcsec[:, 0] / 3600.0, xy_arcsec[:, 1] / 3600.0, plate.ra0, plate.dec0)
