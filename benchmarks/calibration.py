"""Judge preprocessing to photocal on simulated CCDs like DECam's: accuracy against truth, CPU time and memory.

`python benchmarks/calibration.py` averages over 5 seeds (rms over the seeds) and prints Markdown tables; `--seeds N`,
`--cost` only the cost, `--accuracy` only the accuracy. Every scene runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from bench_scene import cpu_name
from ccd_scene import CAMERA, GAIN, READ_NOISE, SHAPE, SKY_ADU, ZERO_POINT, Files, Parameters, make_ccd

STEPS = ("reading", "preprocessing", "cosmic rays and trails", "background", "extraction and PSF", "astrocal",
         "photocal")


def process(files: Files, settings: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, float]]:
    """Run the steps on a raw exposure; return the products and the CPU seconds of each."""
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.io.catalog import read_catalog
    from seechange_mpi.io.raw import read_exposure_info, read_section
    from seechange_mpi.pipeline.top_level import Pipeline
    from seechange_mpi.pipeline.wcs_tools import footprint_cone

    pipeline = Pipeline.from_settings(settings or {})
    camera = load_camera(CAMERA)
    out: dict[str, Any] = {}
    cost: dict[str, float] = {}
    clock = time.process_time()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.process_time()
        cost[name] = cost.get(name, 0.0) + now - clock
        clock = now

    exposure = read_exposure_info(files.raw, camera)
    raw = read_section(exposure, camera, "S29")
    lap("reading")
    paths = camera.calibration_paths("S29", "r", str(files.calib))
    out["image"] = image = pipeline.preprocessor.run(raw, exposure, paths)
    del raw
    lap("preprocessing")
    out["background"] = background = pipeline.backgrounder.run(image)
    lap("background")
    out["sources"], out["psf"] = sources, psf = pipeline.extractor.extract(image, background)
    lap("extraction and PSF")
    catalog = read_catalog({"path": str(files.catalog)}, *footprint_cone(image.header_wcs, image.shape, 120.0))
    out["wcs"], out["sources"] = wcs, sources = pipeline.astrocalibrator.run(image, sources, catalog)
    lap("astrocal")
    out["zp"] = pipeline.photcalibrator.run(image, background, psf, sources, wcs, catalog, camera, None)
    lap("photocal")
    return out, cost


def centroid_limit(files: Files, x: np.ndarray, y: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Cramér–Rao limit of the centroid per axis [pix]: 1/σ² = Σ (∂f)²/V of the pixel-integrated profile."""
    psf = files.truth.psf
    stamps = [psf.stamp(0, 0, d, 0, 20) for d in (0.0, 0.01, -0.01)]
    slope = (stamps[1] - stamps[2]) / 0.02
    sky = SKY_ADU / GAIN + (READ_NOISE / GAIN) ** 2
    out = np.array([1 / np.sqrt(((f * slope) ** 2 / (sky + f * stamps[0] / GAIN)).sum()) for f in flux])
    return out


def judge(files: Files, out: dict[str, Any]) -> dict[str, float]:
    """Compare with the truth."""
    from astropy.io import fits
    from astropy.wcs import WCS
    from scipy.spatial import cKDTree

    from seechange_mpi.pipeline.wcs_tools import pixel_to_sky

    truth = files.truth
    t = out["sources"].table
    ny, nx = SHAPE
    gx, gy = (g.ravel() for g in np.meshgrid(np.linspace(0, nx - 1, 33), np.linspace(0, ny - 1, 65)))
    ra0, dec0 = WCS(fits.Header.fromstring(truth.wcs)).all_pix2world(gx, gy, 0)
    ra1, dec1 = pixel_to_sky(out["wcs"].header, gx, gy)
    radial = np.hypot((ra1 - ra0) * np.cos(np.deg2rad(dec0)), dec1 - dec0) * 3.6e6
    figures = {"wcs_rms_mas": float(np.sqrt((radial**2).mean())), "wcs_max_mas": float(radial.max()),
               "zp_error_mmag": 1000 * (out["zp"].zp - ZERO_POINT), "zp_stars": float(out["zp"].n_stars),
               "matched": float(out["wcs"].n_matched), "psf_stars": float(out["psf"].n_stars),
               "psf_chi2": out["psf"].chi2,
               "fwhm_error_percent": 100 * (out["psf"].fwhm_pixels / truth.fwhm_centre - 1)}
    tree = cKDTree(np.stack([t["x"], t["y"]], axis=-1))
    point = np.isin(truth.kind, ("star", "transient", "injected"))
    # apart from others: within 5 FWHM nothing brighter than a tenth
    everything = cKDTree(np.stack([truth.x, truth.y], axis=-1))
    alone = np.array([all(truth.flux[j] < 0.02 * truth.flux[i] for j in everything.query_ball_point(
        (truth.x[i], truth.y[i]), 21.0) if j != i) for i in range(len(truth.x))])
    inside = (truth.x > 20) & (truth.x < nx - 21) & (truth.y > 20) & (truth.y < ny - 21)
    distance, index = tree.query(np.stack([truth.x, truth.y], axis=-1))
    clean = point & alone & inside & (distance < 1.5)
    clean[clean] &= (t["pixel_flags"][index[clean]] == 0) & ((t["flags"][index[clean]] & ~2) == 0)
    near = clean & (truth.mag > 15) & (truth.mag < 20) & (truth.kind == "star")
    row = t[index[near]]
    delta = -2.5 * np.log10(row["flux_psf"] / truth.flux[near])
    figures["flux_bias_mmag"] = 1000 * float(np.median(delta))
    figures["flux_bias_mean_mmag"] = 1000 * float(np.mean(np.clip(delta, -0.05, 0.05)))
    figures["flux_stars"] = float(near.sum())
    # the error of the calibrated magnitude of stars
    figures["mag_bias_mmag"] = 1000 * float(np.median(delta + out["zp"].zp - ZERO_POINT))
    faint = clean & (truth.mag > 15) & (truth.mag < 23)
    row = t[index[faint]]
    limit = centroid_limit(files, truth.x[faint], truth.y[faint], truth.flux[faint])
    for axis in "xy":
        d = row[axis] - getattr(truth, axis)[faint]
        figures[f"centroid_ratio_{axis}"] = float(1.4826 * np.median(np.abs(d / limit)))
        figures[f"centroid_rms_ratio_{axis}"] = float(np.sqrt(np.mean(np.clip(d / limit, -5, 5) ** 2)))
        figures[f"centroid_mean_{axis}"] = float(np.median(d))
    pull = (row["flux_psf"] - truth.flux[faint]) / row["flux_psf_err"]
    figures["flux_pull"] = float(1.4826 * np.median(np.abs(pull - np.median(pull))))
    if (truth.kind == "injected").any():
        figures |= _limit(files, out)
    return figures


def _limit(files: Files, out: dict[str, Any]) -> dict[str, float]:
    """Where half of the injected stars are detected at 5 sigma."""
    from scipy.optimize import curve_fit
    from scipy.spatial import cKDTree
    from scipy.special import erf

    truth, t = files.truth, out["sources"].table
    good = t[t["flux_psf"] > 5 * t["flux_psf_err"]]
    tree = cKDTree(np.stack([good["x"], good["y"]], axis=-1))
    pick = truth.kind == "injected"
    found = tree.query(np.stack([truth.x[pick], truth.y[pick]], axis=-1))[0] < 3.0
    mag = truth.mag[pick]

    def curve(m: np.ndarray, m50: float, width: float, top: float) -> np.ndarray:
        return np.asarray(0.5 * top * (1 - erf((m - m50) / width)))

    (m50, width, top), _ = curve_fit(curve, mag, found.astype(float), p0=(files.truth.lim_mag, 0.3, 1.0))
    # the half of all, not of those that are found when bright
    grid = np.linspace(mag.min(), mag.max(), 2001)
    half = float(np.interp(-0.5, -curve(grid, m50, width, top), grid))
    return {"lim_mag_50": half, "lim_mag": out["zp"].lim_mag, "lim_mag_error": out["zp"].lim_mag - half,
            "lim_mag_top": float(top), "injected": float(pick.sum())}


def judge_transients(files: Files, out: dict[str, Any], seed: int, folder: Path) -> dict[str, float]:
    """Subtract the same sky before the transients, in better seeing, and compare their centroids with the limit."""
    from scipy.spatial import cKDTree

    from seechange_mpi.gpu_kernels.stamps import cut_stamps
    from seechange_mpi.model.products import Reference, SectionProducts
    from seechange_mpi.pipeline.top_level import Pipeline

    before, _ = process(make_ccd(folder, Parameters(seed=seed, fwhm=3.6, reference=True)))
    pipeline = Pipeline.from_settings({})
    new = SectionProducts(**out)
    reference = Reference(**before, image_id="", exposure_identifier="reference", provenance_ids={})
    sub = pipeline.subtractor.run(new, reference)
    found = pipeline.detector.detect(sub, out["psf"].fwhm_pixels, out["wcs"].header)
    cutouts = pipeline.cutter.run(new, sub, found)
    t = pipeline.measurer.run(new, sub, found, cutouts, reference).table
    t = t[~t["is_bad"]]
    truth = files.truth
    pick = truth.kind == "transient"
    x, y, flux = truth.x[pick], truth.y[pick], truth.flux[pick]
    distance, index = cKDTree(np.stack([t["x"], t["y"]], axis=-1)).query(np.stack([x, y], axis=-1))
    found_ = (distance < 3.0) & (t["score"][index] > 7)
    # the limit of the difference image: white noise, its own PSF
    slope_y, slope_x = np.gradient(sub.psf.astype(float))
    weight, _ = cut_stamps(sub.weight, np.round(x), np.round(y), len(sub.psf))
    back, _ = cKDTree(np.stack([x, y], axis=-1)).query(np.stack([t["x"], t["y"]], axis=-1))
    figures = {"transients": float(pick.sum()), "transients_found": float((distance < 3.0).sum()),
               "false": float((back > 3.0).sum())}
    for axis, slope, true in (("x", slope_x, x), ("y", slope_y, y)):
        limit = 1 / np.sqrt((flux[:, None, None] ** 2 * slope**2 * weight).sum(axis=(1, 2)))
        d = (t[axis][index] - true)[found_]
        figures[f"transient_centroid_ratio_{axis}"] = float(1.4826 * np.median(np.abs(d / limit[found_])))
        figures[f"transient_centroid_mean_{axis}"] = float(np.mean(np.clip(d, -0.5, 0.5)))
    bright = found_ & (t["flux_psf"][index] > 20 * t["flux_psf_err"][index])
    figures["transient_flux_bias_percent"] = float(100 * (np.median(t["flux_psf"][index][bright] / flux[bright]) - 1))
    return figures


def run_one(pars: Parameters) -> None:
    """Process of one scene: make it, process it, print the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_ccd(Path(folder), pars)
        out, cost = process(files)
        figures = judge(files, out)
        if pars.n_transients and not pars.n_injected:
            figures |= judge_transients(files, out, pars.seed, Path(folder, "before"))
        print(json.dumps({"figures": figures, "cost": cost}))


def run_cost(folder: str) -> None:
    """Process of the cost alone: the scene was made by another process, so that memory is that of the steps."""
    import pickle

    files = pickle.loads(Path(folder, "files.pickle").read_bytes())
    import seechange_mpi.pipeline.top_level  # noqa: F401 - imports apart from the steps

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # the first run pays for imports and tables that every worker makes once; the others in turn
    process(files)
    rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for artefacts in (False, True) * 3:
        settings = {"preprocessing": {"cosmic_rays": artefacts, "trails": artefacts}}
        rows[artefacts].append(process(files, settings)[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    least = {k: {s: min(r[s] for r in v) for s in v[0]} for k, v in rows.items()}
    cost = least[False] | {"cosmic rays and trails": least[True]["preprocessing"] - least[False]["preprocessing"]}
    print(json.dumps({"cost": cost, "base_mb": base, "peak_mb": peak}))


def _child(*arguments: str) -> dict[str, Any]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *arguments], env=env, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


ROWS = (
    ("wcs_rms_mas", "WCS, radial rms over the CCD [mas]", "12", "35"),
    ("wcs_max_mas", "WCS, largest error [mas]", "40", "148"),
    ("zp_error_mmag", "zero point [mmag]", "5", "14–20"),
    ("flux_bias_mmag", "median PSF flux of stars of r 15–20 over their total flux [mmag]", "5", "41"),
    ("fwhm_error_percent", "FWHM [%]", "2", "20"),
    ("centroid_ratio_x", "centroids of stars, x, over the Cramér–Rao limit (MAD)", "1.15", "–"),
    ("centroid_ratio_y", "the same, y", "1.15", "–"),
    ("centroid_rms_ratio_x", "the same, x, rms with errors held at 5 limits", "–", "–"),
    ("centroid_rms_ratio_y", "the same, y", "–", "–"),
    ("centroid_mean_x", "their mean offset, x [pix]", "0.02", "–"),
    ("centroid_mean_y", "the same, y", "0.02", "–"),
    ("flux_pull", "flux errors: width of pulls", "–", "–"),
    ("psf_chi2", "chi2 of PSF stars", "1", "–"),
    ("transient_centroid_ratio_x", "centroids of transients in the difference, x, over the limit (MAD)", "1.15", "–"),
    ("transient_centroid_ratio_y", "the same, y", "1.15", "–"),
    ("transient_centroid_mean_x", "their mean offset, x [pix]", "0.02", "–"),
    ("transient_centroid_mean_y", "the same, y", "0.02", "–"),
    ("transient_flux_bias_percent", "flux of transients above S/N 20 [%]", "–", "4.4–5.0"),
    ("transients_found", "transients found and good, of 60", "–", "30–40"),
    ("false", "other good detections", "–", "0–2"),
    ("lim_mag_error", "limiting magnitude less the half-completeness of 1,200 injected stars [mag]", "0.05", "–"),
)
"""Figure, what it is, the aim, and what SeeChange measured on a like CCD."""


def rival_figures() -> dict[str, float]:
    """The same figures of SExtractor, PSFEx and SCAMP on the first seed; empty where they are not installed."""
    import calibration_rivals

    return _child("--rivals") if calibration_rivals.installed() else {}


def judge_rivals() -> dict[str, float]:
    """Run the rivals' chain on the first seed and compare it with the truth, by the same functions."""
    import calibration_rivals

    from seechange_mpi.model.products import SourceList, WorldCoordinates
    from seechange_mpi.model.tables import SOURCES, empty_table

    with tempfile.TemporaryDirectory() as folder:
        files = make_ccd(Path(folder), Parameters(seed=1))
        out, _ = process(files)
        rival = calibration_rivals.run_chain(files, out, Path(folder, "rivals"))
        s = rival["sources"]
        table = empty_table(SOURCES, len(s))
        table["x"], table["y"] = s["XWIN_IMAGE"] - 1.0, s["YWIN_IMAGE"] - 1.0
        table["flux_psf"], table["flux_psf_err"] = s["FLUX_PSF"], s["FLUXERR_PSF"]
        # neighbours that do not blend are no fault
        table["flags"] = s["FLAGS"] & ~1
        figures = judge(files, out | {"sources": SourceList(table, (1.0, 2.0, 3.0, 4.0)),
                                      "wcs": WorldCoordinates(rival["wcs"].tostring(), "catalog")})
        figures["fwhm_error_percent"] = 100 * (rival["fwhm"] / files.truth.fwhm_centre - 1)
        for name in ("zp_error_mmag", "psf_chi2", "mag_bias_mmag"):
            del figures[name]
        return figures | {f"cpu {k}": v for k, v in rival["cost"].items()} | {"peak_mb": rival["peak_mb"]}


def accuracy(seeds: int) -> None:
    """Print the figures over the seeds."""
    seen = [_child("--one", str(seed))["figures"] for seed in range(1, seeds + 1)]
    limits = [_child("--one", str(seed))["figures"] for seed in range(101, 101 + min(seeds, 3))]
    rival = rival_figures()
    print("| figure | aim | rms over seeds | worst | SExtractor, PSFEx, SCAMP (seed 1) | SeeChange |")
    print("|---|---|---|---|---|---|")
    for name, meaning, aim, before in ROWS:
        v = np.array([f[name] for f in (limits if name == "lim_mag_error" else seen)])
        worst = v[np.argmax(np.abs(v - (1.0 if "ratio" in name or name in ("flux_pull", "psf_chi2") else 0.0)))]
        other = f"{rival[name]:.3g}" if name in rival else "–"
        print(f"| {meaning} | {aim} | {np.sqrt((v**2).mean()):.3g} | {worst:.3g} | {other} | {before} |")
    if rival:
        parts = ", ".join(f"{k.removeprefix('cpu ')} {v:.1f}" for k, v in rival.items() if k.startswith("cpu "))
        print(f"\nSExtractor, PSFEx, SCAMP from the preprocessed image on: {parts} CPU s; "
              f"peak of one process {rival['peak_mb']:.0f} MB")


def cost() -> None:
    """Print CPU seconds of each step and the peak of memory, the least of six runs."""
    import pickle

    with tempfile.TemporaryDirectory() as folder:
        files = make_ccd(Path(folder), Parameters(seed=1))
        Path(folder, "files.pickle").write_bytes(pickle.dumps(files))
        rows = [_child("--cost-one", folder) for _ in range(2)]
    print("| step | CPU s |\n|---|---|")
    least = {s: min(r["cost"].get(s, float("nan")) for r in rows) for s in STEPS}
    for step, seconds in least.items():
        print(f"| {step} | {seconds:.2f} |")
    total = sum(v for s, v in least.items() if not s.startswith("cosmic"))
    print(f"| all but cosmic rays and trails | {total:.2f} |")
    print(f"| peak of resident memory, all steps [MB] | {min(r['peak_mb'] for r in rows):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cost-one", help=argparse.SUPPRESS)
    parser.add_argument("--rivals", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cost", action="store_true", help="only the cost")
    parser.add_argument("--accuracy", action="store_true", help="only the accuracy")
    given = parser.parse_args()
    if given.one is not None:
        run_one(Parameters(seed=given.one, n_injected=1200 if given.one > 100 else 0))
        return
    if given.rivals:
        print(json.dumps(judge_rivals()))
        return
    if given.cost_one:
        run_cost(given.cost_one)
        return
    print(f"{cpu_name()}, {datetime.now(UTC):%Y-%m-%d}\n")
    if not given.accuracy:
        cost()
        print()
    if not given.cost:
        accuracy(given.seeds)


if __name__ == "__main__":
    main()
