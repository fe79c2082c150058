"""A small camera, a simulated survey on disk, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

_CAMERA = """
name: {name}
pixel_scale_arcsec: 0.6
filters: [r]
gain: 1.7
read_noise: 6.0
saturation: 60000
association_radius_arcsec: 1.0
header:
  mjd: {{keyword: MJD-OBS}}
  exp_time: {{keyword: EXPTIME}}
  filter: {{keyword: FILTER, convert: str}}
  ra: {{keyword: RA}}
  dec: {{keyword: DEC}}
calibration:
  bias: "{{calib_dir}}/bias_{{section}}.fits"
  flat: "{{calib_dir}}/flat_{{section}}_{{filter}}.fits"
  badpixels: "{{calib_dir}}/badpixels_{{section}}.fits"
photometry:
  r: {{band: g, terms: [0.02, -0.35]}}
section_defaults:
  size: [{side}, {side}]
  amplifiers:
    - {{name: A, data_section: "[17:{a},1:{side}]", bias_section: "[1:16,1:{side}]", x0: 0, gain: GAINA,
       read_noise: RDNOISEA}}
    - {{name: B, data_section: "[{b},1:{side}]", bias_section: "[{over},1:{side}]", x0: {half}, gain: GAINB,
       read_noise: RDNOISEB}}
sections:
  - {{id: T1, hdu: T1, offset_arcsec: [{step}, 0.0]}}
  - {{id: T2, hdu: T2, offset_arcsec: [0.0, 0.0]}}
  - {{id: T3, hdu: T3, offset_arcsec: [-{step}, 0.0]}}
"""


def small_camera(name: str, side: int, step_arcsec: float) -> str:
    """YAML of a camera of three square sections with two amplifiers: a user's own, no Python."""
    half = side // 2
    return _CAMERA.format(name=name, side=side, step=step_arcsec, half=half, a=half + 16,
                          b=f"{half + 17}:{side + 16}", over=f"{side + 17}:{side + 32}")


TINY_CAMERA = small_camera("tiny", 400, 250.0)


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
