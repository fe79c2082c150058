"""Time and peak memory of a calibration frame of one full CCD (2048 × 4096) from 60 raw exposures.

Run:  python benchmarks/calibration_frames.py [--inputs 60] [--kinds bias,flat,sky] [--folder DIR]
Each frame is made in a process of its own, so that its peak resident memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

SECTION = "SE_01"
LEVEL_E = {"bias": 0.0, "flat": 30_000.0, "sky": 2_000.0, "fringe": 2_000.0}


def write_inputs(folder: Path, kind: str, n: int) -> None:
    """Write raw LS4 exposures of one section: noise, a pedestal, stars on the sky."""
    from seechange_mpi.simulate.render import MoffatPSF, add_cosmic_rays, add_point

    rng = np.random.default_rng(1)
    y, x = np.mgrid[:4096, :2048]
    flat = 1 - 0.1 * (((x - 1024) / 2048) ** 2 + ((y - 2048) / 4096) ** 2)
    noise = rng.standard_normal((4096 + n, 2112)).astype(np.float32)
    psf = MoffatPSF(2.5, 3.5, 0.0, 0.0, 1e4)
    level = LEVEL_E[kind]
    for k in range(n):
        electrons = level * flat
        if kind in ("sky", "fringe"):
            electrons = electrons * (1 + 0.01 * np.cos(x / 9.0))
            for _ in range(800):
                add_point(electrons, psf, rng.uniform(0, 2047), rng.uniform(0, 4095), 3e3 * (1 + rng.pareto(1.0)),
                          0, 0, 45.0)
        add_cosmic_rays(electrons, 120, rng)
        raw = np.zeros((4096, 2112))
        raw[:, 32:2080] = electrons
        raw += np.sqrt(36.0 + np.maximum(raw, 0)) * noise[k: k + 4096] + 1000
        header = fits.Header({"MJD-OBS": 61000.0 + 0.001 * k, "EXPTIME": 45.0 * (level > 0),
                              "OBSTYPE": {"bias": "bias", "flat": "dome flat"}.get(kind, "object")})
        hdu = fits.ImageHDU(np.clip(np.round(raw), 0, 60000).astype(np.uint16), name=SECTION)
        fits.HDUList([fits.PrimaryHDU(header=header), hdu]).writeto(folder / f"{kind}_{k:03d}.fits")


def make(folder: Path, kind: str, queue: Any) -> None:
    """Make the frame, and tell time and memory."""
    import time

    from seechange_mpi.calibration.make import run_task
    from seechange_mpi.calibration.select import expand, exposure_type, select
    from seechange_mpi.calibration.task import CalibrationTask
    from seechange_mpi.config.calibration import CalibrationSettings
    from seechange_mpi.instruments.camera import load_camera

    camera = load_camera("LS4")
    name, light = ("flat", {"flat": "dome", "sky": "sky"}[kind]) if kind in ("flat", "sky") else (kind, "")
    found = select(expand([str(folder / f"{kind}_*.fits")]), camera, name, flat_type=light)
    calibration = {}
    if kind == "fringe":
        y, x = np.mgrid[:4096, :2048]
        flat = 1 - 0.1 * (((x - 1024) / 2048) ** 2 + ((y - 2048) / 4096) ** 2)
        fits.PrimaryHDU(flat.astype(np.float32)).writeto(folder / "flat.fits", overwrite=True)
        calibration["flat"] = str(folder / "flat.fits")
    task = CalibrationTask(
        name, camera, SECTION, "i" if light or kind == "fringe" else "", light, found.exposures,
        {e.identifier: exposure_type(e, camera) for e in found.exposures}, calibration,
        CalibrationSettings().model_dump(), "general", None, None, str(folder / "out"), str(folder / "scratch"))
    started = time.process_time()
    outcome = run_task(task)
    queue.put((outcome.error, time.process_time() - started, outcome.seconds, outcome.peak_rss_mb,
               outcome.frame.quality if outcome.frame else {}))


def main() -> None:
    """Make every kind and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=60)
    parser.add_argument("--kinds", default="bias,flat,sky")
    parser.add_argument("--folder", type=Path, help="keep the inputs here")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="calibration-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'kind':<8}{'inputs':>7}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}{'noise':>10}{'expected':>10}")
    try:
        for kind in args.kinds.split(","):
            if not list(folder.glob(f"{kind}_*.fits")):
                write_inputs(folder, kind, args.inputs)
            context = multiprocessing.get_context("spawn")
            queue: Any = context.Queue()
            child = context.Process(target=make, args=(folder, kind, queue))
            child.start()
            error, cpu, wall, peak, quality = queue.get()
            child.join()
            if error:
                print(f"{kind:<8}{error}")
                continue
            print(f"{kind:<8}{quality['n_inputs']:>7.0f}{cpu:>8.1f}{wall:>8.1f}{peak:>9.0f}"
                  f"{quality['noise_measured']:>10.3g}{quality['noise_expected']:>10.3g}", flush=True)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
