"""Through PgBouncer in transaction mode: every transaction may meet another process of the server.

Few connections to the server and many clients at once: whatever a client leaves behind there (a prepared statement, a
lock, a setting, a temporary table) is met by another, and what it expects to find there again is gone.
"""

import itertools
import re
import threading
from pathlib import Path

import h5py
import psycopg
import pytest
from bouncers import bouncer
from surveys import run_cli
from verbs import Verbs

from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.migrate import _HEAD, current, downgrade, upgrade
from seechange_mpi.db.queue import LocalQueue

pytestmark = pytest.mark.db
PRODUCT = Path(__file__).parents[2] / "seechange_mpi"
CELLS = [(150.0 + 0.01 * k, 2.0 + 0.01 * j) for k in range(6) for j in range(6)]


@pytest.fixture(scope="module")
def pooler(embedded):
    """Two connections to the server for each database."""
    with bouncer(embedded) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(embedded):
    """One connection to the server for each database: a client that needs a second one beside its own gets none."""
    with bouncer(embedded, pool_size=1, query_wait_timeout=8) as running:
        yield running


def at_once(work, n):
    """Call ``work(k)`` in n threads that begin together; raise what one of them raised."""
    errors, gate = [], threading.Barrier(n)

    def one(k):
        try:
            gate.wait(30)
            work(k)
        except BaseException as err:  # noqa: BLE001
            errors.append(err)

    threads = [threading.Thread(target=one, args=(k,)) for k in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    for err in errors:
        raise err
    assert not any(t.is_alive() for t in threads)


def left_behind(url):
    """What clients left in the server's processes behind a pool of one connection."""
    with connect(url) as conn:
        locks = conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
                             "(SELECT oid FROM pg_database WHERE datname = current_database())").fetchone()
        statements = conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        tables = conn.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't'").fetchone()
        listening = conn.execute("SELECT count(*) FROM pg_listening_channels()").fetchone()
        settings = conn.execute("SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT LIKE "
                                "'transaction%' AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', "
                                "'TimeZone', 'standard_conforming_strings')").fetchall()
    return [n for (n,) in (locks, statements, tables, listening)], settings


def test_programs_that_migrate_at_once(empty_url, narrow, pooler):
    url, ran = pooler.url(empty_url), []

    def migrate(_k):
        with connect(url) as conn:
            upgrade(conn)
            ran.append(current(conn))

    at_once(migrate, 3)
    assert ran == [_HEAD] * 3
    with connect(narrow.url(empty_url)) as conn:
        downgrade(conn, "0012")
        assert current(conn) == "0012"
        upgrade(conn)
        assert current(conn) == _HEAD
    assert left_behind(narrow.url(empty_url)) == ([0, 0, 0, 0], [])


def rows_of(url):
    """Table -> rows, and the measurements of each object."""
    with connect(url) as conn:
        tables = [r[0] for r in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()]
        counts = {t: conn.execute(f'SELECT count(*) FROM "{t}"').fetchone()[0] for t in tables}
        parts = {frozenset(r[0]) for r in conn.execute(
            "SELECT array_agg(_id) FROM measurements GROUP BY object_id").fetchall()}
    return counts, parts


def test_overlapping_commits_interleaved(fresh_url, second_url, pooler, bundles):
    """Each of them twice, and again instead of what is there: the rows are those of commits one after the other."""
    n, each = 3, 3
    paths = [[bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": CELLS[k + e:k + e + 20]}}, name=f"e{k}{e}",
                      mjd=60000.0 + k + 0.1 * e) for e in range(each)] for k in range(n)]
    url = pooler.url(fresh_url)

    def commit(k):
        with connect(url) as conn:
            for path in paths[k]:
                assert not commit_bundle(conn, path, radius_arcsec=1.0, tag="all").unchanged
                assert commit_bundle(conn, path, radius_arcsec=1.0, tag="all").unchanged
            commit_bundle(conn, paths[k][0], radius_arcsec=1.0, replace=True, tag="all")

    at_once(commit, n)
    with connect(second_url) as conn:
        for path in itertools.chain(*paths):
            commit_bundle(conn, path, radius_arcsec=1.0, tag="all")
    through, direct = rows_of(url), rows_of(second_url)
    assert through == direct
    assert through[0]["measurements"] == 20 * each * n
    assert len(through[1]) == len({c for k in range(n) for e in range(each) for c in CELLS[k + e:k + e + 20]})


def test_queues_interleaved(fresh_url, pooler):
    """Each exposure goes to one claimer; leases are prolonged, lost, and taken over."""
    url, names = pooler.url(fresh_url), [f"x{k:02}" for k in range(24)]
    setup = LocalQueue(lambda: connect(url))
    for name in names:
        setup.add(f"/raw/{name}.fits", "cam")
    claimed, lock = [], threading.Lock()

    def work(k):
        queue = LocalQueue(lambda: connect(url))
        while (claim := queue.claim(f"owner{k}", 60)) is not None:
            with lock:
                claimed.append(claim.identifier)
            assert queue.heartbeat(claim, 60)
            assert queue.heartbeat(claim, 60)
            queue.release(claim, "done", {"sections": 1})
            assert not queue.heartbeat(claim, 60)
        queue.close()

    at_once(work, 5)
    assert sorted(claimed) == names
    assert {r.state for r in setup.list()} == {"done"}
    setup.add("/raw/late.fits", "cam")
    late = setup.claim("slow", 0.0)
    other = LocalQueue(lambda: connect(url))
    assert other.claim("quick", 60).token > late.token
    assert not setup.heartbeat(late, 60)
    for queue in (setup, other):
        queue.close()


def test_verbs_with_a_single_connection(empty_url, narrow, bundles, tmp_path, capsys):
    """Each verb in its turn with one connection to the server: none needs another while it is in a transaction."""
    url, root = narrow.url(empty_url), tmp_path / "root"
    verb = Verbs(url, root, capsys)
    (tmp_path / "store").mkdir()
    bundles.folder = root / "bundles"
    one = {"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0), (150.005, 2.0)], "bad": [False, False]}}
    base = bundles({"S1": {"ra": 150.0, "dec": 2.0}}, name="e0", mjd=59990.0)
    first = bundles(one)
    bundles(one, name="e2", mjd=60001.0)
    archive = ["--set", "archive.kind=directory", "--set", f"archive.path={tmp_path / 'store'}"]
    radius = ["--set", "objects.association_radius_arcsec=2.0"]

    def said(*words):
        code, out, err = verb(*words)
        assert code == 0, f"{words}: {out} {err}"
        return out

    assert _HEAD in said("db", "init")
    said("db", "commit", base, *radius)
    said("refs", "add", "e0")
    assert "2 new objects" in said("db", "commit", first, *radius)
    assert "everything is there already" in said("db", "commit", first, *radius)
    (tmp_path / "e2.fits").write_bytes(b"")
    said("queue", "add", tmp_path / "e2.fits", "--camera", "simulated")
    assert "e2" in said("queue", "list")
    assert "1 committed, 0 passed over" in said("db", "commit", "--pending", *radius)
    assert "2 new, 0 changed" in said("object", "position")
    assert "object" in said("object", "list")
    ids = said("prov", "show", str(first))
    assert ids
    said("prov", "tag", "add", "mine", str(first))
    assert "mine" in said("prov", "tag", "list")
    assert "measurements" in said("badness", "add", "ghost", "e1/S1", "--yes")
    said("db", "commit", "--replace", bundles({"S1": one["S1"] | {"at": [(150.0, 2.0)], "bad": [False]}}), *radius)
    said("archive", "push", "e1", "e0", *archive)
    assert "removed" in said("clean", "--yes", "--references", *archive)
    assert "rows deleted" in said("products", "delete", "e2", "--yes", *archive)
    assert "exposures              2" in said("db", "status")
    assert left_behind(url) == ([0, 0, 0, 0], [])


def test_a_bundle_passed_over_keeps_no_connection(fresh_url, narrow, bundles, tmp_path, capsys):
    """What is refused before its commit begins leaves no transaction open: the queue needs the connection next."""
    one = {"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}}
    damaged, _ = bundles(one), bundles(one, name="e2", mjd=60001.0)
    with h5py.File(damaged, "r+") as f:
        row = f["provenance"][0]
        f["provenance"][0] = (row[0], row[1], row[2], '{"changed": 99}', row[4])
    verb = Verbs(narrow.url(fresh_url), tmp_path / "root", capsys)
    (tmp_path / "e2.fits").write_bytes(b"")
    assert verb("queue", "add", tmp_path / "e2.fits", "--camera", "simulated")[0] == 0
    code, out, _ = verb("db", "commit", "--pending", tmp_path, "--set", "objects.association_radius_arcsec=2.0")
    assert "1 committed, 1 passed over" in out
    assert code == 4


@pytest.mark.slow
def test_a_run_with_a_single_connection(empty_url, narrow, tiny_survey, tmp_path):
    """Claims, heartbeats, preparation and commits of a job take turns; between them it holds one connection."""
    url = narrow.url(empty_url)
    config = tiny_survey.config(tmp_path / "root", database__url=url)
    admin, done, clients = url.replace(f"/{url.split('/')[3].split('?')[0]}?", "/pgbouncer?"), threading.Event(), []

    def sample():
        with psycopg.connect(admin, autocommit=True, prepare_threshold=None) as conn:
            while not done.wait(0.02):
                shown = psycopg.ClientCursor(conn).execute("SHOW CLIENTS").fetchall()
                clients.append(sum(url.split("/")[3].startswith(f"{row[2]}?") for row in shown))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        first, second = tiny_survey.exposures
        assert run_cli("run", "--config", config, first, "--no-report") == 0
        assert run_cli("refs", "add", "--config", config, first.stem) == 0
        assert run_cli("run", "--config", config, second, "--no-report") == 0
    finally:
        done.set()
        watcher.join()
    assert left_behind(url) == ([0, 0, 0, 0], [])
    assert sorted(clients)[len(clients) // 2] <= 1, "a job holds one connection"
    assert 1 <= max(clients) <= 3, "one that claims, one that prepares, one that commits"


STATE = {
    "a lock of the session": r"pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\(",
    "a setting of the session": r"""["'](?:SET|RESET) (?!LOCAL\b|NULL\b|DEFAULT\b)|set_config\([^)]*false\)""",
    "a temporary table that outlives its transaction": r"CREATE TEMP(?:ORARY)? TABLE(?![^;]{0,220}?ON COMMIT DROP)",
    "a prepared statement": r"""["'](?:PREPARE|DEALLOCATE) |prepare=True""",
    "a channel listened to": r"""["']LISTEN """,
    "a cursor that outlives its transaction": r"WITH HOLD|withhold=True",
}


def test_no_statement_leaves_state_in_the_session():
    found = {}
    for path in sorted(PRODUCT.rglob("*.py")):
        text = path.read_text()
        for what, pattern in STATE.items():
            found |= {f"{path.relative_to(PRODUCT)}: {what}": m.group() for m in re.finditer(pattern, text)}
        if "psycopg.connect(" in text:
            found[f"{path.relative_to(PRODUCT)}: a connection"] = "psycopg.connect("
    # `connect` says what connections are like; the embedded server asks its own server whether it is there
    assert set(found) == {"db/engine.py: a connection", "db/server.py: a connection"}, found


@pytest.mark.parametrize("line", [
    'conn.execute("SELECT pg_advisory_lock(1)")', 'conn.execute("SET jit = off")', "SELECT set_config('a', 'b', false)",
    "CREATE TEMP TABLE x (a int)", 'conn.execute("LISTEN x")', 'conn.execute("PREPARE a AS SELECT 1")'])
def test_such_a_statement_is_found(line):
    assert any(re.search(pattern, line) for pattern in STATE.values())
