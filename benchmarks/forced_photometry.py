"""Forced photometry against the truth: pulls of simulated variables over ten epochs, and limits against fakes.

    python benchmarks/forced_photometry.py                 one survey (seed 1), about two minutes
    python benchmarks/forced_photometry.py --seeds 1 2 3   the spread from survey to survey

A survey is three sections of 512 × 512 pixels, eleven exposures, ninety pulsating stars of magnitude 19.5 to 22.5. The
first exposure is the reference. Pull: (flux in nJy − truth in nJy) / error, at the object's mean position, unflagged;
variables closer than 3 FWHM to another one are left out, for each is measured alone.
Fakes: point sources as bright as the local 5 sigma limit are put into new images at places without a source; the
image is subtracted and searched again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from seechange_mpi.config.history import ForcedPhotometrySettings
from seechange_mpi.config.resolve import Config
from seechange_mpi.db.engine import session
from seechange_mpi.db.lightcurve import light_curve
from seechange_mpi.gpu_kernels.photometry import render_sources
from seechange_mpi.io.bundle import read_section
from seechange_mpi.io.difference import read_differences
from seechange_mpi.model.products import Reference
from seechange_mpi.pipeline.forced import force
from seechange_mpi.pipeline.top_level import Pipeline
from seechange_mpi.pipeline.wcs_tools import pixel_to_sky
from seechange_mpi.simulate.compare import match_sky
from seechange_mpi.simulate.parameters import SimulationParameters
from seechange_mpi.simulate.survey import simulate_survey

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from surveys import small_camera

CAMERA = small_camera("small", 512, 320.0)


@dataclass
class Pulls:
    """Forced fluxes of simulated variables, one entry per object and epoch.

    Attributes
    ----------
    pull : (measured − true) / error;  snr : |true| / error;  star : id in the truth;  mjd : epoch [d].
    """

    pull: np.ndarray
    snr: np.ndarray
    star: np.ndarray
    mjd: np.ndarray

    def within(self) -> np.ndarray:
        """Pulls about the mean of each star: less than 1, since the reference's noise, common to its epochs, is out."""
        out = []
        for s in np.unique(self.star):
            p = self.pull[self.star == s]
            if len(p) > 1:
                out.append((p - p.mean()) * np.sqrt(len(p) / (len(p) - 1)))
        return np.concatenate(out)


def run(*args: object) -> int:
    """Run a verb in this process, silently; return its exit code."""
    from seechange_mpi.cli.main import main

    Config.reset()
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main([str(a) for a in args])
        except SystemExit as left:
            code = left.code
    Config.reset()
    return int(code or 0)


def make_survey(root: Path, seed: int, epochs: int = 11, stars: int = 30) -> tuple[Path, list[Path]]:
    """Simulate a survey, process it and force photometry on it; return its configuration and truth tables."""
    camera = root / "small.yaml"
    camera.write_text(CAMERA)
    paths = simulate_survey(root, SimulationParameters(
        camera=str(camera), epochs=epochs, seed=seed, stars_per_sq_deg=16000, faint_mag=21.5, catalog_mag=20.8,
        galaxies_per_sq_deg=1000, transients_per_section=0, variables_per_section=0, movers_per_section=0,
        pulsating_per_section=stars, pulsating_mag=[19.5, 22.5], trails_per_exposure=0))
    first, *others = paths.exposures
    for verb in (["run", first, "--no-report"], ["refs", "add", first.stem], ["run", *others, "--no-report"],
                 ["object", "forced"]):
        code = run(*verb, "--config", paths.config)
        if code:
            raise RuntimeError(f"{' '.join(str(v) for v in verb[:2])} ended with {code}")
    return paths.config, list(paths.truth)


def pulls_of(config: Path, truths: list[Path]) -> Pulls:
    """Forced photometry of the database against the truth, in nJy."""
    tables = {t.meta["exposure"]: t for t in (Table.read(p) for p in truths)}
    last = tables[max(tables)]
    stars = _apart(last[last["kind"] == "pulsating"])
    rows: list[tuple[float, float, int, float]] = []
    with session(Config(config)) as conn:
        objects: list[Any] = conn.execute("SELECT _id, ra, dec FROM objects ORDER BY _id").fetchall()
        found = match_sky(np.array(stars["ra"]), np.array(stars["dec"]), np.array([o[1] for o in objects]),
                          np.array([o[2] for o in objects]), 0.8)
        for star, k in zip(stars["id"], found, strict=True):
            if k < 0:
                continue
            curve = light_curve(conn, objects[k][0])
            for r in curve[(curve["kind"] == "forced") & ~curve["is_bad"]]:
                truth = tables[r["exposure"]]
                true = truth[(truth["id"] == star) & (truth["section"] == r["section"])]
                if len(true):
                    zp = truth.meta[f"zp_{r['section']}"]
                    njy = float(true["diff_adu"][0]) * 10 ** (0.4 * (31.4 - zp))
                    rows.append(((r["flux_njy"] - njy) / r["flux_err_njy"], abs(njy) / r["flux_err_njy"], int(star),
                                 float(r["mjd"])))
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    return Pulls(*columns)


def _apart(stars: Table, least_pix: float = 10.5) -> Table:
    """Stars without another one of them nearby."""
    keep = [not np.any((np.hypot(stars["x"] - s["x"], stars["y"] - s["y"]) < least_pix)
                       & (stars["id"] != s["id"]) & (stars["section"] == s["section"])) for s in stars]
    return stars[keep]


def detected_fakes(config: Path, exposures: list[str], per_section: int = 40, seed: int = 0
                   ) -> tuple[int, int, np.ndarray]:
    """Put fakes at the limit into exposures and search again: number found, number put, their forced pulls."""
    rng = np.random.default_rng(seed)
    settings, resolved = ForcedPhotometrySettings(), Config(config)
    pipeline = Pipeline.from_settings(resolved.steps())
    bundles = {p.parent.name: p for p in sorted(resolved.bundles.glob("*/*.h5"))}
    reference = bundles[min(bundles)]
    found = put = 0
    pulls = []
    for exposure in exposures:
        for section, before in read_differences(bundles[exposure], ("T1", "T2", "T3")):
            new = read_section(bundles[exposure], section, pixels=True).products
            ref = read_section(reference, section, pixels=True).products
            x, y = _quiet_places(new, ref, before, per_section, rng)
            ra, dec = pixel_to_sky(before.wcs.header, x, y)
            at = force(before, ra, dec, settings)
            good = at["flags"] == 0
            x, y, flux = x[good], y[good], settings.limit_sigma * at["flux_psf_err"][good].astype(float)
            image = new.image
            light = np.maximum(render_sources(image.shape, x, y, flux, new.psf), 0) * image.gain
            image.data = image.data + (rng.poisson(light) / image.gain).astype(np.float32)
            sub = pipeline.subtractor.run(new, Reference(ref.image, ref.background, ref.psf, ref.sources, ref.wcs,
                                                         ref.zp, "reference", "", {}))
            table = pipeline.detector.detect(sub, new.psf.fwhm_pixels, new.wcs.header).table
            for k in range(len(x)):
                near = np.hypot(table["x"] - x[k], table["y"] - y[k]) < new.psf.fwhm_pixels
                found += bool((near & (table["score"] > 0)).any())
            put += len(x)
            after = force(type(before)(sub.data, sub.weight, sub.flags, sub.psf, before.wcs, before.zp), ra[good],
                          dec[good], settings)
            pulls += list((after["flux_psf"] - flux) / after["flux_psf_err"])
    return found, put, np.array(pulls)


def _quiet_places(new: Any, ref: Any, d: Any, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places on a jittered grid, unmasked, away from sources and from what was detected in the difference."""
    ny, nx = d.data.shape
    step = int(np.sqrt(ny * nx / (2.5 * n)))
    gy, gx = np.mgrid[24: ny - 24: step, 24: nx - 24: step]
    x, y = (g.ravel() + rng.uniform(-4, 4, g.size) for g in (gx, gy))
    taken = np.concatenate([np.stack([t["x"], t["y"]], 1) for t in (new.sources.table, new.detections.table)])
    far = np.array([np.hypot(taken[:, 0] - a, taken[:, 1] - b).min() > 12 for a, b in zip(x, y, strict=True)])
    order = rng.permutation(np.flatnonzero(far))[:n]
    return x[order], y[order]


def width(values: np.ndarray) -> str:
    """Standard deviation, with its error."""
    return f"{np.std(values):.3f} ± {np.std(values) / np.sqrt(2 * len(values)):.3f}"


def report(seed: int, keep: Path | None) -> None:
    """Make one survey and print its lines."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) if keep is None else keep / f"seed{seed}"
        root.mkdir(parents=True, exist_ok=True)
        config, truths = make_survey(root, seed)
        p = pulls_of(config, truths)
        names = [Table.read(t).meta["exposure"] for t in truths[1::3]]
        found, put, fakes = detected_fakes(config, names)
    print(f"seed {seed}: {len(np.unique(p.star))} variables, {len(np.unique(p.mjd))} epochs, {len(p.pull)} fluxes, "
          f"{time.perf_counter() - begun:.0f} s")
    print(f"  width of pulls {width(p.pull)}, mean {p.pull.mean():+.3f}; about each star's mean {width(p.within())}")
    for low, high in ((0, 3), (3, 10), (10, 30), (30, 1000)):
        k = (p.snr >= low) & (p.snr < high)
        if k.sum() > 5:
            print(f"  S/N {low:>2} to {high:<4} n {k.sum():>4}  width {width(p.pull[k])}  mean {p.pull[k].mean():+.2f}")
    print(f"  fakes at the limit: {found} of {put} detected ({100 * found / put:.1f} %), width of their pulls "
          f"{width(fakes)}, mean {fakes.mean():+.3f}")


def main() -> None:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--keep", type=Path, help="folder in which the surveys stay")
    options = parser.parse_args()
    for seed in options.seeds:
        report(seed, options.keep)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
