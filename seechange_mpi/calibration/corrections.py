"""Raw section to the frame that a calibration is made of: overscan, bias, dark, gain, flat.

The one place where inputs are corrected on the way to a calibration frame; what preprocessing does to a science
exposure before it makes a correction must be done here before the frame of that correction is made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import F32, RawAmplifier, RawSection
from seechange_mpi.pipeline.calibration_files import read_calibration_frame
from seechange_mpi.pipeline.overscan import Method, Pedestal, pedestal_of

_QUANTISATION = 1.0 / 12.0
"""Variance [ADU²] of rounding to whole numbers."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One amplifier in the trimmed section.

    Attributes
    ----------
    place : (y, x) slices of the section.
    gain : float [e-/ADU], nominal;  read_noise_e : float [e-], nominal.
    factor : float, by which its ADU were multiplied (gain matching).
    overscan_share : float, variance of the overscan level over that of a pixel.
    """

    name: str
    place: tuple[slice, slice]
    gain: float
    read_noise_e: float
    factor: float
    overscan_share: float

    @property
    def read_variance(self) -> float:
        """Variance of an unexposed pixel, overscan and rounding included [unit of the frame²]."""
        own = (self.read_noise_e / self.gain) ** 2
        return (own * (1 + self.overscan_share) + _QUANTISATION) * self.factor**2

    @property
    def unit_per_electron(self) -> float:
        """What an electron is worth in the frame."""
        return self.factor / self.gain


@dataclass(slots=True)
class SectionFrame:
    """A corrected input.

    Attributes
    ----------
    data : (ny, nx) float32 [ADU]; NaN where there is no usable value.
    channels : its amplifiers.
    gain : float [e-/ADU], common if matched, else the mean.
    saturation : float [ADU], level above the pedestal at which the first amplifier saturates.
    saturated_fraction : float, of the pixels.
    digest : str, of the raw pixels of this section.
    """

    data: F32
    channels: tuple[Channel, ...]
    gain: float
    saturation: float
    saturated_fraction: float
    digest: str


def plane_of(channels: tuple[Channel, ...], attribute: str, shape: tuple[int, int]) -> F32:
    """Return (ny, nx) float32 of an attribute of the channels, NaN outside them."""
    out = np.full(shape, np.nan, np.float32)
    for channel in channels:
        out[channel.place] = getattr(channel, attribute)
    return out


def digest_of(raw: RawSection) -> str:
    """Return a digest (sha256, 16 hex digits) of the raw pixels of a section."""
    digest = hashlib.sha256()
    for amp in raw.amplifiers:
        digest.update(np.ascontiguousarray(amp.data).tobytes())
        if amp.overscan is not None:
            digest.update(np.ascontiguousarray(amp.overscan).tobytes())
    return digest.hexdigest()[:16]


def read_frames(calibration: Mapping[str, str], shape: tuple[int, int]) -> dict[str, F32]:
    """Read the frames that correct the inputs: kind -> (ny, nx) float32.

    Raises
    ------
    BadInput
        One is unreadable or has another shape.
    """
    return {kind: read_calibration_frame(path, shape, kind) for kind, path in calibration.items()
            if kind in ("bias", "dark", "flat")}


def correct_section(
    raw: RawSection, exposure: ExposureInfo, frames: Mapping[str, npt.NDArray[np.float32]], *, match_gains: bool,
    mask_saturated: bool, overscan: tuple[Method, int, int] = ("fit", 0, 8),
) -> SectionFrame:
    """Subtract overscan, bias and dark, match the gains, divide by the flat: as far as `frames` has them.

    Parameters
    ----------
    frames : kind -> (ny, nx): bias [ADU], dark [ADU/s], both of raw amplifiers; flat, relative to its median.
    match_gains : multiply every amplifier by its gain over their mean.
    mask_saturated : make saturated pixels NaN.
    overscan : method, trim and knots, see `pipeline.overscan.pedestal_of`.

    Raises
    ------
    BadInput
        An amplifier lies outside the section, or has no positive gain.
    """
    if raw.reduced:
        raise BadInput(exposure.path, f"section {raw.section_id}", "a raw exposure", "one that is already reduced")
    data = np.full(raw.shape, np.nan, np.float32)
    gain = float(np.mean([a.gain for a in raw.amplifiers]))
    channels: list[Channel] = []
    saturated, levels = 0, []
    for amp in raw.amplifiers:
        where = f"section {raw.section_id} amplifier {amp.name or '1'}"
        if not (math.isfinite(amp.gain) and amp.gain > 0):
            raise BadInput(exposure.path, where, "a positive gain", f"{amp.gain}")
        place = (slice(amp.y0, amp.y0 + amp.data.shape[0]), slice(amp.x0, amp.x0 + amp.data.shape[1]))
        if data[place].shape != amp.data.shape:
            raise BadInput(exposure.path, where, f"to lie within {raw.shape[1]}×{raw.shape[0]} pixels",
                           f"{amp.data.shape[1]}×{amp.data.shape[0]} pixels at x={amp.x0}, y={amp.y0}")
        pedestal, share = _pedestal(amp, exposure.path, overscan)
        pixels = amp.data.copy()
        pedestal.subtract_from(pixels)
        if "bias" in frames:
            pixels -= frames["bias"][place]
        if "dark" in frames:
            pixels -= np.float32(exposure.exp_time_s) * frames["dark"][place]
        full = amp.data >= amp.saturation_adu
        saturated += int(np.count_nonzero(full))
        if mask_saturated:
            pixels[full] = np.nan
        factor = amp.gain / gain if match_gains else 1.0
        data[place] = pixels * np.float32(factor)
        levels.append((amp.saturation_adu - pedestal.level) * factor)
        channels.append(Channel(amp.name or str(len(channels) + 1), place, amp.gain, amp.read_noise_e, factor, share))
    if "flat" in frames:
        data = divide_flat(data, frames["flat"])
    return SectionFrame(data, tuple(channels), gain, min(levels), saturated / data.size, digest_of(raw))


def divide_flat(data: F32, flat: F32) -> F32:
    """Divide by a flat relative to its median; NaN where it is below a twentieth of that."""
    level = np.float32(np.nanmedian(flat[::3, ::3]))
    usable = flat > np.float32(0.05) * level
    return np.asarray(np.where(usable, data / np.where(usable, flat / level, 1), np.nan), dtype=np.float32)


def _pedestal(amp: RawAmplifier, path: str, overscan: tuple[Method, int, int]) -> tuple[Pedestal, float]:
    """Overscan level, and the variance of that level over a pixel's; zero where there is no overscan."""
    if amp.overscan is None or amp.overscan.size == 0:
        return Pedestal(None, None, 0.0), 0.0
    # at most: the lines' own means; a smooth pedestal is known better
    return pedestal_of(amp, path, *overscan), len(amp.data) / amp.overscan.size
