"""Deletion: what is shown is what goes, nothing else does, and files follow the rows."""

import pytest

from seechange_mpi.db.cascade import delete_rows, plan_deletion
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.references import add_reference
from seechange_mpi.db.schema import metadata
from seechange_mpi.io.bundle import read_bundle, read_section, validate_bundle
from seechange_mpi.model.errors import ConfigError, SeeChangeError

pytestmark = pytest.mark.db
A, B, C = (150.0, 2.0), (150.01, 2.01), (150.1, 2.0)
KEPT = ("code_versions", "provenances", "provenance_upstreams", "provenance_tags", "commit_fence", "refsets")


@pytest.fixture
def survey(bundles, conn, tmp_path):
    """A reference e0 and two exposures of sections S1 and S2 compared with it: A and C are seen twice, B once."""
    bundles.folder = tmp_path / "root" / "bundles"
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0}, "S2": {"ra": 150.1, "dec": 2.0}}, name="e0"))
    refs = dict(conn.execute("SELECT section_id, _id::text FROM images").fetchall())
    add_reference(conn, "e0", refset="default")
    for k, first in ((1, [A]), (2, [A, B])):
        commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": first, "reference": refs["S1"]},
                              "S2": {"ra": 150.1, "dec": 2.0, "at": [C], "reference": refs["S2"]}},
                             name=f"e{k}", mjd=60000.0 + k))
    conn.commit()
    return refs


@pytest.fixture
def args(tmp_path, url):
    return ["--set", f"paths.root={tmp_path / 'root'}", "--set", f"database.url={url}"]


def commit(conn, path):
    return commit_bundle(conn, path, radius_arcsec=2.0)


def counts(conn):
    conn.rollback()
    return {t: conn.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in sorted(metadata.tables)}


def delete(conn, *names):
    """Delete; assert that exactly what was shown went."""
    before = counts(conn)
    plan = plan_deletion(conn, names)
    assert counts(conn) == before
    delete_rows(conn, names, plan, 2.0)
    after = counts(conn)
    assert {t: before[t] - after[t] for t in before if before[t] != after[t]} == plan.rows
    return plan


def test_an_exposure_goes_with_everything_and_its_lone_object(conn, survey):
    before = counts(conn)
    assert (before["objects"], before["measurements"]) == (3, 5)
    plan = delete(conn, "e2")
    assert plan.downstream == []
    assert plan.rows["measurements"] == 3
    assert plan.rows["objects"] == 1
    assert plan.rows["exposures"] == 1
    assert plan.rows["product_sets"] == 4
    assert plan.rows["reports"] == 2
    delete(conn, "e1")
    assert counts(conn)["objects"] == 0
    delete(conn, "e0")
    assert {t for t, n in counts(conn).items() if n} <= set(KEPT)


def test_a_reference_takes_the_differences_made_with_it_and_leaves_the_images(conn, survey):
    plan = delete(conn, "e0")
    others = [(i.exposure, i.section) for i in plan.downstream]
    assert others == [("e1", "S1"), ("e1", "S2"), ("e2", "S1"), ("e2", "S2")]
    assert plan.rows["refs"] == 2
    left = counts(conn)
    assert (left["exposures"], left["images"], left["zero_points"]) == (2, 4, 4)
    assert (left["measurements"], left["objects"], left["refs"], left["image_subtraction_components"]) == (0, 0, 0, 0)
    assert left["product_sets"] == 4
    assert plan.sections() == {}


def test_a_section_goes_with_its_difference_alone(conn, survey):
    plan = delete(conn, "e2/S1")
    assert plan.rows["images"] == 2
    assert (plan.rows["measurements"], plan.rows["objects"], plan.rows["product_sets"], plan.rows["reports"]) == (
        2, 1, 2, 1)
    assert plan.sections() == {"e2": {"S1"}}
    assert counts(conn)["exposures"] == 3


def test_a_difference_goes_without_its_image_and_can_be_committed_again(conn, survey, bundles):
    before = counts(conn)
    sub = conn.execute("SELECT i._id::text FROM images i JOIN exposures e ON i.exposure_id = e._id WHERE is_sub AND "
                       "origin_identifier = 'e2' AND section_id = 'S1'").fetchone()[0]
    plan = delete(conn, sub)
    assert plan.rows["images"] == 1
    assert "reports" not in plan.rows
    assert plan.rows["product_sets"] == 1
    assert plan.sections() == {}
    commit(conn, next((bundles.folder / "e2").glob("*.h5")))
    assert counts(conn) == before


def test_what_changed_since_it_was_shown_or_is_in_work_is_not_deleted(conn, survey, bundles):
    plan = plan_deletion(conn, ["e0"])
    refs = survey
    commit(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A], "reference": refs["S1"]}}, name="e3"))
    before = counts(conn)
    with pytest.raises(SeeChangeError, match="look again"):
        delete_rows(conn, ["e0"], plan, 2.0)
    conn.execute("INSERT INTO knownexposures (_id, identifier, instrument, filepath, state, lease_expires) VALUES "
                 "(gen_random_uuid(), 'e3', 'simulated', 'x', 'claimed', now() + interval '1 hour')")
    conn.commit()
    with pytest.raises(SeeChangeError, match="a run has claimed e3"):
        delete_rows(conn, ["e0"], plan_deletion(conn, ["e0"]), 2.0)
    assert counts(conn) == before | {"knownexposures": 1}


@pytest.mark.parametrize("name", ["e9", "e2/S9", "11111111-2222-3333-4444-555555555555"])
def test_what_is_not_there_is_said(conn, survey, name):
    with pytest.raises(ConfigError, match="no such exposure"):
        plan_deletion(conn, [name])


def test_the_verb_shows_and_deletes_nothing_without_yes(conn, survey, bundles, cli, args, capsys):
    before, files = counts(conn), sorted(bundles.folder.rglob("*"))
    assert cli("products", "delete", "e2", *args) == 0
    out = capsys.readouterr().out
    assert "exposure e2" in out
    assert ["measurements", "3"] in [line.split() for line in out.splitlines()]
    assert "files: 4," in out
    assert "nothing was deleted; to do it: --yes" in out
    assert counts(conn) == before
    assert sorted(bundles.folder.rglob("*")) == files
    assert cli("products", "delete", "e0", *args) == 0
    assert "4 differences of other exposures that were made with these as reference: e1, e2" in capsys.readouterr().out
    assert cli("products", "delete", "nothing", *args) == 2


def test_files_follow_the_rows(conn, survey, bundles, cli, args, capsys):
    assert cli("products", "delete", "e2", "--yes", "--keep-files", *args) == 0
    assert (bundles.folder / "e2").exists()
    commit(conn, next((bundles.folder / "e2").glob("*.h5")))
    conn.commit()
    assert cli("products", "delete", "e2", "--yes", *args) == 0
    assert not (bundles.folder / "e2").exists()
    assert (bundles.folder / "e1").exists()
    bundle = next((bundles.folder / "e1").glob("*.h5"))
    kept = read_section(bundle, "S2", pixels=True)
    assert cli("products", "delete", "e1/S1", "--yes", *args) == 0
    assert read_bundle(bundle).section_ids == ("S2",)
    assert validate_bundle(bundle) == []
    assert read_section(bundle, "S2", pixels=True).content_hash == kept.content_hash
    assert len(list((bundle.parent / "shards").iterdir())) == 1
    assert cli("db", "commit", "--pending", *args) == 0
    assert "nothing is pending" in capsys.readouterr().out
    assert cli("products", "delete", "e1/S2", "--yes", *args) == 0
    assert list((bundles.folder / "e1").rglob("*.h5")) == []


def test_archived_copies_stay_unless_they_are_named(conn, survey, bundles, cli, args, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    args = [*args, "--set", "archive.kind=directory", "--set", f"archive.path={tmp_path / 'store'}"]
    assert cli("archive", "push", *args) == 0
    assert cli("products", "delete", "e2", "--yes", *args) == 0
    assert "archived copies: 4" in capsys.readouterr().out
    assert cli("archive", "pull", "e2", *args) == 0
    assert cli("db", "commit", "--pending", *args) == 0
    assert cli("products", "delete", "e2", "--yes", "--archived", *args) == 0
    assert "4 archived copies deleted" in capsys.readouterr().out
    assert not [p for p in (tmp_path / "store").rglob("*e2*") if p.is_file()]
    assert len([p for p in (tmp_path / "store").rglob("*") if p.is_file()]) == 8
