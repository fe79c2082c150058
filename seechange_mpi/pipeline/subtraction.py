"""Subtract the reference: warp it, scale it, ZOGY in overlapping tiles with the PSFs of each tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.backend import asnumpy, to_backend
from seechange_mpi.gpu_kernels.stats import mad_std
from seechange_mpi.gpu_kernels.zogy import ZogyResult, zogy_subtract
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, Image, Reference, SectionProducts, SubImage
from seechange_mpi.pipeline.backgrounding import render_rms, subtract_background
from seechange_mpi.pipeline.step import Step
from seechange_mpi.pipeline.warping import Registration, WarpedReference, centre_stamp, register, warp_reference


class SubtractionParameters(Parameters):
    """Parameters of `Subtractor`."""

    section = "subtraction"
    method: Literal["zogy"] = par("zogy", "zogy: proper image subtraction")
    allow_other_filter: bool = par(False, "accept a reference in another filter (stars leave residuals)")
    match_radius_pix: float = par(3.0, "largest distance of a star to its counterpart in the reference, after both "
                                       "WCS", unit="pix", gt=0)
    min_matched: int = par(5, "least number of stars to register the reference with", ge=3)
    tile_size: int = par(512, "tiles with their own PSF and noise; their joins overlap", unit="pix", ge=128)
    psf_degree: int = par(1, "degree of the PSF of the warped reference", ge=0, le=3)
    min_astrometric_sigma: float = par(0.01, "least registration error assumed per axis", unit="pix", ge=0)
    grow_bad: int = par(1, "bad pixels are grown by this much", unit="pix", ge=0)
    grow_saturated_fwhms: float = par(1.0, "saturated cores are grown by this much", unit="FWHM", ge=0)


@dataclass(slots=True)
class _Planes:
    """What the tiles fill."""

    data: F32
    weight: F32
    score: F32
    flux: F32
    flux_err: F32


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
        planes, psf = self._tiles(new, ref, registration, bad)
        flags = image.flags | ref.flags
        flags[bad & (flags == 0)] |= np.uint16(PixelFlag.ZERO_WEIGHT)
        good = ~bad
        metrics = {
            "flux_ratio": ref.flux_ratio, "flux_ratio_scatter": ref.ratio_scatter, "flux_ratio_stars": ref.n_ratio,
            "flux_ratio_over_zero_points": ref.flux_ratio / zero_point_ratio,
            "registration_shift_pix": registration.shift, "sigma_x_pix": registration.sigma_x,
            "sigma_y_pix": registration.sigma_y, "matched_stars": len(registration.new_index),
            "score_std": mad_std(planes.score[good][::7]), "fwhm_ref_pix": ref.psf.fwhm_pixels,
            "masked_fraction": float(bad.mean()),
        }
        return SubImage(
            planes.data, planes.weight, flags, planes.score, planes.flux, planes.flux_err, psf, new.zp.zp,
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

    def _tiles(self, new: SectionProducts, ref: WarpedReference, registration: Registration,
               bad: npt.NDArray[np.bool_]) -> tuple[_Planes, F32]:
        """Subtract tile by tile; each tile is computed with a margin, so that joins are seamless."""
        assert new.image is not None
        assert new.background is not None
        assert new.psf is not None
        shape = new.image.shape
        data = subtract_background(new.image, new.background)
        rms = render_rms(new.background)
        variance = (rms**2 + data / np.float32(new.image.gain)).astype(np.float32)
        planes = _Planes(*(np.zeros(shape, np.float32) for _ in range(5)))
        margin = 2 * max(new.psf.basis.shape[-1], ref.psf.basis.shape[-1])
        psf_centre: F32 | None = None
        for ys, xs in tile_slices(shape, self.pars.tile_size):
            wide = (slice(max(ys.start - margin, 0), min(ys.stop + margin, shape[0])),
                    slice(max(xs.start - margin, 0), min(xs.stop + margin, shape[1])))
            core = (slice(ys.start - wide[0].start, ys.stop - wide[0].start),
                    slice(xs.start - wide[1].start, xs.stop - wide[1].start))
            good = ~bad[wide]
            if good.mean() < 0.02 or not good[core].any():
                continue
            cx, cy = (xs.start + xs.stop - 1) / 2, (ys.start + ys.stop - 1) / 2
            p_new, p_ref = centre_stamp(new.psf, cx, cy), centre_stamp(ref.psf, cx, cy)
            noise_new, noise_ref = float(np.median(rms[wide][good])), float(np.median(ref.rms[wide][good]))
            result = zogy_subtract(
                to_backend(data[wide]), to_backend(ref.data[wide]), to_backend(p_new), to_backend(p_ref),
                noise_new=noise_new, noise_ref=noise_ref, flux_new=1.0, flux_ref=1.0 / ref.flux_ratio,
                variance_new=to_backend(variance[wide]), variance_ref=to_backend(ref.variance[wide]),
                sigma_x=max(registration.sigma_x, self.pars.min_astrometric_sigma),
                sigma_y=max(registration.sigma_y, self.pars.min_astrometric_sigma), mask=to_backend(~good))
            quiet = noise_new**2 + (noise_ref * ref.flux_ratio) ** 2
            local = variance[wide] + ref.variance[wide] * np.float32(ref.flux_ratio**2)
            _fill(planes, (ys, xs), core, result, (np.maximum(local, 0.25 * quiet) / quiet).astype(np.float32))
            if psf_centre is None or (xs.start <= shape[1] // 2 < xs.stop and ys.start <= shape[0] // 2 < ys.stop):
                psf_centre = asnumpy(result.psf).astype(np.float32)
        assert psf_centre is not None
        return planes, psf_centre


def tile_slices(shape: tuple[int, int], size: int) -> list[tuple[slice, slice]]:
    """Cut an image into about equal tiles of at most about `size` pixels."""
    edges = []
    for n in shape:
        count = max(1, round(n / size))
        edges.append(np.linspace(0, n, count + 1).astype(int))
    return [(slice(int(y0), int(y1)), slice(int(x0), int(x1)))
            for y0, y1 in zip(edges[0][:-1], edges[0][1:], strict=True)
            for x0, x1 in zip(edges[1][:-1], edges[1][1:], strict=True)]


def _fill(planes: _Planes, where: tuple[slice, slice], core: tuple[slice, slice], result: ZogyResult,
          excess: npt.NDArray[np.float32]) -> None:
    """Copy the core of a tile; masked pixels become 0. `excess` = variance over that of empty sky."""
    good = np.isfinite(asnumpy(result.score_corr)[core])
    f_d = np.float32(result.flux_zero_point)
    for plane, image in ((planes.data, result.difference / f_d), (planes.score, result.score_corr),
                         (planes.flux, result.flux), (planes.flux_err, result.flux_err)):
        plane[where] = np.where(good, asnumpy(image)[core], 0)
    planes.weight[where] = np.where(good, f_d**2 / excess[core], 0)
