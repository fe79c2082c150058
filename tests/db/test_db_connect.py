"""Connecting: what no waiting mends is said at once, what may pass is tried again."""

import re
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from seechange_mpi.conductor_client.patience import may_pass, patiently
from seechange_mpi.db.engine import connect
from seechange_mpi.model.errors import ConfigError, TransientError

pytestmark = pytest.mark.db
RULES = """local all secretive scram-sha-256
local all unwanted reject
local all unlisted_by_mistake peer
"""
ROLES = {"secretive": "LOGIN PASSWORD 'right'", "unwanted": "LOGIN", "unlisted_by_mistake": "LOGIN", "group": "NOLOGIN",
         "outsider": "LOGIN", "crowd": "LOGIN CONNECTION LIMIT 0"}


@pytest.fixture(scope="module")
def doors(embedded):
    """Address of a server whose doors are kept as on a shared one, and of a database that is closed to most."""
    with psycopg.connect(embedded, autocommit=True) as conn:
        path = Path(conn.execute("SHOW hba_file").fetchone()[0])
        before = path.read_text()
        for name, what in ROLES.items():
            conn.execute(f'CREATE ROLE "{name}" {what}')
        conn.execute("CREATE DATABASE private_rooms")
        conn.execute("REVOKE CONNECT ON DATABASE private_rooms FROM PUBLIC")
        path.write_text(RULES + before)
        conn.execute("SELECT pg_reload_conf()")
        host, name = conn.info.host, conn.info.dbname
        end = time.monotonic() + 10
        read = "SELECT count(*) FROM pg_hba_file_rules WHERE 'unwanted' = ANY(user_name)"
        while conn.execute(read).fetchone() == (0,):
            assert time.monotonic() < end
    yield {"host": host, "dbname": name}
    with psycopg.connect(embedded, autocommit=True) as conn:
        path.write_text(before)
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("DROP DATABASE private_rooms")
        for name in ROLES:
            conn.execute(f'DROP ROLE "{name}"')


REFUSED = {
    "wrong password": ({"user": "secretive", "password": "wrong"}, "password authentication failed"),
    "no password": ({"user": "secretive"}, "no password supplied"),
    "unknown role": ({"user": "nobody_here"}, 'role "nobody_here" does not exist'),
    "unknown database": ({"user": "seechange", "dbname": "absent"}, 'database "absent" does not exist'),
    "role that is a group": ({"user": "group"}, "is not permitted to log in"),
    "rejected": ({"user": "unwanted"}, "pg_hba.conf rejects connection"),
    "wrong account": ({"user": "unlisted_by_mistake"}, "Peer authentication failed"),
    "closed database": ({"user": "outsider", "dbname": "private_rooms"}, "permission denied for database"),
    "unknown setting": ({"user": "seechange", "options": "-c nonsense=1"}, "unrecognized configuration parameter"),
    "no port": ({"user": "seechange", "port": "99999999"}, "invalid port number"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_is_told_at_once(doors, kind):
    wrong, reason = REFUSED[kind]
    calls = []

    def call():
        calls.append(kind)
        return connect(make_conninfo(**doors | wrong), attempts=5)

    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"^database\.url .* is wrong: .*" + re.escape(reason)) as refused:
        patiently(call, patience_s=100)
    assert time.monotonic() - began < 5, "it was tried again"
    assert len(calls) == 1
    assert "password=wrong" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_may_pass_is_tried_again(doors, monkeypatch):
    """A server that is full, or not there."""
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for away, reason in (({"user": "crowd"}, "too many connections"), ({"user": "seechange", "port": "1"}, "socket")):
        pauses.clear()
        with pytest.raises(TransientError, match=reason) as err:
            connect(make_conninfo(**doors | away), attempts=3)
        assert len(pauses) == 2
        assert may_pass(err.value)


def test_a_refusal_among_several_addresses(doors, tmp_path):
    """The last address to fail is not the one that tells."""
    several = doors | {"host": f"{doors['host']},{tmp_path}", "user": "nobody_here"}
    with pytest.raises(ConfigError, match='role "nobody_here" does not exist'):
        connect(make_conninfo(**several), attempts=1)


@pytest.mark.parametrize(("state", "passes"), [("28P01", False), ("28000", False), ("3D000", False), ("57P03", True),
                                               ("53300", True), ("08006", True), ("40P01", True)])
def test_states_that_pass(state, passes):
    assert may_pass(psycopg.errors.lookup(state)("said")) is passes


def test_the_server_is_the_one_asked_for(embedded):
    """`SEECHANGE_TEST_PG_BINDIR` is not passed over."""
    from other_postgres import BINDIR

    if BINDIR is None:
        pytest.skip("no other server was asked for")
    said = subprocess.run([Path(BINDIR) / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    with psycopg.connect(embedded) as conn:
        assert said.split()[2] == str(conn.execute("SHOW server_version").fetchone()[0]).split()[0]
