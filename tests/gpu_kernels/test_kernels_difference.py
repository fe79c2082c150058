"""Tiles of a difference image: joins, cross-fades, PSF and noise that vary, the cache of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, stamp

from seechange_mpi.gpu_kernels import difference, tiles
from seechange_mpi.gpu_kernels.difference import ReferenceCache
from seechange_mpi.gpu_kernels.zogy import zogy_subtract

SHAPE = (420, 391)
NAMES = ("difference", "score", "score_corr", "flux", "flux_err", "translient")


def make_pair(seed, dtype=np.float64, shape=SHAPE):
    rng = np.random.default_rng(seed)
    x, y = grid_positions(rng, shape, 30)
    flux = 10 ** rng.uniform(3, 5, len(x))
    out = []
    for fwhm in (4.0, 3.0):
        image = np.zeros(shape)
        add_stars(image, x, y, flux, fwhm, 25)
        out.append((rng.poisson(image + 100) - 100.0).astype(dtype))
    return out


def run(pair, **more):
    args = {"psf_new": stamp(25, 4.0), "psf_ref": stamp(25, 3.0), "noise_new": 10.0, "noise_ref": 10.0} | more
    psfs = args.pop("psf_new"), args.pop("psf_ref")
    return zogy_subtract(*pair, *psfs, **args)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_joins_leave_no_trace(sigma, masked):
    pair = make_pair(1)
    mask = None
    if masked:
        mask = np.zeros(SHAPE, bool)
        mask[130:140, 100:260] = True  # across joins
        mask[:, 200] = True
    whole = run(pair, tile=1000, sigma_x=sigma, sigma_y=sigma, mask=mask)
    small = run(pair, tile=64, sigma_x=sigma, sigma_y=sigma, mask=mask)
    for name in NAMES:
        a, b = getattr(whole, name), getattr(small, name)
        assert (np.isnan(a) == np.isnan(b)).all()
        scale = np.nanstd(a)
        # filters end where they are below 1e-6 of their peak, and stars have 1e4 counts
        assert np.nanmax(np.abs(a - b)) < 0.01 * scale, name


def test_tiles_are_really_cut(monkeypatch):
    counts = []
    original = difference.layout

    def layout(*args, **kwargs):
        result = original(*args, **kwargs)
        counts.append(result[0])
        return result

    monkeypatch.setattr(difference, "layout", layout)
    run(make_pair(2, np.float32), tile=64)
    run(make_pair(2, np.float32), tile=1000)
    assert counts[0] == (6, 6)
    assert counts[1] == (1, 1)


def test_a_frame_too_large_for_the_gpu_is_done_in_tiles(stand_in, monkeypatch):
    """The pool refuses arrays of the whole frame's transforms: smaller tiles give the same."""
    pair = make_pair(7, np.float32, (1300, 70))
    there = [stand_in.asarray(a) for a in pair]
    psfs = {"psf_new": stand_in.asarray(stamp(25, 4.0)), "psf_ref": stand_in.asarray(stamp(25, 3.0))}
    monkeypatch.setattr(difference, "_SMALLER_TILE", 64)
    whole = run(there, **psfs)
    pool = stand_in.get_default_memory_pool()
    before = pool.get_limit()
    pool.set_limit(size=550_000)  # the images have 364 kB, the transform of the padded frame 930 kB
    try:
        with pytest.raises(Exception, match="Out of memory"):
            run(there, tile=2000, **psfs)
        tiled = run(there, **psfs)
    finally:
        pool.set_limit(size=before)
    for name in NAMES:
        a, b = (getattr(r, name).get() for r in (whole, tiled))
        assert np.nanmax(np.abs(a - b)) < 0.01 * np.nanstd(a)


@pytest.mark.parametrize("frame", [(512, 512), (700, 333), (100, 90), (65, 1000)])
@pytest.mark.parametrize("varying", [False, True])
def test_tiles_cover_the_frame_with_weight_one(frame, varying):
    count, shape = tiles.layout(frame, 20, varying, 128, on_cpu=True)
    total = np.zeros(frame)
    for part in tiles.cut(frame, count, 20, varying):
        weight = 1.0 if part.fade_y is None else part.fade_y[:, None] * part.fade_x[None, :]
        total[part.y, part.x] += weight
        assert part.y.stop - part.y0 + 20 <= shape[0]
        assert part.x.stop - part.x0 + 20 <= shape[1]
    assert np.allclose(total, 1)


def test_callables_of_nothing_new_change_nothing():
    pair = make_pair(3)
    plain = run(pair)
    p = stamp(25, 4.0)
    called = run(pair, psf_new=lambda x, y: p, noise_ref=lambda x, y: 10.0, tile=100)
    for name in NAMES:
        assert np.nanmax(np.abs(getattr(plain, name) - getattr(called, name))) < 0.01 * np.nanstd(getattr(plain, name))
    assert plain.flux_zero_points is None
    assert np.allclose(called.flux_zero_points, plain.flux_zero_point)


def test_psf_and_noise_that_vary():
    """Stars of a PSF that widens over the frame cancel everywhere; noise that doubles gives unit variance."""
    rng = np.random.default_rng(4)
    shape = (600, 601)

    def fwhm(x):
        return 3.0 + x / shape[1]

    x, y = grid_positions(rng, shape, 40)
    flux = np.full(len(x), 2e4)
    sky = 100 * (1 + 3 * np.arange(shape[0]) / shape[0])[:, None] * np.ones(shape)
    images = []
    for widths in (np.round(fwhm(x), 2), np.full(len(x), 3.0)):
        image = np.zeros(shape)
        add_stars(image, x, y, flux, widths, 25)
        images.append(image)
    pair = [(rng.poisson(image + sky) - sky).astype(np.float32) for image in images]
    variance = [(image + sky).astype(np.float32) for image in images]
    args = {"psf_ref": stamp(25, 3.0), "noise_new": lambda x, y: float(np.sqrt(sky[round(y), 0])),
            "noise_ref": lambda x, y: float(np.sqrt(sky[round(y), 0])), "variance_new": variance[0],
            "variance_ref": variance[1], "tile": 60}
    told = run(pair, psf_new=lambda x, y: stamp(25, float(fwhm(x))), **args)
    untold = run(pair, psf_new=stamp(25, fwhm(300)), **args)
    bright = images[0] > sky
    assert np.std(told.score_corr[bright]) < 1.15
    assert np.std(untold.score_corr[bright]) > 1.5
    quiet = (images[0] < 1) & (images[1] < 1)
    assert np.std(told.difference[quiet]) == pytest.approx(1, abs=0.01)
    assert np.std(told.score_corr[quiet]) == pytest.approx(1, abs=0.03)
    # a noise of 1 to 2 over the frame: so do the zero points, without steps
    zero_points = told.flux_zero_points
    assert zero_points[-1, 0] / zero_points[0, 0] == pytest.approx(0.5, rel=0.15)
    assert np.abs(np.diff(zero_points, axis=0)).max() < 0.03 * zero_points.max()


def test_reference_transforms_are_used_again():
    first, ref = make_pair(5, np.float32)
    second = make_pair(6, np.float32)[0]
    mask = np.zeros(SHAPE, bool)
    mask[50:60, 50:60] = True
    cache, tiles = ReferenceCache(), []
    run((first, ref), tile=100, reference_cache=cache)
    assert cache.hits == 0
    for more in ({}, {"mask": mask}):
        before = cache.hits
        with_cache = run((second, ref), tile=100, reference_cache=cache, **more)
        without = run((second, ref), tile=100, **more)
        for name in NAMES:
            assert np.array_equal(getattr(with_cache, name), getattr(without, name), equal_nan=True)
        tiles.append(cache.hits - before)
    # tiles without masked pixels are taken from the cache, the others are made anew
    assert 0 < tiles[1] < tiles[0]
    other = np.array(ref)
    before = cache.hits
    run((second, other), tile=100, reference_cache=cache)
    assert cache.hits == before, "another reference is not taken for the first"


def test_another_variance_of_the_reference_is_not_taken_from_the_cache():
    new, ref = make_pair(7, np.float32)
    quiet, loud = np.full(SHAPE, 100, np.float32), np.full(SHAPE, 900, np.float32)
    cache = ReferenceCache()
    run((new, ref), reference_cache=cache, variance_ref=quiet)
    again = run((new, ref), reference_cache=cache, variance_ref=loud)
    assert cache.hits == 0
    assert np.array_equal(again.flux_err, run((new, ref), variance_ref=loud).flux_err)
    double = run((new.astype(np.float64), ref), reference_cache=cache, variance_ref=loud)
    assert np.array_equal(double.score, run((new.astype(np.float64), ref), variance_ref=loud).score)


@pytest.mark.parametrize("varies", [False, True])
def test_psf_larger_than_a_tile(varies):
    pair = make_pair(8)
    wide = np.pad(stamp(25, 4.0), 60)  # 145 pixels
    psf = (lambda x, y: wide) if varies else wide
    whole, small = (run(pair, psf_new=psf, tile=tile) for tile in (1000, 64))
    assert np.nanmax(np.abs(whole.score - small.score)) < 0.01 * np.nanstd(whole.score)


@pytest.mark.parametrize("tile", [0, -5])
def test_tiles_have_pixels(tile):
    with pytest.raises(ValueError, match=f"zogy_subtract: tile must be at least 1 pixel, found {tile}"):
        run(make_pair(9), tile=tile)


def test_a_gpu_transforms_the_whole_frame():
    for frame, count in (((4096, 2048), (1, 1)), ((65, 3000), (1, 1)), ((9232, 9216), (2, 2))):
        assert tiles.layout(frame, 60, False, None, on_cpu=False)[0] == count
        assert tiles.layout(frame, 60, False, None, on_cpu=True)[0] != count


def test_byte_order_of_a_fits_file():
    pair = make_pair(10, np.float32)
    native, swapped = run(pair), run([a.astype(">f4") for a in pair])
    for name in NAMES:
        assert getattr(swapped, name).dtype == np.float32
        assert np.array_equal(getattr(native, name), getattr(swapped, name))
