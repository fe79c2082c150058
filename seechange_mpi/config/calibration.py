"""Settings of calibration frames: how they are chosen, and how they are made."""

from __future__ import annotations

from typing import Literal

from seechange_mpi.config.parameters import Parameters, par


class CalibratorSettings(Parameters):
    """How the calibration frames of a section are chosen."""

    section = "calibrators"
    source: Literal["both", "database", "files"] = par(
        "both", "database = registered frames, valid at the exposure's date; files = patterns of the camera's YAML; "
                "both = a registered frame in place of a file", critical=False)
    set: list[str] = par(["nightly", "general", "externally_supplied"],
                         "sets of registered frames to choose from, the preferred one first", critical=False)
    flat_types: list[str] = par(["sky", "twilight", "dome", "externally_supplied"],
                                "types of flats to choose from, the preferred one first", critical=False)
    folder: str | None = par(None, "where frames made by 'calib make' go; null = <paths.root>/calibrators",
                             critical=False)
    raw: str | None = par(None, "folder searched for exposures by 'calib make --night'", critical=False)
    night_start_utc_h: float = par(16.0, "UTC hour of local noon, when the night of a date begins: 16 in Chile, "
                                         "22 in Hawaii, 2 in eastern Australia",
                                   unit="h", critical=False, ge=0, lt=24)


class CalibrationSettings(Parameters):
    """How calibration frames are made."""

    section = "calibration"
    n_sigma: float = par(5.0, "values farther from the mean of their pixel are left out", unit="sigma", ge=2.5)
    min_inputs: int = par(3, "least number of good inputs of a frame", ge=2)
    required: list[str] = par([], "frames without which none is made of those that need them: bias, dark, flat")
    offset_tolerance: float = par(0.5, "bias and dark: largest offset or change of shape of an input from the others, "
                                       "in standard deviations of one of its pixels", unit="sigma", gt=0)
    noise_tolerance: float = par(1.3, "largest ratio of an input's pixel noise to that of the others", gt=1)
    flat_level_ratio: float = par(3.0, "dome and sky flats: largest ratio of an input's level to that of the others",
                                  gt=1)
    flat_shape_tolerance: float = par(0.02, "flats: largest rms departure of an input's shape from the others", gt=0)
    flat_min_electrons: float = par(5000.0, "faintest dome or twilight flat", unit="e-/pix", ge=0)
    sky_min_electrons: float = par(50.0, "faintest sky exposure in a sky flat or fringe frame", unit="e-/pix", ge=0)
    max_saturation: float = par(0.9, "brightest flat, as a fraction of the saturation level", gt=0, le=1)
    max_saturated_fraction: float = par(0.02, "largest fraction of saturated pixels of a flat or sky exposure", gt=0,
                                        le=1)
    source_sigma: float = par(3.0, "sky flats and fringes: significance of a smoothed pixel that counts as source",
                              unit="sigma", gt=0)
    source_grow: int = par(10, "growth of the masks of sources", unit="pix", ge=0)
    fringe_box: int = par(192, "mesh of the sky background under fringes; wider than the fringes", unit="pix", ge=32)
    dead_response: float = par(0.5, "response below which a pixel is dead, above 2 minus which it is odd; relative "
                                    "to its surroundings", gt=0, lt=1)
    hot_sigma: float = par(8.0, "significance of a hot pixel in darks and biases", unit="sigma", gt=3)
    nonlinear_tolerance: float = par(0.05, "change of a pixel's response between faint and bright flats that is too "
                                           "much", gt=0)
    column_tolerance: float = par(0.01, "the same for the median of a column", gt=0)
    column_fraction: float = par(0.3, "fraction of bad pixels that makes the whole column of an amplifier bad", gt=0,
                                 le=1)
    memory_mb: int = par(64, "memory for one strip of all inputs while they are combined", unit="MB", critical=False,
                         ge=4)
    scratch: str | None = par(None, "folder for corrected inputs while a frame is made (4 bytes a pixel and input); "
                                    "null = <paths.root>/scratch", critical=False)
