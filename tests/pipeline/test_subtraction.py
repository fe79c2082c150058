"""Warp, subtraction, detection, cutting, measuring and scoring of an artificial pair with known transients."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
from scene import make_scene
from scipy.spatial import cKDTree

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.model.errors import AlgorithmError, BadInput, ConfigError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import Detections, Reference, SectionProducts, SubImage
from seechange_mpi.model.tables import DETECTIONS, MEASUREMENTS, empty_table
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.cutting import Cutter
from seechange_mpi.pipeline.extraction import Detector
from seechange_mpi.pipeline.measuring import CUTS, BadThresholds, DeletionThresholds, Measurer
from seechange_mpi.pipeline.photocal import PhotCalibrator
from seechange_mpi.pipeline.scoring import Scorer
from seechange_mpi.pipeline.subtraction import Subtractor
from seechange_mpi.pipeline.warping import register, warp_reference
from seechange_mpi.pipeline.wcs_tools import sip_header, sky_to_pixel

CAMERA = load_camera("simulated")
RATIO, ANGLE, SIZE = 0.8, 0.4, 512


def header(rotation=0.0, crpix=(255.5, 255.5)):
    s, c, n = 0.6 / 3600, np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    return sip_header(crpix, (150.0, 2.0), np.array([[-s * c, s * n], [s * n, s * c]]), {}, {}, {}, {})


def process(scene):
    p = SectionProducts(image=scene.image)
    p.background = Backgrounder().run(p.image)
    p.sources, p.psf = Detector().extract(p.image, p.background)
    p.wcs, p.sources = AstroCalibrator(method="header").run(p.image, p.sources, None)
    p.zp = PhotCalibrator(method="relative").run(p.image, p.background, p.psf, p.sources, p.wcs, None, CAMERA, None)
    return p


def as_reference(p):
    return Reference(p.image, p.background, p.psf, p.sources, p.wcs, p.zp, "id", "first", {})


@dataclass
class Pair:
    new: SectionProducts
    reference: Reference
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    star_x: np.ndarray
    star_y: np.ndarray
    star_flux: np.ndarray
    sub: SubImage
    detections: Detections


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(4)
    gy, gx = np.mgrid[30:490:36, 30:490:36]
    x, y = gx.ravel() + rng.uniform(-5, 5, gx.size), gy.ravel() + rng.uniform(-5, 5, gx.size)
    flux = np.exp(rng.uniform(np.log(400), np.log(30000), len(x)))
    # every sixth place is a transient, every eleventh a star that fades away
    kind = np.where(np.arange(len(x)) % 6 == 5, 1, np.where(np.arange(len(x)) % 11 == 10, -1, 0))
    flux = np.where(kind != 0, np.exp(rng.uniform(np.log(500), np.log(6000), len(x))), flux)
    old_header, new_header = header(), header(ANGLE, (258.2, 251.9))
    from seechange_mpi.pipeline.wcs_tools import pixel_to_sky

    nx, ny = sky_to_pixel(new_header, *pixel_to_sky(old_header, x, y))
    old = make_scene(positions=(x, y), flux=np.where(kind == 1, 0.0, flux), n_galaxies=0, fwhm=3.0, seed=1,
                     header_wcs=old_header)
    new = make_scene(positions=(nx, ny), flux=np.where(kind == -1, 0.0, flux * RATIO), n_galaxies=0, fwhm=3.6, seed=2,
                     header_wcs=new_header, mjd=60010.0)
    products, reference = process(new), as_reference(process(old))
    sub = Subtractor().run(products, reference)
    detections = Detector(subtraction=True).detect(sub, products.psf.fwhm_pixels, new_header)
    change = kind != 0
    inside = change & (nx > 20) & (nx < SIZE - 21) & (ny > 20) & (ny < SIZE - 21)
    return Pair(products, reference, nx[inside], ny[inside], (kind * flux * RATIO)[inside], nx[~change], ny[~change],
                (flux * RATIO)[~change], sub, detections)


def test_registration_is_as_good_as_the_centroids(pair):
    r = register(pair.new, pair.reference, radius_pix=3.0, min_matched=5)
    assert len(r.new_index) > 50
    gx, gy = np.meshgrid(np.linspace(20, 490, 12), np.linspace(20, 490, 12))
    from seechange_mpi.pipeline.wcs_tools import pixel_to_sky

    tx, ty = sky_to_pixel(header(), *pixel_to_sky(header(ANGLE, (258.2, 251.9)), gx, gy))
    x, y = r.xy_of(gx, gy)
    assert np.hypot(x - tx, y - ty).max() < 0.04
    assert max(r.sigma_x, r.sigma_y) < 0.05


def test_wrong_wcs_of_a_pixel_is_repaired_and_a_hopeless_one_refused(pair):
    shifted = copy.copy(pair.reference)
    shifted.wcs = copy.copy(shifted.wcs)
    shifted.wcs.header = header(crpix=(256.6, 254.6))
    r = register(pair.new, shifted, radius_pix=3.0, min_matched=5)
    assert r.shift == pytest.approx(np.hypot(1.1, 0.9), abs=0.05)
    shifted.wcs.header = header(crpix=(300.0, 200.0))
    with pytest.raises(AlgorithmError, match="registered") as err:
        register(pair.new, shifted, radius_pix=1.0, min_matched=40)
    assert err.value.metrics["required"] == 40


def test_warped_reference_keeps_flux_and_finds_the_ratio(pair):
    r = register(pair.new, pair.reference, radius_pix=3.0, min_matched=5)
    w = warp_reference(pair.new, pair.reference, r, min_stars=3, psf_degree=1)
    assert w.flux_ratio == pytest.approx(RATIO, rel=0.02)
    assert w.n_ratio > 30
    assert w.psf.fwhm_pixels == pytest.approx(pair.reference.psf.fwhm_pixels, rel=0.04)
    assert w.data.shape == (SIZE, SIZE)
    assert w.flags.dtype == np.uint16
    # corners that the rotated reference does not cover are known as such
    assert (w.flags & PixelFlag.OUT_OF_BOUNDS).any()
    assert np.isfinite(w.data).all()


def test_score_has_unit_variance_on_sky_and_on_stars(pair):
    score, good = pair.sub.score, (pair.sub.flags == 0) & (pair.sub.weight > 0)
    yy, xx = np.mgrid[:SIZE, :SIZE]
    tree = cKDTree(np.stack([np.r_[pair.x, pair.star_x], np.r_[pair.y, pair.star_y]], -1))
    distance = tree.query(np.stack([xx.ravel(), yy.ravel()], -1))[0].reshape(SIZE, SIZE)
    sky = good & (distance > 12)
    assert np.std(score[sky]) == pytest.approx(1.0, abs=0.05)
    assert abs(np.mean(score[sky])) < 0.05
    star = np.round(np.stack([pair.star_y, pair.star_x], -1)).astype(int)
    near = (star > 20).all(axis=1) & (star < SIZE - 20).all(axis=1) & (pair.star_flux < 8000)
    at = score[star[near, 0], star[near, 1]]
    assert 0.6 < np.std(at) < 1.5
    assert np.abs(at).max() < 5
    assert pair.sub.metrics["score_std"] == pytest.approx(1.0, abs=0.06)


def matched(pair, least_snr):
    """Rows of the detections for each expected change, and which were expected."""
    t = pair.detections.table
    error = np.median(pair.sub.flux_err[(pair.sub.flags == 0) & (pair.sub.weight > 0)])
    x, y = np.round(pair.x).astype(int), np.round(pair.y).astype(int)
    fair = (np.abs(pair.flux) > least_snr * error) & (pair.sub.weight[y, x] > 0)
    distance, row = cKDTree(np.stack([t["x"], t["y"]], -1)).query(np.stack([pair.x, pair.y], -1))
    return np.flatnonzero(fair), distance, row


def test_every_change_is_found_with_its_sign_and_nothing_else(pair):
    fair, distance, row = matched(pair, 8.0)
    assert len(fair) >= 20
    assert (distance[fair] < 1.0).all()
    t = pair.detections.table
    assert (np.sign(t["score"][row[fair]]) == np.sign(pair.flux[fair])).all()
    everything = cKDTree(np.stack([pair.x, pair.y], -1)).query(np.stack([t["x"], t["y"]], -1))[0]
    assert (everything > 4).sum() <= 2
    assert (np.lexsort((t["peak_x"], t["peak_y"])) == np.arange(len(t))).all()
    assert np.isfinite(t["ra"]).all()


@pytest.fixture(scope="module")
def measured(pair):
    cutouts = Cutter().run(pair.new, pair.sub, pair.detections)
    measurements = Measurer().run(pair.new, pair.sub, pair.detections, cutouts, pair.reference)
    return cutouts, measurements, Scorer().run(measurements, cutouts, pair.sub)


def test_measured_fluxes_and_positions_are_true(pair, measured):
    fair, _distance, row = matched(pair, 10.0)
    t = measured[1].table[row[fair]]
    flux = pair.flux[fair]
    assert np.median(t["flux_psf"] / flux) == pytest.approx(1.0, abs=0.02)
    pull = (t["flux_psf"] - flux * np.median(t["flux_psf"] / flux)) / t["flux_psf_err"]
    assert 0.5 < 1.4826 * np.median(np.abs(pull)) < 1.6
    assert np.median(np.hypot(t["x"] - pair.x[fair], t["y"] - pair.y[fair])) < 0.16
    assert (t["is_negative"] == (flux < 0)).all()
    np.testing.assert_allclose(t["mag"], pair.sub.zp - 2.5 * np.log10(np.abs(t["flux_psf"])), atol=1e-4)
    assert (t["best_aperture"] == -1).all()
    x, y = sky_to_pixel(pair.new.wcs.header, t["ra"], t["dec"])
    np.testing.assert_allclose(x, t["x"], atol=1e-3)
    np.testing.assert_allclose(y, t["y"], atol=1e-3)
    wide = t["flux_apertures"][:, 1]
    assert np.median(wide / flux) == pytest.approx(1.0, abs=0.06)
    assert t["is_bad"].mean() < 0.1


def test_true_changes_score_high(pair, measured):
    fair, _, row = matched(pair, 10.0)
    _, measurements, scores = measured
    assert len(scores.table) == len(measurements.table) == len(pair.detections.table)
    assert (scores.table["index_in_sources"] == measurements.table["index_in_sources"]).all()
    assert ((scores.table["score"] >= 0) & (scores.table["score"] <= 1)).all()
    assert np.median(scores.table["score"][row[fair]]) > 0.8


def test_cutouts_are_centred_and_masked_where_flagged(pair, measured):
    cutouts = measured[0]
    n = len(pair.detections.table)
    for stack in (cutouts.new, cutouts.ref, cutouts.sub):
        assert stack.shape == (n, 41, 41)
        assert stack.dtype == np.float32
    fair, _, row = matched(pair, 20.0)
    bright = row[fair][pair.flux[fair] > 0]
    centre = cutouts.sub[bright, 19:22, 19:22].max(axis=(1, 2))
    assert (centre >= np.nanmax(cutouts.sub[bright], axis=(1, 2)) * 0.9).all()
    table = empty_table(DETECTIONS, 1)
    table["peak_x"], table["peak_y"] = 2, 3
    corner = Cutter(cutout_size=11).run(pair.new, pair.sub, Detections(table))
    assert np.isnan(corner.new[0, :2]).all()
    assert np.isfinite(corner.new[0, 4:, 5:]).all()
    with pytest.raises(ConfigError, match="odd"):
        Cutter(cutout_size=40)


def artefact(pair, paint, **measuring):
    """Measure one detection of a difference image that `paint` changes."""
    sub = copy.copy(pair.sub)
    sub.data, sub.score, sub.flags = sub.data.copy(), sub.score.copy(), sub.flags.copy()
    yy, xx = np.mgrid[:SIZE, :SIZE]
    stars = cKDTree(np.stack([np.r_[pair.x, pair.star_x], np.r_[pair.y, pair.star_y]], -1))
    place = np.stack([xx[60:-60, 60:-60].ravel(), yy[60:-60, 60:-60].ravel()], -1)
    x, y = place[int(np.argmax(stars.query(place)[0]))]
    paint(sub, int(x), int(y))
    table = empty_table(DETECTIONS, 1)
    table["x"], table["y"], table["peak_x"], table["peak_y"] = x, y, x, y
    table["score"] = sub.score[y, x]
    table["flux_psf_err"] = pair.sub.flux_err[y, x]
    cutouts = Cutter().run(pair.new, sub, Detections(table))
    m = Measurer(**measuring).run(pair.new, sub, Detections(table), cutouts, pair.reference)
    return m.table[0], float(Scorer().run(m, cutouts, sub).table["score"][0])


def stamp_at(sub, x, y, flux, dx=0):
    n = sub.psf.shape[0] // 2
    view = (slice(y - n, y + n + 1), slice(x + dx - n, x + dx + n + 1))
    sub.data[view] += flux * sub.psf
    sub.score[view] += flux * sub.psf / sub.psf.max() / 60.0


def dipole(sub, x, y):
    stamp_at(sub, x, y, 3000.0)
    stamp_at(sub, x, y, -3000.0, dx=4)


def test_artefacts_are_recognised(pair):
    good, high = artefact(pair, lambda s, x, y: stamp_at(s, x, y, 3000.0))
    assert not good["is_bad"]
    assert good["flux_psf"] == pytest.approx(3000, rel=0.1)

    def spike(s, x, y):
        s.data[y, x] += 1500.0
        s.score[y, x] += 30.0

    def masked(s, x, y):
        stamp_at(s, x, y, 3000.0)
        s.flags[y - 3: y, x - 3: x + 4] |= np.uint16(PixelFlag.BAD_PIXEL)

    for paint, reason in ((dipole, b"neg"), (spike, b"chi2"), (masked, b"badpix")):
        row, score = artefact(pair, paint)
        assert row["is_bad"], paint.__name__
        assert reason in row["bad_reasons"]
        assert row["deletion_reasons"] == b"", "nothing is deleted unless it is asked for"
        assert score < 0.7 * high


def test_deletion_thresholds_name_the_cut_and_go_beyond_bad_ones_or_stay_below(pair):
    plain, _ = artefact(pair, dipole)
    row, _ = artefact(pair, dipole, deletion_thresholds={"negfrac": 0.3})
    assert row["deletion_reasons"] == b"negfrac"
    assert row["bad_reasons"] == plain["bad_reasons"]
    row, _ = artefact(pair, dipole, deletion_thresholds={"negfrac": plain["negfrac"] + 0.01, "nbadpix": 5})
    assert (row["is_bad"], row["deletion_reasons"]) == (True, b"")
    # a deletion threshold that a good measurement fails makes it bad as well, with the same name
    row, _ = artefact(pair, lambda s, x, y: stamp_at(s, x, y, 3000.0), deletion_thresholds={"elongation": 1.00001})
    assert (row["is_bad"], row["bad_reasons"], row["deletion_reasons"]) == (True, b"elongation", b"elongation")
    with pytest.raises(ConfigError, match="deletion_thresholds"):
        Measurer(deletion_thresholds={"negfrac": -1})


def test_every_threshold_has_a_cut():
    assert set(CUTS.values()) == set(BadThresholds.model_fields) == set(DeletionThresholds.model_fields)
    longest = ",".join(CUTS)
    assert len(longest) <= empty_table(MEASUREMENTS, 1)["bad_reasons"].dtype.itemsize, "all names fit into the column"


def test_nothing_detected_is_fine(pair):
    quiet = copy.copy(pair.sub)
    quiet.score = np.clip(quiet.score, -3, 3)
    none = Detector(subtraction=True).detect(quiet, 3.6, header())
    assert len(none.table) == 0
    cutouts = Cutter().run(pair.new, quiet, none)
    assert cutouts.sub.shape == (0, 41, 41)
    m = Measurer().run(pair.new, quiet, none, cutouts, pair.reference)
    assert len(m.table) == 0
    assert len(Scorer().run(m, cutouts, quiet).table) == 0


def test_failed_subtraction_is_not_a_flood_of_detections(pair):
    wild = copy.copy(pair.sub)
    wild.score = np.random.default_rng(0).normal(0, 6, wild.score.shape).astype(np.float32)
    with pytest.raises(AlgorithmError, match="failed") as err:
        Detector(subtraction=True).detect(wild, 2.0, header())
    assert err.value.metrics["detections"] > 3000


def test_flagged_pixels_and_borders_are_not_detected(pair):
    spoiled = copy.copy(pair.sub)
    spoiled.score, spoiled.flags = np.zeros_like(spoiled.score), np.zeros_like(spoiled.flags)
    spoiled.weight = np.ones_like(spoiled.weight)
    spoiled.score[100, 100] = spoiled.score[3, 200] = spoiled.score[200, 300] = 50
    spoiled.flags[100, 100] = 4
    t = Detector(subtraction=True).detect(spoiled, 3.0, header()).table
    assert list(zip(t["peak_x"], t["peak_y"], strict=True)) == [(300, 200)]


def test_reference_in_another_filter_needs_the_option(pair):
    other = copy.copy(pair.reference)
    other.image = copy.copy(other.image)
    other.image.filter = "g"
    with pytest.raises(BadInput, match="allow_other_filter"):
        Subtractor().run(pair.new, other)
    sub = Subtractor(allow_other_filter=True).run(pair.new, other)
    assert sub.data.shape == (SIZE, SIZE)


def test_repeatable(pair):
    again = Subtractor().run(pair.new, pair.reference)
    for name in ("data", "weight", "flags", "score", "flux", "psf"):
        assert getattr(again, name).tobytes() == getattr(pair.sub, name).tobytes()
