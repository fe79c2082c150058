"""Excerpts of catalogues: made by one of many jobs while the others wait for it, and registered.

The lock belongs to a transaction, so that it is gone with the process that held it, also behind PgBouncer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from seechange_mpi.config.resolve import redact
from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.engine import notice_lost_client
from seechange_mpi.db.linking import healpix
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_LOCK_SPACE = 0x5EF
_LOCK_ORDER = 3
"""HEALPix cells of 7 degrees: two cones of which one covers the other have one in common."""


def lock_cells(query: str, cone: tuple[float, float, float]) -> list[int]:
    """Return sorted numbers of advisory locks: one for each sky cell that the cone touches, others for each query."""
    import hpgeom

    ra, dec, radius = cone
    cells = hpgeom.query_circle(1 << _LOCK_ORDER, ra, dec, radius, inclusive=True, nest=True, lonlat=True, degrees=True)
    texts = (f"{query}|{int(c)}".encode() for c in cells)
    return sorted({int.from_bytes(hashlib.sha256(t).digest()[:4], "big", signed=True) for t in texts})


class ExcerptKeeper:
    """Lets one process at a time make an excerpt of a region.

    Parameters
    ----------
    opened : opens database connections.
    wait_s : how long to wait for another process before the excerpt is made here as well; its file is then written
        twice with the same content, which harms nothing.
    """

    def __init__(self, opened: Callable[[], Connection], wait_s: float) -> None:
        self.opened, self.wait_s = opened, wait_s

    @contextmanager
    def alone(self, query: str, cone: tuple[float, float, float]) -> Iterator[None]:
        """Hold the locks of a region for one query; see `io.catalog_excerpt.make_excerpt`."""
        with self.opened() as conn, conn.transaction():
            notice_lost_client(conn)
            conn.execute("SELECT set_config('lock_timeout', %s, true), "
                         "set_config('idle_in_transaction_session_timeout', '0', true)",
                         (f"{max(1, round(1000 * self.wait_s))}ms",))
            try:
                with conn.transaction():
                    conn.execute("SELECT pg_advisory_xact_lock(%s, c) FROM unnest(%s::int[]) WITH ORDINALITY "
                                 "AS t(c, n) ORDER BY n", (_LOCK_SPACE, lock_cells(query, cone)))
            except psycopg.errors.LockNotAvailable:
                pass  # its holder is stuck, or its machine has vanished
            yield

    def register(self, spec: Mapping[str, Any], path: Path) -> bool:
        """Register an excerpt unless the database has it as it is; return whether it was new or had changed.

        Raises
        ------
        BadInput
            The file is missing or damaged.
        """
        with self.opened() as conn:
            return register_excerpt(conn, spec, path)


def register_excerpt(conn: Connection, spec: Mapping[str, Any], path: Path) -> bool:
    """Register an excerpt; see `ExcerptKeeper.register`.

    Parameters
    ----------
    spec : of the catalogue that it was made from.
    """
    row_id = stable_id("catalog_excerpt", path.name)
    known: Any = conn.execute("SELECT sha256, filepath FROM catalog_excerpts WHERE _id = %s", (row_id,)).fetchone()
    conn.commit()
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if known is not None and known[0] == digest:
        return False
    row = {"_id": row_id, "filepath": str(path), "sha256": digest} | _description(spec, path)
    with conn.transaction():
        return insert_rows(conn, "catalog_excerpts", [row], update=True) > 0


def _description(spec: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Columns that tell what an excerpt holds; limits of the query where it had some, else of its stars."""
    import numpy as np

    from seechange_mpi.io.catalog import brightness
    from seechange_mpi.io.catalog_http import bounding_box
    from seechange_mpi.io.star_file import read_star_file

    stars, cards = read_star_file(path)
    ra, dec, radius = (float(cards[k]) for k in ("EXCRA", "EXCDEC", "EXCRAD"))
    mags = brightness(stars)
    mags = mags[np.isfinite(mags)] if stars.mags else np.zeros(0)
    west, east, south, north = bounding_box(ra, dec, radius, border=0.0)
    corners = {"00": (west, south), "01": (west, north), "10": (east, south), "11": (east, north)}
    out = {"origin": redact(str(spec.get("path") or spec.get("url"))), "num_items": len(stars),
           "minmag": _limit(spec.get("min_mag"), mags, np.min), "maxmag": _limit(spec.get("max_mag"), mags, np.max),
           "filters": sorted(m for m in stars.mags if not m.endswith(("_err", "_snr")) and m != "bp_rp"),
           "ra": ra, "dec": dec, "radius": radius, "healpix": int(healpix(ra, dec))}
    for name, (a, d) in corners.items():
        out |= {f"ra_corner_{name}": a, f"dec_corner_{name}": d}
    return out


def _limit(given: Any, mags: Any, of: Callable[[Any], Any]) -> float | None:
    if given is not None:
        return float(given)
    return float(of(mags)) if len(mags) else None


@dataclass(frozen=True, slots=True)
class ExcerptRow:
    """One registered excerpt; positions and radius [deg]."""

    id: str
    origin: str
    ra: float
    dec: float
    radius: float
    num_items: int
    minmag: float | None
    maxmag: float | None
    filters: list[str]
    filepath: str
    created_at: datetime


def list_excerpts(conn: Connection) -> list[ExcerptRow]:
    """Return the registered excerpts, the newest first."""
    rows: list[Any] = conn.execute(
        "SELECT _id::text, origin, ra, dec, radius, num_items, minmag, maxmag, filters, filepath, created_at "
        "FROM catalog_excerpts ORDER BY created_at DESC, _id").fetchall()
    return [ExcerptRow(*r) for r in rows]
