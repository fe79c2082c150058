"""Archives: the same tests for a folder, an object store and SeeChange's server; nothing half, nothing damaged."""

import errno
import hashlib
import os
import signal
import subprocess
import sys

import pytest
from connector_server import TOKEN, connector
from fake_s3 import FakeS3

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.io import archive as archives
from seechange_mpi.io import archive_directory
from seechange_mpi.io.archive import fetch_file, open_archive, prove_copy, upload_file
from seechange_mpi.io.archive_connector import ConnectorArchive, UploadForm, read_token
from seechange_mpi.io.archive_directory import DirectoryArchive
from seechange_mpi.io.archive_s3 import S3Archive
from seechange_mpi.io.digests import PIECE, HashingSink, digest_of
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError

KEY = "bundles/e1/shards/S1_abc.h5"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "S1_abc.h5"
    path.write_bytes(os.urandom(3 * PIECE + 17))
    return path


@pytest.fixture
def server(tmp_path):
    with connector(tmp_path / "server") as running:
        yield running


def connected(server, tmp_path, **more):
    token = tmp_path / "connector_tokens"
    token.write_text(f"other/ nothing\nsurvey/ {TOKEN}\n")
    return ConnectorArchive(ArchiveSettings(kind="connector", url=server.url, path="survey", token_file=str(token),
                                            attempts=3, pause_s=0.0, timeout_s=5.0, **more))


@pytest.fixture(params=["directory", "s3", "s3 without checksums", "connector"])
def archive(request, tmp_path):
    if request.param == "directory":
        (tmp_path / "store").mkdir()
        return DirectoryArchive(tmp_path / "store")
    if request.param == "connector":
        return connected(request.getfixturevalue("server"), tmp_path)
    return S3Archive(FakeS3(checksums=request.param == "s3"), "bucket/survey")


def test_there_and_back(archive, file, tmp_path):
    content = file.read_bytes()
    assert archive.info(KEY) is None
    digest, proved = upload_file(archive, file, KEY, sha256(content))
    assert digest.size == len(content)
    assert proved == (not (isinstance(archive, S3Archive) and not archive.client.checksums))
    assert archive.info(KEY).size == len(content)
    back = tmp_path / "new" / "S1.h5"
    assert fetch_file(archive, KEY, back, [sha256(content)], 1_700_000_000_000_000_000) == sha256(content)
    assert back.read_bytes() == content
    assert back.stat().st_mtime_ns == 1_700_000_000_000_000_000
    assert [p.name for p in back.parent.iterdir()] == ["S1.h5"]
    assert prove_copy(archive, KEY, sha256(content)) == ""
    assert "sha256" in prove_copy(archive, KEY, sha256(b"else"))
    assert archive.delete(KEY)
    assert not archive.delete(KEY)
    assert archive.info(KEY) is None
    assert prove_copy(archive, KEY, sha256(content)) == "no such file"


def test_what_is_there_already_is_not_sent_again_and_what_is_other_is(archive, file):
    content = file.read_bytes()
    upload_file(archive, file, KEY, sha256(content))
    if not (isinstance(archive, S3Archive) and not archive.client.checksums):
        archive.upload = None  # would fail
        upload_file(archive, file, KEY, sha256(content))
        del archive.upload
    file.write_bytes(b"another")
    upload_file(archive, file, KEY, sha256(b"another"))
    assert prove_copy(archive, KEY, sha256(b"another")) == ""


def test_a_file_that_is_not_what_was_written_does_not_go_up(archive, file):
    good = sha256(file.read_bytes())
    with file.open("r+b") as f:
        f.write(b"rotten")
    with pytest.raises(BadInput, match="it is damaged"):
        upload_file(archive, file, KEY, good)
    assert archive.info(KEY) is None
    file.unlink()
    with pytest.raises(BadInput, match="no such file"):
        upload_file(archive, file, KEY, good)


def test_a_damaged_copy_does_not_come_back(archive, file, tmp_path):
    good = sha256(file.read_bytes())
    other = tmp_path / "other"
    other.write_bytes(b"damaged")
    archive.upload(other, KEY, digest_of(other, md5=True))
    with pytest.raises(BadInput, match="it is damaged"):
        fetch_file(archive, KEY, tmp_path / "new" / "x.h5", [good])
    assert list((tmp_path / "new").iterdir()) == []


def test_a_missing_copy_is_told(archive, tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        fetch_file(archive, KEY, tmp_path / "new" / "x.h5", [])
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_leaves_nothing_half(archive, file, tmp_path, monkeypatch):
    upload_file(archive, file, KEY, sha256(file.read_bytes()))

    def full(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.os, "fsync", full)
    with pytest.raises(TransientError, match=r"no space left while .* came back"):
        fetch_file(archive, KEY, tmp_path / "new" / "x.h5", [])
    assert list((tmp_path / "new").iterdir()) == []


def test_listing(archive, file):
    for key in ("bundles/e1/a.h5", "bundles/e2/b.h5"):
        upload_file(archive, file, key, sha256(file.read_bytes()))
    if isinstance(archive, ConnectorArchive):
        with pytest.raises(ConfigError, match="cannot list"):
            list(archive.keys("bundles/"))
    else:
        assert list(archive.keys("bundles/")) == ["bundles/e1/a.h5", "bundles/e2/b.h5"]
        assert list(archive.keys("bundles/e1/")) == ["bundles/e1/a.h5"]


# -- a folder -----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_no_empty_archive(tmp_path):
    with pytest.raises(ConfigError, match="make it, or mount"):
        open_archive(ArchiveSettings(kind="directory", path=str(tmp_path / "nowhere")))


def test_a_full_or_corrupting_archive_disk_keeps_what_it_had(tmp_path, file, monkeypatch):
    archive = DirectoryArchive(tmp_path)
    file.write_bytes(b"first")
    upload_file(archive, file, KEY, sha256(b"first"))
    file.write_bytes(b"second")

    def full(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(archive_directory.os, "fsync", full)
        with pytest.raises(TransientError, match="No space left on device; what is there is kept"):
            upload_file(archive, file, KEY, sha256(b"second"))
    with monkeypatch.context() as m:
        m.setattr(archive_directory, "pieces", lambda _path: iter([b"secomd"]))
        with pytest.raises(TransientError, match="was not stored as it was sent"):
            upload_file(archive, file, KEY, sha256(b"second"))
    assert [p.name for p in (tmp_path / KEY).parent.iterdir()] == ["S1_abc.h5"]
    assert (tmp_path / KEY).read_bytes() == b"first"


KILLED = """
import sys, time
from pathlib import Path
from seechange_mpi.io import archive_directory
from seechange_mpi.io.archive import upload_file
from seechange_mpi.io.digests import digest_of, pieces
def slow(path):
    for piece in pieces(path):
        yield piece
        print("half", flush=True)
        time.sleep(60)
archive_directory.pieces = slow
path = Path(sys.argv[2])
upload_file(archive_directory.DirectoryArchive(Path(sys.argv[1])), path, sys.argv[3], digest_of(path).sha256)
"""


def test_a_killed_upload_leaves_nothing_under_the_name_and_the_next_one_cleans_up(tmp_path, file):
    store = tmp_path / "store"
    store.mkdir()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(store), str(file), KEY], stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    left = list((store / KEY).parent.iterdir())
    assert len(left) == 1
    assert left[0].name.endswith(".tmp")
    upload_file(DirectoryArchive(store), file, KEY, digest_of(file).sha256)
    assert list((store / KEY).parent.iterdir()) == [store / KEY]
    assert list(DirectoryArchive(store).keys("")) == [KEY]


# -- an object store ----------------------------------------------------------------------------------------------


def test_an_upload_that_was_changed_on_its_way_is_refused_or_found(file, tmp_path):
    client = FakeS3()
    client.flip = True
    with pytest.raises(TransientError, match="BadDigest"):
        upload_file(S3Archive(client, "bucket"), file, KEY, sha256(file.read_bytes()))
    assert not client.objects
    blind = S3Archive(FakeS3(checksums=False), "bucket")
    blind.client.flip = True
    assert upload_file(blind, file, KEY, sha256(file.read_bytes()))[1] is False  # sent, but not proved
    assert prove_copy(blind, KEY, sha256(file.read_bytes())) != ""


def test_refusals_name_the_settings(file):
    archive = S3Archive(FakeS3(), "bucket/survey")
    archive.client.error = "AccessDenied"
    with pytest.raises(ConfigError, match=r"archive\.profile"):
        archive.info(KEY)
    archive.client.error = "SlowDown"
    with pytest.raises(TransientError, match="SlowDown"):
        archive.info(KEY)


def test_without_boto3_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError, match=r"pip install 'seechange-mpi\[s3\]'"):
        open_archive(ArchiveSettings(kind="s3", path="bucket"))


# -- SeeChange's server -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["status", "error", "garbage", "hang up", "lose"])
def test_passing_trouble_of_the_server_is_tried_again(server, tmp_path, file, fault):
    archive = connected(server, tmp_path)
    server.faults = ["", fault]  # the question whether it is there, then the upload
    assert upload_file(archive, file, KEY, sha256(file.read_bytes()))[1]
    assert server.requests == ["/getfileinfo", "/upload", "/upload"]
    assert (tmp_path / "server" / "survey" / KEY).read_bytes() == file.read_bytes()


def test_lasting_trouble_is_told(server, tmp_path, file):
    archive = connected(server, tmp_path)
    server.faults = ["", *["error"] * 3]
    with pytest.raises(TransientError, match=r"in 3 tries: .*No space left on device; .*archive push"):
        upload_file(archive, file, KEY, sha256(file.read_bytes()))
    assert archive.info(KEY) is None


def test_a_download_that_breaks_off_begins_again(server, tmp_path, file):
    archive = connected(server, tmp_path)
    good = sha256(file.read_bytes())
    upload_file(archive, file, KEY, good)
    server.faults = ["cut", "status"]
    assert fetch_file(archive, KEY, tmp_path / "x.h5", [good]) == good
    server.faults = ["flip"]
    with pytest.raises(BadInput, match="it is damaged"):
        fetch_file(archive, KEY, tmp_path / "y.h5", [good])
    assert not (tmp_path / "y.h5").exists()


def test_a_wrong_token_is_not_tried_again(server, tmp_path, file):
    archive = connected(server, tmp_path)
    archive.token = "wrong"
    with pytest.raises(ConfigError, match="Invalid token") as caught:
        archive.info(KEY)
    assert len(server.requests) == 1
    assert TOKEN not in str(caught.value)
    archive.token, archive.base = TOKEN, "elsewhere"
    with pytest.raises(ConfigError, match="not in a known path"):
        archive.info(KEY)


def test_uploads_are_streamed(tmp_path, file):
    form = UploadForm({"path": "a"}, file, file.stat().st_size)
    parts = list(form)
    assert max(map(len, parts)) <= PIECE
    assert sum(map(len, parts)) == len(form)


def test_tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("alone\n")
    assert read_token(str(path), "survey/") == "alone"
    path.write_text("s/ no\nsurvey/ general\nsurvey/deep special\n")
    assert read_token(str(path), "survey/deep/") == "special"
    with pytest.raises(ConfigError, match=r"archive\.token_file"):
        read_token(str(path), "unknown/")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(str(tmp_path / "none"), "survey/")


@pytest.mark.parametrize(("settings", "words"), [
    ({"kind": "directory"}, "archive.path"), ({"kind": "connector", "path": "x"}, "archive.url"),
    ({"kind": "connector", "path": "x", "url": "http://h"}, "archive.token_file")])
def test_what_is_missing_in_the_settings_is_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        open_archive(ArchiveSettings(**settings))


def test_a_sink_restarts(tmp_path):
    with (tmp_path / "x").open("w+b") as f:
        sink = HashingSink(f)
        sink.write(b"half")
        sink.restart()
        sink.write(b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert sink.digest().sha256 == sha256(b"whole")
