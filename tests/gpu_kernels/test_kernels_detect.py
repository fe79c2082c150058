"""Peaks of a score image, and cosmic rays."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, stamp
from source_truth import StarScene, star_scene

from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics
from seechange_mpi.gpu_kernels.detect import Peaks, find_peaks, value_at_peaks
from seechange_mpi.gpu_kernels.zogy import ZogyResult, zogy_subtract


def bumps(shape, positions, sigma=1.8):
    y, x = np.indices(shape)
    out = np.zeros(shape)
    for px, py, height in positions:
        out += height * np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / sigma**2)
    return out.astype(np.float32)


def test_peaks_of_both_signs():
    truth = [(20.3, 30.2, 12.0), (60.7, 30.4, -9.0), (20.1, 70.0, 6.0), (90.0, 90.0, 4.0)]
    p = find_peaks(bumps((110, 120), truth), 5.0)
    assert list(zip(p.peak_x, p.peak_y, strict=True)) == [(20, 30), (61, 30), (20, 70)]
    assert p.peak[1] < -8
    assert p.x == pytest.approx([20.3, 60.7, 20.1], abs=0.05)
    assert p.y == pytest.approx([30.2, 30.4, 70.0], abs=0.05)
    assert (p.num_pixels > 3).all()
    assert p.num_pixels[0] == (bumps((110, 120), truth[:1]) >= 5).sum()
    assert len(find_peaks(bumps((110, 120), truth), 5.0, both_signs=False).x) == 2


def test_touching_sources_stay_apart():
    """Two transients 6 pixels apart share a label and stay two peaks; nearer than the radius they are one."""
    s = bumps((60, 60), [(25, 30, 30.0), (31, 30, 20.0)])
    p = find_peaks(s, 5.0, merge_radius=3)
    assert sorted(p.peak_x.tolist()) == [25, 31]
    assert p.num_pixels[0] == p.num_pixels[1]
    assert find_peaks(s, 5.0, merge_radius=8).peak_x.tolist() == [25]


def test_dipole_gives_both_lobes():
    p = find_peaks(bumps((40, 40), [(18, 20, 10.0), (23, 20, -10.0)]), 5.0)
    assert len(p.x) == 2
    assert sorted(np.sign(p.peak)) == [-1, 1]


def test_nothing_found_is_fine():
    p = find_peaks(np.zeros((30, 31), np.float32), 5.0)
    assert len(p.x) == len(p.num_pixels) == len(p.num_flagged) == 0
    p = find_peaks(np.full((30, 31), np.nan, np.float32), 5.0)
    assert len(p.x) == 0


def test_masked_and_edge_pixels():
    s = bumps((40, 50), [(10, 10, 20.0), (49, 0, 15.0), (30, 20, 20.0)])
    mask = np.zeros(s.shape, bool)
    mask[10, 10] = True
    s[20, 30] = np.nan
    p = find_peaks(s, 5.0, mask)
    at = set(zip(p.peak_x.tolist(), p.peak_y.tolist(), strict=True))
    assert (10, 10) not in at
    assert (30, 20) not in at
    assert (49, 0) in at
    corner = p.peak_x == 49
    assert p.num_flagged[corner][0] > 5
    assert np.isfinite(p.x).all()
    assert np.isfinite(p.y).all()


def test_plateau_is_one_peak():
    s = np.zeros((30, 30), np.float32)
    s[10:12, 10:12] = 7.0
    assert len(find_peaks(s, 5.0).x) == 1


def test_peaks_equal_brute_force():
    rng = np.random.default_rng(1)
    s = rng.normal(0, 1, (60, 70)).astype(np.float32)
    p = find_peaks(s, 1.5, merge_radius=2.5)
    found = set(zip(p.peak_y.tolist(), p.peak_x.tolist(), strict=True))
    expected = set()
    for j in range(60):
        for i in range(70):
            if abs(s[j, i]) < 1.5:
                continue
            yy, xx = np.ogrid[:60, :70]
            near = (yy - j) ** 2 + (xx - i) ** 2 <= 2.5**2
            if abs(s[j, i]) >= np.abs(s[near]).max():
                expected.add((j, i))
    assert found == expected


def test_equal_peaks_far_along_a_row_are_one_each():
    """Of two equal maxima within the radius the first stays, whatever else lies between them in reading order."""
    s = np.zeros((40, 400), np.float32)
    s[10, 5:395:5] = 9.0
    s[12, 5:395:5] = 9.0
    p = find_peaks(s, 5.0, merge_radius=3.0)
    assert p.peak_y.tolist() == [10] * 78
    assert (p.num_pixels == 1).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_gaussian_peaks_are_exact(sign):
    """An elliptical Gaussian: position and value to rounding; next to a masked pixel at least the pixel's own."""
    y, x = np.mgrid[:41, :43]
    u, v = x - 20.31, y - 19.56
    s = sign * 12.0 * np.exp(-0.5 * (0.4 * u**2 + 0.3 * v**2 + 0.2 * u * v))
    p = find_peaks(s, 5.0)
    assert (p.x[0], p.y[0]) == pytest.approx((20.31, 19.56), abs=1e-9)
    assert p.peak_value[0] == pytest.approx(sign * 12.0, rel=1e-9)
    assert value_at_peaks(3 * s, p)[0] == pytest.approx(sign * 36.0, rel=1e-9)
    mask = np.zeros(s.shape, bool)
    mask[20, 21] = True
    p = find_peaks(s, 5.0, mask)
    assert p.x[0] == 20
    assert abs(p.peak[0]) <= abs(p.peak_value[0]) < 12.0


def test_find_peaks_says_what_is_wrong():
    zero = np.zeros((10, 11), np.float32)
    with pytest.raises(ValueError, match=r"find_peaks: threshold must be positive, found 0"):
        find_peaks(zero, 0.0)
    with pytest.raises(ValueError, match=r"one shape, found \(10, 11\) and \(11, 10\)"):
        find_peaks(zero, 5.0, zero.T > 0)


NOISE_NEW, NOISE_REF = 10.0, 6.0


def transients(fwhm_new: float, fwhm_ref: float, seed: int, *, each: int) -> tuple[
        StarScene, ZogyResult, Peaks, np.ndarray, np.ndarray, float]:
    """Transients on noise, subtracted and found; the star of each peak, S/N of the stars, position limit × S/N.

    The score's information: S/N² = f² mean(q), position error = 1 / (S/N √κ), κ = mean(q k²) / mean(q) for
    q = |P_n|² |P_r|² / (σ_n² |P_r|² + σ_r² |P_n|²) over the Fourier plane.
    """
    s = star_scene(fwhm_new, seed, each=each, snr=(20.0, 300.0), noise=NOISE_NEW)
    psf_ref = stamp(2 * int(3.5 * fwhm_ref) + 1, fwhm_ref)
    ref = np.random.default_rng(seed + 1).normal(0, NOISE_REF, s.data.shape).astype(np.float32)
    flat = np.ones_like(s.data)
    z = zogy_subtract(s.data, ref, s.psf, psf_ref, noise_new=NOISE_NEW, noise_ref=NOISE_REF,
                      variance_new=NOISE_NEW**2 * flat, variance_ref=NOISE_REF**2 * flat)
    power_new, power_ref = (np.abs(np.fft.fft2(p, (128, 128))) ** 2 for p in (s.psf, psf_ref))
    q = power_new * power_ref / (NOISE_NEW**2 * power_ref + NOISE_REF**2 * power_new)
    k = 2 * np.pi * np.fft.fftfreq(128)
    peaks = find_peaks(z.score_corr, 7.0, merge_radius=fwhm_new)
    distance = np.hypot(s.x[:, None] - peaks.x, s.y[:, None] - peaks.y)
    star = distance.argmin(axis=0)
    assert (distance.min(axis=0) < 2.0).all()
    assert len(np.unique(star)) == len(star)
    snr = s.flux * np.sqrt(q.mean())
    assert len(star) >= (snr > 10).sum()
    return s, z, peaks, star, snr, float(np.sqrt(q.mean() / (q * k**2).mean()))


def check_peaks(fwhm_new: float, fwhm_ref: float, *, each: int, seed: int = 1) -> None:
    s, z, peaks, star, snr, limit = transients(fwhm_new, fwhm_ref, seed, each=each)
    wanted = snr[star] > 10
    star, snr = star[wanted], snr[star][wanted]
    for error in ((peaks.x[wanted] - s.x[star]) * snr / limit, (peaks.y[wanted] - s.y[star]) * snr / limit):
        assert np.sqrt(np.mean(error**2)) < 1.15
    # the highest value near a source of S/N ρ is ρ + 1/ρ on average
    excess = 1 + 1 / snr**2
    assert np.mean(peaks.peak_value[wanted] / snr / excess) == pytest.approx(1, abs=0.005)
    flux = value_at_peaks(z.flux, peaks)[wanted]
    assert np.mean(flux / s.flux[star] / excess) == pytest.approx(1, abs=0.005)
    if fwhm_new < 3.5:
        assert np.mean(peaks.peak[wanted] / snr) < 0.99


@pytest.mark.parametrize(("fwhm_new", "fwhm_ref"), [(2.2, 2.4), (3.0, 2.5), (5.0, 6.0)])
def test_peaks_reach_the_limit(fwhm_new, fwhm_ref):
    """Positions of transients in a ZOGY score within 15 % of the Cramér–Rao limit, scores and fluxes to 0.5 %."""
    check_peaks(fwhm_new, fwhm_ref, each=14)


@pytest.mark.slow
@pytest.mark.parametrize("fwhm_new", [2.2, 2.6, 3.3, 4.5, 6.0])
@pytest.mark.parametrize("fwhm_ref", [2.2, 4.0])
def test_peaks_reach_the_limit_everywhere(fwhm_new, fwhm_ref):
    check_peaks(fwhm_new, fwhm_ref, each=80, seed=5)


def test_every_device_finds_the_same(device):
    rng = np.random.default_rng(6)
    truth = [(x, y, h) for x, y, h in zip(*rng.uniform(5, 115, (2, 60)), rng.uniform(-30, 30, 60), strict=True)]
    s = bumps((120, 125), truth)
    s[50, 50], s[60:63, 60] = np.nan, np.inf
    mask = rng.random(s.shape) < 0.01
    here = find_peaks(s, 4.0, mask, merge_radius=2.5)
    there = find_peaks(device.asarray(s), 4.0, device.asarray(mask), merge_radius=2.5)
    assert len(here.x) > 20
    for name in ("peak_x", "peak_y", "x", "y", "peak", "num_pixels", "num_flagged", "peak_value"):
        found = getattr(there, name)
        assert isinstance(found, np.ndarray)
        assert found == pytest.approx(getattr(here, name), rel=1e-9), name
    assert value_at_peaks(device.asarray(s), there) == pytest.approx(value_at_peaks(s, here), rel=1e-9)
    assert len(find_peaks(device.asarray(s), 100.0, both_signs=False).x) == 0


@pytest.mark.parametrize("fwhm", [2.0, 2.5, 4.0])
def test_cosmic_rays_are_found_and_stars_spared(fwhm):
    rng = np.random.default_rng(2)
    shape = (400, 400)
    x, y = grid_positions(rng, shape, 25)
    flux = 10 ** rng.uniform(3, 5.3, len(x))
    clean = np.zeros(shape)
    add_stars(clean, x, y, flux, fwhm, 31)
    data = rng.poisson(clean + 100.0) - 100.0 + rng.normal(0, 5, shape)
    stars = clean > 3
    hits = np.zeros(shape, bool)
    for _ in range(60):
        j, i = rng.integers(10, 390, 2)
        length = int(rng.integers(1, 9))
        angle = rng.uniform(0, np.pi)
        for t in range(length):
            hits[int(j + t * np.sin(angle)), int(i + t * np.cos(angle))] = True
    data[hits] += rng.uniform(400, 3000, int(hits.sum()))
    variance = (np.maximum(data, 0) + 125).astype(np.float32)
    found = detect_cosmics(data.astype(np.float32), variance, np.zeros(shape, bool))
    assert (found & hits & ~stars).sum() > 0.93 * (hits & ~stars).sum()
    core = np.zeros(shape, bool)
    core[np.round(y).astype(int), np.round(x).astype(int)] = True
    eaten = (found & core & ~hits).sum()
    assert eaten <= (0.02 if fwhm < 2.4 else 0.01) * len(x)
    assert (found & ~stars & ~hits).mean() < 2e-3  # mostly neighbours of hits


def test_masked_pixels_are_never_cosmic_rays():
    data = np.zeros((50, 50), np.float32)
    data[25, 25] = data[10, 10] = 1000.0
    mask = np.zeros(data.shape, bool)
    mask[25, 25] = True
    found = detect_cosmics(data, np.full_like(data, 4.0), mask)
    assert found[10, 10]
    assert found.sum() == 1
