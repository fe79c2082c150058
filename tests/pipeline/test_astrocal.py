"""Astrometric calibration against known plates, and against SCAMP on real data."""

import numpy as np
import pytest

from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import Image, SourceList
from seechange_mpi.model.tables import SOURCES, empty_table
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.matching import match_pairs
from seechange_mpi.pipeline.wcs_tools import (
    deproject,
    footprint_cone,
    has_distortion,
    load_wcs,
    pixel_scale_arcsec,
    pixel_to_sky,
    project,
    separation_deg,
    sip_header,
    sky_to_pixel,
)

MJD, EPOCH_YEARS = 60000.0, 2000.0 + (60000.0 - 51544.5) / 365.25 - 2016.0


def plate(ra, dec, shape, scale=0.6, rotation=0.0, distortion=0.0):
    """Header text; `distortion` is in pixels at the edge."""
    s, c, n = scale / 3600, np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    cd = np.array([[-s * c, s * n], [s * n, s * c]])
    centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    if not distortion:
        return sip_header(centre, (ra, dec), cd, {}, {}, {}, {})
    half = max(shape) / 2
    q, k = 0.3 * distortion / half**2, 0.7 * distortion / half**3
    a = {(2, 0): q, (1, 1): -q / 2, (0, 2): q / 3, (3, 0): k, (1, 2): k}
    b = {(2, 0): -q / 3, (0, 2): q, (1, 1): q / 2, (0, 3): k, (2, 1): k}
    return sip_header(centre, (ra, dec), cd, a, b, {(0, 0): 0.0}, {(0, 0): 0.0})


class Field:
    """Stars seen through a true plate, a catalogue of them at its own epoch, and a wrong header."""

    def __init__(self, shape=(1024, 1024), scale=0.6, n=250, spurious=80, extra=200, ra=359.98, dec=10.0, seed=0,
                 noise_pix=0.05, distortion=1.0, shift=(0.0, 0.0), rotation=0.0):
        rng = np.random.default_rng(seed)
        ny, nx = self.shape = shape
        self.truth = plate(ra, dec, shape, scale, distortion=distortion)
        x, y = rng.uniform(5, nx - 6, n), rng.uniform(5, ny - 6, n)
        sky_ra, sky_dec = pixel_to_sky(self.truth, x, y)
        mag = rng.uniform(14, 20, n)
        pm = rng.normal(0, 15, (n, 2)) + np.array([0.0, -8.0])
        back = CatalogTable(sky_ra, sky_dec, -pm[:, 0], -pm[:, 1], {}, np.full(n, 2016.0)).positions_at(MJD)
        cone = footprint_cone(self.truth, shape)
        xi, eta = rng.uniform(-cone[2], cone[2], (2, extra))
        more = deproject(xi, eta, ra, dec)
        zero = np.zeros(extra)
        self.catalog = CatalogTable(
            np.r_[back[0], more[0]], np.r_[back[1], more[1]], np.r_[pm[:, 0], zero], np.r_[pm[:, 1], zero],
            {"g": np.r_[mag, rng.uniform(14, 20, extra)]}, np.full(n + extra, 2016.0), "catalogue.fits", n + extra,
            cone[:2], cone[2])
        t = empty_table(SOURCES, n + spurious)
        t["x"] = np.r_[x + rng.normal(0, noise_pix, n), rng.uniform(0, nx, spurious)]
        t["y"] = np.r_[y + rng.normal(0, noise_pix, n), rng.uniform(0, ny, spurious)]
        t["x_err"] = t["y_err"] = noise_pix
        t["flux_psf"] = 10 ** (-0.4 * (np.r_[mag, rng.uniform(14, 20, spurious)] - 25))
        t["flux_psf_err"] = t["flux_psf"] / 50
        t["is_star"] = True
        self.sources = SourceList(t, (1.0, 2.0, 3.0, 5.0))
        moved = deproject(shift[0] / 3600, shift[1] / 3600, ra, dec)
        header = plate(float(moved[0]), float(moved[1]), shape, scale, rotation)
        zeros = np.broadcast_to(np.float32(0), shape)
        self.image = Image(zeros, zeros, np.broadcast_to(np.uint16(0), shape), 2.0, 5.0, 6e4, "S1", "r", MJD, 30.0,
                           header)

    def solve(self, **pars):
        return AstroCalibrator(**pars).run(self.image, self.sources, self.catalog)

    def error_mas(self, header):
        """Per-axis rms and largest error of a solution over the whole section."""
        ny, nx = self.shape
        gx, gy = np.meshgrid(np.linspace(0, nx - 1, 21), np.linspace(0, ny - 1, 21))
        sep = separation_deg(*pixel_to_sky(header, gx, gy), *pixel_to_sky(self.truth, gx, gy)) * 3.6e6
        return float(np.sqrt(np.mean(sep**2) / 2)), float(sep.max())


@pytest.mark.parametrize("wrong", [
    {}, {"shift": (25.0, -30.0)}, {"shift": (-20.0, 25.0), "rotation": 1.0}, {"rotation": -1.2, "distortion": 0.0},
    {"dec": 89.9, "shift": (10.0, 20.0)}, {"dec": -45.0, "ra": 0.01, "shift": (15.0, 0.0)},
])
def test_solution_is_true_to_a_few_mas(wrong):
    field = Field(**wrong)
    wcs, sources = field.solve()
    rms, worst = field.error_mas(wcs.header)
    assert rms < 10
    assert worst < 60
    assert wcs.method == "catalog"
    assert wcs.n_matched > 220
    assert wcs.rms_mas == pytest.approx(30.0, rel=0.25)
    ra, dec = pixel_to_sky(field.truth, sources.table["x"], sources.table["y"])
    assert np.max(separation_deg(sources.table["ra"], sources.table["dec"], ra, dec)) * 3.6e6 < 100
    assert (field.sources.table["ra"] == 0).all(), "the input is not changed"


def test_proper_motion_is_applied():
    field = Field(distortion=0.0)
    good = field.error_mas(field.solve()[0].header)[0]
    field.catalog.pmra[:], field.catalog.pmdec[:] = 0.0, 0.0
    bad = field.error_mas(field.solve()[0].header)[0]
    assert good < 6
    # the mean motion of the stars, 8 mas/yr, shifts the whole solution
    assert bad == pytest.approx(8 * EPOCH_YEARS / np.sqrt(2), rel=0.3)


def test_ls4_sized_section_with_strong_distortion():
    field = Field(shape=(4096, 2048), scale=1.0, n=1500, spurious=500, extra=1500, distortion=4.0, shift=(20.0, 30.0),
                  rotation=0.8)
    rms, worst = field.error_mas(field.solve()[0].header)
    assert rms < 12
    assert worst < 90


def test_few_stars_stay_linear():
    field = Field(n=25, spurious=20, extra=10, distortion=0.05, noise_pix=0.02)
    wcs, _ = field.solve()
    assert field.error_mas(wcs.header)[1] < 120


def test_header_distortion_is_kept_when_it_is_good():
    field = Field(n=40, spurious=20, extra=20, distortion=8.0, noise_pix=0.02)
    field.image.header_wcs = field.truth
    assert has_distortion(field.truth)
    rms, worst = field.error_mas(field.solve()[0].header)
    assert rms < 6
    assert worst < 30


def test_written_header_inverts_and_is_read_by_astropy():
    from astropy.io import fits
    from astropy.wcs import WCS

    field = Field(distortion=2.0)
    text = field.solve()[0].header
    assert len(text) % 80 == 0
    w = WCS(fits.Header.fromstring(text))
    x, y = np.array([0.0, 500.0, 1023.0]), np.array([10.0, 700.0, 1023.0])
    ra, dec = w.all_pix2world(x, y, 0)
    bx, by = sky_to_pixel(text, ra, dec)
    np.testing.assert_allclose(bx, x, atol=1e-4)
    np.testing.assert_allclose(by, y, atol=1e-4)
    fx, fy = w.sip_foc2pix(*w.sip_pix2foc(x, y, 0), 0)
    np.testing.assert_allclose(np.hypot(fx - x, fy - y), 0, atol=0.05)


def test_outliers_do_not_move_the_solution():
    field = Field(distortion=0.0)
    field.sources.table["x"][:30] += 1.0
    assert field.error_mas(field.solve()[0].header)[0] < 8


def test_repeatable():
    assert Field().solve()[0].header == Field().solve()[0].header


def test_refusals_tell_the_figures():
    with pytest.raises(AlgorithmError, match=r"no catalogue: .*catalog\.path"):
        AstroCalibrator().run(Field().image, Field().sources, None)
    far = Field()
    far.catalog = CatalogTable(*(np.zeros(0) for _ in range(4)), {}, np.zeros(0), "elsewhere.fits", 5000, (10.0, 5.0),
                               0.2)
    with pytest.raises(AlgorithmError, match="does not cover") as err:
        far.solve()
    assert err.value.metrics["catalogue_rows_in_cone"] == 0
    assert err.value.metrics["rows_in_file"] == 5000
    assert err.value.metrics["catalogue"] == "elsewhere.fits"
    with pytest.raises(AlgorithmError) as err:
        Field(n=3, spurious=150, extra=300).solve()
    assert err.value.step == "astrocal"
    noisy = Field(noise_pix=0.6)
    with pytest.raises(AlgorithmError, match="does not fit") as err:
        noisy.solve()
    assert err.value.metrics["rms_arcsec"] > 0.15
    noisy.image.header_wcs = ""
    with pytest.raises(AlgorithmError, match="no WCS"):
        noisy.solve()


@pytest.mark.parametrize("seed", range(6))
def test_no_false_solution_from_unrelated_lists(seed):
    field = Field(seed=seed, n=3, spurious=400, extra=600)
    with pytest.raises(AlgorithmError):
        field.solve(min_frac_matched=0.0)


def test_header_method_takes_the_files_own_and_tells_its_error():
    field = Field(shift=(0.5, 0.0), distortion=0.0)
    wcs, sources = field.solve(method="header")
    assert wcs.header == field.image.header_wcs
    assert wcs.method == "header"
    assert wcs.rms_mas == pytest.approx(500 / np.sqrt(2), rel=0.1)
    assert np.isfinite(sources.table["ra"]).all()
    alone, _ = AstroCalibrator(method="header").run(field.image, field.sources, None)
    assert alone.n_matched == 0
    assert np.isnan(alone.rms_mas)


def test_projection_round_trip_and_pole():
    rng = np.random.default_rng(0)
    for dec0 in (-90.0, -30.0, 0.0, 89.99):
        xi, eta = rng.uniform(-1, 1, (2, 50))
        ra, dec = deproject(xi, eta, 359.9, dec0)
        bx, be = project(ra, dec, 359.9, dec0)
        np.testing.assert_allclose(bx, xi, atol=1e-10)
        np.testing.assert_allclose(be, eta, atol=1e-10)
    assert np.isnan(project(180.0, 0.0, 0.0, 0.0)[0])


def test_cone_covers_the_corners():
    text = plate(0.05, 60.0, (400, 800), rotation=30.0)
    ra, dec, radius = footprint_cone(text, (400, 800), 10.0)
    corners = pixel_to_sky(text, np.array([-0.5, 799.5, -0.5, 799.5]), np.array([-0.5, -0.5, 399.5, 399.5]))
    assert (separation_deg(*corners, ra, dec) < radius).all()
    assert radius == pytest.approx((np.hypot(400, 200) * 0.6 + 10) / 3600, rel=1e-3)
    assert pixel_scale_arcsec(text) == pytest.approx(0.6)


def test_sky_positions_behind_the_camera_are_nan():
    x, y = sky_to_pixel(plate(10.0, 0.0, (100, 100)), np.array([10.0, 190.0]), np.array([0.0, 0.0]))
    assert x[0] == pytest.approx(49.5)
    assert np.isnan(x[1])
    assert np.isnan(y[1])
    with pytest.raises(AlgorithmError, match="celestial"):
        load_wcs("SIMPLE  =                    T".ljust(80))


@pytest.mark.realdata
def test_lco_field_matches_gaia(realdata):
    """SCAMP finds 117 stars on this field; its faint half scatters by more than the default limit."""
    import warnings

    from astropy.io import fits

    folder = realdata / "catalogs" / "lco_kb76"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(folder / "sextractor_ldac.fits") as hdus:
            cards = fits.Header.fromstring("".join(str(v).ljust(80) for v in hdus[1].data[0][0]))
            s = hdus[2].data
            t = empty_table(SOURCES, len(s))
            t["x"], t["y"] = s["XWIN_IMAGE"] - 1, s["YWIN_IMAGE"] - 1
            t["x_err"], t["y_err"] = np.sqrt(s["ERRX2WIN_IMAGE"]), np.sqrt(s["ERRY2WIN_IMAGE"])
            t["flux_psf"], t["flux_psf_err"] = s["FLUX_AUTO"], s["FLUXERR_AUTO"]
            t["is_star"], t["flags"] = s["CLASS_STAR"] > 0.5, s["FLAGS"]
        with fits.open(folder / "GAIA-DR2.cat") as hdus:
            g = hdus[2].data
            zero = np.zeros(len(g))
            catalog = CatalogTable(g["XWIN_WORLD"].astype(float), g["YWIN_WORLD"].astype(float), zero, zero,
                                   {"g": g["MAG"].astype(float)}, g["OBSDATE"].astype(float), "GAIA-DR2.cat", len(g))
    shape = (int(cards["NAXIS2"]), int(cards["NAXIS1"]))
    wanted = ("CTYPE", "CRVAL", "CRPIX", "CD1_", "CD2_", "CUNIT", "PC1_", "PC2_", "CDELT", "RADESYS", "RADECSYS")
    header = fits.Header([c for c in cards.cards if c.keyword.startswith(wanted)]).tostring(padding=False)
    zeros = np.broadcast_to(np.float32(0), shape)
    image = Image(zeros, zeros, np.broadcast_to(np.uint16(0), shape), 1.0, 5.0, 6e4, "1", "w",
                  float(cards.get("MJD-OBS", 58000.0)), 30.0, header)
    wcs, _ = AstroCalibrator(max_arcsec_residual=0.3).run(image, SourceList(t, (1.0, 2.0, 3.0, 5.0)), catalog)
    x, y = sky_to_pixel(wcs.header, catalog.ra, catalog.dec)
    first, second = np.stack([t["x"], t["y"]], -1).astype(float), np.stack([x, y], -1)
    scale = pixel_scale_arcsec(wcs.header)
    assert len(match_pairs(first, second, 0.6 / scale)[0]) >= 108
    assert wcs.n_matched >= 105
    assert wcs.rms_mas < 200


@pytest.mark.realdata
def test_scamp_headers_are_understood(realdata):
    folder = realdata / "catalogs" / "lco_kb76"
    for name, distorted in (("example_externcat_scamp.head", False), ("example_externcat_scamp_tpv.head", True)):
        text = (folder / name).read_text()
        assert has_distortion(text) == distorted
        x, y = np.array([0.0, 762.0, 1500.0]), np.array([0.0, 510.0, 1000.0])
        bx, by = sky_to_pixel(text, *pixel_to_sky(text, x, y))
        np.testing.assert_allclose(bx, x, atol=1e-3)
        np.testing.assert_allclose(by, y, atol=1e-3)
