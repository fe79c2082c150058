"""Subtract the reference: warp it, scale it, and subtract with the PSF and noise of every place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, to_backend
from seechange_mpi.gpu_kernels.device import with_fallback
from seechange_mpi.gpu_kernels.methods import METHODS
from seechange_mpi.gpu_kernels.stats import mad_std
from seechange_mpi.gpu_kernels.subtraction import Subtraction
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, Image, Reference, SectionProducts, SubImage
from seechange_mpi.pipeline.backgrounding import render_rms, subtract_background
from seechange_mpi.pipeline.badness import SubtractionBadness
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.warping import Registration, WarpedReference, centre_stamp, register, warp_reference


class SubtractionParameters(Parameters):
    """Parameters of `Subtractor`."""

    section = "subtraction"
    method: Literal["zogy", "alard_lupton", "sfft"] = par(
        "zogy", "zogy: proper image subtraction; alard_lupton, sfft: a matching kernel, fitted to stars, of Gaussians "
                "or of single pixels")
    kernel_degree: int = par(1, "alard_lupton and sfft: degree of the kernel's polynomial in position; lowered when "
                                "stars are few", ge=0, le=3)
    allow_other_filter: bool = par(False, "accept a reference in another filter (stars leave residuals)")
    match_radius_pix: float = par(3.0, "largest distance of a star to its counterpart in the reference, after both "
                                       "WCS", unit="pix", gt=0)
    min_matched: int = par(5, "least number of stars to register the reference with", ge=3)
    tile_size: int = par(512, "tiles with their own PSF and noise; their joins overlap", unit="pix", ge=128)
    psf_degree: int = par(1, "degree of the PSF of the warped reference", ge=0, le=3)
    min_astrometric_sigma: float = par(0.01, "least registration error assumed per axis", unit="pix", ge=0)
    grow_bad: int = par(1, "bad pixels are grown by this much", unit="pix", ge=0)
    grow_saturated_fwhms: float = par(1.0, "saturated cores are grown by this much", unit="FWHM", ge=0)
    badness: SubtractionBadness = par(SubtractionBadness(), "limits beyond which a difference is marked as doubtful")


class Subtractor(Step[SubtractionParameters]):
    """Make the difference image of a section."""

    process = "subtraction"
    parameters_class = SubtractionParameters

    def run(self, new: SectionProducts, reference: Reference) -> SubImage:
        """Subtract `reference` from `new`.

        Raises
        ------
        BadInput
            The reference is of another filter and that is not allowed.
        AlgorithmError
            Registration, PSF or flux ratio cannot be found, or nothing is left to subtract.
        """
        pars = self.pars
        assert new.image is not None
        assert new.background is not None
        assert new.psf is not None
        assert new.zp is not None
        image: Image = new.image
        if reference.image.filter != image.filter and not pars.allow_other_filter:
            raise BadInput(reference.shard, f"reference of section {image.section_id}", f"filter {image.filter}",
                           f"filter {reference.image.filter}; subtraction.allow_other_filter=true accepts it")
        registration = register(new, reference, radius_pix=pars.match_radius_pix, min_matched=pars.min_matched)
        other_band = reference.image.filter != image.filter
        zero_point_ratio = 10 ** (0.4 * (new.zp.zp - reference.zp.zp))
        # stars of many colours have no common ratio in another band: there the two zero points decide
        ref = warp_reference(new, reference, registration, min_stars=3, psf_degree=pars.psf_degree,
                             flux_ratio=zero_point_ratio if other_band else None)
        bad = self._mask(image, ref, max(new.psf.fwhm_pixels, ref.psf.fwhm_pixels))
        if bad.mean() > 0.98:
            raise AlgorithmError("subtraction", "almost nothing of the section is good in both images",
                                 {"good_fraction": float(1 - bad.mean())})
        result, weight = self._subtract(new, ref, registration, bad)
        score = _plane(result.score_corr)
        flags = image.flags | ref.flags
        flags[bad & (flags == 0)] |= np.uint16(PixelFlag.ZERO_WEIGHT)
        good = ~bad
        metrics = {f"kernel_{k}": v for k, v in result.solution.figures.items()} if result.solution else {}
        metrics |= {
            "flux_ratio": ref.flux_ratio, "flux_ratio_scatter": ref.ratio_scatter, "flux_ratio_stars": ref.n_ratio,
            "flux_ratio_over_zero_points": ref.flux_ratio / zero_point_ratio,
            "registration_shift_pix": registration.shift, "sigma_x_pix": registration.sigma_x,
            "sigma_y_pix": registration.sigma_y, "matched_stars": len(registration.new_index),
            "score_std": mad_std(score[good][::7]), "fwhm_ref_pix": ref.psf.fwhm_pixels,
            "masked_fraction": float(bad.mean()),
        }
        return SubImage(
            _plane(result.difference, result.flux_zero_points), weight, flags, score, _plane(result.flux),
            _plane(result.flux_err), asnumpy(result.psf).astype(np.float32), new.zp.zp,
            (ref.data * np.float32(ref.flux_ratio)).astype(np.float32), ref.flags, pars.method,
            {k: float(v) for k, v in metrics.items() if np.isfinite(v)})

    def _mask(self, image: Image, ref: WarpedReference, fwhm: float) -> npt.NDArray[np.bool_]:
        """Pixels that are bad in either image, grown."""
        flags = image.flags | ref.flags
        saturated = (flags & int(PixelFlag.SATURATED)) != 0
        bad = (flags & ~np.uint16(PixelFlag.SATURATED)) != 0
        if self.pars.grow_bad and bad.any():
            bad = scipy.ndimage.binary_dilation(bad, structure=np.ones((3, 3)), iterations=self.pars.grow_bad)
        grow = round(self.pars.grow_saturated_fwhms * fwhm)
        if grow and saturated.any():
            saturated = scipy.ndimage.distance_transform_edt(~saturated) <= grow
        return np.asarray(bad | saturated)

    def _subtract(self, new: SectionProducts, ref: WarpedReference, registration: Registration,
                  bad: npt.NDArray[np.bool_]) -> tuple[Subtraction, F32]:
        """Call the kernel with the PSF and the noise of every place; return its products and the weight [ADU⁻²]."""
        assert new.image is not None
        assert new.background is not None
        assert new.psf is not None
        new_psf, shape = new.psf, new.image.shape
        data = subtract_background(new.image, new.background)
        rms = render_rms(new.background)
        variance = (rms**2 + data / np.float32(new.image.gain)).astype(np.float32)
        ratio = np.float32(ref.flux_ratio)
        least = self.pars.min_astrometric_sigma
        options = {} if self.pars.method == "zogy" else {"kernel_degree": self.pars.kernel_degree}

        def subtract(put: Callable[[npt.NDArray[np.generic]], Array]) -> Subtraction:
            return METHODS[self.pars.method](
                put(data), put(ref.data), lambda x, y: centre_stamp(new_psf, x, y),
                lambda x, y: centre_stamp(ref.psf, x, y), noise_new=_at(rms, shape), noise_ref=_at(ref.rms, shape),
                flux_new=1.0, flux_ref=float(1 / ratio), variance_new=put(variance), variance_ref=put(ref.variance),
                sigma_x=max(registration.sigma_x, least), sigma_y=max(registration.sigma_y, least), mask=put(bad),
                tile=self.pars.tile_size, **options)

        try:
            result = with_fallback("subtraction", lambda: subtract(to_backend), lambda: subtract(np.asarray))
        except ValueError as err:
            raise AlgorithmError("subtraction", str(err)) from None
        quiet = rms**2 + (ref.rms * ratio) ** 2
        local = np.maximum(variance + ref.variance * ratio**2, 0.25 * quiet)
        return result, np.where(bad, 0, 1 / local).astype(np.float32)


def _at(rms: F32, shape: tuple[int, int]) -> Callable[[float, float], float]:
    """A map as a callable of position."""
    return lambda x, y: float(rms[min(round(y), shape[0] - 1), min(round(x), shape[1] - 1)])


def _plane(image: Array, zero_points: Array | None = None) -> F32:
    """A plane in host memory, masked pixels 0; over the local flux zero point where that is given."""
    values: F32 = asnumpy(image)
    if zero_points is not None:
        values = values / asnumpy(zero_points)
    values[~np.isfinite(values)] = 0
    return values.astype(np.float32, copy=False)
