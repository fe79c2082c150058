"""Eight processes commit overlapping exposures at once; clients and servers are killed; distant fields never wait."""

import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from committers import (
    RADIUS,
    Client,
    Exposures,
    context,
    list_client,
    place_of,
    round_client,
    sections_of,
    serial_client,
    wait_for_commits,
)
from scipy.spatial import cKDTree

from seechange_mpi.db import linking
from seechange_mpi.db.blocks import id_array, id_texts, ids_of, uuids
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect, notice_lost_client
from seechange_mpi.db.matching import unit_vectors
from seechange_mpi.db.migrate import upgrade
from seechange_mpi.db.schema import VOLATILE, metadata
from seechange_mpi.db.server import EmbeddedServer
from seechange_mpi.model.errors import TransientError
from seechange_mpi.model.ids import stable_id

pytestmark = pytest.mark.db
CLIENTS = 8
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))
LOG = logging.getLogger(__name__)


def contents(conn):
    """All rows by table, but for what depends on which measurement came first."""
    left_out = VOLATILE | {"object_id"}
    out = {}
    for table in metadata.sorted_tables:
        if table.name == "objects":
            continue
        names = ", ".join(f'"{c.name}"' for c in table.columns if c.name not in left_out)
        out[table.name] = sorted(map(repr, conn.execute(f"SELECT {names} FROM {table.name}").fetchall()))
    return out


def partition(conn):
    """Sets of measurements that have one object, of which there are as many as objects."""
    rows = conn.execute("SELECT m.object_id, m._id FROM measurements m JOIN objects o ON m.object_id = o._id"
                        ).fetchall()
    groups = {}
    for thing, measurement in rows:
        groups.setdefault(thing, []).append(measurement)
    assert conn.execute("SELECT count(*) FROM measurements").fetchone() == (len(rows),)
    assert conn.execute("SELECT count(*) FROM objects").fetchone() == (len(groups),)
    return groups


def check_objects(conn):
    """No two objects within the radius; ids follow a measurement of the object, the one at its place."""
    ids, names, ra, dec = zip(*conn.execute("SELECT _id, name, ra, dec FROM objects ORDER BY _id").fetchall(),
                              strict=True)
    vectors = unit_vectors(ra, dec)
    assert not cKDTree(vectors).query_pairs(np.deg2rad(RADIUS / 3600)), "two objects within the radius"
    founders = conn.execute("SELECT o._id, m._id FROM objects o JOIN measurements m ON m.object_id = o._id "
                            "AND m.ra = o.ra AND m.dec = o.dec ORDER BY o._id").fetchall()
    assert [f[0] for f in founders] == list(ids)
    texts = id_texts(id_array([f[1] for f in founders]))
    assert uuids(ids_of("object", numbers=[f"{i}|{n}" for i, n in zip(texts, names, strict=True)])) == list(ids)


def check_same(url, serial_url):
    """The databases differ in nothing but which measurement founded an object."""
    with connect(url) as conn, connect(serial_url) as serial:
        check_objects(conn)
        assert {frozenset(g) for g in partition(conn).values()} == {frozenset(g) for g in partition(serial).values()}
        assert contents(conn) == contents(serial)


def run_rounds(url, serial_url, folder, n):
    barrier = context.Barrier(CLIENTS)
    clients = [Client(round_client, url, str(folder), k, barrier) for k in range(CLIENTS)]
    serial = Client(serial_client, serial_url)
    founded = linked = 0
    for number in range(n):
        for c in clients:
            c.pipe.send(number)
        for _ in range(CLIENTS if number else 0):  # the round before
            assert serial.pipe.recv()[1] == ""
        for c in clients:
            assert c.pipe.poll(100), "a commit does not end"
            path, inserted, problem = c.pipe.recv()
            assert not problem
            serial.pipe.send((path, number))
            founded += inserted["objects"]
            linked += inserted["measurements"] - inserted["objects"]
    for _ in range(CLIENTS):
        assert serial.pipe.recv()[1] == ""
    for c in (*clients, serial):
        c.pipe.send(None)
        c.join()
    check_same(url, serial_url)
    with connect(url) as conn:
        assert conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
                            ).fetchone() == (0,)
    assert founded > 30 * n
    assert linked > 2 * founded


@pytest.mark.parametrize("n", [20, pytest.param(200, marks=SLOW)])
def test_eight_processes_give_what_one_gives(fresh_url, second_url, tmp_path, n):
    """Rounds of eight overlapping exposures with new provenances and a new tag, committed at one moment."""
    run_rounds(fresh_url, second_url, tmp_path, n)


def wait_until(conn, query, values=()):
    """Until a query counts something."""
    end = time.monotonic() + 60
    while conn.execute(query, values).fetchone() == (0,):
        conn.rollback()
        assert time.monotonic() < end, query
        time.sleep(0.01)
    conn.rollback()


def test_a_commit_in_the_middle_delays_its_own_field_and_no_other(fresh_url, bundles):
    """Exposures of two fields have the same new provenances, code versions and tag; one commit is stopped with all its
    locks: the other field goes through, its own field waits and then finds its objects."""
    paths = {(n, k): bundles(sections_of(place_of(n), 1, k), f"field{n}e{k}") for n in (0, 2) for k in (1, 2)}
    with connect(fresh_url) as holder, connect(fresh_url) as watch, connect(fresh_url) as other:
        here = sections_of(place_of(0), 1, 1)["S1"]["at"]
        linking.lock_sky(holder, linking.Patch.around(*here.T, RADIUS))
        first = Client(list_client, fresh_url, [paths[0, 1]], "survey")
        wait_until(watch, "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'")
        os.kill(first.process.pid, signal.SIGSTOP)
        try:
            holder.rollback()
            wait_until(watch, "SELECT count(*) FROM pg_locks WHERE granted AND locktype = 'advisory'")
            other.execute("SET lock_timeout = '5s'")
            assert commit_bundle(other, paths[2, 1], radius_arcsec=RADIUS, tag="survey").inserted["objects"] == 12
            other.execute("SET lock_timeout = '200ms'")
            with pytest.raises(TransientError, match="lock timeout"):
                commit_bundle(other, paths[0, 2], radius_arcsec=RADIUS, tag="survey")
        finally:
            os.kill(first.process.pid, signal.SIGCONT)
        assert [word for word, _ in first.told()] == ["begin", "done", "end"]
        done = commit_bundle(other, paths[0, 2], radius_arcsec=RADIUS, tag="survey")
        assert 0 < sum(done.linked.values()) == 12 - done.inserted["objects"]
        check_objects(other)


def test_links_are_right_whatever_the_isolation_level_of_the_server(fresh_url):
    """A transaction that keeps its first snapshot would not see the objects of the commit it has waited for."""
    with connect(f"{fresh_url}&options=-cdefault_transaction_isolation%3Dserializable") as conn:
        assert conn.execute("SHOW default_transaction_isolation").fetchone() == ("serializable",)
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_a_lost_machine_is_noticed_while_it_holds_locks(fresh_url):
    """The server's own patience (hours) is shortened until the end of the transaction, and only until then."""
    query = "SELECT count(*) FROM pg_settings WHERE name LIKE 'tcp_keepalives%' AND source = 'session'"
    with connect(fresh_url) as conn:
        with conn.transaction():
            notice_lost_client(conn)
            assert conn.execute(query).fetchone() == (3,)
        assert conn.execute(query).fetchone() == (0,)


def commit_again(conn, path):
    """Commit an exposure of a campaign under the tag of its round."""
    return commit_bundle(conn, path, radius_arcsec=RADIUS, tag=path.stem.rpartition("e")[0])


class Campaign:
    """Rounds of commits in which something is killed.

    Every round three processes commit two exposures each of one field; then what they were told and what is there are
    compared, and all of it is committed again.
    """

    def __init__(self, folder, seed):
        self.makers = [Exposures(folder, k) for k in (1, 2, 3, 5, 6, 7)]
        self.random = random.Random(seed)
        self.paths, self.hits = [], Counter()

    def begin(self, url, number):
        paths = [make(number, "kill") for make in self.makers]
        self.paths += paths
        return [Client(list_client, url, paths[k::3], f"kill{number}") for k in range(3)]

    def pause(self, clients):
        """Wait until some of the exposures are committed, then for a random moment of the next commits."""
        wait_for_commits(clients, self.random.randrange(4))
        time.sleep(self.random.uniform(0, 0.4))

    def check(self, conn, told, paths):
        """What a client was told is there, the rest as a whole or not at all."""
        for path in paths:
            rows = conn.execute(
                "SELECT (SELECT count(*) FROM exposures WHERE _id = %(e)s), (SELECT count(*) FROM product_sets WHERE "
                "exposure_id = %(e)s), (SELECT count(*) FROM measurements m JOIN measurement_sets s ON "
                "m.measurementset_id = s._id JOIN cutouts c ON s.cutouts_id = c._id JOIN detections d ON "
                "c.detections_id = d._id JOIN images i ON d.image_id = i._id WHERE i.exposure_id = %(e)s)",
                {"e": stable_id("exposure", path.stem)}).fetchone()
            assert rows in ((0, 0, 0), (1, 2, 12))
            done, begun = ("done", path) in told, ("begin", path) in told
            assert rows == (1, 2, 12) or not done, "the client was told that it is committed"
            if done:
                self.hits["confirmed"] += 1
            else:
                self.hits[("not begun", "nothing is there", "all is there")[begun * (1 + rows[0])]] += 1
        conn.rollback()

    def finish(self, conn, serial_url):
        """Commit everything again, and compare with one process that was left alone."""
        with connect(serial_url) as serial:
            for path in self.paths:
                commit_again(conn, path)
                commit_again(serial, path)
        for path in self.paths:
            assert commit_again(conn, path).unchanged


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("n", [3, pytest.param(50, marks=SLOW)])
def test_a_killed_client_loses_and_duplicates_nothing(fresh_url, second_url, tmp_path, n):
    """The others go on at once, and its own exposures are there whole or not at all."""
    campaign = Campaign(tmp_path, 1)
    with connect(fresh_url) as conn:
        for number in range(n):
            clients = campaign.begin(fresh_url, number)
            victim = clients[number % 3]
            campaign.pause(clients)
            kill(victim.process.pid)
            for c in clients:
                told = c.told()
                if c is not victim:
                    assert told[-1] == ("end", None), told
                campaign.check(conn, told, [p for w, p in told if w == "begin"])
        campaign.finish(conn, second_url)
    check_same(fresh_url, second_url)
    LOG.info("%d clients killed: %s", n, dict(campaign.hits))


@pytest.fixture
def own_server():
    """A server that may be killed."""
    folder = Path(tempfile.mkdtemp(prefix="seechange-kill-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder)
    server.start()
    yield server
    server.start()
    server.stop()
    shutil.rmtree(server.data.parent, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def children(pid):
    """Processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("n", [3, pytest.param(50, marks=SLOW)])
def test_a_killed_server_loses_and_duplicates_nothing(own_server, fresh_url, tmp_path, n):
    """The postmaster alone, the postmaster and all its processes, or one of those: clients are told, a commit that was
    confirmed is there, and committing again completes the rest."""
    campaign = Campaign(tmp_path, 2)
    with connect(own_server.url) as conn:
        upgrade(conn)
    for number in range(n):
        clients = campaign.begin(own_server.url, number)
        campaign.pause(clients)
        postmaster = int((own_server.data / "postmaster.pid").read_text().split()[0])
        below = children(postmaster)
        if number % 3 < 2:
            kill(postmaster)
        for pid in below if number % 3 == 1 else below[-1:] if number % 3 == 2 else ():
            kill(pid)
        told = [c.told() for c in clients]
        assert {t[-1][0] for t in told} <= {"end", "TransientError"}, told
        own_server.start()
        with connect(own_server.url) as conn:
            for k, t in enumerate(told):
                campaign.check(conn, t, campaign.paths[-6:][k::3])
            for path in campaign.paths[-6:]:
                commit_again(conn, path)
    with connect(own_server.url) as conn:
        campaign.finish(conn, fresh_url)
    check_same(own_server.url, fresh_url)
    LOG.info("%d servers killed: %s", n, dict(campaign.hits))
