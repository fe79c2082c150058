"""One simulated night of calibration exposures of a small camera, and the frames made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

CAMERA = """
name: lab
pixel_scale_arcsec: 0.6
filters: [r]
gain: 1.7
read_noise: 6.0
saturation: 60000
header:
  mjd: {keyword: MJD-OBS}
  exp_time: {keyword: EXPTIME}
  filter: {keyword: FILTER, convert: str}
  ra: {keyword: RA}
  dec: {keyword: DEC}
sections:
  - id: C1
    hdu: C1
    size: [400, 320]
    amplifiers:
      - {name: A, data_section: "[33:232,1:320]", bias_section: "[1:32,1:320]", x0: 0, gain: GAINA,
         read_noise: RDNOISEA}
      - {name: B, data_section: "[233:432,1:320]", bias_section: "[433:464,1:320]", x0: 200, flip_x: true, gain: GAINB,
         read_noise: RDNOISEB}
"""


class Lab:
    """A night on disk, its truth, and ways to make frames of it."""

    def __init__(self, root: Path) -> None:
        from seechange_mpi.calibration.select import expand
        from seechange_mpi.instruments.camera import load_camera

        self.root = root
        self.camera = load_camera(root / "lab.yaml")
        self.files = expand([str(root / "raw_calib")])
        with fits.open(root / "truth" / "calibration_C1.fits") as hdus:
            self.truth = {h.name.lower(): np.array(h.data, float) for h in hdus[1:]}
        self.usual = (self.truth["bad"] == 0) & (self.truth["hot"] == 0)

    def of(self, *words: str) -> list[Path]:
        """Files whose names hold one of the words."""
        return [f for f in self.files if any(w in f.name for w in words)]

    def task(self, kind, files, *, light="", calibration=None, out=None, **settings):
        """The task of a frame made of files."""
        from seechange_mpi.calibration.select import exposure_type, select
        from seechange_mpi.calibration.task import CalibrationTask
        from seechange_mpi.config.calibration import CalibrationSettings

        found = select(files, self.camera, kind, flat_type=light, any_type=True)
        band = "r" if kind in ("flat", "fringe") else ""
        return CalibrationTask(
            kind, self.camera, "C1", band, light, found.exposures,
            {e.identifier: exposure_type(e, self.camera) for e in found.exposures}, calibration or {},
            CalibrationSettings(**settings).model_dump(), "general", None, None, str((out or self.root) / "out"),
            str(self.root / "scratch"))

    def make(self, kind, files, **more):
        """The outcome of a frame."""
        from seechange_mpi.calibration.make import run_task

        return run_task(self.task(kind, files, **more))

    def altered(self, path: Path, folder: Path, change, name: str = "") -> Path:
        """A copy of an exposure whose raw pixels (float64) are changed in place."""
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / (name or f"odd_{path.name}")
        with fits.open(path) as hdus:
            data = hdus["C1"].data.astype(float)
            change(data)
            hdus["C1"].data = np.clip(np.round(data), 0, 65535).astype(np.uint16)
            hdus.writeto(out)
        return out


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Lab:
    """A night of 50 exposures of one section of 400 × 320 pixels."""
    from seechange_mpi.simulate.calib_night import NightParameters, simulate_night
    from seechange_mpi.simulate.parameters import SimulationParameters

    root = tmp_path_factory.mktemp("lab")
    (root / "lab.yaml").write_text(CAMERA)
    simulate_night(root, SimulationParameters(camera=str(root / "lab.yaml"), seed=7), NightParameters(
        cosmic_rays_per_mpix=150.0, sky_stars=200.0, dark_times_s=[100.0, 300.0, 900.0], darks=9))
    return Lab(root)


@pytest.fixture(scope="session")
def frames(lab):
    """Kind -> outcome of the frames of the night, each corrected by those before."""
    out = {"bias": lab.make("bias", lab.of("bias"))}
    used = {"bias": out["bias"].frame.path}
    out["dark"] = lab.make("dark", lab.of("dark"), calibration=used)
    used = used | {"dark": out["dark"].frame.path}
    out["dome"] = lab.make("flat", lab.of("dome_10"), light="dome", calibration=used)
    out["twilight"] = lab.make("flat", lab.of("twilight"), light="twilight", calibration=used)
    out["sky"] = lab.make("flat", lab.of("sky"), light="sky", calibration=used)
    used = used | {"flat": out["dome"].frame.path}
    out["fringe"] = lab.make("fringe", lab.of("sky"), calibration=used)
    out["badpixels"] = lab.make("badpixels", lab.of("bias", "dark", "dome", "twilight"), calibration=used)
    return out


