"""One simulated CCD like DECam's with everything known: what the calibration steps are judged on.

2048 × 4096 pixels of 0.263″, two amplifiers; Moffat 3.5 of FWHM 4.2 pixels that varies by 2 % over the CCD; stars of
r 13.4–24, a few galaxies, transients on the sky and in hosts; TPV distortion; proper motions over 8 years; a Gaia-like
catalogue with the errors of DR3; flat, bias, bad columns, cosmic rays, saturated stars with bleed trails.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from seechange_mpi.simulate.render import MoffatPSF, add_cosmic_rays, add_galaxy, add_point

F64 = npt.NDArray[np.float64]
SHAPE = (4096, 2048)
CAMERA = Path(__file__).with_name("decam_like.yaml")
GAIN, READ_NOISE, SKY_ADU, SATURATION = 4.0, 7.0, 300.0, 44000.0
ZERO_POINT, FWHM, BETA = 30.2, 4.2, 3.5
MJD, EPOCH, YEARS = 60310.0, 2016.0, 8.0
SCALE, OVERSCAN = 0.263, 50
TERMS = (0.28527, -0.65444, 0.25416, 0.00204)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What may differ between scenes."""

    seed: int = 1
    n_stars: int = 2500
    bright: float = 13.4
    faint: float = 24.0
    slope: float = 0.25
    n_galaxies: int = 30
    n_transients: int = 60
    n_injected: int = 0
    """Stars within one magnitude of the limit, on top of the others."""
    n_cosmics: int = 80
    header_offset_arcsec: float = 10.0
    header_rotation_deg: float = 0.2
    shape: tuple[int, int] = SHAPE
    fwhm: float = FWHM
    reference: bool = False
    """The same sky before the transients, with other noise."""


@dataclasses.dataclass
class Truth:
    """Sources: position, total flux [ADU of the flattened image], kind; header text of the true WCS; the PSF."""

    x: F64
    y: F64
    flux: F64
    mag: F64
    kind: npt.NDArray[np.str_]
    wcs: str
    psf: MoffatPSF
    fwhm_centre: float
    lim_mag: float


@dataclasses.dataclass(frozen=True)
class Files:
    """What was written."""

    raw: Path
    calib: Path
    catalog: Path
    truth: Truth


def true_wcs(pars: Parameters, rng: np.random.Generator) -> fits.Header:
    """TPV header with the optical distortion of a field whose axis lies half a degree away."""
    ny, nx = pars.shape
    h = fits.Header()
    angle = np.deg2rad(rng.uniform(-0.3, 0.3))
    s = SCALE / 3600
    h["CTYPE1"], h["CTYPE2"], h["CUNIT1"], h["CUNIT2"] = "RA---TPV", "DEC--TPV", "deg", "deg"
    h["CRVAL1"], h["CRVAL2"] = 150.0, 2.2
    cd = s * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # the optical axis is half a degree away in both directions
    centre = np.linalg.solve(cd, [0.35, 0.35])
    h["CRPIX1"], h["CRPIX2"] = (nx + 1) / 2 - centre[0], (ny + 1) / 2 - centre[1]
    for i in (0, 1):
        for j in (0, 1):
            h[f"CD{i + 1}_{j + 1}"] = cd[i, j]
    k = 0.007
    for axis in (1, 2):
        # xi (1 + k r²), on both axes
        h[f"PV{axis}_1"], h[f"PV{axis}_7"], h[f"PV{axis}_9"] = 1.0, k, k
        h[f"PV{axis}_4"], h[f"PV{axis}_5"] = 2e-4, -1e-4
    h["RADESYS"] = "ICRS"
    return h


def header_guess(true: WCS, pars: Parameters, rng: np.random.Generator) -> fits.Header:
    """Plain TAN header, displaced and rotated: what the telescope wrote."""
    ny, nx = pars.shape
    x0, y0 = (nx - 1) / 2, (ny - 1) / 2
    ra, dec = (float(v) for v in true.all_pix2world(x0, y0, 0))
    east, north = (true.all_pix2world(x0 + d, y0 + e, 0) for d, e in ((1, 0), (0, 1)))
    cd = np.array([[(p[0] - ra) * np.cos(np.deg2rad(dec)) for p in (east, north)], [p[1] - dec for p in (east, north)]])
    a = np.deg2rad(pars.header_rotation_deg) * rng.choice([-1, 1])
    cd = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ cd
    phi = rng.uniform(0, 2 * np.pi)
    h = fits.Header()
    h["CTYPE1"], h["CTYPE2"], h["CUNIT1"], h["CUNIT2"] = "RA---TAN", "DEC--TAN", "deg", "deg"
    h["CRVAL1"] = ra + pars.header_offset_arcsec / 3600 * np.cos(phi) / np.cos(np.deg2rad(dec))
    h["CRVAL2"] = dec + pars.header_offset_arcsec / 3600 * np.sin(phi)
    # the HDU counts the overscan columns
    h["CRPIX1"], h["CRPIX2"] = x0 + 1 + OVERSCAN, y0 + 1
    for i in (0, 1):
        for j in (0, 1):
            h[f"CD{i + 1}_{j + 1}"] = float(cd[i, j])
    return h


def draw_magnitudes(rng: np.random.Generator, n: int, pars: Parameters) -> F64:
    """Power-law counts, 10^(slope m)."""
    a, b = (10 ** (pars.slope * m) for m in (pars.bright, pars.faint))
    return np.asarray(np.log10(a + (b - a) * rng.random(n)) / pars.slope)


class _CCD:
    """One exposure while it is made."""

    def __init__(self, pars: Parameters) -> None:
        self.pars = pars
        self.rng = rng = np.random.default_rng([pars.seed, 77])
        ny, nx = pars.shape
        self.header = true_wcs(pars, rng)
        self.wcs = WCS(self.header)
        extent = float(np.hypot(nx, ny)) / 2
        # FWHM ± 2 % from one corner to the other
        self.psf = MoffatPSF(pars.fwhm, BETA, 0.02, 0.02, extent)
        noise_area = 1.0 / self.psf.sum_squares(0.0, 0.0)
        self.sky_noise = float(np.sqrt(SKY_ADU / GAIN + (READ_NOISE / GAIN) ** 2))
        self.lim_mag = ZERO_POINT - 2.5 * np.log10(5 * self.sky_noise * np.sqrt(noise_area))
        margin = 40
        n = pars.n_stars
        mags = [draw_magnitudes(rng, n, pars)]
        kinds = ["star"] * n
        x, y = rng.uniform(-margin, nx + margin, n), rng.uniform(-margin, ny + margin, n)
        self.galaxy_mag = rng.uniform(17.5, 21.5, pars.n_galaxies)
        gx, gy = rng.uniform(60, nx - 60, pars.n_galaxies), rng.uniform(60, ny - 60, pars.n_galaxies)
        t = pars.n_transients
        hosted = t // 4 if pars.n_galaxies else 0
        tx, ty = rng.uniform(30, nx - 30, t), rng.uniform(30, ny - 30, t)
        if hosted:
            host = rng.integers(0, pars.n_galaxies, hosted)
            tx[:hosted], ty[:hosted] = gx[host] + rng.normal(0, 4, hosted), gy[host] + rng.normal(0, 4, hosted)
        i = pars.n_injected
        ix, iy = rng.uniform(20, nx - 20, i), rng.uniform(20, ny - 20, i)
        mags += [self.galaxy_mag, rng.uniform(18.5, 23.0, t), self.lim_mag + rng.uniform(-1, 1, i)]
        kinds += ["galaxy"] * pars.n_galaxies + ["transient"] * t + ["injected"] * i
        self.x, self.y = np.concatenate([x, gx, tx, ix]), np.concatenate([y, gy, ty, iy])
        self.mag = np.concatenate(mags)
        self.kind = np.array(kinds)
        self.flux = 10 ** (-0.4 * (self.mag - ZERO_POINT))
        if pars.reference:
            self.flux[self.kind == "transient"] = 0.0

    def ideal(self) -> F64:
        """Expected electrons of the sources."""
        pars, rng = self.pars, self.rng
        ny, nx = pars.shape
        image = np.zeros(pars.shape)
        noise = self.sky_noise * GAIN
        for k in np.flatnonzero(self.flux):
            u, v = self.x[k] - (nx - 1) / 2, self.y[k] - (ny - 1) / 2
            if self.kind[k] == "galaxy":
                e, phi = rng.uniform(0, 0.5), rng.uniform(0, np.pi)
                add_galaxy(image, self.psf, self.x[k], self.y[k], self.flux[k] * GAIN, u, v, rng.uniform(2, 8),
                           e * np.cos(2 * phi), e * np.sin(2 * phi))
            else:
                add_point(image, self.psf, self.x[k], self.y[k], self.flux[k] * GAIN, u, v, noise)
        return image

    def catalogue(self, path: Path) -> None:
        """Gaia DR3-like: stars to G = 20.7, their errors, proper motions; r of the scene from G and the colour."""
        rng = self.rng
        ra, dec = self.wcs.all_pix2world(self.x, self.y, 0)
        colour = np.clip(rng.choice([0.9, 1.2, 2.2], len(ra), p=[0.4, 0.35, 0.25])
                         + rng.normal(0, 0.18, len(ra)), 0.55, 2.9)
        g = self.mag - sum(c * colour**i for i, c in enumerate(TERMS)) + 0.01 * rng.standard_normal(len(ra))
        pick = (self.kind == "star") & (g < 20.7)
        ra, dec, g, colour = ra[pick], dec[pick], g[pick], colour[pick]
        n = len(g)
        # published medians: position 0.02 mas at G = 15, 0.4 mas at G = 20; proper motion the same per year
        sigma = 0.02 * 10 ** (0.26 * np.maximum(g - 15, 0))
        pmra, pmdec = rng.normal(0, 5, n), rng.normal(-2, 5, n)
        now_ra, now_dec = ra, dec
        cos = np.cos(np.deg2rad(dec))
        ra0 = now_ra - YEARS * pmra / 3.6e6 / cos + rng.normal(0, 1, n) * sigma / 3.6e6 / cos
        dec0 = now_dec - YEARS * pmdec / 3.6e6 + rng.normal(0, 1, n) * sigma / 3.6e6
        table = Table({
            "ra": ra0, "dec": dec0, "ra_error": sigma, "dec_error": sigma,
            "pmra": pmra + rng.normal(0, 1, n) * sigma, "pmdec": pmdec + rng.normal(0, 1, n) * sigma,
            "pmra_error": sigma, "pmdec_error": sigma, "phot_g_mean_mag": g + 0.002 * rng.standard_normal(n),
            "phot_bp_mean_mag": g + 0.4 * colour, "phot_rp_mean_mag": g - 0.6 * colour,
            "ref_epoch": np.full(n, EPOCH)})
        table.write(path, overwrite=True)


def make_ccd(folder: Path, pars: Parameters | None = None) -> Files:
    """Write one raw exposure, its calibration frames and its catalogue."""
    pars = pars or Parameters()
    ccd = _CCD(pars)
    ideal = ccd.ideal()
    # the detector is the same every night, the noise is not
    rng = np.random.default_rng([pars.seed, 78])
    ny, nx = pars.shape
    calib = folder / "calib"
    calib.mkdir(parents=True, exist_ok=True)
    yy, xx = np.mgrid[:ny, :nx]
    flat = (1 - 0.03 * ((xx / nx - 0.5) ** 2 + (yy / ny - 0.5) ** 2)) * (1 + 0.005 * rng.standard_normal(pars.shape))
    flat /= np.median(flat)
    bias = 1.5 * np.sin(2 * np.pi * yy / 97.0) + 0.4 * rng.standard_normal(pars.shape)
    bad = np.zeros(pars.shape, bool)
    for column in rng.integers(10, nx - 10, 2):
        bad[: int(rng.integers(ny // 4, ny)), column] = True
    rng = np.random.default_rng([pars.seed, 79, int(pars.reference)])
    electrons = rng.poisson((ideal + SKY_ADU * GAIN) * flat).astype(np.float64)
    add_cosmic_rays(electrons, pars.n_cosmics, rng)
    _bleed(electrons, (SATURATION - 1100) * GAIN)
    raw = np.zeros((ny, nx + 2 * OVERSCAN))
    header = fits.Header()
    for k, (x0, data0, over0) in enumerate(((0, OVERSCAN, 0), (nx // 2, OVERSCAN + nx // 2, OVERSCAN + nx))):
        gain = GAIN * (0.98, 1.02)[k]
        part = (slice(None), slice(x0, x0 + nx // 2))
        level = 1000 + 20 * k + 2.0 * np.sin(np.arange(ny) / 300.0)[:, None]
        values = (electrons[part] + READ_NOISE * rng.standard_normal((ny, nx // 2))) / gain + bias[part]
        values[bad[part]] = 0.0
        raw[:, data0: data0 + nx // 2] = values + level
        raw[:, over0: over0 + OVERSCAN] = level + READ_NOISE / gain * rng.standard_normal((ny, OVERSCAN))
        header["GAIN" + "AB"[k]], header["RDNOISE" + "AB"[k]] = gain, READ_NOISE
    header += header_guess(ccd.wcs, pars, rng)
    primary = fits.PrimaryHDU()
    centre = ccd.wcs.all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0)
    primary.header.update({"MJD-OBS": MJD, "EXPTIME": 90.0, "FILTER": "r", "RA": float(centre[0]),
                           "DEC": float(centre[1])})
    path = folder / f"decam-like_{pars.seed}.fits"
    pixels = np.clip(np.round(raw), 0, SATURATION).astype(np.uint16)
    fits.HDUList([primary, fits.ImageHDU(pixels, header, name="S29")]).writeto(path, overwrite=True)
    for name, data in (("bias_S29", bias), ("flat_S29_r", flat), ("badpixels_S29", bad.astype(np.uint8))):
        fits.writeto(calib / f"{name}.fits", data.astype(np.uint8 if data.dtype == np.uint8 else np.float32),
                     overwrite=True)
    catalog = folder / "catalog.fits"
    ccd.catalogue(catalog)
    stamp = ccd.psf.stamp(0.0, 0.0, 0.0, 0.0, 20)
    from seechange_mpi.gpu_kernels.psf_model import fwhm_of

    truth = Truth(ccd.x, ccd.y, ccd.flux, ccd.mag, ccd.kind, ccd.header.tostring(), ccd.psf, fwhm_of(stamp),
                  ccd.lim_mag)
    return Files(path, calib, catalog, truth)


def _bleed(electrons: F64, full: float) -> None:
    """Charge above full well runs along the columns, both ways."""
    for column in np.unique(np.nonzero(electrons > full)[1]):
        strip = electrons[:, column]
        for y in np.flatnonzero(strip > full):
            excess = strip[y] - full
            if excess <= 0:
                continue
            strip[y] = full
            for way in (1, -1):
                rest, j = excess / 2, y + way
                while rest > 0 and 0 <= j < len(strip):
                    room = max(full - strip[j], 0.0)
                    taken = min(room, rest)
                    strip[j] += taken
                    rest -= taken
                    j += way
