"""Identity of what goes into a section besides the exposure, and what may be reused because of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import RawSection
from seechange_mpi.model.task import PROCESS_OF_STEP, STEPS, ReferenceLink


@lru_cache(maxsize=4096)
def _digest(path: str, _size: int, _mtime_ns: int) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def file_identity(path: str | Path) -> str:
    """Return ``name:digest`` of a file; the digest (sha256, 16 hex digits) is cached while the file is unchanged.

    Raises
    ------
    BadInput
        The file cannot be read.
    """
    try:
        stat = os.stat(path)
        return f"{Path(path).name}:{_digest(str(path), stat.st_size, stat.st_mtime_ns)}"
    except OSError as err:
        raise BadInput(path, "input file", "a readable file", err.strerror) from None


def raw_digest(raw: RawSection) -> str:
    """Return a digest (sha256, 16 hex digits) of a raw section as it was read: pixels, gains, header."""
    digest = hashlib.sha256()

    def feed(name: str, plane: npt.NDArray[Any] | None) -> None:
        if plane is not None:
            digest.update(f"\n{name}{plane.dtype.str}{plane.shape}".encode())
            digest.update(np.ascontiguousarray(plane).data)

    for amp in (*raw.amplifiers, *raw.sources.values()):
        digest.update(f"\n{amp.name}@{amp.x0},{amp.y0}:{amp.gain!r},{amp.read_noise_e!r},{amp.saturation_adu!r}".encode())
        for name in ("data", "overscan", "parallel_overscan"):
            feed(name, getattr(amp, name))
    for name in ("weight", "mask", "mask_flags"):
        feed(name, getattr(raw, name))
    digest.update(raw.header_wcs.encode())
    return digest.hexdigest()[:16]


def identify(
    calibration: Mapping[str, str],
    catalog: Mapping[str, Any] | None,
    reference: ReferenceLink | None,
    *,
    relative_zero_point: bool = False,
) -> dict[str, str]:
    """Return name -> identity of all inputs of a section.

    A catalogue that brings its ``identity`` (an excerpt: the digest of the stars in the exposure's field) is known by
    it, else by its file. With ``relative_zero_point`` the zero point, too, depends on the reference (or on there being
    none).
    """
    out = {f"calibration.{kind}": file_identity(path) if os.path.isfile(path) else "missing"
           for kind, path in sorted(calibration.items())}
    if catalog and catalog.get("identity"):
        out["catalog"] = str(catalog["identity"])
    elif catalog and catalog.get("path"):
        out["catalog"] = file_identity(catalog["path"])
    if reference is not None:
        out["reference"] = reference.image_id
    if relative_zero_point:
        out["photocal.reference"] = reference.image_id if reference is not None else "none"
    return out


_FIRST_STEP = {"catalog": "astrocal", "photocal.reference": "photocal", "reference": "subtraction"}
"""First step that an input enters; calibration frames enter the very first."""


def inputs_of_step(inputs: Mapping[str, str], step: str) -> dict[str, str]:
    """Return those inputs that the products up to and including `step` depend on."""
    return {name: value for name, value in inputs.items()
            if STEPS.index(_FIRST_STEP.get(name, STEPS[0])) <= STEPS.index(step)}


def reusable_through(
    stored_ids: Mapping[str, str], stored_inputs: Mapping[str, str], completed_step: str,
    wanted_ids: Mapping[str, str], wanted_inputs: Mapping[str, str],
) -> str | None:
    """Return the last step whose stored products are what is wanted now, or None.

    A step's products may be reused when they were completed, when the provenance of its process and of all
    before it is the wanted one, and when the same inputs went in.
    """
    if completed_step not in STEPS:
        return None
    last: str | None = None
    for step in STEPS[: STEPS.index(completed_step) + 1]:
        process = PROCESS_OF_STEP[step]
        if stored_ids.get(process) is None or stored_ids.get(process) != wanted_ids.get(process):
            break
        if inputs_of_step(stored_inputs, step) != inputs_of_step(wanted_inputs, step):
            break
        last = step
    return last
