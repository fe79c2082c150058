"""An archive that is a folder: another disk, a mounted store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from seechange_mpi.io.archive import Copy
from seechange_mpi.io.digests import Digest, HashingSink, digest_of, pieces
from seechange_mpi.io.drafts import clean_leftovers, draft_of
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError


class DirectoryArchive:
    """Files below a folder.

    Parameters
    ----------
    folder : it must exist: a mount that is not there must not be taken for an empty archive.

    Raises
    ------
    ConfigError
        It does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.name = str(self.folder)
        if not self.folder.is_dir():
            raise ConfigError(f"archive.path: there is no folder {self.folder}; make it, or mount what belongs there")

    def _place(self, key: str) -> Path:
        return self.folder / key

    def upload(self, path: Path, key: str, digest: Digest) -> Copy:
        """Copy a file under a temporary name, read that back from the disk, and rename it (see `Archive.upload`)."""
        target = self._place(key)
        draft = draft_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            clean_leftovers(target.parent)
            with draft.open("wb") as f:
                for piece in pieces(path):
                    f.write(piece)
                f.flush()
                os.fsync(f.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = digest_of(draft)
            if found.sha256 != digest.sha256:
                raise TransientError(f"{self.name}: {key} was not stored as it was sent; seechange-mpi archive push "
                                     "tries again")
            draft.replace(target)
            _fsync_folder(target.parent)
            return Copy(found.size, found.sha256)
        except OSError as err:
            raise TransientError(f"{self.name}: {key} cannot be stored: {err.strerror or err}; what is there is kept, "
                                 "seechange-mpi archive push goes on") from None
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def download(self, key: str, sink: HashingSink) -> None:
        """Read a file (see `Archive.download`)."""
        source = self._place(key)
        try:
            with source.open("rb"):
                pass
        except FileNotFoundError:
            raise BadInput(f"{self.name} {key}", "archived copy", "a file", "no such file") from None
        except OSError as err:
            raise TransientError(f"{self.name}: {key} cannot be read: {err.strerror or err}") from None
        for piece in pieces(source):
            sink.write(piece)

    def info(self, key: str, *, hashed: bool = False) -> Copy | None:
        """Size, and sha256 if it is asked for (see `Archive.info`)."""
        place = self._place(key)
        try:
            size = place.stat().st_size
            return Copy(size, digest_of(place).sha256 if hashed else "")
        except FileNotFoundError:
            return None
        except OSError as err:
            raise TransientError(f"{self.name}: {key} cannot be read: {err.strerror or err}") from None

    def delete(self, key: str) -> bool:
        """Remove a file (see `Archive.delete`)."""
        try:
            self._place(key).unlink()
        except FileNotFoundError:
            return False
        except OSError as err:
            raise TransientError(f"{self.name}: {key} cannot be removed: {err.strerror or err}") from None
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Walk the folder (see `Archive.keys`)."""
        for path in sorted(self._place(prefix).rglob("*") if prefix else self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield str(path.relative_to(self.folder))


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
