"""DECam, LS4 and PTF as shipped: geometry against published numbers, and raw exposures from file to zero point."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from seechange_mpi.instruments import camera as module
from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.io.raw import read_exposure_info, read_section, tan_header
from seechange_mpi.pipeline.top_level import Pipeline
from seechange_mpi.pipeline.wcs_tools import footprint_cone
from seechange_mpi.report.focal_plane import draw_camera, section_to_sky
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.survey import simulate_survey

PUBLISHED_MM = {"S1": (-16.908, -191.670), "S4": (-16.908, 0.0), "S7": (-16.908, 191.670), "S8": (-50.724, -159.725),
                "S14": (-84.540, -159.725), "S24": (-118.356, 127.780), "S29": (-185.988, -63.890),
                "N1": (16.908, -191.670), "N13": (50.724, 159.725), "N20": (118.356, -127.780),
                "N28": (152.172, 95.835), "N31": (185.988, 63.890)}
"""CCD centres of DECam's focal plane (DES decaminfo), x to the south, y to the east on the sky."""


def test_decam_ccds_lie_where_they_are():
    camera = load_camera("DECam")
    scale = 0.262273 / 0.015
    for name, (x, y) in PUBLISHED_MM.items():
        np.testing.assert_allclose(camera.section(name).offset_arcsec, (y * scale, -x * scale), atol=1.0)
    # 2 x 2.2 degrees, no two CCDs in one place
    offsets = np.array([s.offset_arcsec for s in camera.sections])
    assert len({tuple(o) for o in offsets}) == 62
    assert np.abs(offsets).max() / 3600 < 0.95
    for k, (east, north) in enumerate(offsets):
        d = np.abs(np.delete(offsets, k, 0) - (east, north))
        # 4096 pixels east to west, 2048 north to south
        assert ((d[:, 0] > 4096 * 0.262) | (d[:, 1] > 2048 * 0.262)).all()


def test_decam_ccds_are_out_of_use_when_they_were():
    camera = load_camera("DECam")

    def lacking(mjd):
        return sorted({s.id for s in camera.sections} - set(camera.section_ids_at(mjd)))

    assert lacking(56232.0) == ["S7"]  # 2012-11-01
    assert lacking(56300.0) == ["N30", "S7"]
    assert lacking(56604.5) == ["N30", "S30", "S7"]  # 2013-11-08
    assert lacking(57750.9) == ["N30", "S30", "S7"]
    assert lacking(57751.0) == ["N30", "S7"]  # 2016-12-29
    assert lacking(60000.0) == ["N30", "S7"]


def test_colour_terms_have_seechanges_signs():
    """SeeChange: mag = G - sum c_i (BP - RP)**i with these c_i."""
    theirs = {"g": [0.07926, -0.18958, -0.50589, 0.11476], "r": [-0.28527, 0.65444, -0.25416, -0.00204],
              "i": [-0.24911, 0.51710, 0.02919, -0.02098], "z": [-0.38939, 0.70406, 0.04190, -0.01618]}
    for name in ("DECam", "LS4"):
        for band, rule in load_camera(name).photometry.items():
            np.testing.assert_allclose(rule.terms, -np.array(theirs[band]))
    # a red star is fainter in g than in G and brighter in z
    terms = {b: sum(c * 2.0**i for i, c in enumerate(r.terms)) for b, r in load_camera("DECam").photometry.items()}
    assert terms["g"] > 1.0
    assert terms["z"] < -1.0
    assert terms["r"] > terms["i"] > terms["z"]


def test_ptf_is_the_published_mosaic():
    camera = load_camera("PTF")
    assert (len(camera.sections), len(camera.section_ids)) == (12, 11)
    assert "03" not in camera.section_ids
    assert {s.hdu for s in camera.sections} == set(range(1, 13))
    offsets = np.array([s.offset_arcsec for s in camera.sections]) / 3600
    width = np.ptp(offsets, axis=0) + np.array([2048, 4096]) * 1.01 / 3600
    np.testing.assert_allclose(width, (3.50, 2.31), atol=0.01)


@pytest.mark.parametrize(("rotation", "east_left"), [(0.0, True), (90.0, False), (180.0, True), (30.0, False)])
def test_drawing_agrees_with_the_wcs(rotation, east_left):
    section = load_camera("simulated").section("S1").model_copy(update={
        "rotation_deg": rotation, "east_left": east_left, "offset_arcsec": (0.0, 0.0)})
    wcs = WCS(tan_header(10.0, 0.0, section, 1.0, (101, 101)))
    ra, dec = wcs.all_pix2world(60.0, 70.0, 0)
    sky = section_to_sky(np.array([[10.0, 20.0]]), rotation, east_left)[0]
    np.testing.assert_allclose(((ra - 10) * 3600, dec * 3600), sky, atol=1e-3)


def test_focal_planes_can_be_drawn(tmp_path):
    for name in ("DECam", "PTF", "LS4", "generic-fits"):
        draw_camera(load_camera(name), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


SMALL = {
    "DECam": ({"DATASECA": "[313:568,51:562]", "BIASSECA": "[569:618,51:562]", "DATASECB": "[57:312,51:562]",
               "BIASSECB": "[7:56,51:562]"}, None, "N31", "r"),
    "LS4": ({}, [{"name": "L", "data_section": "[33:288,1:512]", "bias_section": "[1:32,1:512]", "x0": 0},
                 {"name": "R", "data_section": "[289:544,1:512]", "bias_section": "[545:576,1:512]", "x0": 256}],
            "NW_05", "z"),
    "PTF": ({"DATASEC": "[1:512,1:512]", "BIASSEC": "[513:544,1:512]"}, None, "08", "R"),
}
"""What makes a CCD of 512 x 512 pixels out of the shipped file: example header, amplifiers; section and filter."""


@pytest.mark.parametrize("name", SMALL)
def test_from_raw_file_to_zero_point(tmp_path, name):
    """The shipped file but for the size of its CCDs and their distance from the axis."""
    header, amplifiers, section, band = SMALL[name]
    values = yaml.safe_load(Path(module.__file__).with_name(f"{name}.yaml").read_text())
    values["section_defaults"]["size"] = [512, 512]
    if amplifiers:
        values["section_defaults"]["amplifiers"] = amplifiers
    if header:
        values["example_header"].update(header)
    values["sections"] = [{**s, "offset_arcsec": [120.0, -60.0]} for s in values["sections"] if s["id"] == section]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    camera = load_camera(path)
    side = 512 * camera.pixel_scale_arcsec / 3600
    survey = simulate_survey(tmp_path, SimulationParameters(
        camera=str(path), epochs=1, filter=band, seeing_arcsec=[3.8 * camera.pixel_scale_arcsec], seed=3,
        stars_per_sq_deg=170 / side**2, galaxies_per_sq_deg=5 / side**2, faint_mag=21.0, catalog_mag=20.0,
        distortion_arcsec=0.1, transients_per_section=0, variables_per_section=0, movers_per_section=0))
    exposure = read_exposure_info(survey.exposures[0], camera)
    raw = read_section(exposure, camera, section)
    assert raw.shape == (512, 512)
    assert raw.filter == band
    pipeline = Pipeline.from_settings({})
    paths = camera.calibration_paths(section, band, str(tmp_path / "calib"))
    image = pipeline.preprocessor.run(raw, exposure, paths)
    background = pipeline.backgrounder.run(image)
    sources, psf = pipeline.extractor.extract(image, background)
    catalog = read_catalog({"path": str(survey.catalog)}, *footprint_cone(image.header_wcs, image.shape, 120.0))
    wcs, sources = pipeline.astrocalibrator.run(image, sources, catalog)
    zp = pipeline.photcalibrator.run(image, background, psf, sources, wcs, catalog, camera, None)
    from astropy.table import Table

    truth = Table.read(survey.truth[0], format="ascii.ecsv")
    assert zp.zp == pytest.approx(truth.meta[f"zp_{section}"], abs=0.015)
    assert wcs.rms_mas < 200 * camera.pixel_scale_arcsec
    assert zp.n_stars >= 20
    # the sky as it was simulated, orientation and parity included
    t, stars = sources.table, truth[truth["kind"] == "star"]
    here = np.hypot((t["ra"][:, None] - stars["ra"]) * np.cos(np.deg2rad(2.2)), t["dec"][:, None] - stars["dec"]) * 3600
    good = t["is_star"] & (t["flags"] == 0) & (t["flux_psf"] > 30 * t["flux_psf_err"])
    assert good.sum() >= 20
    assert (here.min(axis=1) < 0.3 * camera.pixel_scale_arcsec)[good].mean() > 0.95


def test_header_wcs_of_the_trimmed_section(tmp_path):
    """DECam's CRPIX counts the CCD's pixels, other cameras' those of the HDU."""
    camera = load_camera("DECam")
    header = fits.Header(camera.example_header)
    for key, value in (("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRVAL1", 150.0), ("CRVAL2", 2.0),
                       ("CRPIX1", 1024.5), ("CRPIX2", 2048.5), ("CD1_1", 0.0), ("CD1_2", 7.3e-5), ("CD2_1", -7.3e-5),
                       ("CD2_2", 0.0)):
        header[key] = value
    primary = fits.PrimaryHDU()
    primary.header.update({"MJD-OBS": 60000.0, "EXPTIME": 90.0, "FILTER": "r DECam", "TELRA": "10:00:00",
                           "TELDEC": "2:00:00"})
    path = tmp_path / "raw.fits"
    pixels = np.full((4146, 2160), 1000, np.uint16)
    fits.HDUList([primary, fits.ImageHDU(pixels, header, name="S4")]).writeto(path)
    raw = read_section(read_exposure_info(path, camera), camera, "S4")
    centre = WCS(fits.Header.fromstring(raw.header_wcs)).all_pix2world(1023.5, 2047.5, 0)
    np.testing.assert_allclose(centre, (150.0, 2.0), atol=1e-6)
    assert [(a.name, a.x0, a.y0, a.gain) for a in raw.amplifiers] == [("A", 1024, 0, 4.5935), ("B", 0, 0, 4.4014)]
    other = camera.model_copy(update={"sections": tuple(s.model_copy(update={"header_wcs": "hdu"})
                                                        for s in camera.sections)})
    shifted = read_section(read_exposure_info(path, camera), other, "S4")
    moved = WCS(fits.Header.fromstring(shifted.header_wcs)).wcs.crpix
    np.testing.assert_allclose(moved, (1024.5 - 56, 2048.5 - 50))
