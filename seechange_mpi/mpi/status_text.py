"""The status of a run as a person reads it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from seechange_mpi.mpi.status import ExposureStatus, RankActivity, RunStatus
from seechange_mpi.mpi.summary import format_table

STALE_S = 30.0
"""A running run renews its status about once a second; after this long something is wrong."""
_OPEN = ("waiting", "computing", "finishing")
_SHOWN = 8


def clock(t: float) -> str:
    """Return a time of day, with its date unless that is today's (UTC)."""
    moment = datetime.fromtimestamp(t, UTC)
    return f"{moment:%H:%M:%S}" if moment.date() == datetime.now(UTC).date() else f"{moment:%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """Return ``4.2 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def status_text(status: RunStatus, ranks: Mapping[int, RankActivity], now: float | None = None) -> str:
    """Return everything ``seechange-mpi status`` prints."""
    now = time.time() if now is None else now
    lines = [_headline(status, now)]
    lost = [a for a in ranks.values() if not a.ended]
    if status.state == "lost":
        lines += [f"rank 0, pid {status.pid} on {status.host}, is gone; last seen {clock(status.updated)} UTC",
                  *(a.describe() for a in lost),
                  "what was durable is kept: run the same command again to finish the rest"]
    elif status.state in ("running", "draining"):
        if now - status.updated > STALE_S:
            lines.append(f"no news for {duration(now - status.updated)}: rank 0 (pid {status.pid}) hangs or was "
                         f"killed; only on {status.host} can that be told")
        left = [] if status.deadline is None else [f"{duration(status.deadline - now)} until it must be over"]
        if status.predicted_end is not None:
            left.append(f"work in hand done at {clock(status.predicted_end)} UTC")
        if left:
            lines.append("; ".join(left))
    lines.append(f"exposures: {status.claimed} claimed, {status.done} done, {status.failed} failed")
    if status.exposures:
        lines += ["", *_exposures(status.exposures)]
    if status.state != "ended" and (ranks or status.ranks):
        lines += ["", _ranks(status, ranks, now if status.state != "lost" else status.updated)]
    return "\n".join(lines)


def _headline(status: RunStatus, now: float) -> str:
    where = f"run {status.run_id} on {status.host or '?'}, pid {status.pid}"
    if status.state == "lost":
        return f"{where}: LOST, it has not ended"
    if status.state == "ended":
        code = "" if status.exit_code is None else f" with exit code {status.exit_code}"
        took = f", after {duration(status.updated - status.started)}" if status.started else ""
        return f"{where}: ended{code} at {clock(status.updated)} UTC{took}"
    took = f" for {duration(now - status.started)}" if status.started else ""
    return f"{where}: {status.state}{took}"


def _exposures(exposures: Mapping[str, ExposureStatus]) -> list[str]:
    opened = [k for k, e in exposures.items() if e.state in _OPEN]
    closed = [k for k in exposures if k not in opened]
    shown = closed[-_SHOWN:] + opened
    rows = []
    for name in shown:
        e = exposures[name]
        failed = f", {e.failed} failed" if e.failed else ""
        rows.append([name, e.state.replace("_", " "), f"{e.done}/{e.total}{failed}", f"{e.seconds:.1f}"])
    more = [f"  ({len(closed) - _SHOWN} earlier ones are not shown)"] if len(closed) > _SHOWN else []
    return [*more, format_table(["exposure", "state", "sections", "s"], rows)]


def _ranks(status: RunStatus, ranks: Mapping[int, RankActivity], now: float) -> str:
    rows = []
    for number in sorted({*ranks, *status.ranks}):
        log, told = ranks.get(number), status.ranks.get(number)
        if log is not None and log.ended:
            rows.append([str(number), log.host, "-", "-", "ended", ""])
        elif log is not None and log.section:
            rows.append([str(number), log.host, log.exposure, log.section, log.step or "begins",
                         duration(now - log.since)])
        elif log is None and told is not None and told.section:
            rows.append([str(number), "?", told.exposure, told.section, told.step, duration(now - told.since)])
        else:
            since = log.since if log is not None else told.since if told is not None and told.since else now
            rows.append([str(number), log.host if log is not None else "?", "-", "-", "idle", duration(now - since)])
    return format_table(["rank", "host", "exposure", "section", "step", "for"], rows)
