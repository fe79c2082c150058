"""The DataStore where an exposure was processed in several ways: which product is found, and by which names."""

from uuid import UUID, uuid4

import h5py
import pytest
from made_bundles import REFERENCE_ID, Maker, tree

from seechange_mpi.data_store import DataStore
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.provenance import store_provenances
from seechange_mpi.db.tags import tag_provenances
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.provenance import make_record

pytestmark = pytest.mark.db
A, B, C = (150.0, 2.0), (150.01, 2.01), (150.1, 2.0)
PLAIN, EXTRACTED, SCORED = tree(), tree(extraction=1), tree(scoring=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bundles of e1, sections N1 and S1: with another extraction, as it was, and, the newest, scored otherwise."""
    bundles, paths = Maker(tmp_path_factory.mktemp("bundles")), {}
    for name, zp, score, more in (("extracted", 26.0, 0.8, {"extraction": 1}), ("plain", 25.0, 0.9, {}),
                                  ("scored", 25.0, 0.1, {"scoring": 1})):
        at = [A, B] if name == "extracted" else [A]
        paths[name] = bundles({"N1": {"ra": 150.0, "dec": 2.0, "at": at, "zp": zp, "score": score},
                               "S1": {"ra": 150.1, "dec": 2.0, "at": [C], "zp": zp, "score": score}}, **more)
        with h5py.File(paths[name], "r+") as f:
            f.attrs["created"] = f"2026-01-0{len(paths)}T00:00:00+00:00"
    return paths


@pytest.fixture
def made(conn, files):
    for path in files.values():
        commit_bundle(conn, path, radius_arcsec=2.0)
    conn.commit()
    return files


@pytest.fixture
def store(conn, made):
    return DataStore("e1", "N1", conn=conn)


def test_the_newest_without_a_word_and_the_one_that_is_named(store, made):
    assert [h.path for h in store.holdings] == [made[name] for name in ("scored", "plain", "extracted")]
    assert store.get_zp().zp == 25.0
    assert store.get_scores().table["score"].tolist() == pytest.approx([0.1])
    extraction = EXTRACTED["extraction"]
    for given in (extraction, extraction.id, extraction.id[:6], EXTRACTED, {"extraction": extraction.id}):
        assert store.get_zp(given).zp == 26.0
    assert len(store.get_measurements(EXTRACTED["measuring"]).table) == 2
    assert len(store.get_measurements(PLAIN["measuring"]).table) == 1
    assert store.get_scores(PLAIN["scoring"]).table["score"].tolist() == pytest.approx([0.9])
    assert store.get_scores(EXTRACTED["scoring"]).table["score"].tolist() == pytest.approx([0.8] * 2)
    assert store.get_zp("NOSUCHPROVENANCE0000") is None
    assert store.get_zp(extraction.id[:5]) is None, "five letters are too few"


def test_products_of_one_provenance_are_read_once(store):
    assert store.get_image() is store.get_image(PLAIN["preprocessing"])
    first = store.get_image()
    store.forget()
    assert store.get_image() is not first


def test_a_tree_chooses_everything(store, conn, made):
    store.load_prov_tree(bundle=made["extracted"])
    assert store.get_zp().zp == 26.0
    assert len(store.get_measurements().table) == 2
    assert store.get_zp(PLAIN["extraction"]).zp == 25.0, "what is given comes before the tree"
    store_provenances(conn, SCORED.values(), "dr1")
    conn.commit()
    tagged = store.load_prov_tree(tag="dr1")
    assert {p: r.id for p, r in tagged.items()} == {p: r.id for p, r in SCORED.items()}
    assert store.get_zp().zp == 25.0
    assert store.get_scores().table["score"].tolist() == pytest.approx([0.1])
    store.prov_tree = {"scoring": PLAIN["scoring"].id}
    assert store.get_scores().table["score"].tolist() == pytest.approx([0.9])
    store.prov_tree = {"scoring": "ANOTHERPROVENANCEID0"}
    assert store.get_scores() is None
    assert store.get_zp().zp == 25.0


def test_a_tree_that_is_not_there(store):
    with pytest.raises(ConfigError, match="no tag 'dr9'"):
        store.load_prov_tree(tag="dr9")
    with pytest.raises(ConfigError, match="takes one of"):
        store.load_prov_tree()
    with pytest.raises(ConfigError, match="takes one of"):
        store.load_prov_tree(tag="dr9", bundle="x.h5")
    with pytest.raises(ConfigError, match="no run"):
        store.load_prov_tree(run="never")
    with pytest.raises(BadInput, match="no such file"):
        store.load_prov_tree(bundle="none.h5")


def test_provenances_of_what_is_found(store, conn):
    assert store.get_provenance("scoring").id == SCORED["scoring"].id
    assert store.get_provenance("extraction").id == PLAIN["extraction"].id
    assert store.get_provenance("forcedphot") is None
    store.prov_tree = {p: r.id for p, r in EXTRACTED.items()}
    assert {p: store.get_provenance(p).id for p in EXTRACTED} == {p: r.id for p, r in EXTRACTED.items()}
    other = store.get_provenance("measuring", {"changed": 5})
    assert other == make_record("measuring", {"changed": 5}, [EXTRACTED["cutting"].id])
    assert store.get_provenance("measuring", {"changed": 0}).id == EXTRACTED["measuring"].id
    with pytest.raises(ConfigError, match="no process 'nonsense'"):
        store.get_provenance("nonsense", {})


@pytest.mark.parametrize("kind", [str, UUID])
def test_an_image_by_its_id(conn, store, kind):
    """The id of an image names exposure, section and the provenance of its own process."""
    images = dict(conn.execute("SELECT provenance_id || section_id, _id FROM images WHERE is_sub").fetchall())
    new = conn.execute("SELECT _id FROM images WHERE NOT is_sub AND section_id = 'S1'").fetchall()
    conn.commit()
    ds = DataStore(image_id=kind(str(images[EXTRACTED["subtraction"].id + "N1"])), conn=conn)
    assert (ds.exposure.identifier, ds.section_id) == ("e1", "N1")
    assert ds.prov_tree == {"subtraction": EXTRACTED["subtraction"].id}
    assert ds.get_subtraction().zp == 26.0
    ds = DataStore(image_id=kind(str(images[PLAIN["subtraction"].id + "S1"])), conn=conn)
    assert ds.section_id == "S1"
    assert ds.get_subtraction().zp == 25.0
    assert len(new) == 1
    ds = DataStore(image_id=kind(str(new[0][0])), conn=conn)
    assert (ds.section_id, ds.prov_tree) == ("S1", {"preprocessing": PLAIN["preprocessing"].id})
    assert ds.get_image() is not None


def test_exposures_by_name_id_and_file(conn, store):
    id_ = conn.execute("SELECT _id FROM exposures").fetchone()[0]
    conn.commit()
    for name in ("e1", id_, str(id_), "/elsewhere/e1.fits", "e1.fits.fz"):
        assert DataStore(name, "S1", conn=conn).exposure.identifier == "e1"


def test_sections_by_name_and_number(conn, bundles, store):
    """A number counts from 1 and is the one in the section's name; it must be of one section only."""
    with pytest.raises(BadInput, match="expected one section with this number, found N1, S1"):
        DataStore("e1", 1, conn=conn)
    for wrong in ("N2", 2, 0, -1, "n1", ""):
        with pytest.raises(BadInput, match="expected one of N1, S1"):
            DataStore("e1", wrong, conn=conn)
    with pytest.raises(BadInput, match="no section_id given"):
        DataStore("e1", conn=conn)
    commit_bundle(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0}, "S12": {"ra": 150.1, "dec": 2.0}}, name="e2"),
                  radius_arcsec=2.0)
    conn.commit()
    for name, found in ((1, "S1"), ("1", "S1"), (12, "S12"), ("S12", "S12")):
        assert DataStore("e2", name, conn=conn).section_id == found
    with pytest.raises(BadInput, match="expected one of S1, S12"):
        DataStore("e2", 2, conn=conn)


def test_what_is_not_there_is_one_clear_refusal(conn, store):
    for image in (str(uuid4()), uuid4(), "nonsense"):
        with pytest.raises(BadInput, match="no image with this id"):
            DataStore(image_id=image, conn=conn)
    with pytest.raises(BadInput, match="no exposure with this id or identifier"):
        DataStore("e9", "S1", conn=conn)
    for none in ({}, {"exposure_id": "e1", "image_id": str(uuid4())}):
        with pytest.raises(ConfigError, match="needs an exposure_id"):
            DataStore(**none, conn=conn)
    with pytest.raises(BadInput, match=REFERENCE_ID):
        store.get_ref_image()


def test_a_bundle_that_is_gone_leaves_the_others(conn, bundles):
    both = [bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": [A]}}, scoring=k) for k in (0, 1)]
    for path in both:
        commit_bundle(conn, path, radius_arcsec=2.0)
    conn.commit()
    both[1].unlink()
    ds = DataStore("e1", "S1", conn=conn)
    assert ds.get_scores(SCORED["scoring"]) is None
    assert ds.get_scores(PLAIN["scoring"]) is not None
    both[0].unlink()
    with pytest.raises(BadInput, match="no such file"):
        DataStore("e1", "S1", conn=conn)


def test_one_bundle_alone_has_only_its_own(made):
    ds = DataStore.from_bundle(made["extracted"], "N1")
    assert ds.get_zp().zp == 26.0
    assert ds.get_zp(PLAIN["extraction"]) is None
    assert ds.get_provenance("extraction").id == EXTRACTED["extraction"].id
    with pytest.raises(BadInput, match="N1, S1"):
        DataStore.from_bundle(made["extracted"], 1)


def test_a_tag_with_several_references_still_gives_a_tree(store, conn):
    tag_provenances(conn, "t", PLAIN.values())
    several = [make_record("referencing", {"n": n}, []) for n in range(2)]
    store_provenances(conn, several, "t")
    conn.commit()
    assert "referencing" not in store.load_prov_tree(tag="t")
    assert store.get_zp().zp == 25.0
