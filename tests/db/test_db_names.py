"""Names of objects: counted within a year by commits that know nothing of each other, or from the position."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seechange_mpi.config.settings import ObjectSettings
from seechange_mpi.db.commit import RefusedCommit, commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.linking import Linkage
from seechange_mpi.db.names import counter_names, letters, object_name, prepare_counter, year_of
from seechange_mpi.model.errors import ConfigError

A, B, C = (150.0, 2.0), (150.01, 2.01), (150.005, 1.995)
IN_2023, IN_2024 = 60000.0, 60400.0
COUNTER = Linkage(naming="counter", prefix="LS4")


@given(st.integers(0, 10**9))
def test_letters_count(n):
    """Digits a to z; as SeeChange counts: no leading a, 26 is ba."""
    text = letters(n)
    assert sum((ord(c) - ord("a")) * 26**k for k, c in enumerate(reversed(text))) == n
    assert text == "a" or not text.startswith("a")


def test_letters_of_the_reference():
    assert [letters(n) for n in (0, 1, 25, 26, 27, 675, 676)] == ["a", "b", "z", "ba", "bb", "zz", "baa"]


def test_years():
    assert [year_of(m) for m in (60000.0, 60309.9999, 60310.0, 51544.0)] == [2023, 2023, 2024, 2000]


@pytest.fixture
def counted(conn):
    """No year has been counted yet: names begin with a."""
    def drop():
        for (name,) in conn.execute("SELECT relname FROM pg_class WHERE relkind = 'S' AND relname LIKE 'object_names%'"
                                    ).fetchall():
            conn.execute(f"DROP SEQUENCE {name}")
        conn.commit()

    drop()
    yield
    conn.rollback()
    drop()


def commit(conn, path, how=COUNTER, **more):
    return commit_bundle(conn, path, radius_arcsec=2.0, how=how, **more)


def one(*at):
    return {"S1": {"ra": 150.0, "dec": 2.0, "at": list(at)}}


def names(conn):
    return [r[0] for r in conn.execute("SELECT name FROM objects ORDER BY length(name), name").fetchall()]


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_names_are_counted_in_the_order_of_measurements_within_a_year(conn, bundles):
    commit(conn, bundles(one(A, B), name="e1", mjd=IN_2023))
    found = conn.execute("SELECT m.ra, o.name FROM measurements m JOIN objects o ON m.object_id = o._id ORDER BY "
                         "m.index_in_sources").fetchall()
    assert found == [(A[0], "LS423a"), (B[0], "LS423b")]
    commit(conn, bundles(one(A, C), name="e2", mjd=IN_2023 + 1))
    commit(conn, bundles(one((150.0, 2.01), (150.02, 2.0)), name="e3", mjd=IN_2024))
    assert names(conn) == ["LS423a", "LS423b", "LS423c", "LS424a", "LS424b"]
    commit(conn, bundles(one((150.005, 2.01)), name="e4", mjd=IN_2023 + 2, testing=True))
    assert names(conn)[-1].startswith("TEST LS4 J1000"), "tests use up no number"


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_names_stay_when_a_bundle_is_committed_again_or_replaced(conn, bundles):
    first = bundles(one(A, B), name="e1")
    commit(conn, first)
    before = dict(conn.execute("SELECT _id, name FROM objects").fetchall())
    assert commit(conn, first).unchanged
    other = bundles({"S1": one(A, B)["S1"] | {"zp": 26.0}}, name="e1", suffix="b")
    commit(conn, other, replace=True)
    assert dict(conn.execute("SELECT _id, name FROM objects").fetchall()) == before
    third = bundles({"S1": one(A, C)["S1"] | {"zp": 27.0}}, name="e1", suffix="c")
    commit(conn, third, replace=True)
    assert names(conn) == ["LS423a", "LS423c"], "what is at another place is another object"
    commit(conn, other, replace=True, how=Linkage())
    kept = dict(conn.execute("SELECT name, dec FROM objects").fetchall())
    assert kept["LS423a"] == A[1]


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_ids_do_not_depend_on_names(conn, bundles, fresh_url):
    path = bundles(one(A, B, B), name="e1")
    commit(conn, path)
    with connect(fresh_url) as other:
        commit(other, path, how=Linkage())
        query = "SELECT _id FROM objects ORDER BY _id"
        assert other.execute(query).fetchall() == conn.execute(query).fetchall()
        assert other.execute("SELECT count(*) FROM objects WHERE name LIKE 'SCM J%%-2'").fetchone() == (1,)


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_a_commit_that_fails_leaves_a_gap_and_no_object(conn, bundles):
    with pytest.raises(RefusedCommit):
        commit(conn, bundles(one(A, B), name="e1"), max_new_objects=1)
    assert names(conn) == []
    commit(conn, bundles(one(A), name="e2"))
    assert names(conn) == ["LS423c"]


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_commits_at_once_share_a_year_that_nobody_has_counted_yet(url, bundles):
    """Eight jobs, different places: every one goes through, no name is given twice, none is left out."""
    paths = [bundles({"S1": {"ra": 150.0 + k, "dec": 2.0, "at": [(150.0 + k + 0.002 * j, 2.0) for j in range(5)]}},
                     name=f"e{k}") for k in range(8)]
    errors = []
    gate = threading.Barrier(8)

    def job(path):
        try:
            with connect(url) as conn:
                gate.wait(20)
                commit(conn, path)
        except Exception as err:  # noqa: BLE001
            errors.append(err)

    threads = [threading.Thread(target=job, args=(p,)) for p in paths]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert errors == []
    with connect(url) as conn:
        assert names(conn) == sorted((f"LS423{letters(k)}" for k in range(40)), key=lambda n: (len(n), n))
        assert conn.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'object_names%%'").fetchone() == (1,)


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_names_reserved_by_an_open_transaction_hold_nobody_up(url, conn):
    prepare_counter(conn, 2023)
    with connect(url) as other, other.transaction():
        assert counter_names(other, "LS4", 2023, 2) == ["LS423a", "LS423b"]
        conn.execute("SET lock_timeout = '2s'")
        conn.commit()
        prepare_counter(conn, 2023)
        assert counter_names(conn, "LS4", 2023, 1) == ["LS423c"]
        prepare_counter(conn := connect(url), 2024)
        conn.close()


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_a_counter_that_was_lost_catches_up(conn, bundles):
    commit(conn, bundles(one(A, B), name="e1"))
    conn.execute("DROP SEQUENCE object_names_2023")
    conn.commit()
    commit(conn, bundles(one(C, (150.0, 2.01)), name="e2", mjd=IN_2023 + 1))
    assert names(conn) == ["LS423a", "LS423b", "LS423c", "LS423d"]


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_thousands_are_named_with_one_query(conn, monkeypatch):
    from seechange_mpi.db import names as module

    prepare_counter(conn, 2023)
    calls = []
    rows = module._rows
    monkeypatch.setattr(module, "_rows", lambda *a: calls.append(1) or rows(*a))
    found = counter_names(conn, "LS4", 2023, 20_000)
    assert found == [f"LS423{letters(k)}" for k in range(20_000)]
    assert len(calls) == 2, "numbers, and whether names are in use"


@pytest.mark.db
@pytest.mark.usefixtures("counted")
def test_the_setting_on_the_command_line(conn, verb, bundles):
    path = bundles(one(A), name="e1")
    settings = ("--set", "objects.naming=counter", "--set", "objects.name_prefix=obj")
    assert verb("db", "commit", path, *settings)[0] == 0
    assert verb("object", "show", "OBJ23A")[1].startswith("obj23a  ")
    assert verb("db", "commit", bundles(one(B), name="e2"), *settings[2:])[0] == 0
    conn.commit()
    assert names(conn)[1] == object_name(*B, "obj")


def test_prefixes_that_cannot_be_looked_up_are_refused():
    for wrong in ("", "a b", "1x", "a_b", "TEST SCM"):
        with pytest.raises(ConfigError, match="name_prefix"):
            ObjectSettings(name_prefix=wrong)
    with pytest.raises(ConfigError, match="naming"):
        ObjectSettings(naming="random")
