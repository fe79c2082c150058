"""Room on the disk: shards and raw copies that the archive has for certain are removed here, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_mpi.db.archived import ArchivedFile, archived_files
from seechange_mpi.db.archiving import Archivist
from seechange_mpi.io.records import known_hash
from seechange_mpi.model.errors import BadInput, SeeChangeError

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

KINDS = ("shards", "raw")
_AT_WORK = ("ready", "claimed", "partial", "failed", "held")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may go.

    Attributes
    ----------
    file : the archive's copy;  kind : one of `KINDS`;  size : bytes here.
    """

    path: Path
    file: ArchivedFile
    kind: str
    size: int


@dataclass(slots=True)
class Plan:
    """What `plan_cleaning` found.

    Attributes
    ----------
    files : may go, once their copies are verified.
    kept : reason -> [files, bytes] of what stays.
    """

    files: list[Candidate] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)

    def keep(self, reason: str, size: int) -> None:
        """Count a file that stays."""
        counts = self.kept.setdefault(reason, [0, 0])
        counts[0] += 1
        counts[1] += size


def plan_cleaning(keeper: Archivist, exposures: Sequence[str] | None, kinds: Sequence[str], *, older_days: float = 0.0,
                  references: bool = False) -> Plan:
    """Find what may go. Nothing is removed, and no copy is read.

    Parameters
    ----------
    exposures : identifiers; None = all.
    older_days : only files that were written so long ago.
    references : also shards of exposures that are references: each run would bring them back.
    """
    with keeper.opened() as conn:
        known = archived_files(conn, keeper.archive.name, exposures)
        used = set() if references else _reference_exposures(conn)
        busy = _at_work(conn)
    found = _shards(keeper, exposures) if "shards" in kinds else []
    if "raw" in kinds:
        found += [(p, name, "raw") for name, p in keeper.raw_files(exposures).items() if p.is_file()]
    plan = Plan()
    oldest = datetime.now(UTC) - timedelta(days=older_days)
    for path, exposure, kind in found:
        status = path.stat()
        key = keeper.layout.key_of(path)
        assert key is not None
        if exposure in busy:
            plan.keep("in the queue and not done", status.st_size)
        elif kind == "shards" and exposure in used:
            plan.keep("of references (--references removes them too)", status.st_size)
        elif datetime.fromtimestamp(status.st_mtime, UTC) > oldest:
            plan.keep("too new (--older-than)", status.st_size)
        elif key not in known:
            plan.keep("not archived (seechange-mpi archive push)", status.st_size)
        elif known[key].size != status.st_size or known[key].sha256 != known_hash(path):
            plan.keep("other than the archived copy (seechange-mpi archive push)", status.st_size)
        else:
            plan.files.append(Candidate(path, known[key], kind, status.st_size))
    return plan


def _shards(keeper: Archivist, exposures: Sequence[str] | None) -> list[tuple[Path, str, str]]:
    """Return (path, exposure, kind) of all shards."""
    names = keeper.exposures_here() if exposures is None else exposures
    return [(p, name, "shards") for name in names
            for p in sorted((keeper.config.bundles / name / "shards").glob("*.h5"))]


def _reference_exposures(conn: Connection) -> set[str]:
    rows: list[Any] = conn.execute(
        "SELECT DISTINCT e.origin_identifier FROM refs r JOIN images i ON r.image_id = i._id "
        "JOIN exposures e ON i.exposure_id = e._id").fetchall()
    return {r[0] for r in rows}


def _at_work(conn: Connection) -> set[str]:
    rows: list[Any] = conn.execute("SELECT DISTINCT identifier FROM knownexposures WHERE state = ANY(%s)",
                                   (list(_AT_WORK),)).fetchall()
    return {r[0] for r in rows}


def remove_files(keeper: Archivist, plan: Plan) -> tuple[list[Candidate], list[str]]:
    """Remove the files of a plan whose archived copies are whole; return those, and what was wrong with others.

    A copy whose bytes have never been hashed by or from the archive is read back first; of every copy it is asked
    whether it is still there.
    """
    unproved = [c.file for c in plan.files if not c.file.verified]
    problems = keeper.verify(unproved).problems if unproved else []
    with keeper.opened() as conn:
        known = archived_files(conn, keeper.archive.name, sorted({c.file.exposure for c in plan.files}))

    def remove(c: Candidate) -> str:
        now = known.get(c.file.key)
        if now is None or not now.verified:
            return f"{c.path}: kept, its archived copy is not verified"
        try:
            copy = keeper.archive.info(c.file.key)
        except SeeChangeError as err:
            return f"{c.path}: kept: {err}"
        if copy is None or copy.size != c.size:
            found = "nothing" if copy is None else f"{copy.size} bytes"
            return f"{c.path}: kept, the archive has {found} under its name"
        try:
            c.path.unlink()
        except FileNotFoundError:
            return f"{c.path}: was gone already"
        except OSError as err:
            return str(BadInput(c.path, "file to remove", "a folder that can be written", err.strerror or err))
        return ""

    removed = []
    for candidate, problem in zip(plan.files, keeper.each(remove, plan.files), strict=True):
        if problem:
            problems.append(problem)
        else:
            removed.append(candidate)
    return removed, problems
