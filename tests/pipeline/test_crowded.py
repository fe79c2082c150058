"""Extraction where stars overlap, where there are hardly any, and beside large galaxies."""

import numpy as np
import pytest
from scene import GAIN, SKY, make_scene
from scipy.spatial import cKDTree

from seechange_mpi.gpu_kernels.photometry import render_sources
from seechange_mpi.gpu_kernels.psf_model import ConstantPSF, fwhm_of
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import Image
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.extraction import Detector
from seechange_mpi.simulate.render import MoffatPSF

FWHM, NOISE = 3.8, 8.0


def crowded_image(pixels_per_star: float, size: int = 400, seed: int = 1):
    """A field of stars with counts 10^(0.3 m) over 9 magnitudes; returns image, x, y, flux and the true FWHM."""
    rng = np.random.default_rng(seed)
    n = int(size**2 / pixels_per_star)
    x, y = rng.uniform(0, size, n), rng.uniform(0, size, n)
    low, high = 10 ** (0.3 * 0.0), 10 ** (0.3 * 9.0)
    magnitude = np.log10(low + (high - low) * rng.random(n)) / 0.3
    flux = 4e5 * 10 ** (-0.4 * magnitude)
    stamp = MoffatPSF(FWHM, 3.5, 0.0, 0.0, 1.0).stamp(0, 0, 0, 0, 20)
    clean = render_sources((size, size), x, y, flux, ConstantPSF.of(stamp.astype(np.float32))).astype(float)
    data = rng.poisson((clean + SKY) * GAIN) / GAIN + rng.normal(0, 2.0, clean.shape)
    variance = (clean + SKY) / GAIN + 4.0
    image = Image(data.astype(np.float32), (1 / variance).astype(np.float32), np.zeros(data.shape, np.uint16), GAIN,
                  2.0 * GAIN, 1e6, "S1", "r", 60000.0, 30.0)
    return image, x, y, flux, fwhm_of(stamp)


def extracted(image: Image):
    background = Backgrounder().run(image)
    sources, psf = Detector().extract(image, background)
    return sources.table, psf, background


def found_and_ratio(table, x, y, flux, low, high, size=400):
    """Which true stars of a range of flux are found within a pixel, and their measured flux over the true one."""
    pick = (flux > low) & (flux < high) & (np.minimum(x, y) > 12) & (np.maximum(x, y) < size - 13)
    distance, index = cKDTree(np.stack([table["x"], table["y"]], -1)).query(np.stack([x[pick], y[pick]], -1))
    near = distance < 1.0
    return near, (table["flux_psf"][index] / flux[pick])[near]


def test_a_field_with_a_star_per_14_pixels_squared():
    """One star per 200 pixels: each has another within 4 FWHM, and half of the light of many is a neighbour's."""
    image, x, y, flux, fwhm = crowded_image(200)
    table, psf, _ = extracted(image)
    assert psf.fwhm_pixels == pytest.approx(fwhm, rel=0.01)
    near, ratio = found_and_ratio(table, x, y, flux, 1e4, 1e6)
    assert near.mean() > 0.93
    assert np.median(ratio) == pytest.approx(1, abs=0.015)
    near, ratio = found_and_ratio(table, x, y, flux, 1.5e3, 1e4)
    assert near.mean() > 0.85
    assert np.median(ratio) == pytest.approx(1, abs=0.03)
    # what is no star is not believed to be a bright one
    far = cKDTree(np.stack([x, y], -1)).query(np.stack([table["x"], table["y"]], -1))[0] > 2.0
    assert (far & (table["flux_psf"] > 3e3)).sum() <= 0.01 * len(table)
    assert ((table["flags"] & 2) != 0).mean() > 0.3


def test_confusion_is_survived():
    """One star per 30 pixels, less than a seeing disc each: the brightest tenth is measured."""
    image, x, y, flux, fwhm = crowded_image(30, size=300)
    table, psf, _ = extracted(image)
    assert psf.fwhm_pixels == pytest.approx(fwhm, rel=0.03)
    near, ratio = found_and_ratio(table, x, y, flux, np.quantile(flux, 0.97), 1e7, size=300)
    assert near.mean() > 0.85
    assert np.median(ratio) == pytest.approx(1, abs=0.06)


def test_twelve_stars_are_enough():
    scene = make_scene(shape=(400, 400), n_stars=12, n_galaxies=6, fwhm=3.5, seed=11, flux_range=(3000.0, 60000.0))
    table, psf, background = extracted(scene.image)
    assert psf.fwhm_pixels == pytest.approx(np.hypot(3.5, 0.9), rel=0.03)
    assert psf.degree == 0
    assert background.value == pytest.approx(SKY, abs=0.5)
    distance, _ = cKDTree(np.stack([table["x"], table["y"]], -1)).query(np.stack([scene.x, scene.y], -1))
    assert (distance < 0.5).mean() > 0.9


def test_three_stars_are_refused_with_the_figures():
    scene = make_scene(shape=(300, 300), n_stars=3, n_galaxies=0, fwhm=3.5, seed=12)
    with pytest.raises(AlgorithmError, match=r"too few|no stars to make") as caught:
        extracted(scene.image)
    assert caught.value.metrics["required"] == 5


def test_a_large_galaxy_is_one_source_and_leaves_the_stars_alone():
    """An exponential disc of 25 pixels' scale length, brighter than the sky at its centre."""
    scene = make_scene(shape=(500, 500), n_stars=60, n_galaxies=0, fwhm=3.5, seed=13)
    yy, xx = np.mgrid[:500, :500]
    rng = np.random.default_rng(3)
    light = 300.0 * np.exp(-np.hypot(xx - 250.0, (yy - 250.0) / 0.6) / 25.0)
    scene.image.data[:] += (light + np.sqrt(light / GAIN) * rng.standard_normal(light.shape)).astype(np.float32)
    table, psf, background = extracted(scene.image)
    middle = np.hypot(table["x"] - 250, (table["y"] - 250) / 0.6) < 60
    true_middle = np.hypot(scene.x - 250, (scene.y - 250) / 0.6) < 60
    # not shredded: little more than the galaxy and the stars in front of it
    assert middle.sum() <= 1.5 * true_middle.sum() + 8
    nearest = np.argmin(np.hypot(table["x"] - 250, table["y"] - 250))
    assert np.hypot(table["x"][nearest] - 250, table["y"][nearest] - 250) < 2
    assert not table["is_star"][nearest]
    assert table["half_light_radius"][nearest] > 10
    assert psf.fwhm_pixels == pytest.approx(np.hypot(3.5, 0.9), rel=0.03)
    assert background.value == pytest.approx(SKY, abs=1.0)
