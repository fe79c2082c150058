"""The corrections of the detector and of its response, each on a section that is put together in place."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.flags import Correction, PixelFlag
from seechange_mpi.model.products import F32, U16, RawAmplifier, RawSection
from seechange_mpi.pipeline.amplifier_gains import Box, fit_gain_factors
from seechange_mpi.pipeline.calibration_files import CalibrationFiles, middle_of
from seechange_mpi.pipeline.fringe import fit_fringe
from seechange_mpi.pipeline.linearity import Linearity, polynomial, read_linearity
from seechange_mpi.pipeline.overscan import Method, Pedestal, pedestal_of

Place = tuple[slice, slice]
_DEAD = 0.05
"""Response, relative to its median, below which a pixel is bad."""


@dataclass(slots=True)
class Frame:
    """A section while it is corrected.

    Attributes
    ----------
    data : (ny, nx) float32 [ADU];  flags : (ny, nx) uint16.
    amplifiers, places : its amplifiers and where they lie.
    gain : float [e-/ADU] that all pixels are brought to, after `match_gains`.
    saturation : level of each amplifier [ADU of `data`].
    saturated : (ny, nx) bool, pixels at or above it in the raw frame.
    applied : corrections made;  metrics : their figures.
    response : (ny, nx) float32 or None, relative to its median, that the data were divided by.
    dark : (ny, nx) float32 or None [ADU], subtracted dark current, before the division.
    fringe : (ny, nx) float32 or None [ADU], subtracted fringes.
    """

    data: F32
    flags: U16
    amplifiers: list[RawAmplifier]
    places: list[Place]
    gain: float
    saturation: list[float]
    saturated: npt.NDArray[np.bool_]
    applied: Correction = field(default_factory=lambda: Correction(0))
    metrics: dict[str, float] = field(default_factory=dict)
    response: F32 | None = None
    dark: F32 | None = None
    fringe: F32 | None = None

    @property
    def read_noise_e(self) -> float:
        """Root mean square read noise of the amplifiers [e-]."""
        return float(np.sqrt(np.mean([a.read_noise_e**2 for a in self.amplifiers])))


def assemble(raw: RawSection, path: str) -> Frame:
    """Put the raw amplifiers of a section together; nothing is corrected.

    Raises
    ------
    BadInput
        An amplifier reaches beyond the section.
    """
    data = np.full(raw.shape, np.nan, np.float32)
    saturated = np.zeros(raw.shape, bool)
    places = []
    for amp in raw.amplifiers:
        place = (slice(amp.y0, amp.y0 + amp.data.shape[0]), slice(amp.x0, amp.x0 + amp.data.shape[1]))
        if data[place].shape != amp.data.shape:
            raise BadInput(path, f"section {raw.section_id} amplifier {amp.name or '1'}",
                           f"to lie within {raw.shape[1]}×{raw.shape[0]} pixels",
                           f"{amp.data.shape[1]}×{amp.data.shape[0]} pixels at x={amp.x0}, y={amp.y0}")
        data[place] = amp.data
        np.greater_equal(amp.data, np.float32(amp.saturation_adu), out=saturated[place])
        places.append(place)
    return Frame(data, np.zeros(raw.shape, np.uint16), list(raw.amplifiers), places,
                 float(np.mean([a.gain for a in raw.amplifiers])), [a.saturation_adu for a in raw.amplifiers],
                 saturated)


def subtract_overscan(frame: Frame, raw: RawSection, files: CalibrationFiles, method: Method, trim: int,
                      knots: int) -> None:
    """Subtract the pedestal of every amplifier; those without overscan are an error or passed over.

    Raises
    ------
    BadInput
        An overscan is missing or unusable.
    """
    done = True
    for k, (amp, place) in enumerate(zip(frame.amplifiers, frame.places, strict=True)):
        if amp.overscan is None or amp.overscan.size == 0:
            files.refuse_missing(files.exposure_path, f"section {raw.section_id} amplifier {amp.name or '1'}",
                                 "an overscan region, bias_section in the camera's YAML", "none")
            done = False
            continue
        pedestal = pedestal_of(amp, files.exposure_path, method, trim, knots)
        pedestal.subtract_from(frame.data[place])
        frame.saturation[k] -= pedestal.level
    if done:
        frame.applied |= Correction.OVERSCAN


def _source_counts(amp: RawAmplifier, path: str, method: Method, trim: int, knots: int) -> F32:
    counts = amp.data.copy()
    if amp.overscan is not None and amp.overscan.size:
        pedestal: Pedestal = pedestal_of(amp, path, method, trim, knots)
        pedestal.subtract_from(counts)
    else:
        counts -= np.float32(middle_of(counts))
    return counts


def subtract_crosstalk(frame: Frame, raw: RawSection, files: CalibrationFiles, method: Method, trim: int,
                       knots: int) -> None:
    """Subtract what each amplifier sees of the others, pixel by pixel in the order of readout.

    The counts of a source are its measured ones, overscan subtracted; coefficients refer to those. Where the source
    is saturated its counts are only a lower limit: if as much again would be more than half of the victim's read
    noise, the ghost is flagged CROSSTALK.

    Raises
    ------
    BadInput
        There is no matrix, or source and victim have different sizes.
    """
    if raw.crosstalk is None:
        files.refuse_missing(files.exposure_path, f"crosstalk of section {raw.section_id}",
                             "a table of kind crosstalk, or coefficients in the camera's YAML, read by "
                             "Preprocessor.read", "neither")
        return
    own = {a.name: k for k, a in enumerate(frame.amplifiers)}
    needed = {(t.section, t.source) for t in raw.crosstalk}
    counts: dict[tuple[str, str], tuple[RawAmplifier, F32]] = {}
    for section, name in sorted(needed):
        if section == raw.section_id:
            amp = frame.amplifiers[own[name]]
            counts[section, name] = amp, frame.data[frame.places[own[name]]].copy()
        else:
            amp = raw.sources[section, name]
            counts[section, name] = amp, _source_counts(amp, files.exposure_path, method, trim, knots)
    for term in raw.crosstalk:
        k = own[term.victim]
        victim, place = frame.amplifiers[k], frame.places[k]
        source, values = counts[term.section, term.source]
        if values.shape != victim.data.shape:
            raise BadInput(files.exposure_path, f"crosstalk from {term.section}:{term.source} to {term.victim}",
                           "amplifiers of one size", f"{values.shape[::-1]} and {victim.data.shape[::-1]} pixels")
        turn = tuple(axis for axis, differs in enumerate((source.from_top != victim.from_top,
                                                          source.from_right != victim.from_right)) if differs)
        ghost = np.flip(values, turn) * np.float32(term.coefficient)
        full = np.flip(source.data >= source.saturation_adu, turn)
        ghost[~np.isfinite(ghost)] = 0
        frame.data[place] -= ghost
        if full.any() and abs(ghost[full]).max() > 0.5 * victim.read_noise_e / victim.gain:
            frame.flags[place][full] |= np.uint16(PixelFlag.CROSSTALK)
    if raw.crosstalk_file:
        files.used["crosstalk"] = raw.crosstalk_file
    frame.applied |= Correction.CROSSTALK


def subtract_bias(frame: Frame, files: CalibrationFiles) -> None:
    """Subtract the master bias."""
    bias = files.image("bias")
    if bias is None:
        return
    frame.data -= bias
    for k, place in enumerate(frame.places):
        frame.saturation[k] -= middle_of(bias[place])
    frame.applied |= Correction.ZERO


def linearize(frame: Frame, files: CalibrationFiles) -> None:
    """Make counts linear, amplifier by amplifier: from the file, or from the camera's coefficients.

    Raises
    ------
    BadInput
        There is neither, or the correction is unusable.
    """
    path, names = files.exposure_path, [a.name for a in frame.amplifiers]
    known: dict[str, Linearity]
    if files.paths.get("linearity") is None and all(a.linearity for a in frame.amplifiers):
        known = {a.name: polynomial(a.linearity, path, a.name, top)
                 for a, top in zip(frame.amplifiers, frame.saturation, strict=True)}
    else:
        file = files.path("linearity")
        if file is None:
            return
        known = read_linearity(file, dict(zip(names, frame.saturation, strict=True)))
    for k, (amp, place) in enumerate(zip(frame.amplifiers, frame.places, strict=True)):
        known[amp.name].apply(frame.data[place])
        if np.isfinite(frame.saturation[k]):
            level = np.array([[frame.saturation[k]]], np.float32)
            known[amp.name].apply(level)
            frame.saturation[k] = float(level[0, 0])
    frame.applied |= Correction.LINEARITY


def subtract_dark(frame: Frame, files: CalibrationFiles, exp_time_s: float) -> None:
    """Subtract the master dark [ADU/s] times the exposure time."""
    dark = files.image("dark")
    if dark is None:
        return
    dark *= np.float32(exp_time_s)
    frame.data -= dark
    frame.dark = dark
    frame.applied |= Correction.DARK


def match_gains(frame: Frame) -> None:
    """Bring all amplifiers to their mean gain: afterwards an ADU is `frame.gain` electrons everywhere."""
    for k, (amp, place) in enumerate(zip(frame.amplifiers, frame.places, strict=True)):
        factor = amp.gain / frame.gain
        if factor != 1.0:
            frame.data[place] *= np.float32(factor)
            if frame.dark is not None:
                frame.dark[place] *= np.float32(factor)
        frame.saturation[k] *= factor


def divide(frame: Frame, files: CalibrationFiles, kind: str, correction: Correction) -> None:
    """Divide by a flat or an illumination frame; pixels without response become bad.

    The level of the frame is kept in the gain, so that a flat in counts changes the unit, not the electrons.
    """
    flat = files.image(kind)
    if flat is None:
        return
    level = middle_of(flat)
    dead = ~(flat > _DEAD * level)
    if dead.any():
        frame.flags[dead] |= np.uint16(PixelFlag.BAD_PIXEL)
        flat[dead] = level
    frame.data /= flat
    frame.gain *= level
    frame.saturation = [s / level for s in frame.saturation]
    if level != 1.0:
        flat *= np.float32(1 / level)
        if frame.fringe is not None:
            frame.fringe *= np.float32(1 / level)
        if frame.dark is not None:
            frame.dark *= np.float32(1 / level)
    if frame.response is None:
        frame.response = flat
    else:
        frame.response *= flat
    frame.applied |= correction


def fit_gains(frame: Frame, section_id: str) -> None:
    """Multiply each amplifier by the factor that leaves no step at the seams.

    The factors are measured after the flat, which may hold part of the error of the gains, and are taken for errors
    of the amplifiers' gains: an ADU stays worth the same electrons everywhere.

    Raises
    ------
    AlgorithmError
        The sky cannot be followed over the seams.
    """
    if len(frame.amplifiers) < 2:
        return
    boxes = [Box(p[1].start, p[0].start, p[1].stop - p[1].start, p[0].stop - p[0].start) for p in frame.places]
    bad = (frame.flags != 0) | frame.saturated | ~np.isfinite(frame.data)
    factors = fit_gain_factors(frame.data, bad, boxes, section_id)
    for k, (amp, place, factor) in enumerate(zip(frame.amplifiers, frame.places, factors, strict=True)):
        frame.data[place] *= np.float32(factor)
        frame.saturation[k] *= float(factor)
        frame.metrics[f"gain_factor_{amp.name or k + 1}"] = float(factor)
    frame.applied |= Correction.GAIN_FIT


def subtract_fringe(frame: Frame, files: CalibrationFiles) -> None:
    """Subtract the master fringe pattern, scaled to the image; the scale is kept in the metrics."""
    pattern = files.image("fringe")
    if pattern is None:
        return
    bad = (frame.flags != 0) | frame.saturated | ~np.isfinite(frame.data)
    fit = fit_fringe(frame.data, bad, pattern)
    pattern[~np.isfinite(pattern)] = 0
    pattern *= np.float32(fit.scale)
    frame.data -= pattern
    frame.fringe = pattern
    frame.metrics |= {"fringe_scale": fit.scale, "fringe_scale_err": fit.error}
    frame.applied |= Correction.FRINGE


def flag_bad_pixels(frame: Frame, files: CalibrationFiles) -> None:
    """Flag what the bad-pixel map names."""
    bad = files.image("badpixels")
    if bad is None:
        return
    frame.flags[bad != 0] |= np.uint16(PixelFlag.BAD_PIXEL)
    frame.applied |= Correction.BAD_PIXEL_MAP
