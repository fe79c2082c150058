"""Our own files of stars, in catalogue folders and excerpts: FITS tables under our column names, sorted by declination,
so that a cone reads only the rows near it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog import ASTROMETRY, CatalogTable, inside_cone
from seechange_mpi.io.catalog_files import floats
from seechange_mpi.model.errors import BadInput, TransientError

F64 = npt.NDArray[np.float64]
_FIXED = ("ra", "dec", "pmra", "pmdec", "ref_epoch")
COLUMN_UNITS = {"ra": "deg", "dec": "deg", "pmra": "mas/yr", "pmdec": "mas/yr", "parallax": "mas", "ra_error": "mas",
                "dec_error": "mas", "pmra_error": "mas/yr", "pmdec_error": "mas/yr", "ref_epoch": "yr", "ruwe": "",
                "id": "", "is_star": "", "xgboost": ""}


def columns_of(stars: CatalogTable) -> dict[str, npt.NDArray[Any]]:
    """Return all columns by our names, magnitudes last."""
    ids = {} if stars.ids is None else {"id": stars.ids}
    return {name: getattr(stars, name) for name in _FIXED} | ids | stars.astrometry | stars.mags


def sorted_by_declination(stars: CatalogTable) -> CatalogTable:
    """Return the stars in the one order that depends on nothing but their positions."""
    return stars.chosen(np.lexsort((stars.ra, stars.dec)))


def content_digest(stars: CatalogTable) -> str:
    """Return sha256 (16 hex digits) over names and values of all columns, in the order of declination."""
    digest = hashlib.sha256()
    for name, values in sorted(columns_of(sorted_by_declination(stars)).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values, "<f8").tobytes())
    return digest.hexdigest()[:16]


def publish_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, sync it, and rename it.

    Raises
    ------
    TransientError
        It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        try:
            write(draft)
            with draft.open("rb") as f:
                os.fsync(f.fileno())
            draft.chmod(0o644)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as err:
        raise TransientError(f"{path}: cannot be written: {err.strerror or err}") from None


def write_star_file(path: Path, columns: Mapping[str, npt.NDArray[Any]], cards: Mapping[str, Any]) -> None:
    """Write columns as a FITS table, sorted by declination, each in its own type; durable and atomic.

    Raises
    ------
    TransientError
        It cannot be written.
    """
    content = star_file_bytes(columns, cards)
    publish_file(path, lambda draft: draft.write_bytes(content))


def star_file_bytes(columns: Mapping[str, npt.NDArray[Any]], cards: Mapping[str, Any]) -> bytes:
    """Return the content of a file of stars."""
    from astropy.io import fits

    order = np.lexsort((columns["ra"], columns["dec"]))
    kinds = {n: ">i8" if n == "id" else ">f8" if v.dtype.itemsize == 8 else ">f4" for n, v in columns.items()}
    rows = np.empty(len(order), list(kinds.items()))
    for name, values in columns.items():
        rows[name] = values[order]
    header = fits.Header([("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", rows.dtype.itemsize),
                          ("NAXIS2", len(rows)), ("PCOUNT", 0), ("GCOUNT", 1), ("TFIELDS", len(columns))])
    for k, name in enumerate(columns, 1):
        header[f"TTYPE{k}"] = name
        header[f"TFORM{k}"] = {">i8": "K", ">f8": "D", ">f4": "E"}[kinds[name]]
        if COLUMN_UNITS.get(name, "mag"):
            header[f"TUNIT{k}"] = COLUMN_UNITS.get(name, "mag")
    header["EXTNAME"] = "STARS"
    for key, value in cards.items():
        header[key] = value
    primary = fits.PrimaryHDU().header.tostring().encode()
    body = rows.tobytes()
    return bytes(primary + header.tostring().encode() + body + bytes(-len(body) % 2880))


def read_star_file(path: Path, cone: tuple[float, float, float] | None = None) -> tuple[CatalogTable, dict[str, Any]]:
    """Return the stars of a file (within a cone) and the cards of its header; only the rows near the cone are read.

    Raises
    ------
    BadInput
        The file is missing, cut short, or not ours.
    """
    from astropy.io import fits

    try:
        with warnings.catch_warnings(), fits.open(path, memmap=True) as hdus:
            warnings.simplefilter("error")
            table = hdus["STARS"]
            header, data = table.header, table.data
            rows = slice(0, len(data))
            dec = data["dec"]
            if cone is not None:
                rows = slice(*np.searchsorted(dec, [cone[1] - cone[2] - 1e-9, cone[1] + cone[2] + 1e-9]))
            columns: dict[str, npt.NDArray[Any]] = {
                name: data[name][rows].astype(np.int64) if name == "id" else floats(data[name][rows])
                for name in table.columns.names}
            cards = dict(header.items())
            total = len(data)
    except (OSError, KeyError, ValueError, TypeError, Warning) as err:
        raise BadInput(path, "file of stars", "a whole FITS table STARS", err) from None
    if not {"ra", "dec"} <= set(columns):
        raise BadInput(path, "file of stars", "columns ra and dec", ", ".join(columns))
    stars = stars_from(columns, str(path), total)
    if cone is not None:
        stars = stars.chosen(inside_cone(stars.ra, stars.dec, *cone))
        stars.centre_deg, stars.radius_deg = cone[:2], cone[2]
    return stars, cards


def stars_from(columns: Mapping[str, npt.NDArray[Any]], path: str, rows_in_file: int) -> CatalogTable:
    """Return a `CatalogTable` of columns under our names."""
    n = len(columns["ra"])
    return CatalogTable(
        columns["ra"], columns["dec"], np.nan_to_num(columns.get("pmra", np.zeros(n))),
        np.nan_to_num(columns.get("pmdec", np.zeros(n))),
        {k: v for k, v in columns.items() if k not in (*_FIXED, *ASTROMETRY, "id")},
        columns.get("ref_epoch", np.full(n, 2016.0)), path, rows_in_file, columns={k: k for k in columns},
        astrometry={k: v for k, v in columns.items() if k in ASTROMETRY}, ids=columns.get("id"))


def join(parts: list[CatalogTable], path: str, rows_in_file: int) -> CatalogTable:
    """Return the stars of several tables with the same columns as one."""
    columns = [columns_of(p) for p in parts]
    names = list(columns[0]) if columns else list(_FIXED)
    return stars_from({n: np.concatenate([c[n] for c in columns]) if columns else np.zeros(0) for n in names}, path,
                      rows_in_file)
