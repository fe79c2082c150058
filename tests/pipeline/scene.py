"""A small artificial sky for tests of the steps: Moffat stars, galaxies, Poisson noise, with the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seechange_mpi.model.products import Image

GAIN, READ_NOISE, SKY = 2.0, 6.0, 200.0


def moffat(x, y, x0, y0, fwhm, beta=3.5, q=1.0, angle=0.0):
    """Moffat profile of unit sum, averaged over 5 × 5 points per pixel."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    sub = (np.arange(5) - 2) / 5
    out = np.zeros(np.broadcast(x, y).shape)
    c, s = np.cos(angle), np.sin(angle)
    for dy in sub:
        for dx in sub:
            u, v = x + dx - x0, y + dy - y0
            a, b = c * u + s * v, (-s * u + c * v) / q
            out += (1 + (a**2 + b**2) / alpha**2) ** -beta
    return out * (beta - 1) / (np.pi * alpha**2 * q) / 25


@dataclass
class Scene:
    """An image and its truth: star positions and fluxes [ADU], galaxies apart."""

    image: Image
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    galaxies: np.ndarray


def make_scene(shape=(512, 512), n_stars=150, n_galaxies=30, fwhm=3.5, seed=1, gain=GAIN, positions=None,
               flux=None, flux_range=(300.0, 60000.0), header_wcs="", saturation=60000.0, mjd=60000.0,
               filter_name="r"):
    """Return a `Scene`; the sky is not subtracted, the variance is exact."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    if positions is None:
        positions = (rng.uniform(8, nx - 9, n_stars), rng.uniform(8, ny - 9, n_stars))
    x, y = (np.asarray(v, float) for v in positions)
    if flux is None:
        lo, hi = np.log(flux_range[0]), np.log(flux_range[1])
        flux = np.exp(lo + (hi - lo) * rng.random(len(x)) ** 1.5)
    model = np.zeros(shape)
    _paint(model, x, y, flux, np.full(len(x), fwhm), np.ones(len(x)), np.zeros(len(x)))
    gx, gy = rng.uniform(20, nx - 20, n_galaxies), rng.uniform(20, ny - 20, n_galaxies)
    _paint(model, gx, gy, rng.uniform(1000, 30000, n_galaxies), fwhm * rng.uniform(1.5, 3, n_galaxies),
           rng.uniform(0.4, 1, n_galaxies), rng.uniform(0, 3, n_galaxies))
    electrons = (model + SKY) * gain
    data = (rng.poisson(electrons) + rng.normal(0, READ_NOISE, shape)) / gain
    variance = (electrons + READ_NOISE**2) / gain**2
    flags = np.zeros(shape, np.uint16)
    hot = data > saturation
    data = np.minimum(data, saturation)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            flags[np.roll(hot, (dy, dx), (0, 1))] |= 4
    weight = np.where(flags == 0, 1 / variance, 0)
    image = Image(data.astype(np.float32), weight.astype(np.float32), flags, gain, READ_NOISE, saturation, "S1",
                  filter_name, mjd, 30.0, header_wcs=header_wcs)
    return Scene(image, x, y, np.asarray(flux, float), np.stack([gx, gy], axis=-1))


def _paint(model, x, y, flux, fwhm, q, angle):
    ny, nx = model.shape
    for k in range(len(x)):
        r = int(np.ceil(8 * fwhm[k]))
        x0, x1 = max(0, int(x[k]) - r), min(nx, int(x[k]) + r + 1)
        y0, y1 = max(0, int(y[k]) - r), min(ny, int(y[k]) + r + 1)
        if x1 <= x0 or y1 <= y0:
            continue
        yy, xx = np.mgrid[y0:y1, x0:x1]
        model[y0:y1, x0:x1] += flux[k] * moffat(xx, yy, x[k], y[k], fwhm[k], q=q[k], angle=angle[k])
