"""Missing files of a working folder, brought back from its archive."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.io.archive import Archive, fetch_file, needed_archive
from seechange_mpi.io.records import read_record, record_of, recorded_hashes
from seechange_mpi.io.retrieval import is_active, set_retriever
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError

if TYPE_CHECKING:
    from seechange_mpi.config.resolve import Config

BUNDLES = "bundles"


class Layout:
    """Which file has which key: bundles and shards below ``bundles/``, everything else by its path below the root.

    Parameters
    ----------
    root, bundles : absolute folders of a configuration.
    """

    def __init__(self, root: Path, bundles: Path) -> None:
        self.root, self.bundles = root, bundles

    def key_of(self, path: Path) -> str | None:
        """Return the key of a file, None for one that lies elsewhere."""
        path = path.absolute()
        if ".." in path.parts:
            path = path.resolve()
        if path.is_relative_to(self.bundles):
            return f"{BUNDLES}/{path.relative_to(self.bundles)}"
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return None

    def path_of(self, key: str) -> Path:
        """Return the path of a file."""
        first, _, rest = key.partition("/")
        return self.bundles / rest if first == BUNDLES else self.root / key


def use_configured_archive(config: Config) -> None:
    """Have missing files brought back from the archive of a configuration, unless this process does so already."""
    if not is_active() and config.settings.archive.kind != "none":
        set_retriever(ArchiveRetriever.of(config))


class ArchiveRetriever:
    """Brings files back, compared with the records beside them, or beside their copies in the archive.

    Parameters
    ----------
    settings : of the archive, which is opened when the first file is missing.
    """

    def __init__(self, layout: Layout, settings: ArchiveSettings) -> None:
        self.layout, self.settings = layout, settings
        self._archive: Archive | None = None
        self._lock = threading.Lock()
        self._in_work: dict[Path, threading.Lock] = {}

    @classmethod
    def of(cls, config: Config) -> ArchiveRetriever:
        """The one of a configuration."""
        return cls(Layout(config.root, config.bundles), config.settings.archive)

    @property
    def archive(self) -> Archive:
        """The archive, opened."""
        with self._lock:
            if self._archive is None:
                try:
                    self._archive = needed_archive(self.settings)
                except ConfigError as err:
                    if self.settings.kind == "directory":  # a mount that is away may come back
                        raise TransientError(f"a file is missing, and so is the archive: {err}") from None
                    raise
            return self._archive

    def has(self, path: Path) -> bool:
        """Whether the archive has a file and its hash is known."""
        key = self.layout.key_of(path)
        return key is not None and bool(self._accepted(path)) and self.archive.info(key) is not None

    def bring(self, path: Path) -> bool:
        """Bring a file back, proved whole; False when the archive does not have it.

        Raises
        ------
        TransientError
            The archive does not answer, or there is no room.
        BadInput
            What it has is not what was written.
        """
        key = self.layout.key_of(path)
        if key is None:
            return False
        with self._lock:
            lock = self._in_work.setdefault(path, threading.Lock())
        with lock:
            if path.exists():
                return True
            if self.archive.info(key) is None:
                return False
            accepted = self._accepted(path)
            if not accepted:
                return False
            fetch_file(self.archive, key, path, accepted, self._written(path))
            return True

    def _records(self, path: Path) -> list[Path]:
        """Records that may name a file: its own, and for a shard those of the bundles in the folder above."""
        above = path.parent.parent
        return [record_of(path), *(record_of(b) for b in sorted(above.glob("*.h5")) if path.parent.name == "shards")]

    def _accepted(self, path: Path) -> list[str]:
        """Hashes under which a file was written; records that are not here are brought back first."""
        known = recorded_hashes(path)
        if known:
            return known
        for record in self._records(path):
            key = self.layout.key_of(record)
            if not record.exists() and key is not None and self.archive.info(key) is not None:
                fetch_file(self.archive, key, record, ())
        return recorded_hashes(path)

    def _written(self, path: Path) -> int | None:
        """Modification time of the newest record that names a file: what came back is not newer than it."""
        times = []
        for folder in (path.parent, path.parent.parent):
            for record in folder.glob("*.sha256"):
                try:
                    if str(path.relative_to(folder)) in read_record(record):
                        times.append(record.stat().st_mtime_ns)
                except BadInput:
                    continue
        return max(times, default=None)
