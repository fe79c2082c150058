"""Raw section to calibrated image: every correction of the detector, flags, weight.

In this order: overscan, crosstalk, bias, linearity, dark, common gain, flat, illumination, fitted gains, fringes; then
bad pixels, saturated cores and what they spill, cosmic rays, trails, weight. A correction that is asked for and cannot
be made is an error unless ``missing_calibration`` is ``skip``; only corrections really made are recorded in
``preproc_bitflag``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics
from seechange_mpi.gpu_kernels.trails import find_trails
from seechange_mpi.instruments.camera import Camera
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.flags import Correction, PixelFlag
from seechange_mpi.model.products import F32, Image, RawSection
from seechange_mpi.pipeline import corrections
from seechange_mpi.pipeline.badness import ImageBadness
from seechange_mpi.pipeline.calibration_files import CalibrationFiles
from seechange_mpi.pipeline.corrections import Frame
from seechange_mpi.pipeline.inputs import file_identity
from seechange_mpi.pipeline.saturation import find_bleeds, grow, grow_along
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.variance import estimate_variance

STEPS = ("overscan", "crosstalk", "zero", "linearity", "dark", "flat", "illumination", "fringe", "badpixels")
"""Corrections that ``steps_required`` may name, in the order in which they are made."""
_KIND_OF_STEP = {"zero": "bias"}
_UNUSABLE = PixelFlag.BAD_PIXEL | PixelFlag.NO_DATA


class PreprocessingParameters(Parameters):
    """Parameters of `Preprocessor`."""

    section = "preprocessing"
    steps_required: list[str] = par(["overscan", "zero", "flat", "badpixels"], "corrections to make, of "
                                    f"{', '.join(STEPS)}; images that come reduced get none")
    missing_calibration: Literal["error", "skip"] = par(
        "error", "what to do when a frame, table or overscan needed for a required correction is missing")
    overscan_method: Literal["fit", "median", "mean"] = par(
        "fit", "level of each line of overscan: its median, its clipped mean, or a smooth fit to the means that keeps "
               "of each line's deviation what is more than noise")
    overscan_trim: int = par(0, "first and last pixels of each line of overscan to leave out", unit="pix", ge=0)
    overscan_knots: int = par(8, "intervals of the smooth fit over the lines", ge=1)
    flat_type: Literal["flat", "dome", "twilight", "sky"] = par(
        "flat", "flat to divide by: the file of kind flat, flat_dome, flat_twilight or flat_sky")
    gain_match: Literal["header", "fit"] = par(
        "header", "relative gains of amplifiers: the camera's or header's, or then fitted to the sky at their seams")
    saturation_grow: int = par(1, "rows and columns that are flagged around saturated pixels", unit="pix", ge=0)
    bleeds: bool = par(True, "flag charge that saturated stars spill along the columns")
    bleed_level: float = par(0.8, "least fraction of saturation of pixels that hold spilt charge", gt=0, le=1)
    cosmic_rays: bool = par(True, "find cosmic rays in the single image and flag them")
    cosmic_sigma: float = par(6.0, "significance of a cosmic-ray pixel", unit="sigma", gt=0)
    cosmic_contrast: float = par(5.0, "least sharpness of a cosmic ray; stars of FWHM above 1.6 pixels stay "
                                       "below 3", gt=0)
    trails: bool = par(True, "find trails of satellites and aircraft and flag them")
    trail_sigma: float = par(12.0, "least significance of a trail, its whole length together", unit="sigma", gt=0)
    trail_length: int = par(300, "shortest trail; a third of it from edge to edge of the section", unit="pix", ge=64)
    max_bad_fraction: float = par(0.9, "refuse a section with more unusable pixels than this", gt=0, le=1)
    badness: ImageBadness = par(ImageBadness(), "limits beyond which an image is marked as doubtful")


class Preprocessor(Step[PreprocessingParameters]):
    """Turn a raw section into an `Image`."""

    process = "preprocessing"
    parameters_class = PreprocessingParameters

    @property
    def steps(self) -> tuple[str, ...]:
        """Corrections asked for, in the order in which they are made.

        Raises
        ------
        ConfigError
            ``steps_required`` names an unknown one.
        """
        unknown = sorted(set(self.pars.steps_required) - set(STEPS))
        if unknown:
            raise ConfigError(f"preprocessing.steps_required: unknown '{unknown[0]}'; there are: {', '.join(STEPS)}")
        return tuple(s for s in STEPS if s in self.pars.steps_required)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of calibration files that the corrections asked for use.

        Raises
        ------
        ConfigError
            ``steps_required`` names an unknown correction.
        """
        return tuple(self._flat_kind if s == "flat" else _KIND_OF_STEP.get(s, s) for s in self.steps if s != "overscan")

    @property
    def _flat_kind(self) -> str:
        return "flat" if self.pars.flat_type == "flat" else f"flat_{self.pars.flat_type}"

    def read(self, exposure: ExposureInfo, camera: Camera, section_id: str, calibration: Mapping[str, str]
             ) -> RawSection:
        """Read a raw section and, where crosstalk is to be corrected, the amplifiers that it comes from.

        Raises
        ------
        BadInput
            The exposure or the crosstalk table is unusable.
        """
        from seechange_mpi.io.crosstalk import crosstalk_terms
        from seechange_mpi.io.raw import read_section

        if camera.reduced or "crosstalk" not in self.steps:
            return read_section(exposure, camera, section_id)
        path = calibration.get("crosstalk")
        terms = crosstalk_terms(camera, section_id, path)
        raw = read_section(exposure, camera, section_id, terms)
        if path is not None and terms is not None and CalibrationFiles.there(path):
            raw.crosstalk_file = file_identity(path)
        return raw

    def run(self, raw: RawSection, exposure: ExposureInfo, calibration: Mapping[str, str]) -> Image:
        """Correct one section.

        Parameters
        ----------
        raw : RawSection
        exposure : ExposureInfo
            Its path is named in errors.
        calibration : mapping
            Kind -> path of the file of this section (`pipeline.calibration_files`).

        Raises
        ------
        BadInput
            A required frame, table or overscan is missing, a frame has another shape or no usable values, the gain
            is not positive, or more than ``max_bad_fraction`` of the pixels are unusable.
        AlgorithmError
            Gains are to be fitted and cannot be.
        ConfigError
            ``steps_required`` names an unknown correction.
        """
        steps = self.steps
        for amp in raw.amplifiers:
            if not (np.isfinite([amp.gain, amp.read_noise_e]).all() and amp.gain > 0 and amp.read_noise_e >= 0):
                raise BadInput(exposure.path, f"section {raw.section_id} amplifier {amp.name or '1'}",
                               "gain > 0 and read noise >= 0", f"gain {amp.gain}, read noise {amp.read_noise_e}")
        files = CalibrationFiles(calibration, raw, exposure.path, self.pars.missing_calibration)
        frame = corrections.assemble(raw, exposure.path)
        if raw.reduced:
            corrections.match_gains(frame)
            self._flag_detector(frame)
            if raw.mask is not None:
                frame.flags[raw.mask] |= np.uint16(PixelFlag.BAD_PIXEL)
            if raw.mask_flags is not None:
                frame.flags |= raw.mask_flags
        else:
            self._correct(frame, raw, exposure, files, steps)
        image = self._finish(frame, raw, exposure)
        image.inputs = files.used
        return image

    def _correct(self, frame: Frame, raw: RawSection, exposure: ExposureInfo, files: CalibrationFiles,
                 steps: tuple[str, ...]) -> None:
        pars = self.pars
        overscan = (pars.overscan_method, pars.overscan_trim, pars.overscan_knots)
        if "overscan" in steps:
            corrections.subtract_overscan(frame, raw, files, *overscan)
        if "crosstalk" in steps:
            corrections.subtract_crosstalk(frame, raw, files, *overscan)
        if "zero" in steps:
            corrections.subtract_bias(frame, files)
        if "linearity" in steps:
            corrections.linearize(frame, files)
        if "dark" in steps:
            corrections.subtract_dark(frame, files, exposure.exp_time_s)
        corrections.match_gains(frame)
        self._flag_detector(frame)
        if "badpixels" in steps:
            corrections.flag_bad_pixels(frame, files)
        if "flat" in steps:
            corrections.divide(frame, files, self._flat_kind, Correction.FLAT)
        if "illumination" in steps:
            corrections.divide(frame, files, "illumination", Correction.ILLUMINATION)
        if pars.gain_match == "fit":
            corrections.fit_gains(frame, raw.section_id)
        if "fringe" in steps:
            corrections.subtract_fringe(frame, files)

    def _flag_detector(self, frame: Frame) -> None:
        """Flag missing pixels, saturated cores and bleeds; `frame.data` are in common units, not yet flat."""
        missing = ~np.isfinite(frame.data)
        if missing.any():
            frame.flags[missing] |= np.uint16(PixelFlag.NO_DATA)
        if not frame.saturated.any():
            return
        frame.flags[grow(frame.saturated, self.pars.saturation_grow)] |= np.uint16(PixelFlag.SATURATED)
        if not self.pars.bleeds:
            return
        near = frame.saturated.copy()
        for place, level in zip(frame.places, frame.saturation, strict=True):
            near[place] |= frame.data[place] >= np.float32(self.pars.bleed_level * level)
        total = 0
        for axis in {a.bleed_axis for a in frame.amplifiers}:
            here = np.zeros_like(near)
            for amp, place in zip(frame.amplifiers, frame.places, strict=True):
                here[place] = amp.bleed_axis == axis
            found = find_bleeds(frame.saturated & here, near & here, axis)
            total += int(found.sum())
            frame.flags[grow_along(found, axis)] |= np.uint16(PixelFlag.BLEED)
        if total:
            frame.metrics["bleed_pixels"] = total

    def _finish(self, frame: Frame, raw: RawSection, exposure: ExposureInfo) -> Image:
        """Check, estimate the variance, find cosmic rays and trails, clear unusable pixels."""
        data, flags = frame.data, frame.flags
        unusable = (flags & np.uint16(_UNUSABLE)) != 0
        fraction = float(unusable.mean())
        if fraction > self.pars.max_bad_fraction:
            raise BadInput(exposure.path, f"section {raw.section_id}", f"at most {100 * self.pars.max_bad_fraction:g} "
                           "% of the pixels flagged bad or without data", f"{100 * fraction:.1f} %")
        data[unusable] = 0
        variance, sky = estimate_variance(frame, flags != 0, measured=raw.reduced)
        if raw.weight is not None:
            given = np.isfinite(raw.weight) & (raw.weight > 0)
            flags[~given] |= np.uint16(PixelFlag.ZERO_WEIGHT)
            variance = np.where(given, 1.0 / np.where(given, raw.weight, 1), np.inf).astype(np.float32)
        self._find_artefacts(frame, sky, variance)
        good = (flags == 0) & (variance > 0)
        weight = np.zeros_like(data)
        np.divide(np.float32(1), variance, out=weight, where=good)
        return Image(
            data=data, weight=weight, flags=flags, gain=frame.gain, read_noise_e=frame.read_noise_e,
            saturation_adu=min(frame.saturation), section_id=raw.section_id, filter=raw.filter, mjd=exposure.mjd,
            exp_time_s=exposure.exp_time_s, header_wcs=raw.header_wcs, preproc_bitflag=int(frame.applied),
            metrics=frame.metrics)

    def _find_artefacts(self, frame: Frame, sky: F32, variance: F32) -> None:
        """Flag cosmic rays and trails; `sky` is overwritten by the data less the sky."""
        if not (self.pars.cosmic_rays or self.pars.trails):
            return
        above = np.subtract(frame.data, sky, out=sky)
        if self.pars.cosmic_rays:
            hits = detect_cosmics(above, variance, frame.flags != 0, sigma=self.pars.cosmic_sigma,
                                  contrast=self.pars.cosmic_contrast)
            frame.flags[hits] |= np.uint16(PixelFlag.COSMIC_RAY)
        if self.pars.trails:
            mask: npt.NDArray[np.bool_] = frame.flags != 0
            found, trails = find_trails(above, variance, mask, sigma=self.pars.trail_sigma,
                                        min_length=self.pars.trail_length)
            if trails:
                frame.flags[found] |= np.uint16(PixelFlag.TRAIL)
                frame.metrics["n_trails"] = len(trails)
