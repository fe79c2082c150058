"""Badness: bits that say what makes a product doubtful, set after every step and handed on to what is made from it.

Own bits are found in a product itself; upstream bits are those of everything it was made from, so that one condition,
``_bitflag | _upstream_bitflag = 0``, selects good data. Bits of an image depend on its pixels alone, as an image
belongs to preprocessing whatever is extracted from it later. A reference's bits become one bit of the difference,
``REF_BAD``: they are not the new image's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.background import fit_mesh, render_mesh
from seechange_mpi.gpu_kernels.photometry import moments
from seechange_mpi.gpu_kernels.psf_model import render
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.gpu_kernels.stats import mad_std
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.flags import Badness, PixelFlag, badness_of_pixels
from seechange_mpi.model.products import (
    F32,
    PSF,
    Background,
    Image,
    Measurements,
    Reference,
    SectionProducts,
    SourceList,
    SubImage,
    WorldCoordinates,
    ZeroPoint,
    badness,
)
from seechange_mpi.pipeline.backgrounding import render_rms, subtract_background

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class ImageBadness(Parameters):
    """When an image is marked as doubtful; it is processed all the same."""

    section = "preprocessing.badness"
    banding: float = par(0.2, "offset shared by the pixels of a row or column (0.2: 12 % more noise for a star of 4 "
                              "pixels FWHM)", unit="sigma of a pixel", gt=0)
    shaking: float = par(0.25, "ellipticity 1 - b/a that bright sources have in common", gt=0, lt=1)
    saturated_fraction: float = par(0.02, "part of the section that is saturated", gt=0, le=1)
    sky_fraction: float = par(0.5, "sky level over the saturation level", gt=0)
    max_sky: dict[str, float] = par({}, "brightest sky that is expected, by filter, e.g. {g: 20, i: 90}; others: no "
                                        "limit of their own", unit="e-/pix/s")


class ExtractionBadness(Parameters):
    """When the products of extraction, astrocal and photocal are marked as doubtful."""

    section = "extraction.badness"
    min_fwhm_pixels: float = par(1.3, "FWHM of the PSF, at least", unit="pix", gt=0)
    max_fwhm_arcsec: float = par(5.0, "FWHM of the PSF, at most", unit="arcsec", gt=0)
    max_ellipticity: float = par(0.3, "ellipticity 1 - b/a of the PSF, at most", gt=0, lt=1)
    max_psf_chi2: float = par(5.0, "chi2 per degree of freedom of the PSF stars, at most", gt=0)
    few_sources: int = par(20, "sources, at least", ge=0)
    beams_per_source: float = par(12.0, "areas of one FWHM across per source, at least: below it sources blend", gt=0)
    source_fraction: float = par(0.3, "part of the section covered by sources, at most", gt=0, le=1)
    sky_structure: float = par(0.2, "scatter of the sky left in boxes of 64 pixels, at most", unit="sigma of a pixel",
                               gt=0)
    wcs_residual_arcsec: float = par(0.1, "rms per axis of matched stars, at most", unit="arcsec", gt=0)
    zp_scatter: float = par(0.1, "scatter of the stars' zero points, at most", unit="mag", gt=0)


class SubtractionBadness(Parameters):
    """When a difference image is marked as doubtful."""

    section = "subtraction.badness"
    score_std: float = par(0.25, "departure of the score's robust std from 1, at most", gt=0)
    beyond_five_sigma: float = par(0.01, "part of the good pixels with |score| > 5, at most", gt=0, le=1)


_PARTS_BEFORE = {"wcs": ("sources", "psf"), "zp": ("wcs",), "sub": ("zp",), "detections": ("sub",),
                 "cutouts": ("detections",), "measurements": ("cutouts",)}


@dataclass(slots=True)
class Judge:
    """Sets the bits of what a step has just made."""

    image: ImageBadness
    extraction: ExtractionBadness
    subtraction: SubtractionBadness
    pixel_scale_arcsec: float

    def after(self, step: str, p: SectionProducts, reference: Reference | None = None, *,
              catalog_stars: int | None = None) -> None:
        """Judge the products of `step` in place.

        Parameters
        ----------
        reference : what was subtracted (``subtraction``).
        catalog_stars : stars of the catalogue around the section (``astrocal``); None: no catalogue was given.
        """
        if step == "preprocessing" and p.image is not None:
            p.image.bitflag = int(judge_image(p.image, self.image))
        elif step == "extraction":
            self._extraction(p)
        elif step == "astrocal" and p.wcs is not None:
            p.wcs.bitflag = int(judge_wcs(p.wcs, self.extraction, catalog_stars))
        elif step == "photocal" and p.zp is not None:
            p.zp.bitflag = int(judge_zero_point(p.zp, self.extraction))
        elif step == "subtraction" and p.sub is not None:
            p.sub.bitflag = int(judge_subtraction(p.sub, self.subtraction))
        self._hand_on(step, p, reference)

    def _extraction(self, p: SectionProducts) -> None:
        if p.image is None or p.background is None:
            return
        p.background.bitflag = int(judge_background(p.image, p.background, self.extraction))
        p.background.upstream_bitflag = badness(p.image)
        if p.psf is None or p.sources is None:
            return
        p.sources.bitflag = int(judge_sources(p.sources, p.psf, p.image.shape, self.extraction))
        p.sources.upstream_bitflag = badness(p.background)
        p.psf.bitflag = int(judge_psf(p.psf, p.image.shape, self.pixel_scale_arcsec, self.extraction))
        p.psf.upstream_bitflag = badness(p.sources)

    def _hand_on(self, step: str, p: SectionProducts, reference: Reference | None) -> None:
        part = {"astrocal": "wcs", "photocal": "zp", "subtraction": "sub", "detection": "detections",
                "cutting": "cutouts", "measuring": "measurements"}.get(step, "")
        product = getattr(p, part, None) if part else None
        if product is None:
            return
        bits = 0
        for before in _PARTS_BEFORE[part]:
            bits |= badness(getattr(p, before))
        if part == "sub" and reference is not None and badness_of_reference(reference):
            bits |= int(Badness.REF_BAD)
        product.upstream_bitflag = bits


def badness_of_products(p: SectionProducts) -> int:
    """Return the bits of all products of a section."""
    bits = 0
    for product in (p.image, p.background, p.sources, p.psf, p.wcs, p.zp, p.sub, p.detections, p.cutouts,
                    p.measurements):
        bits |= badness(product)
    return bits


def badness_of_reference(r: Reference) -> int:
    """Return the bits of all products of a reference."""
    return (badness(r.image) | badness(r.background) | badness(r.sources) | badness(r.psf) | badness(r.wcs)
            | badness(r.zp))


def judge_image(image: Image, pars: ImageBadness) -> Badness:
    """Return the bits of an image: banding, shaking, saturation, bright sky."""
    found = Badness(0)
    if float(((image.flags & int(PixelFlag.SATURATED)) != 0).mean()) > pars.saturated_fraction:
        found |= Badness.SATURATION
    bad = image.flags != 0
    if bad.mean() > 0.98:
        return found
    mesh, _ = fit_mesh(image.data, bad, min(128, *image.shape))
    residual: F32 = image.data - render_mesh(mesh, 128, image.shape)
    residual[bad] = np.nan
    sky = float(np.median(mesh))
    expected = pars.max_sky.get(image.filter, float("inf"))
    if (sky > pars.sky_fraction * image.saturation_adu
            or sky * image.gain > expected * max(image.exp_time_s, 1e-3)):
        found |= Badness.BRIGHT_SKY
    noise = mad_std(residual[::3, ::3][~bad[::3, ::3]])
    if not noise > 0:
        return found
    if max(banding(residual, noise, axis) for axis in (0, 1)) > pars.banding:
        found |= Badness.BANDING
    if common_ellipticity(np.where(bad, np.float32(0), residual), noise, bad) > pars.shaking:
        found |= Badness.SHAKING
    return found


def banding(residual: F32, noise: float, axis: int) -> float:
    """Return the rms offset shared by rows (``axis=1``) or columns (``axis=0``) [units of `noise`].

    The variance of the clipped mean of each row beyond what single pixels explain; slow changes along the other axis
    (65 pixels) are no banding.

    Parameters
    ----------
    residual : (ny, nx) float32, sky subtracted, NaN where bad.
    noise : standard deviation of a pixel.
    """
    keep = np.abs(residual) < 3.0 * noise
    n = keep.sum(axis=axis)
    total = np.where(keep, residual, 0).sum(axis=axis, dtype=np.float64)
    good = n > 0.25 * residual.shape[axis]
    if good.sum() < 16:
        return 0.0
    mean = total[good] / n[good]
    mean -= scipy.ndimage.median_filter(mean, min(65, len(mean)), mode="nearest")
    # a pixel clipped at 3 sigma has 0.973 of the variance
    expected = 0.973 * noise**2 * float(np.mean(1.0 / n[good]))
    excess = mad_std(mean) ** 2 - expected * (1.0 + 3.0 * np.sqrt(2.0 / len(mean)))
    return float(np.sqrt(max(excess, 0.0)) / noise)


def common_ellipticity(data: F32, noise: float, bad: Mask, threshold: float = 20.0, limit: int = 400) -> float:
    """Return 1 − b/a of the shape that the brightest sources have in common; 0 where there is none.

    The median of (a² − b²)/(a² + b²) times (cos 2θ, sin 2θ): galaxies point anywhere and cancel, trails do not.
    """
    from seechange_mpi.pipeline.source_finding import find_sources, matched

    variance = np.full_like(data, noise**2)
    found = find_sources(matched(data, variance, bad, 3.0), threshold, bad, np.zeros_like(bad), 3.0)
    found = found.taken(np.argsort(-found.height, kind="stable")[:limit])
    if len(found) < 8:
        return 0.0
    m = moments(data, bad, found.x, found.y, 4.0)
    a2, b2, theta = m.a**2, m.b**2, m.theta
    usable = np.isfinite(a2 + b2 + theta) & (a2 > 0)
    if usable.sum() < 8:
        return 0.0
    e = ((a2 - b2) / (a2 + b2))[usable]
    parts = np.stack([e * np.cos(2 * theta[usable]), e * np.sin(2 * theta[usable])])
    common = float(np.hypot(*np.median(parts, axis=1)))
    chance = 1.25 * float(parts.std()) / np.sqrt(len(e))
    if common < 3.0 * chance:
        return 0.0
    return float(1.0 - np.sqrt((1.0 - common) / (1.0 + common)))


def judge_background(image: Image, background: Background, pars: ExtractionBadness) -> Badness:
    """Return the bits of a background: too dense a field, structure left in the sky."""
    bad = image.flags != 0
    if bad.all():
        return Badness(0)
    significance = (subtract_background(image, background) / render_rms(background)).astype(np.float32)
    found = Badness(0)
    # 2.3 % of pure noise lies beyond 2 sigma
    covered = float((significance > 2.0)[~bad].mean()) - 0.023
    if covered > pars.source_fraction:
        found |= Badness.TOO_DENSE
    if sky_structure(significance, bad) > pars.sky_structure:
        found |= Badness.BAD_FIT
    return found


def sky_structure(significance: F32, bad: Mask, box: int = 64) -> float:
    """Return the robust scatter of box means of what is left of the sky [sigma of a pixel], noise taken out.

    Pixels beyond 5 sigma of an image smoothed over 5 pixels, and their surroundings, are sources and left out.
    """
    smooth = scipy.ndimage.uniform_filter(np.where(bad, 0, np.clip(significance, -5, 5)), 5)
    keep = ~(scipy.ndimage.maximum_filter(np.abs(smooth) > 1.0, 9) | bad | (np.abs(significance) > 3))
    ny, nx = (max(n // box, 1) * min(box, n) for n in keep.shape)
    by, bx = min(box, keep.shape[0]), min(box, keep.shape[1])

    def boxed(values: npt.NDArray[np.generic]) -> F64:
        return np.asarray(values[:ny, :nx].reshape(ny // by, by, nx // bx, bx).sum(axis=(1, 3), dtype=np.float64))

    n, total = boxed(keep), boxed(np.where(keep, significance, 0))
    good = n > 0.1 * by * bx
    if good.sum() < 8:
        return 0.0
    mean = total[good] / n[good]
    excess = mad_std(mean) ** 2 - float(np.median(1.0 / n[good]))
    return float(np.sqrt(max(excess, 0.0)))


def judge_sources(sources: SourceList, psf: PSF, shape: tuple[int, int], pars: ExtractionBadness) -> Badness:
    """Return the bits of a source list: few, many."""
    n = len(sources.table)
    found = Badness(0)
    if n < pars.few_sources:
        found |= Badness.FEW_SOURCES
    beam = np.pi / 4.0 * psf.fwhm_pixels**2
    if n and shape[0] * shape[1] / (n * beam) < pars.beams_per_source:
        found |= Badness.MANY_SOURCES
    return found


def judge_psf(psf: PSF, shape: tuple[int, int], pixel_scale_arcsec: float, pars: ExtractionBadness) -> Badness:
    """Return the bit of a PSF whose FWHM, ellipticity or chi2 is out of range."""
    stamp = render(psf, np.array([(shape[1] - 1) / 2]), np.array([(shape[0] - 1) / 2]), phase=False)[0].astype(float)
    wrong = (not psf.fwhm_pixels >= pars.min_fwhm_pixels
             or psf.fwhm_pixels * pixel_scale_arcsec > pars.max_fwhm_arcsec
             or not psf.chi2 <= pars.max_psf_chi2
             or stamp_ellipticity(stamp, psf.fwhm_pixels) > pars.max_ellipticity)
    return Badness.PSF if wrong else Badness(0)


def stamp_ellipticity(stamp: F64, fwhm: float) -> float:
    """Return 1 − b/a of a stamp from its moments under a Gaussian of 1.2 times the FWHM, the Gaussian taken out."""
    half = stamp.shape[0] // 2
    v, u = np.mgrid[-half: half + 1, -half: half + 1].astype(float)
    sigma2 = (1.2 * fwhm / 2.355) ** 2
    w = np.maximum(stamp, 0) * np.exp(-0.5 * (u**2 + v**2) / sigma2)
    total = w.sum()
    if not total > 0:
        return 1.0
    uu, vv, uv = (float((w * m).sum() / total) for m in (u * u, v * v, u * v))
    moments = np.linalg.eigvalsh([[uu, uv], [uv, vv]])
    # of a Gaussian under a Gaussian the inverse variances add
    b2, a2 = (1.0 / max(1.0 / max(m, 1e-6) - 1.0 / sigma2, 1e-3) for m in moments)
    return float(1.0 - np.sqrt(b2 / a2))


def judge_wcs(wcs: WorldCoordinates, pars: ExtractionBadness, catalog_stars: int | None) -> Badness:
    """Return the bits of a solution; the file's own WCS is judged where a catalogue was given."""
    if catalog_stars is None:
        return Badness(0)
    if catalog_stars == 0:
        return Badness.NO_CATALOG
    if wcs.n_matched < 4:
        return Badness.MATCH_FAILED
    return Badness.BIG_RESIDUALS if not wcs.rms_mas <= 1000.0 * pars.wcs_residual_arcsec else Badness(0)


def judge_zero_point(zp: ZeroPoint, pars: ExtractionBadness) -> Badness:
    """Return the bit of a zero point whose stars scatter."""
    scattered = np.isfinite(zp.scatter) and zp.scatter > pars.zp_scatter
    return Badness.BIG_RESIDUALS if scattered else Badness(0)


def judge_subtraction(sub: SubImage, pars: SubtractionBadness) -> Badness:
    """Return the bit of a difference whose score has not unit variance, or far too many extreme pixels."""
    good = (sub.flags == 0) & (sub.weight > 0)
    if good.sum() < 100:
        return Badness.BAD_SUBTRACTION
    score = sub.score[good]
    wrong = (abs(mad_std(score[::7]) - 1.0) > pars.score_std
             or float((np.abs(score) > 5.0).mean()) > pars.beyond_five_sigma)
    return Badness.BAD_SUBTRACTION if wrong else Badness(0)


def judge_measurements(measurements: Measurements, sub: SubImage, fwhm_pixels: float, moved: Mask) -> None:
    """Set the bits of every measurement: flagged pixels within one FWHM, and `moved` off its detection."""
    table = measurements.table
    if len(table) == 0:
        return
    half = max(1, round(fwhm_pixels))
    stamps, _ = cut_stamps(sub.flags, table["center_x_pixel"], table["center_y_pixel"], 2 * half + 1)
    offset = np.arange(-half, half + 1)
    disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= half**2
    bits = badness_of_pixels(np.bitwise_or.reduce(np.asarray(stamps)[:, disc], axis=1))
    bits[moved] |= int(Badness.OFFSET)
    table["bitflag"] = bits


def badness_of_failure(step: str, error: BaseException) -> Badness:
    """Return the bits that tell why a step has failed, from its figures; 0 where none fits."""
    if isinstance(error, BadInput):
        return Badness.REF_BAD if error.what.startswith("reference") else Badness(0)
    if step in ("subtraction", "detection"):
        return Badness.BAD_SUBTRACTION if isinstance(error, AlgorithmError) else Badness(0)
    if not isinstance(error, AlgorithmError):
        return Badness(0)
    figures = {k: float(v) for k, v in error.metrics.items() if isinstance(v, int | float)}
    required = figures.get("required", 0.0)
    if step == "extraction":
        if error.step == "background":
            return Badness.BAD_FIT
        if "used" in figures:
            return Badness.PSF
        return Badness.FEW_SOURCES if "sources" in figures else Badness.MANY_SOURCES
    if step not in ("astrocal", "photocal"):
        return Badness(0)
    limit = figures.get("max_arcsec_residual", figures.get("max_scatter", float("inf")))
    if not figures.get("rms_arcsec", figures.get("scatter", 0.0)) <= limit:
        return Badness.BIG_RESIDUALS
    rows = figures.get("catalogue_rows_in_cone", figures.get("catalogue_stars", figures.get("reference_stars", 0.0)))
    if rows < max(required, 1):
        return Badness.NO_CATALOG
    own = figures.get("sources", figures.get("stars", required))
    return Badness.FEW_SOURCES if own < required else Badness.MATCH_FAILED
