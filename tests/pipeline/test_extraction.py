"""Background, sources, star selection and PSF against an artificial sky whose truth is known."""

import numpy as np
import pytest
from scene import GAIN, READ_NOISE, SKY, make_scene
from scipy.spatial import cKDTree

from seechange_mpi.model.errors import AlgorithmError, ConfigError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.pipeline.backgrounding import Backgrounder, subtract_background
from seechange_mpi.pipeline.extraction import Detector, psf_noise_area
from seechange_mpi.pipeline.star_selection import find_stellar_locus, isolated

SEEING = (2.0, 3.5, 5.0)


class Extracted:
    def __init__(self, scene, **pars):
        self.scene = scene
        self.background = Backgrounder().run(scene.image)
        self.sources, self.psf = Detector(**pars).extract(scene.image, self.background)
        t = self.table = self.sources.table
        distance, self.index = cKDTree(np.stack([scene.x, scene.y], -1)).query(np.stack([t["x"], t["y"]], -1))
        self.matched, self.far = distance < 1.0, distance > 3.0
        with np.errstate(invalid="ignore"):
            self.snr = t["flux_psf"] / t["flux_psf_err"]
        self.clean = self.matched & (t["flags"] == 0) & (t["pixel_flags"] == 0) & t["is_star"]


@pytest.fixture(scope="module", params=SEEING)
def field(request):
    # a jittered grid: the photometry is tested, not the crowding
    rng = np.random.default_rng(7)
    gy, gx = np.mgrid[30:482:41, 30:482:41]
    x, y = gx.ravel() + rng.uniform(-4, 4, gx.size), gy.ravel() + rng.uniform(-4, 4, gx.size)
    return Extracted(make_scene(positions=(x, y), n_galaxies=12, fwhm=request.param, seed=5)), request.param


def test_background_level_and_noise(field):
    got, _ = field
    assert got.background.value == pytest.approx(SKY, abs=0.5)
    assert got.background.noise == pytest.approx(np.sqrt(SKY * GAIN + READ_NOISE**2) / GAIN, rel=0.02)
    empty = got.scene.image.data[5:20, 5:-5]
    assert np.mean(empty[empty < 230] - 200) == pytest.approx(
        np.mean(subtract_background(got.scene.image, got.background)[5:20, 5:-5][empty < 230]), abs=0.7)


def test_completeness_and_purity(field):
    got, fwhm = field
    noise = got.background.noise * np.sqrt(psf_noise_area(got.psf, got.scene.image.shape))
    bright = np.flatnonzero(got.scene.flux > 12 * noise)
    found = set(got.index[got.matched])
    lonely = cKDTree(got.scene.galaxies).query(np.stack([got.scene.x, got.scene.y], -1))[0] > 8 * fwhm
    assert np.mean([k in found for k in bright if lonely[k]]) == 1.0
    near_galaxy = cKDTree(got.scene.galaxies).query(np.stack([got.table["x"], got.table["y"]], -1))[0] < 4 * fwhm
    assert (got.far & ~near_galaxy).sum() <= 4


def test_fwhm_is_the_rendered_profiles(field):
    got, fwhm = field
    # the pixel adds its own width to the true profile
    assert got.psf.fwhm_pixels == pytest.approx(np.hypot(fwhm, 0.9), rel=0.03)
    assert got.psf.chi2 == pytest.approx(1.0, abs=0.15)
    assert got.psf.n_stars == got.table["psf_star"].sum() >= 20


def test_psf_fluxes_are_unbiased_with_honest_errors(field):
    got, _ = field
    ratio = got.table["flux_psf"] / got.scene.flux[got.index]
    bright, faint = (got.clean & (got.snr > 100)), (got.clean & (got.snr > 10) & (got.snr < 60))
    assert np.median(ratio[bright]) == pytest.approx(1.0, abs=0.012)
    error = np.median(got.table["flux_psf_err"][faint] / got.scene.flux[got.index][faint]) / np.sqrt(faint.sum())
    assert np.median(ratio[faint]) == pytest.approx(1.0, abs=0.012 + 3 * error)
    pull = (ratio - np.median(ratio[bright])) * got.scene.flux[got.index] / got.table["flux_psf_err"]
    assert 0.7 < 1.4826 * np.median(np.abs(pull[faint])) < 1.4


def test_centroids_are_at_the_noise(field):
    got, fwhm = field
    t, bright = got.table, got.clean & (got.snr > 50)
    dx, dy = t["x"] - got.scene.x[got.index], t["y"] - got.scene.y[got.index]
    assert abs(dx[bright].mean()) < 0.01
    assert abs(dy[bright].mean()) < 0.01
    limit = 1.6 * np.median(fwhm / 2.0 / got.snr[bright])
    assert np.median(np.hypot(dx, dy)[bright]) < limit
    assert 0.6 < 1.4826 * np.median(np.abs(dx[got.clean] / t["x_err"][got.clean])) < 1.5


def test_apertures_grow_to_all_the_light(field):
    got, fwhm = field
    radii = np.array(got.sources.aper_radii)
    np.testing.assert_allclose(radii, np.array([1, 2, 3, 5]) * got.psf.fwhm_pixels)
    bright = got.clean & (got.snr > 150)
    curve = np.median(got.table["flux_apertures"][bright] / got.scene.flux[got.index][bright, None], axis=0)
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / 3.5) - 1))
    truth = 1 - (1 + (radii / alpha) ** 2) ** (1 - 3.5)
    np.testing.assert_allclose(curve[1:], truth[1:], atol=0.02)


def test_galaxies_are_not_stars(field):
    got, _ = field
    galaxy = cKDTree(got.scene.galaxies).query(np.stack([got.table["x"], got.table["y"]], -1))[0] < 1.5
    assert galaxy.sum() >= 5
    assert not got.table["psf_star"][galaxy & ~got.matched].any()
    assert got.table["is_star"][galaxy & ~got.matched].mean() < 0.2
    stars = got.matched & (got.table["pixel_flags"] == 0) & (got.snr > 30) & (got.table["flags"] == 0) & ~galaxy
    assert got.table["is_star"][stars].mean() > 0.9


def test_order_and_repeatability(field):
    got, _ = field
    t = got.table
    assert (np.lexsort((t["x"], t["y"])) == np.arange(len(t))).all()
    assert np.isnan(t["ra"]).all()
    again, psf = Detector().extract(got.scene.image, Backgrounder().run(got.scene.image))
    assert again.table.tobytes() == t.tobytes()
    assert psf.basis.tobytes() == got.psf.basis.tobytes()


def test_saturated_stars_are_one_flagged_source():
    # the peak of this star is about three times saturation
    scene = make_scene(shape=(300, 300), n_stars=40, n_galaxies=0, seed=3, saturation=4000.0)
    scene = make_scene(shape=(300, 300), positions=(np.r_[scene.x[:30], 150.3], np.r_[scene.y[:30], 150.8]),
                       flux=np.r_[np.linspace(1000, 30000, 30), 200000.0], n_galaxies=0, seed=3, saturation=4000.0)
    got = Extracted(scene)
    near = np.hypot(got.table["x"] - 150.3, got.table["y"] - 150.8) < 4
    assert near.sum() == 1
    assert got.table["pixel_flags"][near][0] & PixelFlag.SATURATED
    assert got.table["flags"][near][0] & 4
    assert not got.table["psf_star"][near][0]
    assert not got.table["is_star"][near][0]


def test_bad_columns_make_no_sources():
    scene = make_scene(shape=(256, 256), n_stars=40, n_galaxies=0, seed=4)
    scene.image.data[:, 100:102] = 30000
    scene.image.flags[:, 100:102] |= np.uint16(PixelFlag.BAD_PIXEL)
    scene.image.weight[:, 100:102] = 0
    got = Extracted(scene)
    assert (~got.matched & (np.abs(got.table["x"] - 100.5) < 6)).sum() <= 1


def test_spatial_variation_of_the_psf_is_followed():
    rng = np.random.default_rng(2)
    gy, gx = np.mgrid[25:500:34, 25:500:34]
    x, y = gx.ravel() + rng.uniform(-2, 2, gx.size), gy.ravel() + rng.uniform(-2, 2, gx.size)
    left = x < 256
    scene = make_scene(positions=(x[left], y[left]), n_galaxies=0, fwhm=3.0, seed=1, flux_range=(3000, 30000))
    right = make_scene(positions=(x[~left], y[~left]), n_galaxies=0, fwhm=3.4, seed=2, flux_range=(3000, 30000))
    for name in ("data", "weight"):
        getattr(scene.image, name)[:, 256:] = getattr(right.image, name)[:, 256:]
    _, psf = Detector().extract(scene.image, Backgrounder().run(scene.image))
    from seechange_mpi.gpu_kernels.psf_model import fwhm_of, render
    widths = [fwhm_of(s) for s in render(psf, np.array([60.0, 450.0]), np.array([256.0, 256.0]), phase=False)]
    assert 0.15 < widths[1] - widths[0] < 0.6


def test_empty_sky_is_an_algorithm_error_with_figures():
    scene = make_scene(shape=(200, 200), n_stars=0, n_galaxies=0, seed=1)
    with pytest.raises(AlgorithmError, match="too few sources") as err:
        Detector().extract(scene.image, Backgrounder().run(scene.image))
    assert err.value.step == "extraction"
    assert err.value.metrics["required"] == 5


def test_only_galaxies_give_no_psf():
    scene = make_scene(shape=(400, 400), n_stars=2, n_galaxies=25, seed=8)
    with pytest.raises(AlgorithmError, match="too few stars"):
        Detector(min_psf_stars=20).extract(scene.image, Backgrounder().run(scene.image))


def test_constant_image_has_no_background_noise():
    scene = make_scene(shape=(128, 128), n_stars=0, n_galaxies=0)
    scene.image.data[:] = 7.0
    with pytest.raises(AlgorithmError, match="rms of the sky"):
        Backgrounder().run(scene.image)
    scene.image.flags[:] = 1
    with pytest.raises(AlgorithmError, match="every pixel is flagged"):
        Backgrounder().run(scene.image)


def test_detectors_for_images_and_differences_are_kept_apart():
    assert Detector(subtraction=True).pars.threshold == 5.0
    scene = make_scene(shape=(64, 64), n_stars=0, n_galaxies=0)
    with pytest.raises(ConfigError, match="difference images"):
        Detector(subtraction=True).extract(scene.image, None)
    with pytest.raises(ConfigError, match="subtraction=True"):
        Detector().detect(None, 3.0, "")
    with pytest.raises(ConfigError, match="no such parameter"):
        Detector(thresold=3)


def test_isolation():
    x, y, flux = np.array([0.0, 3.0, 50.0]), np.zeros(3), np.array([100.0, 1.0, 5.0])
    assert isolated(x, y, flux, 10.0).tolist() == [True, False, True]


def test_locus_among_galaxies_and_cosmic_rays():
    rng = np.random.default_rng(1)
    radius = np.r_[rng.normal(1.9, 0.03, 12), rng.uniform(2.2, 8, 150), rng.normal(0.6, 0.05, 80)]
    zero = np.zeros(len(radius))
    locus = find_stellar_locus(radius, np.full(len(radius), 100.0), np.ones(len(radius), bool), zero, zero)
    assert locus.radius == pytest.approx(1.9, rel=0.04)
