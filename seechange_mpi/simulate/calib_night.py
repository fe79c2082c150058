"""A night of calibration exposures of the invented camera: biases, darks, flats, sky with fringes, and truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.simulate.detector import Detector, Frames, amplifier_slices, arrange, read_out
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.render import add_cosmic_rays, add_point
from seechange_mpi.simulate.survey import _Survey, _write_atomically

F64 = npt.NDArray[np.float64]


class NightParameters(Parameters):
    """What a night of calibration exposures holds."""

    section = "simulate night"
    biases: int = par(12, "number of biases", ge=0)
    darks: int = par(8, "number of darks, of all exposure times", ge=0)
    dark_times_s: list[float] = par([150.0, 300.0], "exposure times of darks, in turn", unit="s")
    domes: int = par(8, "number of dome flats", ge=0)
    faint_domes: int = par(4, "number of faint dome flats", ge=0)
    twilights: int = par(6, "number of twilight flats, brighter and brighter", ge=0)
    skies: int = par(12, "number of dithered sky exposures", ge=0)
    dome_e: float = par(30_000.0, "level of dome flats", unit="e-/pix", gt=0)
    faint_dome_e: float = par(8_000.0, "level of faint dome flats", unit="e-/pix", gt=0)
    sky_e: float = par(2_500.0, "level of sky exposures", unit="e-/pix", gt=0)
    sky_stars: float = par(150.0, "stars per million pixels of a sky exposure", ge=0)
    dark_e_per_s: float = par(0.05, "mean dark current", unit="e-/s", ge=0)
    hot_fraction: float = par(5e-4, "fraction of hot pixels", ge=0, lt=1)
    fringe_amplitude: float = par(0.02, "semi-amplitude of fringes over the sky level", ge=0, lt=1)
    fringe_period_pix: float = par(45.0, "distance of fringes", unit="pix", gt=2)
    cosmic_rays_per_mpix: float = par(30.0, "cosmic rays per million pixels and exposure", ge=0)


@dataclass(frozen=True)
class SectionTruth:
    """What a section's frames should be.

    Attributes
    ----------
    bias : ADU after overscan;  dark : ADU/s, raw amplifiers;  flat : relative to its median;  fringe : over the sky;
        bad, hot : bool; all (ny, nx).
    """

    bias: F64
    dark: F64
    flat: F64
    fringe: F64
    bad: npt.NDArray[np.bool_]
    hot: npt.NDArray[np.bool_]


class _Night:
    def __init__(self, outdir: Path, pars: SimulationParameters, night: NightParameters) -> None:
        self.survey = _Survey(outdir, pars)
        self.pars, self.night = pars, night
        self.folder = outdir / "raw_calib"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dark_e: dict[str, F64] = {}
        self.fringe: dict[str, F64] = {}
        self.hot: dict[str, npt.NDArray[np.bool_]] = {}
        rng = np.random.default_rng([pars.seed, 5])
        for d in self.survey.detectors:
            y, x = np.mgrid[: d.shape[0], : d.shape[1]]
            hot = rng.random(d.shape) < night.hot_fraction
            glow = 1 + np.exp(-(x**2 + y**2) / (0.2 * d.shape[1]) ** 2)
            self.dark_e[d.section.id] = night.dark_e_per_s * (glow + hot * 10 ** rng.uniform(2.0, 3.0, d.shape))
            phase = (x + 0.4 * y + 12 * np.sin(2 * np.pi * y / (0.7 * d.shape[0]))) / night.fringe_period_pix
            fringe = night.fringe_amplitude * np.cos(2 * np.pi * phase)
            self.fringe[d.section.id] = fringe - fringe.mean()
            self.hot[d.section.id] = hot

    def truth(self, d: Detector) -> SectionTruth:
        gain = np.ones(d.shape)
        for k, amp in enumerate(d.section.amplifiers):
            (ys, xs), _ = amplifier_slices(amp, self.survey.camera)
            gain[amp.y0: amp.y0 + ys.stop - ys.start, amp.x0: amp.x0 + xs.stop - xs.start] = d.gains[k]
        name = d.section.id
        return SectionTruth(d.bias, self.dark_e[name] / gain, d.flat / np.median(d.flat), self.fringe[name], d.bad,
                            self.hot[name])

    def expose(self, d: Detector, light: F64, seconds: float, rng: np.random.Generator) -> F64:
        """Electrons of light (already through the flat), dark current and cosmic rays."""
        electrons = rng.poisson(light + self.dark_e[d.section.id] * seconds).astype(np.float64)
        number = rng.poisson(self.night.cosmic_rays_per_mpix * electrons.size / 1e6)
        add_cosmic_rays(electrons, number, rng)
        return electrons

    def sky(self, d: Detector, rng: np.random.Generator) -> F64:
        """Dithered sky with fringes and stars, through the flat."""
        ny, nx = d.shape
        stars = np.zeros(d.shape)
        psf = self.survey.psf(0)
        for _ in range(rng.poisson(self.night.sky_stars * stars.size / 1e6)):
            flux = 2000.0 * rng.pareto(1.0) + 2000.0
            add_point(stars, psf, rng.uniform(0, nx - 1), rng.uniform(0, ny - 1), min(flux, 2e6), 0.0, 0.0,
                      float(np.sqrt(self.night.sky_e)))
        level = self.night.sky_e * rng.uniform(0.8, 1.25)
        return np.asarray((level * (1 + self.fringe[d.section.id]) + stars) * d.flat)

    def write(self, kind: str, number: int, mjd: float, seconds: float, light: Callable[[Detector], F64],
              rng: np.random.Generator) -> Path:
        """Write one exposure."""
        from astropy.time import Time

        words = {"bias": "bias", "dark": "dark", "dome": "dome flat", "twilight": "twilight flat", "sky": "object"}
        values: dict[str, Any] = {"mjd": mjd, "exp_time": seconds, "filter": self.pars.filter, "airmass": 1.0,
                                  "ra": self.pars.ra_deg, "dec": self.pars.dec_deg, "target": kind,
                                  "project": "calibration"}
        header = fits.Header()
        for name, value in values.items():
            rule = self.survey.camera.header.get(name)
            if rule is not None and rule.keyword is not None:
                keyword = rule.keyword if isinstance(rule.keyword, str) else rule.keyword[0]
                header[keyword] = Time(value, format="mjd").isot if rule.convert == "isot_to_mjd" else value
        header["OBSTYPE"] = words[kind]
        frames: Frames = {}
        for d in self.survey.detectors:
            electrons = self.expose(d, light(d), seconds, rng)
            frames.update(read_out(d, electrons, self.survey.camera, self.pars, number, rng))
        path = self.folder / f"{self.survey.camera.name}_{kind}_{number:03d}.fits"
        _write_atomically(path, lambda tmp: arrange(header, frames).writeto(tmp, overwrite=True))
        return path

    def write_truth(self) -> None:
        """Write what the frames should be: one file per section in ``truth/``."""
        for d in self.survey.detectors:
            t = self.truth(d)
            hdus = [fits.PrimaryHDU()]
            hdus += [fits.ImageHDU(plane.astype(np.float32), name=name) for name, plane in
                     (("BIAS", t.bias), ("DARK", t.dark), ("FLAT", t.flat), ("FRINGE", t.fringe))]
            hdus += [fits.ImageHDU(plane.astype(np.uint8), name=name)
                     for name, plane in (("BAD", t.bad), ("HOT", t.hot))]
            fits.HDUList(hdus).writeto(self.survey.root / "truth" / f"calibration_{d.section.id}.fits", overwrite=True)


def _lit(light: Callable[[Detector, int, np.random.Generator], F64], k: int, rng: np.random.Generator,
         d: Detector) -> F64:
    return light(d, k, rng)


def simulate_night(
    outdir: str | Path, pars: SimulationParameters | None = None, night: NightParameters | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a night of calibration exposures of a survey's detectors into ``raw_calib/``; return their paths.

    The detectors are those of `simulate_survey` with the same parameters. The night is that of the first exposure.
    """
    pars, night = pars or SimulationParameters(), night or NightParameters()
    made = _Night(Path(outdir), pars, night)
    made.write_truth()
    say = progress or (lambda _text: None)
    written: list[Path] = []
    start = np.floor(pars.start_mjd - 2 / 3) + 0.7

    def series(kind: str, number: int, first_number: int, first_mjd: float, seconds: Callable[[int], float],
               light: Callable[[Detector, int, np.random.Generator], F64]) -> None:
        for k in range(number):
            # every kind has a seed of its own: the number of biases does not change the flats
            rng = np.random.default_rng([pars.seed, 6, first_number + k])
            written.append(made.write(kind, first_number + k, first_mjd + 0.002 * k, seconds(k),
                                      partial(_lit, light, k, rng), rng))
        if number:
            say(f"{number} {kind} exposures")

    series("bias", night.biases, 0, start, lambda _k: 0.0, lambda d, _k, _rng: np.zeros(d.shape))
    series("dome", night.domes, 100, start + 0.05, lambda _k: 8.0, lambda d, _k, _rng: night.dome_e * d.flat)
    series("dome", night.faint_domes, 150, start + 0.10, lambda _k: 2.0,
           lambda d, _k, _rng: night.faint_dome_e * d.flat)
    series("twilight", night.twilights, 200, start + 0.25, lambda k: 20.0 / (1 + k),
           lambda d, k, _rng: (10_000.0 + 5_000.0 * k) * d.flat)
    series("sky", night.skies, 300, start + 0.45, lambda _k: pars.exp_time_s, lambda d, _k, rng: made.sky(d, rng))
    series("dark", night.darks, 400, start + 0.70, lambda k: night.dark_times_s[k % len(night.dark_times_s)],
           lambda d, _k, _rng: np.zeros(d.shape))
    return written
