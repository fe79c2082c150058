"""Star fields at the level of lists: a true plate, a catalogue at its own epoch, and a wrong header."""

import numpy as np

from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.products import Image, SourceList
from seechange_mpi.model.tables import SOURCES, empty_table
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.wcs_tools import deproject, footprint_cone, pixel_to_sky, separation_deg, sip_header

MJD, EPOCH_YEARS = 60000.0, 2000.0 + (60000.0 - 51544.5) / 365.25 - 2016.0


def plate(ra, dec, shape, scale=0.6, rotation=0.0, distortion=0.0):
    """Header text; `distortion` is in pixels at the edge."""
    s, c, n = scale / 3600, np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    cd = np.array([[-s * c, s * n], [s * n, s * c]])
    centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    if not distortion:
        return sip_header(centre, (ra, dec), cd, {}, {}, {}, {})
    half = max(shape) / 2
    q, k = 0.3 * distortion / half**2, 0.7 * distortion / half**3
    a = {(2, 0): q, (1, 1): -q / 2, (0, 2): q / 3, (3, 0): k, (1, 2): k}
    b = {(2, 0): -q / 3, (0, 2): q, (1, 1): q / 2, (0, 3): k, (2, 1): k}
    return sip_header(centre, (ra, dec), cd, a, b, {(0, 0): 0.0}, {(0, 0): 0.0})


class Field:
    """Stars seen through a true plate, a catalogue of them at its own epoch, and a wrong header."""

    def __init__(self, shape=(1024, 1024), scale=0.6, n=250, spurious=80, extra=200, ra=359.98, dec=10.0, seed=0,
                 noise_pix=0.05, distortion=1.0, shift=(0.0, 0.0), rotation=0.0):
        rng = np.random.default_rng(seed)
        ny, nx = self.shape = shape
        self.truth = plate(ra, dec, shape, scale, distortion=distortion)
        x, y = rng.uniform(5, nx - 6, n), rng.uniform(5, ny - 6, n)
        sky_ra, sky_dec = pixel_to_sky(self.truth, x, y)
        mag = rng.uniform(14, 20, n)
        pm = rng.normal(0, 15, (n, 2)) + np.array([0.0, -8.0])
        back = CatalogTable(sky_ra, sky_dec, -pm[:, 0], -pm[:, 1], {}, np.full(n, 2016.0)).positions_at(MJD)
        cone = footprint_cone(self.truth, shape)
        xi, eta = rng.uniform(-cone[2], cone[2], (2, extra))
        more = deproject(xi, eta, ra, dec)
        zero = np.zeros(extra)
        self.catalog = CatalogTable(
            np.r_[back[0], more[0]], np.r_[back[1], more[1]], np.r_[pm[:, 0], zero], np.r_[pm[:, 1], zero],
            {"g": np.r_[mag, rng.uniform(14, 20, extra)]}, np.full(n + extra, 2016.0), "catalogue.fits", n + extra,
            cone[:2], cone[2])
        t = empty_table(SOURCES, n + spurious)
        t["x"] = np.r_[x + rng.normal(0, noise_pix, n), rng.uniform(0, nx, spurious)]
        t["y"] = np.r_[y + rng.normal(0, noise_pix, n), rng.uniform(0, ny, spurious)]
        t["x_err"] = t["y_err"] = noise_pix
        t["flux_psf"] = 10 ** (-0.4 * (np.r_[mag, rng.uniform(14, 20, spurious)] - 25))
        t["flux_psf_err"] = t["flux_psf"] / 50
        t["is_star"] = True
        self.sources = SourceList(t, (1.0, 2.0, 3.0, 5.0))
        moved = deproject(shift[0] / 3600, shift[1] / 3600, ra, dec)
        header = plate(float(moved[0]), float(moved[1]), shape, scale, rotation)
        zeros = np.broadcast_to(np.float32(0), shape)
        self.image = Image(zeros, zeros, np.broadcast_to(np.uint16(0), shape), 2.0, 5.0, 6e4, "S1", "r", MJD, 30.0,
                           header)

    def solve(self, **pars):
        return AstroCalibrator(**pars).run(self.image, self.sources, self.catalog)

    def error_mas(self, header):
        """Per-axis rms and largest error of a solution over the whole section."""
        ny, nx = self.shape
        gx, gy = np.meshgrid(np.linspace(0, nx - 1, 21), np.linspace(0, ny - 1, 21))
        sep = separation_deg(*pixel_to_sky(header, gx, gy), *pixel_to_sky(self.truth, gx, gy)) * 3.6e6
        return float(np.sqrt(np.mean(sep**2) / 2)), float(sep.max())


def spoil(header, scale=1.0, flip=False):
    """Header text with another scale, and seen in a mirror."""
    from astropy.io import fits

    h = fits.Header.fromstring(header)
    for i in (1, 2):
        for j in (1, 2):
            h[f"CD{i}_{j}"] *= scale * (-1 if flip and j == 1 else 1)
    return h.tostring(padding=False)
