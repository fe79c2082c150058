"""Reports, the bundle verb and FITS export, from a small bundle made here."""

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from seechange_mpi.io.bundle import bundle_path, shard_folder, write_bundle
from seechange_mpi.io.export import export_bundle
from seechange_mpi.io.shard import write_shard
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import (
    PSF,
    Background,
    Cutouts,
    Detections,
    Image,
    Measurements,
    Scores,
    SectionProducts,
    SourceList,
    SubImage,
    WorldCoordinates,
    ZeroPoint,
)
from seechange_mpi.model.provenance import make_record
from seechange_mpi.model.tables import DETECTIONS, MEASUREMENTS, SCORES, SOURCES, empty_table
from seechange_mpi.model.task import SectionReport, StepRecord
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky, sip_header
from seechange_mpi.report import triplet_figure, write_report
from seechange_mpi.report.collect import collect
from seechange_mpi.report.figures import focal_plane_png
from seechange_mpi.report.page import number, sexagesimal

NY, NX = 120, 150
EXPOSURE = ExposureInfo("night_1", "simulated",
                        "night_1.fits", 61000.25, 45.0, "r", 150.0, 2.0, 1.2, target="<script>alert(1)</script>")
RECORDS = [make_record("preprocessing", {"steps_required": ["flat"]}, set())]


def header(offset):
    return sip_header(((NX - 1) / 2, (NY - 1) / 2), (150.0 + offset, 2.0), np.array([[-0.6, 0], [0, 0.6]]) / 3600,
                      {}, {}, {}, {})


def products(offset, n=3):
    rng = np.random.default_rng(1)
    data = rng.normal(200, 10, (NY, NX)).astype(np.float32)
    flags = np.zeros((NY, NX), np.uint16)
    image = Image(data, np.full((NY, NX), 0.01, np.float32), flags, 1.7, 6.0, 6e4, "S1", "r", 61000.25, 45.0,
                  header_wcs=header(offset))
    mesh = np.full((1, 1), 200.0, np.float32)
    basis = np.zeros((1, 15, 15), np.float32)
    basis[0, 7, 7] = 1
    p = SectionProducts(image, Background(mesh, mesh / 20, 128, (NY, NX), 200.0, 10.0),
                        PSF(basis, 0, 75.0, 60.0, 75.0, 60.0, 3.0, 40, 1.0),
                        SourceList(empty_table(SOURCES, 5), (3.0, 6.0, 9.0, 15.0)),
                        WorldCoordinates(header(offset), "catalog", 50, 12.0),
                        ZeroPoint(29.4, 0.003, "catalog", 40, 0.01, 0.0, (3.0, 6.0, 9.0, 15.0), (0.1, 0.0, 0.0, 0.0),
                                  22.8))
    empty = np.zeros((NY, NX), np.float32)
    p.sub = SubImage(empty, empty, flags, empty, empty, empty, basis[0], 29.4, empty, flags, "zogy")
    detections, measurements = empty_table(DETECTIONS, n), empty_table(MEASUREMENTS, n)
    detections["x"] = measurements["x"] = np.arange(n) * 20 + 30.0
    detections["y"] = measurements["y"] = 50.0
    measurements["ra"], measurements["dec"] = pixel_to_sky(header(offset), measurements["x"], measurements["y"])
    measurements["index_in_sources"] = np.arange(n)
    measurements["flux_psf"], measurements["flux_psf_err"], measurements["mag"] = 1000.0, 50.0, 21.9
    if n:
        measurements["is_bad"][0], measurements["bad_reasons"][0] = True, b"negfrac"
    stamps = rng.normal(0, 10, (n, 41, 41)).astype(np.float32)
    stamps[:, 18:23, 18:23] += 300
    stamps[:, 0, :] = np.nan
    scores = empty_table(SCORES, n)
    scores["index_in_sources"], scores["score"] = np.arange(n), 0.9
    p.detections, p.measurements = Detections(detections), Measurements(measurements)
    p.cutouts, p.scores = Cutouts(stamps, stamps * 0.1, stamps * 0.9), [Scores("heuristic", scores)]
    return p


@pytest.fixture
def bundle(tmp_path):
    shards = []
    steps = [StepRecord("preprocessing", "done", 0.5), StepRecord("extraction", "done", 1.5)]
    for k, section in enumerate(("S1", "S2")):
        report = SectionReport(success=True, steps=steps, warnings=["a warning <i>"] if k else [])
        shards.append(write_shard(shard_folder(tmp_path, EXPOSURE.identifier), EXPOSURE, section,
                                  products(0.03 * k, 3 if k == 0 else 0), report, {}, {}, (NY, NX)))
    failed = SectionReport(success=False, error_step="astrocal", error_type="AlgorithmError",
                           error_message="too few sources match <the> catalogue")
    return write_bundle(bundle_path(tmp_path, EXPOSURE.identifier, "ABCDEF"), EXPOSURE, RECORDS,
                        {"catalog": {"path": None}}, shards, {"S3": failed})


def test_page_is_one_whole_file_that_tells_everything(bundle, tmp_path):
    out = write_report([bundle], tmp_path / "deep" / "report.html")
    html = out.read_text()
    assert html.rstrip().endswith("</html>")
    for text in ("2 of 3", "29.400", "22.80", "too few sources match &lt;the&gt; catalogue", "a warning &lt;i&gt;",
                 "S/N 20.0", "flagged: negfrac", "preprocessing"):
        assert text in html, text
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert html.count('<div class="row">') == 3
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]


def test_good_measurements_come_first(bundle):
    triplets = collect(bundle).triplets
    assert [t.bad_reasons for t in triplets] == ["", "", "negfrac"]
    assert triplets[0].snr == pytest.approx(20.0)
    assert triplets[0].new.shape == (41, 41)
    assert len(collect(bundle, 1).triplets) == 1


def test_sections_are_placed_on_the_sky(bundle):
    report = collect(bundle)
    s1, s2, s3 = report.sections
    assert (s1.status, s2.status, s3.status) == ("done", "done", "failed")
    assert s1.fwhm_arcsec == pytest.approx(3 * 0.6, rel=1e-4)
    assert np.ptp(s1.corner_dec) * 3600 == pytest.approx(NY * 0.6, rel=1e-3)
    assert len(s3.corner_ra) == 0
    png = focal_plane_png(bundle, report)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", png[16:20])[0] > 1000


def test_a_lost_shard_is_told_not_raised(bundle, tmp_path):
    shard = next(shard_folder(tmp_path, EXPOSURE.identifier).glob("S1_*.h5"))
    shard.unlink()
    html = write_report([bundle], tmp_path / "r.html").read_text()
    assert "cutouts of section S1" in html
    assert "29.400" in html


def test_bundle_without_any_measurement(tmp_path):
    failed = SectionReport(success=False, error_step="preprocessing", error_message="truncated")
    path = write_bundle(tmp_path / "empty.h5", EXPOSURE, RECORDS, {}, [], {"S1": failed})
    html = write_report([path], tmp_path / "r.html").read_text()
    assert "None." in html
    assert "Focal plane" not in html
    with pytest.raises(BadInput, match="measurements with cutouts"):
        triplet_figure(path, tmp_path / "t.png")


def test_same_bundle_same_page(bundle, tmp_path):
    one = write_report([bundle], tmp_path / "a.html").read_bytes()
    assert one == write_report([bundle], tmp_path / "b.html").read_bytes()


def test_triplet_figure(bundle, tmp_path):
    out = triplet_figure(bundle, tmp_path / "t.png", 2)
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_not_a_bundle(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"x\.h5"):
        write_report([tmp_path / "x.h5"], tmp_path / "r.html")


def test_numbers_and_positions():
    assert number(float("nan")) == "–"
    assert number(1.234) == "1.23"
    assert sexagesimal((150.0, -0.5)) == "10:00:00.00 -00:30:00.0"
    assert sexagesimal((359.9999999, 89.9999999)) == "00:00:00.00 +90:00:00.0"


def test_fits_export_is_read_by_astropy(bundle, tmp_path):
    from astropy.io import fits
    from astropy.table import Table
    from astropy.wcs import WCS

    files = export_bundle(bundle, tmp_path / "fits")
    assert [f.name for f in files] == [f"{EXPOSURE.identifier}_{s}_{kind}.fits" for s in ("S1", "S2")
                                       for kind in ("image", "sub", "tables")]
    with fits.open(files[0], checksum=True) as hdus:
        hdus.verify("exception")
        assert [h.name for h in hdus] == ["PRIMARY", "IMAGE", "WEIGHT", "FLAGS"]
        expected = products(0.0)
        np.testing.assert_array_equal(hdus["IMAGE"].data, expected.image.data)
        ra, dec = WCS(hdus["IMAGE"].header).all_pix2world([10.0], [20.0], 0)
        want = pixel_to_sky(header(0.0), [10.0], [20.0])
        assert (ra[0], dec[0]) == pytest.approx((want[0][0], want[1][0]), abs=1e-9)
        assert hdus["IMAGE"].header["MAGZERO"] == 29.4
        assert hdus["FLAGS"].header["FLAG2"] == "SATURATED"
        assert hdus[0].header["EXPOSURE"] == EXPOSURE.identifier
    table = Table.read(files[2], hdu="MEASUREMENTS")
    assert len(table) == 3
    assert str(table["flux_psf"].unit) == "adu"
    assert table["bad_reasons"][0] == "negfrac"
    assert len(export_bundle(bundle, tmp_path / "one", ["S2"])) == 3
    with pytest.raises(BadInput, match="one of S1, S2, S3"):
        export_bundle(bundle, tmp_path / "none", ["S9"])
    assert not list((tmp_path / "fits").glob(".*"))


def call(*args):
    return subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", *map(str, args)], capture_output=True,
                          text=True, check=False)


def test_bundle_verbs(bundle, tmp_path):
    done = call("bundle", "info", bundle)
    assert done.returncode == 0, done.stderr
    assert re.search(r"S3\s+failed", done.stdout)
    figures = json.loads(call("bundle", "info", "--json", bundle).stdout)
    assert figures["sections"]["S1"]["n_good"] == 2
    assert figures["sections"]["S3"]["zp"] is None
    assert call("bundle", "validate", bundle).returncode == 0
    packed = tmp_path / "packed.h5"
    assert call("bundle", "pack", bundle, packed).returncode == 0
    next(shard_folder(tmp_path, EXPOSURE.identifier).glob("S1_*.h5")).unlink()
    broken = call("bundle", "validate", bundle, packed)
    assert broken.returncode == 3
    assert "1 problem" in broken.stdout
    assert "packed.h5: whole" in broken.stdout
    assert call("bundle", "info", tmp_path / "no.h5").returncode == 4


def test_report_verb(bundle, tmp_path):
    done = call("report", bundle, "--triplets", tmp_path / "t.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(bundle.with_suffix(".html")), str(tmp_path / "t.png")]
    assert bundle.with_suffix(".html").is_file()
