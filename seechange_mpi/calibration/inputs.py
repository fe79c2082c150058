"""The corrected inputs of a frame, what each looks like, and which are unlike the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from seechange_mpi.calibration.corrections import SectionFrame, correct_section
from seechange_mpi.calibration.stack import FrameStack, robust_std
from seechange_mpi.config.calibration import CalibrationSettings
from seechange_mpi.instruments.camera import Camera
from seechange_mpi.io.raw import read_section
from seechange_mpi.model.calibration import Rejected
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import F32, F64
from seechange_mpi.pipeline.overscan import Method

_BLOCKS = 16
"""Blocks along each axis whose medians are the shape of an input."""


@dataclass(slots=True)
class Input:
    """One input.

    Attributes
    ----------
    index : int, in the stack.
    level : float, median [ADU];  pixel_noise : float, from differences of neighbours [ADU].
    expected_noise : float, of a pixel at that level [ADU].
    blocks : (16, 16) float64, medians [ADU].
    saturated_fraction : float;  digest : str, of the raw pixels.
    """

    exposure: ExposureInfo
    index: int
    level: float
    pixel_noise: float
    expected_noise: float
    blocks: F64
    saturated_fraction: float
    digest: str

    @property
    def name(self) -> str:
        """Identifier of the exposure."""
        return self.exposure.identifier


def block_medians(data: F32) -> F64:
    """Return (16, 16) float64 medians of blocks, of every second pixel of every second row; NaN left out."""
    thin = data[::2, ::2] if min(data.shape) >= 8 * _BLOCKS else data
    by, bx = (min(_BLOCKS, n) for n in thin.shape)
    h, w = thin.shape[0] // by, thin.shape[1] // bx
    cut = thin[: by * h, : bx * w].reshape(by, h, bx, w).transpose(0, 2, 1, 3).reshape(by * bx, h * w)
    cut[np.isnan(cut).all(axis=1), 0] = 0.0  # a block without any value
    medians = np.nanmedian(cut, axis=1) if np.isnan(cut).any() else np.median(cut, axis=1)
    return np.asarray(medians, np.float64).reshape(by, bx)


def describe(frame: SectionFrame, exposure: ExposureInfo, index: int) -> Input:
    """Measure an input."""
    data = frame.data
    step = data[::3, 1::2]
    differences = step - data[::3, 0::2][:, : step.shape[1]]
    level = float(np.nanmedian(data[::2, ::2]))
    read = float(np.mean([c.read_variance for c in frame.channels]))
    unit = float(np.mean([c.unit_per_electron for c in frame.channels]))
    expected = math.sqrt(read + unit * max(level, 0.0))
    return Input(exposure, index, level, robust_std(differences) / math.sqrt(2), expected, block_medians(data),
                 frame.saturated_fraction, frame.digest)


@dataclass(slots=True)
class Inputs:
    """Corrected inputs on disk; a context manager that clears them away."""

    stack: FrameStack
    members: list[Input]
    layout: SectionFrame
    """The first input without its pixels: amplifiers, gain, saturation."""
    rejected: list[Rejected] = field(default_factory=list)

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.stack.__exit__(kind, value, traceback)

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Leave inputs out, by identifier."""
        self.rejected += [Rejected(m.name, reasons[m.name]) for m in self.members if m.name in reasons]
        self.members = [m for m in self.members if m.name not in reasons]

    def require(self, least: int, what: str) -> None:
        """Refuse to go on with too few inputs.

        Raises
        ------
        AlgorithmError
            Names the inputs that were left out.
        """
        if len(self.members) < least:
            raise too_few(what, len(self.members), least, self.rejected)

    @property
    def indices(self) -> list[int]:
        """Places of the members in the stack."""
        return [m.index for m in self.members]

    def array(self, attribute: str) -> F64:
        """Return an attribute of all members."""
        return np.array([getattr(m, attribute) for m in self.members], np.float64)

    @property
    def times(self) -> F64:
        """Exposure times [s]."""
        return np.array([m.exposure.exp_time_s for m in self.members], np.float64)


def too_few(what: str, found: int, least: int, rejected: Sequence[Rejected]) -> AlgorithmError:
    """Return the error of a frame that has too few inputs."""
    reasons = "; ".join(f"{r.identifier}: {r.reason}" for r in rejected[:5])
    more = f"; and {len(rejected) - 5} more" if len(rejected) > 5 else ""
    left_out = f"; left out: {reasons}{more}" if rejected else ""
    return AlgorithmError("calibration", f"{what}: {found} good inputs, at least {least} are needed "
                          f"(calibration.min_inputs){left_out}")


def load(
    exposures: Sequence[ExposureInfo], camera: Camera, section_id: str, scratch: Path, frames: Mapping[str, F32], *,
    match_gains: bool, mask_saturated: bool, what: str, least: int, overscan: tuple[Method, int, int],
) -> Inputs:
    """Read and correct a section of every exposure; those that cannot be used are left out by name.

    Raises
    ------
    AlgorithmError
        Fewer than `least` can be used.
    """
    rejected: list[Rejected] = []
    out: Inputs | None = None
    try:
        for frame, exposure in _corrected(exposures, camera, section_id, frames, rejected, match_gains,
                                          mask_saturated, overscan):
            shape = (frame.data.shape[0], frame.data.shape[1])
            if out is None:
                layout = SectionFrame(np.empty((0, 0), np.float32), frame.channels, frame.gain, frame.saturation, 0, "")
                out = Inputs(FrameStack(scratch, shape), [], layout, rejected)
            if shape != out.stack.shape:
                error = BadInput(exposure.path, f"section {section_id}", "{1}×{0} pixels as the others".format(
                    *out.stack.shape), "{1}×{0}".format(*shape))
                rejected.append(Rejected(exposure.identifier, str(error)))
                continue
            out.members.append(describe(frame, exposure, out.stack.append(frame.data)))
        if out is None or len(out.members) < least:
            raise too_few(what, 0 if out is None else len(out.members), least, rejected)
    except BaseException:
        if out is not None:
            out.stack.__exit__(None, None, None)
        raise
    return out


def _corrected(exposures: Sequence[ExposureInfo], camera: Camera, section_id: str, frames: Mapping[str, F32],
               rejected: list[Rejected], match_gains: bool, mask_saturated: bool, overscan: tuple[Method, int, int]
               ) -> Iterator[tuple[SectionFrame, ExposureInfo]]:
    """Yield what can be read, each content once; note the others in `rejected`."""
    seen: dict[str, str] = {}
    for exposure in exposures:
        try:
            raw = read_section(exposure, camera, section_id)
            frame = correct_section(raw, exposure, frames, match_gains=match_gains, mask_saturated=mask_saturated,
                                    overscan=overscan)
        except BadInput as err:
            rejected.append(Rejected(exposure.identifier, str(err)))
            continue
        if frame.digest in seen:
            rejected.append(Rejected(exposure.identifier, f"the same pixels as {seen[frame.digest]}"))
            continue
        seen[frame.digest] = exposure.identifier
        yield frame, exposure


def odd_noise(members: Sequence[Input], response: F64, pars: CalibrationSettings) -> dict[str, str]:
    """Return identifier -> reason of inputs whose pixel noise is unlike that of the others.

    Fixed structure from pixel to pixel grows with `response` (n,) and is the same in all.
    """
    noise = np.array([m.pixel_noise for m in members])
    expected = np.array([m.expected_noise for m in members])
    structure = np.median(np.sqrt(np.maximum(noise**2 - expected**2, 0)) / np.maximum(response, 1e-12))
    ratio = noise / np.sqrt(expected**2 + (structure * response) ** 2)
    ratio /= np.median(ratio)
    limit = pars.noise_tolerance
    return {m.name: f"its pixel noise is {r:.2f} × that of the others ({m.pixel_noise:.4g} ADU), allowed are "
                    f"1/{limit:g} to {limit:g} (calibration.noise_tolerance)"
            for m, r in zip(members, ratio, strict=True) if not 1 / limit <= r <= limit}


def odd_unexposed(members: Sequence[Input], times: F64, pars: CalibrationSettings) -> dict[str, str]:
    """Return identifier -> reason of biases (`times` all 1) and darks that are unlike the others."""
    if not members:
        return {}
    blocks = np.array([m.blocks for m in members])
    t = times[:, None, None]
    departure = blocks - t * np.nanmedian(blocks / t, axis=0)
    out = odd_noise(members, times, pars)
    for m, d in zip(members, departure, strict=True):
        offset, shape = float(np.nanmedian(d)) / m.expected_noise, float(np.nanstd(d)) / m.expected_noise
        for value, what in ((offset, "level is off that of the others"), (shape, "shape departs from the others")):
            if abs(value) > pars.offset_tolerance:
                adu = value * m.expected_noise
                out[m.name] = (f"its {what} by {value:.2f} standard deviations of a pixel ({adu:.4g} ADU), allowed are "
                               f"{pars.offset_tolerance:g} (calibration.offset_tolerance)")
                break
    return out


def odd_exposed(members: Sequence[Input], pars: CalibrationSettings, *, same_level: bool) -> dict[str, str]:
    """Return identifier -> reason of flats or sky exposures that are unlike the others."""
    if not members:
        return {}
    levels = np.array([m.level for m in members])
    shapes = np.array([m.blocks for m in members]) / levels[:, None, None]
    rms = np.sqrt(np.nanmean((shapes - np.nanmedian(shapes, axis=0)) ** 2, axis=(1, 2)))
    middle = float(np.median(levels))
    out = odd_noise(members, levels, pars)
    for m, r in zip(members, rms, strict=True):
        ratio = m.level / middle
        if r > pars.flat_shape_tolerance:
            out[m.name] = (f"its shape departs from the others by {100 * r:.2f} % rms, allowed are "
                           f"{100 * pars.flat_shape_tolerance:g} % (calibration.flat_shape_tolerance)")
        elif same_level and not 1 / pars.flat_level_ratio <= ratio <= pars.flat_level_ratio:
            out[m.name] = (f"its level {m.level:.4g} ADU is {ratio:.2f} × that of the others, allowed are "
                           f"1/{pars.flat_level_ratio:g} to {pars.flat_level_ratio:g} (calibration.flat_level_ratio)")
    return out


def bad_exposure(members: Sequence[Input], layout: SectionFrame, pars: CalibrationSettings,
                 least_electrons: float, option: str) -> dict[str, str]:
    """Return identifier -> reason of flats or sky exposures that are too faint or saturated."""
    out: dict[str, str] = {}
    brightest = pars.max_saturation * layout.saturation
    for m in members:
        electrons = m.level * layout.gain
        if not electrons >= least_electrons:
            out[m.name] = (f"too faint: {electrons:.0f} e-/pix ({m.level:.1f} ADU), at least {least_electrons:g} are "
                           f"needed (calibration.{option})")
        elif m.level > brightest:
            out[m.name] = (f"saturated: its level is {m.level:.0f} ADU, allowed are {brightest:.0f}, "
                           f"{pars.max_saturation:g} of saturation (calibration.max_saturation)")
        elif m.saturated_fraction > pars.max_saturated_fraction:
            out[m.name] = (f"saturated: {100 * m.saturated_fraction:.1f} % of its pixels, allowed are "
                           f"{100 * pars.max_saturated_fraction:g} % (calibration.max_saturated_fraction)")
    return out
