"""The two star lists of an astrometric solution: usable sources, and catalogue stars at the exposure's epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog import CatalogTable, brightness
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import Image, SourceList
from seechange_mpi.pipeline.wcs_tools import footprint_cone, separation_deg

F64 = npt.NDArray[np.float64]
_UNUSABLE = (PixelFlag.BAD_PIXEL | PixelFlag.NO_DATA | PixelFlag.COSMIC_RAY | PixelFlag.OUT_OF_BOUNDS
             | PixelFlag.BLEED | PixelFlag.TRAIL | PixelFlag.CROSSTALK)
_SATURATED_PIX = 0.5
_UNKNOWN_PIX = 0.3


@dataclass(slots=True)
class StarLists:
    """Sources and stars, each brightest first.

    Attributes
    ----------
    x, y : (n,) pixels;  var_pix : (n, 2) variances of x and y [pix²].
    ra, dec : (m,) deg, at the epoch;  star_var : (m, 2) variances along right ascension and declination [arcsec²].
    in_cone : int, catalogue stars around the image, before `limit`.
    """

    x: F64
    y: F64
    var_pix: F64
    ra: F64
    dec: F64
    star_var: F64
    in_cone: int


def select_stars(image: Image, sources: SourceList, catalog: CatalogTable, limit: int,
                 margin_arcsec: float = 120.0) -> StarLists:
    """Return usable sources and the catalogue stars at the exposure's epoch, brightest first.

    Point sources come before others. Saturated sources have poor centres: they get an error of half a pixel, and
    are left out where there are 30 others. Catalogue stars farther than `margin_arcsec` outside the image's circle
    are left out.
    """
    t = sources.table
    flux = np.where(np.isfinite(t["flux_psf"]), t["flux_psf"], t["flux_apertures"][:, 1]).astype(float)
    good = ((t["pixel_flags"] & int(_UNUSABLE)) == 0) & ((t["flags"] & 8) == 0) & (flux > 0)
    good &= np.isfinite(t["x"]) & np.isfinite(t["y"])
    saturated = ((t["pixel_flags"] & int(PixelFlag.SATURATED)) != 0) | ((t["flags"] & 4) != 0)
    if (good & ~saturated).sum() >= 30:
        good &= ~saturated
    order = np.flatnonzero(good)
    order = order[np.lexsort((-flux[order], ~t["is_star"][order]))][:limit]
    error = np.stack([t["x_err"][order], t["y_err"][order]], axis=-1).astype(float)
    error = np.where(np.isfinite(error) & (error > 0), error, _UNKNOWN_PIX)
    var_pix = error**2 + (_SATURATED_PIX * saturated[order, None]) ** 2
    ra, dec = catalog.positions_at(image.mjd)
    keep = np.isfinite(ra) & np.isfinite(dec)
    if len(ra):
        ra0, dec0, radius = footprint_cone(image.header_wcs, image.shape, margin_arcsec)
        keep &= separation_deg(ra, dec, ra0, dec0) < radius
    stars = np.flatnonzero(keep)
    mag = brightness(catalog)
    stars = stars[np.argsort(np.where(np.isfinite(mag[stars]), mag[stars], 99.0), kind="stable")][:limit]
    star_var = catalog.variances_at(image.mjd)[stars] / 1e6
    return StarLists(t["x"][order].astype(float), t["y"][order].astype(float), var_pix, ra[stars], dec[stars],
                     star_var, int(keep.sum()))
