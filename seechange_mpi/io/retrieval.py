"""The one place where readers of files learn that there is an archive: what opens a missing file asks here first."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Retriever(Protocol):
    """Brings files back that are not there any more."""

    def has(self, path: Path) -> bool:
        """Whether it could bring a file back."""
        ...

    def bring(self, path: Path) -> bool:
        """Bring a file back, proved whole; False when it does not have it."""
        ...


_retriever: Retriever | None = None


def set_retriever(retriever: Retriever | None) -> None:
    """Have missing files brought back by `retriever` in this process and those it forks; None = by nobody."""
    global _retriever
    _retriever = retriever


def is_active() -> bool:
    """Whether there is an archive behind missing files."""
    return _retriever is not None


def is_retrievable(path: Path) -> bool:
    """Whether a missing file could be brought back."""
    return _retriever is not None and _retriever.has(path)


def bring_back(path: Path) -> bool:
    """Bring a missing file back; False when nobody has it.

    Raises
    ------
    TransientError
        The archive does not answer, or there is no room.
    BadInput
        What the archive has is not what was written.
    """
    return _retriever is not None and _retriever.bring(path)


def ensure(path: Path) -> bool:
    """Return whether a file is there, now that it was brought back if need be."""
    return path.exists() or bring_back(path)
