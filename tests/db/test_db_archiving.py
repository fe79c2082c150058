"""Push, pull, verify: what the table says, what goes on after a kill, what comes back when it is opened."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys

import pytest
from connector_server import TOKEN, connector

from seechange_mpi.cli.common import use_archive
from seechange_mpi.config.resolve import Config
from seechange_mpi.db.archived import archived_files
from seechange_mpi.db.archiving import Archivist
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.io import archive_directory
from seechange_mpi.io.bundle import pack_bundle, read_bundle, read_section, scan_exposure, validate_bundle
from seechange_mpi.io.records import read_record, record_of
from seechange_mpi.io.retrieval import set_retriever
from seechange_mpi.model.errors import BadInput, TransientError

pytestmark = pytest.mark.db
TWO = {"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}, "S2": {"ra": 150.1, "dec": 2.0, "at": [(150.1, 2.0)]}}


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def config(tmp_path, url, store, bundles):
    """Bundles below <root>/bundles, a folder as the archive."""
    bundles.folder = tmp_path / "root" / "bundles"
    made = Config(None, [f"paths.root={tmp_path / 'root'}", f"database.url={url}", "archive.kind=directory",
                         f"archive.path={store}"])
    yield made
    set_retriever(None)


@pytest.fixture
def keeper(config, url):
    return Archivist(config, lambda: connect(url))


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def rows(conn):
    conn.rollback()
    return {r[0]: r[1:] for r in conn.execute("SELECT filepath, sha256, size, verified_at IS NOT NULL, exposure "
                                              "FROM archived_files")}


def test_the_record_is_made_while_writing_and_is_that_of_the_files(bundles):
    bundle = bundles(TWO)
    record = read_record(record_of(bundle))
    assert len(record) == 3
    for name, digest in record.items():
        assert hashlib.sha256((bundle.parent / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", record_of(bundle).name], cwd=bundle.parent, check=True)
    assert validate_bundle(bundle) == []
    shard = bundle.parent / next(n for n in record if "/" in n)
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    content = shard.read_bytes()
    shard.write_bytes(content + b"\0")  # HDF5 does not look there
    os.utime(shard, ns=times)
    assert [p for p in validate_bundle(bundle) if "not those that were written (" in p and shard.name in p]


def test_everything_goes_up_once_the_record_last(keeper, bundles, conn, store):
    bundle = bundles(TWO)
    order = []
    upload = keeper.archive.upload
    keeper.archive.upload = lambda path, key, digest: (order.append(path.name), upload(path, key, digest))[1]
    done = keeper.push("e1")
    assert (done.files, done.present, done.problems) == (4, 0, [])
    assert order[2:] == [bundle.name, record_of(bundle).name]
    assert names(store) == [f"bundles/{n}" for n in names(keeper.config.bundles)]
    stored = rows(conn)
    assert set(stored) == set(names(store))
    for key, (digest, size, verified, exposure) in stored.items():
        assert hashlib.sha256((store / key).read_bytes()).hexdigest() == digest
        assert (store / key).stat().st_size == size
        assert (verified, exposure) == (True, "e1")
    again = keeper.push("e1")
    assert (again.files, again.present) == (0, 4)
    assert len(order) == 4


def test_a_bundle_written_again_replaces_the_archived_one(keeper, bundles, conn, store):
    bundle = bundles(TWO)
    keeper.push("e1")
    bundle.rename(bundle.with_suffix(".old"))
    newer = bundles({"S1": TWO["S1"] | {"zp": 26.0}})
    newer.rename(bundle)
    os.utime(bundle)  # newer than the record beside it: that of a run that was killed between the two
    keeper.push("e1")
    assert read_bundle(store / "bundles" / "e1" / bundle.name).section_ids == ("S1",)
    assert len(read_record(record_of(store / "bundles" / "e1" / bundle.name))) == 2


def test_what_fails_keeps_the_record_back_and_the_next_push_goes_on(keeper, bundles, conn, store, monkeypatch):
    bundle = bundles(TWO)
    shard = sorted((bundle.parent / "shards").iterdir())[0]
    content = shard.read_bytes()
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    shard.write_bytes(content[:-1] + b"x")
    os.utime(shard, ns=times)
    done = keeper.push("e1")
    assert len(done.problems) == 1
    assert "it is damaged" in done.problems[0]
    assert len(rows(conn)) == 1
    assert not (store / "bundles" / "e1" / bundle.name).exists()
    shard.write_bytes(content)
    os.utime(shard, ns=times)
    with monkeypatch.context() as m:
        m.setattr(archive_directory, "pieces", lambda _path: iter([b"corrupted"]))
        assert "was not stored as it was sent" in keeper.push("e1").problems[0]
    done = keeper.push("e1")
    assert (done.files, done.present, done.problems) == (3, 1, [])


PUSH = """
import sys, time
from seechange_mpi.config.resolve import Config
from seechange_mpi.db.archiving import Archivist
from seechange_mpi.db.engine import connect
from seechange_mpi.io import archive_directory
from seechange_mpi.io.digests import pieces
def slow(path):
    for piece in pieces(path):
        yield piece
        if path.parent.name != "shards":
            print(path.name, flush=True)
            time.sleep(60)
archive_directory.pieces = slow
config = Config(None, sys.argv[1:])
Archivist(config, lambda: connect(config.settings.database.url)).push("e1")
"""


def test_a_push_killed_in_the_middle_goes_on_with_what_is_missing(keeper, config, bundles, conn, store, tmp_path):
    bundle = bundles(TWO)
    sets = [f"{k}={v}" for k, v, source in config.items() if source == "--set"]
    with subprocess.Popen([sys.executable, "-c", PUSH, *sets], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == bundle.name
        process.send_signal(signal.SIGKILL)
    assert not (store / "bundles" / "e1" / bundle.name).exists()
    assert len(rows(conn)) == 2
    done = keeper.push("e1")
    assert (done.files, done.present, done.problems) == (2, 2, [])
    assert names(store) == [f"bundles/{n}" for n in names(config.bundles)]


def test_files_that_are_gone_come_back_when_they_are_opened(keeper, config, bundles, tmp_path):
    bundle = bundles(TWO)
    keeper.push("e1")
    use_archive(config)
    content = {p: p.read_bytes() for p in bundle.parent.rglob("*.h5")}
    for path in content:
        path.unlink()
    assert len(read_bundle(bundle).section_ids) == 2
    assert sorted(p.name for p in bundle.parent.rglob("*.h5")) == [bundle.name]
    assert read_section(bundle, "S1", pixels=True).products.image.data.shape == (4, 4)
    assert len(list(bundle.parent.rglob("*.h5"))) == 2  # the other shard nobody has opened
    pack_bundle(bundle, tmp_path / "packed.h5")
    assert {p: p.read_bytes() for p in bundle.parent.rglob("*.h5")} == content
    shutil.rmtree(bundle.parent)
    assert validate_bundle(bundle) == []  # the record too was fetched
    with pytest.raises(BadInput, match="no such file"):
        read_bundle(bundle.with_name("e1_other.h5"))


def test_a_shard_only_in_the_archive_counts_as_durable(keeper, config, bundles):
    bundle = bundles(TWO)
    keeper.push("e1")
    found = scan_exposure(bundle.parent).shards
    for shard in found:
        shard.path.unlink()
    assert scan_exposure(bundle.parent).shards == []
    use_archive(config)
    assert scan_exposure(bundle.parent).shards == found


def test_a_damaged_copy_is_not_taken_for_the_file(keeper, config, bundles, store):
    bundle = bundles(TWO)
    keeper.push("e1")
    use_archive(config)
    shard = next((bundle.parent / "shards").glob("S1*"))
    archived = store / "bundles" / shard.relative_to(config.bundles)
    archived.write_bytes(archived.read_bytes()[:-1] + b"x")
    shard.unlink()
    with pytest.raises(BadInput, match="it is damaged"):
        read_section(bundle, "S1", pixels=True)
    assert not shard.exists()
    store.rename(store.with_name("unmounted"))
    use_archive(config)
    with pytest.raises(TransientError, match="mount what belongs there"):
        read_section(bundle, "S1", pixels=True)


def test_verify_finds_damage_and_push_mends_it(keeper, config, bundles, conn, store):
    bundle = bundles(TWO)
    keeper.push("e1")
    key = next(k for k in rows(conn) if "shards/S1" in k)
    (store / key).write_bytes(b"damaged")
    done = keeper.verify(archived_files(conn, keeper.archive.name).values())
    assert done.files == 3
    assert len(done.problems) == 1
    assert "archive push sends it again" in done.problems[0]
    assert key not in rows(conn)
    assert keeper.push("e1").files == 1
    assert keeper.verify(archived_files(conn, keeper.archive.name).values()).files == 4
    (store / key).unlink()
    keeper.layout.path_of(key).unlink()
    done = keeper.verify(archived_files(conn, keeper.archive.name).values())
    assert "no whole copy here either" in done.problems[0]
    assert rows(conn)[key][2] is False
    assert bundle.exists()


def test_pull_brings_an_exposure_back_even_into_an_empty_database(keeper, config, bundles, conn, cli, url, capsys):
    bundle = bundles(TWO)
    content = {p: p.read_bytes() for p in bundle.parent.rglob("*") if p.is_file()}
    keeper.push("e1")
    shutil.rmtree(bundle.parent)
    done = keeper.pull("e1")
    assert (done.files, done.problems) == (4, [])
    assert {p: p.read_bytes() for p in bundle.parent.rglob("*") if p.is_file()} == content
    assert keeper.pull("e1").present == 4
    conn.execute("TRUNCATE archived_files")
    conn.commit()
    shutil.rmtree(bundle.parent)
    sets = [x for k, v, source in config.items() if source == "--set" for x in ("--set", f"{k}={v}")]
    assert cli("archive", "pull", "--all", *sets) == 0
    assert {p: p.read_bytes() for p in bundle.parent.rglob("*") if p.is_file()} == content
    assert cli("archive", "pull", "unknown", *sets) == 4
    assert "has nothing of it" in capsys.readouterr().out


def test_raw_exposures_below_the_root_are_archived_where_that_is_wanted(keeper, config, bundles, conn, store):
    raw = config.root / "raw" / "e1.fits"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"raw pixels")
    commit_bundle(conn, bundles(TWO), radius_arcsec=1.0)
    conn.execute("UPDATE exposures SET filepath = %s", (str(raw),))
    conn.commit()
    assert keeper.push("e1").files == 4
    keeper.settings.raw = True
    assert keeper.push("e1").files == 2
    assert (store / "raw" / "e1.fits").read_bytes() == b"raw pixels"
    use_archive(config)
    raw.unlink()
    from seechange_mpi.io.fits_files import open_fits

    with pytest.raises(BadInput, match="unreadable"):
        open_fits(raw)
    assert raw.read_bytes() == b"raw pixels"


def test_a_server_that_answers_errors_is_told_and_harms_nothing(config, bundles, url, conn, tmp_path):
    bundles(TWO)
    (tmp_path / "token").write_text(TOKEN)
    with connector(tmp_path / "server") as server:
        settings = config.settings.archive
        settings.update({"kind": "connector", "url": server.url, "path": "survey", "attempts": 2, "pause_s": 0.0,
                         "token_file": str(tmp_path / "token"), "streams": 1})
        keeper = Archivist(config, lambda: connect(url))
        server.faults = ["", "", "", "error", "error"]
        done = keeper.push("e1")
        assert done.passing
        assert "No space left on device" in done.problems[0]
        assert len(rows(conn)) == 1
        done = keeper.push("e1")
        assert (done.files, done.present, done.problems) == (3, 1, [])
    with pytest.raises(TransientError, match="no connection"):
        keeper.archive.info("x")


def test_the_verbs(config, bundles, cli, capsys):
    sets = [x for k, v, source in config.items() if source == "--set" for x in ("--set", f"{k}={v}")]
    bundle = bundles(TWO)
    assert cli("archive", "push", "nothing", *sets) == 2
    assert cli("archive", "push", *sets) == 0
    assert "4 files uploaded" in capsys.readouterr().out
    next((bundle.parent / "shards").iterdir()).unlink()
    assert cli("archive", "status", *sets) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.strip().startswith("e1"))
    assert line.split()[1:3] == ["3", "4"]
    assert line.split()[-3:] == ["4", "0", "1"]
    assert cli("archive", "verify", "e1", *sets) == 0
    assert "4 of 4 copies are whole" in capsys.readouterr().out
    assert cli("bundle", "validate", bundle, *sets) == 0
    assert "whole" in capsys.readouterr().out
    assert cli("archive", "pull", *sets) == 2
    assert cli("archive", "status", "--set", "archive.kind=none") == 2
    assert "no archive is configured" in capsys.readouterr().err
