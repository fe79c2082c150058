"""One embedded server for all tests of the database; every test has a database of its own."""

import itertools
import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

_counter = itertools.count()


@pytest.fixture(scope="session")
def embedded():
    """URL of a running embedded server."""
    from seechange_mpi.db.server import EmbeddedServer

    folder = Path(tempfile.mkdtemp(prefix="seechange-test-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder)
    with server.in_use() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET fsync = off")
            conn.execute("SELECT pg_reload_conf()")
        yield url
    shutil.rmtree(server.data.parent, ignore_errors=True)
    shutil.rmtree(server.socket_dir, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated(embedded):
    """Name of a template database with the schema in it."""
    from seechange_mpi.db.engine import connect
    from seechange_mpi.db.migrate import upgrade

    with psycopg.connect(embedded, autocommit=True) as conn:
        conn.execute("CREATE DATABASE template_migrated")
    with connect(_url(embedded, "template_migrated")) as conn:
        upgrade(conn)
    return "template_migrated"


def _url(embedded, name):
    return embedded.replace("/seechange?", f"/{name}?")


def _create(embedded, template):
    name = f"test_{next(_counter)}"
    with psycopg.connect(embedded, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    return _url(embedded, name)


@pytest.fixture
def empty_url(embedded):
    """URL of an empty database."""
    return _create(embedded, "template0")


@pytest.fixture
def fresh_url(embedded, migrated):
    """URL of a database with the schema and no rows, for this test alone."""
    return _create(embedded, migrated)


@pytest.fixture
def second_url(embedded, migrated):
    """URL of another one like it."""
    return _create(embedded, migrated)


@pytest.fixture(scope="session")
def shared_url(embedded, migrated):
    """URL of the database that tests share, one after the other."""
    return _create(embedded, migrated)


@pytest.fixture
def url(shared_url):
    """URL of a database with the schema and no rows."""
    from seechange_mpi.db.schema import metadata

    with psycopg.connect(shared_url) as conn:
        conn.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(sql.Identifier, sorted(metadata.tables)))))
    return shared_url


@pytest.fixture
def conn(url):
    """A connection to it."""
    from seechange_mpi.db.engine import connect

    with connect(url) as connection:
        yield connection


@pytest.fixture
def bundles(tmp_path):
    """Writer of small bundles (`made_bundles.Maker`)."""
    from made_bundles import Maker

    return Maker(tmp_path)


@pytest.fixture
def verb(url, tmp_path, capsys):
    """The command line on the shared database (`verbs.Verbs`)."""
    from verbs import Verbs

    return Verbs(url, tmp_path / "root", capsys)
