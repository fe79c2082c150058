"""A server with the protocol of SeeChange's archive connector, in this process, and ways to make it misbehave."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

TOKEN = "geheim"


class Connector(ThreadingHTTPServer):
    """Files below `folder`; `faults` are taken one after the other, one for each request.

    Faults: ``status`` (503), ``error`` (an error of its own), ``garbage`` (no JSON), ``cut`` (half a download),
    ``flip`` (a download with a changed byte), ``lose`` (an upload that stores half), ``hang up``, "" (none).
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.largest_piece = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Connector

    def log_message(self, *_args: object) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.requests.append(self.path)
        fault = server.faults.pop(0) if server.faults else ""
        kind = self.headers.get("Content-Type", "")
        fields: dict[str, str] = {}
        content = b""
        if kind.startswith("multipart/"):
            mark = b"--" + kind.split("boundary=")[1].encode()
            for part in body.split(mark)[1:-1]:
                head, _, rest = part.partition(b"\r\n\r\n")
                name = re.search(rb' name="([^"]+)"', head)[1].decode()
                if name == "fileinfo":
                    content = rest[:-2]
                else:
                    fields[name] = rest[:-2].decode()
        else:
            fields = {k: v[0] for k, v in parse_qs(body.decode()).items()}
        if fault == "hang up":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "status":
            self._send(503, b"busy", "text/plain")
        elif fault == "error":
            self._json({"status": "error", "error": "Exception in UploadFile: [Errno 28] No space left on device"})
        elif fault == "garbage":
            self._send(200, b"<html>", "application/json")
        elif not fields["path"].startswith("survey/"):
            self._json({"status": "error", "error": f"File {fields['path']} is not in a known path."})
        elif fields.get("token") != TOKEN:
            self._json({"status": "error", "error": f"Invalid token for {fields['path']}"})
        else:
            getattr(self, f"_{self.path.strip('/')}")(fields, content, fault)

    def _upload(self, fields: dict[str, str], content: bytes, fault: str) -> None:
        path = self.server.folder / fields["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[: len(content) // 2] if fault == "lose" else content)
        found = hashlib.md5(path.read_bytes()).hexdigest()
        if found != fields["md5sum"]:
            path.unlink()
            self._json({"status": "error", "error": f"md5sum of file {found} doesn't match, file not written"})
        else:
            self._json({"status": "File uploaded", "length": len(content), "md5sum": found})

    def _getfileinfo(self, fields: dict[str, str], _content: bytes, _fault: str) -> None:
        path = self.server.folder / fields["path"]
        if not path.is_file():
            self._json({"status": "error", "error": f"No such file {path}"})
            return
        content = path.read_bytes()
        self._json({"serverpath": str(path), "size": len(content), "md5sum": hashlib.md5(content).hexdigest()})

    def _download(self, fields: dict[str, str], _content: bytes, fault: str) -> None:
        path = self.server.folder / fields["path"]
        if not path.is_file():
            self._json({"status": "error", "error": f"No such file {path}"})
            return
        content = path.read_bytes()
        if fault == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(200, content, "application/octet-stream", cut=fault == "cut")

    def _delete(self, fields: dict[str, str], _content: bytes, _fault: str) -> None:
        assert int(fields["overwrite"])
        (self.server.folder / fields["path"]).unlink(missing_ok=True)
        self._json({"status": "File deleted"})

    def _json(self, answer: dict[str, object]) -> None:
        self._send(200, json.dumps(answer).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True


@contextmanager
def connector(folder: Path) -> Iterator[Connector]:
    """Run a server meanwhile."""
    server = Connector(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
