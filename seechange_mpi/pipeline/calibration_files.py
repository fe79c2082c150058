"""Calibration files of a section: found, checked, read, and remembered by digest.

Conventions of master frames, all of them FITS images on the trimmed grid of the section:

============  ===================================================================================================
kind          content
============  ===================================================================================================
bias          ADU left after overscan subtraction, per raw amplifier (before gains are matched)
dark          ADU per second after overscan and bias, per raw amplifier
flat          response relative to its median, from gain-matched frames; flat_dome, flat_twilight, flat_sky likewise
illumination  like a flat: what is left of it on a flat-fielded sky
fringe        pattern of zero mean, in units of the sky level
badpixels     nonzero = bad
linearity     table, see `pipeline.linearity`
crosstalk     table, see `io.crosstalk`
============  ===================================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import numpy as np

from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import F32, RawSection
from seechange_mpi.pipeline.inputs import file_identity

_POSITIVE = ("flat", "flat_dome", "flat_twilight", "flat_sky", "illumination")


class CalibrationFiles:
    """The files of one section, and which of them were used.

    Attributes
    ----------
    used : dict, kind -> name and digest of the file.
    """

    def __init__(self, paths: Mapping[str, str], raw: RawSection, exposure_path: str,
                 missing: Literal["error", "skip"]) -> None:
        self.paths, self.raw, self.exposure_path, self.missing = paths, raw, exposure_path, missing
        self.used: dict[str, str] = {}

    @staticmethod
    def there(path: str | None) -> bool:
        """Whether there is such a file."""
        return path is not None and os.path.isfile(path)

    def path(self, kind: str) -> str | None:
        """Return the file of a kind, or None where it is missing and that is to be passed over.

        Raises
        ------
        BadInput
            It is missing, and that is an error.
        """
        path = self.paths.get(kind)
        if path is None or not self.there(path):
            self.refuse_missing(path or self.exposure_path,
                                f"{kind} frame of section {self.raw.section_id}, filter {self.raw.filter}",
                                "a FITS file", "no such file")
            return None
        self.used[kind] = file_identity(path)
        return path

    def refuse_missing(self, path: str, what: str, expected: str, found: str) -> None:
        """Raise unless what is missing is to be passed over."""
        if self.missing == "error":
            raise BadInput(path, what, f"{expected} (or leave the correction out of preprocessing.steps_required, or "
                           "set preprocessing.missing_calibration=skip)", found)

    def image(self, kind: str) -> F32 | None:
        """Read a frame of the section's size; None where it is missing and that is to be passed over.

        Raises
        ------
        BadInput
            See `path` and `read_calibration_frame`.
        """
        path = self.path(kind)
        return None if path is None else read_calibration_frame(path, self.raw.shape, kind)


def read_calibration_frame(path: str, shape: tuple[int, int], kind: str) -> F32:
    """Read a calibration frame: the first HDU with a two-dimensional image.

    Returns
    -------
    (ny, nx) float32; non-finite values stay in it (``bias``: those pixels become NO_DATA).

    Raises
    ------
    BadInput
        Unreadable, no image, another shape than the section, or hardly any finite value.
    """
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as hdus:
            images = (h for h in hdus if getattr(h, "is_image", False) and h.header.get("NAXIS", 0) == 2)
            data = next((h.data for h in images), None)
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, f"{kind} frame", "a readable FITS image", err) from None
    if data is None:
        raise BadInput(path, f"{kind} frame", "a two-dimensional image", "none in the file")
    if data.shape != shape:
        raise BadInput(path, f"{kind} frame", f"{shape[1]}×{shape[0]} pixels as the section",
                       f"{data.shape[1]}×{data.shape[0]}")
    out = np.ascontiguousarray(data, dtype=np.float32)
    finite = float(np.isfinite(out).mean())
    if finite < 0.1 or (kind in _POSITIVE and not middle_of(out) > 0):
        wanted = "finite values" + (" with a positive median" if kind in _POSITIVE else "")
        raise BadInput(path, f"{kind} frame", wanted, f"{100 * finite:.1f} % finite")
    return out


def middle_of(frame: F32) -> float:
    """Return the median of the finite values, of some 500,000 of them on a regular grid; 0 if there are none."""
    step = max(1, int(np.sqrt(frame.size / 500_000)))
    values = frame[::step, ::step]
    values = values[np.isfinite(values)]
    if values.size == 0:
        values = frame[np.isfinite(frame)]
    return float(np.median(values)) if values.size else 0.0
