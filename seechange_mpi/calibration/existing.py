"""Frames that exist already, made elsewhere or here: checked, and described for registration."""

from __future__ import annotations

import hashlib
from pathlib import Path

from astropy.io import fits

from seechange_mpi.calibration.write import QUALITY_CARDS
from seechange_mpi.instruments.camera import Camera
from seechange_mpi.model.calibration import FILTER_KINDS, FLAT_TYPES, KINDS, SETS, CalibratorFrame
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.provenance import make_record
from seechange_mpi.pipeline.calibration_files import read_calibration_frame

_TABLES = ("linearity", "crosstalk")
"""Kinds that need not be images of the section."""


def describe_existing(
    pattern: str, camera: Camera, *, kind: str | None = None, section: str | None = None, band: str | None = None,
    flat_type: str | None = None, calibrator_set: str | None = None, start_mjd: float | None = None,
    end_mjd: float | None = None,
) -> list[CalibratorFrame]:
    """Return what is to be registered of a file, or of a pattern with ``{section}`` and ``{filter}``.

    What is not given is taken from the header of a frame made here.

    Raises
    ------
    BadInput
        A file is missing or is not such a frame.
    ConfigError
        Kind, section, filter, set or type are missing or unknown.
    """
    if start_mjd is not None and end_mjd is not None and end_mjd <= start_mjd:
        raise ConfigError(f"the validity must end (mjd {end_mjd:g}) after it begins (mjd {start_mjd:g})")
    if "{section}" not in pattern:
        return [_describe(Path(pattern.replace("{filter}", band or "")).absolute(), camera, kind, section, band,
                          flat_type, calibrator_set, start_mjd, end_mjd)]
    out = []
    for s in (section,) if section else camera.section_ids:
        text = pattern.replace("{section}", s).replace("{filter}", band or camera.section(s).filter or "")
        if Path(text).is_file():
            out.append(_describe(Path(text).absolute(), camera, kind, s, band or camera.section(s).filter, flat_type,
                                 calibrator_set, start_mjd, end_mjd))
    if not out:
        raise BadInput(pattern, "calibration frames", f"a file for sections such as {camera.section_ids[0]}", "none")
    return out


def _describe(path: Path, camera: Camera, kind: str | None, section: str | None, band: str | None,
              flat_type: str | None, calibrator_set: str | None, start_mjd: float | None,
              end_mjd: float | None) -> CalibratorFrame:
    if not path.is_file():
        raise BadInput(path, "calibration frame", "a file", "no such file")
    header = _header(path)
    kind = _one_of("--kind", kind or str(header.get("CALKIND", "")), KINDS, path)
    section = section or str(header.get("SECTION", ""))
    if not section:
        raise ConfigError(f"{path}: give the section with --section; there are: {', '.join(camera.section_ids)}")
    size = camera.section(section).size
    band = (band or str(header.get("FILTER", ""))) if kind in FILTER_KINDS else ""
    if kind in FILTER_KINDS and not band:
        raise ConfigError(f"{path}: give the filter of the {kind} with --filter")
    light = ""
    if kind == "flat":
        light = _one_of("--type", flat_type or str(header.get("FLATTYPE", "externally_supplied")), FLAT_TYPES, path)
    chosen = _one_of("--as", calibrator_set or str(header.get("CALSET", "externally_supplied")), SETS, path)
    made_for = header.get("INSTRUME") if "CALKIND" in header else camera.name
    if made_for != camera.name:
        raise BadInput(path, "calibration frame", f"one of camera {camera.name}", f"one of {made_for}")
    if kind not in _TABLES and size is not None:
        read_calibration_frame(str(path), (size[1], size[0]), kind)
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    record = make_record("calibration", {"kind": kind, "flat_type": light, "filter": band, "section": section,
                                         "instrument": camera.name, "registered_file": digest}, [])
    quality = {name: float(header[card]) for name, (card, _) in QUALITY_CARDS.items() if card in header}
    return CalibratorFrame(kind, chosen, light, camera.name, section, band, str(path), digest, start_mjd, end_mjd,
                           record, quality if "CALKIND" in header else {})


def _header(path: Path) -> fits.Header:
    try:
        return fits.getheader(path)
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, "calibration frame", "a readable FITS file", err) from None


def _one_of(option: str, value: str, allowed: tuple[str, ...], path: Path) -> str:
    if value not in allowed:
        found = f"found '{value}'" if value else "the header does not say"
        raise ConfigError(f"{path}: {option}: expected one of {', '.join(allowed)}; {found}")
    return value
