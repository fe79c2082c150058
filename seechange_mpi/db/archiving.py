"""Files into the archive and back: what is missing there, what is missing here, what is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from seechange_mpi.config.resolve import Config
from seechange_mpi.db.archived import ArchivedFile, archived_files, forget, remember
from seechange_mpi.io.archive import Archive, fetch_file, needed_archive, prove_copy, upload_file
from seechange_mpi.io.archive_retriever import BUNDLES, Layout
from seechange_mpi.io.bundle import exposure_folder, section_shards
from seechange_mpi.io.digests import digest_of
from seechange_mpi.io.records import SUFFIX, known_hash, read_record, record_of, recorded_hashes, write_record
from seechange_mpi.model.errors import BadInput, ConfigError, SeeChangeError, TransientError

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

T = TypeVar("T")
U = TypeVar("U")


@dataclass(slots=True)
class Transfer:
    """What a transfer did.

    Attributes
    ----------
    files, size : files and bytes that were transferred.
    present : files that were there already.
    problems : one line for each file that did not make it.
    passing : one of them may succeed later.
    """

    files: int = 0
    size: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)
    passing: bool = False

    def add(self, other: Transfer) -> None:
        """Add another one."""
        self.files += other.files
        self.size += other.size
        self.present += other.present
        self.problems += other.problems
        self.passing |= other.passing

    def failed(self, err: SeeChangeError) -> None:
        """Note a file that did not make it."""
        self.problems.append(str(err))
        self.passing |= isinstance(err, TransientError)


class Archivist:
    """Keeps the archive of a configuration and the table ``archived_files`` in step.

    Parameters
    ----------
    opened : opens database connections.
    archive : default: the one of the configuration.

    Raises
    ------
    ConfigError
        No archive is configured, or it cannot be opened.
    """

    def __init__(self, config: Config, opened: Callable[[], Connection], archive: Archive | None = None) -> None:
        self.config, self.opened = config, opened
        self.settings = config.settings.archive
        self.archive = archive or needed_archive(self.settings)
        self.layout = Layout(config.root, config.bundles)

    def exposures_here(self) -> list[str]:
        """Identifiers of exposures that have a bundle here."""
        return sorted({p.parent.name for p in self.config.bundles.glob("*/*.h5")})

    def raw_files(self, identifiers: Sequence[str] | None = None) -> dict[str, Path]:
        """Return exposure -> raw file of committed exposures whose raw file lies below the root."""
        with self.opened() as conn:
            rows: list[Any] = conn.execute(
                "SELECT origin_identifier, filepath FROM exposures WHERE %s::text[] IS NULL OR "
                "origin_identifier = ANY(%s)", (None if identifiers is None else list(identifiers),
                                                list(identifiers or ()))).fetchall()
        return {r[0]: Path(r[1]) for r in rows if self.layout.key_of(Path(r[1])) is not None}

    def push(self, identifier: str) -> Transfer:
        """Upload what the archive lacks of an exposure: shards, then bundles, each bundle's record last.

        What fails is told in the result, not raised; where something of a bundle is missing its record does not go up.
        """
        done = Transfer()
        folder = exposure_folder(self.config.bundles, identifier)
        with self.opened() as conn:
            known = archived_files(conn, self.archive.name, [identifier])
        raw = self.raw_files([identifier]) if self.settings.raw else {}
        for path in raw.values():
            if path.exists():
                self._push_set(identifier, record_of(path), _single_record(path), known, done)
        for bundle in sorted(folder.glob("*.h5")):
            try:
                hashes = bundle_record(bundle)
            except SeeChangeError as err:
                done.failed(err)
                continue
            self._push_set(identifier, record_of(bundle), hashes, known, done)
        return done

    def _push_set(self, identifier: str, record: Path, hashes: dict[str, str], known: dict[str, ArchivedFile],
                  done: Transfer) -> None:
        """Upload the files that a record names, those in folders below first, then the record itself."""
        by_depth = sorted(hashes.items(), key=lambda item: (-item[0].count("/"), item[0]))
        wanted = [(record.parent / name, digest) for name, digest in by_depth]
        depths = sorted({name.count("/") for name in hashes}, reverse=True)
        before = len(done.problems)
        for depth in depths:
            level = [w for w, (name, _) in zip(wanted, by_depth, strict=True) if name.count("/") == depth]
            self._push_files(identifier, level, known, done)
            if len(done.problems) > before:
                return
        self._push_files(identifier, [(record, digest_of(record).sha256)], known, done)

    def _push_files(self, identifier: str, wanted: list[tuple[Path, str]], known: dict[str, ArchivedFile],
                    done: Transfer) -> None:
        todo = []
        for path, digest in wanted:
            key = self.layout.key_of(path)
            assert key is not None
            if key in known and known[key].sha256 == digest:
                done.present += 1
            elif not path.exists():
                done.problems.append(f"{path}: neither here nor in the archive")
            else:
                todo.append((path, key, digest))

        def send(item: tuple[Path, str, str]) -> ArchivedFile | SeeChangeError:
            path, key, sha256 = item
            try:
                digest, proved = upload_file(self.archive, path, key, sha256)
            except SeeChangeError as err:
                return err
            return ArchivedFile(key, identifier, digest.sha256, digest.size, proved)

        stored: list[ArchivedFile] = []
        for result in self.each(send, todo):
            if isinstance(result, ArchivedFile):
                stored.append(result)
                done.files += 1
                done.size += result.size
            else:
                if isinstance(result, ConfigError):
                    raise result
                done.failed(result)
        if stored:
            with self.opened() as conn:
                remember(conn, self.archive.name, stored)
            known.update({f.key: f for f in stored})

    def each(self, call: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """Call for several items at once."""
        with ThreadPoolExecutor(self.settings.streams, thread_name_prefix="archive") as pool:
            return list(pool.map(call, items))

    def pull(self, identifier: str) -> Transfer:
        """Bring back all files of an exposure that are not here.

        What the database does not know is looked for in the archive itself, if that can list.
        """
        with self.opened() as conn:
            known = {f.key: f.sha256 for f in archived_files(conn, self.archive.name, [identifier]).values()}
        done = Transfer()
        keys = list(known) or list(self.archive.keys(f"{BUNDLES}/{identifier}/"))
        if not keys:
            done.problems.append(f"{identifier}: the archive {self.archive.name} has nothing of it")
        records = [k for k in keys if k.endswith(SUFFIX)]
        for level in (records, [k for k in keys if k not in set(records)]):
            self._pull_files(level, known, done)
        return done

    def _pull_files(self, keys: list[str], known: dict[str, str], done: Transfer) -> None:
        here = [k for k in keys if self.layout.path_of(k).exists()]
        done.present += len(here)

        def fetch(key: str) -> SeeChangeError | int:
            path = self.layout.path_of(key)
            accepted = [known[key]] if key in known else recorded_hashes(path)
            if not accepted and not key.endswith(SUFFIX):
                return BadInput(f"{self.archive.name} {key}", "archived copy", "a record of its sha256", "none")
            try:
                fetch_file(self.archive, key, path, accepted)
            except SeeChangeError as err:
                return err
            return path.stat().st_size

        for result in self.each(fetch, [k for k in keys if k not in set(here)]):
            if isinstance(result, int):
                done.files += 1
                done.size += result
            else:
                done.failed(result)

    def verify(self, files: Iterable[ArchivedFile]) -> Transfer:
        """Read archived copies and hash them; the database learns which are whole.

        A copy that is not, of a file that is whole here, is forgotten, so that the next push sends it again.
        """

        def prove(file: ArchivedFile) -> tuple[ArchivedFile, str | SeeChangeError]:
            try:
                return file, prove_copy(self.archive, file.key, file.sha256)
            except TransientError as err:
                return file, err

        done = Transfer()
        good, bad = [], []
        for file, problem in self.each(prove, files):
            if isinstance(problem, SeeChangeError):
                done.failed(problem)
            elif problem:
                bad.append(file)
                done.problems.append(f"{file.key}: {problem}; {self._remedy(file)}")
            else:
                good.append(ArchivedFile(file.key, file.exposure, file.sha256, file.size, True))
                done.files += 1
                done.size += file.size
        with self.opened() as conn:
            remember(conn, self.archive.name, good)
            lost = [f for f in bad if self._is_good_here(f)]
            remember(conn, self.archive.name, [ArchivedFile(f.key, f.exposure, f.sha256, f.size, False) for f in bad
                                               if f not in lost])
            for f in lost:
                self.archive.delete(f.key)
            forget(conn, self.archive.name, [f.key for f in lost])
        return done

    def _is_good_here(self, file: ArchivedFile) -> bool:
        path = self.layout.path_of(file.key)
        return path.exists() and digest_of(path).sha256 == file.sha256

    def _remedy(self, file: ArchivedFile) -> str:
        if self._is_good_here(file):
            return "the file here is whole: seechange-mpi archive push sends it again"
        return "there is no whole copy here either"


def bundle_record(bundle: Path) -> dict[str, str]:
    """Return path relative to a bundle's folder -> sha256 of the bundle and its shards; a missing or older record is
    made anew.

    Raises
    ------
    BadInput
        There is none, and the bundle is damaged.
    """
    record = record_of(bundle)
    if record.exists() and record.stat().st_mtime_ns >= bundle.stat().st_mtime_ns:
        try:
            return read_record(record)
        except BadInput:
            pass
    shards = section_shards(bundle)
    hashes = {str(s.relative_to(bundle.parent)): known_hash(s) for s in shards.values() if s.exists()}
    hashes[bundle.name] = digest_of(bundle).sha256
    write_record(record, hashes)
    return hashes


def _single_record(path: Path) -> dict[str, str]:
    """Return the record of a file that stands alone, made if it is missing or older."""
    record = record_of(path)
    if not record.exists() or record.stat().st_mtime_ns < path.stat().st_mtime_ns:
        write_record(record, {path.name: digest_of(path).sha256})
    return read_record(record)
