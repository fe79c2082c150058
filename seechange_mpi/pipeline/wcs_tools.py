"""Small helpers around astropy.wcs: header text in, sky and pixel positions out; gnomonic projection.

A world coordinate system is a FITS header text (80-character cards, or lines). Pixel positions are 0-based.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import AlgorithmError

F64 = npt.NDArray[np.float64]
_DISTORTED = re.compile(r"CTYPE[12] *= *'[^']*-(TPV|SIP|TNX|ZPX|ZPN)|(?:^|\s)PV[12]_\d+ *=", re.MULTILINE)


@lru_cache(maxsize=64)
def load_wcs(header: str) -> Any:
    """Return the celestial `astropy.wcs.WCS` of a header text (cached; do not change it).

    Raises
    ------
    AlgorithmError
        The text is empty or has no celestial coordinates.
    """
    import warnings

    from astropy.io import fits
    from astropy.wcs import WCS

    if not header.strip():
        raise AlgorithmError("astrocal", "the image has no WCS; give one in the header or the sidecar file")
    cards = fits.Header.fromstring(header, sep="\n" if "\n" in header else "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(cards)
    except Exception as err:  # noqa: BLE001 - wcslib raises many kinds; all mean an unusable header
        raise AlgorithmError("astrocal", f"the WCS in the header cannot be used: {err}") from None
    if not wcs.has_celestial or wcs.naxis != 2 or not np.all(np.isfinite(wcs.wcs.crval)):
        raise AlgorithmError("astrocal", "the header has no two-dimensional celestial WCS",
                             {"ctype": "/".join(wcs.wcs.ctype)})
    return wcs


def has_distortion(header: str) -> bool:
    """Return True if the WCS is more than a projection of linear coordinates (SIP, TPV, lookup tables)."""
    # wcslib keeps TPV to itself and says TAN, so the text is asked
    return bool(load_wcs(header).has_distortion) or _DISTORTED.search(header) is not None


def pixel_to_sky(header: str, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[F64, F64]:
    """Return ICRS right ascension and declination [deg] of 0-based pixel positions."""
    ra, dec = load_wcs(header).all_pix2world(np.asarray(x, float), np.asarray(y, float), 0)
    return np.mod(np.asarray(ra, float), 360.0), np.asarray(dec, float)


def sky_to_pixel(header: str, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[F64, F64]:
    """Return 0-based pixel positions; NaN more than 80 degrees from the reference point."""
    wcs = load_wcs(header)
    ra_, dec_ = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    near = separation_deg(ra_, dec_, float(wcs.wcs.crval[0]), float(wcs.wcs.crval[1])) < 80.0
    x, y = np.full(ra_.shape, np.nan), np.full(ra_.shape, np.nan)
    if near.any():
        x[near], y[near] = wcs.all_world2pix(ra_[near], dec_[near], 0, tolerance=1e-5, maxiter=30, quiet=True)
    shape = np.shape(ra)
    return x.reshape(shape), y.reshape(shape)


def pixel_scale_arcsec(header: str) -> float:
    """Return the mean pixel scale at the reference point [arcsec/pix]."""
    from astropy.wcs.utils import proj_plane_pixel_area

    return float(np.sqrt(proj_plane_pixel_area(load_wcs(header).celestial)) * 3600.0)


def unit_vectors(ra: npt.ArrayLike, dec: npt.ArrayLike) -> F64:
    """Return (n, 3) unit vectors of positions in degrees."""
    a, d = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def separation_deg(ra: npt.ArrayLike, dec: npt.ArrayLike, ra0: npt.ArrayLike, dec0: npt.ArrayLike) -> F64:
    """Return angular distances [deg]."""
    chord = np.linalg.norm(unit_vectors(ra, dec) - unit_vectors(ra0, dec0), axis=-1)
    return np.asarray(np.degrees(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0))))


def project(ra: npt.ArrayLike, dec: npt.ArrayLike, ra0: float, dec0: float) -> tuple[F64, F64]:
    """Gnomonic projection: return (xi, eta) [deg] about (ra0, dec0); NaN beyond 90 degrees."""
    a, d = np.radians(np.asarray(ra, float) - ra0), np.radians(np.asarray(dec, float))
    d0 = np.radians(dec0)
    cos_c = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    cos_c = np.where(cos_c > 1e-6, cos_c, np.nan)
    xi = np.cos(d) * np.sin(a) / cos_c
    eta = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cos_c
    return np.degrees(xi), np.degrees(eta)


def deproject(xi: npt.ArrayLike, eta: npt.ArrayLike, ra0: float, dec0: float) -> tuple[F64, F64]:
    """Inverse of `project`; right ascension in [0, 360)."""
    x, y = np.radians(np.asarray(xi, float)), np.radians(np.asarray(eta, float))
    d0 = np.radians(dec0)
    ra = ra0 + np.degrees(np.arctan2(x, np.cos(d0) - y * np.sin(d0)))
    dec = np.degrees(np.arctan2(np.sin(d0) + y * np.cos(d0), np.hypot(x, np.cos(d0) - y * np.sin(d0))))
    return np.mod(ra, 360.0), dec


def footprint_cone(header: str, shape: tuple[int, int], margin_arcsec: float = 0.0) -> tuple[float, float, float]:
    """Return (ra, dec, radius) [deg] of a cone around an image of `shape` (ny, nx), with a margin."""
    ny, nx = shape
    x = np.array([(nx - 1) / 2, -0.5, nx - 0.5, -0.5, nx - 0.5])
    y = np.array([(ny - 1) / 2, -0.5, -0.5, ny - 0.5, ny - 0.5])
    ra, dec = pixel_to_sky(header, x, y)
    radius = separation_deg(ra[1:], dec[1:], ra[0], dec[0]).max()
    return float(ra[0]), float(dec[0]), float(radius + margin_arcsec / 3600.0)


def polynomial_powers(order: int) -> list[tuple[int, int]]:
    """Return the powers (p, q) of u**p v**q with p + q <= order, lowest order first."""
    return [(n - q, q) for n in range(order + 1) for q in range(n + 1)]


def design_matrix(u: F64, v: F64, order: int) -> F64:
    """Return (n, n_terms) of u**p v**q in the order of `polynomial_powers`."""
    return np.stack([u**p * v**q for p, q in polynomial_powers(order)], axis=-1)


def sip_header(crpix: tuple[float, float], crval: tuple[float, float], cd: F64,
               a: dict[tuple[int, int], float], b: dict[tuple[int, int], float],
               ap: dict[tuple[int, int], float], bp: dict[tuple[int, int], float],
               pv: dict[tuple[int, int], float] | None = None) -> str:
    """Return the header text of a TAN (no distortion terms), TAN-SIP, or (with `pv`) TPV system.

    Parameters
    ----------
    crpix : reference pixel, 0-based;  crval : its position, ICRS [deg];  cd : (2, 2) [deg/pix].
    a, b, ap, bp : SIP coefficients by powers (p, q) (Shupe et al. 2005, ASPC 347, 491).
    pv : values of the PV cards by (axis, number), instead of SIP.
    """
    from astropy.io import fits

    suffix = "-SIP" if a or b else ""
    kind = "TPV" if pv else f"TAN{suffix}"
    h = fits.Header()
    h["WCSAXES"] = 2
    h["CTYPE1"], h["CTYPE2"] = f"RA---{kind}", f"DEC--{kind}"
    h["CUNIT1"], h["CUNIT2"] = "deg", "deg"
    h["CRPIX1"], h["CRPIX2"] = float(crpix[0]) + 1.0, float(crpix[1]) + 1.0
    h["CRVAL1"], h["CRVAL2"] = float(crval[0]), float(crval[1])
    for i in (0, 1):
        for j in (0, 1):
            h[f"CD{i + 1}_{j + 1}"] = float(cd[i, j])
    h["RADESYS"], h["EQUINOX"] = "ICRS", 2000.0
    if suffix:
        for name, terms in (("A", a), ("B", b), ("AP", ap), ("BP", bp)):
            h[f"{name}_ORDER"] = max(p + q for p, q in terms)
            for (p, q), value in sorted(terms.items()):
                h[f"{name}_{p}_{q}"] = float(value)
    for (axis, number), value in sorted((pv or {}).items()):
        h[f"PV{axis}_{number}"] = float(value)
    text: str = h.tostring(sep="", endcard=True, padding=False)
    return text
