"""Raw section to calibrated image: overscan, bias, gain matching, flat, bad pixels, saturation, cosmics, weight.

A correction that is asked for and cannot be made is an error unless ``missing_calibration`` is ``skip``; only
corrections really made are recorded in ``preproc_bitflag``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.ndimage

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.background import fit_mesh, render_mesh
from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.flags import Correction, PixelFlag
from seechange_mpi.model.products import F32, U16, Image, RawAmplifier, RawSection
from seechange_mpi.pipeline.step import Step

STEPS = ("overscan", "zero", "flat", "badpixels")
"""Corrections that ``steps_required`` may name."""
_FRAME_OF_STEP = {"zero": "bias", "flat": "flat", "badpixels": "badpixels"}
_UNUSABLE = PixelFlag.BAD_PIXEL | PixelFlag.NO_DATA


class PreprocessingParameters(Parameters):
    """Parameters of `Preprocessor`."""

    section = "preprocessing"
    steps_required: list[str] = par(list(STEPS), "corrections to make, of overscan, zero, flat, badpixels; images "
                                                 "that come reduced get none")
    missing_calibration: Literal["error", "skip"] = par(
        "error", "what to do when a frame or overscan needed for a required correction is missing")
    cosmic_rays: bool = par(True, "find cosmic rays in the single image and flag them")
    cosmic_sigma: float = par(6.0, "significance of a cosmic-ray pixel", unit="sigma", gt=0)
    cosmic_contrast: float = par(5.0, "least sharpness of a cosmic ray; stars of FWHM above 1.6 pixels stay "
                                       "below 3", gt=0)
    max_bad_fraction: float = par(0.9, "refuse a section with more unusable pixels than this", gt=0, le=1)


@dataclass(slots=True)
class _Frame:
    """A section while it is corrected: pixels, gain-matched variance of the detector, flags."""

    data: F32
    flags: U16
    gain: float
    read_noise_e: float
    saturation: float
    applied: Correction


class Preprocessor(Step[PreprocessingParameters]):
    """Turn a raw section into an `Image`."""

    process = "preprocessing"
    parameters_class = PreprocessingParameters

    def run(self, raw: RawSection, exposure: ExposureInfo, calibration: Mapping[str, str]) -> Image:
        """Correct one section.

        Parameters
        ----------
        raw : RawSection
        exposure : ExposureInfo
            Its path is named in errors.
        calibration : mapping
            Kind (``bias``, ``flat``, ``badpixels``) -> path of the FITS frame of this section, trimmed size.

        Raises
        ------
        BadInput
            A required frame or overscan is missing, a frame has another shape or no usable values, the gain is
            not positive, or more than ``max_bad_fraction`` of the pixels are unusable.
        ConfigError
            ``steps_required`` names an unknown correction.
        """
        unknown = sorted(set(self.pars.steps_required) - set(STEPS))
        if unknown:
            raise ConfigError(f"preprocessing.steps_required: unknown '{unknown[0]}'; "
                              f"there are: {', '.join(STEPS)}")
        for amp in raw.amplifiers:
            if not (np.isfinite([amp.gain, amp.read_noise_e]).all() and amp.gain > 0 and amp.read_noise_e >= 0):
                raise BadInput(exposure.path, f"section {raw.section_id} amplifier {amp.name or '1'}",
                               "gain > 0 and read noise >= 0", f"gain {amp.gain}, read noise {amp.read_noise_e}")
        inputs: dict[str, str] = {}
        flat: F32 | None = None
        if raw.reduced:
            frame = self._assemble(raw, exposure, ())
            if raw.mask is not None:
                frame.flags[raw.mask] |= np.uint16(PixelFlag.BAD_PIXEL)
        else:
            steps = tuple(s for s in STEPS if s in self.pars.steps_required)
            frames = self._read_frames(steps, raw, exposure, calibration, inputs)
            frame = self._assemble(raw, exposure, steps, frames.get("bias"))
            flat = self._correct(frame, frames)
        image = self._finish(frame, raw, exposure, flat)
        image.inputs = inputs
        return image

    def _read_frames(self, steps: tuple[str, ...], raw: RawSection, exposure: ExposureInfo,
                     calibration: Mapping[str, str], inputs: dict[str, str]) -> dict[str, F32]:
        from seechange_mpi.pipeline.inputs import file_identity

        frames: dict[str, F32] = {}
        for step in steps:
            kind = _FRAME_OF_STEP.get(step)
            if kind is None:
                continue
            path = calibration.get(kind)
            if path is None or not os.path.isfile(path):
                if self.pars.missing_calibration == "skip":
                    continue
                raise BadInput(path or exposure.path,
                               f"{kind} frame of section {raw.section_id}, filter {raw.filter}",
                               "a FITS file (or leave the correction out of preprocessing.steps_required, or set "
                               "preprocessing.missing_calibration=skip)", "no such file")
            frames[kind] = read_calibration_frame(path, raw.shape, kind)
            inputs[kind] = file_identity(path)
        return frames

    def _assemble(self, raw: RawSection, exposure: ExposureInfo, steps: tuple[str, ...],
                  bias: F32 | None = None) -> _Frame:
        """Put the amplifiers together: overscan and bias subtracted, brought to their mean gain."""
        data = np.full(raw.shape, np.nan, np.float32)
        saturated = np.zeros(raw.shape, bool)
        gain = float(np.mean([a.gain for a in raw.amplifiers]))
        levels: list[float] = []
        overscan_done = "overscan" in steps
        for amp in raw.amplifiers:
            place = (slice(amp.y0, amp.y0 + amp.data.shape[0]), slice(amp.x0, amp.x0 + amp.data.shape[1]))
            if data[place].shape != amp.data.shape:
                raise BadInput(exposure.path, f"section {raw.section_id} amplifier {amp.name or '1'}",
                               f"to lie within {raw.shape[1]}×{raw.shape[0]} pixels",
                               f"{amp.data.shape[1]}×{amp.data.shape[0]} pixels at x={amp.x0}, y={amp.y0}")
            pixels = amp.data
            pedestal: F32 | float = 0.0
            if "overscan" in steps:
                if amp.overscan is None or amp.overscan.size == 0:
                    if self.pars.missing_calibration == "error":
                        raise BadInput(exposure.path, f"section {raw.section_id} amplifier {amp.name or '1'}",
                                       "an overscan region (bias_section in the camera's YAML; or leave overscan "
                                       "out of preprocessing.steps_required)", "none")
                    overscan_done = False
                else:
                    pedestal = overscan_level(amp, exposure.path)
            pixels = pixels - pedestal
            zero: F32 | float = bias[place] if bias is not None else 0.0
            data[place] = (pixels - zero) * np.float32(amp.gain / gain)
            saturated[place] = amp.data >= amp.saturation_adu
            levels.append((amp.saturation_adu - float(np.median(pedestal)) - float(np.nanmedian(zero)))
                          * amp.gain / gain)
        applied = Correction.OVERSCAN if overscan_done else Correction(0)
        if bias is not None:
            applied |= Correction.ZERO
        flags = np.zeros(raw.shape, np.uint16)
        flags[~np.isfinite(data)] |= np.uint16(PixelFlag.NO_DATA)
        if saturated.any():
            grown = scipy.ndimage.binary_dilation(saturated, structure=np.ones((3, 3), bool))
            flags[grown] |= np.uint16(PixelFlag.SATURATED)
        noise = float(np.sqrt(np.mean([a.read_noise_e**2 for a in raw.amplifiers])))
        return _Frame(data, flags, gain, noise, min(levels), applied)

    def _correct(self, frame: _Frame, frames: dict[str, F32]) -> F32 | None:
        """Flag bad pixels and divide by the flat; return the flat, 1 where it is unusable."""
        if "badpixels" in frames:
            frame.flags[frames["badpixels"] != 0] |= np.uint16(PixelFlag.BAD_PIXEL)
        flat = frames.get("flat")
        if flat is None:
            return None
        level = float(np.median(flat[np.isfinite(flat)]))
        dead = ~(flat > 0.05 * level)
        frame.flags[dead] |= np.uint16(PixelFlag.BAD_PIXEL)
        flat = np.where(dead, np.float32(level), flat).astype(np.float32)
        frame.data /= flat
        # an ADU of the flattened image is worth gain × flat electrons
        frame.gain *= level
        frame.saturation /= level
        frame.applied |= Correction.FLAT
        return np.asarray(flat / np.float32(level), dtype=np.float32)

    def _finish(self, frame: _Frame, raw: RawSection, exposure: ExposureInfo, flat: F32 | None) -> Image:
        """Check, estimate the variance, find cosmic rays, clear unusable pixels."""
        where = f"section {raw.section_id}"
        unusable = (frame.flags & np.uint16(_UNUSABLE)) != 0
        fraction = float(unusable.mean())
        if fraction > self.pars.max_bad_fraction:
            raise BadInput(exposure.path, where, f"at most {100 * self.pars.max_bad_fraction:g} % of the pixels "
                           "flagged bad or without data", f"{100 * fraction:.1f} %")
        data = np.where(unusable, 0, frame.data).astype(np.float32)
        variance, sky = estimate_variance(data, frame.flags != 0, frame.gain, frame.read_noise_e, flat,
                                          measured=raw.reduced)
        if raw.weight is not None:
            given = np.isfinite(raw.weight) & (raw.weight > 0)
            frame.flags[~given] |= np.uint16(PixelFlag.ZERO_WEIGHT)
            variance = np.where(given, 1.0 / np.where(given, raw.weight, 1), np.inf).astype(np.float32)
        if self.pars.cosmic_rays:
            hits = detect_cosmics(data - sky, variance, frame.flags != 0, sigma=self.pars.cosmic_sigma,
                                  contrast=self.pars.cosmic_contrast)
            frame.flags[hits] |= np.uint16(PixelFlag.COSMIC_RAY)
        usable = (frame.flags == 0) & (variance > 0)
        weight = np.where(usable, 1.0 / np.maximum(variance, 1e-30), 0).astype(np.float32)
        return Image(
            data=data, weight=weight, flags=frame.flags, gain=frame.gain, read_noise_e=frame.read_noise_e,
            saturation_adu=frame.saturation, section_id=raw.section_id, filter=raw.filter, mjd=exposure.mjd,
            exp_time_s=exposure.exp_time_s, header_wcs=raw.header_wcs, preproc_bitflag=int(frame.applied))


def overscan_level(amp: RawAmplifier, path: str) -> F32:
    """Return the median overscan per row, (ny, 1), or per column, (1, nx) [ADU].

    Raises
    ------
    BadInput
        The overscan has neither the rows nor the columns of the data.
    """
    assert amp.overscan is not None
    ny, nx = amp.data.shape
    axis = 1 if amp.overscan.shape[0] == ny else 0
    if axis == 0 and amp.overscan.shape[1] != nx:
        raise BadInput(path, f"overscan of amplifier {amp.name or '1'}", f"{ny} rows or {nx} columns, as the data",
                       f"{amp.overscan.shape[0]} rows, {amp.overscan.shape[1]} columns")
    level = np.nanmedian(amp.overscan, axis=axis, keepdims=True)
    return np.asarray(level, dtype=np.float32)


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
    if np.isfinite(out).mean() < 0.1 or (kind == "flat" and not np.nanmedian(out) > 0):
        wanted = "finite values" + (" with a positive median" if kind == "flat" else "")
        raise BadInput(path, f"{kind} frame", wanted, f"{100 * np.isfinite(out).mean():.1f} % finite")
    return out


def estimate_variance(
    data: F32, mask: np.ndarray, gain: float, read_noise_e: float, flat: F32 | None, *, measured: bool
) -> tuple[F32, F32]:
    """Return the total variance [ADU²] and the sky level [ADU] of each pixel.

    The expected signal is the smooth sky plus what stands out of it; taking the pixel's own noise into its
    variance would bias everything weighted with it. Faint excess is therefore smoothed first.

    Parameters
    ----------
    data : (ny, nx) float32 [ADU], corrected;  mask : (ny, nx) bool, True = leave out of the sky.
    flat : (ny, nx) float32 or None, relative to its median: fewer electrons per ADU where it is low.
    measured : bool
        True: the sky's variance is its measured scatter (the sky level may have been subtracted before).
        False: it is the Poisson variance of the level plus read noise.
    """
    shape = (data.shape[0], data.shape[1])
    mesh, mesh_rms = fit_mesh(data, mask, min(128, *shape))
    sky: F32 = render_mesh(mesh, 128, shape)
    response: F32 | np.float32 = flat if flat is not None else np.float32(1.0)
    if measured:
        base = np.maximum(render_mesh(mesh_rms, 128, shape), np.float32(1e-6)) ** 2
    else:
        base = (np.maximum(sky, 0) / (np.float32(gain) * response)
                + np.float32((read_noise_e / gain) ** 2) / response**2)
    excess = np.where(mask, 0, data - sky).astype(np.float32)
    smooth = np.maximum(scipy.ndimage.gaussian_filter(excess, 1.5), 0)
    signal = np.where(excess > 5.0 * np.sqrt(base), excess, smooth)
    return (base + signal / (np.float32(gain) * response)).astype(np.float32), sky
