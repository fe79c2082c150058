"""What a worker is told of a frame to make, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.config.calibration import CalibrationSettings
from seechange_mpi.instruments.camera import Camera
from seechange_mpi.model.calibration import CalibratorFrame, Rejected
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.pipeline.overscan import Method


@dataclass(frozen=True, slots=True)
class CalibrationTask:
    """One frame of one section.

    Attributes
    ----------
    exposures : candidates, in the order of time.
    types : exposure type of each (`select.exposure_type`), by identifier; used for badpixels.
    calibration : kind -> path of the frames that correct the inputs.
    settings : `CalibrationSettings` as a mapping.
    validity_start_mjd, validity_end_mjd : float or None.
    folder, scratch : str, where the frame goes, and where its inputs lie meanwhile.
    overscan : method, trim and knots of the overscan (`pipeline.overscan.pedestal_of`), as preprocessing has them.
    """

    kind: str
    camera: Camera
    section_id: str
    filter: str
    flat_type: str
    exposures: tuple[ExposureInfo, ...]
    types: Mapping[str, str]
    calibration: Mapping[str, str]
    settings: Mapping[str, Any]
    calibrator_set: str
    validity_start_mjd: float | None
    validity_end_mjd: float | None
    folder: str
    scratch: str
    overscan: tuple[Method, int, int] = ("fit", 0, 8)

    @property
    def name(self) -> str:
        """Kind, section and filter, for messages."""
        return " ".join(w for w in (self.flat_type, self.kind, "of section", self.section_id, self.filter) if w)

    def parameters(self) -> CalibrationSettings:
        """The settings, validated."""
        return CalibrationSettings(**dict(self.settings))


@dataclass(slots=True)
class CalibrationOutcome:
    """What became of a task."""

    section_id: str
    filter: str
    frame: CalibratorFrame | None = None
    error: str = ""
    is_bug: bool = False
    rejected: tuple[Rejected, ...] = ()
    seconds: float = 0.0
    peak_rss_mb: float = 0.0


@dataclass(slots=True)
class Made:
    """A frame before it is written.

    Attributes
    ----------
    data : (ny, nx) float32, or uint8 for badpixels.
    unit : str, FITS BUNIT.
    quality : figures by name.
    inputs : identifier -> digest;  rejected : inputs left out.
    """

    data: npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    unit: str
    quality: dict[str, float]
    inputs: dict[str, str]
    rejected: list[Rejected] = field(default_factory=list)
