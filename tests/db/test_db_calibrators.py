"""Calibration frames in the database: the right one at every date, in one query."""

import pytest

from seechange_mpi.db.calibrators import (
    add_calibrators,
    choose_frames,
    find_calibrators,
    get_calibrators,
    list_calibrators,
    mjd_of,
    retire,
    time_of,
)
from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.model.calibration import CalibratorFrame, Rejected
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.provenance import make_record

pytestmark = pytest.mark.db
CAMERA = load_camera("simulated")
FILTERS = dict.fromkeys(CAMERA.section_ids, "r")


def frame(name, kind="bias", section="S1", *, start=None, end=None, chosen="general", light="", band="",
          camera="simulated"):
    record = make_record("calibration", {"name": name}, [])
    return CalibratorFrame(kind, chosen, light, camera, section, band, f"/frames/{name}.fits", f"digest of {name}",
                           start, end, record, {"noise": 1.5, "chi2": float("nan")}, {"e1": "abc"},
                           (Rejected("e2", "too faint"),))


def at(mjd):
    return ExposureInfo("x", "simulated", "x.fits", mjd, 30.0, "r")


def found(conn, mjd, section="S1", **more):
    return find_calibrators(conn, CAMERA, at(mjd), filters=FILTERS, **more)[section]


def test_times_and_mjd():
    assert time_of(60000.25).isoformat() == "2023-02-25T06:00:00+00:00"
    assert mjd_of(time_of(60000.123456)) == pytest.approx(60000.123456, abs=1e-10)
    assert time_of(None) is None
    assert mjd_of(None) is None


def test_the_valid_one_is_picked(conn):
    add_calibrators(conn, [
        frame("always"), frame("spring", start=60000, end=60010), frame("summer", start=60010),
        frame("other camera", start=60012, camera="LS4"), frame("other section", "bias", "S2", start=60001)])
    assert found(conn, 59990) == {"bias": "/frames/always.fits"}
    assert found(conn, 60000.0) == {"bias": "/frames/spring.fits"}, "from the first instant"
    assert found(conn, 60009.99) == {"bias": "/frames/spring.fits"}
    assert found(conn, 60010.0) == {"bias": "/frames/summer.fits"}, "up to, without the last instant"
    assert found(conn, 60011, "S2") == {"bias": "/frames/other section.fits"}
    assert found(conn, 60011, "S3") == {}


def test_nightly_before_general_before_external_then_the_latest(conn):
    add_calibrators(conn, [
        frame("external", start=60005, chosen="externally_supplied"), frame("old general", start=60000),
        frame("new general", start=60002), frame("nightly", start=60001, end=60006, chosen="nightly")])
    assert found(conn, 60005.5)["bias"].endswith("nightly.fits")
    assert found(conn, 60007)["bias"].endswith("new general.fits")
    assert found(conn, 60001.5)["bias"].endswith("nightly.fits")
    assert found(conn, 60007, sets=["externally_supplied", "general"])["bias"].endswith("external.fits")
    assert found(conn, 60005.5, sets=["externally_supplied"])["bias"].endswith("external.fits")


def test_filters_and_types_of_flats(conn):
    add_calibrators(conn, [
        frame("g flat", "flat", band="g", light="sky"), frame("r dome", "flat", band="r", light="dome"),
        frame("r sky", "flat", band="r", light="sky"), frame("any", "badpixels"),
        frame("r external", "flat", band="r", light="externally_supplied")])
    assert found(conn, 60000) == {"flat": "/frames/r sky.fits", "badpixels": "/frames/any.fits"}
    assert found(conn, 60000, flat_types=["dome", "sky"])["flat"].endswith("r dome.fits")
    assert "flat" not in found(conn, 60000, flat_types=["twilight"])
    assert found(conn, 60000, kinds=["badpixels"]) == {"badpixels": "/frames/any.fits"}
    assert found(conn, 60000, kinds=["flat", "flat_dome"]) == {
        "flat": "/frames/r sky.fits", "flat_dome": "/frames/r dome.fits"}


def test_all_sections_in_one_query(conn):
    add_calibrators(conn, [frame(f"{s} {k}", k, s) for s in CAMERA.section_ids for k in ("bias", "dark", "badpixels")])

    class Counting:
        n = 0

        def execute(self, *args):
            self.n += 1
            return conn.execute(*args)

    counting = Counting()
    all_of_them = find_calibrators(counting, CAMERA, at(60000), filters=FILTERS)
    assert counting.n == 1
    assert all(set(f) == {"bias", "dark", "badpixels"} for f in all_of_them.values())
    assert all_of_them["S3"]["dark"] == "/frames/S3 dark.fits"


def test_registered_frames_stand_in_for_files(conn):
    add_calibrators(conn, [frame("made")])

    def choose(source):
        return choose_frames(conn, CAMERA, at(60000), FILTERS, "/calib", source=source, sets=["general"],
                             flat_types=["sky"])["S1"]

    files = CAMERA.calibration_paths("S1", "r", "/calib")
    assert choose("files") == files
    assert choose("both") == files | {"bias": "/frames/made.fits"}
    assert choose("database") == {"bias": "/frames/made.fits"}


def test_registering_again_changes_the_dates_only(conn):
    assert add_calibrators(conn, [frame("a", start=60000)]) == 1
    assert add_calibrators(conn, [frame("a", start=60000)]) == 0
    assert add_calibrators(conn, [frame("a", start=60000, end=60005)]) == 1
    (row,) = list_calibrators(conn)
    assert (mjd_of(row.validity_start), mjd_of(row.validity_end)) == (60000, 60005)
    assert row.info["quality"] == {"noise": 1.5}
    assert row.info["rejected"] == [{"identifier": "e2", "reason": "too faint"}]
    assert row.provenance_id == make_record("calibration", {"name": "a"}, []).id


def test_list_show_retire(conn):
    add_calibrators(conn, [frame("a", start=60000), frame("b", "dark", "S2", start=60003, end=60004),
                           frame("c", "flat", band="r", light="sky")])
    assert [r.kind for r in list_calibrators(conn)] == ["bias", "dark", "flat"]
    assert [r.kind for r in list_calibrators(conn, kind="dark")] == ["dark"]
    assert [r.kind for r in list_calibrators(conn, at_mjd=59999)] == ["flat"]
    assert [r.kind for r in list_calibrators(conn, band="r")] == ["flat"]
    (a,) = get_calibrators(conn, "a.fits")
    assert get_calibrators(conn, a.id[:8]) == [a]
    assert get_calibrators(conn, "/frames/a.fits") == [a]
    for name in ("z.fits", "%", "_.fits"):
        with pytest.raises(ConfigError, match="is registered; see seechange-mpi calib list"):
            get_calibrators(conn, name)
    assert retire(conn, [a.id], 60008) == 1
    assert found(conn, 60007.9) != {}
    assert "bias" not in found(conn, 60008)
    assert retire(conn, [a.id], 60009) == 0, "what has ended stays ended"
    with pytest.raises(ConfigError, match="begin after 2023-02-24"):
        retire(conn, [a.id], 59999)
