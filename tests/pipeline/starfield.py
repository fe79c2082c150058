"""A DECam-like section at the level of star lists: truth, Cramér–Rao centroids, a Gaia-like catalogue, TPV."""

from __future__ import annotations

import numpy as np

from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.products import Image, SourceList
from seechange_mpi.model.tables import SOURCES, empty_table
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.wcs_tools import deproject, pixel_to_sky, separation_deg, sip_header

SHAPE = (4096, 2048)
SCALE = 0.263
FWHM = 4.2
MJD = 51544.5 + 365.25 * 24.0
"""Eight years after Gaia's epoch."""
DECAM_PV = {(1, 0): 2e-4, (1, 1): 1.0058, (1, 2): -4e-4, (1, 4): -7.5e-3, (1, 5): 1.6e-3, (1, 6): -2.2e-3,
            (1, 7): 8.6e-3, (1, 8): -6e-4, (1, 9): 4.6e-3, (1, 10): -3e-4, (2, 0): -3e-4, (2, 1): 1.0062, (2, 2): 3e-4,
            (2, 4): -5e-3, (2, 5): 3e-3, (2, 6): -1.3e-3, (2, 7): 9.1e-3, (2, 8): 4e-4, (2, 9): 5.5e-3, (2, 10): 2e-4}


def decam_header(ra, dec, scale=1.0, rotation=0.0, pv=None, crpix=(6200.0, -3900.0)):
    """TPV header of a section off the axis by 0.5 degree; CD as DECam's: north up, east left, turned by 90 degrees."""
    s, c, n = scale * SCALE / 3600, np.cos(np.radians(90 + rotation)), np.sin(np.radians(90 + rotation))
    cd = np.array([[-s * c, s * n], [s * n, s * c]])
    return sip_header(crpix, (ra, dec), cd, {}, {}, {}, {}, DECAM_PV if pv is None else pv)


class DecamField:
    """One seed: what an exposure of 100 s in r sees of 2,500 stars."""

    def __init__(self, seed: int, *, header: str = "tpv", offset_arcsec: float = 10.0, blends: float = 0.08,
                 spurious: int = 150, n: int = 2500, pv_change: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        ny, nx = SHAPE
        ra0, dec0 = float(rng.uniform(0, 360)), float(rng.uniform(-70, 20))
        pv = {k: v * (1 + pv_change * rng.normal()) if k[1] > 3 else v for k, v in DECAM_PV.items()}
        self.truth = decam_header(ra0, dec0, pv=pv)
        x, y = rng.uniform(0, nx - 1, n), rng.uniform(0, ny - 1, n)
        # star counts rise by 0.2 dex per magnitude
        low, high = 10 ** (0.2 * 13.4), 10 ** (0.2 * 24.0)
        r = np.log10(rng.uniform(low, high, n)) / 0.2
        flux = 10 ** (-0.4 * (r - 30.0)) / 4.0
        sky_sigma = np.sqrt(2 * np.pi) * 2.0 * (FWHM / 2.355) * 25.0
        snr = flux / np.sqrt(flux + sky_sigma**2)
        error = FWHM / 2.355 / snr
        true = rng.normal(0, 1, (n, 2)) * np.hypot(error, 0.01)[:, None]
        blended = rng.uniform(size=n) < blends
        true += np.where(blended[:, None], rng.standard_t(2, (n, 2)) * 0.15, 0.0)
        sky = pixel_to_sky(self.truth, x, y)
        self.catalog = self._catalogue(rng, *sky, r)
        seen = snr > 5
        count = int(seen.sum())
        t = empty_table(SOURCES, count + spurious)
        t["x"] = np.r_[(x + true[:, 0])[seen], rng.uniform(0, nx, spurious)]
        t["y"] = np.r_[(y + true[:, 1])[seen], rng.uniform(0, ny, spurious)]
        t["x_err"] = t["y_err"] = np.r_[error[seen], np.full(spurious, 0.2)]
        t["flux_psf"] = np.r_[flux[seen], rng.uniform(100, 3000, spurious)]
        t["flux_psf_err"] = t["flux_psf"] / np.r_[snr[seen], np.full(spurious, 7.0)]
        t["is_star"] = True
        self.sources = SourceList(t, (1.0, 2.0, 3.0, 5.0))
        angle = rng.uniform(0, 2 * np.pi)
        moved = deproject(offset_arcsec * np.cos(angle) / 3600, offset_arcsec * np.sin(angle) / 3600, ra0, dec0)
        guess = decam_header(float(moved[0]), float(moved[1]), 1 + rng.normal(0, 5e-4), rng.normal(0, 0.05))
        if header == "linear":
            guess = self._linear(guess)
        zeros = np.broadcast_to(np.float32(0), SHAPE)
        self.image = Image(zeros, zeros, np.broadcast_to(np.uint16(0), SHAPE), 4.0, 7.0, 4.5e4, "S29", "r", MJD, 100.0,
                           guess)

    @staticmethod
    def _linear(text: str) -> str:
        """The best linear header: what an instrument without a distortion model writes."""
        from dataclasses import replace

        from seechange_mpi.pipeline.plate import initial_plate

        p = initial_plate(text, SHAPE)
        gx, gy = (g.ravel() for g in np.meshgrid(np.linspace(0, SHAPE[1] - 1, 9), np.linspace(0, SHAPE[0] - 1, 9)))
        plane = p.sky_arcsec(gx, gy)
        flat = replace(p, distorted=False, unit=(SHAPE[1] / 2, SHAPE[0] / 2))
        u, v = flat.base(gx, gy)
        c = np.linalg.lstsq(np.stack([np.ones_like(u), u, v], -1), plane, rcond=None)[0]
        return replace(flat, coefficients=c).header()

    @staticmethod
    def _catalogue(rng: np.random.Generator, ra, dec, r) -> CatalogTable:
        g = r + 0.15 + rng.normal(0, 0.1, len(r))
        keep = g < 20.5
        ra, dec, g = ra[keep], dec[keep], g[keep]
        n = len(ra)
        # Gaia DR3 (Lindegren et al. 2021): 0.02 mas at G 15, 0.4 at 20, rising
        pos = np.maximum(0.02, 0.02 * 10 ** (0.26 * (g - 15.0)))
        pm_error = 1.03 * pos
        pm = rng.normal(0, 5, (n, 2)) + np.array([-2.0, -3.0])
        known = pm + rng.normal(0, 1, (n, 2)) * pm_error[:, None]
        ruwe = np.where(rng.uniform(size=n) < 0.03, rng.uniform(1.5, 6.0, n), 1.0)
        wobble = rng.normal(0, 1, (n, 2)) * np.where(ruwe > 1.4, 6.0 * ruwe, 0.0)[:, None]
        years = 2000.0 + (MJD - 51544.5) / 365.25 - 2016.0
        mas = 1 / 3.6e6
        # the catalogue's places at its own epoch: back by the true motion, with errors
        back_dec = dec - (pm[:, 1] * years + wobble[:, 1] + rng.normal(0, 1, n) * pos) * mas
        back_ra = ra - (pm[:, 0] * years + wobble[:, 0] + rng.normal(0, 1, n) * pos) * mas / np.cos(np.radians(dec))
        astrometry = {"ra_error": pos, "dec_error": pos, "pmra_error": pm_error, "pmdec_error": pm_error, "ruwe": ruwe}
        return CatalogTable(np.mod(back_ra, 360.0), back_dec, known[:, 0], known[:, 1], {"g": g}, np.full(n, 2016.0),
                            "gaia", n, (float(ra[0]), float(dec[0])), 1.0, {}, astrometry)

    def solve(self, **pars):
        """Run the calibrator; return the product."""
        return AstroCalibrator(**pars).run(self.image, self.sources, self.catalog)[0]

    def error_mas(self, header: str) -> tuple[float, float]:
        """Radial rms and largest error of a solution over a uniform grid of the section."""
        gx, gy = np.meshgrid(np.linspace(0, SHAPE[1] - 1, 21), np.linspace(0, SHAPE[0] - 1, 41))
        sep = separation_deg(*pixel_to_sky(header, gx, gy), *pixel_to_sky(self.truth, gx, gy)) * 3.6e6
        return float(np.sqrt(np.mean(sep**2))), float(sep.max())
