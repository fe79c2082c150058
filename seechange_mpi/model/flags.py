"""The one registry of pixel flags, correction bits and report bits.

The numbers of ``PixelFlag`` 0-3, ``Correction`` 0-6 and the report bits are SeeChange's; higher bits are
ours.  Documentation tables are generated from these enumerations.
"""

from __future__ import annotations

from enum import IntFlag


class PixelFlag(IntFlag):
    """Bits of the ``flags`` plane (uint16)."""

    BAD_PIXEL = 1 << 0
    ZERO_WEIGHT = 1 << 1
    SATURATED = 1 << 2
    OUT_OF_BOUNDS = 1 << 3
    COSMIC_RAY = 1 << 4
    NO_DATA = 1 << 5
    BLEED = 1 << 6
    """Charge that a saturated star has spilt along its columns."""
    TRAIL = 1 << 7
    """Trail of a satellite or aircraft."""
    CROSSTALK = 1 << 8
    """Ghost of a saturated pixel of another amplifier: how much was to be subtracted is not known."""


class Correction(IntFlag):
    """Bits of ``preproc_bitflag``: corrections that were really applied."""

    OVERSCAN = 1 << 0
    ZERO = 1 << 1
    DARK = 1 << 2
    LINEARITY = 1 << 3
    FLAT = 1 << 4
    FRINGE = 1 << 5
    ILLUMINATION = 1 << 6
    CROSSTALK = 1 << 7
    GAIN_FIT = 1 << 8
    """Relative gains of the amplifiers fitted to the sky at their seams."""
    BAD_PIXEL_MAP = 1 << 9


STEP_BITS: dict[str, int] = {
    "preprocessing": 1,
    "extraction": 2,
    "astrocal": 4,
    "photocal": 5,
    "subtraction": 6,
    "detection": 7,
    "cutting": 8,
    "measuring": 9,
    "scoring": 10,
    "fakeanalysis": 11,
    "alerting": 12,
    "finalize": 30,
}
"""Bit numbers of ``reports.progress_steps_bitflag``."""

PRODUCT_BITS: dict[str, int] = {
    "image": 1, "sources": 2, "psf": 3, "bg": 4, "wcs": 5, "zp": 6, "sub_image": 7,
    "detections": 8, "cutouts": 9, "measurement_set": 10, "deepscore_set": 11,
}  # fmt: skip
"""Bit numbers of ``reports.products_exist_bitflag``."""
