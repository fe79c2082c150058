"""Peaks of a score image, and cosmic rays."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions

from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics
from seechange_mpi.gpu_kernels.detect import find_peaks


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
