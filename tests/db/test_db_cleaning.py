"""Cleaning: only what the archive has for certain goes, and what opens it afterwards does not notice."""

import os

import pytest

from seechange_mpi.cli.common import use_archive
from seechange_mpi.config.resolve import Config
from seechange_mpi.db.archiving import Archivist
from seechange_mpi.db.cleaning import KINDS, plan_cleaning, remove_files
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.references import add_reference
from seechange_mpi.io.bundle import read_section
from seechange_mpi.io.retrieval import set_retriever

pytestmark = pytest.mark.db
TWO = {"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}, "S2": {"ra": 150.1, "dec": 2.0, "at": [(150.1, 2.0)]}}


@pytest.fixture
def sets(tmp_path, url, bundles):
    (tmp_path / "store").mkdir()
    bundles.folder = tmp_path / "root" / "bundles"
    yield [f"paths.root={tmp_path / 'root'}", f"database.url={url}", "archive.kind=directory",
           f"archive.path={tmp_path / 'store'}"]
    set_retriever(None)


@pytest.fixture
def keeper(sets, url):
    return Archivist(Config(None, sets), lambda: connect(url))


def clean(keeper, kinds=KINDS, **more):
    return plan_cleaning(keeper, None, kinds, **more)


def shards(keeper):
    return sorted(keeper.config.bundles.glob("*/shards/*.h5"))


def test_without_a_verified_copy_nothing_goes(keeper, bundles, conn, tmp_path):
    bundles(TWO)
    plan = clean(keeper)
    assert plan.files == []
    assert [(r.split(" (")[0], n) for r, (n, _) in plan.kept.items()] == [("not archived", 2)]
    keeper.push("e1")
    assert len(clean(keeper).files) == 2
    conn.execute("UPDATE archived_files SET verified_at = NULL")
    conn.commit()
    plan = clean(keeper)
    key = plan.files[0].file.key
    copy = tmp_path / "store" / key
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    removed, problems = remove_files(keeper, plan)
    assert [c.path for c in removed] == [plan.files[1].path]
    assert "its sha256 is" in problems[0]
    assert "kept, its archived copy is not verified" in problems[1]
    assert shards(keeper) == [plan.files[0].path]


def test_a_copy_that_has_vanished_since_keeps_the_file(keeper, bundles, tmp_path):
    bundles(TWO)
    keeper.push("e1")
    plan = clean(keeper)
    (tmp_path / "store" / plan.files[0].file.key).unlink()
    (tmp_path / "store" / plan.files[1].file.key).write_bytes(b"short")
    removed, problems = remove_files(keeper, plan)
    assert removed == []
    assert "the archive has nothing under its name" in problems[0]
    assert "the archive has 5 bytes" in problems[1]
    assert len(shards(keeper)) == 2


def test_files_that_changed_are_new_are_references_or_in_work_stay(keeper, bundles, conn):
    commit_bundle(conn, bundles(TWO), radius_arcsec=1.0)
    commit_bundle(conn, bundles(TWO, name="e2"), radius_arcsec=1.0)
    for name in ("e1", "e2"):
        keeper.push(name)
    add_reference(conn, "e1", refset="default")
    conn.commit()
    assert {c.file.exposure for c in clean(keeper).files} == {"e2"}
    assert {c.file.exposure for c in clean(keeper, references=True).files} == {"e1", "e2"}
    assert clean(keeper, older_days=1).files == []
    os.utime(shards(keeper)[2], (1e9, 1e9))
    assert len(clean(keeper, older_days=1).files) == 1
    conn.execute("INSERT INTO knownexposures (_id, identifier, instrument, filepath, state) VALUES "
                 "(gen_random_uuid(), 'e2', 'simulated', 'x', 'failed')")
    conn.commit()
    assert clean(keeper).files == []
    conn.execute("UPDATE knownexposures SET state = 'done'")
    conn.commit()
    changed = shards(keeper)[3]
    changed.write_bytes(changed.read_bytes() + b"more")
    plan = clean(keeper)
    assert changed not in [c.path for c in plan.files]
    assert len(plan.files) == 1


def test_the_verb_shows_first_and_does_what_it_showed(keeper, sets, bundles, cli, capsys):
    bundle = bundles(TWO)
    args = [x for s in sets for x in ("--set", s)]
    assert cli("archive", "push", *args) == 0
    capsys.readouterr()
    size = sum(p.stat().st_size for p in shards(keeper))
    assert cli("clean", *args) == 0
    out = capsys.readouterr().out
    assert f"2 files, {size / 1e6:.1f} MB can go; to do it: seechange-mpi clean --yes" in out
    assert len(shards(keeper)) == 2
    assert cli("clean", "--kinds", "bundles", *args) == 2
    assert cli("clean", "--yes", "--kinds", "shards", *args) == 0
    assert "removed 2 files" in capsys.readouterr().out
    assert shards(keeper) == []
    use_archive(keeper.config)
    assert read_section(bundle, "S2", pixels=True).products.image.data.shape == (4, 4)


def test_raw_copies_below_the_root_go_and_originals_elsewhere_never(keeper, bundles, conn, tmp_path):
    keeper.settings.raw = True
    copy, original = keeper.config.root / "raw" / "e1.fits", tmp_path / "e2.fits"
    for k, (name, path) in enumerate((("e1", copy), ("e2", original))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"raw pixels")
        commit_bundle(conn, bundles(TWO, name=name, mjd=60000.0 + k), radius_arcsec=1.0)
        conn.execute("UPDATE exposures SET filepath = %s WHERE origin_identifier = %s", (str(path), name))
        conn.commit()
        keeper.push(name)
    plan = clean(keeper, ("raw",))
    assert [c.path for c in plan.files] == [copy]
    assert remove_files(keeper, plan) == (plan.files, [])
    assert not copy.exists()
    assert original.exists()
    assert len(shards(keeper)) == 4
