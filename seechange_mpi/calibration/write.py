"""Calibration frames as FITS files: complete or absent, named by content, never changed."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits

from seechange_mpi.calibration.select import date_of
from seechange_mpi.calibration.task import CalibrationTask, Made
from seechange_mpi.io.drafts import draft_of
from seechange_mpi.model.errors import BadInput

QUALITY_CARDS: dict[str, tuple[str, str]] = {
    "n_inputs": ("NINPUT", "inputs combined"), "n_rejected": ("NREJECT", "inputs left out"),
    "median": ("MEDIAN", "median"), "rms": ("RMS", "scatter without outliers"),
    "clipped_fraction": ("CLIPFRAC", "fraction of values left out"),
    "noise_expected": ("NOISEEXP", "noise of a pixel, after the model"),
    "noise_measured": ("NOISEMSR", "noise of a pixel, of two halves"),
    "noise": ("NOISE", "with that of frames used"),
    "chi2": ("CHI2", "scatter over noise model, squared"),
    "exp_time_total_s": ("EXPTOTAL", "[s] sum of exposure times"),
    "exp_time_shortest_s": ("EXPMIN", "[s]"), "exp_time_longest_s": ("EXPMAX", "[s]"),
    "level_lowest_adu": ("LEVMIN", "[adu] level of the faintest input"),
    "level_highest_adu": ("LEVMAX", "[adu] level of the brightest input"),
    "hot_fraction": ("HOTFRAC", "fraction of hot pixels"), "dead_fraction": ("DEADFRAC", "fraction of dead pixels"),
    "nonlinear_fraction": ("NLINFRAC", "fraction of non-linear pixels"),
    "unstable_fraction": ("UNSTFRAC", "fraction of unstable pixels"),
    "bad_fraction": ("BADFRAC", "fraction of bad pixels"),
    "amplitude": ("AMPLITUD", "half the range of 95 percent"),
    "flat_levels": ("FLATLEVS", "levels of flats"),
}
"""Figure -> FITS keyword and comment; read noise and gain go to RDNOISEn and GAINn."""


def header_of(task: CalibrationTask, made: Made, provenance_id: str, calibration: dict[str, str]) -> fits.Header:
    """Return the header of a frame."""
    header = fits.Header()
    header["CALKIND"] = (task.kind, "kind of calibration frame")
    header["CALSET"] = (task.calibrator_set, "set of calibration frames")
    if task.flat_type:
        header["FLATTYPE"] = (task.flat_type, "source of light")
    header["INSTRUME"] = (task.camera.name, "camera")
    header["SECTION"] = (task.section_id, "section (CCD)")
    if task.filter:
        header["FILTER"] = task.filter
    if made.unit:
        header["BUNIT"] = made.unit
    used = [e for e in task.exposures if e.identifier in made.inputs]
    if used:
        header["MJD-OBS"] = (used[0].mjd, "[d] first input")
        header["MJD-END"] = (used[-1].mjd, "[d] last input")
    header["PROVID"] = (provenance_id, "provenance")
    for kind, identity in sorted(calibration.items()):
        header[f"USED{kind.upper()[:4]}"] = identity
    for keyword, value, comment in _quality(made.quality):
        header[keyword] = (value, comment)
    for k, (name, digest) in enumerate(made.inputs.items(), 1):
        header[f"INP{k:05d}"] = f"{name}:{digest}"
    for r in made.rejected:
        header.add_history(f"left out: {_ascii(r.identifier)}: {_ascii(r.reason)}")
    return header


def _ascii(text: str) -> str:
    return "".join(c if 32 <= ord(c) < 127 else {"×": "x", "σ": "sigma"}.get(c, " ") for c in text)


def _quality(quality: dict[str, float]) -> Iterator[tuple[str, float | int, str]]:
    amplifiers: dict[str, int] = {}
    for name, value in quality.items():
        if not math.isfinite(value):
            continue
        if name in QUALITY_CARDS:
            keyword, comment = QUALITY_CARDS[name]
            yield keyword, int(value) if name.startswith("n_") or name == "flat_levels" else value, comment
        for prefix, keyword, unit in (("read_noise_", "RDNOISE", "[e-]"), ("gain_", "GAIN", "[e-/adu]")):
            if name.startswith(prefix):
                amplifier = name.removeprefix(prefix)
                n = amplifiers.setdefault(f"{prefix}{amplifier}", 1 + sum(a.startswith(prefix) for a in amplifiers))
                yield f"{keyword}{n}", value, f"{unit} of amplifier {amplifier}, measured"


def write_frame(task: CalibrationTask, made: Made, provenance_id: str, calibration: dict[str, str]) -> tuple[Path, str]:
    """Write a frame; return its path and sha256. The same content has the same name, and stays as it is.

    Raises
    ------
    BadInput
        The folder cannot be written.
    """
    folder = Path(task.folder) / task.camera.name / task.kind
    hdu = fits.PrimaryHDU(np.ascontiguousarray(made.data), header_of(task, made, provenance_id, calibration))
    first = next((e.mjd for e in task.exposures if e.identifier in made.inputs), 0.0)
    words = [task.kind, task.camera.name, task.section_id, task.filter, date_of(first).replace("-", "")]
    stem = "_".join(w for w in words if w)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = draft_of(folder / stem)
        with open(draft, "wb") as f:
            hdu.writeto(f)
            f.flush()
            os.fsync(f.fileno())
        with open(draft, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        path = folder / f"{stem}_{digest[:10]}.fits"
        draft.chmod(0o444)
        draft.replace(path)
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as err:
        raise BadInput(folder, "folder of calibration frames", "room to write a frame", err.strerror or err) from None
    return path, digest
