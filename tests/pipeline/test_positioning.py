"""Mean positions: weights, clipping, covariance, right ascension 0, the poles, one measurement."""

import numpy as np
import pytest

from seechange_mpi.pipeline.positioning import mean_positions
from seechange_mpi.pipeline.wcs_tools import deproject, project, separation_deg

MAS = 1 / 3.6e6
PLACES = [(150.0, 2.0), (0.0, 0.0), (359.99999, -30.0), (10.0, 89.99999), (0.0, 90.0), (77.0, -90.0)]


def scatter(rng, place, sigma_mas, n):
    """n measurements about a place with Gaussian errors [mas] per axis, on the sky."""
    sigma = np.broadcast_to(sigma_mas, n) * MAS
    return deproject(rng.normal(0, 1, n) * sigma, rng.normal(0, 1, n) * sigma, *place)


@pytest.mark.parametrize("place", PLACES)
def test_the_mean_is_right_anywhere(place):
    rng = np.random.default_rng(1)
    ra, dec = scatter(rng, place, 100.0, 400)
    error = np.full(400, 100 * MAS)
    out = mean_positions(np.zeros(400, int), ra, dec, error, error, np.full(400, 10.0), 1)
    off = float(separation_deg(out.ra[0], out.dec[0], *place)) / MAS
    assert off < 4 * 100 / np.sqrt(400)
    assert out.n[0] > 380
    assert 0 <= out.ra[0] < 360
    assert out.dra[0] / MAS == pytest.approx(5.0, rel=0.15)
    assert out.ddec[0] / MAS == pytest.approx(5.0, rel=0.15)


@pytest.mark.parametrize("place", PLACES)
def test_one_measurement_gives_itself_and_its_own_errors(place):
    out = mean_positions([0], [place[0]], [place[1]], [3e-5], [2e-5], [7.0], 1)
    assert float(separation_deg(out.ra[0], out.dec[0], *place)) < 1e-12
    assert (out.dra[0], out.ddec[0]) == (pytest.approx(3e-5), pytest.approx(2e-5))
    assert out.cov[0] == pytest.approx(0.0, abs=1e-16)
    assert out.n[0] == 1


@pytest.mark.parametrize(("n", "floor_mas"), [(1, 0), (2, 0), (4, 0), (12, 0), (40, 0), (40, 150)])
def test_errors_of_the_mean_are_its_errors(n, floor_mas):
    """Pulls of many means have unit width, also where an unknown error adds to the stated ones."""
    rng = np.random.default_rng(2)
    m = 1500
    place = (0.0001, 60.0)
    group = np.repeat(np.arange(m), n)
    stated = rng.uniform(30, 200, m * n)
    ra, dec = scatter(rng, place, np.hypot(stated, floor_mas), m * n)
    out = mean_positions(group, ra, dec, stated * MAS, stated * MAS, 1000 / stated, m)
    x, y = project(out.ra, out.dec, *place)
    for pull in (x / out.dra, y / out.ddec):
        # where the scatter must tell, Student's t and the clipping widen the pulls
        assert np.std(pull) == pytest.approx(1.0, abs=0.22 if floor_mas else 0.09)
        assert abs(np.mean(pull)) < 4 / np.sqrt(m)


def test_correlated_scatter_shows_in_the_covariance():
    rng = np.random.default_rng(3)
    u, v = rng.normal(0, 300 * MAS, 2000), rng.normal(0, 100 * MAS, 2000)
    ra, dec = deproject(u, 0.5 * u + v, 150.0, 2.0)
    error = np.full(2000, 100 * MAS)
    out = mean_positions(np.zeros(2000, int), ra, dec, error, error, np.full(2000, 20.0), 1, sigma_clip=10)
    rho = out.cov[0] / (out.dra[0] * out.ddec[0])
    assert rho == pytest.approx(0.5 * 300**2 / (300 * np.hypot(150, 100)), abs=0.05)


def test_outliers_are_clipped_and_faint_ones_cut():
    rng = np.random.default_rng(4)
    ra, dec = scatter(rng, (150.0, 2.0), 50.0, 9)
    ra = np.r_[ra, 150.0 + 2000 * MAS, 150.0 - 5000 * MAS]
    dec = np.r_[dec, 2.0, 2.0]
    error = np.full(11, 50 * MAS)
    out = mean_positions(np.zeros(11, int), ra, dec, error, error, np.r_[np.full(10, 20.0), -2.9], 1)
    assert out.n[0] == 9
    assert list(np.flatnonzero(~out.used)) == [9, 10]
    assert float(separation_deg(out.ra[0], out.dec[0], 150.0, 2.0)) < 60 * MAS
    every = mean_positions(np.zeros(11, int), ra, dec, error, error, np.full(11, 20.0), 1, sncut=0, sigma_clip=1000)
    assert every.n[0] == 11


def test_weights_follow_the_power_of_signal_to_noise():
    ra, dec = np.array([10.0, 10.0]), np.array([0.0, 100 * MAS])
    error = np.array([10.0, 10.0]) * MAS
    for power, expected in ((0.0, 50.0), (1.0, 25.0), (2.0, 10.0)):
        out = mean_positions([0, 0], ra, dec, error, error, [30.0, -10.0], 1, weight_power=power)
        assert out.dec[0] / MAS == pytest.approx(expected, rel=1e-6)


def test_many_objects_at_once_are_each_as_alone():
    rng = np.random.default_rng(5)
    places = [(rng.uniform(0, 360), rng.uniform(-90, 90)) for _ in range(40)]
    counts = rng.integers(1, 9, 40)
    parts = [scatter(rng, p, 80.0, c) for p, c in zip(places, counts, strict=True)]
    group = np.repeat(np.arange(40), counts)
    ra, dec = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    error, snr = rng.uniform(50, 100, len(ra)) * MAS, rng.uniform(2, 30, len(ra))
    order = rng.permutation(len(ra))
    every = mean_positions(group[order], ra[order], dec[order], error[order], error[order], snr[order], 42)
    assert every.n[40:].tolist() == [0, 0]
    assert np.isnan(every.ra[40:]).all()
    for k in range(40):
        own = group == k
        alone = mean_positions(np.zeros(own.sum(), int), ra[own], dec[own], error[own], error[own], snr[own], 1)
        assert alone.n[0] == every.n[k]
        if alone.n[0]:
            assert float(separation_deg(alone.ra[0], alone.dec[0], every.ra[k], every.dec[k])) < 1e-11
            assert alone.dra[0] == pytest.approx(every.dra[k], rel=1e-9)
        else:
            assert np.isnan(every.ra[k])
