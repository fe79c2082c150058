"""Read lists of sources without images: FITS tables and SExtractor's LDAC files, with the WCS of their header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog_files import floats
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.exposure import identifier_of
from seechange_mpi.model.products import Image, SourceList, Table
from seechange_mpi.model.tables import N_APERTURES, SOURCES, empty_table

F64 = npt.NDArray[np.float64]
X_NAMES = ("xwin_image", "x_image", "xpsf_image", "x", "xcentroid", "x_pix", "xcen")
Y_NAMES = ("ywin_image", "y_image", "ypsf_image", "y", "ycentroid", "y_pix", "ycen")
_VARIANCES = ("errx2win_image", "errx2_image"), ("erry2win_image", "erry2_image")
_ERRORS = ("x_err", "xerr", "errawin_image", "erra_image"), ("y_err", "yerr", "errbwin_image", "errb_image")
_FLUX = ("flux_psf", "flux_auto", "flux", "flux_iso")
_MAG = ("mag_psf", "mag_auto", "mag")
_WCS_CARD = re.compile(r"(CTYPE[12]|CRVAL[12]|CRPIX[12]|CUNIT[12]|CDELT[12]|CROTA[12]|CD[12]_[12]|PC[12]_[12]"
                       r"|PV[12]_\d+|(A|B|AP|BP)_(ORDER|\d_\d)|RADESYS|RADECSYS|EQUINOX|LONPOLE|LATPOLE)$")


@dataclass(frozen=True, slots=True)
class ListSettings:
    """What a file does not tell: size (nx, ny) [pix], mjd, whether its first pixel is 0 (default: 1 for columns of
    SExtractor's, named ``…_IMAGE``, else 0)."""

    size: tuple[int, int] | None = None
    mjd: float | None = None
    origin: int | None = None


def count_lists(path: Path) -> int:
    """Return how many tables of sources a file holds (an LDAC file of a mosaic has one for each CCD); at least 1."""
    from astropy.io import fits

    try:
        with fits.open(path) as hdus:
            tables = [{n.lower() for n in h.columns.names} for h in hdus if isinstance(h, fits.BinTableHDU)]
            return max(1, sum(bool(names & set(X_NAMES)) for names in tables))
    except (OSError, ValueError, TypeError):
        return 1


def read_source_list(path: Path, settings: ListSettings | None = None, index: int = 0) -> tuple[Image, SourceList]:
    """Return a section without pixels and its sources; `index` counts the tables of sources in the file.

    The sources' order of brightness comes from their flux or magnitude, else from their errors.

    Raises
    ------
    BadInput
        Not a readable table of positions; no WCS, no date, or no size where it is needed.
    """
    given = settings or ListSettings()
    header, data, names = _read(path, index)
    x, y, first = _positions(path, data, names, given.origin)
    if len(x) == 0:
        raise BadInput(path, "source list", "at least one source", "none")
    shape = _shape(header, given, x, y)
    wcs = _wcs_text(path, header, first)
    mjd = given.mjd if given.mjd is not None else _mjd(path, header)
    none = np.broadcast_to(np.float32(0), shape)
    image = Image(none, none, np.broadcast_to(np.uint16(0), shape), 1.0, 1.0, np.inf, identifier_of(path),
                  str(header.get("FILTER", "")), mjd, float(header.get("EXPTIME", 0.0) or 0.0), wcs)
    return image, SourceList(_table(data, names, x, y), tuple(float(k + 1) for k in range(N_APERTURES)))


def _read(path: Path, index: int) -> tuple[Any, Any, dict[str, str]]:
    """Header with the WCS, the table, and its columns by lower-case name."""
    import warnings

    from astropy.io import fits

    if not path.is_file():
        raise BadInput(path, "source list", "a readable file", "none")
    try:
        with warnings.catch_warnings(), fits.open(path) as hdus:
            warnings.simplefilter("ignore")
            header = hdus[0].header.copy()
            seen = 0
            for hdu in hdus[1:]:
                if not isinstance(hdu, fits.BinTableHDU):
                    continue
                names = {n.lower(): n for n in hdu.columns.names}
                if list(names) == ["field header card"]:
                    cards = np.asarray(hdu.data[0][0]).ravel()
                    text = "".join(c.decode() if isinstance(c, bytes) else str(c) for c in cards)
                    if cards.size > 1:
                        text = "".join((c.decode() if isinstance(c, bytes) else str(c)).ljust(80) for c in cards)
                    header = fits.Header.fromstring(text)
                elif set(names) & set(X_NAMES):
                    seen += 1
                    if seen <= index:
                        continue
                    if "CRVAL1" in hdu.header:
                        header.extend(hdu.header, update=True)
                    return header, np.array(hdu.data), names
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, "source list", "a readable FITS table", err) from None
    raise BadInput(path, "source list", f"a table with a column {' or '.join(X_NAMES[:4])}", "none")


def _positions(path: Path, data: Any, names: Mapping[str, str], origin: int | None) -> tuple[F64, F64, int]:
    name_x, name_y = (next((names[k] for k in keys if k in names), None) for keys in (X_NAMES, Y_NAMES))
    if name_x is None or name_y is None:
        raise BadInput(path, "source list", "columns of x and y", ", ".join(names.values()))
    first = origin if origin is not None else int(name_x.lower().endswith("_image"))
    return floats(data[name_x]) - first, floats(data[name_y]) - first, first


def _shape(header: Any, given: ListSettings, x: F64, y: F64) -> tuple[int, int]:
    if given.size is not None:
        return given.size[1], given.size[0]
    for kx, ky in (("IMAGEW", "IMAGEH"), ("ZNAXIS1", "ZNAXIS2"), ("NAXIS1", "NAXIS2")):
        nx, ny = int(header.get(kx, 0) or 0), int(header.get(ky, 0) or 0)
        if nx > 1 and ny > 1:
            return ny, nx
    return int(np.ceil(np.nanmax(y))) + 1, int(np.ceil(np.nanmax(x))) + 1


def _wcs_text(path: Path, header: Any, first: int) -> str:
    """The WCS cards; a SIP type without coefficients is a plain projection."""
    from astropy.io import fits

    cards = fits.Header([c for c in header.cards if _WCS_CARD.match(c.keyword)])
    if "CRVAL1" not in cards:
        raise BadInput(path, "header of the source list", "a WCS (CTYPE1, CRVAL1 …)", "none")
    for key in ("CTYPE1", "CTYPE2"):
        if "A_ORDER" not in cards and str(cards.get(key, "")).endswith("-SIP"):
            cards[key] = str(cards[key]).removesuffix("-SIP")
    text: str = cards.tostring(padding=False)
    return text


def _mjd(path: Path, header: Any) -> float:
    for key in ("MJD-OBS", "MJD", "MJD-STR"):
        if isinstance(header.get(key), int | float):
            return float(header[key])
    date = str(header.get("DATE-OBS", ""))
    if date:
        from astropy.time import Time

        try:
            return float(Time(date, scale="utc").mjd)
        except ValueError:
            pass
    raise BadInput(path, "date of the source list", "MJD-OBS, MJD or DATE-OBS in the header, or --mjd", "none")


def _table(data: Any, names: Mapping[str, str], x: F64, y: F64) -> Table:
    def column(keys: tuple[str, ...]) -> F64 | None:
        name = next((names[k] for k in keys if k in names), None)
        return None if name is None else floats(data[name])

    t = empty_table(SOURCES, len(x))
    t["x"], t["y"] = x, y
    for axis, variances, errors in zip(("x_err", "y_err"), _VARIANCES, _ERRORS, strict=True):
        squared, plain = column(variances), column(errors)
        t[axis] = np.sqrt(squared) if squared is not None else plain if plain is not None else np.nan
    flux, mag = column(_FLUX), column(_MAG)
    if flux is None:
        error = np.hypot(t["x_err"], t["y_err"]).astype(float)
        flux = 10 ** (-0.4 * (mag - 25.0)) if mag is not None else np.where(error > 0, 1.0 / error, 1.0)
    t["flux_psf"] = np.where(np.isfinite(flux), flux, 0.0)
    flux_err = column(("flux_psf_err", "fluxerr_psf", "fluxerr_auto", "flux_err"))
    t["flux_psf_err"] = flux_err if flux_err is not None else t["flux_psf"] / 10.0
    star, flags = column(("class_star",)), column(("flags",))
    t["is_star"] = star > 0.5 if star is not None else True
    t["flags"] = flags.astype(int) if flags is not None else 0
    return t
