"""Bad input on the command line: bundles that are not whole, not ours or too new, and databases likewise.

Each is one clear line on stderr, exit code 2 (a setting is wrong) or 4 (a file is), nothing is written.
"""

import json
import shutil
import uuid

import h5py
import psycopg
import pytest

from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.migrate import _HEAD
from seechange_mpi.model.errors import BadInput

pytestmark = pytest.mark.db


@pytest.fixture
def good(bundles):
    return bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}})


def spoiled(path, change):
    with h5py.File(path, "r+") as f:
        change(f)
    return path


def parameters(f):
    row = f["provenance"][0]
    f["provenance"][0] = (row[0], row[1], row[2], '{"changed": 99}', row[4])


def of_section(**attrs):
    return lambda f: f["sections/S1"].attrs.update(attrs)


def drop(*names):
    def change(f):
        for name in names:
            del f[name]
    return change


NEWER = "version of the format: expected at most 1, which this program knows, found 2, written by version 7.1: install"
ALL_VERBS = [("db", "commit"), ("bundle", "info"), ("prov", "show"), ("report",), ("refs", "add"), ("replay",),
             ("prov", "tag", "add", "t")]
NOT_BUNDLES = {
    "newer": (lambda f: f.attrs.update({"version": 2, "code_version": "7.1"}), NEWER),
    "foreign": (lambda f: f.attrs.update({"format": "somebody's images"}),
                "format: expected seechange-mpi bundle, found somebody's images"),
    "no format": (lambda f: f.attrs.__delitem__("format"), "found no format attribute"),
    "no provenance": (drop("provenance"), "missing or damaged content"),
    "no exposure": (drop("exposure"), "missing or damaged content"),
    "garbled exposure": (lambda f: f["exposure"].attrs.update({"info": "{"}), "missing or damaged content"),
}
UNFIT = {
    "changed parameters": (parameters, "the id of its parameters, found 2U65OWQ4ANCDO4I67UA5: the file was changed"),
    "no provenance ids": (of_section(provenance_ids="{}"), "section S1: expected a provenance of preprocessing, "),
    "ids of others": (of_section(provenance_ids=json.dumps({"preprocessing": "X"})), "that is in the bundle, found X"),
    "no reference": (of_section(inputs="{}"), "section S1: expected the id of its reference image, found none"),
    "garbled reference": (of_section(inputs='{"reference": "?"}'), "the id of its reference image, found ?"),
    "garbled WCS": (lambda f: f["sections/S1/wcs"].attrs.update({"header": "CTYPE1  = 'NOTHING '".ljust(80)}),
                    "section S1: expected what the pipeline writes"),
    "a table for a group": (lambda f: (f["sections"].__delitem__("S1"), f["sections"].create_dataset("S1", data=1)),
                            "section S1: expected a group, found dataset"),
}


@pytest.mark.parametrize("kind", NOT_BUNDLES)
def test_what_is_no_bundle_is_refused_by_every_verb(verb, good, conn, kind):
    change, message = NOT_BUNDLES[kind]
    spoiled(good, change)
    for words in ALL_VERBS:
        code, err = verb.refused(*words, good)
        assert code == 4, words
        assert str(good) in err
        assert message in err, words
    assert "1 problem(s)" in verb("bundle", "validate", good)[1]
    assert conn.execute("SELECT count(*) FROM provenances").fetchone() == (0,)


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_say_how_it_was_made_is_not_committed(verb, good, conn, kind):
    change, message = UNFIT[kind]
    spoiled(good, change)
    code, err = verb.refused("db", "commit", good)
    assert code == 4
    assert str(good) in err
    assert message in err
    assert [conn.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("exposures", "provenances")] == [0, 0]


def test_changed_parameters_are_not_stored_by_a_tag_either(verb, good, conn):
    spoiled(good, parameters)
    assert "the id of its parameters" in verb.refused("prov", "tag", "add", "t", good)[1]
    assert conn.execute("SELECT count(*) FROM provenances").fetchone() == (0,)


def test_other_files(verb, good, tmp_path):
    text = tmp_path / "notes.h5"
    text.write_text("these are notes")
    half = shutil.copy(good, tmp_path / "half.h5")
    half.write_bytes(good.read_bytes()[:3000])
    shard = next((good.parent / "shards").glob("*.h5"))
    for path, message in ((text, "file signature not found"), (half, "truncated file"), (tmp_path, "directory"),
                          (shard, "expected seechange-mpi bundle, found seechange-mpi shard"),
                          (tmp_path / "none.h5", "no such file")):
        code, err = verb.refused("db", "commit", path)
        assert code == 4
        assert str(path) in err
        assert message in err


def test_pending_passes_over_what_it_cannot_read_and_says_so(verb, good, bundles, conn):
    spoiled(bundles({"S1": {"ra": 151.0, "dec": 2.0, "at": [(151.0, 2.0)]}}, name="e2"), NOT_BUNDLES["newer"][0])
    code, out, _ = verb("db", "commit", "--pending", good.parents[1])
    assert code == 4
    assert NEWER in out
    assert "1 committed, 1 passed over" in out
    assert conn.execute("SELECT count(*) FROM exposures").fetchone() == (1,)


def test_damage_anywhere_is_refused_or_does_no_harm(conn, good):
    """Blocks of the file are lost or garbled: never anything but a clear refusal or a commit."""
    import random

    data, rng = good.read_bytes(), random.Random(3)
    refused: list[str] = []
    for k in range(60):
        spoilt, at = bytearray(data), rng.randrange(len(data))
        block = bytes(512) if k % 2 else rng.randbytes(48)
        spoilt[at : at + len(block)] = block
        path = good.with_name("spoilt.h5")
        path.write_bytes(spoilt[: len(data)])
        try:
            commit_bundle(conn, path, radius_arcsec=1.0, replace=True)
        except BadInput as err:
            refused.append(str(err))
    assert len(refused) > 10
    assert all(str(path) in said for said in refused)


@pytest.fixture
def revision(conn):
    """Set the revision that a database says it has."""
    def stamp(value):
        conn.execute("UPDATE alembic_version SET version_num = %s", (value,))
        conn.commit()

    yield stamp
    stamp(_HEAD)


DATABASE_VERBS = [("db", "init"), ("db", "status"), ("object", "list"), ("prov", "tag", "list"), ("queue", "list"),
                  ("refs", "list"), ("products", "delete", "e1"), ("db", "commit", "--pending"), ("archive", "status"),
                  ("run", "x.fits", "--camera", "decam", "--no-report")]


@pytest.mark.parametrize(("value", "message"), [
    ("9999", f"has schema revision 9999, newer than this program knows ({_HEAD}): install the version"),
    ("abcdef123456", "belongs to another program (its alembic revision is abcdef123456): give seechange-mpi"),
])
def test_a_newer_or_foreign_schema_is_refused_by_every_verb(verb, revision, good, tmp_path, value, message):
    revision(value)
    (tmp_path / "archive").mkdir()
    archive = ["--set", "archive.kind=directory", "--set", f"archive.path={tmp_path / 'archive'}"]
    for words in [*DATABASE_VERBS, ("db", "commit", good)]:
        code, err = verb.refused(*words, *archive)
        assert code == 2, words
        assert message in err, words


def test_tables_of_another_program_are_left_alone(empty_url, tmp_path, capsys, good):
    from verbs import Verbs

    with psycopg.connect(empty_url) as other:
        other.execute("CREATE TABLE objects (id int)")
    code, err = Verbs(empty_url, tmp_path, capsys).refused("db", "commit", good)
    assert code == 2
    assert "has tables that another program made (objects)" in err
    assert "database.url" in err
    with psycopg.connect(empty_url) as other:
        assert other.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)


@pytest.mark.parametrize("url", ["mysql://me:secret@host/x", "sqlite:///x.db", "science", "host=a password=secret b"])
def test_what_is_no_address_of_postgresql(tmp_path, capsys, url):
    from verbs import Verbs

    code, err = Verbs(url, tmp_path, capsys).refused("db", "status")
    assert code == 2
    assert "is not the address of a PostgreSQL database" in err
    assert "secret" not in err


def test_a_database_or_user_that_is_not_there(tmp_path, capsys, url):
    from verbs import Verbs

    for wrong, what in ((url.replace("/test_", "/absent_"), "database"), (url.replace("seechange@", "nobody_here@"),
                                                                          "role")):
        code, err = Verbs(wrong, tmp_path, capsys).refused("object", "list")
        assert code == 2
        assert f'{what} "' in err
        assert "does not exist" in err


def test_a_database_that_may_not_be_written_to(tmp_path, capsys, url, conn, good):
    from verbs import Verbs

    user = f"reader_{uuid.uuid4().hex[:8]}"
    conn.execute(f"CREATE ROLE {user} LOGIN")
    conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}")
    conn.commit()
    reader = Verbs(url.replace("seechange@", f"{user}@"), tmp_path, capsys)
    assert reader("object", "list")[0] == 0
    code, err = reader.refused("db", "commit", good)
    assert code == 2
    assert "permission denied" in err
    assert "a user who owns it" in err
    conn.execute(f"DROP OWNED BY {user}")
    conn.execute(f"DROP ROLE {user}")
    conn.commit()
    still = Verbs(f"{url}&options=-c%20default_transaction_read_only%3Don", tmp_path, capsys)
    assert "read-only transaction" in still.refused("db", "commit", good)[1]
