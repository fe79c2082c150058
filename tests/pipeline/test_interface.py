"""The Python interface that users of SeeChange know."""

from __future__ import annotations

import pytest

import seechange_mpi.pipeline as room
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.pipeline import Detector, Pipeline, Subtractor

NAMES = ("Preprocessor", "Detector", "Backgrounder", "AstroCalibrator", "PhotCalibrator", "Subtractor", "Cutter",
         "Measurer", "Scorer")


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_built_alone_and_never_read_the_file(name, monkeypatch, tmp_path):
    monkeypatch.setenv("SEECHANGE_CONFIG", str(tmp_path / "not_there.yaml"))
    step = getattr(room, name)()
    assert step.pars.critical()
    with pytest.raises(ConfigError, match="no such parameter"):
        getattr(room, name)(no_such_thing=1)


def test_keywords_override_the_file(monkeypatch, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extraction: {sources: {threshold: 6}, wcs: {method: header}}\ndetection: {threshold: 8}\n")
    monkeypatch.setenv("SEECHANGE_CONFIG", str(file))
    pipeline = Pipeline(extraction={"sources": {"threshold": 5}}, measuring={"bad_thresholds": {"nbadpix": 9}})
    assert pipeline.extractor.pars.threshold == 5
    assert pipeline.astrocalibrator.pars.method == "header"
    assert pipeline.detector.pars.threshold == 8
    assert pipeline.measurer.pars.bad_thresholds.nbadpix == 9


def test_parameters_may_change_until_the_step_runs_and_provenance_follows():
    pipeline = Pipeline.from_settings({})
    before = pipeline.critical_parameters("detection")
    pipeline.detector.pars.threshold = 7
    pipeline.detector.pars["border"] = 12
    after = pipeline.critical_parameters("detection")
    assert (after["threshold"], after["border"]) == (7.0, 12)
    assert before != after
    assert set(pipeline.critical_parameters("extraction")) == {"sources", "bg", "wcs", "zp", "badness"}


def test_settings_rebuild_an_equal_pipeline():
    pipeline = Pipeline.from_settings({"subtraction": {"tile_size": 300}, "extraction": {"bg": {"box_size": 64}}})
    assert Pipeline.from_settings(pipeline.settings()).settings() == pipeline.settings()


def test_unknown_steps_and_parts_are_named():
    with pytest.raises(ConfigError, match="no such step: subtract"):
        Pipeline.from_settings({"subtract": {}})
    with pytest.raises(ConfigError, match=r"extraction.*psf"):
        Pipeline.from_settings({"extraction": {"psf": {}}})


def test_a_detector_is_for_one_kind_of_image():
    with pytest.raises(ConfigError, match="subtraction=True"):
        Detector().detect(None, 3.0, "")
    with pytest.raises(ConfigError, match="Detector\\(\\)"):
        Detector(subtraction=True).extract(None, None)


def test_show_pars_tells_unit_and_meaning(capsys):
    Subtractor(tile_size=256).pars.show_pars()
    assert "tile_size = 256 pix" in capsys.readouterr().out
