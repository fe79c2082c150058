"""Eight processes need the same stars or calibration frames: one fetch, one row, one file; the dead block nobody."""

import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from committers import Client, context
from fetchers import Service, fetch_client, frames_client

from seechange_mpi.config.resolve import Config
from seechange_mpi.db import excerpts
from seechange_mpi.db.engine import connect
from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.mpi.catalogs import catalog_spec, shared_excerpt
from seechange_mpi.pipeline.wcs_tools import separation_deg

pytestmark = pytest.mark.db
CLIENTS = 8
HERE, ELSEWHERE = (150.0, 2.2, 6.0), (300.0, -40.0, 6.0)


@pytest.fixture
def service():
    service = Service()
    with service.running() as url:
        service.url = url
        yield service


@pytest.fixture
def config(service, url, tmp_path):
    """Path of a configuration."""
    return write_config(tmp_path, url, url=service.url, url_timeout_s=30.0)


def write_config(folder, database, **catalog):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"paths": {"root": str(folder)}, "database": {"url": database}, "catalog": catalog}))
    return path


def results(clients):
    out = []
    for c in clients:
        told = c.told()
        assert told[0] == "begin"
        assert isinstance(told[-1], tuple), told
        out.append(told[-1])
    return out


def waiting(url):
    """Number of processes that wait for a region."""
    with connect(url) as conn:
        return conn.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                            ).fetchone()[0]


def until(done):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.02)


@pytest.mark.parametrize(("cone", "n", "questions"), [
    (HERE, CLIENTS, 1), ((0.3, -20.0, 6.0), 3, 2), ((77.0, 89.0, 6.0), 3, 1)])
def test_eight_processes_fetch_once(service, config, url, conn, cone, n, questions):
    """All get the same stars, those of a direct question; a field across right ascension 0 takes two."""
    barrier = context.Barrier(n)
    service.answering.clear()
    clients = [Client(fetch_client, str(config), url, cone, barrier) for _ in range(n)]
    until(lambda: waiting(url) == n - 1 and len(service.asked) == 1)
    service.answering.set()
    got = results(clients)
    assert len(service.asked) == questions
    assert len(set(got)) == 1
    path = Path(got[0][0])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    stars = read_catalog({"path": str(path)}, *cone)
    s = service.stars
    near = separation_deg(s["ra"], s["dec"], *cone[:2]) <= cone[2]
    assert sorted(stars.ra) == sorted(s["ra"][near])
    (row,) = excerpts.list_excerpts(conn)
    assert (row.filepath, row.origin, row.filters) == (str(path), service.url, ["bp", "g"])
    assert row.num_items == len(read_catalog({"path": str(path)}, row.ra, row.dec, row.radius)) >= len(stars) > 5
    assert 12 <= row.minmag < row.maxmag <= 20


def test_a_killed_fetcher_blocks_nobody_and_a_stopped_one_for_a_while(service, config, url, conn):
    """The next in the queue fetches when the holder is gone, or after waiting long enough; elsewhere nobody waits."""
    service.answering.clear()
    first = Client(fetch_client, str(config), url, HERE, None)
    until(lambda: len(service.asked) == 1)
    others = [Client(fetch_client, str(config), url, HERE, None) for _ in range(3)]
    until(lambda: waiting(url) == 3)
    os.kill(first.process.pid, signal.SIGKILL)
    until(lambda: len(service.asked) == 2)
    elsewhere = Client(fetch_client, str(config), url, ELSEWHERE, None)
    until(lambda: len(service.asked) == 3)
    service.answering.set()
    results([*others, elsewhere])
    assert len(service.asked) == 3
    assert len(excerpts.list_excerpts(conn)) == 2

    impatient = write_config(config.parent, url, url=service.url, url_timeout_s=30.0, wait_s=0.5, max_mag=18.0)
    service.answering.clear()
    stopped = Client(fetch_client, str(impatient), url, HERE, None)
    until(lambda: len(service.asked) == 4)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    try:
        service.answering.set()
        late = results([Client(fetch_client, str(impatient), url, HERE, None)])
    finally:
        os.kill(stopped.process.pid, signal.SIGCONT)
    assert results([stopped]) == late
    assert len(service.asked) == 5
    assert [r.maxmag for r in excerpts.list_excerpts(conn)].count(18.0) == 1


def test_locks_of_overlapping_regions_meet_and_others_do_not():
    for ra, dec in ((0.0, 0.0), (359.9, 40.0), (10.0, 89.5), (200.0, -88.0)):
        a = set(excerpts.lock_cells("q", (ra, dec, 3.0)))
        assert a & set(excerpts.lock_cells("q", ((ra + 0.2) % 360, dec, 2.5)))
        assert not a & set(excerpts.lock_cells("q", (ra, -dec / 2 + 20.0, 0.5)))
        assert not a & set(excerpts.lock_cells("another", (ra, dec, 3.0)))
    assert excerpts.lock_cells("q", HERE) == sorted(excerpts.lock_cells("q", HERE))


def test_a_damaged_excerpt_is_made_and_registered_anew(service, config, url, conn):
    resolved = Config(config)
    spec = catalog_spec(resolved)
    opened = lambda: connect(url)  # noqa: E731
    first = shared_excerpt(spec, [HERE], resolved, opened)
    before = conn.execute("SELECT sha256, num_items FROM catalog_excerpts").fetchall()
    conn.commit()
    with open(first["path"], "r+b") as f:
        f.truncate(3000)
    service.stars["phot_g_mean_mag"] += 1.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert shared_excerpt(spec, [HERE], resolved, opened)["path"] == first["path"]
    assert [str(w.message)[:31] for w in told if "damaged" in str(w.message)] == ["a damaged excerpt is made anew:"]
    after = conn.execute("SELECT sha256, num_items FROM catalog_excerpts").fetchall()
    assert len(after) == 1
    assert after[0][0] != before[0][0]
    assert after[0][1] == before[0][1]


def test_show_lists_excerpts(config, url, cli, capfd, conn):
    assert cli("catalog", "show", "--config", config) == 0
    assert "no excerpt is registered" in capfd.readouterr().out
    resolved = Config(config)
    made = shared_excerpt(catalog_spec(resolved), [HERE], resolved, lambda: connect(url))
    assert cli("catalog", "show", "--config", config) == 0
    text = capfd.readouterr().out
    assert "150.0000" in text
    assert made["path"] in text
    assert "(gone)" not in text
    os.unlink(made["path"])
    assert cli("catalog", "show", "--config", config) == 0
    assert "(gone)" in capfd.readouterr().out
    assert cli("catalog", "show", "--config", config, "--check") == 2


def test_eight_processes_register_the_same_frames(fresh_url, tmp_path):
    """One row and one file of each; new dates in every order neither deadlock nor mix."""
    barrier = context.Barrier(CLIENTS)
    clients = [Client(frames_client, fresh_url, str(tmp_path), k, 5, barrier) for k in range(CLIENTS)]
    assert [c.told() for c in clients] == [["end"]] * CLIENTS
    with connect(fresh_url) as conn:
        for table in ("calibrator_files", "data_files", "provenances"):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (30,)
        files = {r[0] for r in conn.execute("SELECT filepath FROM data_files")}
        starts = conn.execute("SELECT count(*) FROM calibrator_files GROUP BY validity_start").fetchall()
        assert np.sum(starts) == 30
    assert files == {str(p) for p in tmp_path.rglob("*") if p.is_file()}
