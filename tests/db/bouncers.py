"""PgBouncer in transaction mode before the tests' server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from seechange_mpi.db.server import SUPERUSER, _server_user

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PORT = 6432
QUERY_WAIT_S = 30
"""A client that waits so long for a connection to the server waits for itself."""


class Bouncer:
    """A running PgBouncer.

    Attributes
    ----------
    folder : of its socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, direct: str) -> str:
        """Return the address of a database through the pooler."""
        parts = conninfo_to_dict(direct)
        return f"postgresql://{parts['user']}@/{parts['dbname']}?host={self.folder}&port={PORT}"


@contextmanager
def bouncer(direct: str, pool_size: int = 2, **settings: object) -> Iterator[Bouncer]:
    """Start one before the server with the URL `direct`; the test is skipped where there is none.

    Parameters
    ----------
    pool_size : connections to the server for each database.
    """
    if PROGRAM is None:
        pytest.skip("no pgbouncer here (apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="seechange-pgb-"))
    folder.chmod(0o755)
    users = folder / "users.txt"
    users.write_text(f'"{SUPERUSER}" "secret"\n"stranger" "secret"\n')
    lines = {"pool_mode": "transaction", "default_pool_size": pool_size, "listen_port": PORT, "listen_addr": "",
             "unix_socket_dir": folder, "auth_type": "trust", "auth_file": users, "max_client_conn": 200,
             "query_wait_timeout": QUERY_WAIT_S, "server_idle_timeout": 5, "logfile": folder / "log",
             "admin_users": SUPERUSER} | settings
    ini = folder / "pgbouncer.ini"
    ini.write_text(f"[databases]\n* = host={conninfo_to_dict(direct)['host']} port=5432\n[pgbouncer]\n"
                   + "".join(f"{k} = {v}\n" for k, v in lines.items()))
    user = _server_user()
    account = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    with subprocess.Popen([PROGRAM, "-q", str(ini)], cwd="/", stderr=subprocess.DEVNULL, **account) as process:
        try:
            _wait_for(folder, process)
            yield Bouncer(folder)
        finally:
            process.terminate()
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for(folder: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(make_conninfo(host=str(folder), port=PORT, user=SUPERUSER, password="secret",
                                          dbname="pgbouncer"),
                            autocommit=True, prepare_threshold=None).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.05)
