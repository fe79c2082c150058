"""The definition of a camera: geometry, amplifiers, header translation, calibration defaults.

``load_camera("LS4")`` reads a shipped file, ``load_camera("my/camera.yaml")`` one of the user's. Unknown keys
are errors that name the keys there are.
"""

from __future__ import annotations

import pickle
import re
import weakref
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seechange_mpi.model.calibration import FLAT_TYPES, KINDS
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.flags import PixelFlag

_FOLDER = Path(__file__).parent
_MJD_ORDINAL = date(1858, 11, 17).toordinal()
_SECTION = re.compile(r"^\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]$")

Hdu = int | str | tuple[str, int]
"""HDU by number (0 = primary), by EXTNAME, or by (EXTNAME, EXTVER)."""


def parse_fits_section(text: str) -> tuple[slice, slice]:
    """Turn a FITS section ``[x1:x2,y1:y2]`` (1-based, inclusive) into (y, x) slices.

    Raises
    ------
    ValueError
        Not such a section.
    """
    match = _SECTION.match(text.strip())
    if match is None:
        raise ValueError(f"expected a section like [1:2048,1:4096], found {text!r}")
    x1, x2, y1, y2 = (int(v) for v in match.groups())
    if x2 < x1 or y2 < y1 or x1 < 1 or y1 < 1:
        raise ValueError(f"expected increasing limits from 1, found {text!r}")
    return slice(y1 - 1, y2), slice(x1 - 1, x2)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Amplifier(_Model):
    """One readout channel. Numbers may be given as header keywords of the amplifier's HDU."""

    name: str = ""
    hdu: Hdu | None = None
    """HDU of this amplifier; default: the section's."""
    data_section: str | None = None
    """Data pixels as ``[x1:x2,y1:y2]`` or a header keyword holding that; default: the whole HDU."""
    bias_section: str | None = None
    """Overscan pixels, likewise: columns beside the data, or rows above or below; none: no overscan."""
    parallel_bias_section: str | None = None
    """Overscan rows, likewise, of an amplifier whose `bias_section` holds columns."""
    x0: int = 0
    y0: int = 0
    """Place of the first pixel in the trimmed section, after flipping (0-based)."""
    place: Literal["given", "data_section"] = "given"
    """``data_section``: amplifiers lie as in the HDU they share, whichever side the header puts them; x0, y0 are
    not used, and the HDU's own WCS holds for the section."""
    flip_x: bool = False
    flip_y: bool = False
    gain: float | str | None = None
    """e-/ADU, or a header keyword; default: the camera's."""
    read_noise: float | str | None = None
    """e-, or a header keyword; default: the camera's."""
    saturation: float | str | None = None
    """ADU in the raw frame, or a header keyword; default: the camera's."""
    read_order: str | None = None
    """In what order the pixels were read, for crosstalk: a section like ``[2048:1025,4096:1]`` whose limits fall where
    the readout runs towards smaller pixel numbers, or a header keyword (DECam's AMPSECA); default: as in the file."""
    bleed_axis: Literal["x", "y"] = "y"
    """Axis of the trimmed section along which saturated pixels spill: the parallel shift of the readout."""
    linearity: tuple[float, ...] = ()
    """Coefficients c_k of linear = Σ c_k counts**k from k = 0, counts in ADU above the pedestal: raw counts in, linear
    counts out."""


class Crosstalk(_Model):
    """A coefficient of the crosstalk matrix: the share of the source's counts that appears in the victim."""

    victim: str
    """``section:amplifier``, or ``amplifier`` for that of every section."""
    source: str
    """Likewise; without a section it is in the victim's own."""
    coefficient: float


class Section(_Model):
    """One CCD (or whatever one worker processes)."""

    id: str
    hdu: Hdu = 0
    size: tuple[int, int] | None = None
    """Trimmed size [x, y]; none: taken from the file."""
    amplifiers: tuple[Amplifier, ...] = (Amplifier(),)
    offset_arcsec: tuple[float, float] = (0.0, 0.0)
    """Section centre minus pointing, towards east and north."""
    rotation_deg: float = 0.0
    """Angle of the section's y axis from north, towards east, for parity-flipped x (east left)."""
    east_left: bool = True
    header_wcs: Literal["hdu", "section"] = "hdu"
    """Pixels that the WCS in the HDU's header counts: all of the HDU's, or those of the trimmed section (DECam)."""
    filter: str | None = None
    """For cameras with one filter per section."""
    defective: bool = False
    """Never processed."""
    defective_dates: tuple[tuple[date | None, date | None], ...] = ()
    """Intervals [first day, first good day) of UT when it is not processed; null: open."""

    def usable_at(self, mjd: float) -> bool:
        """Return whether the section is to be processed in an exposure of that date."""
        day = date.fromordinal(int(mjd) + _MJD_ORDINAL)
        return not self.defective and not any(
            (start is None or start <= day) and (end is None or day < end) for start, end in self.defective_dates)


class HeaderRule(_Model):
    """How one quantity is found in the primary header."""

    keyword: str | tuple[str, ...] | None = None
    """Keyword, or alternatives in order."""
    constant: Any = None
    convert: Literal["float", "str", "isot_to_mjd", "sexagesimal_hours", "sexagesimal_degrees",
                     "first_word"] | None = None
    mapping: dict[str, str] | None = None
    """Values to replace, e.g. long filter names by short ones."""
    scale: float = 1.0
    add: float = 0.0


class Photometry(_Model):
    """Catalogue magnitude to a filter of the camera: m = band + Σ cᵢ (colour)ⁱ."""

    band: str
    colour: tuple[str, str] = ("bp", "rp")
    terms: tuple[float, ...] = (0.0,)
    colour_range: tuple[float, float] = (0.5, 3.0)
    """Only stars with a colour in this range are used."""


CALIBRATION_KINDS = (*KINDS, *(f"flat_{light}" for light in FLAT_TYPES if light != "externally_supplied"))

HEADER_QUANTITIES = ("mjd", "exp_time", "filter", "ra", "dec", "airmass", "project", "target", "obstype")


class Camera(_Model):
    """A camera."""

    name: str
    telescope: str = ""
    pixel_scale_arcsec: float = Field(gt=0)
    filters: tuple[str, ...] = ()
    reduced: bool = False
    """Exposures come already reduced: no overscan, bias or flat to apply."""
    sky_subtracted: bool = False
    gain: float | None = Field(default=None, gt=0)
    """e-/ADU where the amplifier does not say; none: must come from the amplifier or the user."""
    read_noise: float = Field(default=0.0, ge=0)
    saturation: float | None = Field(default=None, gt=0)
    """ADU in the raw frame."""
    association_radius_arcsec: float = Field(default=1.0, gt=0)
    pointing_error_arcsec: float = Field(default=10.0, ge=0)
    """How wrong the header's position may be."""
    weight_hdu: Hdu | None = None
    mask_hdu: Hdu | None = None
    """Planes delivered with reduced images: weight [ADU**-2], mask (nonzero = bad)."""
    weight_type: Literal["weight", "ivar", "variance", "sigma"] = "weight"
    """What the weight plane holds; ``weight`` and ``ivar`` are the same, an inverse variance."""
    weight_file: tuple[str, str] | None = None
    mask_file: tuple[str, str] | None = None
    """Planes in files of their own: text in the exposure's file name and what stands there instead, e.g. ``[_ooi_,
    _oow_]``. The HDU is `weight_hdu` or `mask_hdu`, or else the section's."""
    mask_kind: Literal["values", "bits"] = "values"
    """Whether the mask holds one code per pixel or a sum of bits."""
    mask_meaning: dict[int, str] = {}
    """Code, or number of the bit from 0, -> name of a pixel flag, or ``ignore``. What is not named here is a bad
    pixel, 0 is good."""
    crosstalk: tuple[Crosstalk, ...] = ()
    """Crosstalk matrix, where no file of kind ``crosstalk`` gives it."""
    header: dict[str, HeaderRule] = {}
    calibration: dict[str, str] = {}
    """Kind (`CALIBRATION_KINDS`) -> path with {calib_dir}, {section}, {filter}."""
    photometry: dict[str, Photometry] = {}
    example_header: dict[str, str | float] = {}
    """Keywords of an HDU as in a real file, those that the amplifiers name among them: the simulator writes them."""
    sections: tuple[Section, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _apply_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and "section_defaults" in values:
            values = dict(values)
            defaults = values.pop("section_defaults") or {}
            sections = values.get("sections")
            if isinstance(defaults, dict) and isinstance(sections, list):
                values["sections"] = [{**defaults, **s} if isinstance(s, dict) else s for s in sections]
        return values

    @model_validator(mode="after")
    def _check(self) -> Camera:
        ids = [s.id for s in self.sections]
        double = {i for i in ids if ids.count(i) > 1}
        if double:
            raise ValueError(f"section ids must be unique, found twice: {', '.join(sorted(double))}")
        unknown = set(self.header) - set(HEADER_QUANTITIES)
        if unknown:
            raise ValueError(f"header: unknown quantity {min(unknown)}; there are: {', '.join(HEADER_QUANTITIES)}")
        flags = (*PixelFlag.__members__, "ignore")
        wrong = [v for v in self.mask_meaning.values() if v not in flags]
        if wrong:
            raise ValueError(f"mask_meaning: unknown flag {wrong[0]}; there are: {', '.join(flags)}")
        for kind, pattern in self.calibration.items():
            if kind not in CALIBRATION_KINDS:
                raise ValueError(f"calibration: unknown kind {kind}; there are: {', '.join(CALIBRATION_KINDS)}")
            try:
                pattern.format(calib_dir="", section="", filter="")
            except (KeyError, IndexError, ValueError):
                raise ValueError(f"calibration: {kind}: a path may hold {{calib_dir}}, {{section}}, {{filter}}; "
                                 f"found {pattern!r}") from None
        return self

    def __reduce__(self) -> tuple[Callable[[bytes], Camera], tuple[bytes]]:
        """Pickle it once and for all: it travels with every section, and is the same object where it arrives again."""
        return _unpacked, (_packed(self),)

    @property
    def section_ids(self) -> tuple[str, ...]:
        """Ids of the sections that are usable today."""
        today = datetime.now(UTC).date().toordinal() - _MJD_ORDINAL
        return self.section_ids_at(float(today))

    def section_ids_at(self, mjd: float) -> tuple[str, ...]:
        """Return the ids of the sections that were usable at a date."""
        return tuple(s.id for s in self.sections if s.usable_at(mjd))

    def section(self, section_id: str) -> Section:
        """Return a section by id.

        Raises
        ------
        ConfigError
            There is no such section.
        """
        for s in self.sections:
            if s.id == section_id:
                return s
        raise ConfigError(f"camera {self.name} has no section '{section_id}'; there are: {', '.join(self.section_ids)}")

    def calibration_paths(self, section_id: str, filter_name: str, calib_dir: str | None) -> dict[str, str]:
        """Return kind -> path of the calibration frames of a section (which may not exist)."""
        if calib_dir is None:
            return {}
        return {kind: pattern.format(calib_dir=calib_dir, section=section_id, filter=filter_name)
                for kind, pattern in self.calibration.items()}


_PACKED: dict[int, tuple[weakref.ref[Camera], bytes]] = {}
"""Identity of a camera -> its pickled state."""


def _packed(camera: Camera) -> bytes:
    known = _PACKED.get(id(camera))
    if known is not None and known[0]() is camera:
        return known[1]
    if len(_PACKED) >= 32:
        _PACKED.clear()
    data = zlib.compress(pickle.dumps(camera.__getstate__(), pickle.HIGHEST_PROTOCOL))
    _PACKED[id(camera)] = weakref.ref(camera), data
    return data


@lru_cache(maxsize=32)
def _unpacked(data: bytes) -> Camera:
    camera = Camera.__new__(Camera)
    camera.__setstate__(pickle.loads(zlib.decompress(data)))
    return camera


def list_cameras() -> list[str]:
    """Names of the shipped cameras."""
    return sorted(p.stem for p in _FOLDER.glob("*.yaml"))


@lru_cache(maxsize=32)
def _load(path: Path, _mtime_ns: int) -> Camera:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not valid YAML: {err}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a camera definition, found {type(values).__name__}")
    try:
        return Camera(**values)
    except ValidationError as err:
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc']) or 'camera'}: {e['msg']}" for e in err.errors())
        raise ConfigError(f"{path}: {problems}; the keys of a camera are: {', '.join(Camera.model_fields)}") from None


def load_camera(name_or_path: str | Path) -> Camera:
    """Return a shipped camera by name, or one defined by a YAML file of the user's.

    Raises
    ------
    ConfigError
        No such camera, or its definition is wrong.
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) else _FOLDER / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(f"no camera '{text}': there are {', '.join(list_cameras())}; "
                          "or give the path of a YAML file of your own")
    return _load(path, path.stat().st_mtime_ns)
