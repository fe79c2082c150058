"""What is known of the archive's files: table ``archived_files``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file of an archive.

    Attributes
    ----------
    key : path below the archive, and below the working folder.
    exposure : identifier of the exposure that it belongs to.
    size : bytes.
    verified : the archive's own bytes have been hashed and were right.
    """

    key: str
    exposure: str
    sha256: str
    size: int
    verified: bool


def archived_files(conn: Connection, archive: str, exposures: Sequence[str] | None = None) -> dict[str, ArchivedFile]:
    """Return key -> file of what an archive has, of some exposures or of all."""
    rows: list[Any] = conn.execute(
        "SELECT filepath, exposure, sha256, size, verified_at IS NOT NULL FROM archived_files WHERE archive = %s "
        "AND (%s::text[] IS NULL OR exposure = ANY(%s)) ORDER BY filepath",
        (archive, None if exposures is None else list(exposures), [] if exposures is None else list(exposures)),
    ).fetchall()
    return {r[0]: ArchivedFile(*r) for r in rows}


def remember(conn: Connection, archive: str, files: Iterable[ArchivedFile]) -> None:
    """Record files that an archive has from now on; commits."""
    rows = sorted((stable_id("archived", archive, f.key), archive, f.key, f.exposure, f.sha256, f.size, f.verified)
                  for f in files)
    with conn.transaction(), conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO archived_files (_id, archive, filepath, exposure, sha256, size, verified_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, CASE WHEN %s THEN now() END) ON CONFLICT (_id) DO UPDATE SET "
            "sha256 = EXCLUDED.sha256, size = EXCLUDED.size, exposure = EXCLUDED.exposure, modified = now(), "
            "verified_at = EXCLUDED.verified_at",
            rows,
        )


def forget(conn: Connection, archive: str, keys: Iterable[str]) -> None:
    """Delete rows of files that an archive does not have any more; commits."""
    with conn.transaction():
        conn.execute("DELETE FROM archived_files WHERE archive = %s AND filepath = ANY(%s)", (archive, sorted(keys)))
