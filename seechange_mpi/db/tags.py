"""Tags: names under which one provenance of every process is found; of ``referencing`` there may be several.

The id of a row follows from tag and process, so that the primary key refuses a second provenance of a process, whoever
comes first, and no table is locked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.provenance import records_of
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import ProvenanceRecord

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

MANY = ("referencing",)
"""Processes of which a tag may have several provenances."""


class TagConflict(ConfigError):
    """A tag has another provenance of the process."""


def _row_id(tag: str, record: ProvenanceRecord) -> UUID:
    return stable_id("tag", tag, record.id if record.process in MANY else record.process)


def check_tag(conn: Connection, tag: str, records: Iterable[ProvenanceRecord]) -> None:
    """Refuse provenances that a tag has no room for.

    Raises
    ------
    TagConflict
        Names the processes with what the tag has and what it was to get.
    """
    wanted: dict[str, set[str]] = {}
    for r in records:
        if r.process not in MANY:
            wanted.setdefault(r.process, set()).add(r.id)
    double = {p: ids for p, ids in wanted.items() if len(ids) > 1}
    if double:
        process, ids = min(double.items())
        raise TagConflict(f"tag '{tag}' takes one provenance of each process, but there are {len(ids)} of {process} "
                          f"({', '.join(sorted(ids))}), as after references of different provenances; seechange-mpi "
                          "prov diff tells them apart, run.provenance_tag=null goes without a tag")
    rows: list[Any] = conn.execute(
        "SELECT p.process, t.provenance_id FROM provenance_tags t JOIN provenances p ON t.provenance_id = p._id "
        "WHERE t.tag = %s AND p.process = ANY(%s) ORDER BY 1, 2", (tag, list(wanted))).fetchall()
    others = [(process, has) for process, has in rows if has not in wanted[process]]
    if others:
        process, has = others[0]
        more = f" (and of {', '.join(sorted({p for p, _ in others[1:]}))})" if len(others) > 1 else ""
        raise TagConflict(f"tag '{tag}' has another provenance of {process}{more}: {has}, not "
                          f"{next(iter(wanted[process]))}; give these results a tag of their own "
                          f"(--set run.provenance_tag=NAME, null for none), or free it: seechange-mpi prov tag remove "
                          f"{tag} {has}")


def tag_provenances(conn: Connection, tag: str, records: Iterable[ProvenanceRecord]) -> int:
    """Add stored provenances to a tag; return how many are new in it.

    Raises
    ------
    TagConflict
        See `check_tag`; also when another transaction has just been faster.
    """
    records = list(records)
    check_tag(conn, tag, records)
    known: set[str] = {str(r[0]) for r in conn.execute("SELECT provenance_id FROM provenance_tags WHERE tag = %s",
                                                       (tag,))}
    lacking = [r for r in records if r.id not in known]
    if not lacking:
        return 0
    n = insert_rows(conn, "provenance_tags",
                    [{"_id": _row_id(tag, r), "tag": tag, "provenance_id": r.id} for r in lacking])
    check_tag(conn, tag, records)
    return n


def list_tags(conn: Connection) -> list[tuple[str, int, int]]:
    """Return (tag, number of provenances, number of processes) of all tags."""
    rows: list[Any] = conn.execute(
        "SELECT t.tag, count(*), count(DISTINCT p.process) FROM provenance_tags t "
        "JOIN provenances p ON t.provenance_id = p._id GROUP BY t.tag ORDER BY t.tag").fetchall()
    return [(str(r[0]), int(r[1]), int(r[2])) for r in rows]


def tagged(conn: Connection, tag: str) -> list[ProvenanceRecord]:
    """Return the provenances of a tag, upstream ones first.

    Raises
    ------
    ConfigError
        There is no such tag.
    """
    from seechange_mpi.model.provenance import UPSTREAM_STEPS

    ids = [str(r[0]) for r in conn.execute("SELECT provenance_id FROM provenance_tags WHERE tag = %s", (tag,))]
    if not ids:
        there = [name for name, _, _ in list_tags(conn)]
        raise ConfigError(f"there is no tag '{tag}'; there are: {', '.join(there) or 'none'}")
    order = {p: k for k, p in enumerate(UPSTREAM_STEPS)}
    return sorted(records_of(conn, ids).values(), key=lambda r: (order.get(r.process, 99), r.process, r.id))


def tree_of(records: Iterable[ProvenanceRecord]) -> dict[str, ProvenanceRecord]:
    """Return process -> record of a tag's provenances, `MANY` left out."""
    return {r.process: r for r in records if r.process not in MANY}


def clone_tag(conn: Connection, old: str, new: str, *, clobber: bool = False) -> int:
    """Give all provenances of one tag another tag as well; return how many are new in it.

    Parameters
    ----------
    clobber : the new tag is emptied first.

    Raises
    ------
    ConfigError
        The old tag is not there, or the new one is and not `clobber`.
    """
    if old == new:
        raise ConfigError(f"the new tag must have another name than '{old}'")
    with conn.transaction():
        records = tagged(conn, old)
        if any(name == new for name, _, _ in list_tags(conn)):
            if not clobber:
                raise ConfigError(f"there is a tag '{new}' already; choose another name, or --clobber to replace it")
            conn.execute("DELETE FROM provenance_tags WHERE tag = %s", (new,))
        return tag_provenances(conn, new, records)


def remove_from_tag(conn: Connection, tag: str, ids: Iterable[str] | None = None) -> int:
    """Take provenances out of a tag (None: all, so that the tag is gone); return how many. Nothing else is deleted.

    Raises
    ------
    ConfigError
        There is no such tag, or it does not have one of them.
    """
    with conn.transaction():
        there = {r.id for r in tagged(conn, tag)}
        chosen = there if ids is None else set(ids)
        if chosen - there:
            raise ConfigError(f"tag '{tag}' does not have {', '.join(sorted(chosen - there))}; see seechange-mpi prov "
                              f"show {tag}")
        done = conn.execute("DELETE FROM provenance_tags WHERE tag = %s AND provenance_id = ANY(%s)",
                            (tag, sorted(chosen)))
    return done.rowcount
