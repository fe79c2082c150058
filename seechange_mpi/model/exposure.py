"""What is known of an exposure before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ExposureInfo:
    """One shutter opening, its header translated by the camera's YAML.

    Attributes
    ----------
    identifier : str
        Unique name of the exposure: the file's base name without ``.fits``, ``.fits.fz``, ``.fits.gz``.
    instrument : str
        Camera name, as in ``instruments/<name>.yaml``.
    path : str
        The raw file (absolute).
    mjd : float
        Start of the exposure, UTC [d].
    exp_time_s : float
        Exposure time [s].
    filter : str
        Filter short name; a camera with one filter per section overrides it per section.
    ra_deg, dec_deg : float or None
        Pointing, ICRS; None when the header has none and the sections carry their own WCS.
    airmass : float or None
    project, target : str
    header : dict
        Primary header cards that are kept (JSON-able values).
    overrides : dict
        Header values that the user gave in place of the file's.
    """

    identifier: str
    instrument: str
    path: str
    mjd: float
    exp_time_s: float
    filter: str
    ra_deg: float | None = None
    dec_deg: float | None = None
    airmass: float | None = None
    project: str = ""
    target: str = ""
    header: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)


def identifier_of(path: str | Path) -> str:
    """Exposure identifier of a raw file: its base name without FITS suffixes."""
    name = Path(path).name
    for suffix in (".fz", ".gz", ".bz2"):
        name = name.removesuffix(suffix)
    for suffix in (".fits", ".fit", ".fts", ".FITS"):
        name = name.removesuffix(suffix)
    return name
