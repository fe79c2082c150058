"""Astrometric calibration against known plates, and against SCAMP on real data."""

import numpy as np
import pytest
from fields import EPOCH_YEARS, Field, plate

from seechange_mpi.io.catalog import CatalogTable
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.wcs_tools import (
    deproject,
    footprint_cone,
    has_distortion,
    load_wcs,
    pixel_scale_arcsec,
    pixel_to_sky,
    project,
    separation_deg,
    sky_to_pixel,
)


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
