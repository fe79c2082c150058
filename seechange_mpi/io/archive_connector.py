"""SeeChange's upload server as an archive.

Forms are posted to ``/upload`` (the file as part ``fileinfo``), ``/getfileinfo``, ``/download`` and ``/delete``;
answers are JSON, ``{"error": …}`` with status 200 where something is wrong, and a byte stream for a download.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.config.resolve import redact
from seechange_mpi.io.archive import Copy
from seechange_mpi.io.digests import PIECE, Digest, HashingSink, pieces
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError

T = TypeVar("T")
_REFUSED = ("Invalid token", "File already exists")
"""Beginnings of errors that no trying again mends."""


class UploadForm:
    """Fields and one file as ``multipart/form-data``: its length is known, and it is sent piece by piece."""

    def __init__(self, fields: Mapping[str, object], path: Path, size: int) -> None:
        self.boundary = secrets.token_hex(16)
        parts = [f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
                 for name, value in fields.items()]
        parts.append(f'--{self.boundary}\r\nContent-Disposition: form-data; name="fileinfo"; filename="{path.name}"\r\n'
                     "Content-Type: application/octet-stream\r\n\r\n")
        self._head = "".join(parts).encode()
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()
        self._path, self._size = path, size

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        yield from pieces(self._path)
        yield self._tail


class ConnectorArchive:
    """Files of one collection of a server.

    Raises
    ------
    ConfigError
        Address or token are missing.
    """

    def __init__(self, settings: ArchiveSettings) -> None:
        if not settings.url:
            raise ConfigError("archive.kind is connector, but archive.url, the address of the server, is not set")
        self.settings = settings
        self.base = str(settings.path).strip("/")
        self.url = settings.url.rstrip("/")
        self.name = f"{redact(self.url)}/{self.base}"
        self.token = read_token(settings.token_file, f"{self.base}/")

    def _fields(self, key: str, **more: object) -> dict[str, object]:
        return {"path": f"{self.base}/{key}", "token": self.token, **more}

    def upload(self, path: Path, key: str, digest: Digest) -> Copy:
        """Post a file; the server compares its md5 with what it has stored (see `Archive.upload`)."""
        fields = self._fields(key, overwrite=1, mode=0o644, dirmode=0o755, size=digest.size, md5sum=digest.md5)

        def send() -> Any:
            form = UploadForm(fields, path, digest.size)
            return self._answer("upload", data=form,
                                headers={"Content-Type": f"multipart/form-data; boundary={form.boundary}"})

        answer = self._patiently(f"upload of {key}", send)
        return Copy(int(answer.get("length", digest.size)), md5=str(answer.get("md5sum", "")))

    def download(self, key: str, sink: HashingSink) -> None:
        """Read a file as it comes (see `Archive.download`)."""

        def receive() -> None:
            sink.restart()
            with self._post("download", data=self._fields(key), stream=True) as response:
                if "json" in response.headers.get("Content-Type", ""):
                    self._check("download", response.json())
                    raise TransientError("JSON came where the file was expected")
                for piece in response.iter_content(PIECE):
                    sink.write(piece)

        try:
            self._patiently(f"download of {key}", receive)
        except FileNotFoundError:
            raise BadInput(f"{self.name} {key}", "archived copy", "a file", "no such file") from None

    def info(self, key: str, *, hashed: bool = False) -> Copy | None:
        """Size and md5, which the server computes anew (see `Archive.info`)."""
        try:
            answer = self._patiently(f"question for {key}",
                                     lambda: self._answer("getfileinfo", data=self._fields(key)))
            return Copy(int(answer["size"]), md5=str(answer.get("md5sum", "")))
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> bool:
        """Remove a file (see `Archive.delete`)."""
        if self.info(key) is None:
            return False
        self._patiently(f"removal of {key}", lambda: self._answer(
            "delete", data=self._fields(key, overwrite=1, okifmissing=1)))
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """It cannot (see `Archive.keys`)."""
        raise ConfigError(f"{self.name} cannot list its files: name exposures that the database knows")

    def _post(self, endpoint: str, **more: Any) -> Any:
        import requests

        response = requests.post(f"{self.url}/{endpoint}", timeout=self.settings.timeout_s,
                                 verify=self.settings.verify_tls, **more)
        if response.status_code != 200:
            text = f"status {response.status_code} {response.text[:100].strip()}"
            if 400 <= response.status_code < 500 and response.status_code not in (408, 425, 429):
                raise BadInput(f"{self.name}/{endpoint}", "archive (archive.url)", "status 200", text)
            raise TransientError(text)
        return response

    def _answer(self, endpoint: str, **more: Any) -> Any:
        with self._post(endpoint, **more) as response:
            answer = response.json()
        self._check(endpoint, answer)
        return answer

    def _check(self, endpoint: str, answer: Any) -> None:
        """Turn an error in an answer into an exception: what is missing, what is refused, what may pass."""
        if not isinstance(answer, dict):
            raise TransientError(f"an answer that is no mapping: {str(answer)[:80]}")
        error = str(answer.get("error", ""))
        if error.startswith("No such file"):
            raise FileNotFoundError(error)
        if error.startswith(_REFUSED) or "is not in a known path" in error:
            raise ConfigError(f"{self.name}: the archive refuses the {endpoint}: {error}; see archive.path and "
                              "archive.token_file")
        if "error" in answer:
            raise TransientError(error or "an error without words")

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        import requests

        problem = ""
        for attempt in range(self.settings.attempts):
            if attempt:
                time.sleep(self.settings.pause_s)
            try:
                return call()
            except TransientError as err:
                problem = str(err)
            except requests.exceptions.JSONDecodeError:
                problem = "an answer that is not JSON"
            except requests.exceptions.Timeout:
                problem = f"silence for {self.settings.timeout_s:g} s"
            except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema,
                    requests.exceptions.InvalidSchema) as err:
                raise ConfigError(f"archive.url: {err}") from None
            except requests.exceptions.RequestException as err:
                problem = f"no connection, or a broken one ({type(err).__name__})"
        raise TransientError(f"{self.name}: the {what} did not work in {self.settings.attempts} tries: {problem}; "
                             "seechange-mpi archive push goes on with what is missing")


def read_token(path: str | None, collection: str) -> str:
    """Return the token of a collection from a file that holds it alone, or lines ``PREFIX TOKEN``.

    Raises
    ------
    ConfigError
        There is none.
    """
    if path is None:
        raise ConfigError("archive.kind is connector, but archive.token_file is not set")
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"archive.token_file: {path} cannot be read: {err}") from None
    words = [line.split() for line in lines if line.strip()]
    if len(words) == 1 and len(words[0]) == 1:
        return words[0][0]
    fitting = [w for w in words if len(w) == 2 and collection.startswith(w[0])]
    if not fitting:
        raise ConfigError(f"archive.token_file: {path} has no token for {collection}: it takes lines PREFIX TOKEN")
    return max(fitting, key=lambda w: len(w[0]))[1]
