"""Build a catalogue folder from Gaia's downloads or other tables: in chunks, resumable, complete or not there at all.

Rows go to a spool per cell; a journal keeps the spools' sizes after every input file, so that a build that was
interrupted goes on with the next file. The folder appears under its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog import ALIASES, CatalogTable, table_to_catalog
from seechange_mpi.io.catalog_csv import read_csv_chunks
from seechange_mpi.io.catalog_files import OpenTable, open_table
from seechange_mpi.io.catalog_folder import INDEX, Cell, FolderIndex, cell_path
from seechange_mpi.io.star_file import COLUMN_UNITS, columns_of, star_file_bytes
from seechange_mpi.model.errors import BadInput, ConfigError

DEFAULT_ORDER = 5
_WIDE = ("ra", "dec")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a folder is built.

    Attributes
    ----------
    order : HEALPix order of the cells (5: 3.4 square degrees).
    min_mag, max_mag : stars outside are left out;  mag : name of the magnitude they apply to.
    spec : ``columns``, ``angle_unit``, ``units``, ``ref_epoch`` as in the configuration.
    chunk_rows : rows in memory at a time.
    keep : magnitudes to keep beside positions, motions and errors; empty = all that are understood.
    """

    order: int = DEFAULT_ORDER
    min_mag: float | None = None
    max_mag: float | None = None
    mag: str = "g"
    spec: Mapping[str, Any] = field(default_factory=dict)
    chunk_rows: int = 200_000
    keep: tuple[str, ...] = ()


def build_folder(out: Path, files: Sequence[Path], options: BuildOptions,
                 say: Callable[[str], None] | None = None) -> FolderIndex:
    """Build the folder `out` from tables of stars; an interrupted build goes on.

    Raises
    ------
    BadInput
        A file is unreadable or has other columns than the first.
    ConfigError
        `out` exists, there are no files, or an unfinished build was begun with other files or options.
    """
    tell = say or (lambda _text: None)
    if out.exists():
        raise ConfigError(f"{out} exists; choose another folder, or remove it first")
    if not files:
        raise ConfigError("no files to build from")
    work = out.with_name(out.name + ".building")
    journal = _Journal(work, _digest(files, options))
    for path in files:
        name = str(path.absolute())
        if name in journal.done:
            continue
        rows = _spool_file(path, options, journal)
        journal.finished(name)
        tell(f"{path.name}: {rows} stars")
    index = _finish(work, journal, options, [p.name for p in files])
    work.rename(out)
    return index


def _digest(files: Sequence[Path], options: BuildOptions) -> str:
    what = [[str(p.absolute()), p.stat().st_size if p.is_file() else -1] for p in files]
    text = json.dumps([what, options.order, options.min_mag, options.max_mag, options.mag, dict(options.spec),
                       options.keep], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class _Journal:
    """State of a build: finished files, columns, and how long every spool was then."""

    def __init__(self, work: Path, digest: str) -> None:
        self.work, self.path, self.spool = work, work / "journal.json", work / "spool"
        self.done: list[str] = []
        self.columns: list[str] = []
        self.epoch = [np.inf, -np.inf]
        self.sizes: dict[int, int] = {}
        self.digest = digest
        self.spool.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._resume()
        self._trim()

    def _resume(self) -> None:
        state = json.loads(self.path.read_text())
        if state["digest"] != self.digest:
            raise ConfigError(f"{self.work} is an unfinished build of other files or options; remove it to begin anew")
        self.done, self.columns, self.epoch = state["done"], state["columns"], state["epoch"]
        self.sizes = {int(k): v for k, v in state["sizes"].items()}

    def _trim(self) -> None:
        """Cut spools back to what the journal knows."""
        for path in self.spool.glob("*.bin"):
            size = self.sizes.get(int(path.stem), 0)
            if path.stat().st_size > size:
                os.truncate(path, size)

    def add(self, pixel: int, data: bytes) -> None:
        """Append rows to a cell's spool."""
        with (self.spool / f"{pixel}.bin").open("ab") as f:
            f.write(data)
        self.sizes[pixel] = self.sizes.get(pixel, 0) + len(data)

    def finished(self, name: str) -> None:
        """Remember that a file is spooled."""
        self.done.append(name)
        state = {"digest": self.digest, "done": self.done, "columns": self.columns, "epoch": self.epoch,
                 "sizes": self.sizes}
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self.path)


def _row_type(columns: Sequence[str]) -> np.dtype[Any]:
    return np.dtype([(c, "<i8" if c == "id" else "<f8" if c in _WIDE else "<f4") for c in columns])


def _spool_file(path: Path, options: BuildOptions, journal: _Journal) -> int:
    import hpgeom

    count = 0
    for chunk in _chunks(path, options):
        stars = _selected(chunk, options)
        columns = columns_of(stars)
        if not journal.columns:
            journal.columns = list(columns)
        missing = set(journal.columns) ^ set(columns)
        if missing:
            raise BadInput(path, "columns", f"those of the first file: {', '.join(journal.columns)}",
                           f"a difference in {', '.join(sorted(missing))}")
        if len(stars) == 0:
            continue
        count += len(stars)
        journal.epoch = [min(journal.epoch[0], float(stars.ref_epoch.min())),
                         max(journal.epoch[1], float(stars.ref_epoch.max()))]
        rows = np.empty(len(stars), _row_type(journal.columns))
        for name in journal.columns:
            rows[name] = columns[name]
        pixel = hpgeom.angle_to_pixel(2**options.order, stars.ra, stars.dec, nest=True)
        order = np.argsort(pixel, kind="stable")
        cells, starts = np.unique(pixel[order], return_index=True)
        for cell, part in zip(cells, np.split(rows[order], starts[1:]), strict=True):
            journal.add(int(cell), part.tobytes())
    return count


def _selected(stars: CatalogTable, options: BuildOptions) -> CatalogTable:
    keep: npt.NDArray[np.bool_] = np.isfinite(stars.ra) & np.isfinite(stars.dec)
    if options.min_mag is not None or options.max_mag is not None:
        mag = stars.magnitude(options.mag)
        with np.errstate(invalid="ignore"):
            if options.max_mag is not None:
                keep &= mag <= options.max_mag
            if options.min_mag is not None:
                keep &= mag >= options.min_mag
    out = stars.chosen(keep)
    if options.keep:
        for name in options.keep:
            out.magnitude(name)
        out.mags = {k: v for k, v in out.mags.items() if k in options.keep}
    return out


def _chunks(path: Path, options: BuildOptions) -> Iterator[CatalogTable]:
    """The stars of a file, at most `chunk_rows` at a time; an ECSV table comes whole."""
    everywhere = ((0.0, 0.0), 180.0)
    if path.name.lower().removesuffix(".gz").endswith(".csv"):
        wanted = set(dict(options.spec.get("columns") or {}).values()) | _aliases_in(path)
        for columns in read_csv_chunks(path, wanted, options.chunk_rows):
            yield table_to_catalog(OpenTable(list(columns), columns.__getitem__), path, options.spec, *everywhere)
        return
    table = open_table(path, ALIASES["ra"])
    given = set(dict(options.spec.get("columns") or {}).values())
    names = [n for n in table.names if n.lower() in _ALL_ALIASES or n in given]
    if path.suffix == ".parquet":
        yield from _parquet_chunks(path, names, options)
        return
    total = len(table.column(table.names[0]))
    for start in range(0, max(total, 1), options.chunk_rows):
        rows = slice(start, start + options.chunk_rows)
        part = {name: table.column(name)[rows] for name in names}
        yield table_to_catalog(OpenTable(names, part.__getitem__, table.units), path, options.spec, *everywhere)


def _parquet_chunks(path: Path, names: list[str], options: BuildOptions) -> Iterator[CatalogTable]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(options.chunk_rows, columns=names):
        part = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}
        yield table_to_catalog(OpenTable(names, part.__getitem__), path, options.spec, (0.0, 0.0), 180.0)


_ALL_ALIASES = {a for names in ALIASES.values() for a in names}


def _aliases_in(path: Path) -> set[str]:
    """Names of the file's columns that are understood without a mapping."""
    first = next(read_csv_chunks(path, None, 1))
    return {n for n in first if n.lower() in _ALL_ALIASES}


def _finish(work: Path, journal: _Journal, options: BuildOptions, names: list[str]) -> FolderIndex:
    """Spools to files; the index last."""
    kind = _row_type(journal.columns)
    index = FolderIndex(options.order, {c: COLUMN_UNITS.get(c, "mag") for c in journal.columns}, 0,
                        (journal.epoch[0], journal.epoch[1]), (options.min_mag, options.max_mag), names)
    for pixel in sorted(journal.sizes):
        rows = np.fromfile(journal.spool / f"{pixel}.bin", kind)
        path = cell_path(work, pixel)
        content = star_file_bytes({c: rows[c] for c in journal.columns},
                                  {"HPXORDER": options.order, "HPXPIXEL": pixel, "HPXNEST": True})
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        index.cells[pixel] = Cell(len(rows), len(content), hashlib.sha256(content).hexdigest())
        index.rows += len(rows)
    if index.rows == 0:
        raise BadInput(names[0], "stars for the catalogue", "some within the magnitude limits", "none")
    (work / INDEX).write_text(index.text())
    os.sync()
    shutil.rmtree(journal.spool)
    journal.path.unlink()
    return index
