"""The one registry of pixel flags, correction bits and report bits.

The numbers of ``PixelFlag`` 0-3, ``Correction`` 0-6, ``Badness`` and the report bits are SeeChange's; higher bits are
ours.  Documentation tables are generated from these enumerations.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np
import numpy.typing as npt


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


class Badness(IntFlag):
    """Bits of ``bitflag``: what makes a product doubtful. Every product has its own bits and those of its upstreams."""

    BANDING = 1 << 1
    SHAKING = 1 << 2
    SATURATION = 1 << 3
    BAD_SUBTRACTION = 1 << 4
    BRIGHT_SKY = 1 << 5
    PSF = 1 << 11
    FEW_SOURCES = 1 << 16
    MANY_SOURCES = 1 << 17
    NO_CATALOG = 1 << 21
    MATCH_FAILED = 1 << 22
    BIG_RESIDUALS = 1 << 23
    TOO_DENSE = 1 << 31
    BAD_FIT = 1 << 32
    REF_BAD = 1 << 35
    REF_SUPERSEDED = 1 << 36
    COSMIC_RAY = 1 << 41
    GHOST = 1 << 42
    SATELLITE = 1 << 43
    OFFSET = 1 << 44
    BAD_PIXEL = 1 << 45
    BLEED = 1 << 46


BADNESS_MEANINGS: dict[Badness, tuple[str, str, str]] = {
    Badness.BANDING: ("image", "banding", "rows or columns share an offset beyond the noise of single pixels"),
    Badness.SHAKING: ("image", "shaking", "bright sources are elongated in one common direction"),
    Badness.SATURATION: ("image", "saturation", "a large part of the section is saturated"),
    Badness.BAD_SUBTRACTION: ("sub image", "bad subtraction", "the score has not unit variance, or far too many pixels "
                                                            "beyond 5 sigma"),
    Badness.BRIGHT_SKY: ("image", "bright sky", "the sky is brighter than expected"),
    Badness.PSF: ("psf", "bad psf", "FWHM, ellipticity or chi2 of the PSF out of range"),
    Badness.FEW_SOURCES: ("sources", "few sources", "fewer sources than expected, or too few to go on"),
    Badness.MANY_SOURCES: ("sources", "many sources", "sources so dense that they blend"),
    Badness.NO_CATALOG: ("wcs, zero point", "no catalog", "a catalogue was asked for and does not cover the section"),
    Badness.MATCH_FAILED: ("wcs, zero point", "match failed", "sources and catalogue could not be matched"),
    Badness.BIG_RESIDUALS: ("wcs, zero point", "big residuals", "matched stars scatter about the solution"),
    Badness.TOO_DENSE: ("background", "too dense", "sources cover so much of the section that the sky is unsure"),
    Badness.BAD_FIT: ("background", "bad background", "structure is left in the background-subtracted sky"),
    Badness.REF_BAD: ("sub image", "bad reference", "the reference itself has a badness bit, its own or upstream"),
    Badness.REF_SUPERSEDED: ("sub image", "superseded reference", "a better reference has replaced this one (set by "
                                                                  "hand; the pipeline does not)"),
    Badness.COSMIC_RAY: ("measurement", "cosmic ray", "pixels flagged as a cosmic ray under the measurement"),
    Badness.GHOST: ("measurement", "ghost", "internal reflection (set by hand; the pipeline does not)"),
    Badness.SATELLITE: ("measurement", "satellite", "pixels flagged as a trail under the measurement"),
    Badness.OFFSET: ("measurement", "offset", "the fitted position lies far from the detection"),
    Badness.BAD_PIXEL: ("measurement", "bad pixel", "bad pixels or pixels without data under the measurement"),
    Badness.BLEED: ("measurement", "bleed", "saturated or bled pixels under the measurement"),
}
"""Bit -> (product that carries it, word shown, meaning)."""


def badness_words(*bitflags: int) -> str:
    """Return the words of all bits that are set in any of `bitflags`, comma separated; "" for none."""
    bits = 0
    for b in bitflags:
        bits |= int(b)
    words = [word for bit, (_, word, _) in BADNESS_MEANINGS.items() if bits & bit]
    known = sum(int(b) for b in Badness)
    words += [f"bit {k}" for k in range(63) if bits & ~known & (1 << k)]
    return ", ".join(words)


_OTHER_WORDS = {"psf fit failed": Badness.PSF, "x-match failed": Badness.MATCH_FAILED, "bad fit": Badness.BAD_FIT,
                "ref is bad": Badness.REF_BAD, "ref is superceded": Badness.REF_SUPERSEDED,
                "bleed trail": Badness.BLEED}
"""What SeeChange calls them."""


def _plain(word: str) -> str:
    return word.lower().replace(" ", "").replace("_", "").replace("-", "")


def badness_bits(words: str) -> int:
    """Return the bits that comma-separated words stand for; the inverse of `badness_words`.

    Words, names and SeeChange's words are known, however they are capitalised and spaced; ``bit 12`` is bit 12.

    Raises
    ------
    ValueError
        A word is not known.
    """
    known = {_plain(word): int(bit) for bit, (_, word, _) in BADNESS_MEANINGS.items()}
    known |= {_plain(str(bit.name)): int(bit) for bit in Badness}
    known |= {_plain(word): int(bit) for word, bit in _OTHER_WORDS.items()}
    bits = 0
    for word in filter(str.strip, words.split(",")):
        plain = _plain(word.strip())
        number = plain.removeprefix("bit")
        if plain in known:
            bits |= known[plain]
        elif number.isdecimal() and plain.startswith("bit") and int(number) < 63:
            bits |= 1 << int(number)
        else:
            raise ValueError(f"'{word.strip()}' is no badness; there are: "
                             f"{', '.join(w for _, w, _ in BADNESS_MEANINGS.values())}")
    return bits


def badness_table() -> str:
    """Return the documentation table of `Badness`, in Markdown."""
    lines = ["| bit | name | found in | shown as | meaning |", "|---|---|---|---|---|"]
    for bit, (product, word, meaning) in BADNESS_MEANINGS.items():
        lines.append(f"| {int(bit).bit_length() - 1} | `{bit.name}` | {product} | {word} | {meaning} |")
    return "\n".join(lines)


_MEASUREMENT_BITS: tuple[tuple[tuple[str, ...], Badness], ...] = (
    (("COSMIC_RAY",), Badness.COSMIC_RAY),
    (("TRAIL",), Badness.SATELLITE),
    (("BAD_PIXEL", "NO_DATA"), Badness.BAD_PIXEL),
    (("SATURATED", "BLEED"), Badness.BLEED),
)
"""Names of pixel flags (those that exist count) -> bit of a measurement on such pixels."""


def badness_of_pixels(flags: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the measurement bits that pixel flags (`PixelFlag`, OR of a footprint) stand for."""
    out = np.zeros(flags.shape, np.int64)
    for names, bit in _MEASUREMENT_BITS:
        wanted = sum(int(PixelFlag[n]) for n in names if n in PixelFlag.__members__)
        out[(flags & wanted) != 0] |= int(bit)
    return out


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


REDUCED_ELSEWHERE = (Correction.OVERSCAN | Correction.ZERO | Correction.DARK | Correction.LINEARITY | Correction.FLAT
                     | Correction.FRINGE | Correction.ILLUMINATION)
"""``preproc_bitflag`` of an exposure whose file comes reduced."""


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
