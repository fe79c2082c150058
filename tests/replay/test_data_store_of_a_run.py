"""The DataStore on a processed survey, and as the object that a pipeline hands from step to step."""

import subprocess
import sys

import numpy as np
import pytest
from surveys import run_cli

from seechange_mpi.config.resolve import Config
from seechange_mpi.data_store import DataStore
from seechange_mpi.io.retrieval import set_retriever
from seechange_mpi.model.errors import BadInput
from seechange_mpi.pipeline import Pipeline
from seechange_mpi.replay.compare import compare_products
from seechange_mpi.replay.inputs import task_of

pytestmark = pytest.mark.db


def test_products_and_those_of_the_reference(processed):
    config, survey = processed
    ds = DataStore(survey.exposures[2].stem, 1, config=config)
    assert ds.section_id == "T1"
    assert ds.get_image().data.shape == ds.get_ref_image().data.shape == (400, 400)
    assert ds.get_reference().exposure_identifier == survey.exposures[0].stem
    assert np.array_equal(ds.get_reference().image.data, ds.get_ref_image().data)
    assert ds.get_ref_zp().zp == DataStore(survey.exposures[0], "T1", config=config).get_zp().zp
    assert len(ds.get_scores().table) == len(ds.get_measurement_set().table) <= len(ds.get_detections().table)
    for name in ("background", "psf", "sources", "wcs"):
        assert getattr(ds, f"get_ref_{name}")() is not None
    first = DataStore(survey.exposures[0], "T1", config=config)
    assert first.get_subtraction() is None
    assert first.get_reference() is None
    assert first.get_ref_image() is None


def test_a_tree_from_a_tag_a_run_and_a_bundle(processed):
    config, survey = processed
    ds = DataStore(survey.exposures[1], "T1", config=config)
    by_tag = ds.load_prov_tree(tag="current")
    run = sorted(p for p in (Config(config).root / "runs").iterdir() if p.is_dir())[-1]
    by_run = ds.load_prov_tree(run=run.name)
    by_bundle = ds.load_prov_tree(bundle=ds.holdings[0].path)
    assert dict(by_tag) == dict(by_run) == dict(by_bundle)
    assert ds.get_provenance("scoring").id == ds.holdings[0].provenance_ids["scoring"]


def test_files_that_are_gone_come_back_from_the_archive(processed, tmp_path):
    config, survey = processed
    name = survey.exposures[2].stem
    archive = ["archive.kind=directory", f"archive.path={tmp_path}"]
    assert run_cli("archive", "push", name, "--config", config, "--set", archive[0], "--set", archive[1]) == 0
    set_retriever(None)
    folder = Config(config).bundles / name
    files = sorted(folder.rglob("*.h5"))
    content = [p.read_bytes() for p in files]
    for p in files:
        p.unlink()
    with pytest.raises(BadInput, match="no such file"):
        DataStore(name, "T1", config=config)
    try:
        ds = DataStore(name, "T1", config=Config(config, archive))
        assert ds.get_image().data.shape == (400, 400)
        assert len(ds.get_cutouts().new) == len(ds.get_detections().table)
    finally:
        set_retriever(None)
    assert [p.read_bytes() for p in files] == content


def test_a_pipeline_goes_on_from_what_the_store_finds(processed):
    """Other parameters from detection on, in memory only; everything before comes from the bundle."""
    config, survey = processed
    ds = DataStore(survey.exposures[2], "T1", config=config)
    stored = ds.get_detections(), ds.get_measurements()
    task = task_of(ds, "detection")
    before = sorted(Config(config).bundles.rglob("*.h5"))
    outcome = Pipeline(detection={"threshold": 50}).run(task, ds)
    assert outcome.status == "done"
    assert [s.status for s in outcome.report.steps][:6] == ["reused"] * 5 + ["done"]
    assert 0 < len(ds.get_detections().table) < len(stored[0].table)
    assert len(ds.get_cutouts().new) == len(ds.get_detections().table)
    assert ds.get_report().success
    assert sorted(Config(config).bundles.rglob("*.h5")) == before, "nothing is written"
    old = ds.holdings[0].provenance_ids["measuring"]
    ds.provenance_ids["measuring"] = "ANOTHERPROVENANCEID0"
    assert len(ds.get_measurements(old).table) == len(stored[1].table), "what is stored is still found"
    again = DataStore(survey.exposures[2], "T1", config=config)
    assert Pipeline().run(task, again).status == "done"
    again.load("scoring")
    fresh = DataStore(survey.exposures[2], "T1", config=config)
    fresh.load("scoring")
    assert compare_products(fresh.products, again.products, ("detections", "cutouts", "measurements", "scores")) == []


def test_no_mpi_is_imported(processed):
    config, survey = processed
    code = ("import sys; from seechange_mpi.data_store import DataStore\n"
            f"DataStore({survey.exposures[2].stem!r}, 'T1', config={str(config)!r}).get_reference()\n"
            "print([m for m in sys.modules if m.startswith(('mpi4py', 'seechange_mpi.mpi'))])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
