"""What a zero point is made of: robust fits, curves of growth, depth, maps, colour slopes; each against its truth."""

import numpy as np
import pytest
from scene import GAIN, READ_NOISE, SKY, make_scene, moffat
from test_photocal import CAMERA, HEADER, ZP, grid

from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.products import PSF, Background, Image, SourceList, ZeroPoint
from seechange_mpi.model.tables import SOURCES, empty_table
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.depth import measure_depth
from seechange_mpi.pipeline.extraction import Detector, psf_noise_area
from seechange_mpi.pipeline.growth import growth_curve
from seechange_mpi.pipeline.photocal import PhotCalibrator, aperture_corrections
from seechange_mpi.pipeline.star_fit import fit_stars, map_design
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky


def test_fit_with_one_sided_outliers():
    """One star in six is off by 0.2 to 1 mag, all to one side: no bias, and errors that hold."""
    rng = np.random.default_rng(2)
    pulls, slopes = [], []
    for _ in range(200):
        sigma = rng.uniform(0.005, 0.05, 120)
        u = rng.uniform(-1, 1, 120)
        values = 25 + 0.03 * u + rng.normal(0, np.hypot(sigma, 0.02))
        values[:20] += rng.uniform(0.2, 1.0, 20)
        fit = fit_stars(np.stack([np.ones(120), u], axis=-1), values, sigma**2, 0.005)
        error = np.sqrt(np.diag(fit.covariance))
        pulls.append((fit.coefficients[0] - 25) / error[0])
        slopes.append((fit.coefficients[1] - 0.03) / error[1])
        assert 0.1 < fit.outlier_fraction < 0.3
    for pull in (pulls, slopes):
        assert np.std(pull) == pytest.approx(1.0, abs=0.15)
        assert abs(np.mean(pull)) < 0.3


def test_a_fit_of_nothing_is_nan():
    fit = fit_stars(np.ones((3, 1)), np.full(3, np.nan), np.ones(3), 0.01)
    assert np.isnan(fit.coefficients).all()
    assert not fit.used.any()


def test_terms_of_a_map_have_no_mean():
    y, x = np.mgrid[:101, :51]
    design = map_design(x.ravel(), y.ravel(), (101, 51), 5)
    np.testing.assert_allclose(design.mean(axis=0), 0, atol=0.03)
    zp = ZeroPoint(25.0, 0.01, "catalog", map=(0.01, -0.02, 0.003, 0.004, 0.005), map_shape=(101, 51))
    np.testing.assert_allclose(zp.at(x, y).ravel(), 25.0 + design @ zp.map, atol=1e-12)
    assert float(ZeroPoint(25.0, 0.01, "catalog").at(3.0, 4.0)) == 25.0


def star_field(beta, missing, background, neighbours, seed=3):
    """60 stars on a grid with faint neighbours, their PSF fluxes short by `missing`, the background off."""
    rng = np.random.default_rng(seed)
    n, fwhm = 800, 4.0
    gx, gy = (g.ravel() for g in np.meshgrid(np.arange(60, 760, 90.0), np.arange(60, 760, 90.0)))
    x, y = gx + rng.uniform(-3, 3, 64), gy + rng.uniform(-3, 3, 64)
    flux = 10 ** rng.uniform(4.3, 5.5, 64)
    angle, distance = rng.uniform(0, 6.3, 64 * neighbours), rng.uniform(11, 40, 64 * neighbours)
    x2 = np.repeat(x, neighbours) + distance * np.cos(angle)
    y2 = np.repeat(y, neighbours) + distance * np.sin(angle)
    f2 = np.repeat(flux, neighbours) * 0.03
    everything = [np.concatenate(v) for v in ((x, x2), (y, y2), (flux, f2))]
    data = rng.normal(background, 5.0, (n, n))
    for a, b, f in zip(*everything, strict=True):
        c, r, h = int(a), int(b), 55 if f > 1e4 else 25
        rows, cols = slice(max(r - h, 0), r + h + 1), slice(max(c - h, 0), c + h + 1)
        yy, xx = np.mgrid[:n, :n][:, rows, cols]
        data[rows, cols] += f * moffat(xx, yy, a, b, fwhm, beta=beta)
    table = empty_table(SOURCES, len(everything[0]))
    table["x"], table["y"] = everything[:2]
    table["flux_psf"], table["flux_psf_err"] = everything[2] * (1 - missing), 30.0
    table["flux_apertures"] = table["flux_psf"][:, None]
    stars = np.arange(len(table)) < 64
    table["is_star"] = stars
    return data.astype(np.float32), table, stars, fwhm


@pytest.fixture(scope="module")
def crowded():
    return star_field(3.5, 0.0, 0.0, 3)


@pytest.mark.parametrize(("beta", "missing", "background", "neighbours"), [
    (2.5, 0.02, 0.5, 0), (3.5, 0.006, -0.5, 3)])
def test_growth_finds_the_light_that_psf_fluxes_miss(beta, missing, background, neighbours):
    """A wrong background and neighbours of 3 % do not matter; the wings are to within 3 mmag."""
    data, table, stars, fwhm = star_field(beta, missing, background, neighbours)
    growth = growth_curve(data, np.zeros(data.shape, bool), 5.0, 100.0, table, stars, fwhm)
    assert growth.total == pytest.approx(1 / (1 - missing), abs=0.003)
    assert growth.total_error < 0.003
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    for radius in (8.0, 12.0, 20.0):
        light, error = growth.within(radius)
        truth = (1 - (1 + radius**2 / alpha**2) ** (1 - beta)) / (1 - missing)
        # the pixel widens the profile a little
        assert light == pytest.approx(truth, abs=0.004)
        assert error < 0.003
    assert np.isnan(growth.within(2.0)[0])


def test_growth_needs_stars():
    data, table, stars, fwhm = star_field(3.5, 0.0, 0.0, 0)
    stars[5:] = False
    assert growth_curve(data, np.zeros(data.shape, bool), 5.0, 100.0, table, stars, fwhm) is None
    table["flux_apertures"] = table["flux_psf"][:, None] * [0.5, 0.9, 0.98, 1.0]
    table["flux_apertures_err"] = 30.0
    got = aperture_corrections(table, np.ones(len(table), bool), (2.0, 6.0, 12.0, 20.0), None)
    np.testing.assert_allclose(got, 2.5 * np.log10([0.5, 0.9, 0.98, 1.0]), atol=1e-3)


def test_wide_apertures_of_crowded_stars(crowded):
    """Neighbours put 9 % more light into the widest aperture; its correction is not theirs."""
    data, table, stars, fwhm = crowded
    growth = growth_curve(data, np.zeros(data.shape, bool), 5.0, 100.0, table, stars, fwhm)
    table["flux_apertures"] = table["flux_psf"][:, None] * [0.5, 0.9, 0.98, 1.08]
    table["flux_apertures_err"] = 30.0
    got = aperture_corrections(table, stars, (2.0, 8.0, 12.0, 20.0), growth)
    assert got[0] == pytest.approx(2.5 * np.log10(0.5), abs=1e-3)
    assert got[3] == pytest.approx(0.0, abs=0.003)


def flat_image(shape=(400, 300), noise=10.0, seed=1):
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.5, 1.5, shape[0])[:, None] * noise
    data = (100 + rng.normal(0, 1, shape) * scale).astype(np.float32)
    weight = np.broadcast_to(1 / scale**2, shape).astype(np.float32)
    image = Image(data, weight, np.zeros(shape, np.uint16), 4.0, 5.0, 6e4, "S1", "r", 6e4, 30.0)
    mesh = np.linspace(0.5, 1.5, 9)[:, None].repeat(7, axis=1).astype(np.float32)
    return image, Background(np.full((9, 7), 100, np.float32), noise * mesh, 45, shape, 100.0, noise)


def constant_psf(sigma=1.7):
    u = np.arange(-10, 11)
    stamp = np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / sigma**2)
    return PSF((stamp / stamp.sum())[None].astype(np.float32), 0, 150.0, 200.0, 150.0, 200.0, 2.355 * sigma, 30, 1.0)


def no_sources(n=0):
    return SourceList(empty_table(SOURCES, n), (1.0, 2.0, 3.0, 4.0))


def test_depth_is_the_median_over_the_section():
    """4.79 sigma: with a free position such a source is measured at 5 sigma on average."""
    image, background = flat_image()
    psf = constant_psf()
    expected = 10.0 * np.sqrt(psf_noise_area(psf, image.shape))
    depth = measure_depth(image, background, psf, no_sources())
    assert depth.noise == pytest.approx(expected, rel=0.03)
    assert depth.flux == pytest.approx(4.79 * depth.noise, rel=0.002)
    assert depth.blocked == 0
    assert depth.good_fraction > 0.9
    image.flags[:200] = 1
    masked = measure_depth(image, background, psf, no_sources())
    assert masked.noise == pytest.approx(1.25 * expected, rel=0.04)
    assert masked.good_fraction == pytest.approx(0.47, abs=0.04)
    image.flags[:] = 1
    assert np.isnan(measure_depth(image, background, psf, no_sources()).flux)


def test_sources_that_block_the_view():
    """40 bright stars take discs of known size; the limit is brighter by what remains."""
    from scipy.stats import norm

    image, background = flat_image()
    rng = np.random.default_rng(4)
    sources = no_sources(40)
    sources.table["x"], sources.table["y"] = rng.uniform(0, 300, 40), rng.uniform(0, 400, 40)
    sources.table["flux_psf"] = 1e4
    depth = measure_depth(image, background, constant_psf(), sources)
    # where a twentieth of a Moffat profile is as bright as the source's top
    light = depth.flux / (0.05 * 1e4)
    radius = 4.0 * max(0.8, np.sqrt((light ** (-1 / 3) - 1) / (2 ** (1 / 3) - 1)) / 2)
    assert depth.blocked == pytest.approx(1 - np.exp(-40 * np.pi * radius**2 / 120_000), abs=0.05)
    sigma = depth.flux / depth.noise
    assert (1 - depth.blocked) * norm.cdf(sigma + 1 / sigma - 5) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_limiting_magnitude_is_half_completeness():
    """1,800 stars about the limit at random places: half of those of the limiting magnitude are detected at 5 sigma."""
    from scipy.optimize import curve_fit
    from scipy.spatial import cKDTree
    from scipy.special import erf

    noise = np.sqrt(SKY / GAIN + (READ_NOISE / GAIN) ** 2)
    mags, found, limits = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        n = 360
        x, y = rng.uniform(15, 753, (2, n))
        flux = 5 * noise * 5.5 * 10 ** (0.4 * rng.uniform(-1.2, 1.0, n))
        flux[:60] = 10 ** rng.uniform(3.7, 4.5, 60)
        scene = make_scene(shape=(768, 768), positions=(x, y), flux=flux, n_galaxies=0, fwhm=3.5, seed=seed,
                           header_wcs=HEADER)
        background = Backgrounder().run(scene.image)
        sources, psf = Detector().extract(scene.image, background)
        wcs, sources = AstroCalibrator(method="header").run(scene.image, sources, None)
        zp = PhotCalibrator(method="relative").run(scene.image, background, psf, sources, wcs, None, CAMERA, None)
        t = sources.table[sources.table["flux_psf"] > 5 * sources.table["flux_psf_err"]]
        near = cKDTree(np.stack([t["x"], t["y"]], axis=-1)).query(np.stack([x, y], axis=-1))[0] < 2.0
        mags.append(25 - 2.5 * np.log10(flux[60:]))
        found.append(near[60:])
        limits.append(zp.lim_mag)
    mag, hit = np.concatenate(mags), np.concatenate(found).astype(float)

    def curve(m, m50, width, top):
        return 0.5 * top * (1 - erf((m - m50) / width))

    fitted, _ = curve_fit(curve, mag, hit, p0=(np.mean(limits), 0.3, 1.0))
    line = np.linspace(mag.min(), mag.max(), 2001)
    half = np.interp(-0.5, -curve(line, *fitted), line)
    assert len(mag) >= 1800
    assert np.mean(limits) == pytest.approx(half, abs=0.05)


@pytest.fixture(scope="module")
def field():
    scene = make_scene(positions=grid(), n_galaxies=8, header_wcs=HEADER, fwhm=3.2, seed=5)
    background = Backgrounder().run(scene.image)
    sources, psf = Detector().extract(scene.image, background)
    wcs, sources = AstroCalibrator(method="header").run(scene.image, sources, None)
    return scene, (scene.image, background, psf, sources, wcs)


def make_catalog(scene, slope=0.0, noise=0.003, errors=None):
    rng = np.random.default_rng(1)
    colour = rng.uniform(0.6, 2.9, len(scene.x))
    rule = CAMERA.photometry["r"]
    r = ZP - 2.5 * np.log10(scene.flux)
    g = r - sum(c * colour**i for i, c in enumerate(rule.terms)) - slope * (colour - 1.75)
    ra, dec = pixel_to_sky(HEADER, scene.x, scene.y)
    zero = np.zeros(len(ra))
    mags = {"g": g + rng.normal(0, noise, len(g)), "bp": 18 + colour, "rp": zero + 18} | (errors or {})
    return CatalogTable(ra, dec, zero, zero, mags, zero + 2016.0, "gaia.fits", len(ra), (150.0, 2.0), 0.1)


def test_colour_slope_is_told_and_not_applied(field):
    scene, products = field
    plain = PhotCalibrator().run(*products, make_catalog(scene), CAMERA, None)
    tilted = PhotCalibrator().run(*products, make_catalog(scene, slope=0.03), CAMERA, None)
    assert abs(plain.colour_slope) < 4 * plain.colour_slope_err
    # the catalogue is brighter by the slope: so are the zero points of red stars
    assert tilted.colour_slope == pytest.approx(-0.03, abs=4 * tilted.colour_slope_err)
    assert 0.0005 < tilted.colour_slope_err < 0.005
    assert tilted.zp == pytest.approx(plain.zp, abs=0.006)
    assert 1.5 < tilted.colour_ref < 2.0


def test_stated_errors_of_the_catalogue_weigh(field):
    """Half of the stars are off by 0.08 mag and say so: they do not pull the zero point."""
    scene, products = field
    catalog = make_catalog(scene)
    before = PhotCalibrator().run(*products, catalog, CAMERA, None)
    catalog.mags["g"][::2] += 0.08
    catalog.mags["g_err"] = np.where(np.arange(len(catalog)) % 2 == 0, 0.3, 0.002)
    after = PhotCalibrator().run(*products, catalog, CAMERA, None)
    assert after.zp == pytest.approx(before.zp, abs=0.003)
    catalog.mags["g_snr"] = 1.0857 / catalog.mags.pop("g_err")
    assert PhotCalibrator().run(*products, catalog, CAMERA, None).zp == pytest.approx(after.zp, abs=1e-4)


@pytest.mark.parametrize("tilt", [0.0, 0.06])
def test_map_of_a_tilted_flat(field, tilt):
    """Fluxes that change by 6 % across the section are followed; where nothing changes there is no map."""
    scene, (image, background, psf, sources, wcs) = field
    table = sources.table.copy()
    x = (table["x"] - 255.5) / 255.5
    table["flux_psf"] *= 1 + 0.5 * tilt * x
    tilted = SourceList(table, sources.aper_radii)
    zp = PhotCalibrator().run(image, background, psf, tilted, wcs, make_catalog(scene), CAMERA, None)
    one = PhotCalibrator(max_map_degree=0).run(image, background, psf, tilted, wcs, make_catalog(scene), CAMERA, None)
    assert one.map == ()
    if not tilt:
        assert zp.map == ()
        return
    y, xx = np.mgrid[0:512:32, 0:512:32]
    truth = ZP + 2.5 * np.log10(1 + 0.5 * tilt * (xx - 255.5) / 255.5)
    error = zp.at(xx, y) - truth
    assert np.sqrt((error**2).mean()) < 0.006
    assert np.sqrt(((one.at(xx, y) - truth) ** 2).mean()) > 0.015
    assert 0.0005 < zp.map_err < 0.006


def test_zero_point_comes_back_from_a_file(tmp_path):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "db"))
    from made_bundles import exposure, image_products

    from seechange_mpi.io.shard import read_shard, write_shard
    from seechange_mpi.model.task import SectionReport

    p = image_products(150.0, 2.0)
    p.zp = ZeroPoint(27.0, 0.01, "catalog", 30, 0.02, -0.3, (2.0,), (0.1,), 21.0, 0.01, 0.002, 1.3, 0.05, (0.01, 0.02),
                     0.001, (100, 100), 0.006, 0.001, 1.2, 4, 8)
    path = write_shard(tmp_path, exposure(), "S1", p, SectionReport(True), {}, {}, (100, 100))
    assert read_shard(path).products.zp == p.zp
