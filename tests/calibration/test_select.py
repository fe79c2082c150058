"""Which exposures go in: patterns, nights, kinds."""

from pathlib import Path

import pytest
from astropy.io import fits

from seechange_mpi.calibration.select import (
    date_of,
    expand,
    exposure_type,
    mjd_of_text,
    night_of,
    night_start,
    read_info,
    select,
)
from seechange_mpi.instruments import camera as camera_module
from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.model.errors import BadInput, ConfigError


def written(path, **cards):
    fits.PrimaryHDU(header=fits.Header({"MJD-OBS": 61000.0, **cards})).writeto(path)
    return path


def test_nights():
    first, last = night_of("2026-11-20", 16.0)
    assert (first, last) == (61364 + 16 / 24, 61365 + 16 / 24)
    assert night_start(61365.2, 16.0) == first, "after midnight is still that night"
    assert night_start(61364.7, 16.0) == first
    assert night_start(61364.6, 16.0) == first - 1
    assert date_of(61364.9) == "2026-11-20"
    with pytest.raises(ConfigError, match=r"--night 20\.11\.2026: expected a date such as 2026-11-20"):
        night_of("20.11.2026", 16.0)


def test_dates():
    assert mjd_of_text("2026-11-20") == 61364
    assert mjd_of_text("2026-11-20T12:00") == 61364.5
    assert mjd_of_text("2026-11-20T12:00+03:00") == pytest.approx(61364.375)
    assert mjd_of_text("61364.25") == 61364.25
    assert mjd_of_text(None) is None
    with pytest.raises(ConfigError, match="'soon': expected a date"):
        mjd_of_text("soon")


def test_patterns(lab, tmp_path):
    folder = lab.root / "raw_calib"
    assert len(expand([str(folder)])) == 50 + 1
    assert len(expand([str(folder / "*bias*.fits"), str(folder / "lab_bias_000.fits")])) == 12
    with pytest.raises(BadInput, match="a file, a pattern or a folder of FITS files, found nothing"):
        expand([str(tmp_path / "*.fits")])


@pytest.mark.parametrize(("text", "kind"), [
    ("zero", "bias"), ("BIAS", "bias"), ("dark", "dark"), ("dome flat", "dome"), ("FLAT,LAMP", "dome"),
    ("skyflat", "twilight"), ("SKY FLAT", "twilight"), ("twilight", "twilight"), ("flat", "flat"),
    ("FLATFIELD", "flat"), ("object", "object"), ("EXPOSE", "object"), ("science", "object"), ("standard", ""),
    ("", "")])
def test_headers_say_what_an_exposure_is(tmp_path, text, kind):
    path = written(tmp_path / "e.fits", EXPTIME=1.0, FILTER="r", IMAGETYP=text)
    camera = load_camera("simulated")
    assert exposure_type(read_info(path, camera, filter_needed=True), camera) == kind


def test_a_camera_may_name_its_own_keyword(tmp_path):
    text = Path(camera_module.__file__).with_name("simulated.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("header:\n", "header:\n  obstype: {keyword: WHAT, mapping: {B: bias}}\n"))
    path = written(tmp_path / "e.fits", EXPTIME=0.0, WHAT="B", OBSTYPE="object")
    camera = load_camera(mine)
    assert exposure_type(read_info(path, camera, filter_needed=False), camera) == "bias"


def test_choice_by_kind_night_and_filter(lab):
    def chosen(kind, **more):
        return select(lab.files, lab.camera, kind, **more)

    assert len(chosen("bias").exposures) == 12
    assert chosen("bias").others == len(lab.files) - 12
    assert len(chosen("flat", flat_type="dome").exposures) == 12
    assert len(chosen("flat", flat_type="twilight").exposures) == 6
    assert len(chosen("fringe").exposures) == 12
    assert len(chosen("badpixels").exposures) == 12 + 9 + 12 + 6
    assert chosen("flat", flat_type="dome", filters=["z"]).exposures == ()
    assert len(chosen("bias", nights=[night_of("2025-11-20", 16)]).exposures) == 12
    assert chosen("bias", nights=[night_of("2025-11-21", 16)]).exposures == ()
    times = [e.mjd for e in chosen("dark").exposures]
    assert times == sorted(times)


def test_exposures_that_do_not_say_what_they_are(lab, tmp_path):
    silent = tmp_path / "silent.fits"
    with fits.open(lab.of("bias")[0]) as hdus:
        del hdus[0].header["OBSTYPE"]
        del hdus[0].header["FILTER"]
        hdus.writeto(silent)
    assert len(select([silent], lab.camera, "bias").exposures) == 1, "named by the user, without a filter"
    assert len(select([silent], lab.camera, "bias", nights=[(60000, 62000)]).exposures) == 0
    flat = select([silent], lab.camera, "flat", flat_type="dome")
    assert "header value 'filter'" in flat.rejected[0].reason
    (tmp_path / "text.fits").write_text("hello")
    found = select([tmp_path / "text.fits", silent], lab.camera, "bias")
    assert [r.identifier for r in found.rejected] == ["text"]
    assert "FITS" in found.rejected[0].reason
