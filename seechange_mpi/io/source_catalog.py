"""Catalogues of stars and galaxies that objects are compared with: whole numbers for names, a magnitude, star or not.

Files and folders are read by the star catalogues' own readers; these are the columns beside the position:

    id        int64, number of the source in its survey        (else lsid, ls_id, source_id)
    mag       magnitude                                        (else white_mag, phot_g_mean_mag)
    is_star   probability of being a star, or a flag
    xgboost   that probability, where is_star is a flag beside it
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog import ALIASES, CatalogTable, read_catalog, table_to_catalog
from seechange_mpi.io.catalog_files import OpenTable, floats, open_table
from seechange_mpi.model.errors import BadInput, ConfigError

SOURCE_COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "lsid", "ls_id", "source_id"),
    "mag": ("mag", "white_mag", "phot_g_mean_mag"),
    "is_star": ("is_star",),
    "xgboost": ("xgboost",),
}
"""Our name -> names that are understood (any case); the first that exists is taken."""
STAR_PROBABILITY = 0.5
"""From this probability on a source is a star."""


def source_columns(names: Iterable[str]) -> dict[str, str]:
    """Return our name -> column of a file, for those of `SOURCE_COLUMNS` that it has."""
    lower = {n.lower(): n for n in reversed(list(names))}
    found = {ours: next((lower[c] for c in known if c in lower), None) for ours, known in SOURCE_COLUMNS.items()}
    return {ours: column for ours, column in found.items() if column is not None}


def columns_of_file(path: Path) -> dict[str, str]:
    """Return `source_columns` of a table file.

    Raises
    ------
    BadInput
        It is unreadable.
    """
    return source_columns(open_table(path, ALIASES["ra"]).names)


class SourceCatalog:
    """A file (FITS, Parquet, ECSV, CSV), or a folder made by ``seechange-mpi catalog build --sources``.

    A file is held open, with its positions in memory; of a folder only the cells near a cone are read.

    Raises
    ------
    ConfigError
        Nothing lies at the path.
    BadInput
        The file is unreadable, or has no column of positions or ids.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self._table: OpenTable | None = None
        self._positions: dict[str, npt.NDArray[np.float64]] = {}
        if not self.path.exists():
            raise ConfigError(f"objects.crossmatch_catalog: {self.path}: no such file or folder")
        if not self.path.is_dir():
            self._table = open_table(self.path, ALIASES["ra"])
        self._columns = source_columns(self._table.names) if self._table else {}
        if self._table is not None and "id" not in self._columns:
            raise self._without_ids(self._table.names)

    def near(self, ra: float, dec: float, radius_deg: float) -> CatalogTable:
        """Return the sources within a cone [deg], with ids.

        Raises
        ------
        BadInput
            The catalogue is damaged or has no ids.
        """
        if self._table is None:
            found = read_catalog({"path": str(self.path)}, ra, dec, radius_deg)
        else:
            table = OpenTable(self._table.names, self._column, self._table.units)
            found = table_to_catalog(table, self.path, {"columns": self._columns}, (ra, dec), radius_deg)
        if found.ids is None:
            raise self._without_ids(found.columns)
        return found

    def _column(self, name: str) -> Any:
        """Return a column of the file; those of floats are converted once."""
        assert self._table is not None
        if name.lower() not in (*ALIASES["ra"], *ALIASES["dec"]):
            return self._table.column(name)
        if name not in self._positions:
            self._positions[name] = floats(self._table.column(name))
        return self._positions[name]

    def _without_ids(self, names: Iterable[str]) -> BadInput:
        return BadInput(self.path, "column of ids", f"one of {', '.join(SOURCE_COLUMNS['id'])} (a folder needs "
                                                    "'seechange-mpi catalog build --sources')", ", ".join(names))


def star_probability(sources: CatalogTable) -> npt.NDArray[np.float64]:
    """Return (n,) probabilities of being a star, a flag as 0 or 1, NaN where unknown."""
    for name in ("xgboost", "is_star"):
        if name in sources.mags:
            return sources.mags[name]
    return np.full(len(sources), np.nan)


def star_flag(sources: CatalogTable) -> npt.NDArray[np.float64]:
    """Return (n,) 1 for a star, 0 for none, NaN where unknown."""
    given = sources.mags.get("is_star")
    values = star_probability(sources) if given is None else given
    return np.where(np.isfinite(values), values >= STAR_PROBABILITY, np.nan)


def source_magnitude(sources: CatalogTable) -> npt.NDArray[np.float64]:
    """Return (n,) magnitudes, NaN where unknown."""
    return sources.mags.get("mag", np.full(len(sources), np.nan))
