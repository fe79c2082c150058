"""Calibration frames: kinds, sets, and what is known of one."""

from __future__ import annotations

from dataclasses import dataclass, field

from seechange_mpi.model.provenance import ProvenanceRecord

KINDS: tuple[str, ...] = ("bias", "dark", "flat", "fringe", "illumination", "linearity", "crosstalk", "badpixels")
"""Kinds of calibration frames."""
MADE_KINDS: tuple[str, ...] = ("bias", "dark", "flat", "fringe", "badpixels")
"""Kinds that `calibration.make` makes from exposures."""
FILTER_KINDS: tuple[str, ...] = ("flat", "fringe", "illumination")
"""Kinds that belong to one filter."""
SETS: tuple[str, ...] = ("nightly", "general", "externally_supplied")
"""Sets of frames, the most specific first."""
FLAT_TYPES: tuple[str, ...] = ("sky", "twilight", "dome", "externally_supplied")
"""Where the light of a flat came from, the preferred one first."""

DEAD, HOT, NON_LINEAR, UNSTABLE = 1, 2, 4, 8
"""Bits of a badpixels frame; every one makes the pixel bad."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that was left out."""

    identifier: str
    reason: str


@dataclass(frozen=True, slots=True)
class CalibratorFrame:
    """A calibration frame on disk, as it is registered.

    Attributes
    ----------
    kind, calibrator_set, flat_type, instrument, section_id, filter : str
        ``flat_type`` and ``filter`` are "" where they have no meaning; a filter "" holds for all filters.
    path : str, absolute;  sha256 : str, of the file.
    validity_start_mjd, validity_end_mjd : float or None
        From the first, up to but without the second; None = unlimited.
    quality : dict, figures by name (`docs/calibration-frames.md`).
    inputs : dict, identifier of an input exposure -> digest of the section's raw pixels.
    rejected : inputs left out, with reasons.
    """

    kind: str
    calibrator_set: str
    flat_type: str
    instrument: str
    section_id: str
    filter: str
    path: str
    sha256: str
    validity_start_mjd: float | None
    validity_end_mjd: float | None
    provenance: ProvenanceRecord
    quality: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
