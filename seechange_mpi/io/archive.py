"""Archives: one way to put files away for good and to get them back, whatever lies behind it.

An archive mirrors the working folder: the key of a file is its path relative to it. Nothing is ever there under its
key that is not whole; every transfer is compared with the sha256 of the file's bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.io.digests import Digest, HashingSink, digest_of
from seechange_mpi.io.drafts import clean_leftovers, draft_of
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError


@dataclass(frozen=True, slots=True)
class Copy:
    """What an archive says of a file.

    Attributes
    ----------
    size : bytes.
    sha256, md5 : computed by the archive from what it has stored; empty where it did not.
    """

    size: int
    sha256: str = ""
    md5: str = ""

    def proves(self, digest: Digest) -> bool:
        """Whether this says that the stored bytes are those of the digest."""
        if self.size != digest.size:
            return False
        if self.sha256:
            return self.sha256 == digest.sha256
        return bool(self.md5) and self.md5 == digest.md5

    def contradicts(self, digest: Digest) -> bool:
        """Whether this says that they are others."""
        return (self.size != digest.size or (bool(self.sha256) and self.sha256 != digest.sha256)
                or (bool(self.md5 and digest.md5) and self.md5 != digest.md5))


class Archive(Protocol):
    """A place for files.

    Attributes
    ----------
    name : tells it from others, in the database and in messages; without secrets.
    """

    name: str

    def upload(self, path: Path, key: str, digest: Digest) -> Copy:
        """Store a file, in place of what has its key; return what is stored.

        A failure leaves nothing under the key but what was there.

        Raises
        ------
        TransientError
            It did not work, as often as was tried.
        BadInput
            The archive refuses it.
        """
        ...

    def download(self, key: str, sink: HashingSink) -> None:
        """Give the bytes of a file to `sink`, piece by piece; `sink` is restarted where the transfer is.

        Raises
        ------
        TransientError
            It did not work, as often as was tried.
        BadInput
            There is no such file.
        """
        ...

    def info(self, key: str, *, hashed: bool = False) -> Copy | None:
        """Return what is known of a file, None if there is none; with `hashed` its hash if that can be had."""
        ...

    def delete(self, key: str) -> bool:
        """Remove a file; False if there was none."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`.

        Raises
        ------
        ConfigError
            This kind of archive cannot list.
        """
        ...


def open_archive(settings: ArchiveSettings) -> Archive | None:
    """Return the archive of a configuration; None = there is none.

    Raises
    ------
    ConfigError
        A setting is missing or wrong, or so is a package.
    """
    if settings.kind == "none":
        return None
    if not settings.path:
        raise ConfigError(f"archive.kind is {settings.kind}, but archive.path is not set")
    if settings.kind == "directory":
        from seechange_mpi.io.archive_directory import DirectoryArchive

        return DirectoryArchive(Path(settings.path))
    if settings.kind == "s3":
        from seechange_mpi.io.archive_s3 import open_s3

        return open_s3(settings)
    from seechange_mpi.io.archive_connector import ConnectorArchive

    return ConnectorArchive(settings)


def needed_archive(settings: ArchiveSettings) -> Archive:
    """Return the archive of a configuration.

    Raises
    ------
    ConfigError
        There is none.
    """
    archive = open_archive(settings)
    if archive is None:
        raise ConfigError("no archive is configured: set archive.kind to directory, s3 or connector, and archive.path")
    return archive


def upload_file(archive: Archive, path: Path, key: str, sha256: str) -> tuple[Digest, bool]:
    """Store a file; return its digest, and whether the archive has proved from its own bytes that it is whole.

    Parameters
    ----------
    sha256 : what was written; a file that has changed since is refused.

    Raises
    ------
    BadInput
        The file is gone or changed.
    TransientError
        The archive does not answer, or what it has stored is something else.
    """
    try:
        digest = digest_of(path, md5=True)
    except FileNotFoundError:
        raise BadInput(path, "file for the archive", "a file", "no such file") from None
    if digest.sha256 != sha256:
        raise BadInput(path, "file for the archive", f"the bytes that were written (sha256 {sha256[:12]}…)",
                       f"others ({digest.sha256[:12]}…): it is damaged")
    stored = archive.info(key, hashed=True)
    if stored is None or not stored.proves(digest):
        stored = archive.upload(path, key, digest)
    if stored.contradicts(digest):
        with suppress(TransientError, BadInput):
            archive.delete(key)
        raise TransientError(f"{archive.name}: {key} did not arrive whole: {digest.size} bytes were sent, "
                             f"{stored.size} are there, or others; seechange-mpi archive push tries again")
    return digest, stored.proves(digest)


def fetch_file(archive: Archive, key: str, path: Path, accepted: Collection[str], mtime_ns: int | None = None) -> str:
    """Bring a file from an archive to `path`, under a temporary name until it is whole; return its sha256.

    Parameters
    ----------
    accepted : sha256 of what may come; empty = anything.
    mtime_ns : time of modification that it gets.

    Raises
    ------
    BadInput
        The archive has none, or other bytes.
    TransientError
        The archive does not answer, or the disk is full.
    """
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_leftovers(path.parent)
        with draft.open("w+b") as f:
            sink = HashingSink(f)
            archive.download(key, sink)
            f.flush()
            os.fsync(f.fileno())
        digest = sink.digest()
        if accepted and digest.sha256 not in accepted:
            raise BadInput(f"{archive.name} {key}", "archived copy", f"sha256 {' or '.join(a[:12] for a in accepted)}",
                           f"{digest.sha256[:12]} ({digest.size} bytes): it is damaged")
        if mtime_ns is not None:
            os.utime(draft, ns=(mtime_ns, mtime_ns))
        draft.replace(path)
    except BaseException as err:
        with suppress(OSError):
            draft.unlink()
        if not isinstance(err, OSError):
            raise
        full = err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "no space left" if full else f"{err.strerror or err}"
        raise TransientError(f"{path.parent}: {why} while {key} came back from the archive; make room, or see to the "
                             "folder, and try again") from None
    return digest.sha256


def prove_copy(archive: Archive, key: str, sha256: str) -> str:
    """Read an archived copy and hash it; return what is wrong with it, or nothing.

    Raises
    ------
    TransientError
        The archive does not answer.
    """
    sink = HashingSink()
    try:
        archive.download(key, sink)
    except BadInput as err:
        return err.found
    found = sink.digest()
    return "" if found.sha256 == sha256 else f"its sha256 is {found.sha256[:12]}…, not {sha256[:12]}…"
