"""HDF5 habits: compression, checksums, tables with units, durable writing."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from seechange_mpi.io.digests import digest_of
from seechange_mpi.io.drafts import clean_leftovers, draft_of
from seechange_mpi.io.retrieval import bring_back
from seechange_mpi.model.errors import BadInput, TransientError
from seechange_mpi.model.tables import Column, dtype_of

LIBVER = ("earliest", "v110")
"""Readable by HDF5 1.10, which clusters still have."""
_SEARCHED_BYTES = 1 << 26
_ZSTD = dict(hdf5plugin.Zstd(clevel=3))


def write_plane(group: h5py.Group, name: str, data: np.ndarray, unit: str = "") -> None:
    """Write an image plane or stack: chunked, shuffled, zstd, checksummed. Empty arrays are written plainly."""
    if data.size == 0:
        dataset = group.create_dataset(name, data=data)
    else:
        tile = [min(n, 256) for n in data.shape[-2:]]
        chunks = tuple(([min(data.shape[0], 16)] if data.ndim == 3 else []) + tile)
        dataset = group.create_dataset(name, data=data, chunks=chunks, shuffle=True, fletcher32=True, **_ZSTD)
    if unit:
        dataset.attrs["unit"] = unit


def write_table(group: h5py.Group, name: str, table: np.ndarray, columns: tuple[Column, ...]) -> None:
    """Write a compound table; units and meanings of its columns become attributes."""
    if len(table):
        dataset = group.create_dataset(name, data=table, chunks=(min(len(table), 4096),), shuffle=True,
                                       fletcher32=True, **_ZSTD)
    else:
        dataset = group.create_dataset(name, shape=(0,), dtype=dtype_of(columns))
    for c in columns:
        if c.unit:
            dataset.attrs[f"unit:{c.name}"] = c.unit
        dataset.attrs[f"help:{c.name}"] = c.help


def read_table(dataset: h5py.Dataset, columns: tuple[Column, ...], path: str) -> np.ndarray:
    """Read a table written by `write_table`; columns that older files may lack are 0 then.

    Raises
    ------
    BadInput
        Its columns are not the expected ones.
    """
    expected = dtype_of(columns)
    stored = dataset.dtype.names or ()
    known = tuple(c for c in columns if c.name in stored or not c.optional)
    if len(known) < len(columns) and dataset.dtype == dtype_of(known):
        out = np.zeros(dataset.shape, expected)
        rows = dataset[...]
        for name in stored:
            out[name] = rows[name]
        return out
    if dataset.dtype != expected:
        lacking = ", ".join(n for n in expected.names or () if n not in stored)
        unknown = ", ".join(n for n in stored if n not in (expected.names or ()))
        raise BadInput(path, f"table {dataset.name}", f"the {len(columns)} columns that this program knows",
                       f"{len(stored)}: lacking are {lacking or 'none'}; unknown are {unknown or 'none'}; those in "
                       "common may be of other types")
    return np.asarray(dataset[...])


def set_attrs(group: h5py.Group | h5py.Dataset, values: dict[str, Any]) -> None:
    """Set attributes.

    What HDF5 text cannot hold is escaped: NUL bytes (they occur in messages about damaged headers) as ``\\x00``,
    undecodable bytes of file names as ``\\udcXX``.
    """
    for key, value in values.items():
        if isinstance(value, str):
            value = value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
        group.attrs[key] = value


def get_text(group: h5py.Group, key: str, default: str = "") -> str:
    """Return a text written by `set_attrs`."""
    return str(group.attrs[key]) if key in group.attrs else default


def check_format(f: h5py.File, path: str | Path, formats: Mapping[str, int]) -> None:
    """Refuse an open file that is of none of these formats, or of a later version of its format.

    Parameters
    ----------
    formats : name of the format -> newest version that is understood.

    Raises
    ------
    BadInput
        Names what was expected, and for a later version which program wrote it.
    """
    found = f.attrs.get("format", "no format attribute")
    if found not in formats:
        raise BadInput(path, "format", " or ".join(formats), found)
    if int(f.attrs.get("version", 1)) > formats[found]:
        by = f", written by version {f.attrs['code_version']}" if "code_version" in f.attrs else ""
        raise BadInput(path, "version of the format", f"at most {formats[found]}, which this program knows",
                       f"{f.attrs['version']}{by}: install the version of seechange-mpi that wrote it, or a later one")


def _has_broken_heap(path: str | Path) -> bool:
    """Whether a heap of texts has an entry of no length, as where blocks of the file were lost and read as zeros.

    HDF5 (2.0) never comes back from reading such a heap. Larger files than bundles usually are, are not searched.
    """
    found = os.stat(path)
    if not 0 < found.st_size <= _SEARCHED_BYTES:
        return False
    return _search_heaps(str(path), found.st_size, found.st_ino, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _search_heaps(path: str, size: int, _inode: int, _modified: int) -> bool:
    """Search a file once: a bundle is opened for every section of it."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(b"GCOL\x01")
        while at >= 0:
            end = at + int.from_bytes(data[at + 8 : at + 16], "little")
            k = at + 16
            while k + 16 <= min(end, size):
                is_free = data[k : k + 2] == b"\0\0"
                length = int.from_bytes(data[k + 8 : k + 16], "little")
                if is_free and length == 0:
                    return True
                k += length if is_free else 16 + (length + 7) // 8 * 8
            at = data.find(b"GCOL\x01", at + 4)
    return False


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """Open a file for reading. One that is gone is brought back from the archive where there is one.

    Raises
    ------
    BadInput
        It is missing, truncated, damaged or not HDF5; also when reading from it fails inside the block.
    TransientError
        It is in an archive that does not answer.
    """
    if not os.path.exists(path):
        bring_back(Path(path))
    try:
        if _has_broken_heap(path):
            raise OSError("texts are lost")
        with h5py.File(path, "r", locking=False) as f:
            yield f
    except FileNotFoundError:
        raise BadInput(path, "HDF5 file", "a file", "no such file") from None
    except (OSError, KeyError, RuntimeError) as err:
        raise BadInput(path, "HDF5 file", "a whole file", f"missing or damaged content: {err}") from None
    except (ValueError, TypeError, AttributeError) as err:
        # JSON or links that are garbled; the traceback stays, since a mistake in the reading code looks the same
        raise BadInput(path, "HDF5 file", "a whole file",
                       f"missing or damaged content: {type(err).__name__}: {err}") from err


@dataclass(slots=True)
class Draft:
    """A file under its temporary name.

    Attributes
    ----------
    sha256 : of its bytes, known when it is written.
    """

    path: Path
    sha256: str = ""


@contextmanager
def durable_h5(folder: Path, stem: str, *, in_memory: bool = True) -> Iterator[tuple[h5py.File, Draft]]:
    """Write an HDF5 file under a temporary name; the caller moves it into place with `publish`.

    The file is built in memory and then written as bytes: a write that fails inside HDF5 leaves objects
    that can be neither flushed nor closed, and ends the process with a segmentation fault. Those bytes are hashed
    before they are written; a file too large for memory is hashed once it is finished.

    Parameters
    ----------
    in_memory : False for files too large for that; check first with `require_space`.

    Raises
    ------
    TransientError
        The disk is full: names the folder, the needed and the free bytes. The temporary file is removed.
    """
    tmp = draft_of(folder / stem)
    draft = Draft(tmp)
    memory = {"driver": "core", "backing_store": False, "block_size": 1 << 24} if in_memory else {}
    needed = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean_leftovers(folder)
        with h5py.File(tmp, "w", libver=LIBVER, locking=False, **memory) as f:
            yield f, draft
            if in_memory:
                f.flush()
                content = f.id.get_file_image()
        if in_memory:
            needed = len(content)
            draft.sha256 = hashlib.sha256(content).hexdigest()
            tmp.write_bytes(content)
        _fsync(tmp)
        draft.sha256 = draft.sha256 or digest_of(tmp).sha256
    except BaseException as err:
        with suppress(OSError):
            tmp.unlink()
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(folder, stem, needed) from None
        raise


def _full(folder: Path, stem: str, needed: int) -> TransientError:
    free = shutil.disk_usage(folder).free
    return TransientError(f"{folder}: no space left while writing {stem}: {needed / 1e6:.1f} MB needed, "
                          f"{free / 1e6:.1f} MB free; make room and run again, nothing finished is lost")


def require_space(folder: Path, stem: str, needed: int) -> None:
    """Refuse to begin a file of `needed` bytes that does not fit into `folder`.

    Raises
    ------
    TransientError
        Names the folder, the needed and the free bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder, stem, needed)


def publish(draft: Draft, path: Path) -> None:
    """Move a finished file to its name and make the move durable."""
    draft.path.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
