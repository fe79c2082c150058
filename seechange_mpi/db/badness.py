"""Badness bits in the database: set by hand, and handed on to everything made from what is marked.

``_upstream_bitflag`` of a row follows from the rows it was made from, by the rules of `pipeline.badness`; it is
computed anew from one table to the next, with one statement for each, and only below rows that have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import sql

from seechange_mpi.model.flags import Badness

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.db.rows import PartRows

Ids = Mapping[str, Sequence[UUID]]
"""Table -> ids of rows."""
_LOCK = 0x5EEC4ABA
_ABOUT_REFERENCE = int(Badness.REF_BAD | Badness.REF_SUPERSEDED)


def _bits(alias: str) -> str:
    return f"({alias}._bitflag | {alias}._upstream_bitflag)"


@dataclass(frozen=True, slots=True)
class _Step:
    """How one table follows from others.

    Attributes
    ----------
    parents : tables whose changes matter.
    select : SQL of (_id, up) of rows below changed rows, whose ids are the parameters named as the parents.
    """

    table: str
    parents: tuple[str, ...]
    select: str


_REFERENCE_BITS = (
    f"SELECT bit_or(CASE WHEN {_bits('q')} <> 0 THEN {int(Badness.REF_BAD)} ELSE 0 END | coalesce(r._bitflag, 0)) "
    "AS bits FROM source_lists s JOIN world_coordinates w ON w.sources_id = s._id "
    "JOIN zero_points q ON q.wcs_id = w._id JOIN provenance_upstreams u ON u.upstream_id = q.provenance_id "
    "AND u.downstream_id = i.provenance_id LEFT JOIN refs r ON r.zp_id = q._id WHERE s.image_id = c.ref_image_id"
)
"""What is known of the reference of a difference image: the zero point that it was made with, and its registration."""

_STEPS: tuple[_Step, ...] = (
    _Step("images", ("exposures",),
          f"SELECT i._id, {_bits('e')} AS up FROM images i JOIN exposures e ON i.exposure_id = e._id "
          "WHERE NOT i.is_sub AND e._id = ANY(%(exposures)s)"),
    _Step("backgrounds", ("images",),
          f"SELECT g._id, {_bits('i')} AS up FROM backgrounds g JOIN source_lists s ON g.sources_id = s._id "
          "JOIN images i ON s.image_id = i._id WHERE i._id = ANY(%(images)s)"),
    _Step("source_lists", ("images", "backgrounds"),
          f"SELECT s._id, {_bits('i')} | coalesce({_bits('g')}, 0) AS up FROM source_lists s "
          "JOIN images i ON s.image_id = i._id LEFT JOIN backgrounds g ON g.sources_id = s._id WHERE s._id IN "
          "(SELECT _id FROM source_lists WHERE image_id = ANY(%(images)s) "
          "UNION SELECT sources_id FROM backgrounds WHERE _id = ANY(%(backgrounds)s))"),
    _Step("psfs", ("source_lists",),
          f"SELECT p._id, {_bits('s')} AS up FROM psfs p JOIN source_lists s ON p.sources_id = s._id "
          "WHERE s._id = ANY(%(source_lists)s)"),
    _Step("world_coordinates", ("source_lists", "psfs"),
          f"SELECT w._id, {_bits('s')} | coalesce({_bits('p')}, 0) AS up FROM world_coordinates w "
          "JOIN source_lists s ON w.sources_id = s._id LEFT JOIN psfs p ON p.sources_id = s._id WHERE s._id IN "
          "(SELECT unnest(%(source_lists)s::uuid[]) UNION SELECT sources_id FROM psfs WHERE _id = ANY(%(psfs)s))"),
    _Step("zero_points", ("world_coordinates",),
          f"SELECT z._id, {_bits('w')} AS up FROM zero_points z JOIN world_coordinates w ON z.wcs_id = w._id "
          "WHERE w._id = ANY(%(world_coordinates)s)"),
    _Step("refs", ("zero_points",),
          f"SELECT r._id, {_bits('z')} AS up FROM refs r JOIN zero_points z ON r.zp_id = z._id "
          "WHERE z._id = ANY(%(zero_points)s)"),
    _Step("images", ("zero_points", "refs"),
          f"SELECT i._id, {_bits('z')} | coalesce(x.bits, i._upstream_bitflag & {_ABOUT_REFERENCE}) AS up "
          "FROM images i JOIN image_subtraction_components c ON c.image_id = i._id "
          f"JOIN zero_points z ON c.new_zp_id = z._id LEFT JOIN LATERAL ({_REFERENCE_BITS}) x ON true WHERE i._id IN "
          "(SELECT image_id FROM image_subtraction_components WHERE new_zp_id = ANY(%(zero_points)s) "
          "UNION SELECT c.image_id FROM zero_points z JOIN world_coordinates w ON z.wcs_id = w._id "
          "JOIN source_lists s ON w.sources_id = s._id JOIN image_subtraction_components c "
          "ON c.ref_image_id = s.image_id WHERE z._id = ANY(%(zero_points)s) "
          "UNION SELECT c.image_id FROM refs r JOIN image_subtraction_components c ON c.ref_image_id = r.image_id "
          "WHERE r._id = ANY(%(refs)s))"),
    _Step("detections", ("images",),
          f"SELECT d._id, {_bits('i')} AS up FROM detections d JOIN images i ON d.image_id = i._id "
          "WHERE i._id = ANY(%(images)s)"),
    _Step("cutouts", ("detections",),
          f"SELECT c._id, {_bits('d')} AS up FROM cutouts c JOIN detections d ON c.detections_id = d._id "
          "WHERE d._id = ANY(%(detections)s)"),
    _Step("measurement_sets", ("cutouts",),
          f"SELECT s._id, {_bits('c')} AS up FROM measurement_sets s JOIN cutouts c ON s.cutouts_id = c._id "
          "WHERE c._id = ANY(%(cutouts)s)"),
    _Step("measurements", ("measurement_sets",),
          f"SELECT m._id, {_bits('s')} AS up FROM measurements m JOIN measurement_sets s "
          "ON m.measurementset_id = s._id WHERE s._id = ANY(%(measurement_sets)s)"),
    _Step("deepscore_sets", ("measurement_sets",),
          f"SELECT q._id, {_bits('s')} AS up FROM deepscore_sets q JOIN measurement_sets s "
          "ON q.measurementset_id = s._id WHERE s._id = ANY(%(measurement_sets)s)"),
    _Step("deepscores", ("deepscore_sets",),
          f"SELECT p._id, {_bits('q')} | m._bitflag AS up FROM deepscore_sets q JOIN deepscores p "
          "ON p.deepscoreset_id = q._id JOIN measurements m ON m.measurementset_id = q.measurementset_id "
          "AND m.index_in_sources = p.index_in_sources WHERE q._id = ANY(%(deepscore_sets)s)"),
    # a measurement hands on its own bits alone: what it has from upstream comes by way of the sets
    _Step("deepscores", ("measurements",),
          f"SELECT p._id, {_bits('q')} | m._bitflag AS up FROM measurements m JOIN deepscore_sets q "
          "ON q.measurementset_id = m.measurementset_id JOIN deepscores p ON p.deepscoreset_id = q._id "
          "AND p.index_in_sources = m.index_in_sources WHERE m._id = ANY(%(measurements)s)"),
)
_LEAVES = ("measurements", "deepscores")
"""Tables of which only rows marked themselves matter below."""
MARKABLE: tuple[str, ...] = ("exposures", *dict.fromkeys(s.table for s in _STEPS))
"""Tables whose rows can be marked, upstream first."""


def hold_marks(conn: Connection) -> None:
    """Keep marks from being set until the end of the transaction. Commits do not wait for each other here."""
    conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (_LOCK,))


def stop_commits(conn: Connection) -> None:
    """Wait for the commits under way, and let others wait until the end of the transaction."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


def mark(conn: Connection, rows: Ids, *, add: int = 0, remove: int = 0) -> dict[str, int]:
    """Set and clear own bits of rows, hand them on, and return table -> rows that changed.

    Waits for the commits that are under way; others wait for this.

    Parameters
    ----------
    rows : tables of `MARKABLE`.
    add, remove : `Badness` bits.
    """
    with conn.transaction():
        stop_commits(conn)
        changed: dict[str, list[UUID]] = {}
        for table in MARKABLE:
            if rows.get(table):
                found: list[Any] = conn.execute(
                    sql.SQL("UPDATE {} SET _bitflag = (_bitflag | %(add)s) & ~%(remove)s::bigint, modified = now() "
                            "WHERE _id = ANY(%(ids)s) AND (_bitflag | %(add)s) & ~%(remove)s::bigint <> _bitflag "
                            "RETURNING _id").format(sql.Identifier(table)),
                    {"add": add, "remove": remove, "ids": list(rows[table])}).fetchall()
                changed[table] = [r[0] for r in found]
        counts = {t: len(ids) for t, ids in changed.items() if ids}
        for table, n in hand_on(conn, changed).items():
            counts[table] = counts.get(table, 0) + n
    return {t: counts[t] for t in MARKABLE if t in counts}


def hand_on(conn: Connection, changed: Ids) -> dict[str, int]:
    """Compute the upstream bits of everything below rows; return table -> rows that changed. Rows that changed already
    have nothing below them done twice.

    Parameters
    ----------
    changed : rows whose bits are new.
    """
    dirty: dict[str, list[UUID]] = {t: list(ids) for t, ids in changed.items()}
    counts: dict[str, int] = {}
    for step in _STEPS:
        if not any(dirty.get(p) for p in step.parents):
            continue
        values = {p: dirty.get(p, []) for p in step.parents}
        own = ""
        if step.table == "refs":
            bad = int(Badness.REF_BAD)
            own = (f"_bitflag = CASE WHEN f.up <> 0 THEN t._bitflag | {bad} "
                   f"WHEN t._upstream_bitflag <> 0 THEN t._bitflag & ~{bad}::bigint ELSE t._bitflag END, ")
        update = (f"UPDATE {step.table} t SET {own}_upstream_bitflag = f.up, modified = now() FROM ({step.select}) f "
                  "WHERE t._id = f._id AND t._upstream_bitflag <> f.up")
        if step.table in _LEAVES:
            n = conn.execute(update, values).rowcount  # type: ignore[arg-type]
        else:
            ids: list[Any] = conn.execute(update + " RETURNING t._id", values).fetchall()  # type: ignore[arg-type]
            dirty.setdefault(step.table, []).extend(r[0] for r in ids)
            n = len(ids)
        if n:
            counts[step.table] = counts.get(step.table, 0) + n
    return counts


def meet_marks(conn: Connection, exposure_id: UUID, parts: Sequence[PartRows], fresh: Sequence[PartRows]) -> None:
    """Let rows that a commit has just written follow marks set by hand on what was there before.

    Parameters
    ----------
    parts : what was written.
    fresh : those of them whose measurements were not there before.
    """
    if not parts:
        return
    seeds: dict[str, list[UUID]] = {"exposures": [exposure_id]}
    for p in parts:
        for table in ("images", "detections", "cutouts"):
            seeds.setdefault(table, []).extend(r["_id"] for r in p.rows.get(table, ()))
        seeds.setdefault("zero_points", []).extend(
            r["new_zp_id"] for r in p.rows.get("image_subtraction_components", ()))
        if p.part == "sub" and all(p is not f for f in fresh):
            seeds.setdefault("measurement_sets", []).extend(r["_id"] for r in p.rows["measurement_sets"])
            seeds.setdefault("deepscore_sets", []).extend(r["_id"] for r in p.score_sets)
    hand_on(conn, seeds)
