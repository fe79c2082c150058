"""The invented sky: stars, galaxies, transients, variables, moving objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seechange_mpi.instruments.camera import Camera
from seechange_mpi.simulate.parameters import SimulationParameters

F64 = npt.NDArray[np.float64]

REF_EPOCH = 2016.0
"""Epoch of catalogue positions [yr]."""


@dataclass
class Sky:
    """All sources of a field; arrays of one length. Plane coordinates are arcsec east and north of the centre.

    Attributes
    ----------
    kind : (n,) str: star, galaxy, transient, variable, mover, pulsating.
    xi, eta : (n,) arcsec, place at `REF_EPOCH` (stars) or at every epoch (others).
    pm_xi, pm_eta : (n,) mas/yr.
    g_mag, colour : (n,) catalogue magnitude G and BP − RP.
    radius, shear1, shear2 : (n,) half-light radius [arcsec] and shear of galaxies.
    """

    kind: npt.NDArray[np.str_]
    xi: F64
    eta: F64
    pm_xi: F64
    pm_eta: F64
    g_mag: F64
    colour: F64
    radius: F64
    shear1: F64
    shear2: F64
    rate_xi: F64
    rate_eta: F64
    """Motion of movers [arcsec/d]."""
    boost: F64
    """Magnitudes by which a variable is brighter (negative: fainter) after the first epoch."""
    amplitude: F64
    period_d: F64
    phase: F64
    """Of pulsating stars: magnitude = mean + amplitude sin(2π (t / period + phase)), t since the first epoch [d]."""


def field_extent(camera: Camera, shape: dict[str, tuple[int, int]]) -> tuple[float, float]:
    """Half width and half height of the focal plane [arcsec]."""
    half = [0.0, 0.0]
    for s in camera.sections:
        ny, nx = shape[s.id]
        reach = 0.5 * camera.pixel_scale_arcsec * np.hypot(nx, ny) if s.rotation_deg % 90 else 0.0
        for axis, n in enumerate((ny, nx) if s.rotation_deg % 180 == 90 else (nx, ny)):
            size = reach or 0.5 * camera.pixel_scale_arcsec * n
            half[axis] = max(half[axis], abs(s.offset_arcsec[axis]) + size)
    return half[0], half[1]


def make_sky(pars: SimulationParameters, camera: Camera, shape: dict[str, tuple[int, int]],
             rng: np.random.Generator) -> Sky:
    """Draw all sources of the field."""
    half = np.array(field_extent(camera, shape)) + 30.0
    area = 4 * half[0] * half[1] / 3600.0**2
    n_star = rng.poisson(pars.stars_per_sq_deg * area)
    n_gal = rng.poisson(pars.galaxies_per_sq_deg * area)
    u = rng.random(n_star)
    low, high = 10 ** (pars.star_slope * pars.bright_mag), 10 ** (pars.star_slope * pars.faint_mag)
    star_mag = np.log10(low + u * (high - low)) / pars.star_slope
    star_colour = rng.uniform(0.6, 2.6, n_star)
    parts: list[dict[str, F64 | str]] = [
        {"kind": "star", "xi": rng.uniform(-half[0], half[0], n_star), "eta": rng.uniform(-half[1], half[1], n_star),
         "pm_xi": rng.normal(-3, 8, n_star), "pm_eta": rng.normal(-4, 8, n_star), "g_mag": star_mag,
         "colour": star_colour},
        {"kind": "galaxy", "xi": rng.uniform(-half[0], half[0], n_gal), "eta": rng.uniform(-half[1], half[1], n_gal),
         "g_mag": 17.8 + 4.0 * rng.random(n_gal) ** 0.6, "colour": rng.uniform(1.0, 2.0, n_gal),
         "radius": rng.uniform(0.6, 2.2, n_gal), "shear1": rng.normal(0, 0.15, n_gal).clip(-0.4, 0.4),
         "shear2": rng.normal(0, 0.15, n_gal).clip(-0.4, 0.4)},
    ]
    for s in camera.sections:
        size = shape[s.id][::-1] if s.rotation_deg % 180 == 90 else shape[s.id]
        parts += _special(pars, camera, s.offset_arcsec, size, parts[1], rng)
    return _assemble(parts)


def _special(pars: SimulationParameters, camera: Camera, centre: tuple[float, float], shape: tuple[int, int],
             galaxies: dict[str, F64 | str], rng: np.random.Generator) -> list[dict[str, F64 | str]]:
    """Transients (half of them in galaxies), variables, movers and pulsating stars of one section, away from its edges.
    """
    hx, hy = 0.5 * camera.pixel_scale_arcsec * shape[1] - 30, 0.5 * camera.pixel_scale_arcsec * shape[0] - 30

    def place(n: int) -> tuple[F64, F64]:
        return centre[0] + rng.uniform(-hx, hx, n), centre[1] + rng.uniform(-hy, hy, n)

    n = pars.transients_per_section
    xi, eta = place(n)
    gx, gy = np.asarray(galaxies["xi"]), np.asarray(galaxies["eta"])
    hosts = np.flatnonzero((np.abs(gx - centre[0]) < hx) & (np.abs(gy - centre[1]) < hy))
    hosted = min(n // 2, len(hosts))
    if hosted:
        chosen = rng.choice(hosts, hosted, replace=False)
        radius = np.asarray(galaxies["radius"])[chosen]
        angle = rng.uniform(0, 2 * np.pi, hosted)
        xi[:hosted] = gx[chosen] + radius * np.cos(angle)
        eta[:hosted] = gy[chosen] + radius * np.sin(angle)
    m = pars.variables_per_section
    vx, vy = place(m)
    k = pars.movers_per_section
    mx, my = place(k)
    speed, angle = rng.uniform(2.0, 8.0, k), rng.uniform(0, 2 * np.pi, k)
    return [
        {"kind": "transient", "xi": xi, "eta": eta,
         "g_mag": rng.uniform(pars.transient_mag[0], pars.transient_mag[1], n), "colour": rng.uniform(0.6, 1.2, n)},
        {"kind": "variable", "xi": vx, "eta": vy, "g_mag": rng.uniform(18.5, 20.3, m),
         "colour": rng.uniform(0.6, 1.5, m),
         "boost": rng.uniform(0.5, 1.5, m) * np.where(np.arange(m) % 2, -1.0, 1.0)},
        {"kind": "mover", "xi": mx, "eta": my, "g_mag": rng.uniform(18.8, 20.5, k),
         "colour": rng.uniform(0.8, 1.2, k), "rate_xi": speed * np.cos(angle), "rate_eta": speed * np.sin(angle)},
        _pulsating(pars, place, rng),
    ]


def _pulsating(pars: SimulationParameters, place: Callable[[int], tuple[F64, F64]],
               rng: np.random.Generator) -> dict[str, F64 | str]:
    """Stars whose magnitude follows a sine; drawn last, so that surveys without them are what they were."""
    n = pars.pulsating_per_section
    xi, eta = place(n)
    (m0, m1), (a0, a1), (p0, p1) = pars.pulsating_mag, pars.pulsating_amplitude, pars.pulsating_period_d
    return {"kind": "pulsating", "xi": xi, "eta": eta, "g_mag": rng.uniform(m0, m1, n),
            "colour": rng.uniform(0.6, 1.5, n), "amplitude": rng.uniform(a0, a1, n),
            "period_d": np.exp(rng.uniform(np.log(p0), np.log(p1), n)), "phase": rng.random(n)}


def _assemble(parts: list[dict[str, F64 | str]]) -> Sky:
    names = [f for f in Sky.__dataclass_fields__ if f != "kind"]
    columns = {name: np.concatenate([np.asarray(p.get(name, np.zeros(len(np.asarray(p["xi"]))))) for p in parts])
               for name in names}
    kind = np.concatenate([np.full(len(np.asarray(p["xi"])), str(p["kind"]), dtype="U9") for p in parts])
    return Sky(kind=kind, **columns)


def plane_at(sky: Sky, pars: SimulationParameters, epoch: int) -> tuple[F64, F64]:
    """Plane coordinates at an epoch [arcsec]: proper motions and moving objects applied."""
    mjd = pars.start_mjd + epoch * pars.cadence_days
    years = 2000.0 + (mjd - 51544.5) / 365.25 - REF_EPOCH
    days = epoch * pars.cadence_days
    return (sky.xi + 1e-3 * years * sky.pm_xi + days * sky.rate_xi,
            sky.eta + 1e-3 * years * sky.pm_eta + days * sky.rate_eta)


def tan_deproject(xi: F64, eta: F64, ra0_deg: float, dec0_deg: float) -> tuple[F64, F64]:
    """Inverse gnomonic projection: arcsec in the tangent plane to ICRS degrees."""
    x, y = np.deg2rad(np.asarray(xi) / 3600.0), np.deg2rad(np.asarray(eta) / 3600.0)
    d0 = np.deg2rad(dec0_deg)
    ra = ra0_deg + np.rad2deg(np.arctan2(x, np.cos(d0) - y * np.sin(d0)))
    dec = np.rad2deg(np.arctan2(np.sin(d0) + y * np.cos(d0), np.hypot(x, np.cos(d0) - y * np.sin(d0))))
    return np.mod(ra, 360.0), dec


def tan_project(ra: F64, dec: F64, ra0_deg: float, dec0_deg: float) -> tuple[F64, F64]:
    """Gnomonic projection: ICRS degrees to arcsec in the tangent plane."""
    a, d, d0 = np.deg2rad(np.asarray(ra) - ra0_deg), np.deg2rad(dec), np.deg2rad(dec0_deg)
    cos_c = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    xi = np.cos(d) * np.sin(a) / cos_c
    eta = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cos_c
    return np.rad2deg(xi) * 3600.0, np.rad2deg(eta) * 3600.0
