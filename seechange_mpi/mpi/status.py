"""How a run stands: a small file that rank 0 renews, and what the ranks' own logs say."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from seechange_mpi.io.drafts import draft_of
from seechange_mpi.model.errors import BadInput
from seechange_mpi.mpi.heartbeat import owner_is_gone, owner_name
from seechange_mpi.mpi.runlog import Record, parse_line, rank_files

STATUS_FILE = "status.json"
RunState = Literal["running", "draining", "ended", "lost"]
ExposureState = Literal["waiting", "computing", "finishing", "done", "failed", "given_back", "uncommitted"]
_TAIL = 1 << 16
_AT_WORK = frozenset({"section_begin", "step_begin", "step_end"})
T = TypeVar("T")


@dataclass(slots=True)
class ExposureStatus:
    """An exposure of the run.

    Attributes
    ----------
    total, done, failed : sections.
    seconds : since it was claimed, or what it took.
    """

    state: ExposureState = "waiting"
    total: int = 0
    done: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class RankStatus:
    """What a rank is at; `since` [s since 1970] it is in this step."""

    exposure: str = ""
    section: str = ""
    step: str = ""
    since: float = 0.0


@dataclass(slots=True)
class RunStatus:
    """What rank 0 tells of the run; times are seconds since 1970.

    Attributes
    ----------
    run_id : name of the run's folder.
    owner : rank 0's process, as `heartbeat.owner_name` names it.
    deadline : when the run must be over; None = no limit.
    exit_code : known when it has ended.
    claimed, done, failed : exposures.
    predicted_end : when the work in hand will be done; None = not known.
    """

    run_id: str = ""
    pid: int = 0
    host: str = ""
    owner: str = ""
    state: RunState = "running"
    started: float = 0.0
    updated: float = 0.0
    deadline: float | None = None
    exit_code: int | None = None
    exposures: dict[str, ExposureStatus] = field(default_factory=dict)
    ranks: dict[int, RankStatus] = field(default_factory=dict)
    claimed: int = 0
    done: int = 0
    failed: int = 0
    predicted_end: float | None = None


@dataclass(frozen=True, slots=True)
class RankActivity:
    """What the end of a rank's log says.

    Attributes
    ----------
    section : empty: it was between sections.
    since, last_seen : s since 1970; of the step, and of the last line.
    ended : it has said that it ended.
    """

    rank: int
    host: str
    pid: int
    exposure: str
    section: str
    step: str
    since: float
    last_seen: float
    ended: bool

    def describe(self) -> str:
        """Say where it was."""
        if not self.section:
            return f"rank {self.rank} was between sections"
        return f"rank {self.rank} was in {self.section} of {self.exposure} at {self.step or 'its beginning'}"


def new_status(folder: Path) -> RunStatus:
    """Return the status of a run that this process begins."""
    import socket

    now = time.time()
    return RunStatus(folder.name, os.getpid(), socket.gethostname(), owner_name(), started=now, updated=now)


def write_status(folder: Path, status: RunStatus) -> bool:
    """Replace the run's status file in one go, and note the time in it; return False if the disk refused."""
    status.updated = time.time()
    path = folder / STATUS_FILE
    draft = draft_of(path)
    try:
        draft.write_text(json.dumps(status, default=_as_dict, separators=(",", ":")))
        draft.replace(path)
    except OSError:
        return False
    return True


def _as_dict(part: RunStatus | ExposureStatus | RankStatus) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__slots__}


def read_status(folder: Path) -> RunStatus:
    """Read the status of a run; without a status file, what the logs tell.

    A run whose rank 0 is gone without having ended is ``lost``; that is only known on its own host.

    Raises
    ------
    BadInput
        There is neither, or the file is damaged.
    """
    path = folder / STATUS_FILE
    try:
        raw = json.loads(path.read_text())
        status = _known(RunStatus, raw)
        status.exposures = {k: _known(ExposureStatus, v) for k, v in raw.get("exposures", {}).items()}
        status.ranks = {int(k): _known(RankStatus, v) for k, v in raw.get("ranks", {}).items()}
    except FileNotFoundError:
        status = _from_logs(folder)
    except (ValueError, TypeError, AttributeError, OSError) as err:
        raise BadInput(path, "status of a run", "JSON as rank 0 writes it", err) from None
    if status.state in ("running", "draining") and owner_is_gone(status.owner):
        status.state = "lost"
    return status


def _known(kind: type[T], raw: dict[str, Any]) -> T:
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in raw.items() if k in names})


def _from_logs(folder: Path) -> RunStatus:
    found = rank_activity(folder)
    if not found:
        raise BadInput(folder, "a folder of a run", f"{STATUS_FILE} and rank-0000.jsonl", "neither")
    first = found[min(found)]
    status = RunStatus(folder.name, first.pid, first.host, state="ended" if first.ended else "running")
    status.updated = max(a.last_seen for a in found.values())
    return status


def rank_activity(folder: Path) -> dict[int, RankActivity]:
    """Return rank -> what the end of its log says; empty if the folder is missing."""
    try:
        files = rank_files(folder)
    except OSError:
        return {}
    found = {}
    for rank, path in files.items():
        records = _last_records(path)
        if records:
            found[rank] = _activity(rank, records)
    return found


def _last_records(path: Path) -> list[Record]:
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(0, size - _TAIL))
            lines = f.read().split(b"\n")
    except OSError:
        return []
    # the first may have lost its head, the last its tail
    whole = lines[1 if size > _TAIL else 0 : -1]
    return [r for line in whole if line.strip() and (r := parse_line(line, path))["t"] > 0]


def _activity(rank: int, records: list[Record]) -> RankActivity:
    last = records[-1]
    doing: Record = next((r for r in reversed(records) if r["kind"] in _AT_WORK or r["kind"] == "section_end"), {})
    at_work = doing.get("kind") in _AT_WORK
    step = doing.get("step", "")
    if doing.get("kind") == "step_end":
        step = f"between steps, after {step}"
    ended = any(r["kind"] == "end" for r in records)
    return RankActivity(
        rank, last.get("host", ""), last.get("pid", 0), doing.get("exposure", "") if at_work else "",
        doing.get("section", "") if at_work else "", step if at_work else "", float((doing or last)["t"]),
        float(last["t"]), ended)


def lost_ranks(folder: Path) -> list[RankActivity]:
    """Return the ranks whose log has no ``end``: after the run is over, those that were killed, and where they were.

    A rank that was ended by TERM writes its last line; one that still works has none yet.
    """
    return [a for a in rank_activity(folder).values() if not a.ended]
