"""Verb badness, as a person types it."""

import importlib
import re
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "db"))
from made_bundles import Maker
from test_cli_db import verb, workplace  # noqa: F401

from seechange_mpi.db.engine import connect
from seechange_mpi.db.server import EmbeddedServer

pytestmark = pytest.mark.db
AT = [(150.0, 2.0), (150.01, 2.0)]


@pytest.fixture(scope="module")
def run(verb, workplace):  # noqa: F811
    """A survey of a reference e0 and an exposure e1 compared with it, and a way to run the verb on it."""
    maker = Maker(Path(tempfile.mkdtemp(dir=workplace)))
    assert verb("db", "commit", str(maker({"S1": {"ra": 150.0, "dec": 2.0}}, name="e0", mjd=59990.0)))[0] == 0
    assert verb("refs", "add", "e0")[0] == 0
    with connect(EmbeddedServer(workplace / "data").url) as conn:
        reference = str(conn.execute("SELECT _id FROM images").fetchone()[0])
    sections = {"S1": {"ra": 150.0, "dec": 2.0, "at": AT, "reference": reference}, "S2": {"ra": 150.1, "dec": 2.0}}
    assert verb("db", "commit", str(maker(sections)))[0] == 0

    def badness(*args):
        return verb("badness", *args)

    badness.url = EmbeddedServer(workplace / "data").url
    return badness


def marked(url):
    with connect(url) as conn:
        return {t: n for t in ("exposures", "images", "refs", "measurements", "deepscores") if (n := conn.execute(
            f"SELECT count(*) FROM {t} WHERE _bitflag | _upstream_bitflag <> 0").fetchone()[0])}


def test_it_shows_and_does_nothing_unless_told(run):
    code, out, _ = run("add", "ghost", "e1/S1")
    assert code == 0
    assert "rows that change" in out
    assert "  measurements                 2\n" in out
    assert out.endswith("nothing was changed; to do it: --yes\n")
    assert marked(run.url) == {}


def test_add_show_remove(run):
    code, out, _ = run("add", "Ghost, bright_sky", "e1/S1", "--yes")
    assert code == 0
    assert "rows changed" in out
    assert marked(run.url) == {"images": 2, "measurements": 2, "deepscores": 2}
    out = run("show", "e1")[1]
    lines = [re.split("  +", line.strip()) for line in out.splitlines()]
    assert [*lines[1][:3], *lines[1][4:]] == ["e1", "S1", "image", "bright sky, ghost", "-"]
    assert all(line[4:] == ["-", "bright sky, ghost"] for line in lines[2:-1])
    assert lines[-2][2] == "scores"
    assert not any("S2" in line for line in lines)
    assert "rows without any badness" in lines[-1][0]
    assert " S2 " in run("show", "e1", "--all")[1]
    out = run("remove", "ghost", "e1/S1", "-p", "sub", "-y")[1]
    assert "ghost comes from upstream and stays: e1/S1 sub" in out
    assert "nothing changes: 1 rows have none of it" in out
    assert run("remove", "ghost,bright sky", "e1/S1", "-y")[0] == 0
    assert marked(run.url) == {}
    assert run("show", "e1")[1].endswith("rows without any badness\n")


def test_whole_exposures_references_and_ids(run):
    run("add", "bright sky", "e1", "-y")
    assert marked(run.url) == {"exposures": 1, "images": 3, "measurements": 2, "deepscores": 2}
    assert "bright sky" in run("show", "e1")[1].splitlines()[1]
    run("remove", "bright sky", "e1", "-y")
    run("add", "ref is superceded", "e0/S1", "-p", "reference", "-y")
    assert marked(run.url) == {"refs": 1, "images": 1, "measurements": 2, "deepscores": 2}
    run("remove", "superseded reference", "e0/S1", "-p", "reference", "-y")
    with connect(run.url) as conn:
        measurement = str(conn.execute("SELECT _id FROM measurements LIMIT 1").fetchone()[0])
    run("add", "satellite", measurement, "-y")
    assert marked(run.url) == {"measurements": 1, "deepscores": 1}
    assert "satellite" in run("show", measurement)[1]
    run("remove", "satellite", measurement, "-y")
    assert marked(run.url) == {}


def test_only_one_provenance(run):
    with connect(run.url) as conn:
        [(one,)] = conn.execute("SELECT DISTINCT provenance_id FROM images WHERE NOT is_sub").fetchall()
    assert run("add", "ghost", "e1/S1", "--provenance", one[:6])[0] == 0
    code, _, err = run("add", "ghost", "e1/S1", "--provenance", "NOSUCH")
    assert code == 2
    assert "e1/S1: the database has no image of it with provenance NOSUCH" in err


@pytest.mark.parametrize(("args", "message"), [
    (("add", "gost", "e1"), "'gost' is no badness; there are: banding"),
    (("add", ",", "e1"), "no badness is named"),
    (("add", "ghost", "e9"), "e9: the database has no such exposure"),
    (("add", "ghost", "e1/S9"), "e1/S9: the database has no image of it"),
    (("add", "ghost", "e1/S1", "-p", "picture"), "'picture' is no product; there are: exposure, image"),
    (("add", "ghost", "e1/S1", "-p", "exposure"), "an exposure is marked as a whole"),
    (("show", "11111111-2222-3333-4444-555555555555"), "no row with this id can be marked"),
])
def test_refusals(run, args, message):
    code, _, err = run(*args)
    assert code == 2
    assert message in err


def test_asked_and_answered(run, monkeypatch):
    module = importlib.import_module("seechange_mpi.cli.badness")
    monkeypatch.setattr(module.sys, "stdin", type("T", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(module.typer, "confirm", lambda *_a, **_k: True)
    out = run("add", "ghost", "e1/S2")[1]
    assert "rows that change" in out
    assert out.endswith("6 rows changed\n")
    monkeypatch.setattr(module.typer, "confirm", lambda *_a, **_k: False)
    assert run("remove", "ghost", "e1/S2")[1].endswith("nothing was changed; to do it: --yes\n")
    run("remove", "ghost", "e1/S2", "-y")
    assert marked(run.url) == {}


def test_a_provenance_is_called_bad(run, verb):  # noqa: F811
    with connect(run.url) as conn:
        ids = dict(conn.execute("SELECT process, _id FROM provenances").fetchall())
    scoring, measuring = ids["scoring"], ids["measuring"]
    code, _, err = verb("prov", "bad", scoring, "--replaced-by", measuring)
    assert (code, "is measuring, it cannot replace" in err) == (2, True)
    assert "cannot replace itself" in verb("prov", "bad", scoring, "--replaced-by", scoring)[2]
    with connect(run.url) as conn:
        conn.execute("INSERT INTO provenances (_id, process, code_version_id) SELECT 'NEWSCORING', process, "
                     "code_version_id FROM provenances WHERE _id = %s", (scoring,))
    out = verb("prov", "bad", scoring[:8], "-m", "an old network", "--replaced-by", "NEWSC")[1]
    assert out == f"{scoring}  scoring: bad: an old network; replaced by NEWSCORING\n"
    assert "    bad: an old network; replaced by NEWSCORING\n" in verb("prov", "show", scoring)[1]
    assert verb("prov", "bad", scoring, "--undo")[1] == f"{scoring}  scoring: good\n"
    with connect(run.url) as conn:
        assert conn.execute("SELECT is_bad, bad_comment, replaced_by FROM provenances WHERE _id = %s",
                            (scoring,)).fetchone() == (False, None, None)
