"""Background, cosmic rays and statistics: truth from simulated skies, on every device."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import add_stars, moffat
from scipy.ndimage import binary_dilation

from seechange_mpi.gpu_kernels import background as bg
from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics, laplacian
from seechange_mpi.gpu_kernels.stats import ClippedStats, SortedRows, clipped, mad_std, truncated_variance


def scatter(rng, image, n, fwhm, faintest, brightest, size):
    """Add n Moffat sources with counts N(>F) ∝ 1/F at random places, sub-pixel phases on a grid of fifths."""
    bank = np.array([[moffat(size, fwhm, dx / 5, dy / 5, sub=3) for dx in range(-2, 3)] for dy in range(-2, 3)])
    bank /= moffat(size, fwhm).sum()
    flux = 1 / (1 / faintest + rng.uniform(size=n) * (1 / brightest - 1 / faintest))
    half = size // 2
    wide = np.zeros((image.shape[0] + 2 * half, image.shape[1] + 2 * half))
    for y, x, f, (j, i) in zip(rng.integers(0, image.shape[0], n), rng.integers(0, image.shape[1], n), flux,
                               rng.integers(0, 5, (n, 2)), strict=True):
        wide[y: y + size, x: x + size] += f * bank[j, i]
    image += wide[half: half + image.shape[0], half: half + image.shape[1]]


def simulate(shape, *, stars=400, galaxies=4000, fwhm=3.5, gradient=20.0, seed=7):
    """Return data, true sky and true rms; one star per `stars` pixels, one galaxy per `galaxies` (0: none)."""
    rng = np.random.default_rng(seed)
    y, x = (np.linspace(-1, 1, n) for n in shape)
    sky = 200 + gradient * x[None, :] + 0.5 * gradient * y[:, None] ** 2
    image = sky.copy()
    if stars:
        scatter(rng, image, image.size // stars, fwhm, 300, 3e5, 41)
    if galaxies:
        scatter(rng, image, image.size // galaxies, 9.0, 2000, 1e5, 61)
    return (rng.poisson(2 * image) / 2).astype(np.float32), sky, np.sqrt(sky / 2)


def measured(device, data, mask=None, **more):
    """Return level and rms maps."""
    mesh, rms = bg.fit_background(device.asarray(data), device.asarray(mask), **more)
    assert mesh.dtype == rms.dtype == np.float32
    return tuple(device.asnumpy(bg.render_mesh(m, more.get("box_size", 128), data.shape)) for m in (mesh, rms))


# ---------------------------------------------------------------- background


@pytest.mark.parametrize(("field", "bias", "spread", "worst"), [
    ({"stars": 0, "galaxies": 0}, 0.012, 0.02, 0.1),
    ({"fwhm": 2.5}, 0.02, 0.03, 0.25),
    ({"fwhm": 3.5}, 0.02, 0.03, 0.25),
    ({"fwhm": 5.0}, 0.02, 0.03, 0.25),
    ({"stars": 200}, 0.02, 0.04, 0.25),
    ({"gradient": 80.0}, 0.02, 0.04, 0.4),
], ids=str)
def test_level_and_rms_of_the_sky(field, bias, spread, worst):
    """In units of the rms: mean error, its scatter and the worst pixel, edges and corners included; rms to 1 %."""
    data, sky, noise = simulate((1024, 900), **field)
    mesh, rms = bg.fit_background(data)
    off = (bg.render_mesh(mesh, 128, data.shape) - sky) / noise
    assert abs(off.mean()) < bias
    assert off.std() < spread
    assert np.abs(off).max() < worst
    ratio = bg.render_mesh(rms, 128, data.shape) / noise
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert ratio.std() < 0.015


@pytest.mark.parametrize(("stars", "bias"), [(100, 0.03), (50, 0.3)])
def test_crowded_fields_keep_a_background(stars, bias):
    """Stars on top of each other (one per 50 pixels has no sky left at all): some level and a true rms remain."""
    data, sky, noise = simulate((768, 768), stars=stars, galaxies=0, gradient=10.0)
    mesh, rms = bg.fit_background(data)
    off = (bg.render_mesh(mesh, 128, data.shape) - sky) / noise
    assert -0.03 < off.mean() < bias
    assert bg.render_mesh(rms, 128, data.shape).mean() == pytest.approx(noise.mean(), rel=0.03)


def test_largely_masked_boxes():
    """Seven of eight pixels masked, in some boxes all but a strip: the level keeps to the noise of what is left."""
    data, sky, noise = simulate((768, 768), seed=9)
    rng = np.random.default_rng(9)
    mask = rng.uniform(size=data.shape) < 0.875
    mask[:128, :384] = True
    mask[256:384, 256:368] = True
    data[mask] = rng.choice([0.0, 65535.0, np.nan], size=int(mask.sum())).astype(np.float32)
    mesh, rms = bg.fit_background(data, mask)
    off = (bg.render_mesh(mesh, 128, data.shape) - sky) / noise
    assert abs(off[200:].mean()) < 0.06  # one pixel in eight shows fewer of the faint stars
    assert off[200:].std() < 0.1
    assert np.mean(rms) == pytest.approx(noise.mean(), rel=0.015)


def test_device_background_is_the_same(device):
    data, sky, noise = simulate((517, 640), seed=8)
    mask = np.zeros(data.shape, bool)
    mask[100:180, 200:420] = True
    data[5] = np.nan
    before = data.copy()
    level, rms = measured(device, data, mask)
    assert np.array_equal(before, data, equal_nan=True)
    assert abs(((level - sky) / noise).mean()) < 0.02
    mesh, mesh_rms = bg.fit_background(data, mask)
    assert np.abs(level - bg.render_mesh(mesh, 128, data.shape)).max() < 1e-3
    assert np.abs(rms - bg.render_mesh(mesh_rms, 128, data.shape)).max() < 1e-3


def test_bad_pixels_and_holes(device):
    rng = np.random.default_rng(3)
    data = rng.normal(50, 2, (512, 512)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[:140, :140] = True
    data[mask] = 1e5
    data[300:310] = np.nan
    before = data.copy()
    mesh, rms = (device.asnumpy(a) for a in bg.fit_background(device.asarray(data), device.asarray(mask)))
    assert np.isfinite(mesh).all()
    assert mesh == pytest.approx(50, abs=0.15)
    assert rms == pytest.approx(2, rel=0.04)
    assert np.array_equal(before, data, equal_nan=True)


def test_nothing_left():
    """Sources everywhere, or no good pixel at all: finite meshes, zero only without any data."""
    rng = np.random.default_rng(10)
    data = rng.normal(10, 1, (256, 256)).astype(np.float32)
    mesh, rms = bg.fit_background(data, box_size=64, detect_sigma=-5)
    assert mesh == pytest.approx(10, abs=0.2)
    assert rms == pytest.approx(1, abs=0.1)
    mesh, rms = bg.fit_background(data, np.ones(data.shape, bool))
    assert not mesh.any()
    assert not rms.any()
    mesh, rms = bg.fit_background(np.full((256, 256), 7, np.float32))
    assert (mesh == 7).all()
    assert not rms.any()


@pytest.mark.parametrize(("shape", "box"), [((61, 47), 128), ((130, 999), 64), ((257, 255), 32), ((1, 300), 64)])
def test_any_shape_and_box(device, shape, box):
    rng = np.random.default_rng(11)
    data = rng.normal(-40, 3, shape).astype(np.float32)
    level, rms = measured(device, data, box_size=box)
    assert level.shape == rms.shape == shape
    assert np.abs(level + 40).max() < 0.3 + 18 / np.sqrt(min(box**2, data.size))
    assert np.abs(rms / 3 - 1).max() < 0.25


def test_integers_of_a_bright_sky_and_outliers():
    """A sky of 60000 with an rms of 3, in whole numbers, 1 % of the pixels wild."""
    rng = np.random.default_rng(12)
    data = np.round(rng.normal(60_000, 3, (512, 512))).astype(np.float32)
    data[rng.uniform(size=data.shape) < 0.005] = 0
    data[rng.uniform(size=data.shape) < 0.005] = 1e9
    mesh, rms = bg.fit_mesh(data)
    assert mesh == pytest.approx(60_000, abs=0.15)
    assert rms == pytest.approx(np.sqrt(9 + 1 / 12), rel=0.02)


# ---------------------------------------------------------------- rendering and masks


def test_a_plane_is_rendered_exactly_to_its_corners(device):
    shape = (500, 390)
    y, x = np.indices(shape)
    yc, xc = ((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(shape, (8, 6), strict=True))
    plane = 1000 + 0.5 * y - 0.3 * x
    mesh = (1000 + 0.5 * yc[:, None] - 0.3 * xc[None, :]).astype(np.float32)
    out = device.asnumpy(bg.render_mesh(device.asarray(mesh), 64, shape))
    assert out.dtype == np.float32
    assert np.abs(out - plane).max() < 2e-3


def test_a_mesh_is_rendered_by_the_bicubic_spline_between_its_centres():
    from scipy.interpolate import RectBivariateSpline

    rng = np.random.default_rng(13)
    mesh = rng.normal(100, 1, (7, 5)).astype(np.float32)
    y, x = ((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip((350, 260), mesh.shape, strict=True))
    yy, xx = np.arange(26, 324), np.arange(27, 233)
    truth = np.clip(RectBivariateSpline(y, x, mesh, s=0)(yy, xx), mesh.min() - 1.5, mesh.max() + 1.5)
    assert np.abs(bg.render_mesh(mesh, 50, (350, 260))[26:324, 27:233] - truth).max() < 1e-3


@pytest.mark.parametrize("noise", [0.3, 0.4, 0.5, 1.0])
def test_a_coarsely_digitised_sky_keeps_its_rms(noise):
    """Whole numbers with a noise below their step: at 0.3, nine of ten pixels have one value."""
    data = np.round(np.random.default_rng(23).normal(100, noise, (512, 512))).astype(np.float32)
    for fit in (bg.fit_mesh, bg.fit_background):
        level, rms = fit(data)
        assert np.abs(level - 100).max() < 0.1 * noise
        assert rms.mean() == pytest.approx(data.std(), rel=0.03)


def test_rendered_mesh_stays_in_range():
    mesh = np.zeros((8, 6), np.float32)
    mesh[3, 3] = 100.0
    out = bg.render_mesh(mesh, 64, (500, 390))
    assert out.shape == (500, 390)
    assert out.min() >= 0
    assert out.max() <= 100
    assert out[int(3.5 * 500 / 8), int(3.5 * 390 / 6)] == pytest.approx(100, abs=1)
    steep = np.full((4, 4), 10.0, np.float32)
    steep[0] = 1.0
    assert bg.render_mesh(steep, 64, (256, 256)).min() == pytest.approx(0.5), "an rms stays positive"


def test_meshes_of_one_box_and_of_one_row():
    assert (bg.render_mesh(np.full((1, 1), 3.0, np.float32), 64, (20, 21)) == 3).all()
    line = bg.render_mesh(np.array([[0.0, 10.0]], np.float32), 10, (5, 20))
    assert line[2] == pytest.approx(np.arange(20) - 4.5, abs=1e-5)
    assert (line == line[0]).all()
    column = bg.render_mesh(np.array([[1.0], [2.0], [4.0]], np.float32), 10, (30, 4))
    assert column[[4, 5, 14, 15, 24, 25]].mean(axis=1).reshape(3, 2).mean(axis=1) == pytest.approx([1, 2, 4], abs=0.02)


def test_source_mask_covers_sources_and_little_else(device):
    rng = np.random.default_rng(14)
    image = np.zeros((401, 300))
    image[200 - 20: 200 + 21, 150 - 20: 150 + 21] += 5000 * moffat(41, 4.0)
    image[50 - 20: 50 + 21, 100 - 20: 100 + 21] += 120 * moffat(41, 4.0)
    data = (image + rng.normal(0, 1, image.shape)).astype(np.float32)
    data[300, 20] = np.nan
    mask = device.asnumpy(bg.source_mask(device.asarray(data), device.asarray(np.ones_like(data))))
    assert mask.dtype == bool
    assert mask.shape == data.shape
    assert mask[image > 0.3].mean() > 0.98
    assert mask[50, 100]
    assert mask[image < 0.01].mean() < 0.08


# ---------------------------------------------------------------- statistics


def test_clipped_statistics(device):
    rng = np.random.default_rng(6)
    v = rng.normal(10, 2, 100_000).astype(np.float32)
    v[:500] = 1e4
    v[500] = np.nan
    s = clipped(device.asarray(v))
    assert s.mean == pytest.approx(10, abs=0.03)
    assert s.median == pytest.approx(10, abs=0.03)
    assert s.std == pytest.approx(2, rel=0.03)
    assert all(isinstance(k, float) for k in s[:3])
    assert mad_std(device.asarray(v)) == pytest.approx(2, rel=0.02)
    mask = np.zeros(v.shape, bool)
    mask[:1000] = True
    assert mad_std(device.asarray(v), device.asarray(mask)) == pytest.approx(2, rel=0.02)
    assert clipped(device.asarray(v), device.asarray(np.ones(v.shape, bool))).n == 0
    assert np.isnan(mad_std(device.asarray(np.full(3, np.nan))))
    assert clipped(device.asarray(np.full((3, 3), 4.0))) == ClippedStats(4.0, 4.0, 4.0 - 4.0, 9)


def test_clipping_is_that_of_its_definition():
    """Against medians and masks taken anew in every pass."""
    rng = np.random.default_rng(15)
    for n in (1, 2, 9, 200, 3001):
        v = rng.standard_t(2, n)
        kept, std = v, 1.482602218505602 * np.median(np.abs(v - np.median(v)))
        for _ in range(5):
            keep = np.abs(kept - np.median(kept)) <= 2.5 * std
            if std <= 0 or keep.all() or not keep.any():
                break
            kept = kept[keep]
            std = kept.std()
        s = clipped(v, n_sigma=2.5)
        assert s == pytest.approx((kept.mean(), np.median(kept), kept.std(), kept.size), abs=1e-12)


def test_rows_are_clipped_together_like_one_by_one(device):
    rng = np.random.default_rng(16)
    rows = rng.normal(5, 2, (6, 640)).astype(np.float32)
    rows[1, ::3] = np.inf
    rows[2, :50] = 500
    rows[3] = np.inf
    rows[4, 1:] = np.inf
    rows[5] = 4
    sorted_rows = SortedRows.take(device.asarray(rows.copy()))
    assert device.asnumpy(sorted_rows.count).tolist() == [640, 426, 640, 0, 1, 640]
    at = device.asarray(np.array([1.0, 5.0, 5.0, 5.0, 99.0, 4.0])) - sorted_rows.offset
    expected = [(r < b).sum() for r, b in zip(rows, (1, 5, 5, 5, 99, 4), strict=True)]
    assert device.asnumpy(sorted_rows.rank(at)).tolist() == expected
    level, std = (device.asnumpy(a) for a in sorted_rows.clip(3.0, mode=False))
    for k in (0, 1, 2):
        good = np.sort(rows[k][np.isfinite(rows[k])].astype(float))
        width = 0.5 * np.subtract(*good[[int(q * (good.size - 1)) for q in (0.8413, 0.1587)]])
        kept = good
        for _ in range(8):
            now = kept[np.abs(kept - np.median(kept)) <= 3 * width]
            width = np.sqrt(now.var() / truncated_variance(3.0))
            if now.size == kept.size:
                break
            kept = now
        assert level[k] == pytest.approx(kept.mean(), abs=1e-5)
        assert std[k] == pytest.approx(width, rel=1e-5)
    assert (level[3:] == [0, rows[4, 0], 4]).all()
    assert (std[3:] == 0).all()
    mode, _ = (device.asnumpy(a) for a in SortedRows.take(device.asarray(rows.copy())).clip(3.0, mode=True))
    assert mode[2] == pytest.approx(5, abs=0.4)


def test_rows_need_whole_blocks():
    with pytest.raises(ValueError, match="multiple of 64, found 100"):
        SortedRows.take(np.zeros((2, 100), np.float32))


# ---------------------------------------------------------------- cosmic rays


def test_laplacian_is_that_of_the_subsampled_image(device):
    rng = np.random.default_rng(17)
    data = rng.normal(0, 1, (31, 40)).astype(np.float32)
    fine = np.pad(np.kron(data, np.ones((2, 2))), 1, mode="edge")
    second = 4 * fine[1:-1, 1:-1] - fine[:-2, 1:-1] - fine[2:, 1:-1] - fine[1:-1, :-2] - fine[1:-1, 2:]
    expected = np.maximum(second, 0).reshape(31, 2, 40, 2).mean(axis=(1, 3))
    out = device.asnumpy(laplacian(device.asarray(data)))
    assert out.dtype == np.float32
    assert np.abs(out - expected).max() < 1e-5
    lone = np.zeros((9, 9), np.float32)
    lone[4, 4] = 3
    assert laplacian(lone)[4, 4] == 6


def tracks(rng, shape, n):
    """Deposits of n straight tracks of 1 to about 30 pixels."""
    hits = np.zeros(shape)
    for _ in range(n):
        y, x, angle = rng.uniform(5, shape[0] - 5), rng.uniform(5, shape[1] - 5), rng.uniform(0, np.pi)
        length, depth = 1 + rng.exponential(8), rng.lognormal(np.log(600), 0.8)
        t = np.arange(0, length, 0.125)
        j, i = (y + t * np.sin(angle)).astype(int), (x + t * np.cos(angle)).astype(int)
        inside = (j < shape[0]) & (i >= 0) & (i < shape[1])
        np.add.at(hits, (j[inside], i[inside]), depth * length / t.size)
    return hits


def exposure(fwhm, seed, shape=(800, 700), rays=60):
    """Return data, variance, clean image and deposits: stars, sky noise, read noise and cosmic rays."""
    rng = np.random.default_rng(seed)
    clean = np.zeros(shape)
    scatter(rng, clean, clean.size // 1000, fwhm, 300, 1e6, 41)
    hits = tracks(rng, shape, rays)
    data = rng.poisson(clean + 100) - 100 + rng.normal(0, 5, shape) + hits
    return data.astype(np.float32), (np.maximum(data, 0) + 125).astype(np.float32), clean, hits


@pytest.mark.parametrize(("fwhm", "complete"), [(2.0, 0.93), (2.5, 0.95), (4.0, 0.95)])
def test_completeness_and_purity_of_cosmic_rays(fwhm, complete):
    """Pixels hit by more than 5 sigma to 95 %, no more than ten per million away from hits, no star's core."""
    got = total = false = pixels = 0
    for seed in (18, 19):
        data, variance, clean, hits = exposure(fwhm, seed)
        noise = np.sqrt(clean + 125)
        found = detect_cosmics(data, variance, np.zeros(data.shape, bool))
        strong = hits > 5 * noise
        near = binary_dilation(hits > noise, np.ones((3, 3)))
        got, total = got + (found & strong).sum(), total + strong.sum()
        false, pixels = false + (found & ~near).sum(), pixels + found.size
        assert not (found & ~near & (clean > 30 * noise)).any()
    assert got > complete * total
    assert false < 10e-6 * pixels


def test_device_finds_the_same_cosmic_rays(device):
    data, variance, _, hits = exposure(3.0, 20, (300, 260), 25)
    data[:3] += hits[100:103]  # at the edge
    mask = np.zeros(data.shape, bool)
    mask[200, 40:90] = True
    data[200, 40:90] = 1e5
    data[50, 60] = np.nan
    before = data.copy()
    arrays = [device.asarray(a) for a in (data, variance, mask)]
    found = device.asnumpy(detect_cosmics(*arrays))
    assert found.dtype == bool
    assert np.array_equal(found, detect_cosmics(data, variance, mask))
    assert not found[mask].any()
    assert not found[50, 60]
    assert np.array_equal(device.asnumpy(arrays[0]), before, equal_nan=True)
    assert found.sum() > 50
    assert not device.asnumpy(detect_cosmics(device.asarray(np.zeros((40, 50), np.float32)), *[
        device.asarray(a[:40, :50]) for a in (variance, mask)])).any()


def test_a_lone_pixel_counts_by_its_own_significance():
    """At 5 sigma of the noise around it, whatever its own variance; its neighbours stay."""
    data = np.zeros((60, 60), np.float32)
    data[10, 10], data[30, 30], data[45, 20] = 5.2 * 3, 4.8 * 3, 1000
    variance = np.maximum(data, 0) + np.float32(9)
    found = detect_cosmics(data, variance, np.zeros(data.shape, bool))
    assert np.argwhere(found).tolist() == [[10, 10], [45, 20]]
    assert not detect_cosmics(data, variance, np.ones(data.shape, bool)).any()


def test_variance_of_bad_pixels_does_not_count():
    """A column of bad pixels without variance: nothing beside it, but the hit that is there."""
    rng = np.random.default_rng(21)
    data = rng.normal(0, 4, (300, 60)).astype(np.float32)
    variance, mask = np.full(data.shape, 16, np.float32), np.zeros(data.shape, bool)
    mask[:, 30:34] = True
    data[mask], variance[mask] = 5000, 0
    variance[200, 10], data[200, 10] = np.inf, 500
    data[100, 34] = 200
    assert np.argwhere(detect_cosmics(data, variance, mask)).tolist() == [[100, 34]]


@pytest.mark.parametrize("fwhm", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("bad", ["column", "pixels", "cores"])
def test_bad_pixels_in_stars_make_no_cosmic_rays(fwhm, bad):
    """Stars up to 1e7 electrons across bad columns, strewn with bad pixels, or saturated; one ray beside a column."""
    rng = np.random.default_rng(22)
    shape, y, x = (420, 420), *(a.ravel() for a in np.mgrid[35:420:70, 35:420:70])
    stars = np.zeros(shape)
    add_stars(stars, x.astype(float), y.astype(float), 10 ** rng.uniform(4.5, 7, x.size), fwhm, 61)
    variance = (stars + 100).astype(np.float32)
    data = (stars + rng.normal(0, np.sqrt(variance))).astype(np.float32)
    mask = np.zeros(shape, bool)
    if bad == "column":
        mask[:, 36::70] = True
    elif bad == "pixels":
        mask = rng.random(shape) < 0.02
    else:
        mask = binary_dilation(data > 6e4, np.ones((3, 3)))
        data = np.minimum(data, 6e4)
    mask[:, 0], mask[197:204, 1:5], data[200, 1] = True, False, 300
    found = detect_cosmics(data, variance, mask)
    assert found[200, 1]
    assert found.sum() <= 1 + 0.1 * x.size


def test_neighbours_of_a_hit_need_half_and_later_passes_finish_a_blob():
    data = np.zeros((40, 40), np.float32)
    data[20, 20], data[20, 21] = 100, 14
    variance = np.full(data.shape, 16, np.float32)
    none = np.zeros(data.shape, bool)
    assert np.argwhere(detect_cosmics(data, variance, none, iterations=1)).tolist() == [[20, 20]]
    assert np.argwhere(detect_cosmics(data, variance, none, iterations=3)).tolist() == [[20, 20]]
    data[20, 21] = 60
    assert np.argwhere(detect_cosmics(data, variance, none, iterations=3)).tolist() == [[20, 20], [20, 21]]
    blob = np.zeros((40, 40), np.float32)
    blob[18:21, 18:21] = 400
    once, thrice = (detect_cosmics(blob, variance, none, contrast=0.5, iterations=k) for k in (1, 3))
    assert once.sum() < 9
    assert np.argwhere(thrice).tolist() == [[j, i] for j in (18, 19, 20) for i in (18, 19, 20)]
