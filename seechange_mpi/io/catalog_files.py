"""Open tables of stars of every kind (FITS, Parquet, ECSV, Gaia's CSV) column by column."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import BadInput

F64 = npt.NDArray[np.float64]


@dataclass(slots=True)
class OpenTable:
    """Names of the columns, one column by name, and the units that the file tells."""

    names: list[str]
    column: Callable[[str], Any]
    units: dict[str, str] = field(default_factory=dict)


def open_table(path: Path, position_names: Iterable[str] = ()) -> OpenTable:
    """Open a table of stars.

    Parameters
    ----------
    path : Path
        FITS (gzipped too; LDAC), Parquet, ECSV or CSV (gzipped too).
    position_names : iterable
        Lower-case names of a column by which the right table of a FITS file is known.

    Raises
    ------
    BadInput
        The file is missing, unreadable or of unknown kind.
    """
    if not path.is_file():
        raise BadInput(path, "catalogue", "a readable file", "none")
    start = _start(path)
    if start.startswith(b"SIMPLE"):
        return _open_fits(path, set(position_names))
    if start.startswith(b"PAR1"):
        return _open_parquet(path)
    # Gaia's own .csv.gz begin like ECSV; they are too large for that reader
    if path.name.lower().removesuffix(".gz").endswith(".csv"):
        return _open_csv(path)
    if start.startswith(b"# %ECSV"):
        return _open_ecsv(path)
    raise BadInput(path, "kind of catalogue file", "FITS, Parquet or ECSV (or .csv)",
                   f"a file that begins with {start[:9]!r}")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            start = f.read(200)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as f:
                start = f.read(200)
    except (OSError, EOFError) as err:
        raise BadInput(path, "catalogue", "a readable file", err) from None
    return start


def _open_fits(path: Path, known: set[str]) -> OpenTable:
    """First binary table that has positions (so LDAC files work); the last table if none does."""
    import warnings

    from astropy.io import fits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path, memmap=True) as hdus:
                tables = [h for h in hdus if isinstance(h, fits.BinTableHDU) and h.columns is not None]
                if not tables:
                    raise BadInput(path, "catalogue", "a FITS binary table", "none in the file")
                best = next((h for h in tables if known & {n.lower() for n in h.columns.names}), tables[-1])
                data = best.data
                units = {c.name: str(c.unit) for c in best.columns if c.unit}
                return OpenTable(list(best.columns.names), lambda name: np.asarray(data[name]), units)
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, "catalogue", "a readable FITS table", err) from None


def _open_parquet(path: Path) -> OpenTable:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise BadInput(path, "catalogue in Parquet", "the package pyarrow: pip install 'seechange-mpi[local]'",
                       "it is not installed") from None
    try:
        file = pq.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as err:
        raise BadInput(path, "catalogue", "a readable Parquet file", err) from None
    return OpenTable(list(file.schema_arrow.names), lambda name: file.read([name]).column(0).to_numpy())


def _open_ecsv(path: Path) -> OpenTable:
    from astropy.table import Table

    try:
        # Gaia writes its missing values as null
        table = Table.read(path, format="ascii.ecsv", fill_values=[("null", "0"), ("", "0")])
    except Exception as err:  # noqa: BLE001 - the reader raises many kinds; all mean an unreadable table
        raise BadInput(path, "catalogue", "a readable ECSV table", err) from None

    def column(name: str) -> Any:
        c = table[name]
        return np.ma.asarray(c) if hasattr(c, "mask") else np.asarray(c)

    return OpenTable(list(table.colnames), column, {n: str(table[n].unit) for n in table.colnames if table[n].unit})


def _open_csv(path: Path) -> OpenTable:
    from seechange_mpi.io.catalog_csv import read_csv

    columns = read_csv(path)
    return OpenTable(list(columns), columns.__getitem__)


def floats(values: Any) -> F64:
    """Float64 in native byte order, masked values NaN."""
    if np.ma.isMaskedArray(values):
        return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))
    return np.asarray(values).astype(np.float64)


def whole_numbers(values: Any, path: Path | str, column: str) -> npt.NDArray[np.int64]:
    """Int64; floats only where each is the one number it can stand for.

    Raises
    ------
    BadInput
        Values are missing, fractions, texts, or too large.
    """
    array = np.ma.getdata(values)
    if np.ma.is_masked(values):
        problem = "missing ones"
    elif array.dtype.kind not in "iuf":
        problem = "texts" if array.dtype.kind in "SUO" else f"values of type {array.dtype}"
    elif array.dtype.kind == "f" and not np.all(np.abs(array) < 2.0**53):
        problem = "missing ones, or floats too large to be exact (write them as integers, in FITS or Parquet)"
    elif array.dtype.kind == "f" and np.any(array != np.floor(array)):
        problem = "fractions"
    elif array.dtype.kind == "u" and np.any(array > np.iinfo(np.int64).max):
        problem = "larger ones"
    else:
        return np.asarray(array).astype(np.int64)
    raise BadInput(path, f"column '{column}'", "whole numbers of at most 64 bits with a sign", problem)
