"""The object store through boto3 itself, with a small server in this process; passed over without boto3."""

import base64
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.io.archive import fetch_file, open_archive, prove_copy, upload_file
from seechange_mpi.io.digests import PIECE
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError

pytest.importorskip("boto3")
KEY = "bundles/e 1/shards/S1_abc.h5"


class Store(BaseHTTPRequestHandler):
    """PUT, GET, HEAD, DELETE and listing of one bucket."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def _answer(self, status, content=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def _error(self, status, code):
        self._answer(status, b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode())

    def _key(self):
        return unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.flips:
            self.server.flips -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        found = base64.b64encode(hashlib.sha256(content).digest()).decode()
        if found != self.headers["x-amz-checksum-sha256"]:
            self._error(400, "BadDigest")
            return
        self.server.objects[self._key()] = content
        self._answer(200, ETag='"x"')

    def do_HEAD(self):
        content = self.server.objects.get(self._key())
        if self.server.denied:
            self._error(403, "AccessDenied")
        elif content is None:
            self._error(404, "NoSuchKey")
        else:
            checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
            self._answer(200, length=len(content), ETag='"x"', x_amz_checksum_sha256=checksum)

    def do_GET(self):
        if self._key() in ("/bucket", ""):
            prefix = parse_qs(urlsplit(self.path).query)["prefix"][0]
            items = "".join(f"<Contents><Key>{k}</Key></Contents>" for k in sorted(self.server.objects)
                            if k.startswith(prefix))
            self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode())
        elif self._key() in self.server.objects:
            content = self.server.objects[self._key()]
            cut, self.server.cuts = self.server.cuts, 0
            self._answer(200, content[:-1] if cut else content, len(content), ETag='"x"')
            self.close_connection = bool(cut)
        else:
            self._error(404, "NoSuchKey")

    def do_DELETE(self):
        self.server.objects.pop(self._key(), None)
        self._answer(204)


@pytest.fixture
def store(monkeypatch):
    for name, value in (("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"),
                        ("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.objects, server.flips, server.cuts, server.denied = {}, 0, 0, False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def opened(store, attempts=2):
    return open_archive(ArchiveSettings(kind="s3", path="bucket/survey", attempts=attempts, timeout_s=5.0, pause_s=0.0,
                                        url=f"http://127.0.0.1:{store.server_address[1]}"))


def test_there_and_back_through_boto3(store, tmp_path):
    file = tmp_path / "f"
    file.write_bytes(os.urandom(2 * PIECE + 5))
    good = hashlib.sha256(file.read_bytes()).hexdigest()
    archive = opened(store)
    assert archive.info(KEY) is None
    digest, proved = upload_file(archive, file, KEY, good)
    assert proved
    assert store.objects == {f"survey/{KEY}": file.read_bytes()}
    assert archive.info(KEY, hashed=True).sha256 == good
    assert fetch_file(archive, KEY, tmp_path / "back", [good]) == good
    assert (tmp_path / "back").stat().st_size == digest.size
    assert list(archive.keys("bundles/")) == [KEY]
    assert archive.delete(KEY)
    assert not archive.delete(KEY)
    assert prove_copy(archive, KEY, good) == "no such file"
    with pytest.raises(BadInput, match="no such file"):
        fetch_file(archive, KEY, tmp_path / "back", [good])


def test_what_the_store_refuses(store, tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"content")
    good = hashlib.sha256(b"content").hexdigest()
    store.flips = 9
    with pytest.raises(TransientError, match="BadDigest"):
        upload_file(opened(store), file, KEY, good)
    assert store.objects == {}
    store.denied = True
    with pytest.raises(ConfigError, match=r"archive\.profile"):
        opened(store).info(KEY)


def test_damage_on_the_way_back_and_a_store_that_is_away(store, tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"content")
    good = hashlib.sha256(b"content").hexdigest()
    archive = opened(store)
    upload_file(archive, file, KEY, good)
    store.cuts = 1
    assert fetch_file(archive, KEY, tmp_path / "whole", [good]) == good
    store.objects[f"survey/{KEY}"] = b"c0ntent"
    with pytest.raises(BadInput, match="it is damaged"):
        fetch_file(archive, KEY, tmp_path / "back", [good])
    assert not (tmp_path / "back").exists()
    store.shutdown()
    store.server_close()
    with pytest.raises(TransientError, match="archive push goes on"):
        opened(store, attempts=1).info(KEY)
