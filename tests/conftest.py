"""Fixtures for all tests: a clean environment, real data when present, one simulated survey per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REALDATA = Path(os.environ.get("SEECHANGE_REALDATA") or Path(__file__).parents[2] / "shared" / "realdata")


@pytest.fixture(autouse=True)
def _no_user_configuration(monkeypatch):
    """Tests never read the user's configuration, and never share one."""
    from seechange_mpi.config.resolve import Config

    monkeypatch.delenv("SEECHANGE_CONFIG", raising=False)
    Config.reset()
    yield
    Config.reset()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of real observations; the test is skipped, visibly, where it is missing."""
    if not REALDATA.is_dir():
        pytest.skip(f"no real data at {REALDATA}; set SEECHANGE_REALDATA")
    return REALDATA


TINY_CAMERA = """
name: tiny
pixel_scale_arcsec: 0.6
filters: [r]
gain: 1.7
read_noise: 6.0
saturation: 60000
association_radius_arcsec: 1.0
header:
  mjd: {keyword: MJD-OBS}
  exp_time: {keyword: EXPTIME}
  filter: {keyword: FILTER, convert: str}
  ra: {keyword: RA}
  dec: {keyword: DEC}
calibration:
  bias: "{calib_dir}/bias_{section}.fits"
  flat: "{calib_dir}/flat_{section}_{filter}.fits"
  badpixels: "{calib_dir}/badpixels_{section}.fits"
photometry:
  r: {band: g, terms: [0.02, -0.35]}
section_defaults:
  size: [400, 400]
  amplifiers:
    - {name: A, data_section: "[17:216,1:400]", bias_section: "[1:16,1:400]", x0: 0, gain: GAINA, read_noise: RDNOISEA}
    - {name: B, data_section: "[217:416,1:400]", bias_section: "[417:432,1:400]", x0: 200, gain: GAINB,
       read_noise: RDNOISEB}
sections:
  - {id: T1, hdu: T1, offset_arcsec: [250.0, 0.0]}
  - {id: T2, hdu: T2, offset_arcsec: [0.0, 0.0]}
  - {id: T3, hdu: T3, offset_arcsec: [-250.0, 0.0]}
"""
"""A camera of three small sections: a user's own YAML, no Python."""


class Survey:
    """A simulated survey on disk, and ways to process copies of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.exposures = sorted((root / "raw").glob("*.fits"))

    def config(self, folder: Path, **more: object) -> Path:
        """Write a configuration whose results go to `folder`."""
        import yaml

        settings = yaml.safe_load((self.root / "seechange.yaml").read_text())
        settings["paths"]["root"] = str(folder)
        for key, value in more.items():
            here = settings
            *parents, last = key.split("__")
            for p in parents:
                here = here.setdefault(p, {})
            here[last] = value
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path


def run_cli(*args: object) -> int:
    """Run a verb in this process; return its exit code."""
    from seechange_mpi.cli.main import main
    from seechange_mpi.config.resolve import Config

    Config.reset()
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in args])
    Config.reset()
    return int(left.value.code or 0)


@pytest.fixture(scope="session")
def cli():
    """Call a verb: ``cli("run", "--config", path, exposure) -> exit code``."""
    return run_cli


@pytest.fixture(scope="session")
def tiny_survey(tmp_path_factory) -> Survey:
    """Two epochs of three sections of 400 × 400 pixels."""
    from seechange_mpi.simulate.parameters import SimulationParameters
    from seechange_mpi.simulate.survey import simulate_survey

    root = tmp_path_factory.mktemp("survey")
    camera = root / "tiny.yaml"
    camera.write_text(TINY_CAMERA)
    simulate_survey(root, SimulationParameters(
        camera=str(camera), epochs=2, stars_per_sq_deg=16000, faint_mag=21.5, catalog_mag=20.8, seed=4,
        transients_per_section=4, variables_per_section=1, movers_per_section=1, galaxies_per_sq_deg=2000,
        trails_per_exposure=0))
    return Survey(root)
