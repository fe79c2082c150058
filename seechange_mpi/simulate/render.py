"""Draw sources: pixel-integrated Moffat stars, galaxies, cosmic rays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)


@dataclass(frozen=True)
class MoffatPSF:
    """A sheared Moffat profile whose FWHM and shear vary linearly over the focal plane.

    Attributes
    ----------
    fwhm : float [pix] at the centre;  beta : float.
    slope : relative change of the FWHM at plane radius `extent` [arcsec];  shear : largest shear.
    """

    fwhm: float
    beta: float
    slope: float
    shear: float
    extent: float

    def at(self, xi: float, eta: float) -> tuple[float, float, float]:
        """FWHM [pix] and shear (g1, g2) at a plane position [arcsec]."""
        u, v = xi / self.extent, eta / self.extent
        return self.fwhm * (1 + self.slope * (u + 0.5 * v)), self.shear * (0.5 + 0.5 * u), self.shear * 0.5 * v

    def stamp(self, xi: float, eta: float, dx: float, dy: float, half: int) -> F64:
        """Flux per pixel of a unit source at (dx, dy) from the centre of a (2 half + 1)² stamp.

        Integrated over each pixel with 3 × 3 Gauss–Legendre nodes.
        """
        fwhm, g1, g2 = self.at(xi, eta)
        alpha = fwhm / (2 * np.sqrt(2 ** (1 / self.beta) - 1))
        grid = (np.arange(-half, half + 1)[:, None] + 0.5 * _NODES[None, :]).ravel()
        u, v = grid[None, :] - dx, grid[:, None] - dy
        norm = 1 / np.sqrt(1 - g1**2 - g2**2)
        a = norm * ((1 - g1) * u - g2 * v)
        b = norm * (-g2 * u + (1 + g1) * v)
        value = (self.beta - 1) / (np.pi * alpha**2) * (1 + (a**2 + b**2) / alpha**2) ** -self.beta
        n = 2 * half + 1
        w = 0.5 * _WEIGHTS
        out: F64 = np.einsum("aibj,i,j->ab", value.reshape(n, 3, n, 3), w, w)
        return out

    def sum_squares(self, xi: float, eta: float) -> float:
        """Σ p² of the pixelised profile: 1 / number of noise pixels."""
        return float((self.stamp(xi, eta, 0.0, 0.0, 20) ** 2).sum())


def add_stamp(image: F64, stamp: F64, ix: int, iy: int) -> None:
    """Add an odd stamp centred on pixel (ix, iy), clipped at the edges."""
    half = stamp.shape[0] // 2
    ny, nx = image.shape
    y0, y1, x0, x1 = max(iy - half, 0), min(iy + half + 1, ny), max(ix - half, 0), min(ix + half + 1, nx)
    if y1 > y0 and x1 > x0:
        image[y0:y1, x0:x1] += stamp[y0 - iy + half: y1 - iy + half, x0 - ix + half: x1 - ix + half]


def add_point(image: F64, psf: MoffatPSF, x: float, y: float, flux: float, xi: float, eta: float,
              noise: float) -> None:
    """Add a point source of `flux`; the stamp reaches to where it falls below a twentieth of the noise."""
    fwhm = psf.at(xi, eta)[0]
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / psf.beta) - 1))
    peak = flux * (psf.beta - 1) / (np.pi * alpha**2)
    reach = alpha * np.sqrt(max((20 * peak / noise) ** (1 / psf.beta) - 1, 1.0))
    half = int(np.clip(np.ceil(reach), 8, 120))
    ix, iy = round(x), round(y)
    add_stamp(image, flux * psf.stamp(xi, eta, x - ix, y - iy, half), ix, iy)


def add_galaxy(image: F64, psf: MoffatPSF, x: float, y: float, flux: float, xi: float, eta: float,
               radius_pix: float, g1: float, g2: float) -> None:
    """Add an exponential galaxy convolved with the PSF (drawn by GalSim)."""
    import galsim

    fwhm, p1, p2 = psf.at(xi, eta)
    profile = galsim.Convolve(
        galsim.Exponential(half_light_radius=radius_pix, flux=flux).shear(g1=g1, g2=g2),
        galsim.Moffat(beta=psf.beta, fwhm=fwhm).shear(g1=p1, g2=p2))
    ix, iy = round(x), round(y)
    half = int(np.clip(np.ceil(8 * radius_pix + 3 * fwhm), 16, 60))
    size = 2 * half + 1
    drawn = profile.drawImage(nx=size, ny=size, scale=1.0, offset=(x - ix, y - iy)).array
    add_stamp(image, drawn.astype(np.float64), ix, iy)


def add_cosmic_rays(image: F64, number: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Add straight tracks of 1–20 pixels; return where they are."""
    hit = np.zeros(image.shape, bool)
    ny, nx = image.shape
    for _ in range(number):
        length = 1 + rng.exponential(5.0)
        angle = rng.uniform(0, np.pi)
        charge = 10 ** rng.uniform(2.8, 4.0)
        t = np.arange(0, min(length, 20.0), 0.25)
        x = np.floor(rng.uniform(0, nx) + t * np.cos(angle)).astype(int)
        y = np.floor(rng.uniform(0, ny) + t * np.sin(angle)).astype(int)
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        np.add.at(image, (y[inside], x[inside]), charge * 0.25)
        hit[y[inside], x[inside]] = True
    return hit
