"""A run's log as a person reads it, and as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seechange_mpi.mpi.runlog import Record, Tail, parse_line, rank_files

_PLACED = frozenset({"t", "rank", "host", "pid", "kind", "level", "exposure", "section", "step", "attempt", "message",
                     "error", "status"})


def format_record(record: Record) -> str:
    """Return one line: time (UTC), rank, kind, where, and figures."""
    moment = datetime.fromtimestamp(record["t"], UTC)
    level = record.get("level", "info")
    mark = "" if level == "info" else f"{level.upper()} "
    attempt = record.get("attempt", 0)
    where = " ".join(str(record[k]) for k in ("exposure", "section", "step") if record.get(k))
    parts = [where, f"(attempt {attempt})" if attempt > 1 else "", str(record.get("status", "")),
             *(f"{k}={_short(v)}" for k, v in record.items() if k not in _PLACED),
             str(record.get("error", "")), str(record.get("message", ""))]
    text = " ".join(p for p in parts if p)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}  rank {record['rank']:<4} " \
           f"{record['kind']:<14} {mark}{text}".rstrip()


def _short(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def follow(folder: Path, over: Callable[[], bool], poll_s: float = 0.5) -> Iterator[Record]:
    """Yield the records there are, and those that come, until rank 0 has ended or the run is `over`."""
    tails: dict[int, Tail] = {}
    ended = False
    while True:
        last = ended or over()
        for rank, path in rank_files(folder).items():
            tails.setdefault(rank, Tail(path))
        fresh = [parse_line(line, tail.path) for tail in tails.values() for line in tail.lines()]
        # all that is new since the last look, in the order of time
        for record in sorted(fresh, key=lambda r: float(r["t"])):
            ended = ended or (record["kind"] == "end" and record["rank"] == 0)
            yield record
        if last:
            return
        time.sleep(poll_s)
