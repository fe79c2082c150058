"""Whether a process that left something behind is still there. Numbers of processes are used again, within minutes on a
busy machine: a process is its number and the moment it began."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def namespace() -> int:
    """Where process numbers are valid on this host."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def began(pid: int) -> int:
    """When a process began, in ticks since this host was booted; 0 if that is not known."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_gone(pid: int, began_at: int = 0) -> bool:
    """Whether a process of this host and namespace has certainly ended.

    Parameters
    ----------
    began_at : what `began` said of it when it lived; 0: not known.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    fields = _stat(pid)
    if not fields:
        return False
    return fields[0] == "Z" or began_at not in (0, int(fields[19]))


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
