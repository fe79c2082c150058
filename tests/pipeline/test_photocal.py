"""Zero points against truth: from a catalogue with colours, relative to a reference, and what is refused."""

import numpy as np
import pytest
from scene import make_scene

from seechange_mpi.instruments.camera import load_camera
from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.errors import AlgorithmError, BadInput, ConfigError
from seechange_mpi.model.products import Reference
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.extraction import Detector
from seechange_mpi.pipeline.photocal import PhotCalibrator, robust_mean
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky, sip_header

ZP = 27.3
HEADER = sip_header((255.5, 255.5), (150.0, 2.0), np.array([[-0.6, 0], [0, 0.6]]) / 3600, {}, {}, {}, {})
CAMERA = load_camera("simulated")


def grid(seed=7):
    rng = np.random.default_rng(seed)
    gy, gx = np.mgrid[30:482:41, 30:482:41]
    return gx.ravel() + rng.uniform(-4, 4, gx.size), gy.ravel() + rng.uniform(-4, 4, gx.size)


def process(**scene):
    s = make_scene(**{"positions": grid(), "n_galaxies": 8, "header_wcs": HEADER, "fwhm": 3.2, **scene})
    background = Backgrounder().run(s.image)
    sources, psf = Detector().extract(s.image, background)
    wcs, sources = AstroCalibrator(method="header").run(s.image, sources, None)
    return s, (s.image, background, psf, sources, wcs)


@pytest.fixture(scope="module")
def field():
    return process(seed=5)


@pytest.fixture(scope="module")
def catalog(field):
    """Gaia-like: G, BP, RP with colours, from which the camera's r follows by its own polynomial."""
    scene = field[0]
    rng = np.random.default_rng(1)
    colour = rng.uniform(0.3, 3.2, len(scene.x))
    rule = CAMERA.photometry["r"]
    r = ZP - 2.5 * np.log10(scene.flux)
    g = r - sum(c * colour**i for i, c in enumerate(rule.terms))
    ra, dec = pixel_to_sky(HEADER, scene.x, scene.y)
    zero = np.zeros(len(ra))
    mags = {"g": g + rng.normal(0, 0.005, len(g)), "bp": 18 + colour, "rp": zero + 18}
    return CatalogTable(ra, dec, zero, zero, mags, zero + 2016.0, "gaia.fits", len(ra), (150.0, 2.0), 0.1)


def test_catalogue_zero_point(field, catalog):
    zp = PhotCalibrator().run(*field[1], catalog, CAMERA, None)
    assert zp.method == "catalog"
    assert zp.zp == pytest.approx(ZP, abs=0.01)
    assert abs(zp.zp - ZP) < 5 * zp.dzp + 0.005
    assert 0.0005 < zp.dzp < 0.01
    assert zp.n_stars >= 30
    assert zp.scatter < 0.05
    assert zp.colour_term == CAMERA.photometry["r"].terms[1]


def test_aperture_corrections_give_the_same_magnitude(field, catalog):
    zp = PhotCalibrator().run(*field[1], catalog, CAMERA, None)
    sources = field[1][3]
    assert zp.aper_cor_radii == sources.aper_radii
    t = sources.table
    bright = t["is_star"] & (t["flux_psf"] > 150 * t["flux_psf_err"]) & (t["flags"] == 0)
    for k, correction in enumerate(zp.aper_cors):
        psf = -2.5 * np.log10(t["flux_psf"][bright])
        aper = -2.5 * np.log10(t["flux_apertures"][bright, k]) + correction
        assert np.median(aper - psf) == pytest.approx(0.0, abs=0.01)
    # a small aperture misses light, so its magnitude is too faint
    assert zp.aper_cors[0] < -0.15


def test_limiting_magnitude_is_five_sigma(field, catalog):
    zp = PhotCalibrator().run(*field[1], catalog, CAMERA, None)
    t = field[1][3].table
    faint = (t["flux_psf"] < 12 * t["flux_psf_err"]) & (t["pixel_flags"] == 0)
    limit = ZP - 2.5 * np.log10(5 * np.median(t["flux_psf_err"][faint]))
    assert zp.lim_mag == pytest.approx(limit, abs=0.15)


def test_variable_stars_and_blends_are_clipped(field, catalog):
    mags = {**catalog.mags, "g": catalog.mags["g"].copy()}
    mags["g"][::7] += 0.8
    bad = CatalogTable(catalog.ra, catalog.dec, catalog.pmra, catalog.pmdec, mags, catalog.ref_epoch, "gaia.fits")
    assert PhotCalibrator().run(*field[1], bad, CAMERA, None).zp == pytest.approx(ZP, abs=0.012)


def test_proper_motion_is_applied_in_the_match(field, catalog):
    years = 2000.0 + (60000.0 - 51544.5) / 365.25 - 2016.0
    moved = CatalogTable(catalog.ra, catalog.dec - 3.0 / 3600, catalog.pmra, catalog.pmdec + 3000.0 / years,
                         catalog.mags, catalog.ref_epoch, "gaia.fits")
    assert PhotCalibrator().run(*field[1], moved, CAMERA, None).zp == pytest.approx(ZP, abs=0.01)


def as_reference(products, zp, filter_name="r"):
    image, background, psf, sources, wcs = products
    image.filter = filter_name
    return Reference(image, background, psf, sources, wcs, zp, "id", "ref_exposure", {})


def test_relative_zero_point_follows_the_flux_ratio(field, catalog):
    ref_zp = PhotCalibrator().run(*field[1], catalog, CAMERA, None)
    reference = as_reference(field[1], ref_zp)
    scene = field[0]
    dithered = sip_header((255.5 + 3.3, 255.5 - 2.6), (150.0, 2.0), np.array([[-0.6, 0], [0, 0.6]]) / 3600,
                          {}, {}, {}, {})
    _, new = process(seed=9, flux=scene.flux * 0.7, positions=(scene.x + 3.3, scene.y - 2.6), fwhm=3.8,
                     header_wcs=dithered)
    zp = PhotCalibrator(method="relative").run(*new, None, CAMERA, reference)
    assert zp.method == "relative"
    assert zp.zp == pytest.approx(ZP + 2.5 * np.log10(0.7), abs=0.015)
    assert ref_zp.dzp < zp.dzp < 0.02


def test_first_image_without_reference_is_instrumental(field):
    zp = PhotCalibrator(method="relative").run(*field[1], None, CAMERA, None)
    assert (zp.method, zp.zp, zp.dzp) == ("instrumental", 25.0, 0.0)
    assert np.isfinite(zp.lim_mag)
    assert len(zp.aper_cors) == 4


def test_reference_in_another_filter_needs_the_option(field, catalog):
    zp = PhotCalibrator(method="relative").run(*field[1], None, CAMERA, None)
    _, other = process(seed=6, flux=field[0].flux)
    reference = as_reference(other, zp, "g")
    with pytest.raises(ConfigError, match="allow_other_filter"):
        PhotCalibrator(method="relative").run(*field[1], None, CAMERA, reference)
    got = PhotCalibrator(method="relative", allow_other_filter=True).run(*field[1], None, CAMERA, reference)
    assert got.method == "relative"


def test_refusals(field, catalog):
    run = PhotCalibrator().run
    with pytest.raises(AlgorithmError, match="no catalogue"):
        run(*field[1], None, CAMERA, None)
    few = CatalogTable(*(getattr(catalog, n)[:5] for n in ("ra", "dec", "pmra", "pmdec")),
                       {k: v[:5] for k, v in catalog.mags.items()}, catalog.ref_epoch[:5], "gaia.fits")
    with pytest.raises(AlgorithmError, match="too few stars") as err:
        run(*field[1], few, CAMERA, None)
    assert err.value.metrics["required"] == 6
    assert err.value.metrics["n_matched"] <= 6
    wild = CatalogTable(catalog.ra, catalog.dec, catalog.pmra, catalog.pmdec, {
        **catalog.mags, "g": catalog.mags["g"] + np.random.default_rng(0).normal(0, 1, len(catalog))},
        catalog.ref_epoch, "gaia.fits")
    with pytest.raises(AlgorithmError, match="scatter") as err:
        run(*field[1], wild, CAMERA, None)
    assert err.value.metrics["scatter"] > 0.2
    image, *rest = field[1]
    image.filter = "u"
    try:
        with pytest.raises(ConfigError, match="no photometry for filter 'u'"):
            run(image, *rest, catalog, CAMERA, None)
    finally:
        image.filter = "r"
    blind = CatalogTable(catalog.ra, catalog.dec, catalog.pmra, catalog.pmdec, {"bp": catalog.mags["bp"]},
                         catalog.ref_epoch, "gaia.fits")
    with pytest.raises(BadInput, match="magnitude"):
        run(*field[1], blind, CAMERA, None)


def test_empty_catalogue_is_refused(field, catalog):
    empty = CatalogTable(*(np.zeros(0) for _ in range(4)), {"g": np.zeros(0), "bp": np.zeros(0), "rp": np.zeros(0)},
                         np.zeros(0), "gaia.fits")
    with pytest.raises(AlgorithmError, match="too few stars"):
        PhotCalibrator().run(*field[1], empty, CAMERA, None)


def test_robust_mean_error_is_honest():
    rng = np.random.default_rng(0)
    errors, estimates = [], []
    for _ in range(300):
        sigma = rng.uniform(0.01, 0.1, 40)
        values = 25 + rng.normal(0, np.hypot(sigma, 0.03))
        values[:3] += 1.0
        mean, error = robust_mean(values, sigma**2, 0.01)
        estimates.append(mean)
        errors.append(error)
    assert np.std(estimates) == pytest.approx(np.mean(errors), rel=0.25)
    assert np.mean(estimates) == pytest.approx(25.0, abs=0.003)


