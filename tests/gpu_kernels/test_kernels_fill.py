"""Masked pixels on static sources: what is filled, what is left alone, transients beside them."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import Profile, field_pair, grid_positions

from seechange_mpi.gpu_kernels import difference
from seechange_mpi.gpu_kernels.difference import Pair, ReferenceCache
from seechange_mpi.gpu_kernels.difference_filter import FLOOR, matched_filter
from seechange_mpi.gpu_kernels.fft import centred_kernel
from seechange_mpi.gpu_kernels.fill import fill_values
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.matched import matched_subtract
from seechange_mpi.gpu_kernels.zogy import zogy_subtract

NAMES = ("difference", "score", "score_corr", "flux", "flux_err", "translient")
SHAPE = (201, 210)


@pytest.fixture
def without_filling(monkeypatch):
    """Calls a function with every masked pixel zero."""
    def call(function, *args, **more):
        with monkeypatch.context() as m:
            m.setattr(difference, "fill_values", lambda *a, **k: None)
            return function(*args, **more)
    return call


def stars_and_column(seed=1, shape=SHAPE, **more):
    """Stars every 40 pixels, each with a masked column 0 to 3 pixels from its centre."""
    rng = np.random.default_rng(seed)
    x, y = grid_positions(rng, shape, 40)
    pair = field_pair(rng, shape, stars=(x, y, 10 ** rng.uniform(4, 5, len(x))), **more)
    for i, j in zip(x, y, strict=True):
        pair.mask[round(j) - 15: round(j) + 16, round(i) + rng.integers(0, 4)] = True
    return pair, x, y


def filters_of(pair, xp=np):
    def at(x, y, side=128):
        p_n, p_r = (centred_kernel(xp.asarray(p.astype(np.float64)), (side, side))
                    for p in (pair.psf_new, pair.psf_ref))
        return matched_filter(p_r, pair.flux_new * p_n, p_n, (side, side), noise_new=pair.noise_new,
                              noise_ref=pair.noise_ref, floor_n=FLOOR, floor_r=FLOOR * pair.flux_new)
    return at


def fill_of(pair, asarray=np.asarray, xp=np):
    given = Pair(asarray(pair.new), asarray(pair.ref), None, None, lambda x, y: pair.noise_new,
                 lambda x, y: pair.noise_ref, pair.flux_new)
    return fill_values(given, asarray(pair.mask), filters_of(pair, xp), varying=False)


def test_empty_sky_is_left_alone(without_filling):
    """Noise, and a bright transient beside a masked column, in one image only: all as with zeros, bit for bit."""
    rng = np.random.default_rng(2)
    shape = (600, 601)
    pair = field_pair(rng, shape, transients=([300.0, 100.0], [300.0, 200.0], [3e4, 3e3]))
    pair.mask = rng.uniform(size=shape) < 5e-3
    pair.mask[:, 302] = pair.mask[190:210, 98:100] = True
    assert fill_of(pair) is None
    filled, zeros = pair.subtract(zogy_subtract), without_filling(pair.subtract, zogy_subtract)
    for name in NAMES:
        assert np.array_equal(getattr(filled, name), getattr(zeros, name), equal_nan=True), name


def test_far_from_filled_pixels_nothing_changes(without_filling):
    pair, x, _ = stars_and_column()
    pair.mask[:, :60] = False
    filled, zeros = pair.subtract(zogy_subtract), without_filling(pair.subtract, zogy_subtract)
    change = np.abs(filled.score_corr - zeros.score_corr)
    assert np.nanmax(change[:, 65:]) > 5
    assert np.nanmax(change[:, : round(x[x > 60].min()) - 45]) < 1e-3


def test_values_are_those_of_the_star():
    """One masked pixel within two of the centre of a star: the value within the noise there."""
    rng = np.random.default_rng(3)
    x, y = grid_positions(rng, SHAPE, 30)
    pair = field_pair(rng, SHAPE, stars=(x, y, np.full(len(x), 1e5)))
    for i, j in zip(x, y, strict=True):
        pair.mask[round(j) + rng.integers(-2, 3), round(i) + rng.integers(-2, 3)] = True
    found = fill_of(pair)
    assert len(found.y) == pair.mask.sum()
    for values, signal, noise in ((found.new, pair.signal_new, pair.noise_new),
                                  (found.ref, pair.signal_ref, pair.noise_ref)):
        truth = signal[found.y, found.x]
        pull = (values - truth) / np.sqrt(noise**2 + truth / pair.gain)
        assert np.std(pull) < 4  # of the value itself and of what its neighbours tell of it
        assert np.std(values - truth) < 0.1 * np.std(truth)
    assert (found.log_kept <= 0).all()
    assert found.log_kept.min() < -0.01


@pytest.mark.parametrize("fwhm", [(4.0, 3.0), (3.0, 4.0), (5.0, 2.5)])
@pytest.mark.parametrize("kind", ["column", "pixel"])
def test_flux_beside_filled_pixels(fwhm, kind):
    """A transient on the wing of a star, 1 to 5 pixels from a hole in it, keeps its flux; its error grows."""
    profiles = [Profile(w) for w in fwhm]
    images = [np.zeros((121, 120)) for _ in range(2)]
    for p, image in zip(profiles, images, strict=True):
        p.add(image, [60.2], [60.3], [2e5])
    new, ref = (a.astype(np.float32) for a in images)
    transient = np.zeros(new.shape)
    profiles[0].add(transient, [64.0], [58.0], [3000.0])
    errors = []
    for off in (1, 2, 3, 5):
        mask = np.zeros(new.shape, bool)
        mask[58 if kind == "pixel" else slice(None), 64 + off] = True
        with_it, without = (zogy_subtract(
            new + t, ref, profiles[0].stamp, profiles[1].stamp, noise_new=15, noise_ref=15, variance_new=225 + new,
            variance_ref=225 + ref, mask=mask) for t in (transient.astype(np.float32), np.float32(0)))
        assert with_it.flux[58, 64] - without.flux[58, 64] == pytest.approx(3000, rel=0.02), off
        errors.append(with_it.flux_err[58, 64])
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_unfilled_reference_stays_in_the_cache(without_filling):
    """A cache of a reference gives what no cache gives, whatever was filled before."""
    pair, *_ = stars_and_column()
    other = stars_and_column(seed=4)[0]
    cache, variance = ReferenceCache(), pair.variance("ref")
    for new, mask in ((pair.new, pair.mask), (other.new, pair.mask), (other.new, np.zeros(SHAPE, bool)),
                      (pair.new, np.zeros(SHAPE, bool)), (pair.new, pair.mask)):
        pair.new, pair.mask = new, mask
        a, b = (pair.subtract(zogy_subtract, tile=64, variance_ref=variance, reference_cache=c)
                for c in (cache, None))
        for name in NAMES:
            assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
    assert cache.hits > 0


def test_tiles_and_callables_agree():
    """Filling does not depend on the tiles; a PSF given as a callable gives the same but for the cross-fade."""
    pair, *_ = stars_and_column()
    whole = pair.subtract(zogy_subtract, tile=1000)
    small = pair.subtract(zogy_subtract, tile=64)
    psf = pair.psf_new
    called = zogy_subtract(pair.new, pair.ref, lambda x, y: psf, pair.psf_ref, noise_new=pair.noise_new,
                           noise_ref=pair.noise_ref, flux_new=pair.flux_new, variance_new=pair.variance("new"),
                           variance_ref=pair.variance("ref"), mask=pair.mask, tile=100)
    for other in (small, called):
        assert np.nanmax(np.abs(whole.score_corr - other.score_corr)) < 0.05


@pytest.mark.parametrize("convolved", ["ref", "new"])
def test_matching_kernels(convolved, without_filling):
    """Stars cut by columns cancel with a Gaussian matching kernel and its background as well."""
    rng = np.random.default_rng(5)
    u = np.arange(-15, 16)
    gauss = {s: np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / s**2) for s in (1.4, 1.2, np.sqrt(1.4**2 - 1.2**2))}
    sharp, broad, kernel = (gauss[s] / gauss[s].sum() for s in (1.2, 1.4, np.sqrt(1.4**2 - 1.2**2)))
    psf_new, psf_ref = (broad, sharp) if convolved == "ref" else (sharp, broad)
    images = []
    mask = np.zeros(SHAPE, bool)
    x, y = (a.astype(int) for a in grid_positions(rng, SHAPE, 40))
    for p in (psf_new, psf_ref):
        image = np.zeros(SHAPE)
        for i, j in zip(x, y, strict=True):
            image[j - 15: j + 16, i - 15: i + 16] += 3e4 * p
        images.append(image)
    for i, j in zip(x, y, strict=True):
        mask[j - 15: j + 16, i + rng.integers(0, 4)] = True
    new, ref = ((a + rng.normal(0, 1, SHAPE) * np.sqrt(a + 200)).astype(np.float32) for a in images)
    (new if convolved == "ref" else ref)[...] += 30
    solution = KernelSolution(kernel[None], 0, np.array([30.0]), 0, 100.0, 100.0, 100.0, 100.0, convolved, 1.0)
    args = (new, ref, psf_new, solution)
    more = {"noise_new": 200**0.5, "noise_ref": 200**0.5, "mask": mask,
            "variance_new": (images[0] + 200).astype(np.float32), "variance_ref": (images[1] + 200).astype(np.float32)}
    filled, zeros = matched_subtract(*args, **more), without_filling(matched_subtract, *args, **more)
    bright = (images[0] > 200) & ~mask
    assert np.std(zeros.score_corr[bright]) > 2
    assert np.std(filled.score_corr[bright]) == pytest.approx(1, abs=0.2)


def test_large_holes_are_cut(without_filling):
    """A hole of thousands of pixels across stars is filled in blocks, at its rim, and made better by it."""
    pair, *_ = stars_and_column()
    pair.mask[60:140, 60:66] = pair.mask[100:110, 20:190] = True
    distance = 5
    yy, xx = np.nonzero(pair.mask)
    near = np.zeros(SHAPE, bool)
    for dy in range(-distance, distance + 1):
        for dx in range(-distance, distance + 1):
            near[np.clip(yy + dy, 0, SHAPE[0] - 1), np.clip(xx + dx, 0, SHAPE[1] - 1)] = True
    near &= ~pair.mask & (pair.signal_new > pair.noise_new)
    filled, zeros = pair.subtract(zogy_subtract), without_filling(pair.subtract, zogy_subtract)
    assert np.std(zeros.score_corr[near]) > 2.5
    assert np.std(filled.score_corr[near]) < 1.3


def test_devices_agree(device):
    pair, *_ = stars_and_column()
    here = fill_of(pair)
    there = fill_of(pair, device.asarray, device.xp)
    assert np.array_equal(device.asnumpy(there.y), here.y)
    for name in ("new", "ref"):
        assert np.allclose(device.asnumpy(getattr(there, name)), getattr(here, name), rtol=1e-4, atol=0.05)
    assert np.allclose(device.asnumpy(there.log_kept), here.log_kept, atol=1e-4)
