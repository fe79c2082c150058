"""Catalogue folders: stars in nested HEALPix cells, one file each, with an index that says what is there.

    OUT/catalog.json            columns, units, order, epoch, counts; of every cell its rows, bytes and checksum
    OUT/cells/<pixel>.fits      the stars of a cell (`star_file`)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.io.star_file import join, read_star_file
from seechange_mpi.model.errors import BadInput

FORMAT = "seechange-mpi catalogue folder"
VERSION = 1
INDEX = "catalog.json"


@dataclass(slots=True)
class Cell:
    """Rows, bytes and sha256 of a cell's file."""

    rows: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class FolderIndex:
    """What a catalogue folder holds.

    Attributes
    ----------
    order : HEALPix order, nested.
    columns : name -> unit;  rows : all stars;  epoch : smallest and largest [yr].
    limits : magnitude limits it was built with (name, brightest, faintest), None = none.
    sources : names of the files it was built from;  cells : pixel -> Cell.
    """

    order: int
    columns: dict[str, str]
    rows: int
    epoch: tuple[float, float]
    limits: tuple[float | None, float | None]
    sources: list[str] = field(default_factory=list)
    cells: dict[int, Cell] = field(default_factory=dict)

    def text(self) -> str:
        """Return the index as JSON."""
        plain = asdict(self) | {"cells": {str(k): list(asdict(c).values()) for k, c in sorted(self.cells.items())}}
        return json.dumps({"format": FORMAT, "version": VERSION, "nested": True} | plain, indent=1)


def read_index(folder: Path) -> FolderIndex:
    """Return the index of a folder.

    Raises
    ------
    BadInput
        The folder is no catalogue, or its index is damaged.
    """
    path = folder / INDEX
    try:
        stat = path.stat()
    except OSError:
        raise BadInput(folder, "catalogue folder", f"a folder with {INDEX} (see 'seechange-mpi catalog build')",
                       "none" if folder.is_dir() else "no such folder") from None
    return _read_index(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_index(path: str, _size: int, _mtime: int) -> FolderIndex:
    try:
        raw = json.loads(Path(path).read_text())
        if raw["format"] != FORMAT or raw["version"] != VERSION:
            raise BadInput(path, "index of the catalogue folder", f"{FORMAT} version {VERSION}",
                           f"{raw['format']} version {raw['version']}")
        cells = {int(k): Cell(*v) for k, v in raw["cells"].items()}
        return FolderIndex(int(raw["order"]), dict(raw["columns"]), int(raw["rows"]), tuple(raw["epoch"]),
                           tuple(raw["limits"]), list(raw["sources"]), cells)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BadInput(path, "index of the catalogue folder", "a whole JSON file", err) from None


def cell_path(folder: Path, pixel: int) -> Path:
    """Return the file of a cell."""
    return folder / "cells" / f"{pixel}.fits"


def cells_in_cone(order: int, ra: float, dec: float, radius_deg: float) -> npt.NDArray[np.int64]:
    """Return the cells that a cone touches."""
    import hpgeom

    if radius_deg >= 180.0:
        return np.arange(12 * 4**order)
    return np.sort(hpgeom.query_circle(2**order, ra % 360.0, dec, max(radius_deg, 1e-6), inclusive=True, fact=4,
                                       nest=True))


def read_folder(folder: Path, ra: float, dec: float, radius_deg: float) -> CatalogTable:
    """Read the stars within a cone; only the cells that it touches are opened.

    Raises
    ------
    BadInput
        The folder is no catalogue, or a cell's file is missing or cut short.
    """
    index = read_index(folder)
    parts = []
    for pixel in cells_in_cone(index.order, ra, dec, radius_deg):
        cell = index.cells.get(int(pixel))
        if cell is None:
            continue
        path = cell_path(folder, int(pixel))
        size = path.stat().st_size if path.is_file() else None
        if size != cell.bytes:
            raise BadInput(path, f"cell {pixel} of the catalogue", f"a file of {cell.bytes} bytes (build the folder "
                                 "again)", "none" if size is None else f"{size} bytes")
        parts.append(read_star_file(path, (ra, dec, radius_deg))[0])
    out = join(parts, str(folder), index.rows) if parts else _empty(folder, index)
    out.centre_deg, out.radius_deg = (ra, dec), radius_deg
    return out


def _empty(folder: Path, index: FolderIndex) -> CatalogTable:
    from seechange_mpi.io.star_file import stars_from

    return stars_from({n: np.zeros(0, np.int64 if n == "id" else np.float64) for n in index.columns}, str(folder),
                      index.rows)


def damaged_cells(folder: Path) -> list[str]:
    """Return what is wrong with cells whose content is not what the index says; reads every file."""
    out = []
    for pixel, cell in read_index(folder).cells.items():
        path = cell_path(folder, pixel)
        if not path.is_file():
            out.append(f"{path}: missing")
            continue
        with path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != cell.sha256:
                out.append(f"{path}: its content is not what the index says")
    return out
