"""The simulator's truth is the truth: positions, fluxes, motions and brightenings measured back from its pixels."""

import numpy as np
import pytest
import yaml
from astropy.table import Table
from scipy.spatial import cKDTree

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.io.raw import read_exposure_info, read_section
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.pipeline.backgrounding import Backgrounder, subtract_background
from seechange_mpi.pipeline.extraction import aperture_fluxes
from seechange_mpi.pipeline.preprocessing import Preprocessor
from seechange_mpi.pipeline.wcs_tools import footprint_cone, pixel_to_sky, separation_deg
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.survey import simulate_survey

CAMERA = load_camera("simulated")


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return simulate_survey(tmp_path_factory.mktemp("survey"), SimulationParameters(epochs=2, seed=11))


@pytest.fixture(scope="module")
def images(survey):
    out = []
    for path, truth in zip(survey.exposures, survey.truth, strict=True):
        info = read_exposure_info(path, CAMERA)
        calibration = CAMERA.calibration_paths("S1", info.filter, str(survey.root / "calib"))
        image = Preprocessor().run(read_section(info, CAMERA, "S1"), info, calibration)
        table = Table.read(truth)
        out.append((info, image, Backgrounder().run(image), table[table["section"] == "S1"], table.meta))
    return out


def lonely_bright(image, truth, least=2000.0):
    """Stars on good pixels, far from the edge and from everything that matters."""
    x, y, flux = (np.asarray(truth[n], float) for n in ("x", "y", "flux_adu"))
    inside = (x > 40) & (x < 983) & (y > 40) & (y < 983)
    star = np.array([k == "star" for k in truth["kind"]])
    pairs = cKDTree(np.stack([x, y], -1)).query_pairs(30, output_type="ndarray")
    crowded = np.zeros(len(x), bool)
    for a, b in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
        np.logical_or.at(crowded, a, flux[b] > 0.005 * flux[a])
    rows = np.flatnonzero(inside & star & ~crowded & (flux > least))
    clean = [not image.flags[int(y[k]) - 15: int(y[k]) + 16, int(x[k]) - 15: int(x[k]) + 16].any() for k in rows]
    return rows[clean]


def test_stars_are_where_the_truth_says_with_its_flux(images):
    for _, image, background, truth, _ in images:
        # 310 ADU of noise in the aperture: the median of stars this bright is good to 0.5 %
        rows = lonely_bright(image, truth, 8000.0)
        assert len(rows) >= 8
        data = subtract_background(image, background)
        x, y = (np.asarray(truth[n], float)[rows] for n in ("x", "y"))
        variance = np.full(data.shape, background.noise**2, np.float32)
        flux, _ = aperture_fluxes(data, variance, image.flags != 0, x, y, (14.0,))
        ratio = flux[:, 0] / np.asarray(truth["flux_adu"], float)[rows]
        # the Moffat wing outside the aperture holds about 0.3 %
        assert np.median(ratio) == pytest.approx(1.0, abs=0.012)
        import sep

        cx, cy, _ = sep.winpos(data, x + 0.3, y - 0.3, np.full(len(x), 1.6))
        assert np.median(cx - x) == pytest.approx(0, abs=0.02)
        assert np.median(cy - y) == pytest.approx(0, abs=0.02)
        assert np.std(cx - x) < 0.08


def test_zero_point_of_the_truth(images):
    for _, _, _, truth, meta in images:
        star = np.array([k == "star" for k in truth["kind"]])
        magnitude = -2.5 * np.log10(np.asarray(truth["flux_adu"], float)[star]) + meta["zp_S1"]
        np.testing.assert_allclose(magnitude, np.asarray(truth["mag"], float)[star], atol=2e-3)


def test_header_position_is_wrong_by_little(images):
    for _, image, _, truth, _ in images:
        ra, dec = pixel_to_sky(image.header_wcs, np.asarray(truth["x"], float), np.asarray(truth["y"], float))
        off = separation_deg(ra, dec, np.asarray(truth["ra"], float), np.asarray(truth["dec"], float)) * 3600
        assert 0.05 < np.median(off) < 15


def test_catalogue_moved_to_the_epoch_is_the_truth(survey, images):
    info, image, _, truth, _ = images[0]
    catalog = read_catalog({"path": str(survey.catalog)}, *footprint_cone(image.header_wcs, image.shape, 30.0))
    ra, dec = catalog.positions_at(info.mjd)
    star = np.array([k == "star" for k in truth["kind"]]) & (np.asarray(truth["mag"], float) < 19.5)
    sky = np.stack([np.asarray(truth["ra"], float), np.asarray(truth["dec"], float)], -1)[star]
    cos = np.cos(np.radians(sky[0, 1]))
    distance, _ = cKDTree(np.stack([ra * cos, dec], -1)).query(sky * [cos, 1])
    assert np.mean(distance * 3.6e6 < 10) > 0.95
    still = cKDTree(np.stack([catalog.ra * cos, catalog.dec], -1)).query(sky * [cos, 1])[0]
    assert np.median(still) > 5 * np.median(distance)


def test_transients_appear_and_movers_move(images):
    first, second = (t[3] for t in images)
    for kind in ("transient", "mover"):
        assert kind in set(second["kind"])
    transients = second[second["kind"] == "transient"]
    assert (np.asarray(transients["diff_adu"], float) > 0).all()
    before = first[first["kind"] == "transient"]
    assert len(before) == 0 or (np.asarray(before["flux_adu"], float) == 0).all()


def test_same_seed_same_bytes_other_seed_other_sky(tmp_path):
    pars = {"epochs": 1, "stars_per_sq_deg": 2000.0}
    a, b, c = (simulate_survey(tmp_path / n, SimulationParameters(seed=s, **pars)) for n, s in
               (("a", 3), ("b", 3), ("c", 4)))
    assert a.exposures[0].read_bytes() == b.exposures[0].read_bytes()
    assert a.catalog.read_bytes() == b.catalog.read_bytes()
    assert a.exposures[0].read_bytes() != c.exposures[0].read_bytes()


def test_cameras_that_cannot_be_simulated_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="raw"):
        simulate_survey(tmp_path, SimulationParameters(camera="generic-fits"))
    path = tmp_path / "keywords.yaml"
    sections = "[{id: '1', amplifiers: [{data_section: DATASEC}]}]"
    path.write_text(f"name: keywords\npixel_scale_arcsec: 0.5\nsections: {sections}\n")
    with pytest.raises(ConfigError, match="example_header"):
        simulate_survey(tmp_path, SimulationParameters(camera=str(path)))


@pytest.mark.parametrize("hdu", ["number", "primary", "version"])
def test_any_raw_layout_reads_back_as_one_section(tmp_path, hdu):
    """Amplifiers in HDUs of their own, flipped; HDUs by number or by name and version."""
    def amp(name, number, **place):
        where = {"number": number, "version": ["SCI", number], "primary": None}[hdu]
        shift = 80 * (number - 1) if hdu == "primary" else 0
        return {"name": name, "hdu": where, "data_section": f"[{shift + 1}:{shift + 64},1:128]",
                "bias_section": f"[{shift + 65}:{shift + 80},1:128]", "gain": 2.0, "read_noise": 3.0, **place}

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({
        "name": "mine", "pixel_scale_arcsec": 0.6, "saturation": 60000, "filters": ["r"],
        "header": {"mjd": {"keyword": "DATE-OBS", "convert": "isot_to_mjd"}, "exp_time": {"keyword": "EXPTIME"},
                   "filter": {"keyword": "FILTER"}},
        "sections": [{"id": "1", "hdu": 0, "size": [128, 128], "amplifiers": [
            amp("A", 1), amp("B", 2, x0=64, flip_x=True, flip_y=True)]}]}))
    pars = SimulationParameters(camera=str(path), epochs=1, transients_per_section=0, cosmic_rays_per_mpix=0.0,
                                stars_per_sq_deg=20000.0, bad_columns_per_amplifier=0)
    made = simulate_survey(tmp_path / "out", pars)
    camera = load_camera(path)
    info = read_exposure_info(made.exposures[0], camera)
    assert info.mjd == pytest.approx(61000.1, abs=1e-6)
    raw = read_section(info, camera, "1")
    assert raw.shape == (128, 128)
    image = np.zeros(raw.shape)
    for a in raw.amplifiers:
        level = np.median(a.overscan, axis=1, keepdims=True)
        image[a.y0:a.y0 + a.data.shape[0], a.x0:a.x0 + a.data.shape[1]] = a.data - level
    truth = Table.read(made.truth[0])
    star = truth[np.array([k == "star" for k in truth["kind"]])]
    star.sort("flux_adu", reverse=True)
    for row in star[:2]:
        y, x = round(row["y"]), round(row["x"])
        box = image[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2]
        assert box.max() > np.median(image) + 0.03 * row["flux_adu"]
