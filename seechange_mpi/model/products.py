"""Products of one section, in memory.

Arrays are [y, x] with pixel centres at integers from 0. ``data``, ``weight`` are float32 in ADU and
ADU**-2, ``flags`` is uint16 (`PixelFlag`). One effective gain per image: amplifiers are brought to a
common gain in preprocessing. ``weight`` is the inverse of the *total* variance (sky, read noise and
sources), 0 where the pixel must not be used. ``bitflag`` holds a product's own `flags.Badness` bits,
``upstream_bitflag`` those of everything it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.task import SectionReport

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
Table = npt.NDArray[np.void]


@dataclass(slots=True)
class RawAmplifier:
    """One amplifier as read out, already flipped to the section's orientation.

    Attributes
    ----------
    data : (ny, nx) float32 [ADU], the data section only.
    overscan : float32 [ADU] or None
        The bias section: as many rows as ``data`` (columns of overscan) or as many columns (rows of overscan).
    x0, y0 : int, place of the first pixel in the section.
    gain : float [e-/ADU];  read_noise_e : float [e-];  saturation_adu : float [ADU, raw, with pedestal].
    parallel_overscan : (n, nx) float32 [ADU] or None, rows of overscan beside columns of overscan.
    from_right, from_top : bool, which corner is read out first.
    bleed_axis : int, axis of the array along which saturated pixels spill: 0 (columns) or 1.
    linearity : tuple of float
        Coefficients c_k of linear = Σ c_k counts**k, counts above the pedestal [ADU]; empty: none given.
    """

    data: F32
    overscan: F32 | None
    x0: int
    y0: int
    gain: float
    read_noise_e: float
    saturation_adu: float
    name: str = ""
    parallel_overscan: F32 | None = None
    from_right: bool = False
    from_top: bool = False
    bleed_axis: int = 0
    linearity: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class CrosstalkTerm:
    """What a victim amplifier of this section sees of a source amplifier, ``section`` and name.

    The coefficient is that of the source's overscan-subtracted counts, pixel by pixel in the order of readout.
    """

    victim: str
    section: str
    source: str
    coefficient: float


@dataclass(slots=True)
class RawSection:
    """One section as it lies in the file.

    Attributes
    ----------
    shape : (ny, nx) of the trimmed section.
    header_wcs : str, FITS header text of the approximate WCS for the trimmed, oriented section; "" if none.
    reduced : bool
        The pixels are already reduced (no overscan, bias or flat to apply).
    weight, mask : float32 [ADU**-2] / bool (True = bad), delivered with reduced images, else None.
    sky_subtracted : bool, the sky was already removed (reduced images only).
    mask_flags : uint16 or None, delivered mask in `PixelFlag` bits, where the camera says what its values mean.
    crosstalk : list of `CrosstalkTerm` with victims in this section; None: not asked for, or not known.
    sources : dict, (section, amplifier) -> `RawAmplifier` of other sections that `crosstalk` names.
    crosstalk_file : str, where `crosstalk` was read; "": the camera's definition.
    """

    section_id: str
    filter: str
    shape: tuple[int, int]
    amplifiers: list[RawAmplifier]
    header_wcs: str = ""
    reduced: bool = False
    weight: F32 | None = None
    mask: npt.NDArray[np.bool_] | None = None
    sky_subtracted: bool = False
    mask_flags: U16 | None = None
    crosstalk: list[CrosstalkTerm] | None = None
    sources: dict[tuple[str, str], RawAmplifier] = field(default_factory=dict)
    crosstalk_file: str = ""


@dataclass(slots=True)
class Image:
    """A preprocessed section.

    Attributes
    ----------
    data : (ny, nx) float32 [ADU], background not subtracted; finite everywhere (bad pixels 0).
    weight : (ny, nx) float32 [ADU**-2]
    flags : (ny, nx) uint16
    gain : float [e-/ADU], effective, after gain matching of amplifiers.
    read_noise_e : float [e-]
    saturation_adu : float [ADU]
    section_id, filter : str
    mjd : float [d];  exp_time_s : float [s]
    header_wcs : str
        FITS header text (80-character cards) of the approximate WCS; "" if there is none.
    preproc_bitflag : int, `Correction` bits really applied.
    inputs : dict, calibration files used (kind -> file name and digest).
    metrics : dict, figures of the corrections (``fringe_scale``, ``gain_factor_<amplifier>``, ``n_trails``).
    """

    data: F32
    weight: F32
    flags: U16
    gain: float
    read_noise_e: float
    saturation_adu: float
    section_id: str
    filter: str
    mjd: float
    exp_time_s: float
    header_wcs: str = ""
    preproc_bitflag: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    bitflag: int = 0
    upstream_bitflag: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.data.shape[0], self.data.shape[1]


@dataclass(slots=True)
class Background:
    """Mesh background; `gpu_kernels.background.render_mesh` gives full-size maps.

    Attributes
    ----------
    mesh, mesh_rms : (my, mx) float32 [ADU], values at the box centres.
    box_size : int [pix];  shape : (ny, nx) of the image.
    value, noise : float [ADU], medians over the image.
    error : float [ADU], median error of the level; NaN where it is not known.
    """

    mesh: F32
    mesh_rms: F32
    box_size: int
    shape: tuple[int, int]
    value: float
    noise: float
    error: float = float("nan")
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class PSF:
    """Pixel-basis PSF, polynomial in position; `gpu_kernels.psf_model.render` gives stamps.

    Attributes
    ----------
    basis : (n_terms, n, n) float32, n odd; term order: for j in 0..d: for i in 0..d-j: x**i * y**j.
    degree : int
    x0, y0, x_scale, y_scale : float
        Positions enter the polynomial as (x - x0) / x_scale.
    fwhm_pixels : float
        FWHM of the rendered profile at the image centre [pix].
    n_stars : int;  chi2 : float, median chi2 per degree of freedom of the PSF stars.
    """

    basis: F32
    degree: int
    x0: float
    y0: float
    x_scale: float
    y_scale: float
    fwhm_pixels: float
    n_stars: int
    chi2: float
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class SourceList:
    """Sources of an image (`tables.SOURCES`)."""

    table: Table
    aper_radii: tuple[float, ...]
    """Aperture radii [pix]; as many as `tables.N_APERTURES`; the last is the 'infinite' one."""
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class WorldCoordinates:
    """Astrometric solution: FITS header text, and how good it is."""

    header: str
    method: str
    """``catalog`` (fitted) or ``header`` (the file's own, checked where possible)."""
    n_matched: int = 0
    """Stars used."""
    rms_mas: float = float("nan")
    """Rms per axis of matched catalogue stars about the solution [mas]."""
    rms_radial_mas: float = float("nan")
    rms_ra_mas: float = float("nan")
    rms_dec_mas: float = float("nan")
    max_residual_mas: float = float("nan")
    """Largest distance of a used star from the solution [mas]."""
    mean_ra_mas: float = float("nan")
    mean_dec_mas: float = float("nan")
    """Mean of catalogue minus solution [mas], weighted; the median where the header was taken as it is."""
    chi2_dof: float = float("nan")
    order: int = 0
    """Order of the polynomial that was fitted; 0 = none."""
    floor_mas: float = float("nan")
    """Error that the residuals show beyond the stated ones [mas per axis]."""
    error_centre_mas: float = float("nan")
    error_corner_mas: float = float("nan")
    """Radial error of the solution at the centre and at the worst corner, from its covariance [mas]."""
    header_offset_ra_arcsec: float = float("nan")
    header_offset_dec_arcsec: float = float("nan")
    header_rotation_deg: float = float("nan")
    header_scale: float = float("nan")
    """What was wrong with the header's guess: shift of the centre, rotation, factor of the scale."""
    log10_chance: float = float("nan")
    """log10 of how often unrelated lists would give such a solution."""
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class ZeroPoint:
    """mag = -2.5 log10(ADU) + zp, for PSF fluxes; aperture a: add ``aper_cors[a]``.

    Attributes
    ----------
    zp, dzp : mean over the section and its error [mag].
    colour_term : first-order term of the camera's transformation from the catalogue.
    colour_slope, colour_slope_err, colour_ref : what the stars show beyond that transformation, per magnitude of
        colour, and the median colour, which `zp` holds for. Told, never applied: nobody knows a transient's.
    outlier_fraction : part of the stars that do not agree (variables, blends, false matches).
    map, map_err : coefficients of ``star_fit.map_design`` (none, 2 or 5) [mag] and the rms error of the map over the
        section; `at` adds it. Its mean over the section is 0.
    wing, wing_err : light that PSF fluxes miss beyond the PSF's stamp: total flux = PSF flux * 10**(0.4 wing) [mag].
        Magnitudes need it not: catalogue magnitudes are of all the light. NaN where it could not be measured.
    lim_mag : magnitude at which half of the point sources at random unmasked places are detected at 5 sigma.
    blocked : part of those places where they are lost beside brighter sources.
    """

    zp: float
    dzp: float
    method: str
    """``catalog``, ``relative`` (to the reference) or ``instrumental`` (25 by convention)."""
    n_stars: int = 0
    scatter: float = float("nan")
    colour_term: float = 0.0
    aper_cor_radii: tuple[float, ...] = ()
    aper_cors: tuple[float, ...] = ()
    lim_mag: float = float("nan")
    colour_slope: float = float("nan")
    colour_slope_err: float = float("nan")
    colour_ref: float = float("nan")
    outlier_fraction: float = 0.0
    map: tuple[float, ...] = ()
    map_err: float = 0.0
    map_shape: tuple[int, int] = (0, 0)
    wing: float = float("nan")
    wing_err: float = float("nan")
    blocked: float = 0.0
    bitflag: int = 0
    upstream_bitflag: int = 0

    @property
    def total_zp(self) -> float:
        """Zero point of total fluxes [mag]."""
        return self.zp + (self.wing if np.isfinite(self.wing) else 0.0)

    def at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
        """Return the zero point at pixel positions [mag]."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        out = np.full(np.broadcast(x, y).shape, self.zp)
        if self.map:
            ny, nx = self.map_shape
            u, v = 2.0 * x / max(nx - 1, 1) - 1.0, 2.0 * y / max(ny - 1, 1) - 1.0
            terms = (u, v, 1.5 * u**2 - 0.5, u * v, 1.5 * v**2 - 0.5)
            for c, term in zip(self.map, terms, strict=False):
                out = out + c * term
        return out


@dataclass(slots=True)
class Reference:
    """A processed section that serves as reference, and where it came from."""

    image: Image
    background: Background
    psf: PSF
    sources: SourceList
    wcs: WorldCoordinates
    zp: ZeroPoint
    image_id: str
    exposure_identifier: str
    provenance_ids: dict[str, str]
    shard: str = ""
    content_hash: str = ""
    """`StoredSection.image_hash` of the section it was read from."""


@dataclass(slots=True)
class SubImage:
    """A difference image on the pixel grid of the new image.

    Attributes
    ----------
    data : (ny, nx) float32 [ADU of the new image]; white noise; NaN-free (flagged pixels 0).
    weight : (ny, nx) float32 [ADU**-2]
    flags : (ny, nx) uint16
    score : (ny, nx) float32 [sigma], detection statistic of unit variance (0 where flagged).
    flux, flux_err : (ny, nx) float32 [ADU of the new image], PSF flux at each pixel.
    psf : (n, n) float32, PSF of ``data``, sum 1.
    zp : float [mag], inherited from the new image.
    ref_data : (ny, nx) float32 [ADU], background-subtracted reference warped and scaled to the new image.
    ref_flags : (ny, nx) uint16
    method : str;  metrics : dict of figures (flux ratio, astrometric residual, noise ratio).
    """

    data: F32
    weight: F32
    flags: U16
    score: F32
    flux: F32
    flux_err: F32
    psf: F32
    zp: float
    ref_data: F32
    ref_flags: U16
    method: str
    metrics: dict[str, float] = field(default_factory=dict)
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class Detections:
    """Detections in a difference image (`tables.DETECTIONS`)."""

    table: Table
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class Cutouts:
    """Stamps around detections, each (n, size, size) float32 [ADU of the new image], NaN where masked."""

    new: F32
    ref: F32
    sub: F32
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class Measurements:
    """Measurements of all detections (`tables.MEASUREMENTS`); see ``is_bad`` and ``deletion_reasons``."""

    table: Table
    bitflag: int = 0
    upstream_bitflag: int = 0


@dataclass(slots=True)
class Scores:
    """Real-bogus scores (`tables.SCORES`), one row per measurement, in the same order."""

    algorithm: str
    table: Table
    info: dict[str, Any] = field(default_factory=dict)


Judged = (Image | Background | PSF | SourceList | WorldCoordinates | ZeroPoint | SubImage | Detections | Cutouts
          | Measurements)
"""Products that carry badness bits."""


def badness(product: Judged | None) -> int:
    """Return the bits of a product and of everything it was made from; 0 for None."""
    return 0 if product is None else product.bitflag | product.upstream_bitflag


@dataclass(slots=True)
class SectionProducts:
    """Everything one section has produced so far; None = not made."""

    image: Image | None = None
    background: Background | None = None
    psf: PSF | None = None
    sources: SourceList | None = None
    wcs: WorldCoordinates | None = None
    zp: ZeroPoint | None = None
    sub: SubImage | None = None
    detections: Detections | None = None
    cutouts: Cutouts | None = None
    measurements: Measurements | None = None
    scores: list[Scores] = field(default_factory=list)


@dataclass(slots=True)
class StoredSection:
    """A section as read back from a shard or bundle.

    Attributes
    ----------
    products : SectionProducts
        With ``pixels=False`` the large arrays (image and sub planes, cutouts) have shape (0, 0).
    report : SectionReport
    provenance_ids : dict, process -> id of what is stored.
    inputs : dict, name -> identity of what went in (``reference``, ``catalog``, ``calibration.flat`` ...).
    shape : (ny, nx) of the section.
    content_hash : str, sha256 (hex) over the science content, volatile attributes left out.
    path : str, file it was read from.
    image_hash, sub_hash : str, sha256 over the products up to the zero point, and over those after it.
    digests : dict, ``raw`` and ``reference`` -> digest of the raw section's pixels and of the reference's products;
        empty in files of older versions.
    parts : names of the products that the file holds, read or not.
    """

    section_id: str
    products: SectionProducts
    report: SectionReport
    provenance_ids: dict[str, str]
    inputs: dict[str, str]
    shape: tuple[int, int]
    content_hash: str
    path: str
    image_hash: str = ""
    sub_hash: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
