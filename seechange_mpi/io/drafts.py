"""Names of half-written files, and the removal of those that killed processes have left behind."""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from seechange_mpi.model.processes import began, is_gone, namespace

_STALE_S = 6 * 3600.0
"""After this time a draft of another host is nobody's."""
_FORM = re.compile(r"\..+\.(?P<place>[^.]+)\.(?P<pid>\d+)(-(?P<began>\d+))?\.tmp")


def _place() -> str:
    """Where process numbers are valid: host and namespace."""
    return f"{socket.gethostname().split('.')[0]}-{namespace()}"


def draft_of(path: Path) -> Path:
    """Return the name under which this process writes a file before it is renamed to `path`."""
    return path.with_name(f".{path.name}.{_place()}.{os.getpid()}-{began(os.getpid())}.tmp")


def clean_leftovers(folder: Path) -> int:
    """Remove drafts in a folder whose writers are gone; return how many.

    A writer of this host is gone when its process is; of another host, when the draft has not changed for six hours.
    """
    removed = 0
    for path in folder.glob(".*.tmp"):
        found = _FORM.fullmatch(path.name)
        with suppress(OSError):
            if _gone(path, found):
                path.unlink()
                removed += 1
    return removed


def _gone(path: Path, found: re.Match[str] | None) -> bool:
    if found is not None and found["place"] == _place():
        return is_gone(int(found["pid"]), int(found["began"] or 0))
    return time.time() - path.stat().st_mtime > _STALE_S
