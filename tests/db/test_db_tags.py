"""Provenances on the command line: show, compare and tag them; two processes that tag at once."""

import json
import time

import pytest
from made_bundles import tree

from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.provenance import store_provenances
from seechange_mpi.db.tags import TagConflict, clone_tag, list_tags, remove_from_tag, tag_provenances, tagged, tree_of
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.provenance import make_record

pytestmark = pytest.mark.db
SECTIONS = {"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}}
FIRST, OTHER = tree(), tree(scoring=1)


@pytest.fixture
def two(bundles):
    """Bundles of one exposure with two scorings."""
    return bundles(SECTIONS), bundles(SECTIONS, scoring=1)


@pytest.fixture
def stored(conn):
    """Both trees of provenances in the database."""
    with conn.transaction():
        store_provenances(conn, [*FIRST.values(), *OTHER.values()])
    conn.commit()


def rows(conn, tag):
    return sorted(conn.execute("SELECT _id, provenance_id FROM provenance_tags WHERE tag = %s", (tag,)).fetchall())


def test_show_from_the_database_and_from_a_bundle(verb, stored, two):
    scoring = OTHER["scoring"]
    code, out, err = verb("prov", "show", scoring.id[:6].lower())
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{OTHER['acquire_exposure'].id}  acquire_exposure, code 0.1.0"
    assert f"{scoring.id}  scoring, code 0.1.0, this one" in lines
    assert f"    from {scoring.upstream_ids[0]}  measuring" in lines
    assert lines[-1] == "    changed = 1"
    as_json = json.loads(verb("prov", "show", scoring.id, "--json")[1])
    assert [r["process"] for r in as_json] == list(OTHER)
    assert as_json[-1]["parameters"] == {"changed": 1}
    from_bundle = json.loads(verb("prov", "show", two[1], "--json")[1])
    assert from_bundle == as_json
    measuring = json.loads(verb("prov", "show", FIRST["measuring"].id, "--json")[1])
    assert [r["process"] for r in measuring] == list(OTHER)[:-1], "what is downstream is left out"


def test_show_refuses_what_is_not_there(verb, stored):
    code, err = verb.refused("prov", "show", "ZZZZZZ")
    assert code == 2
    assert "no provenance with this id" in err
    assert "prov tag list" in err
    assert "4 letters at least" in verb.refused("prov", "show", FIRST["scoring"].id[:2])[1]


def test_several_that_begin_alike_are_named(conn, verb):
    conn.execute("INSERT INTO code_versions (_id, process, version_major, version_minor, version_patch) "
                 "VALUES (gen_random_uuid(), 'p', 0, 1, 0)")
    conn.execute("INSERT INTO provenances (_id, process, code_version_id) "
                 "SELECT x, 'p', _id FROM code_versions, unnest(ARRAY['ABCDE1', 'ABCDE2', 'ABCDE']) x")
    conn.commit()
    assert verb("prov", "show", "ABCDE")[1].startswith("ABCDE  p"), "the whole id is meant before longer ones"
    assert "several provenances begin so: ABCDE, ABCDE1, ABCDE2" in verb.refused("prov", "show", "ABCD")[1]


def test_diff_says_what_differs(verb, stored, two):
    a, b = FIRST["scoring"].id, OTHER["scoring"].id
    code, out, _ = verb("prov", "diff", a, b)
    assert (code, out.splitlines()) == (1, [f"scoring: {a} and {b}", "  changed: 0 | 1"])
    assert verb("prov", "diff", a, a)[:2] == (0, "the same\n")
    code, out, _ = verb("prov", "diff", *two)
    assert (code, out.splitlines()) == (1, [f"scoring: {a} and {b}", "  changed: 0 | 1"])
    code, out, _ = verb("prov", "diff", two[0], OTHER["measuring"].id)
    assert (code, out.splitlines()) == (1, [f"scoring: {a} | none"])
    code, out, _ = verb("prov", "diff", FIRST["measuring"].id, b)
    assert code == 1
    assert "is a provenance of measuring" in out.splitlines()[0]


def test_diff_follows_a_change_upstream(verb, conn):
    changed = tree(extraction=7)
    store_provenances(conn, [*FIRST.values(), *changed.values()])
    conn.commit()
    out = verb("prov", "diff", FIRST["detection"].id, changed["detection"].id)[1].splitlines()
    assert out == [f"extraction: {FIRST['extraction'].id} and {changed['extraction'].id}", "  changed: 0 | 7",
                   f"subtraction: {FIRST['subtraction'].id} and {changed['subtraction'].id}",
                   "  other upstream: extraction",
                   f"detection: {FIRST['detection'].id} and {changed['detection'].id}",
                   "  other upstream: subtraction"]


def test_tags_from_beginning_to_end(verb, conn, two):
    assert "there are no tags" in verb("prov", "tag", "list")[1]
    assert verb("prov", "tag", "add", "dr1", two[0])[:2] == (0, "dr1: 8 added, 0 were there\n")
    assert verb("prov", "tag", "add", "dr1", two[0])[:2] == (0, "dr1: 0 added, 8 were there\n")
    code, err = verb.refused("prov", "tag", "add", "dr1", two[1])
    assert code == 2
    assert "tag 'dr1' has another provenance of scoring" in err
    assert f"prov tag remove dr1 {FIRST['scoring'].id}" in err
    assert verb("prov", "tag", "clone", "dr1", "dr2")[:2] == (0, "dr2: 8 provenances, as in dr1\n")
    assert "--clobber" in verb.refused("prov", "tag", "clone", "dr1", "dr2")[1]
    assert verb("prov", "tag", "remove", "dr2", FIRST["scoring"].id[:8])[:2] == (0, "dr2: 1 removed\n")
    verb("prov", "tag", "add", "dr2", two[1])
    assert f"scoring           {OTHER['scoring'].id}  code 0.1.0" in verb("prov", "tag", "list", "dr2")[1]
    assert verb("prov", "diff", "dr1", "dr2")[0] == 1
    assert "scoring: " in verb("prov", "diff", "dr1", "dr2")[1]
    assert verb("prov", "tag", "clone", "dr1", "dr2", "--clobber")[0] == 0
    assert verb("prov", "diff", "dr1", "dr2")[:2] == (0, "the same\n")
    assert verb("prov", "tag", "list")[1].split() == ["dr1", "8", "provenances", "of", "8", "processes",
                                                     "dr2", "8", "provenances", "of", "8", "processes"]
    assert len(json.loads(verb("prov", "show", "dr1", "--json")[1])) == 8
    assert verb("prov", "tag", "remove", "dr2")[:2] == (0, "dr2: 8 removed\n")
    for args in (("remove", "dr2"), ("list", "dr2"), ("clone", "dr2", "dr3"), ("clone", "dr1", "dr1")):
        assert verb.refused("prov", "tag", *args)[0] == 2
    assert "does not have" in verb.refused("prov", "tag", "remove", "dr1", OTHER["scoring"].id)[1]
    assert conn.execute("SELECT count(*) FROM provenances").fetchone() == (9,), "removing tags deletes no provenance"


def test_a_refused_tag_leaves_nothing(conn, verb, two):
    verb("prov", "tag", "add", "dr1", two[0])
    verb.refused("prov", "tag", "add", "dr1", two[1])
    assert conn.execute("SELECT count(*) FROM provenances WHERE _id = %s", (OTHER["scoring"].id,)).fetchone() == (0,)


def test_of_referencing_a_tag_has_any_number(conn, stored):
    several = [make_record("referencing", {"n": n}, []) for n in range(3)]
    store_provenances(conn, several)
    assert tag_provenances(conn, "t", several) == 3
    assert tag_provenances(conn, "t", several[1:]) == 0
    assert list_tags(conn) == [("t", 3, 1)]
    assert tree_of(tagged(conn, "t")) == {}
    assert remove_from_tag(conn, "t", [several[0].id]) == 1
    with pytest.raises(TagConflict, match="2 of scoring"):
        tag_provenances(conn, "t", [FIRST["scoring"], OTHER["scoring"]])
    with pytest.raises(ConfigError, match="no tag 'u'; there are: t"):
        clone_tag(conn, "u", "v")


def test_a_commit_under_a_tag_that_has_no_room_writes_nothing(conn, verb, two):
    assert verb("db", "commit", two[0], "--set", "run.provenance_tag=now")[0] == 0
    code, err = verb.refused("db", "commit", two[1], "--set", "run.provenance_tag=now")
    assert code == 2
    assert "another provenance of scoring" in err
    assert conn.execute("SELECT count(*) FROM deepscore_sets").fetchone() == (1,)
    commit_bundle(conn, two[1], radius_arcsec=2.0)
    assert conn.execute("SELECT count(*) FROM deepscore_sets").fetchone() == (2,)


@pytest.mark.parametrize("same", [True, False])
def test_the_second_of_two_processes_waits_and_sees_the_first(url, conn, verb, stored, same):
    """One transaction holds the tag when another process comes for it: the same rows, or one clear refusal."""
    with connect(url) as first, first.transaction():
        assert tag_provenances(first, "dr1", FIRST.values()) == 8
        second = verb.start("prov", "tag", "add", "dr1", *(r.id for r in (FIRST if same else OTHER).values()))
        deadline = time.monotonic() + 20
        while not conn.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
                               "current_database()").fetchone()[0]:
            conn.commit()
            assert second.poll() is None, second.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    out, err = second.communicate(timeout=30)
    conn.commit()
    assert {i for _, i in rows(conn, "dr1")} == {r.id for r in FIRST.values()}
    if same:
        assert (second.returncode, out, err) == (0, "dr1: 0 added, 8 were there\n", "")
    else:
        assert second.returncode == 2
        assert err.startswith("error: tag 'dr1' has another provenance of scoring")
        assert err.count("\n") == 1


def test_processes_that_tag_at_once(conn, verb, two):
    """Three processes with two different trees: one tree is there in the end, whoever had it was told so."""
    started = [verb.start("prov", "tag", "add", "dr1", two[k]) for k in (0, 1, 0)]
    said = [p.communicate(timeout=60) for p in started]
    there = {i for _, i in rows(conn, "dr1")}
    won = FIRST if FIRST["scoring"].id in there else OTHER
    assert there == {r.id for r in won.values()}
    for k, p, (_, err) in zip((0, 1, 0), started, said, strict=True):
        if (FIRST, OTHER)[k] is won:
            assert (p.returncode, err) == (0, "")
        else:
            assert p.returncode == 2
            assert err.startswith("error: tag 'dr1' has another provenance of scoring")
            assert err.count("\n") == 1
