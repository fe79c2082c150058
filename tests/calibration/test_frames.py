"""Frames of a simulated night against its truth: right, and as noisy as they say."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from seechange_mpi.calibration.make import make_frame
from seechange_mpi.model.calibration import DEAD, HOT, NON_LINEAR, UNSTABLE


def compare(lab, outcome, truth):
    """Mean and chi2 per pixel of frame less truth, over the noise that the frame declares."""
    assert outcome.error == ""
    data = fits.getdata(outcome.frame.path).astype(float)
    residual = (data - truth)[lab.usual]
    return float(residual.mean()), float((residual**2).mean()) / outcome.frame.quality["noise"] ** 2


# 128,000 pixels: chi2 is sure to 0.4 %; what is left are cosmic rays below the limit and the finite sample of the noise
TOLERANCE = 0.05


@pytest.mark.parametrize("kind", ["bias", "dark"])
def test_bias_and_dark_are_the_truth_to_their_noise(lab, frames, kind):
    quality = frames[kind].frame.quality
    mean, chi2 = compare(lab, frames[kind], lab.truth[kind])
    assert chi2 == pytest.approx(1, abs=TOLERANCE)
    assert abs(mean) < 0.05 * quality["noise"]
    assert quality["noise_measured"] == pytest.approx(quality["noise_expected"], rel=0.03)
    assert quality["n_rejected"] == 0


def test_dark_of_several_exposure_times_is_weighted_by_them(lab, frames):
    quality = frames["dark"].frame.quality
    assert quality["exp_time_total_s"] == 3900
    assert (quality["exp_time_shortest_s"], quality["exp_time_longest_s"]) == (100, 900)
    assert quality["hot_fraction"] == pytest.approx(lab.truth["hot"].mean(), rel=0.05)


@pytest.mark.parametrize("light", ["dome", "twilight"])
def test_flats_are_the_truth_to_their_noise(lab, frames, light):
    quality = frames[light].frame.quality
    mean, chi2 = compare(lab, frames[light], lab.truth["flat"])
    assert chi2 == pytest.approx(1, abs=TOLERANCE)
    assert abs(mean) < 2e-4
    assert quality["noise_measured"] == pytest.approx(quality["noise_expected"], rel=0.02)
    assert quality["dead_fraction"] == pytest.approx(lab.truth["bad"].mean(), rel=0.02)


def test_sky_flat_has_neither_stars_nor_cosmic_rays(lab, frames):
    quality = frames["sky"].frame.quality
    truth = lab.truth["flat"] * (1 + lab.truth["fringe"])
    _, chi2 = compare(lab, frames["sky"], truth / np.median(truth))
    assert chi2 == pytest.approx(1, abs=0.06)
    assert quality["noise_measured"] == pytest.approx(quality["noise_expected"], rel=0.03)
    residual = fits.getdata(frames["sky"].frame.path) / (truth / np.median(truth)) - 1
    blocks = residual[:320, :400].reshape(16, 20, 20, 20)
    assert np.median(blocks, axis=(1, 3)).std() < 0.2 * quality["noise"], "no star, no hole is left"


def test_fringe_is_the_truth_in_units_of_the_sky(lab, frames):
    quality = frames["fringe"].frame.quality
    mean, chi2 = compare(lab, frames["fringe"], lab.truth["fringe"])
    assert chi2 == pytest.approx(1, abs=0.08)
    assert abs(mean) < 1e-4
    data = fits.getdata(frames["fringe"].frame.path).astype(float)
    truth = lab.truth["fringe"]
    slope = (data * truth)[lab.usual].sum() / (truth**2)[lab.usual].sum()
    assert slope == pytest.approx(1, abs=0.01), "the mesh of the sky takes nothing of the fringes"
    assert quality["level_lowest_adu"] > 1000


def test_read_noise_and_gain_are_measured(lab, frames):
    header = fits.getheader(lab.files[0], "C1")
    for name in "AB":
        assert frames["bias"].frame.quality[f"read_noise_{name}"] == pytest.approx(header[f"RDNOISE{name}"], rel=0.01)
        for light in ("dome", "twilight"):
            assert frames[light].frame.quality[f"gain_{name}"] == pytest.approx(header[f"GAIN{name}"], rel=0.015)


def test_a_wrong_gain_in_the_header_shows(lab, tmp_path):
    """Photon transfer measures the detector, not the header."""
    files = []
    for path in lab.of("dome_10"):
        out = tmp_path / path.name
        with fits.open(path) as hdus:
            hdus["C1"].header["GAINA"] *= 1.25
            hdus.writeto(out)
        files.append(out)
    quality = lab.make("flat", files, light="dome", out=tmp_path).frame.quality
    assert quality["gain_A"] == pytest.approx(fits.getheader(lab.files[0], "C1")["GAINA"], rel=0.02)


def test_bad_pixels(lab, frames):
    bits = fits.getdata(frames["badpixels"].frame.path)
    assert bits.dtype == np.uint8
    assert ((bits & DEAD) != 0)[lab.truth["bad"] == 1].all()
    assert ((bits & HOT) != 0)[(lab.truth["hot"] == 1) & (lab.truth["bad"] == 0)].all()
    assert (bits[lab.usual] != 0).sum() <= 3
    assert frames["badpixels"].frame.quality["flat_levels"] == 2


def test_non_linear_columns_are_found(lab, tmp_path):
    def bend(data):
        counts = data[:, 100] - 1000
        data[:, 100] = 1000 + counts * (1 - 0.03 * counts / 17000)

    files = [lab.altered(f, tmp_path / "in", bend, f.name) for f in lab.of("dome")]
    outcome = lab.make("badpixels", files, out=tmp_path)
    bits = fits.getdata(outcome.frame.path)
    assert ((bits & NON_LINEAR) != 0)[:, 100 - 32].all()
    assert ((bits & NON_LINEAR) != 0).sum() <= 320 + 3


def test_unstable_pixels_are_found(lab, tmp_path):
    rng = np.random.default_rng(3)

    def jump(data):
        data[50, 40:60] += rng.choice([0.0, 80.0], 20)

    files = [lab.altered(f, tmp_path / "in", jump, f.name) for f in lab.of("bias")]
    bits = fits.getdata(lab.make("badpixels", files, out=tmp_path).frame.path)
    assert ((bits & UNSTABLE) != 0)[50, 8:28].sum() >= 18, "of 12 values 3 to 9 are high, but for one case in 50"
    assert ((bits & UNSTABLE) != 0).sum() <= 20 + 2


def test_file_names_hold_the_content_and_files_do_not_change(lab, frames, tmp_path):
    frame = frames["bias"].frame
    path = Path(frame.path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert frame.sha256 == digest
    assert path.name == f"bias_lab_C1_20251120_{digest[:10]}.fits"
    assert not os.access(path, os.W_OK) or os.geteuid() == 0
    assert path.stat().st_mode & 0o222 == 0
    again = make_frame(lab.task("bias", lab.of("bias"), out=tmp_path))
    assert Path(again.path).name == path.name
    assert again.provenance.id == frame.provenance.id
    fewer = make_frame(lab.task("bias", lab.of("bias")[:-1], out=tmp_path))
    assert fewer.provenance.id != frame.provenance.id
    assert not list(Path(tmp_path).rglob("*.tmp"))
    assert not any((lab.root / "scratch").iterdir()), "inputs on disk are cleared away"


def test_headers_hold_figures_and_inputs(frames):
    header = fits.getheader(frames["dark"].frame.path)
    assert header["BUNIT"] == "adu/s"
    assert header["NINPUT"] == 9
    assert header["INP00001"].startswith("lab_dark_400:")
    assert header["USEDBIAS"].startswith(Path(frames["bias"].frame.path).name)
    assert header["PROVID"] == frames["dark"].frame.provenance.id
    assert frames["dark"].frame.provenance.upstream_ids == (frames["bias"].frame.provenance.id,)
    assert header["NOISE"] > header["NOISEMSR"], "the noise of the bias is in every dark"


def test_preprocessing_reads_what_is_made(lab, frames):
    from seechange_mpi.pipeline.calibration_files import read_calibration_frame

    for kind, name in (("bias", "bias"), ("flat", "dome"), ("badpixels", "badpixels"), ("dark", "dark")):
        assert np.isfinite(read_calibration_frame(frames[name].frame.path, (320, 400), kind)).mean() > 0.99


def test_quick_look(frames, tmp_path):
    from seechange_mpi.report.calibration import quick_look

    for kind in ("dome", "badpixels"):
        out = quick_look(frames[kind].frame.path, tmp_path / f"{kind}.png")
        assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert out.stat().st_size > 20_000
