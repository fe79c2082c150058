"""Hashes of files, computed piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 20
"""Bytes held at once while a file is hashed, copied or sent."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What is known of the bytes of a file.

    Attributes
    ----------
    size : bytes;  sha256, md5 : hex; md5 is empty where nobody asked for it.
    """

    size: int
    sha256: str
    md5: str = ""


class HashingSink:
    """Takes the pieces of a file, hashes them, and passes them on.

    Parameters
    ----------
    out : where the pieces go; None = nowhere.
    md5 : compute that as well.
    """

    def __init__(self, out: BinaryIO | None = None, *, md5: bool = False) -> None:
        self._out, self._with_md5 = out, md5
        self._begin()

    def _begin(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if self._with_md5 else None
        self._size = 0

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        self._sha256.update(piece)
        if self._md5 is not None:
            self._md5.update(piece)
        self._size += len(piece)
        if self._out is not None:
            self._out.write(piece)

    def restart(self) -> None:
        """Forget everything: the sender begins again."""
        self._begin()
        if self._out is not None:
            self._out.seek(0)
            self._out.truncate()

    def digest(self) -> Digest:
        """What came in so far."""
        return Digest(self._size, self._sha256.hexdigest(), "" if self._md5 is None else self._md5.hexdigest())


def pieces(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    with path.open("rb") as f:
        while piece := f.read(PIECE):
            yield piece


def digest_of(path: Path, *, md5: bool = False) -> Digest:
    """Hash a file, reading it once."""
    sink = HashingSink(md5=md5)
    for piece in pieces(path):
        sink.write(piece)
    return sink.digest()
