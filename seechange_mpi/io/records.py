"""Records of content: ``NAME.sha256`` beside a bundle names the sha256 of the bundle and of its shards.

They are written with the files, from hashes computed while those were written, in the form of ``sha256sum``:
``sha256sum -c *.sha256`` proves a folder without this package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from seechange_mpi.io.digests import digest_of
from seechange_mpi.io.drafts import draft_of
from seechange_mpi.model.errors import BadInput

SUFFIX = ".sha256"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def record_of(path: Path) -> Path:
    """Path of the record of a bundle or of a single file."""
    return path.with_suffix(SUFFIX) if path.suffix == ".h5" else path.with_name(path.name + SUFFIX)


def write_record(path: Path, hashes: Mapping[str, str]) -> None:
    """Write a record; `hashes` are by path relative to its folder.

    A disk without room for it is no failure: hashes without a record are computed again when they are needed.
    """
    draft = draft_of(path)
    try:
        draft.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())), encoding="utf-8")
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()


def read_record(path: Path) -> dict[str, str]:
    """Return path relative to the record's folder -> sha256.

    Raises
    ------
    BadInput
        It is missing, or not a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise BadInput(path, "record of hashes", "a readable file", err) from None
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or not all(found):
        raise BadInput(path, "record of hashes", "lines of sha256sum", (lines or ["nothing"])[0][:80])
    return {m[2]: m[1] for m in found if m}


def _records_for(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield records that may name a file, with its name in them, the newest first."""
    found = []
    for folder in (path.parent, path.parent.parent):
        found += [(r.stat().st_mtime_ns, r, os.path.relpath(path, folder)) for r in folder.glob(f"*{SUFFIX}")]
    yield from ((record, name) for _, record, name in sorted(found, reverse=True))


def recorded_hashes(path: Path) -> list[str]:
    """Return what the records beside a file, or beside its folder, say of it, the newest first."""
    out: list[str] = []
    for record, name in _records_for(path):
        try:
            digest = read_record(record).get(name)
        except BadInput:
            continue
        if digest is not None and digest not in out:
            out.append(digest)
    return out


def known_hash(path: Path) -> str:
    """Return the sha256 of a file from the newest record that names it, else from its bytes.

    A record older than the file does not count.
    """
    written = path.stat().st_mtime_ns if path.exists() else None
    for record, name in _records_for(path):
        if written is not None and record.stat().st_mtime_ns < written:
            break
        try:
            digest = read_record(record).get(name)
        except BadInput:
            continue
        if digest is not None:
            return digest
    return digest_of(path).sha256
