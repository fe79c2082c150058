"""Write an astrometric solution as a FITS header: TAN, TAN-SIP (Shupe et al. 2005, ASPC 347, 491), or TPV.

A solution comes as a `Surface`, a function from pixels to a tangent plane. Its polynomial is found on a grid, its order
raised until the header is true to 0.05 mas. Where the surface is itself a polynomial the header is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.pipeline.wcs_tools import design_matrix, polynomial_powers, sip_header

F64 = npt.NDArray[np.float64]
WcsForm = Literal["sip", "tpv"]
Terms = dict[tuple[int, int], float]
HIGHEST_ORDER: dict[str, int] = {"sip": 9, "tpv": 7}
_TOLERANCE_DEG = 0.05 / 3.6e6
_TPV_FIRST = (0, 1, 4, 7, 12, 17, 24, 31)
"""Number of the first PV card of every order; radial terms (3, 11, 23, 39) are not used."""


@dataclass(frozen=True, slots=True)
class Surface:
    """``plane(x, y)`` gives (n, 2) tangent-plane positions [deg] about (ra0, dec0) of 0-based pixels of an image of
    `shape` (ny, nx)."""

    plane: Callable[[F64, F64], F64]
    shape: tuple[int, int]
    ra0: float
    dec0: float

    def grid(self, nx: int, ny: int) -> tuple[F64, F64]:
        """Return x and y of a grid over the image, edges included."""
        gx, gy = np.meshgrid(np.linspace(-0.5, self.shape[1] - 0.5, nx), np.linspace(-0.5, self.shape[0] - 0.5, ny))
        return gx.ravel(), gy.ravel()

    def origin(self) -> tuple[float, float]:
        """Return the pixel of (ra0, dec0), by Newton's method from the centre."""
        x, y = (self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2
        for _ in range(20):
            p = self.plane(np.array([x, x + 1, x]), np.array([y, y, y + 1]))
            step = np.linalg.solve(np.stack([p[1] - p[0], p[2] - p[0]], axis=-1), -p[0])
            x, y = x + float(step[0]), y + float(step[1])
            if np.abs(step).max() < 1e-9:
                break
        return x, y


def write_header(surface: Surface, form: WcsForm, exact_order: int | None = None) -> str:
    """Return the header text of a surface, true to better than 0.1 mas over the image.

    Parameters
    ----------
    exact_order : int, optional
        The surface is a polynomial of this order. Without it the order is raised from 2 on.

    Raises
    ------
    AlgorithmError
        No polynomial of the highest order that the form allows is as true as that.
    """
    highest = HIGHEST_ORDER[form]
    x0, y0 = surface.origin()
    half = max(surface.shape) / 2
    x, y = surface.grid(24, 24)
    u, v = (x - x0) / half, (y - y0) / half
    target = surface.plane(x, y)
    check_x, check_y = surface.grid(17, 31)
    check = surface.plane(check_x, check_y)
    error = np.inf
    for order in range(exact_order or 2, highest + 1):
        c = np.linalg.lstsq(design_matrix(u, v, order), target, rcond=None)[0]
        there = design_matrix((check_x - x0) / half, (check_y - y0) / half, order) @ c
        error = float(np.hypot(*(there - check).T).max())
        if error < _TOLERANCE_DEG:
            break
    else:
        raise AlgorithmError("astrocal", f"the solution cannot be written as {form.upper()}; choose another "
                                         "extraction.wcs.output", {"error_mas": error * 3.6e6, "order": highest})
    powers = polynomial_powers(order)
    cd = np.asarray(np.stack([c[1], c[2]], axis=-1) / half, np.float64)
    crval = (surface.ra0, surface.dec0)
    if order == 1:
        return sip_header((x0, y0), crval, cd, {}, {}, {}, {})
    inverse = np.linalg.inv(cd)
    terms: tuple[Terms, Terms] = {}, {}
    for k, (p, q) in enumerate(powers):
        if p + q >= 2:
            for out, value in zip(terms, inverse @ c[k] / half ** (p + q), strict=True):
                out[p, q] = float(value)
    if form == "tpv":
        pv = _pv_terms(terms, cd, half * float(np.abs(cd).max()))
        return sip_header((x0, y0), crval, cd, {}, {}, {}, {}, pv)
    back = _inverse_terms(terms, (u * half, v * half), half, min(order + 1, highest))
    return sip_header((x0, y0), crval, cd, *terms, *back)


def _inverse_terms(forward: tuple[Terms, Terms], uv: tuple[F64, F64], half: float, order: int) -> tuple[Terms, Terms]:
    """AP and BP: least squares on a grid of the distorted coordinates."""
    u, v = uv
    fu, fv = (w + sum(c * u**p * v**q for (p, q), c in t.items()) for w, t in zip(uv, forward, strict=True))
    reach = max(float(np.abs(fu).max()), float(np.abs(fv).max()), half)
    solution = np.linalg.lstsq(design_matrix(fu / reach, fv / reach, order),
                               np.stack([u - fu, v - fv], axis=-1), rcond=None)[0]
    out: tuple[Terms, Terms] = {}, {}
    for k, (p, q) in enumerate(polynomial_powers(order)):
        for terms, value in zip(out, solution[k] / reach ** (p + q), strict=True):
            terms[p, q] = float(value)
    return out


def _pv_terms(sip: tuple[Terms, Terms], cd: F64, reach: float) -> dict[tuple[int, int], float]:
    """PV cards (axis, number) -> value: the same surface as a polynomial of the intermediate coordinates [deg]."""
    order = max(p + q for p, q in sip[0])
    axis = np.linspace(-1.0, 1.0, 2 * order + 3)
    gx, gy = (g.ravel() for g in np.meshgrid(axis, axis))
    # the surface as a function of x = CD (u, v); on a square of that plane, where the polynomial is as true
    uv = np.linalg.inv(cd) @ np.stack([gx, gy]) * reach
    fu, fv = (w + sum(c * uv[0] ** p * uv[1] ** q for (p, q), c in t.items()) for w, t in zip(uv, sip, strict=True))
    c = np.linalg.lstsq(design_matrix(gx, gy, order), (cd @ np.stack([fu, fv])).T / reach, rcond=None)[0]
    out: dict[tuple[int, int], float] = {}
    for k, (p, q) in enumerate(polynomial_powers(order)):
        n = p + q
        factor = reach ** (1 - n)
        # the second axis has its own coordinate first
        out[1, _TPV_FIRST[n] + q] = float(c[k, 0] * factor)
        out[2, _TPV_FIRST[n] + p] = float(c[k, 1] * factor)
    return out
