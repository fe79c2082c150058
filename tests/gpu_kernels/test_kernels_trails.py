"""Trails: what is one is found, with its width, at the noise of a pixel; what only looks like one is left alone."""

import numpy as np
import pytest
from kernel_truth import add_stars

from seechange_mpi.gpu_kernels.radon import line_sums, strongest_lines
from seechange_mpi.gpu_kernels.trails import find_trails

SKY, SHAPE, FWHM = 600.0, (1024, 1024), 3.5
NOISE = np.sqrt(SKY)


def starry(rng, density=4e-4, shape=SHAPE):
    """Stars of all magnitudes, without noise."""
    clean = np.zeros(shape)
    n = rng.poisson(density * clean.size)
    flux = 10 ** (2.5 + 3.3 * rng.random(n) ** 2.5)
    add_stars(clean, rng.uniform(0, shape[1], n), rng.uniform(0, shape[0], n), flux, FWHM, 25)
    return clean


def coordinates(shape, x, y, degrees):
    """Pixels along and across a line through (x, y)."""
    j, i = np.mgrid[: shape[0], : shape[1]]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (i - x) * c + (j - y) * s, (j - y) * c - (i - x) * s


def streak(shape, x, y, degrees, length, peak, fwhm=FWHM):
    along, across = coordinates(shape, x, y, degrees)
    return peak * np.exp(-4 * np.log(2) * (across / fwhm) ** 2) * (np.abs(along) < length / 2)


def search(rng, clean, mask=None, **given):
    variance = clean + SKY
    data = rng.normal(0, 1, clean.shape) * np.sqrt(variance) + clean
    mask = np.zeros(clean.shape, bool) if mask is None else mask
    return find_trails(data.astype(np.float32), variance.astype(np.float32), mask, **given)


@pytest.mark.parametrize(("degrees", "seed"), [(8.0, 1), (33.0, 2), (71.0, 3), (100.0, 4), (135.0, 5), (170.0, 6)])
def test_a_trail_as_bright_as_the_noise_over_half_of_the_image(degrees, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(400, 620, 2)
    light = streak(SHAPE, x, y, degrees, 512, NOISE)
    mask, trails = search(rng, starry(rng) + light)
    assert len(trails) == 1
    along, across = coordinates(SHAPE, x, y, degrees)
    inside = (np.abs(along) < 250) & (np.abs(across) < 0.5 * FWHM)
    assert mask[inside].mean() > 0.97
    # nothing but the trail: within three FWHM of its axis, and a few pieces of 16 pixels beyond its ends
    assert np.abs(across[mask]).max() < 3 * FWHM
    assert np.abs(along[mask]).max() < 256 + 80
    assert trails[0].brightness == pytest.approx(1.0, abs=0.35)
    assert 0.5 * FWHM < trails[0].half_width < 2 * FWHM


@pytest.mark.parametrize(("peak", "fwhm", "least", "most"), [(0.5, 3.5, 2, 6), (3.0, 3.5, 3, 8), (30.0, 3.5, 4, 10),
                                                             (3.0, 12.0, 9, 20)])
def test_the_width_that_is_masked_is_that_of_the_trail(peak, fwhm, least, most):
    rng = np.random.default_rng(7)
    clean = starry(rng) + streak(SHAPE, 500, 480, 24.0, 3000, peak * NOISE, fwhm)
    mask, trails = search(rng, clean)
    assert len(trails) == 1
    assert least <= trails[0].half_width <= most
    along, across = coordinates(SHAPE, 500, 480, 24.0)
    line = (np.abs(across) < 0.7) & (along > -2000)
    assert mask[line].mean() > 0.99, "from edge to edge"
    # what is left beyond the mask is below the noise of the pixels
    rest = streak(SHAPE, 500, 480, 24.0, 3000, peak, fwhm)[~mask]
    assert rest.max() < 0.6


def test_two_trails_that_cross_and_one_that_bends():
    rng = np.random.default_rng(8)
    along, across = coordinates(SHAPE, 500, 500, 60.0)
    bent = NOISE * 2 * np.exp(-4 * np.log(2) * ((across - 4 * (along / 512) ** 2) / FWHM) ** 2)
    clean = starry(rng) + bent + streak(SHAPE, 500, 500, 150.0, 3000, 1.5 * NOISE)
    mask, trails = search(rng, clean)
    assert len(trails) == 2
    assert mask[bent > NOISE].mean() > 0.97


def test_a_masked_trail_takes_no_part_and_masked_pixels_are_no_obstacle():
    rng = np.random.default_rng(9)
    light = streak(SHAPE, 500, 500, 40.0, 3000, 2 * NOISE)
    clean = starry(rng) + light
    assert search(rng, clean, coordinates(SHAPE, 500, 500, 40.0)[1].__abs__() < 12)[1] == []
    spotted = rng.random(SHAPE) < 0.05
    mask, trails = search(rng, clean, spotted)
    assert len(trails) == 1
    assert mask[(light > NOISE) & spotted].mean() > 0.97


@pytest.mark.parametrize("corner", [(900, 900), (60, 930), (80, 70)])
def test_a_trail_across_a_corner(corner):
    rng = np.random.default_rng(13)
    light = streak(SHAPE, *corner, 45.0 if corner[0] < 100 < 900 < corner[1] else 135.0, 3000, 3 * NOISE)
    assert 100 < (light > 2.5 * NOISE).sum() / 2 < 500
    mask, trails = search(rng, starry(rng) + light)
    assert len(trails) == 1
    assert mask[light > NOISE].mean() > 0.97


def look_alikes():
    rng = np.random.default_rng(10)
    j, i = np.mgrid[: SHAPE[0], : SHAPE[1]]
    along, across = coordinates(SHAPE, 512, 512, 37.0)
    radius = np.hypot(i - 512, j - 512)
    yield "edge-on galaxy", 40 * NOISE * np.exp(-np.abs(along) / 45 - np.abs(across) / 4)
    yield "large faint galaxy", 3 * NOISE * np.exp(-np.hypot(along, across * 4) / 60)
    row = np.zeros(SHAPE)
    n = 17
    add_stars(row, np.linspace(20, 1000, n), np.linspace(300, 700, n), np.full(n, 8e3), FWHM, 25)
    yield "stars in a row", row
    spikes = sum(np.exp(-0.5 * (a / 1.5) ** 2) / (12 + np.abs(b)) ** 2 for a, b in ((along, across), (across, along)))
    yield "diffraction spikes", 2e6 * spikes + 4e4 * (1 + (radius / 3) ** 2) ** -2
    column = np.zeros(SHAPE)
    column[:, 300] = NOISE
    column[200:, 700:703] = 2 * NOISE
    column[333] = NOISE
    yield "bad columns and rows", column
    yield "seam", np.where(i < 512, 0.0, 1.0 * NOISE) + np.where(j < 512, 0.0, 0.7 * NOISE)
    yield "edge of a halo", 3.0 * NOISE * (radius < 300)
    blocks = rng.uniform(0, 3, (8, 8)) * NOISE
    yield "patchy background", np.kron(blocks, np.ones((128, 128)))


@pytest.mark.parametrize(("name", "light"), list(look_alikes()), ids=lambda v: v if isinstance(v, str) else "")
def test_what_only_looks_like_a_trail(name, light):
    rng = np.random.default_rng(20)
    assert search(rng, starry(rng) + light)[1] == [], name


@pytest.mark.slow
def test_false_trails_and_completeness_of_many_frames():
    """Less than one false trail in 200 clean starry frames would be three in 600; none may come out of 60."""
    false = found = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        clean = starry(rng, 10 ** rng.uniform(-4, -3))
        false += len(search(rng, clean)[1])
        degrees = rng.uniform(3, 87) + rng.choice([0, 90])
        x, y = rng.uniform(350, 670, 2)
        light = streak(SHAPE, x, y, degrees, 512, NOISE)
        mask, _ = search(rng, clean + light)
        found += mask[light > 0.7 * NOISE].mean() > 0.8
    assert false == 0
    assert found >= 58


def test_sums_along_lines_are_those_of_their_pixels():
    rng = np.random.default_rng(11)
    image = rng.normal(0, 1, (40, 70)).astype(np.float32)
    *_, sums = line_sums(image, 4)
    assert sums.shape == (16, 5, 40), "70 columns are made up to 80"
    image = np.pad(image, [(0, 0), (0, 10)])
    for rise in (0, 1, 7, 15):
        # Brady's line: halves that rise by half, the second begins where the first ends or one higher
        def rows(r, n):
            return [0] if n == 1 else rows(r // 2, n // 2) + [(r + 1) // 2 + k for k in rows(r // 2, n // 2)]
        at = rows(rise, 16)
        assert at[0] == 0
        assert at[-1] == rise
        for block, first in ((0, 3), (3, 20), (4, 11)):
            assert sums[rise, block, first] == pytest.approx(image[[first + k for k in at],
                                                                   np.arange(16) + 16 * block].sum(), abs=1e-4)


@pytest.mark.parametrize(("a", "b"), [((10, 8), (73, 40)), ((10, 60), (73, 21)), ((30, 5), (44, 68)),
                                      ((60, 5), (20, 68))])
def test_lines_come_back_in_the_image_s_own_orientation(a, b):
    image = np.random.default_rng(12).normal(0, 1, (80, 90)).astype(np.float32)
    t = np.linspace(0, 1, 200)
    image[np.rint(a[1] + t * (b[1] - a[1])).astype(int), np.rint(a[0] + t * (b[0] - a[0])).astype(int)] += 4
    line = strongest_lines(image, 5, 6, 6.0, 10)[0]
    direction = np.array(b, float) - a
    direction /= np.hypot(*direction)
    for x, y in ((line.x0, line.y0), (line.x1, line.y1)):
        assert abs((y - a[1]) * direction[0] - (x - a[0]) * direction[1]) < 2.5


def test_arguments():
    plane = np.ones((64, 64), np.float32)
    none = np.zeros((64, 64), bool)
    with pytest.raises(ValueError, match="variance must have the shape"):
        find_trails(plane, plane[1:], none)
    with pytest.raises(ValueError, match="sigma must be positive"):
        find_trails(plane, plane, none, sigma=0)
    mask, trails = find_trails(plane[:20, :20], plane[:20, :20], none[:20, :20])
    assert not mask.any()
    assert trails == []
    assert not find_trails(plane, 0 * plane, ~none)[0].any()
