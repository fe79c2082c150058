"""Which exposures go into a calibration frame: files, globs, folders, nights; what kind each is."""

from __future__ import annotations

import glob
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from astropy.io import fits

from seechange_mpi.instruments.camera import Camera
from seechange_mpi.io.raw import read_exposure_info
from seechange_mpi.model.calibration import Rejected
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import ExposureInfo, identifier_of

TYPE_KEYWORDS: tuple[str, ...] = ("OBSTYPE", "IMAGETYP", "IMGTYPE", "OBSMODE")
"""Header keywords that tell bias from flat, where the camera's YAML does not name one (``header: obstype``)."""
_SUFFIXES = (".fits", ".fits.fz", ".fits.gz", ".fit", ".fts")
_WORDS: tuple[tuple[str, str], ...] = (
    (r"bias|zero", "bias"), (r"dark", "dark"), (r"dome|lamp|quartz|projector", "dome"), (r"twi|sky ?flat", "twilight"),
    (r"flat", "flat"), (r"object|science|light|sky|expose|field|survey", "object"))
_MJD_1858 = date(1858, 11, 17)


@dataclass(frozen=True, slots=True)
class Selected:
    """Exposures for a frame, in the order of time, and those that were left out."""

    exposures: tuple[ExposureInfo, ...]
    rejected: tuple[Rejected, ...]
    others: int
    """Files of another kind or another night, passed over in silence."""


def expand(patterns: Iterable[str]) -> list[Path]:
    """Return the files that patterns stand for: files, globs, and folders (searched with all below them).

    Raises
    ------
    BadInput
        A pattern matches nothing.
    """
    out: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not found:
            raise BadInput(pattern, "exposures", "a file, a pattern or a folder of FITS files", "nothing")
        out |= dict.fromkeys(p.absolute() for p in found)
    return list(out)


def night_of(text: str, start_utc_h: float) -> tuple[float, float]:
    """Return first and last mjd of the night that begins on a date (``2026-11-20``).

    Raises
    ------
    ConfigError
        Not a date.
    """
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"--night {text}: expected a date such as 2026-11-20") from None
    first = (day - _MJD_1858).days + start_utc_h / 24
    return first, first + 1.0


def night_start(mjd: float, start_utc_h: float) -> float:
    """Return the mjd at which the night of `mjd` began."""
    return math.floor(mjd - start_utc_h / 24) + start_utc_h / 24


def date_of(mjd: float) -> str:
    """Return the date of an mjd, as 2026-11-20."""
    return date.fromordinal(_MJD_1858.toordinal() + math.floor(mjd)).isoformat()


def exposure_type(info: ExposureInfo, camera: Camera) -> str:
    """Return bias, dark, dome, twilight, flat (of unknown light) or object; "" if the header does not say."""
    return _type_of(info.header, camera)


def _type_of(header: Mapping[str, Any], camera: Camera) -> str:
    rule = camera.header.get("obstype")
    names = TYPE_KEYWORDS
    if rule is not None and rule.keyword is not None:
        names = (rule.keyword,) if isinstance(rule.keyword, str) else rule.keyword
    value = next((str(header[n]).strip() for n in names if str(header.get(n, "")).strip()), "")
    if rule is not None and rule.mapping is not None:
        value = rule.mapping.get(value, value)
    text = value.lower().replace("_", " ").replace("-", " ")
    return next((kind for pattern, kind in _WORDS if re.search(pattern, text)), "")


def wanted_types(kind: str, flat_type: str) -> tuple[str, ...]:
    """Return the exposure types that go into a frame."""
    if kind == "flat":
        return {"dome": ("dome", "flat"), "twilight": ("twilight", "flat"), "sky": ("object",)}[flat_type]
    return {"fringe": ("object",), "badpixels": ("bias", "dark", "dome", "twilight", "flat")}.get(kind, (kind,))


def read_info(path: Path, camera: Camera, *, filter_needed: bool) -> ExposureInfo:
    """Translate a header; an exposure without light need not tell its filter.

    Raises
    ------
    BadInput
        As `read_exposure_info`.
    """
    try:
        return read_exposure_info(path, camera)
    except BadInput as err:
        if filter_needed or "'filter'" not in err.what:
            raise
        return read_exposure_info(path, camera, {"filter": ""})


def _surely_other(path: Path, camera: Camera, wanted: Sequence[str]) -> bool:
    """Whether the primary header alone says that a file is of another type: quicker than reading all headers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _type_of(fits.getheader(path, 0), camera)
    except (OSError, ValueError, TypeError, IndexError):
        return False
    return found not in ("", *wanted)


def select(
    paths: Sequence[Path], camera: Camera, kind: str, *, flat_type: str = "",
    nights: Sequence[tuple[float, float]] = (), filters: Sequence[str] = (), any_type: bool = False,
) -> Selected:
    """Choose the exposures of a kind, of the nights (any if none are given) and of the filters.

    Exposures whose headers do not say what they are count as wanted when files were named; unreadable ones are left
    out by name.

    Parameters
    ----------
    any_type : take what headers call something else, too.
    """
    wanted = wanted_types(kind, flat_type)
    good: dict[str, ExposureInfo] = {}
    rejected: list[Rejected] = []
    others = 0
    for path in paths:
        if not any_type and _surely_other(path, camera, wanted):
            others += 1
            continue
        try:
            info = read_info(path, camera, filter_needed=kind in ("flat", "fringe"))
        except BadInput as err:
            rejected.append(Rejected(identifier_of(path), str(err)))
            continue
        found = exposure_type(info, camera)
        fits_in = any_type or found in wanted or (found == "" and not nights and kind != "badpixels")
        fits_in &= not nights or any(a <= info.mjd < b for a, b in nights)
        fits_in &= not filters or info.filter in (*filters, "") or kind in ("bias", "dark")
        if not fits_in:
            others += 1
        elif info.identifier in good:
            rejected.append(Rejected(info.identifier, f"given twice: {path} and {good[info.identifier].path}"))
        else:
            good[info.identifier] = info
    ordered = tuple(sorted(good.values(), key=lambda e: (e.mjd, e.identifier)))
    return Selected(ordered, tuple(rejected), others)


def mjd_of_text(text: str | None) -> float | None:
    """Return the mjd of a date, a date and time (UTC), or an mjd; None for None.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"'{text}': expected a date such as 2026-11-20, 2026-11-20T12:00, or an mjd") from None
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    return (time - datetime(1858, 11, 17, tzinfo=UTC)) / timedelta(days=1)
