"""Bundles that the database does not have: found by attributes, committed under the fence, the queue put right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.commit import CommitResult, commit_bundle
from seechange_mpi.db.crossmatch import AfterCommit
from seechange_mpi.db.linking import Linkage
from seechange_mpi.db.queue import LocalQueue
from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.bundle import FORMAT, VERSION, files_below, read_bundle
from seechange_mpi.io.h5util import check_format, get_text, open_h5
from seechange_mpi.model.errors import BadInput, SeeChangeError, TransientError
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    import h5py

    from seechange_mpi.conductor_client.protocol import Claim
    from seechange_mpi.db.engine import Connection

_BATCH = 200
"""Bundles compared with the database in one query."""
_IMAGE = ("image_meta", "sources", "psf", "background", "wcs", "zeropoint")
_SUB = ("sub", "detections", "measurements", "scores")


@dataclass(frozen=True, slots=True)
class BundleSets:
    """What the attributes of a bundle say.

    Attributes
    ----------
    leaves : provenances from which no other of the bundle follows: bundles of one exposure that agree in them hold
        the same thing, and the newest counts.
    hashes : id of a row of ``product_sets`` -> hash of its content.
    failed, stopped : sections that failed, and those that stopped early on request.
    """

    path: Path
    identifier: str
    instrument: str
    mjd: float
    created: str
    leaves: frozenset[str]
    hashes: dict[UUID, str]
    sections: tuple[str, ...]
    failed: tuple[str, ...]
    stopped: tuple[str, ...]


@dataclass(slots=True)
class Found:
    """Result of `find_pending`, pending bundles in the order of exposure times."""

    pending: list[BundleSets] = field(default_factory=list)
    present: int = 0
    damaged: list[str] = field(default_factory=list)


def association_radius(config: Config, path: Path) -> float:
    """Return the largest distance [arcsec] of a measurement of this bundle to its object."""
    radius = config.settings.objects.association_radius_arcsec
    if radius is not None:
        return radius
    instrument = read_bundle(path).config.get("camera", {}).get("name") or config.settings.camera.name
    return load_camera(instrument).association_radius_arcsec


def commit_one(conn: Connection, config: Config, path: Path, *, token: int | None = None, replace: bool = False
               ) -> CommitResult:
    """Commit a bundle by the settings of a configuration (see `commit_bundle`)."""
    return commit_bundle(conn, path, radius_arcsec=association_radius(config, path), token=token, replace=replace,
                         tag=config.settings.run.provenance_tag,
                         max_new_objects=config.settings.objects.max_new_per_exposure,
                         how=Linkage.of(config.settings.objects))


def said(done: CommitResult) -> str:
    """Return what a commit did, for one line."""
    if done.unchanged:
        return "everything is there already"
    n = [done.inserted.get(t, 0) for t in ("images", "measurements", "objects")]
    return f"{n[0]} images, {n[1]} measurements, {n[2]} new objects in {sum(done.seconds.values()):.2f} s"


def _section_sets(identifier: str, section: str, g: h5py.Group) -> dict[UUID, str]:
    """The rows of ``product_sets`` that a section has once it is committed."""
    if not all(name in g for name in _IMAGE):
        return {}
    ids = json.loads(get_text(g, "provenance_ids", "{}"))
    parts = [("image", "extraction", "image_hash")]
    if all(name in g for name in _SUB) and len(g["scores"]):
        parts.append(("sub", "scoring", "sub_hash"))
    return {stable_id("set", identifier, ids[process], section, part): get_text(g, hashed)
            for part, process, hashed in parts}


def read_sets(path: Path) -> BundleSets | None:
    """Read the attributes of a bundle; None for an HDF5 file of another kind.

    Raises
    ------
    BadInput
        It is missing, damaged or of a later version.
    """
    with open_h5(path) as f:
        if f.attrs.get("format") != FORMAT:
            return None
        check_format(f, path, {FORMAT: VERSION})
        identifier = str(f.attrs["exposure"])
        table = f["provenance"][...]
        hashes: dict[UUID, str] = {}
        failed, stopped = [], []
        for section, g in f["sections"].items():
            hashes |= _section_sets(identifier, section, g)
            report = g["report"]
            if not report.attrs["success"]:
                failed.append(section)
            elif get_text(report, "caveat") == "partial":
                stopped.append(section)
        upstream = {u for r in table for u in json.loads(r["upstream_ids"])}
        leaves = frozenset(r["id"].decode() for r in table) - {str(u) for u in upstream}
        return BundleSets(path, identifier, str(f.attrs["instrument"]), float(f.attrs["mjd"]),
                          str(f.attrs["created"]), leaves, hashes, tuple(f["sections"]), tuple(failed),
                          tuple(stopped))


def find_pending(conn: Connection, places: Iterable[Path]) -> Found:
    """Find the newest bundles of which the database lacks something.

    Parameters
    ----------
    places : folders, searched with all below, or bundles.
    """
    found = Found()
    newest: dict[tuple[str, frozenset[str]], BundleSets] = {}
    for path in files_below(places):
        try:
            sets = read_sets(path)
        except BadInput as err:
            found.damaged.append(str(err))
            continue
        if sets is not None:
            key = (sets.identifier, sets.leaves)
            if key not in newest or newest[key].created <= sets.created:
                newest[key] = sets
    bundles = sorted(newest.values(), key=lambda b: (b.mjd, b.identifier, b.created))
    for k in range(0, len(bundles), _BATCH):
        batch = bundles[k:k + _BATCH]
        rows: Any = conn.execute("SELECT _id, content_hash FROM product_sets WHERE _id = ANY(%s)",
                                 ([i for b in batch for i in b.hashes],)).fetchall()
        stored = dict(rows)
        found.pending += [b for b in batch if any(stored.get(i) != h for i, h in b.hashes.items())]
    conn.rollback()
    found.present = len(bundles) - len(found.pending)
    return found


class PendingCommits:
    """Commits pending bundles, one after the other.

    Parameters
    ----------
    opened : opens database connections.
    owner : name under which exposures of the queue are claimed meanwhile.
    is_gone : whether an owner of a claim is known to be gone; such claims are no obstacle.
    tell : given a line for each bundle and a summary.
    """

    def __init__(self, config: Config, opened: Callable[[], Connection], owner: str, is_gone: Callable[[str], bool],
                 tell: Callable[[str], None]) -> None:
        self.config, self.opened, self.owner, self.is_gone, self.tell = config, opened, owner, is_gone, tell
        self.queue = LocalQueue(opened)
        self._match = AfterCommit(config, opened, tell)

    def run(self, places: Sequence[Path], *, replace: bool = False) -> bool:
        """Commit what is pending; return whether all of it was.

        Raises
        ------
        TransientError
            The database went away: the rest stays pending.
        """
        try:
            with self.opened() as conn:
                found = find_pending(conn, places)
                for problem in found.damaged:
                    self.tell(f"passed over: {problem}")
                if found.pending:
                    self.queue.expire_owners(self.is_gone)
                known = self.queue.names(b.identifier for b in found.pending)
                n = sum(self._commit(conn, b, known.get(b.identifier, []), replace) for b in found.pending)
        finally:
            self.queue.close()
        over = len(found.pending) - n + len(found.damaged)
        if found.pending or over:
            self.tell(f"{n} committed, {over} passed over, {found.present} were in the database")
        else:
            self.tell(f"nothing is pending: the database has all of {found.present} bundle(s)")
        return not over

    def _commit(self, conn: Connection, bundle: BundleSets, instruments: list[str], replace: bool) -> bool:
        """Commit one bundle with the claim of its exposure, or with the newest token where it is not in the queue."""
        claim, before = None, ""
        instrument = _same_camera(instruments, bundle.instrument)
        if instrument is not None:
            taken = self.queue.take(instrument, bundle.identifier, self.owner, self.config.settings.queue.lease_s)
            if taken is None:
                self.tell(f"{bundle.path.name}: passed over: a run has claimed {bundle.identifier} and will commit it")
                return False
            claim, before = taken
        try:
            token = _newest_token(conn, bundle.identifier) if claim is None else claim.token
            done = commit_one(conn, self.config, bundle.path, token=token, replace=replace)
        except SeeChangeError as err:
            if claim is not None:
                with suppress(TransientError):
                    self.queue.put_back(claim, before, str(err).splitlines()[0])
            if isinstance(err, TransientError):
                raise
            self.tell(f"{bundle.path.name}: passed over: {err}")
            return False
        if claim is not None:
            self._release(claim, bundle)
        self.tell(f"{bundle.path.name}: {said(done)}")
        self._match(bundle.identifier)
        return True

    def _release(self, claim: Claim, bundle: BundleSets) -> None:
        """Say in the queue how the exposure went, as the run would have."""
        counts = {"sections": len(bundle.sections), "failed": len(bundle.failed), "reused": len(bundle.sections)}
        if bundle.failed:
            self.queue.fail(claim, f"sections failed: {', '.join(bundle.failed)}", counts)
            return
        usable = load_camera(claim.instrument).section_ids_at(bundle.mjd)
        whole = not bundle.stopped and len(bundle.sections) >= len(usable)
        self.queue.release(claim, "done" if whole else "partial", counts)


def _same_camera(instruments: list[str], name: str) -> str | None:
    """Return the instrument of the queue's row: the only one, or the one that is, or whose file describes, `name`."""
    if len(instruments) <= 1 or name in instruments:
        return name if name in instruments else next(iter(instruments), None)
    for instrument in instruments:
        with suppress(SeeChangeError):
            if load_camera(instrument).name == name:
                return instrument
    return None


def _newest_token(conn: Connection, identifier: str) -> int | None:
    with conn.transaction():
        row: Any = conn.execute("SELECT token FROM commit_fence WHERE exposure = %s", (identifier,)).fetchone()
    return None if row is None else int(row[0])
