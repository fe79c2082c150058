"""Positions and outlines on the sky: galactic and ecliptic coordinates, bounds and overlap of quadrilaterals.

Right at the poles and across RA 0. Angles in degrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.db.linking import healpix
from seechange_mpi.db.matching import F64, unit_vectors

_GALACTIC = np.array([
    [-0.0548755604162154, -0.8734370902348850, -0.4838350155487132],
    [+0.4941094278755837, -0.4448296299600112, +0.7469822444972189],
    [-0.8676661490190047, -0.1980763734312015, +0.4559837761750669]])
"""ICRS to galactic axes (ESA 1997, The Hipparcos Catalogue, vol. 1, eq. 1.5.11)."""
_OBLIQUITY_DEG = 84381.406 / 3600
"""Mean obliquity of the ecliptic at J2000 (Capitaine et al. 2003)."""
_NEAR_POLE_DEG = 60.0
"""Outlines nearer the equator have no pole in them: they are smaller than a hemisphere by far."""
RING = ("00", "01", "11", "10")
"""Corners of an image in order around."""


def galactic(ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[F64, F64]:
    """Return galactic longitude and latitude of ICRS positions [deg]."""
    return _angles(unit_vectors(ra, dec) @ _GALACTIC.T)


def ecliptic(ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[F64, F64]:
    """Return longitude and latitude [deg] in the mean ecliptic of J2000; the bias of the frame (0.02 arcsec) is left
    out."""
    c, s = np.cos(np.deg2rad(_OBLIQUITY_DEG)), np.sin(np.deg2rad(_OBLIQUITY_DEG))
    return _angles(unit_vectors(ra, dec) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]).T)


def _angles(v: F64) -> tuple[F64, F64]:
    return np.rad2deg(np.arctan2(v[:, 1], v[:, 0])) % 360.0, np.rad2deg(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))


def sky_columns(ra: npt.ArrayLike, dec: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
    """Return the columns (n,) that follow from positions: healpix, galactic and ecliptic coordinates [deg]."""
    gallon, gallat = galactic(ra, dec)
    ecllon, ecllat = ecliptic(ra, dec)
    return {"healpix": np.atleast_1d(healpix(ra, dec)), "gallon": gallon, "gallat": gallat, "ecllon": ecllon,
            "ecllat": ecllat}


def columns_of(ra: float | None, dec: float | None) -> dict[str, float | int | None]:
    """Return what `sky_columns` gives for one position; NULL without one."""
    if ra is None or dec is None:
        return dict.fromkeys(("healpix", "gallon", "gallat", "ecllon", "ecllat"))
    return {name: column[0].item() for name, column in sky_columns(ra, dec).items()}


def bounds(ra: npt.ArrayLike, corners_ra: npt.ArrayLike, corners_dec: npt.ArrayLike) -> dict[str, F64]:
    """Return minra, maxra, mindec, maxdec, each (n,) [deg], of quadrilaterals of great circles.

    maxra < minra says that it crosses RA 0. One with a pole in it goes from 0 to 360 and to that pole.

    Parameters
    ----------
    ra : (n,), of points inside.
    corners_ra, corners_dec : (n, 4), of the corners, in order around.
    """
    ra = np.atleast_1d(np.asarray(ra, float))
    corners_ra, corners_dec = (np.asarray(c, float).reshape(-1, 4) for c in (corners_ra, corners_dec))
    low, high = _extremes(unit_vectors(corners_ra, corners_dec).reshape(-1, 4, 3), corners_dec)
    away = (corners_ra - ra[:, None] + 180) % 360 - 180  # RA has no turning point along an edge
    out = {"minra": (ra + away.min(axis=1)) % 360, "maxra": (ra + away.max(axis=1)) % 360, "mindec": low,
           "maxdec": high}
    for k in np.flatnonzero(np.maximum(-low, high) > _NEAR_POLE_DEG):
        outline = ring(unit_vectors(corners_ra[k], corners_dec[k]))
        for pole, edge in ((1.0, "maxdec"), (-1.0, "mindec")):
            if inside(outline, np.array([[0.0, 0.0, pole]]))[0]:
                out["minra"][k], out["maxra"][k], out[edge][k] = 0.0, 360.0, 90.0 * pole
    return out


def _extremes(v: F64, corners_dec: F64) -> tuple[F64, F64]:
    """Lowest and highest declination [deg] on the edges of outlines (n, 4, 3)."""
    ends = np.roll(v, -1, axis=1)
    normal = np.cross(v, ends)
    normal /= np.maximum(np.linalg.norm(normal, axis=2, keepdims=True), 1e-300)
    found = [corners_dec.min(axis=1), corners_dec.max(axis=1)]
    for k, (pole, pick) in enumerate(((-1.0, np.minimum), (1.0, np.maximum))):
        # where the great circle of an edge turns, if that is on the edge
        top = np.array([0.0, 0.0, pole]) - pole * normal[..., 2:] * normal
        on = (np.sum(np.cross(v, top) * normal, axis=2) > 0) & (np.sum(np.cross(top, ends) * normal, axis=2) > 0)
        dec = np.where(on, np.rad2deg(np.arctan2(top[..., 2], np.hypot(top[..., 0], top[..., 1]))),
                       found[k][:, None])
        found[k] = pick.reduce(np.concatenate([dec, found[k][:, None]], axis=1), axis=1)
    return found[0], found[1]


def ring(v: F64) -> F64:
    """Return corners (n, 3) of a convex outline in order around its centre, counter-clockwise seen from outside."""
    centre = v.mean(axis=0)
    centre /= np.linalg.norm(centre)
    east = np.cross([0.0, 0.0, 1.0] if abs(centre[2]) < 0.9 else [1.0, 0.0, 0.0], centre)
    east /= np.linalg.norm(east)
    angle = np.arctan2(v @ np.cross(centre, east), v @ east)
    return np.asarray(v[np.argsort(angle, kind="stable")])


def inside(outline: F64, points: F64) -> npt.NDArray[np.bool_]:
    """Return which unit vectors (m, 3) lie in a convex outline (n, 3) as `ring` orders it, its edges included.

    Outlines must be smaller than a hemisphere.
    """
    normals = np.cross(outline, np.roll(outline, -1, axis=0))
    return np.asarray((points @ normals.T >= -1e-12).all(axis=1) & (points @ outline.mean(axis=0) > 0))


def touch(a: F64, b: F64) -> bool:
    """Return whether two convex outlines, ordered by `ring`, overlap: no edge of either separates them."""
    if a.mean(axis=0) @ b.mean(axis=0) <= 0:
        return False
    for one, other in ((a, b), (b, a)):
        normals = np.cross(one, np.roll(one, -1, axis=0))
        if ((other @ normals.T) < 0).all(axis=0).any():
            return False
    return True
