"""A run as a Chrome trace: open it in https://ui.perfetto.dev or chrome://tracing.

One process per host, one row per rank with its sections and, inside them, their steps; rank 0 has two rows more, for
preparing exposures and for finishing them. Arrows lead from an exposure's preparation to its sections, and from those
to its end. (Trace Event Format, "X", "i", "s", "f" and "M" events; times in microseconds from the first line.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seechange_mpi.io.drafts import draft_of
from seechange_mpi.mpi.runlog import Record, read_log

TRACE_FILE = "trace.json"
PREPARE_ROW, FINISH_ROW = 1_000_000, 1_000_001
"""Rows of rank 0's threads; a rank's own row is its number."""
_ROW_NAMES = {PREPARE_ROW: "rank 0: prepare", FINISH_ROW: "rank 0: bundle, commit"}
_FRAME = frozenset({"t", "rank", "host", "pid", "kind"})


@dataclass(slots=True)
class _Rank:
    section: Record | None = None
    step: Record | None = None


@dataclass(slots=True)
class _Builder:
    zero: float
    out: list[dict[str, Any]] = field(default_factory=list)
    hosts: dict[str, int] = field(default_factory=dict)
    rows: dict[tuple[int, int], float] = field(default_factory=dict)
    """(process, row) -> when its last slice ended."""
    ranks: dict[int, _Rank] = field(default_factory=dict)
    finishing: dict[str, Record] = field(default_factory=dict)
    prepared: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    last: float = 0.0

    def _us(self, t: float) -> float:
        return round((t - self.zero) * 1e6, 1)

    def _place(self, record: Record, row: int | None = None) -> dict[str, int]:
        host = record.get("host", "")
        process = self.hosts.setdefault(host, len(self.hosts) + 1)
        row = record["rank"] if row is None else row
        self.rows.setdefault((process, row), 0.0)
        return {"pid": process, "tid": row}

    def _slice(self, name: str, category: str, begin: float, record: Record, row: int | None = None,
               **more: Any) -> dict[str, Any]:
        where = self._place(record, row)
        args = {k: v for k, v in record.items() if k not in _FRAME} | more
        event = {"ph": "X", "name": name, "cat": category, "ts": self._us(begin),
                 "dur": round(max(self._us(record["t"]) - self._us(begin), 0.0), 1), **where, "args": args}
        self.out.append(event)
        return event

    def _arrow(self, name: str, identity: str, tail: dict[str, Any], head: dict[str, Any]) -> None:
        both = {"name": name, "cat": "exposure", "id": identity}
        # inside the slices, so that a viewer finds what they belong to
        self.out.append({"ph": "s", **both, "ts": tail["ts"] + tail["dur"], "pid": tail["pid"], "tid": tail["tid"]})
        self.out.append({"ph": "f", "bp": "e", **both, "ts": head["ts"], "pid": head["pid"], "tid": head["tid"]})

    def _beside(self, name: str, begin: float, record: Record, row: int) -> dict[str, Any]:
        """A slice of one of rank 0's threads, which does one thing after another."""
        where = self._place(record, row)
        key = where["pid"], where["tid"]
        begin = min(max(begin, self.rows[key]), record["t"])
        self.rows[key] = record["t"]
        return self._slice(name, "exposure", begin, record, row)

    def add(self, record: Record) -> None:
        """Take the next record, in the order of time."""
        self.last = max(self.last, record["t"])
        self._place(record)
        rank = self.ranks.setdefault(record["rank"], _Rank())
        kind, exposure = record["kind"], record.get("exposure", "")
        if kind == "section_begin":
            self._end_section(rank, record | {"status": "unfinished"})
            rank.section = record
        elif kind == "step_begin":
            self._end_step(rank, record | {"status": "unfinished"})
            rank.step = record
        elif kind == "step_end":
            rank.step = rank.step or self._missing(rank, record)
            self._end_step(rank, record)
        elif kind == "section_end":
            self._end_step(rank, record)
            rank.section = rank.section or record | {"t": record["t"] - record.get("seconds", 0.0)}
            self._end_section(rank, record)
        elif kind == "prepared":
            self.prepared[exposure] = self._beside(f"prepare {exposure}", record["t"] - record.get("seconds", 0.0),
                                                   record, PREPARE_ROW)
        elif kind == "bundle" and "seconds" not in record:
            self.finishing[exposure] = record
        elif kind in ("bundle", "commit", "match") and "seconds" in record:
            self.finishing.pop(exposure, None)
            self._finish(f"{kind} {exposure}", record["t"] - record["seconds"], record)
        else:
            if kind in ("release", "give_back") and exposure in self.finishing:
                self._finish(f"finish {exposure}", self.finishing.pop(exposure)["t"], record)
            self._mark(record)

    def _missing(self, rank: _Rank, record: Record) -> Record:
        begin = record["t"] - record.get("wall_s", 0.0)
        return record | {"t": max(begin, rank.section["t"]) if rank.section else begin}

    def _finish(self, name: str, begin: float, record: Record) -> None:
        head = self._beside(name, begin, record, FINISH_ROW)
        for identity, tail in self.ends.pop(record.get("exposure", ""), []):
            if tail["ts"] + tail["dur"] <= head["ts"] + head["dur"]:
                self._arrow("finish", identity + "/finish", tail, head)

    def _mark(self, record: Record) -> None:
        name = " ".join(str(record[k]) for k in ("kind", "exposure") if record.get(k))
        args = {k: v for k, v in record.items() if k not in _FRAME}
        self.out.append({"ph": "i", "name": name, "cat": record["kind"], "ts": self._us(record["t"]),
                         "s": "g" if record["kind"] in ("drain", "lost") else "t", **self._place(record),
                         "args": args})

    def _end_step(self, rank: _Rank, record: Record) -> None:
        if rank.step is not None:
            begun, rank.step = rank.step, None
            where: Record = {k: begun[k] for k in ("exposure", "section", "step", "attempt") if k in begun}
            figures: Record = record if record["kind"] == "step_end" else {"status": record.get("status", "failed")}
            self._slice(begun.get("step", "?"), "step", begun["t"],
                        figures | where | {k: begun[k] for k in ("rank", "host") if k in begun}
                        | {"kind": "step_end", "t": record["t"]})

    def _end_section(self, rank: _Rank, record: Record) -> None:
        self._end_step(rank, record)
        if rank.section is None:
            return
        begun, rank.section = rank.section, None
        exposure, section = begun.get("exposure", ""), begun.get("section", "?")
        figures = record if record["kind"] == "section_end" else {"status": record.get("status", "unfinished")}
        made = self._slice(f"{section} {exposure}".strip(), "section", begun["t"],
                           {**begun, **figures, **{k: begun[k] for k in ("rank", "host") if k in begun},
                            "t": record["t"]})
        identity = f"{exposure}/{section}/{begun.get('attempt', 1)}"
        if exposure in self.prepared and self.prepared[exposure]["ts"] <= made["ts"]:
            self._arrow("begin", identity, self.prepared[exposure], made)
        self.ends.setdefault(exposure, []).append((identity, made))

    def close(self) -> None:
        """End what has no end, and name the rows."""
        for rank in self.ranks.values():
            self._end_section(rank, {"kind": "", "t": self.last, "status": "unfinished"})
        for exposure, begun in self.finishing.items():
            self._finish(f"finish {exposure}", begun["t"], begun | {"t": self.last, "status": "unfinished"})
        for host, process in self.hosts.items():
            self.out.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": host or "?"}})
        for process, row in self.rows:
            order = row if row < PREPARE_ROW else row - FINISH_ROW - 1
            self.out.append({"ph": "M", "name": "thread_name", "pid": process, "tid": row,
                             "args": {"name": _ROW_NAMES.get(row, f"rank {row}")}})
            self.out.append({"ph": "M", "name": "thread_sort_index", "pid": process, "tid": row,
                             "args": {"sort_index": order}})


def chrome_trace(events: Iterable[Record]) -> dict[str, Any]:
    """Return the Chrome trace of a run's records.

    Parameters
    ----------
    events : in the order of time, as `runlog.read_log` yields them. What a killed rank was at ends with the log and
        has the status ``unfinished``.
    """
    builder: _Builder | None = None
    for record in events:
        if record["t"] <= 0:
            continue
        if builder is None:
            builder = _Builder(record["t"])
            builder.last = record["t"]
        builder.add(record)
    if builder is None:
        return {"traceEvents": [], "displayTimeUnit": "ms"}
    builder.close()
    began = datetime.fromtimestamp(builder.zero, UTC).isoformat()
    return {"traceEvents": builder.out, "displayTimeUnit": "ms", "otherData": {"began": began}}


def write_trace(run_folder: Path, path: Path | None = None) -> Path:
    """Write the trace of a run, ``trace.json`` in its folder unless `path` is given; return where.

    Raises
    ------
    OSError
        It cannot be written.
    """
    out = path or run_folder / TRACE_FILE
    draft = draft_of(out)
    draft.write_text(json.dumps(chrome_trace(read_log(run_folder)), separators=(",", ":")))
    draft.replace(out)
    return out
