"""Camera definitions: the shipped ones are whole, and a wrong one teaches."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from seechange_mpi.instruments.camera import CALIBRATION_KINDS, Camera, list_cameras, load_camera, parse_fits_section
from seechange_mpi.model.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.parametrize("name", [*list_cameras(), *map(str, EXAMPLES.glob("*.yaml"))])
def test_every_shipped_definition_loads(name):
    camera = load_camera(name)
    assert camera.section_ids
    for quantity in ("mjd", "exp_time"):
        assert quantity in camera.header
    for rule in camera.photometry.values():
        assert rule.colour_range[0] < rule.colour_range[1]
    for kind, path in camera.calibration_paths(camera.section_ids[0], "r", "/calib").items():
        assert kind in CALIBRATION_KINDS
        assert path.startswith("/calib/")
        assert "{" not in path


def test_ls4_is_the_published_camera():
    camera = load_camera("LS4")
    assert len(camera.section_ids) == 32
    assert camera.pixel_scale_arcsec == 1.0
    assert {s.size for s in camera.sections} == {(2048, 4096)}
    filters = [s.filter for s in camera.sections]
    assert {f: filters.count(f) for f in set(filters)} == {"i": 16, "g": 8, "z": 8}
    offsets = np.array([s.offset_arcsec for s in camera.sections])
    assert len({tuple(o) for o in offsets}) == 32
    np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=1)
    # neighbours do not overlap
    for k, (x, y) in enumerate(offsets):
        d = np.abs(np.delete(offsets, k, 0) - (x, y))
        assert ((d[:, 0] >= 2047) | (d[:, 1] >= 4095)).all()
    area = 32 * 2048 * 4096 / 3600**2
    assert area == pytest.approx(20.7, abs=0.2)


def test_decam_has_sixty_usable_sections():
    camera = load_camera("DECam")
    assert len(camera.sections) == 62
    assert len(camera.section_ids) == 60
    assert not {"N30", "S7"} & set(camera.section_ids)
    assert camera.photometry["g"].terms[0] == pytest.approx(-0.07926)


def test_fits_sections():
    assert parse_fits_section("[57:1080,51:4146]") == (slice(50, 4146), slice(56, 1080))
    for bad in ("57:1080,51:4146", "[1080:57,1:2]", "[0:5,1:2]", "UNKNOWN"):
        with pytest.raises(ValueError, match="expected"):
            parse_fits_section(bad)


MINIMAL = {"name": "mine", "pixel_scale_arcsec": 0.5, "sections": [{"id": "1"}]}


@pytest.mark.parametrize(("change", "message"), [
    ({"pixel_scale": 1}, "pixel_scale_arcsec"), ({"pixel_scale_arcsec": -1}, "greater than 0"),
    ({"sections": []}, "at least 1"), ({"sections": [{"id": "1"}, {"id": "1"}]}, "unique"),
    ({"header": {"seeing": {"keyword": "X"}}}, "unknown quantity seeing"), ({"gain": 0}, "greater than 0"),
    ({"sections": [{"id": "1", "amplifiers": [{"gian": 2}]}]}, "gian"),
    ({"calibration": {"flat": "{calib}/f.fits"}}, "calib_dir"),
    ({"section_defaults": {"hdu": 1}, "sections": ["S1"]}, "sections"),
])
def test_wrong_definitions_teach(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **change}))
    with pytest.raises(ConfigError, match=message) as err:
        load_camera(path)
    assert str(path) in str(err.value)


def test_unknown_names_list_the_known():
    with pytest.raises(ConfigError, match="LS4"):
        load_camera("LS5")
    with pytest.raises(ConfigError, match="S1, S2"):
        load_camera("simulated").section("S9")


def test_section_defaults_apply():
    camera = Camera(**MINIMAL | {"section_defaults": {"size": [10, 20], "filter": "r"},
                                 "sections": [{"id": "a"}, {"id": "b", "filter": "g"}]})
    assert [s.filter for s in camera.sections] == ["r", "g"]
    assert camera.sections[0].size == (10, 20)


def test_camera_verbs(tmp_path):
    def call(*args):
        return subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", "camera", *args], capture_output=True,
                              text=True, check=False)

    listed = call("list")
    assert listed.returncode == 0
    assert "LS4" in listed.stdout
    shown = tmp_path / "copy.yaml"
    shown.write_text(call("show", "LS4").stdout)
    assert load_camera(shown).section_ids == load_camera("LS4").section_ids
    told = call("info", "DECam", "--plot", str(tmp_path / "plane.png"))
    assert told.returncode == 0, told.stderr
    assert "r = g +0.28527 -0.65444 (bp-rp) +0.25416 (bp-rp)^2" in told.stdout
    assert "defective 2013-11-08..2016-12-29" in told.stdout
    assert (tmp_path / "plane.png").is_file()
    bad = call("validate", "nothing")
    assert bad.returncode == 2
    assert "there are" in bad.stderr


def test_a_camera_travels_small_and_arrives_as_one_object():
    camera = load_camera("DECam")
    data = pickle.dumps(camera)
    assert len(data) < 5000, "it is sent with every section"
    arrived = pickle.loads(data)
    assert arrived == camera
    assert arrived is pickle.loads(data)
    other = camera.model_copy(update={"name": "other"})
    assert pickle.loads(pickle.dumps(other)).name == "other"
