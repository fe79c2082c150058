"""Raw exposures in: the header translated, one section's pixels cut out of the file.

Whatever is wrong is said once, with the file, what was expected and what was found.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from astropy.io import fits

from seechange_mpi.instruments.camera import Amplifier, Camera, HeaderRule, Section, parse_fits_section
from seechange_mpi.io.fits_files import check_whole, get_hdu, open_fits
from seechange_mpi.io.planes import PlaneReader, inverse_variance, translate_mask
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.exposure import ExposureInfo, identifier_of
from seechange_mpi.model.products import F32, CrosstalkTerm, RawAmplifier, RawSection

OVERRIDES: tuple[str, ...] = ("mjd", "exp_time", "filter", "ra", "dec", "airmass", "project", "target",
                              "gain", "read_noise", "saturation", "pixel_scale_arcsec", "sky_subtracted")
"""What a user may give in place of the header, in a sidecar file or on the command line."""
_REQUIRED = ("mjd", "exp_time", "filter")


def sidecar_of(path: str | Path) -> Path:
    """Path of the sidecar file with header values of an exposure: ``<file>.yaml``."""
    return Path(f"{path}.yaml")


def read_overrides(path: str | Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the header values given by the user: the sidecar's, with `given` on top.

    Raises
    ------
    BadInput
        An unknown name.
    """
    side = sidecar_of(path)
    out: dict[str, Any] = {}
    if side.is_file():
        try:
            loaded = yaml.safe_load(side.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as err:
            raise BadInput(side, "sidecar file", "YAML", " ".join(str(err).split())) from None
        if not isinstance(loaded, dict):
            raise BadInput(side, "sidecar file", "a mapping of header values", type(loaded).__name__)
        out.update(loaded)
    out.update(given or {})
    unknown = sorted(set(out) - set(OVERRIDES))
    if unknown:
        source = side if side.is_file() else path
        raise BadInput(source, "header values given", ", ".join(OVERRIDES), ", ".join(unknown))
    return out


def _convert(rule: HeaderRule, value: Any) -> Any:
    if rule.convert == "isot_to_mjd":
        from astropy.time import Time

        value = Time(str(value), format="isot", scale="utc").mjd
    elif rule.convert in ("sexagesimal_hours", "sexagesimal_degrees") and isinstance(value, str):
        parts = [float(p) for p in value.replace(":", " ").split()]
        sign = -1.0 if value.strip().startswith("-") else 1.0
        value = sign * sum(abs(p) / 60.0**k for k, p in enumerate(parts))
        value *= 15.0 if rule.convert == "sexagesimal_hours" else 1.0
    elif rule.convert == "first_word":
        value = str(value).split()[0] if str(value).split() else ""
    elif rule.convert == "str":
        value = str(value).strip()
    elif rule.convert == "float" or isinstance(value, int):
        value = float(value)
    if rule.mapping is not None:
        value = rule.mapping.get(str(value), value)
    if isinstance(value, float):
        value = value * rule.scale + rule.add
    return value


def _translate(path: str, header: fits.Header, camera: Camera, overrides: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, rule in camera.header.items():
        keywords = (rule.keyword,) if isinstance(rule.keyword, str) else rule.keyword or ()
        found = next((k for k in keywords if k in header and header[k] not in ("", None)), None)
        if name in overrides:
            continue
        if found is not None:
            try:
                out[name] = _convert(rule, header[found])
            except (ValueError, TypeError) as err:
                raise BadInput(path, f"header keyword {found}", f"a value for {name}",
                               f"{header[found]!r} ({err})") from None
        elif rule.constant is not None:
            out[name] = rule.constant
        elif name in _REQUIRED:
            raise BadInput(path, f"header value '{name}'", f"keyword {' or '.join(keywords)}",
                           f"none of them; give it with --param {name}=… or in {sidecar_of(path).name}")
    out.update({k: v for k, v in overrides.items() if k in camera.header or k in OVERRIDES[:8]})
    for name in _REQUIRED:
        if name not in out and not (name == "filter" and all(s.filter for s in camera.sections)):
            raise BadInput(path, f"header value '{name}'", f"a rule in camera {camera.name} or a value given",
                           f"neither; give it with --param {name}=… or in {sidecar_of(path).name}")
    return out


def read_exposure_info(
    path: str | Path, camera: Camera, overrides: Mapping[str, Any] | None = None
) -> ExposureInfo:
    """Translate the primary header of an exposure.

    Parameters
    ----------
    overrides : mapping, optional
        Values that replace the file's (`OVERRIDES`); a sidecar ``<file>.yaml`` is read as well.

    Raises
    ------
    BadInput
        The file is unreadable, or a value is missing or nonsense.
    """
    path = str(Path(path).absolute())
    given = read_overrides(path, overrides)
    with open_fits(path) as hdus:
        header = hdus[0].header
        values = _translate(path, header, camera, given)
        kept = {k: header[k] for k in header
                if k and k not in ("COMMENT", "HISTORY") and isinstance(header[k], str | int | float | bool)}
    try:
        mjd, exp_time = float(values["mjd"]), float(values["exp_time"])
    except (TypeError, ValueError):
        raise BadInput(path, "mjd and exposure time", "numbers", f"{values['mjd']!r}, {values['exp_time']!r}") from None
    if not (math.isfinite(mjd) and 0 < mjd < 200_000 and exp_time >= 0):
        raise BadInput(path, "mjd and exposure time", "0 < mjd < 200000, exposure time >= 0", f"{mjd}, {exp_time}")
    number: dict[str, float] = {}
    for name in ("ra", "dec", "airmass"):
        if values.get(name) is not None:
            try:
                number[name] = float(values[name])
            except (TypeError, ValueError):
                raise BadInput(path, f"header value '{name}'", "a number", repr(values[name])) from None
    return ExposureInfo(
        identifier=identifier_of(path), instrument=camera.name, path=path, mjd=mjd, exp_time_s=exp_time,
        filter=str(values.get("filter", "")), ra_deg=number.get("ra"), dec_deg=number.get("dec"),
        airmass=number.get("airmass"), project=str(values.get("project", "")), target=str(values.get("target", "")),
        header=kept, overrides=given)


def _number(value: float | str | None, header: fits.Header, default: float | None, override: Any,
            path: str, what: str) -> float:
    if override is not None:
        try:
            number = float(override)
        except (TypeError, ValueError):
            number = math.nan
        if not number > 0 and not (number == 0 and "read noise" in what):
            raise BadInput(path, what, "a positive number given by the user", repr(override))
        return number
    if isinstance(value, str):
        if value in header and isinstance(header[value], int | float) and float(header[value]) > 0:
            return float(header[value])
        if default is None:
            raise BadInput(path, what, f"a positive header keyword {value}",
                           f"{header.get(value, 'no such keyword')}; give it with --param or in a sidecar file")
        return default
    if value is not None:
        return float(value)
    if default is None:
        raise BadInput(path, what, "a number in the camera's YAML or given by the user", "none")
    return default


def _region(text: str, header: fits.Header, shape: tuple[int, int], path: str, what: str) -> tuple[slice, slice]:
    value = text if text.lstrip().startswith("[") else header.get(text)
    if value is None:
        raise BadInput(path, what, f"a header keyword {text}", "no such keyword")
    try:
        ys, xs = parse_fits_section(str(value))
    except ValueError as err:
        raise BadInput(path, what, "a FITS section", str(err)) from None
    if ys.stop > shape[0] or xs.stop > shape[1]:
        raise BadInput(path, what, f"an image of at least {xs.stop}×{ys.stop} pixels for section {value}",
                       f"{shape[1]}×{shape[0]} pixels")
    return ys, xs


def _read_amplifier(
    hdus: fits.HDUList, amp: Amplifier, section: Section, camera: Camera, exposure: ExposureInfo, ordered: bool
) -> RawAmplifier:
    """Read one amplifier; `ordered`: the order of readout matters, and it is an error if the header lacks it."""
    path, what = exposure.path, f"section {section.id}" + (f" amplifier {amp.name}" if amp.name else "")
    hdu = get_hdu(hdus, amp.hdu if amp.hdu is not None else section.hdu, path, what)
    check_whole(hdu, path, what)
    try:
        pixels = hdu.data
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, what, "readable pixels", f"{err}") from None
    if pixels is None or pixels.ndim != 2:
        raise BadInput(path, what, "a two-dimensional image", "none" if pixels is None else f"{pixels.ndim} axes")
    header = hdus[0].header + hdu.header if hdu is not hdus[0] else hdu.header
    shape = (pixels.shape[0], pixels.shape[1])
    ys, xs = (_region(amp.data_section, header, shape, path, what) if amp.data_section
              else (slice(0, shape[0]), slice(0, shape[1])))
    flips = tuple(axis for axis, flip in enumerate((amp.flip_y, amp.flip_x)) if flip)

    def oriented(region: tuple[slice, slice]) -> F32:
        return np.ascontiguousarray(np.flip(pixels[region], flips), dtype=np.float32)

    data = oriented((ys, xs))
    overscan, parallel = (oriented(_region(text, header, shape, path, what)) if text and not camera.reduced else None
                          for text in (amp.bias_section, amp.parallel_bias_section))
    given = exposure.overrides
    read_noise = _number(amp.read_noise, header, camera.read_noise, given.get("read_noise"), path, f"{what} read noise")
    saturation = _number(amp.saturation, header, camera.saturation or float("inf"), given.get("saturation"),
                         path, f"{what} saturation")
    gain = _number(amp.gain, header, camera.gain, given.get("gain"), path, f"{what} gain")
    x0, y0 = (xs.start, ys.start) if amp.place == "data_section" else (amp.x0, amp.y0)
    right, top = _read_backwards(amp, header, path, what) if ordered else (False, False)
    return RawAmplifier(data, overscan, x0, y0, gain, read_noise, saturation, amp.name, parallel, right != amp.flip_x,
                        top != amp.flip_y, 0 if amp.bleed_axis == "y" else 1, amp.linearity)


def _read_backwards(amp: Amplifier, header: fits.Header, path: str, what: str) -> tuple[bool, bool]:
    """Whether an amplifier is read from right to left, and from top to bottom, in the orientation of the file."""
    if amp.read_order is None:
        return False, False
    text = amp.read_order if amp.read_order.lstrip().startswith("[") else header.get(amp.read_order)
    limits = re.findall(r"\d+", str(text or ""))
    if len(limits) != 4:
        raise BadInput(path, f"{what} read_order", "a section [x1:x2,y1:y2] or a header keyword that holds one",
                       repr(text))
    x1, x2, y1, y2 = (int(v) for v in limits)
    return x2 < x1, y2 < y1


def read_section(exposure: ExposureInfo, camera: Camera, section_id: str,
                 crosstalk: list[CrosstalkTerm] | None = None) -> RawSection:
    """Read one section: amplifiers oriented, nothing corrected yet.

    Parameters
    ----------
    crosstalk : list, optional
        Terms with victims in this section; the amplifiers of other sections that they name are read as well, once.

    Raises
    ------
    BadInput
        HDU, keyword or pixels are missing, shapes do not fit, or no pixel is finite.
    """
    section = camera.section(section_id)
    path = exposure.path
    with open_fits(path) as hdus:
        amps = [_read_amplifier(hdus, a, section, camera, exposure, bool(crosstalk)) for a in section.amplifiers]
        origin = (0, 0)
        if section.amplifiers[0].place == "data_section":
            origin = min(a.x0 for a in amps), min(a.y0 for a in amps)
            for a in amps:
                a.x0, a.y0 = a.x0 - origin[0], a.y0 - origin[1]
        ny = max(a.y0 + a.data.shape[0] for a in amps)
        nx = max(a.x0 + a.data.shape[1] for a in amps)
        if section.size is not None and (nx, ny) != tuple(section.size):
            raise BadInput(path, f"section {section_id}", f"{section.size[0]}×{section.size[1]} pixels", f"{nx}×{ny}")
        if not any(np.isfinite(a.data).any() for a in amps):
            raise BadInput(path, f"section {section_id}", "an image", "no finite pixel")
        first = section.amplifiers[0]
        hdu = get_hdu(hdus, first.hdu if first.hdu is not None else section.hdu, path, f"section {section_id}")
        wcs_text = section_wcs(hdu.header, section, camera, exposure, (ny, nx), origin)
        sources = _read_sources(hdus, camera, exposure, section_id, crosstalk or [])
        plane = PlaneReader(hdus, path, first.hdu if first.hdu is not None else section.hdu, (ny, nx))
        weight = plane.read(camera.weight_hdu, camera.weight_file, "weight")
        mask = plane.read(camera.mask_hdu, camera.mask_file, "mask")
    sky_subtracted = bool(exposure.overrides.get("sky_subtracted", camera.sky_subtracted))
    meaning = camera.mask_meaning
    return RawSection(
        section_id, section.filter or exposure.filter, (ny, nx), amps, wcs_text, camera.reduced,
        None if weight is None else inverse_variance(weight, camera.weight_type),
        None if mask is None or meaning else mask != 0, sky_subtracted,
        translate_mask(mask, camera.mask_kind, meaning) if mask is not None and meaning else None, crosstalk, sources)


def _read_sources(hdus: fits.HDUList, camera: Camera, exposure: ExposureInfo, section_id: str,
                  terms: list[CrosstalkTerm]) -> dict[tuple[str, str], RawAmplifier]:
    """Read the amplifiers of other sections that crosstalk comes from; an HDU's pixels are read once."""
    out: dict[tuple[str, str], RawAmplifier] = {}
    for name in sorted({(t.section, t.source) for t in terms if t.section != section_id}):
        source = camera.section(name[0])
        amp = next(a for a in source.amplifiers if a.name == name[1])
        out[name] = _read_amplifier(hdus, amp, source, camera, exposure, True)
    return out


_WCS_CARD = re.compile(r"(WCSAXES|CTYPE[12]|CRVAL[12]|CRPIX[12]|CUNIT[12]|CDELT[12]|CROTA[12]|CD[12]_[12]|PC[12]_[12]"
                       r"|PV[12]_\d+|(A|B|AP|BP)_(ORDER|\d_\d)|RADESYS|RADECSYS|EQUINOX|LONPOLE|LATPOLE)$")


def section_wcs(
    header: fits.Header, section: Section, camera: Camera, exposure: ExposureInfo, shape: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
) -> str:
    """Return the approximate WCS of the trimmed section as header text.

    The HDU's own celestial WCS when it has one (for sections whose pixels are the HDU's), else a TAN
    projection from the pointing, the section's offset and the pixel scale; "" when there is neither.

    Parameters
    ----------
    origin : (x, y) of the section's first pixel in the HDU, for amplifiers placed by their data sections.
    """
    own = len(section.amplifiers) == 1 or section.amplifiers[0].place == "data_section"
    if own and "CTYPE1" in header and "CRVAL1" in header:
        from astropy.wcs import WCS

        # the cards as they are: astropy would write a TPV system without its distortion
        cards = fits.Header([c for c in header.cards if _WCS_CARD.match(c.keyword)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            usable = WCS(cards).has_celestial
        if usable:
            amp = section.amplifiers[0]
            x, y = origin
            if section.header_wcs == "section":
                x, y = 0, 0
            elif amp.place == "given" and amp.data_section and amp.data_section.startswith("["):
                ys, xs = parse_fits_section(amp.data_section)
                x, y = xs.start, ys.start
            cards["CRPIX1"], cards["CRPIX2"] = cards.get("CRPIX1", 0.0) - x, cards.get("CRPIX2", 0.0) - y
            return str(cards.tostring())
    if exposure.ra_deg is None or exposure.dec_deg is None:
        return ""
    return str(tan_header(exposure.ra_deg, exposure.dec_deg, section, camera.pixel_scale_arcsec, shape).tostring())


def tan_header(ra_deg: float, dec_deg: float, section: Section, scale_arcsec: float,
               shape: tuple[int, int]) -> fits.Header:
    """Return a TAN header whose tangent point is the pointing."""
    east, north = section.offset_arcsec
    angle = math.radians(section.rotation_deg)
    sign = -1.0 if section.east_left else 1.0
    s = scale_arcsec / 3600.0
    cd = np.array([[sign * s * math.cos(angle), s * math.sin(angle)],
                   [-sign * s * math.sin(angle), s * math.cos(angle)]])
    centre = np.array([(shape[1] + 1) / 2, (shape[0] + 1) / 2])
    crpix = centre - np.linalg.solve(cd, np.array([east, north]) / 3600.0)
    header = fits.Header()
    for key, value in (("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRVAL1", ra_deg), ("CRVAL2", dec_deg),
                       ("CRPIX1", crpix[0]), ("CRPIX2", crpix[1]), ("CD1_1", cd[0, 0]), ("CD1_2", cd[0, 1]),
                       ("CD2_1", cd[1, 0]), ("CD2_2", cd[1, 1]), ("CUNIT1", "deg"), ("CUNIT2", "deg"),
                       ("RADESYS", "ICRS")):
        header[key] = value
    return header


def section_footprints(exposure: ExposureInfo, camera: Camera) -> dict[str, list[tuple[float, float]]]:
    """Return section id -> approximate corners (ra, dec) [deg]; sections without a position are left out.

    Raises
    ------
    BadInput
        The file is unreadable.
    """
    from astropy.wcs import WCS

    out: dict[str, list[tuple[float, float]]] = {}
    with open_fits(exposure.path) as hdus:
        for section_id in camera.section_ids_at(exposure.mjd):
            section = camera.section(section_id)
            first = section.amplifiers[0]
            try:
                hdu = get_hdu(hdus, first.hdu if first.hdu is not None else section.hdu, exposure.path, section_id)
            except BadInput:
                continue
            size = section.size or (int(hdu.header.get("NAXIS1", 0)), int(hdu.header.get("NAXIS2", 0)))
            text = section_wcs(hdu.header, section, camera, exposure, (size[1], size[0]))
            if not text or 0 in size:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                corners = WCS(fits.Header.fromstring(text)).calc_footprint(axes=size)
            out[section_id] = [(float(ra) % 360.0, float(dec)) for ra, dec in corners]
    return out
