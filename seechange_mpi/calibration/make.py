"""Make one calibration frame of one section: read, combine, write, say how it went."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable, Mapping

from seechange_mpi.calibration.badpixels import make_badpixels
from seechange_mpi.calibration.corrections import read_frames
from seechange_mpi.calibration.recipes import make_bias, make_dark, make_flat, make_fringe
from seechange_mpi.calibration.task import CalibrationOutcome, CalibrationTask, Made
from seechange_mpi.calibration.write import write_frame
from seechange_mpi.io.raw import read_section
from seechange_mpi.model.calibration import CalibratorFrame
from seechange_mpi.model.errors import AlgorithmError, BadInput, SeeChangeError
from seechange_mpi.model.products import F32
from seechange_mpi.model.provenance import ProvenanceRecord, make_record
from seechange_mpi.pipeline.inputs import file_identity
from seechange_mpi.pipeline.tree import camera_digest

_RECIPES: dict[str, Callable[[CalibrationTask, Mapping[str, F32]], Made]] = {
    "bias": make_bias, "dark": make_dark, "flat": make_flat, "fringe": make_fringe, "badpixels": make_badpixels}
CORRECTED_BY: dict[str, tuple[str, ...]] = {
    "bias": (), "dark": ("bias",), "flat": ("bias", "dark"), "fringe": ("bias", "dark", "flat"),
    "badpixels": ("bias", "dark")}
"""Frames that correct the inputs of a frame, where there are any."""


def make_frame(task: CalibrationTask) -> CalibratorFrame:
    """Make a frame and write it.

    Raises
    ------
    AlgorithmError
        Too few inputs are good, or a frame that `calibration.required` names is missing.
    BadInput
        A frame that corrects the inputs is unreadable, or the result cannot be written.
    """
    needed = [k for k in task.parameters().required if k in CORRECTED_BY[task.kind] and k not in task.calibration]
    if needed:
        raise AlgorithmError("calibration", f"{task.name}: there is no {needed[0]} frame (calibration.required); make "
                             f"or register one: seechange-mpi calib make {needed[0]}, calib add")
    used = {k: p for k, p in task.calibration.items() if k in CORRECTED_BY[task.kind]}
    made = _RECIPES[task.kind](task, read_frames(used, _shape(task)) if used else {})
    identities = {kind: file_identity(path) for kind, path in used.items()}
    record = _provenance(task, made, identities, used)
    path, digest = write_frame(task, made, record.id, identities)
    return CalibratorFrame(
        task.kind, task.calibrator_set, task.flat_type, task.camera.name, task.section_id, task.filter, str(path),
        digest, task.validity_start_mjd, task.validity_end_mjd, record, made.quality, made.inputs,
        tuple(made.rejected))


def _shape(task: CalibrationTask) -> tuple[int, int]:
    """Trimmed shape of the section, from the first exposure that can be read."""
    error: BadInput | None = None
    for exposure in task.exposures:
        try:
            return read_section(exposure, task.camera, task.section_id).shape
        except BadInput as err:
            error = err
    raise error or AlgorithmError("calibration", f"{task.name}: there are no exposures")


def _provenance(task: CalibrationTask, made: Made, identities: Mapping[str, str],
                used: Mapping[str, str]) -> ProvenanceRecord:
    """Provenance of a frame: parameters, inputs by digest, frames that corrected them."""
    from astropy.io import fits

    parameters = {"kind": task.kind, "flat_type": task.flat_type, "filter": task.filter, "section": task.section_id,
                  "instrument": task.camera.name, "camera": camera_digest(task.camera),
                  "settings": task.parameters().critical(), "overscan": list(task.overscan), "inputs": made.inputs,
                  "frames": dict(identities)}
    above = [str(fits.getheader(path).get("PROVID", "")) for path in used.values()]
    return make_record("calibration", parameters, {a for a in above if a})


def run_task(task: CalibrationTask) -> CalibrationOutcome:
    """Make a frame; whatever goes wrong becomes part of the outcome."""
    started = time.monotonic()
    out = CalibrationOutcome(task.section_id, task.filter)
    try:
        out.frame = make_frame(task)
        out.rejected = out.frame.rejected
    except SeeChangeError as err:
        out.error = str(err)
    except Exception as err:  # noqa: BLE001 - one section must not end the others
        out.error, out.is_bug = f"{type(err).__name__}: {err}\n{traceback.format_exc()}", True
    out.seconds = time.monotonic() - started
    out.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return out
