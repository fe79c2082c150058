"""Badness bits: set by what they are meant for, not by good data, and handed on."""

from pathlib import Path

import numpy as np
import pytest
from scene import SKY, make_scene

from seechange_mpi.model import products as pr
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.flags import (
    BADNESS_MEANINGS,
    Badness,
    PixelFlag,
    badness_of_pixels,
    badness_table,
    badness_words,
)
from seechange_mpi.model.tables import MEASUREMENTS, SOURCES, empty_table
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.badness import (
    ExtractionBadness,
    ImageBadness,
    Judge,
    SubtractionBadness,
    badness_of_failure,
    badness_of_products,
    banding,
    common_ellipticity,
    judge_background,
    judge_image,
    judge_measurements,
    judge_psf,
    judge_sources,
    judge_subtraction,
    judge_wcs,
    judge_zero_point,
)

NOISE = np.sqrt(SKY / 2.0 + (6.0 / 2.0) ** 2)


@pytest.fixture(scope="module")
def scene():
    return make_scene(seed=5)


def test_table_in_the_documentation_is_generated():
    text = (Path(__file__).parents[2] / "docs" / "badness.md").read_text()
    assert badness_table() in text
    assert set(BADNESS_MEANINGS) == set(Badness)


def test_numbers_are_seechanges():
    numbers = {b.name: int(b).bit_length() - 1 for b in Badness}
    assert numbers == {
        "BANDING": 1, "SHAKING": 2, "SATURATION": 3, "BAD_SUBTRACTION": 4, "BRIGHT_SKY": 5, "PSF": 11,
        "FEW_SOURCES": 16, "MANY_SOURCES": 17, "NO_CATALOG": 21, "MATCH_FAILED": 22, "BIG_RESIDUALS": 23,
        "TOO_DENSE": 31, "BAD_FIT": 32, "REF_BAD": 35, "REF_SUPERSEDED": 36, "COSMIC_RAY": 41, "GHOST": 42,
        "SATELLITE": 43, "OFFSET": 44, "BAD_PIXEL": 45, "BLEED": 46}


def test_words():
    assert badness_words(0) == ""
    assert badness_words(int(Badness.PSF), int(Badness.BANDING)) == "banding, bad psf"
    assert badness_words(1 << 60) == "bit 60"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_good_image_has_no_bit(seed):
    image = make_scene(seed=seed).image
    assert judge_image(image, ImageBadness()) == 0
    assert judge_background(image, Backgrounder().run(image), ExtractionBadness()) == 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("amplitude", "bad"), [(0.1, False), (0.3, True)])
def test_banding_is_measured(scene, axis, amplitude, bad):
    """Offsets of rows (axis 1) or columns: measured to 20 % (clipping takes some), not seen along the other axis."""
    offsets = amplitude * NOISE * np.random.default_rng(1).standard_normal(512).astype(np.float32)
    image = pr.Image(**{n: getattr(scene.image, n) for n in pr.Image.__slots__})
    image.data = image.data + (offsets[:, None] if axis else offsets[None, :])
    residual = image.data - np.float32(SKY)
    assert banding(residual, NOISE, axis) == pytest.approx(amplitude, rel=0.2)
    assert banding(residual, NOISE, 1 - axis) < 0.05
    assert (Badness.BANDING in judge_image(image, ImageBadness())) is bad


def test_shaking_is_common_elongation():
    from scene import moffat

    rng = np.random.default_rng(3)
    x, y, angle = rng.uniform(20, 380, 40), rng.uniform(20, 380, 40), rng.uniform(0, np.pi, 40)
    measured = {}
    for name in ("alike", "anyhow", "round"):
        data = rng.normal(0, 10, (400, 400))
        for k in range(40):
            c, r = int(x[k]), int(y[k])
            rows, cols = slice(max(r - 18, 0), r + 19), slice(max(c - 18, 0), c + 19)
            yy, xx = np.mgrid[:400, :400][:, rows, cols]
            q = 1.0 if name == "round" else 0.6
            data[rows, cols] += 2e4 * moffat(xx, yy, x[k], y[k], 4.0, q=q, angle=0.4 if name == "alike" else angle[k])
        measured[name] = common_ellipticity(data.astype(np.float32), 10.0, np.zeros((400, 400), bool))
    assert measured["alike"] == pytest.approx(0.4, abs=0.1)
    assert measured["anyhow"] < 0.2
    assert measured["round"] < 0.05


def test_sky_and_saturation(scene):
    image = pr.Image(**{n: getattr(scene.image, n) for n in pr.Image.__slots__})
    # 200 ADU of 2 e- in 30 s are 13.3 e- per second
    assert Badness.BRIGHT_SKY in judge_image(image, ImageBadness(max_sky={"r": 12.0}))
    assert Badness.BRIGHT_SKY not in judge_image(image, ImageBadness(max_sky={"r": 15.0, "g": 1.0}))
    assert Badness.BRIGHT_SKY in judge_image(image, ImageBadness(sky_fraction=0.003))
    image.flags = image.flags.copy()
    image.flags[:20] |= int(PixelFlag.SATURATED)
    assert Badness.SATURATION in judge_image(image, ImageBadness())


def test_structure_and_crowding_of_the_background(scene):
    image = pr.Image(**{n: getattr(scene.image, n) for n in pr.Image.__slots__})
    background = Backgrounder().run(image)
    y, x = np.mgrid[:512, :512]
    # fringes: within a box of the mesh, so that it cannot follow them
    image.data = image.data + (0.6 * NOISE * np.sin(2 * np.pi * (x + 0.3 * y) / 150.0)).astype(np.float32)
    assert judge_background(image, background, ExtractionBadness()) == Badness.BAD_FIT
    crowded = make_scene(n_stars=4000, seed=2).image
    assert Badness.TOO_DENSE in judge_background(crowded, Backgrounder().run(crowded), ExtractionBadness())


def gaussian_psf(sigma_x, sigma_y, fwhm=4.0, chi2=1.0):
    v, u = np.mgrid[-10:11, -10:11].astype(float)
    stamp = np.exp(-0.5 * (u**2 / sigma_x**2 + v**2 / sigma_y**2))
    return pr.PSF((stamp / stamp.sum())[None].astype(np.float32), 0, 50.0, 50.0, 50.0, 50.0, fwhm, 30, chi2)


def test_psf_and_source_counts():
    pars, shape = ExtractionBadness(), (101, 101)
    assert judge_psf(gaussian_psf(1.7, 1.6), shape, 0.5, pars) == 0
    assert judge_psf(gaussian_psf(2.4, 1.5), shape, 0.5, pars) == Badness.PSF
    assert judge_psf(gaussian_psf(1.7, 1.7), shape, 1.5, pars) == Badness.PSF
    assert judge_psf(gaussian_psf(1.7, 1.7, chi2=9.0), shape, 0.5, pars) == Badness.PSF
    psf = gaussian_psf(1.7, 1.7)
    for n, bits in ((10, Badness.FEW_SOURCES), (30, 0), (100, Badness.MANY_SOURCES)):
        assert judge_sources(pr.SourceList(empty_table(SOURCES, n), (1.0,)), psf, shape, pars) == bits


def test_solutions():
    pars = ExtractionBadness()
    wcs = pr.WorldCoordinates("", "catalog", 50, 30.0)
    assert judge_wcs(wcs, pars, 100) == 0
    assert judge_wcs(pr.WorldCoordinates("", "header"), pars, None) == 0
    assert judge_wcs(pr.WorldCoordinates("", "header"), pars, 0) == Badness.NO_CATALOG
    assert judge_wcs(pr.WorldCoordinates("", "header"), pars, 40) == Badness.MATCH_FAILED
    assert judge_wcs(pr.WorldCoordinates("", "catalog", 50, 130.0), pars, 100) == Badness.BIG_RESIDUALS
    assert judge_zero_point(pr.ZeroPoint(25.0, 0.01, "catalog", 20, 0.03), pars) == 0
    assert judge_zero_point(pr.ZeroPoint(25.0, 0.01, "catalog", 20, 0.15), pars) == Badness.BIG_RESIDUALS
    assert judge_zero_point(pr.ZeroPoint(25.0, 0.0, "instrumental"), pars) == 0


def sub_image(score, flags=None):
    zero = np.zeros_like(score)
    flags = np.zeros(score.shape, np.uint16) if flags is None else flags
    return pr.SubImage(zero, zero + 1, flags, score, zero, zero, np.ones((5, 5), np.float32) / 25, 25.0, zero, flags,
                       "zogy")


def test_subtraction():
    rng = np.random.default_rng(1)
    score = rng.standard_normal((300, 300)).astype(np.float32)
    assert judge_subtraction(sub_image(score), SubtractionBadness()) == 0
    assert judge_subtraction(sub_image(1.4 * score), SubtractionBadness()) == Badness.BAD_SUBTRACTION
    score[:5] += 20
    assert judge_subtraction(sub_image(score), SubtractionBadness()) == Badness.BAD_SUBTRACTION


def test_measurements_by_the_pixels_under_them():
    flags = np.zeros((100, 100), np.uint16)
    marks = (PixelFlag.COSMIC_RAY, PixelFlag.BAD_PIXEL, PixelFlag.SATURATED, PixelFlag.ZERO_WEIGHT)
    for k, flag in enumerate(marks):
        flags[20, 20 * k + 12] = flag
    table = empty_table(MEASUREMENTS, 6)
    table["center_x_pixel"], table["center_y_pixel"] = [10, 30, 50, 70, 90, 60], [20, 20, 20, 20, 20, 60]
    judge_measurements(pr.Measurements(table), sub_image(np.zeros((100, 100), np.float32), flags), 3.0,
                       np.array([0, 0, 0, 0, 0, 1], bool))
    assert table["bitflag"].tolist() == [Badness.COSMIC_RAY, Badness.BAD_PIXEL, Badness.BLEED, 0, 0, Badness.OFFSET]
    assert badness_of_pixels(np.array([int(PixelFlag.NO_DATA | PixelFlag.COSMIC_RAY)])).tolist() == [
        int(Badness.BAD_PIXEL | Badness.COSMIC_RAY)]


def test_failures_keep_a_bit():
    cases = [
        ("extraction", AlgorithmError("extraction", "", {"sources": 2, "required": 5}), Badness.FEW_SOURCES),
        ("extraction", AlgorithmError("background", "", {}), Badness.BAD_FIT),
        ("astrocal", AlgorithmError("astrocal", "no catalogue"), Badness.NO_CATALOG),
        ("astrocal", AlgorithmError("astrocal", "", {"catalogue_rows_in_cone": 3, "required": 10, "sources": 50}),
         Badness.NO_CATALOG),
        ("astrocal", AlgorithmError("astrocal", "", {"catalogue_rows_in_cone": 300, "sources": 50, "votes": 2.0}),
         Badness.MATCH_FAILED),
        ("astrocal", AlgorithmError("astrocal", "", {"catalogue_rows_in_cone": 300, "rms_arcsec": 0.4,
                                                     "max_arcsec_residual": 0.15}), Badness.BIG_RESIDUALS),
        ("photocal", AlgorithmError("photocal", "", {"catalogue_stars": 80, "stars": 60, "n_matched": 2,
                                                     "required": 10}), Badness.MATCH_FAILED),
        ("photocal", AlgorithmError("photocal", "", {"scatter": 0.4, "max_scatter": 0.2}), Badness.BIG_RESIDUALS),
        ("subtraction", BadInput("f", "reference", "a", "b"), Badness.REF_BAD),
        ("detection", AlgorithmError("detection", "far too many"), Badness.BAD_SUBTRACTION),
        ("preprocessing", BadInput("f", "x", "a", "b"), 0),
        ("astrocal", ZeroDivisionError(), 0),
    ]
    for step, error, bits in cases:
        assert badness_of_failure(step, error) == bits, (step, error)


def test_bits_are_handed_on(scene):
    from seechange_mpi.pipeline.extraction import Detector

    image = pr.Image(**{n: getattr(scene.image, n) for n in pr.Image.__slots__})
    p = pr.SectionProducts(image=image)
    judge = Judge(ImageBadness(max_sky={"r": 1.0}), ExtractionBadness(max_fwhm_arcsec=1.0, few_sources=5000),
                  SubtractionBadness(), 1.0)
    judge.after("preprocessing", p)
    p.background = Backgrounder().run(image)
    p.sources, p.psf = Detector().extract(image, p.background)
    judge.after("extraction", p)
    sky, few, psf = int(Badness.BRIGHT_SKY), int(Badness.FEW_SOURCES), int(Badness.PSF)
    assert (image.bitflag, image.upstream_bitflag) == (sky, 0)
    assert (p.background.bitflag, p.background.upstream_bitflag) == (0, sky)
    assert (p.sources.bitflag, p.sources.upstream_bitflag) == (few, sky)
    assert (p.psf.bitflag, p.psf.upstream_bitflag) == (psf, sky | few)
    p.wcs = pr.WorldCoordinates("", "catalog", 50, 30.0)
    judge.after("astrocal", p, catalog_stars=90)
    p.zp = pr.ZeroPoint(25.0, 0.01, "catalog", 20, 0.15)
    judge.after("photocal", p)
    assert (p.zp.bitflag, p.zp.upstream_bitflag) == (int(Badness.BIG_RESIDUALS), sky | few | psf)
    p.sub = sub_image(np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32))
    reference = pr.Reference(image, p.background, p.psf, p.sources, p.wcs, p.zp, "id", "e", {})
    judge.after("subtraction", p, reference)
    assert p.sub.upstream_bitflag == sky | few | psf | int(Badness.BIG_RESIDUALS | Badness.REF_BAD)
    assert badness_of_products(p) == p.sub.upstream_bitflag
    clean = pr.WorldCoordinates("", "catalog", 50, 30.0)
    fresh = make_scene(shape=(64, 64), n_stars=0, n_galaxies=0).image
    good = pr.Reference(fresh, pr.Background(fresh.data, fresh.data, 64, (64, 64), 1.0, 1.0), gaussian_psf(2, 2),
                        pr.SourceList(p.sources.table, p.sources.aper_radii), clean,
                        pr.ZeroPoint(25.0, 0.01, "catalog"), "id", "e", {})
    judge.after("subtraction", p, good)
    assert not p.sub.upstream_bitflag & int(Badness.REF_BAD)
