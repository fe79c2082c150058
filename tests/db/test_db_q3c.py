"""Indexes of q3c, on a server that has it and on one that has not."""

import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest

from seechange_mpi.db import migrate, q3c
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.schema import metadata
from seechange_mpi.db.server import EmbeddedServer

pytestmark = pytest.mark.db


def with_q3c():
    """Folder of the binaries of a PostgreSQL that has q3c, None if there is none."""
    for control in sorted(Path("/usr/share/postgresql").glob("*/extension/q3c.control"), reverse=True):
        folder = Path("/usr/lib/postgresql") / control.parents[1].name / "bin"
        if (folder / "initdb").exists():
            return folder
    return None


@pytest.fixture(scope="module")
def server_url():
    folder = with_q3c()
    if folder is None:
        pytest.skip("no PostgreSQL here has q3c (apt-get install postgresql-15-q3c)")
    root = Path(tempfile.mkdtemp(prefix="seechange-q3c-"))
    root.chmod(0o755)
    server = EmbeddedServer(root, str(folder))
    with server.in_use() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET fsync = off")
            conn.execute("SELECT pg_reload_conf()")
        yield url
    for place in (server.data.parent, server.socket_dir, root):
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def q3c_url(server_url, request):
    name = f"q_{abs(hash(request.node.name))}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    return server_url.replace("/seechange?", f"/{name}?")


def test_up_and_down_and_up_again(q3c_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    with connect(q3c_url) as conn:
        migrate.upgrade(conn)
        found = q3c.state(conn)
        assert found.installed
        assert found.indexed == q3c.TABLES
        assert "indexes on exposures, images, objects" in str(found)
        migrate.downgrade(conn, "0009")
        assert q3c.state(conn).indexed == ()
        migrate.upgrade(conn)
        assert q3c.state(conn).indexed == q3c.TABLES
    engine = create_engine(q3c_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={
            "compare_type": True, "compare_server_default": True,
            "include_object": lambda _object, name, *_: not str(name).endswith("_q3c_ang2ipix_idx")})
        differences = compare_metadata(context, metadata)
    # those foreign keys are kept by triggers: see test_db_schema
    assert [d for d in differences if d[0] != "add_fk"] == []
    engine.dispose()
    with connect(q3c_url) as conn:
        migrate.downgrade(conn, "base")
        assert conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == [
            ("alembic_version",)]
        migrate.upgrade(conn)
        assert q3c.state(conn).indexed == q3c.TABLES


def test_a_database_that_gets_q3c_later(q3c_url):
    """Or that lost an index: what is missing is made, once."""
    with connect(q3c_url) as conn:
        migrate.upgrade(conn)
        q3c.drop_indexes(conn)
        conn.execute("DROP EXTENSION q3c")
        conn.commit()
        assert "db init" in str(q3c.state(conn))
        assert migrate.upgrade(conn) is False, "the schema is up to date"
        assert q3c.make_indexes(conn).indexed == q3c.TABLES
        conn.execute("DROP INDEX objects_q3c_ang2ipix_idx")
        assert "no index yet on objects" in str(q3c.state(conn))
        assert q3c.make_indexes(conn).indexed == q3c.TABLES
        assert q3c.make_indexes(conn).indexed == q3c.TABLES


def test_searches_of_q3c_use_the_index(q3c_url, bundles):
    at = [(359.9999, 2.0), (0.0001, 2.0), (0.01, 2.0)]
    with connect(q3c_url) as conn:
        migrate.upgrade(conn)
        commit_bundle(conn, bundles({"S1": {"ra": 0.0, "dec": 2.0, "at": at}}), radius_arcsec=0.1)
        query = "SELECT count(*) FROM {} WHERE q3c_radial_query(ra, dec, 0.0, 2.0, 0.001)"
        assert conn.execute(query.format("objects")).fetchone() == (2,)
        assert conn.execute(query.format("images")).fetchone() == (2,)
        conn.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(r[0] for r in conn.execute("EXPLAIN " + query.format("objects")))
        assert "objects_q3c_ang2ipix_idx" in plan


def test_without_the_right_to_make_extensions(q3c_url):
    with connect(q3c_url) as conn:
        conn.execute("CREATE ROLE plain LOGIN")
        conn.execute("GRANT ALL ON SCHEMA public TO plain")
        conn.commit()
        conn.execute("SET ROLE plain")
        conn.commit()
        migrate.upgrade(conn)
        assert q3c.state(conn).indexed == ()
        assert "as its superuser CREATE EXTENSION q3c" in str(q3c.state(conn))
        conn.execute("RESET ROLE")
        conn.execute("CREATE EXTENSION q3c")
        conn.commit()
        conn.execute("SET ROLE plain")
        assert q3c.make_indexes(conn).indexed == q3c.TABLES


def test_where_there_is_no_q3c(conn):
    """The embedded server of the wheel."""
    found = q3c.make_indexes(conn)
    if found.offered:
        pytest.skip("this server has q3c")
    assert not found.indexed
    assert "HEALPix" in str(found)
