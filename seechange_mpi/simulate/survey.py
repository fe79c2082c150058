"""Write a simulated survey: raw exposures, calibration frames, catalogue, truth, configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from astropy.io import fits
from astropy.table import Table

from seechange_mpi.instruments.camera import Camera, load_camera
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.simulate.artefacts import BLEED, TRAIL, Streak, add_streak, make_streaks, spill
from seechange_mpi.simulate.detector import Detector, Frames, arrange, make_detector, read_out, section_shape
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.render import MoffatPSF, add_cosmic_rays, add_galaxy, add_point
from seechange_mpi.simulate.sky import REF_EPOCH, Sky, field_extent, make_sky, plane_at, tan_deproject, tan_project

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SurveyPaths:
    """What was written."""

    root: Path
    exposures: tuple[Path, ...]
    truth: tuple[Path, ...]
    catalog: Path
    config: Path


class _Survey:
    def __init__(self, outdir: Path, pars: SimulationParameters) -> None:
        self.root = outdir
        self.pars = pars
        self.camera: Camera = load_camera(pars.camera)
        if self.camera.reduced:
            raise ConfigError(f"camera {self.camera.name} is for reduced images; the simulator makes raw ones")
        rng = np.random.default_rng([pars.seed, 0])
        shapes = {s.id: section_shape(s, self.camera) for s in self.camera.sections}
        self.extent = float(np.hypot(*field_extent(self.camera, shapes)))
        self.detectors: list[Detector] = [make_detector(s, self.camera, pars, self.extent, rng)
                                          for s in self.camera.sections if s.usable_at(pars.start_mjd)]
        self.sky: Sky = make_sky(pars, self.camera, shapes, rng)
        for folder in ("raw", "calib", "truth"):
            (outdir / folder).mkdir(parents=True, exist_ok=True)

    def filter_of(self, detector: Detector) -> str:
        return detector.section.filter or self.pars.filter

    def magnitudes(self, band: str) -> F64:
        """Magnitudes of all sources in a filter of the camera."""
        rule = self.camera.photometry.get(band)
        colour = np.zeros_like(self.sky.colour) if rule is None else sum(
            (c * self.sky.colour**i for i, c in enumerate(rule.terms)), start=np.zeros_like(self.sky.colour))
        return self.sky.g_mag + colour

    def fluxes(self, band: str, epoch: int) -> F64:
        """Electrons of all sources in an exposure."""
        sky, pars = self.sky, self.pars
        mag = self.magnitudes(band) - np.where((sky.kind == "variable") & (epoch > 0), sky.boost, 0.0)
        pulsating = sky.kind == "pulsating"
        if pulsating.any():
            days = epoch * pars.cadence_days
            turns = days / sky.period_d[pulsating] + sky.phase[pulsating]
            mag[pulsating] += sky.amplitude[pulsating] * np.sin(2 * np.pi * turns)
        flux = 10 ** (-0.4 * (mag - pars.zero_point_e)) * pars.of_epoch(pars.transparency, epoch)
        return np.where((sky.kind == "transient") & (epoch == 0), 0.0, flux)

    def pixels(self, detector: Detector, epoch: int) -> tuple[F64, F64, F64, F64]:
        """x, y of all sources on a section, and their distorted plane coordinates [arcsec]."""
        xi, eta = plane_at(self.sky, self.pars, epoch)
        ra, dec = tan_deproject(xi, eta, self.pars.ra_deg, self.pars.dec_deg)
        xi, eta = tan_project(ra, dec, *self.pointing(epoch))
        r2 = (xi**2 + eta**2) / self.extent**2
        stretch = 1 + self.pars.distortion_arcsec / self.extent * r2
        u, v = xi * stretch, eta * stretch
        x, y = self.on_section(detector, u, v)
        return x, y, u, v

    def on_section(self, detector: Detector, u: F64 | float, v: F64 | float) -> tuple[F64, F64]:
        """x, y on a section of distorted plane coordinates [arcsec]."""
        ny, nx = detector.shape
        east, north = detector.section.offset_arcsec
        scale = self.camera.pixel_scale_arcsec
        sign = -1.0 if detector.section.east_left else 1.0
        angle = np.deg2rad(detector.section.rotation_deg)
        a, b = (u - east) / scale, (v - north) / scale
        x = sign * (a * np.cos(angle) - b * np.sin(angle)) + (nx - 1) / 2
        y = a * np.sin(angle) + b * np.cos(angle) + (ny - 1) / 2
        return x, y

    def pointing(self, epoch: int) -> tuple[float, float]:
        """True pointing of an epoch (dithered) [deg]."""
        if epoch == 0:
            return self.pars.ra_deg, self.pars.dec_deg
        d = np.random.default_rng([self.pars.seed, 1, epoch]).normal(0, self.pars.dither_arcsec, 2) / 3600
        return self.pars.ra_deg + d[0] / np.cos(np.deg2rad(self.pars.dec_deg)), self.pars.dec_deg + d[1]

    def psf(self, epoch: int) -> MoffatPSF:
        pars = self.pars
        return MoffatPSF(pars.of_epoch(pars.seeing_arcsec, epoch) / self.camera.pixel_scale_arcsec, pars.moffat_beta,
                         pars.psf_variation, pars.ellipticity, self.extent)

    def streaks(self, epoch: int) -> list[Streak]:
        """Trails through the focal plane in an epoch."""
        pars = self.pars
        noise = float(np.sqrt(pars.of_epoch(pars.sky_e, epoch)))
        return make_streaks(pars.trails_per_exposure, self.extent, pars.trail_brightness, noise,
                            np.random.default_rng([pars.seed, 6, epoch]))

    def add_streaks(self, image: F64, detector: Detector, epoch: int) -> npt.NDArray[np.uint8]:
        """Draw the trails of an epoch on a section; return the truth plane with their cores."""
        plane: npt.NDArray[np.uint8] = np.zeros(image.shape, np.uint8)
        for streak in self.streaks(epoch):
            away = 100.0 * np.array([np.cos(streak.angle), np.sin(streak.angle)])
            points = [np.array(self.on_section(detector, streak.xi + s * away[0], streak.eta + s * away[1]))
                      for s in (-1, 1)]
            core = add_streak(image, (points[0], points[1]), streak.peak_e, self.psf(epoch).fwhm)
            plane[core] |= TRAIL
        return plane

    def expose(self, detector: Detector, epoch: int, rng: np.random.Generator
               ) -> tuple[F64, Table, npt.NDArray[np.uint8]]:
        """Electrons of one section, the truth table of its sources, and the plane of its trails and bleeds."""
        x, y, u, v = self.pixels(detector, epoch)
        flux = self.fluxes(self.filter_of(detector), epoch)
        ny, nx = detector.shape
        sky = self.pars.of_epoch(self.pars.sky_e, epoch)
        near = np.flatnonzero((x > -60) & (x < nx + 60) & (y > -60) & (y < ny + 60) & (flux > 0))
        psf = self.psf(epoch)
        ideal = np.zeros((ny, nx))
        noise = float(np.sqrt(sky))
        for k in near:
            if self.sky.kind[k] == "galaxy":
                add_galaxy(ideal, psf, x[k], y[k], flux[k], u[k], v[k],
                           self.sky.radius[k] / self.camera.pixel_scale_arcsec, self.sky.shear1[k], self.sky.shear2[k])
            else:
                add_point(ideal, psf, x[k], y[k], flux[k], u[k], v[k], noise)
        light = (ideal + sky * (1 + detector.fringe)) * detector.flat
        electrons = rng.poisson(light + detector.dark * self.pars.exp_time_s).astype(np.float64)
        # with numbers of its own, so that the rest of the image is the same with a trail as without
        trail = np.zeros((ny, nx))
        plane = self.add_streaks(trail, detector, epoch)
        if plane.any():
            number = [d.section.id for d in self.detectors].index(detector.section.id)
            own = np.random.default_rng([self.pars.seed, 7, epoch, number])
            electrons += own.poisson(trail * detector.flat)
        add_cosmic_rays(electrons, rng.poisson(self.pars.cosmic_rays_per_mpix * ny * nx / 1e6), rng)
        if self.pars.full_well_e > 0:
            plane[spill(electrons, self.pars.full_well_e)] |= BLEED
        truth = self.truth(detector, epoch, x, y, u, v, flux)
        truth["on_trail"] = self.near(truth, plane & TRAIL != 0, 7 * psf.fwhm)
        return electrons, truth, plane

    @staticmethod
    def near(truth: Table, mask: npt.NDArray[np.bool_], reach: float) -> npt.NDArray[np.bool_]:
        """Whether sources lie within `reach` pixels of a mask."""
        from scipy.ndimage import distance_transform_edt

        if not mask.any():
            return np.zeros(len(truth), bool)
        distance = distance_transform_edt(~mask)
        return np.asarray(distance[np.rint(truth["y"]).astype(int), np.rint(truth["x"]).astype(int)] < reach)

    def truth(self, detector: Detector, epoch: int, x: F64, y: F64, u: F64, v: F64, flux: F64) -> Table:
        """Truth of every source whose centre lies on the section."""
        ny, nx = detector.shape
        band = self.filter_of(detector)
        on = (x >= 0) & (x <= nx - 1) & (y >= 0) & (y <= ny - 1)
        ra, dec = tan_deproject(*plane_at(self.sky, self.pars, epoch), self.pars.ra_deg, self.pars.dec_deg)
        ratio = self.pars.of_epoch(self.pars.transparency, epoch) / self.pars.of_epoch(self.pars.transparency, 0)
        before = self.fluxes(band, 0) * ratio
        # a mover leaves its old place: the difference at the new place is its whole flux
        diff = flux - np.where(self.sky.kind == "mover", 0.0, before) if epoch else np.zeros_like(flux)
        gain = detector.mean_gain
        rn2 = float(np.mean(detector.read_noise)) ** 2
        variance = flux * 0.0
        for e, factor in ((epoch, 1.0), (0, ratio**2)):
            squares = self.psf(e).sum_squares(0.0, 0.0)
            variance = variance + factor * (self.pars.of_epoch(self.pars.sky_e, e) + rn2) / squares
        variance = variance + np.maximum(flux, 0) + ratio**2 * self.fluxes(band, 0)
        zp_e = self.pars.zero_point_e + 2.5 * np.log10(self.pars.of_epoch(self.pars.transparency, epoch))
        with np.errstate(divide="ignore"):
            mag = np.where(flux > 0, zp_e - 2.5 * np.log10(np.maximum(flux, 1e-30)), np.inf)
        table = Table({
            "section": np.full(on.sum(), detector.section.id), "id": np.flatnonzero(on), "kind": self.sky.kind[on],
            "x": x[on], "y": y[on], "ra": ra[on], "dec": dec[on], "mag": mag[on], "flux_adu": flux[on] / gain,
            "diff_adu": diff[on] / gain, "diff_snr": (diff / np.sqrt(variance))[on]})
        table.meta[f"zp_{detector.section.id}"] = float(zp_e - 2.5 * np.log10(gain))
        return table

    def write_exposure(self, epoch: int) -> tuple[Path, Path]:
        """Write one raw exposure and its truth table."""
        from astropy.table import vstack
        from astropy.time import Time

        pars = self.pars
        rng = np.random.default_rng([pars.seed, 2, epoch])
        mjd = pars.start_mjd + epoch * pars.cadence_days
        error = rng.normal(0, pars.pointing_error_arcsec, 2) / 3600
        ra, dec = self.pointing(epoch)
        values: dict[str, Any] = {
            "mjd": mjd, "exp_time": pars.exp_time_s, "filter": pars.filter, "airmass": 1.1 + 0.05 * epoch,
            "ra": ra + error[0] / np.cos(np.deg2rad(dec)), "dec": dec + error[1], "target": "simulated field",
            "project": "simulated"}
        primary = fits.PrimaryHDU()
        for name, value in values.items():
            rule = self.camera.header.get(name)
            if rule is not None and rule.keyword is not None:
                keyword = rule.keyword if isinstance(rule.keyword, str) else rule.keyword[0]
                primary.header[keyword] = Time(value, format="mjd").isot if rule.convert == "isot_to_mjd" else value
        frames: Frames = {}
        truths = []
        planes = fits.HDUList([fits.PrimaryHDU()])
        for detector in self.detectors:
            electrons, truth, plane = self.expose(detector, epoch, rng)
            planes.append(fits.CompImageHDU(plane, name=detector.section.id, compression_type="GZIP_1"))
            frames.update(read_out(detector, electrons, self.camera, pars, epoch, rng))
            truths.append(truth)
        stem = f"{self.camera.name}_{Time(mjd, format='mjd').strftime('%Y%m%d_%H%M%S')}_{pars.filter}"
        path = self.root / "raw" / f"{stem}.fits"
        _write_atomically(path, lambda tmp: arrange(primary.header, frames).writeto(tmp, overwrite=True))
        truth = vstack(truths, metadata_conflicts="silent")
        truth.meta.update({"exposure": stem, "epoch": epoch, "mjd": mjd,
                           "seeing_arcsec": pars.of_epoch(pars.seeing_arcsec, epoch)})
        truth_path = self.root / "truth" / f"{stem}.ecsv"
        truth.write(truth_path, format="ascii.ecsv", overwrite=True)
        planes.writeto(self.root / "truth" / f"{stem}_artefacts.fits", overwrite=True)
        return path, truth_path

    def write_calibration(self) -> None:
        """Write nearly noiseless master frames of every section."""
        rng = np.random.default_rng([self.pars.seed, 3])
        calib = self.root / "calib"
        for d in self.detectors:
            frames: dict[str, npt.NDArray[Any]] = {"bias": d.bias + 0.1 * rng.standard_normal(d.shape),
                      "flat": d.flat * (1 + 0.0005 * rng.standard_normal(d.shape)), "badpixels": d.bad.astype(np.uint8)}
            gain = np.ones(d.shape)
            for amp, g, y, x in zip(d.section.amplifiers, d.gains, *self.corners(d), strict=True):
                gain[amp.y0: y, amp.x0: x] = g
            if "dark" in self.steps:
                frames["dark"] = d.dark / gain
            if "fringe" in self.steps:
                frames["fringe"] = d.fringe
            paths = self.camera.calibration_paths(d.section.id, self.filter_of(d), str(calib))
            for kind, path in paths.items():
                if kind in frames:
                    data = frames[kind] if kind == "badpixels" else frames[kind].astype(np.float32)
                    fits.PrimaryHDU(data).writeto(path, overwrite=True)
            if "linearity" in self.steps:
                Table({"amplifier": [a.name for a in d.section.amplifiers],
                       "coefficients": [[0.0, 1.0, c] for c in d.curvature]}).write(paths["linearity"], overwrite=True)
        if "crosstalk" in self.steps:
            names = {d.section.id: [f"{d.section.id}:{a.name}" for a in d.section.amplifiers] for d in self.detectors}
            Table(rows=[(names[d.section.id][v], names[d.section.id][s], c) for d in self.detectors
                        for v, s, c in d.crosstalk], names=("victim", "source", "coefficient")).write(
                            paths["crosstalk"], overwrite=True)

    @staticmethod
    def corners(detector: Detector) -> tuple[list[int], list[int]]:
        """Upper right corners, y and x, of the amplifiers, for those that lie side by side or in quadrants."""
        ny, nx = detector.shape
        ys, xs = ({getattr(a, n) for a in detector.section.amplifiers} for n in ("y0", "x0"))
        return ([min((y for y in ys if y > a.y0), default=ny) for a in detector.section.amplifiers],
                [min((x for x in xs if x > a.x0), default=nx) for a in detector.section.amplifiers])

    @property
    def steps(self) -> list[str]:
        """Corrections that undo what this survey has."""
        pars = self.pars
        more = {"dark": pars.dark_e_per_s, "linearity": pars.nonlinearity, "crosstalk": pars.crosstalk,
                "fringe": pars.fringe_amplitude}
        steps = ["overscan", "zero", "flat", "badpixels", *(s for s, v in more.items() if v > 0)]
        missing = sorted(s for s in steps[4:] if s not in self.camera.calibration)
        if missing:
            raise ConfigError(f"camera {self.camera.name} has no calibration of kind {missing[0]}: the simulator would "
                              "not know where to write it")
        return steps

    def write_catalog(self) -> Path:
        """Write the Gaia-like catalogue of the brighter stars, with errors."""
        rng = np.random.default_rng([self.pars.seed, 4])
        sky = self.sky
        pick = (sky.kind == "star") & (sky.g_mag < self.pars.catalog_mag)
        n = int(pick.sum())
        ra, dec = tan_deproject(sky.xi[pick], sky.eta[pick], self.pars.ra_deg, self.pars.dec_deg)
        error = 0.05 + 0.3 * 10 ** (0.4 * (sky.g_mag[pick] - 20))
        ra = ra + rng.normal(0, 1, n) * error / 3.6e6 / np.cos(np.deg2rad(dec))
        half = 0.5 * sky.colour[pick]
        table = Table({
            "ra": ra, "dec": dec + rng.normal(0, 1, n) * error / 3.6e6, "pmra": sky.pm_xi[pick],
            "pmdec": sky.pm_eta[pick], "g": sky.g_mag[pick] + 0.002 * rng.standard_normal(n),
            "bp": sky.g_mag[pick] + half, "rp": sky.g_mag[pick] - half, "pos_err_mas": error})
        table.meta["EPOCH"] = REF_EPOCH
        path = self.root / "catalog.fits"
        table.write(path, overwrite=True)
        return path

    def write_config(self) -> Path:
        """Write the configuration that processes this survey."""
        path = self.root / "seechange.yaml"
        settings: dict[str, Any] = {
            "camera": {"name": self.pars.camera},
            "catalog": {"path": str((self.root / "catalog.fits").absolute())},
            "paths": {"root": str((self.root / "work").absolute()),
                      "calibration": str((self.root / "calib").absolute())},
        }
        if len(self.steps) > 4:
            settings["preprocessing"] = {"steps_required": self.steps}
        path.write_text("# Processes this simulated survey:  seechange-mpi run --config seechange.yaml raw/*.fits\n"
                        + yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return path


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    tmp = path.with_name(f".{path.name}.tmp")
    write(tmp)
    tmp.replace(path)


def simulate_survey(
    outdir: str | Path, pars: SimulationParameters | None = None, progress: Callable[[str], None] | None = None
) -> SurveyPaths:
    """Simulate a survey into `outdir`; the same parameters give the same files.

    Parameters
    ----------
    progress : callable, optional
        Told what has been written.
    """
    root = Path(outdir)
    survey = _Survey(root, pars or SimulationParameters())
    say = progress or (lambda _text: None)
    survey.write_calibration()
    catalog, config = survey.write_catalog(), survey.write_config()
    say(f"calibration frames of {len(survey.detectors)} sections and a catalogue")
    written = []
    for epoch in range(survey.pars.epochs):
        written.append(survey.write_exposure(epoch))
        say(f"exposure {epoch + 1} of {survey.pars.epochs}: {written[-1][0].name}")
    return SurveyPaths(root, tuple(w[0] for w in written), tuple(w[1] for w in written), catalog, config)
