"""The log of a run: one file of JSON lines per rank, read back merged by time.

Imports the standard library only: it is among the first things a worker loads.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["start", "end", "claim", "prepared", "section_begin", "step_begin", "step_end", "section_end", "bundle",
               "commit", "match", "release", "give_back", "drain", "warning", "lost", "heartbeat_lost"]
Level = Literal["info", "warning", "error"]
Record = dict[str, Any]
"""One line: ``t`` [s since 1970], ``rank``, ``host``, ``pid``, ``kind``, and what is not empty of ``level`` (info is
left out), ``exposure``, ``section``, ``step``, ``attempt`` and the figures of its kind."""

KINDS: dict[Kind, str] = {
    "start": "a rank begins; figures: ranks, version",
    "end": "a rank ends in order; figures: exit_code, or the signal that ended it; a rank without this line was killed",
    "claim": "an exposure was claimed; figures: seconds",
    "prepared": "what an exposure needs was found; figures: seconds it took, sections, reused",
    "section_begin": "a section begins on this rank",
    "step_begin": "a step of it begins",
    "step_end": "a step ended; figures: status, wall_s, cpu_s, rss_mb, gpu_mb, read_mb, written_mb",
    "section_end": "a section ended; figures: status, seconds, error",
    "bundle": "the bundle of an exposure was written; figures: seconds, bundle",
    "commit": "an exposure was committed; figures: seconds, bundle",
    "match": "the objects of a committed exposure were looked up in a catalogue; figures: seconds, bundle",
    "release": "a claim was released; figures: state",
    "give_back": "a claim was given back; figures: message",
    "drain": "nothing new is begun any more; figures: message",
    "warning": "what an operator should read; figures: message",
    "lost": "a rank or a compute process was lost; figures: lost_rank, message",
    "heartbeat_lost": "a claim was taken over by another job",
}
"""What each kind of line means. ``seconds`` is the duration of what has just ended."""
assert tuple(KINDS) == get_args(Kind)

LEVELS: tuple[Level, ...] = get_args(Level)
_LONGEST = 4000
_BLOCK = 1 << 18
_RUN = re.compile(r"\d{8}T\d{6}-.+")
_RANK_FILE = re.compile(r"rank-(\d+)\.jsonl")


def _plain(value: Any) -> Any:
    """Return a figure as JSON can hold it; None drops it."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value[:_LONGEST]
    if hasattr(value, "__float__"):
        number = float(value)
        return round(number, 6) if math.isfinite(number) else None
    return value


class RunLog:
    """Writes the lines of one rank; threads may share it. Nothing it meets raises.

    Parameters
    ----------
    folder : Path or None
        Folder of the run, made if need be; None: every call does nothing.
    rank : int

    Attributes
    ----------
    lost : int
        Lines that could not be written; the next one that can tells how many as ``lost_lines``.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.path = folder / f"rank-{rank:04d}.jsonl" if folder is not None else None
        self.lost = 0
        self._untold = 0
        self._fd = -1
        self._torn = False
        self._fixed = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        if folder is not None:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)

    def event(self, kind: Kind, *, level: Level = "info", exposure: str = "", section: str = "", step: str = "",
              attempt: int = 0, **figures: Any) -> None:
        """Write one line.

        Parameters
        ----------
        figures : anything JSON can hold; None, empty and not finite values are left out.
        """
        if self.path is None:
            return
        line: Record = {"t": round(time.time(), 6), **self._fixed, "kind": kind}
        words = {"level": "" if level == "info" else level, "exposure": exposure, "section": section, "step": step}
        line.update((k, v) for k, v in words.items() if v)
        if attempt:
            line["attempt"] = attempt
        try:
            for key, value in figures.items():
                clean = _plain(value)
                if key not in line and clean is not None and clean != "" and clean != [] and clean != {}:
                    line[key] = clean
            if self._untold:
                line["lost_lines"] = self._untold
            text = json.dumps(line, default=str, separators=(",", ":"), ensure_ascii=False)
            self._write(text.encode(errors="backslashreplace") + b"\n")
            self._untold = 0
        except (OSError, ValueError, TypeError):
            self.lost += 1
            self._untold += 1

    def _write(self, line: bytes) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self.close()
        if self._fd < 0:
            assert self.path is not None
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._torn = not _ends_whole(self.path)
        if self._torn:
            line = b"\n" + line
        written = os.write(self._fd, line)
        # a disk that fills up takes part of a line
        self._torn = written < len(line)
        if self._torn:
            raise OSError("disk full")

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as f:
        if f.seek(0, os.SEEK_END) == 0:
            return True
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"


def runs_folder(root: Path) -> Path:
    """Return the folder of all runs."""
    return root / "runs"


def run_folder(root: Path, job_id: str | None = None, now: datetime | None = None) -> Path:
    """Return the folder of a run that begins now: ``<root>/runs/<YYYYmmddTHHMMSS>-<job or process id>`` (UTC).

    It is not made here, and no run has it yet.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    name = f"{moment:%Y%m%dT%H%M%S}-" + (re.sub(r"[^\w.+-]", "_", job_id) if job_id else str(os.getpid()))
    folder = runs_folder(root) / name
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{name}.{number}")
    return folder


def latest_run(root: Path) -> Path | None:
    """Return the folder of the run that began last; None if there is none."""
    runs: list[tuple[str, float, Path]] = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(runs_folder(root)):
            if _RUN.fullmatch(entry.name) and entry.is_dir():
                runs.append((entry.name[:15], entry.stat().st_mtime, Path(entry.path)))
    return max(runs)[2] if runs else None


def rank_files(folder: Path) -> dict[int, Path]:
    """Return rank -> its file."""
    found = ((m, path) for path in folder.iterdir() if (m := _RANK_FILE.fullmatch(path.name)))
    return dict(sorted((int(m[1]), path) for m, path in found))


class Tail:
    """Reads a growing file of lines, without holding it open.

    Attributes
    ----------
    rest : bytes
        The beginning of a line that has no end yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rest = b""
        self._offset = 0

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines that have been added since the last call."""
        while True:
            try:
                with self.path.open("rb") as f:
                    f.seek(self._offset)
                    block = f.read(_BLOCK)
            except FileNotFoundError:
                return
            if not block:
                return
            self._offset += len(block)
            *whole, self.rest = (self.rest + block).split(b"\n")
            yield from (line for line in whole if line.strip())


def parse_line(line: bytes, path: Path, previous: Record | None = None) -> Record:
    """Return the record of a line; a damaged one becomes a warning at the time of the previous one."""
    try:
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("t"), int | float) and "kind" in record:
            return record
    except ValueError:
        pass
    return _remark(path, previous, "a damaged line is passed over")


def _remark(path: Path, previous: Record | None, message: str) -> Record:
    match = _RANK_FILE.fullmatch(path.name)
    before = previous or {}
    return {"t": before.get("t", 0.0), "rank": int(match[1]) if match else -1, "host": before.get("host", ""),
            "pid": before.get("pid", 0), "kind": "warning", "level": "warning", "message": f"{path.name}: {message}"}


def read_rank(path: Path) -> Iterator[Record]:
    """Yield the records of one rank; a last line that is cut short is told by a warning."""
    tail, previous = Tail(path), None
    for line in tail.lines():
        previous = parse_line(line, path, previous)
        yield previous
    if tail.rest.strip():
        yield _remark(path, previous, "its last line is cut short: the rank was killed while it wrote")


def matches(record: Record, *, exposure: str | None = None, section: str | None = None, rank: int | None = None,
            step: str | None = None, level: Level | None = None) -> bool:
    """Whether a record is one of those asked for; `level` is the least."""
    wanted = {"exposure": exposure, "section": section, "rank": rank, "step": step}
    if any(v is not None and record.get(k) != v for k, v in wanted.items()):
        return False
    own = record.get("level", "info")
    return level is None or own not in LEVELS or LEVELS.index(own) >= LEVELS.index(level)


def read_log(folder: Path, *, exposure: str | None = None, section: str | None = None, rank: int | None = None,
             step: str | None = None, level: Level | None = None) -> Iterator[Record]:
    """Yield the records of all ranks in the order of time, reading as it goes.

    A last line that is cut short, by a rank that was killed, is told by a record of kind ``warning``.

    Parameters
    ----------
    exposure, section, rank, step : only these.
    level : only these and worse.
    """
    files = rank_files(folder)
    chosen = [path for number, path in files.items() if rank is None or number == rank]
    merged = heapq.merge(*(read_rank(path) for path in chosen), key=lambda record: float(record["t"]))
    return (r for r in merged if matches(r, exposure=exposure, section=section, step=step, level=level))
