"""Time the kernels on one CPU core, each beside its nearest rival and its floor on the same data in the same process.

`python benchmarks/kernels.py` runs every row in a process of its own, so that memory is that of the row alone, and
prints a Markdown table; `--only NAME` one row; `--list` the names. Times are CPU seconds of one thread, the least of
several calls, and every call makes its results anew. A rival that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from bench_scene import FWHM_NEW, FWHM_REF, SHAPE, SIZE, SKY, Scene, best_of, cpu_name, scene

ZOGY_NOISE = {"noise_new": SKY, "noise_ref": SKY, "sigma_x": 0.05, "sigma_y": 0.05}


@dataclass
class Figures:
    """What a row measures; times in CPU seconds, memory the peak with inputs [MB], NaN = not there."""

    ours: float
    rival: str = "–"
    rival_s: float = float("nan")
    floor: str = "–"
    floor_s: float = float("nan")
    pair_s: float = float("nan")
    peak_mb: float = float("nan")


def fft_pair(s: Scene) -> float:
    """One scipy float32 rfft2 and irfft2 of the frame: the unit of effort."""
    return best_of(lambda: scipy.fft.irfft2(scipy.fft.rfft2(s.new), s=SHAPE), 7)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def measured(ours: Callable[[], object], *, rival: str = "–", rival_call: Callable[[], object] | None = None,
             needs: str = "", floor: str = "–", floor_call: Callable[[], object] | None = None, n: int = 4) -> Figures:
    """Ours first, so that the peak of memory is ours: with the inputs, without what making them took."""
    reset_peak()
    figures = Figures(best_of(ours, n))
    figures.peak_mb = peak_mb()
    figures.rival = rival
    if rival_call is not None:
        if needs and not installed(needs):
            figures.rival += " (not installed)"
        else:
            figures.rival_s = best_of(rival_call, 2)
    figures.floor = floor
    if floor_call is not None:
        figures.floor_s = best_of(floor_call, 5)
    return figures


def reset_peak() -> None:
    """Begin a new high-water mark of resident memory (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """High-water mark of resident memory since `reset_peak` [MB]."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def transforms(s: Scene, n: int) -> Callable[[], None]:
    """n real transforms of the frame, half of them inverse."""
    def work() -> None:
        for _ in range(n // 2):
            scipy.fft.irfft2(scipy.fft.rfft2(s.new), s=SHAPE)
    return work


def plain_zogy(s: Scene) -> np.ndarray:
    """The formulas of the paper as they stand: full complex transforms in double precision, no padding, no tiles."""
    def hat(stamp: np.ndarray) -> np.ndarray:
        full = np.zeros(SHAPE)
        full[: stamp.shape[0], : stamp.shape[1]] = stamp
        return np.fft.fft2(np.roll(full, (-(stamp.shape[0] // 2), -(stamp.shape[1] // 2)), (0, 1)))

    pn, pr, n, r = hat(s.psf_new), hat(s.psf_ref), np.fft.fft2(s.new), np.fft.fft2(s.ref)
    den = SKY**2 * (np.abs(pr) ** 2 + np.abs(pn) ** 2)
    k_n, k_r = np.conj(pn) * np.abs(pr) ** 2 / den, np.conj(pr) * np.abs(pn) ** 2 / den
    np.fft.ifft2((pr * n - pn * r) / np.sqrt(den))
    s_n, s_r = np.real(np.fft.ifft2(k_n * n)), np.real(np.fft.ifft2(k_r * r))
    v: Any = 0.0
    for k, image, part in ((k_n, s.new, s_n), (k_r, s.ref, s_r)):
        k2 = np.real(np.fft.ifft2(k)) ** 2
        v = v + np.real(np.fft.ifft2(np.fft.fft2(image + SKY**2) * np.fft.fft2(k2)))
        gy, gx = np.gradient(part)
        v += 0.05**2 * (gx**2 + gy**2)
    return np.asarray((s_n - s_r) / np.sqrt(v))


def zogy_plain_input(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.zogy import zogy_subtract

    return measured(lambda: zogy_subtract(s.new, s.ref, s.psf_new, s.psf_ref, **ZOGY_NOISE),
                    rival="same formulas, complex128 numpy.fft, whole frame", rival_call=lambda: plain_zogy(s),
                    floor="14 real transforms of the frame", floor_call=transforms(s, 14))


def zogy_full_input(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.zogy import zogy_subtract

    return measured(lambda: zogy_subtract(s.new, s.ref, s.psf_new, s.psf_ref, variance_new=s.variance_new,
                                          variance_ref=s.variance_ref, mask=s.mask, **ZOGY_NOISE),
                    floor="14 real transforms of the frame", floor_call=transforms(s, 14))


def zogy_varying(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.zogy import zogy_subtract

    return measured(lambda: zogy_subtract(
        s.new, s.ref, lambda x, y: s.psf_new, lambda x, y: s.psf_ref, variance_new=s.variance_new,
        variance_ref=s.variance_ref, mask=s.mask, **ZOGY_NOISE))


def hotpants_call(s: Scene, folder: Path) -> Callable[[], object] | None:
    """hotpants on the same pair, where the program is on PATH (or named by HOTPANTS)."""
    program = os.environ.get("HOTPANTS") or shutil.which("hotpants")
    if not program:
        return None
    from astropy.io import fits

    for name, image, variance in (("new", s.new, s.variance_new), ("ref", s.ref, s.variance_ref)):
        fits.writeto(folder / f"{name}.fits", image, overwrite=True)
        fits.writeto(folder / f"{name}_noise.fits", np.sqrt(variance), overwrite=True)
    width = np.sqrt(FWHM_NEW**2 - FWHM_REF**2) / 2.355
    command = [program, "-inim", "new.fits", "-tmplim", "ref.fits", "-outim", "sub.fits", "-ini", "new_noise.fits",
               "-tni", "ref_noise.fits", "-tl", "-1e4", "-il", "-1e4", "-tu", "1e7", "-iu", "1e7", "-c", "t", "-n", "i",
               "-ng", "3", "6", f"{width / 2:.2f}", "4", f"{width:.2f}", "2", f"{2 * width:.2f}", "-v", "0"]
    return lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)


def alard_lupton(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.methods import alard_lupton_subtract

    figures = measured(lambda: alard_lupton_subtract(
        s.new, s.ref, s.psf_new, s.psf_ref, variance_new=s.variance_new, variance_ref=s.variance_ref, mask=s.mask,
        **ZOGY_NOISE), n=2)
    figures.rival = "hotpants (difference and noise only)"
    with tempfile.TemporaryDirectory() as folder:
        call = hotpants_call(s, Path(folder))
        if call is None:
            figures.rival += " (not installed)"
        else:
            def children() -> float:
                return time.process_time() + sum(os.times()[2:4])
            figures.rival_s = best_of(call, 2, clock=children)
    return figures


def sfft(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.methods import sfft_subtract

    return measured(lambda: sfft_subtract(
        s.new, s.ref, s.psf_new, s.psf_ref, variance_new=s.variance_new, variance_ref=s.variance_ref, mask=s.mask,
        **ZOGY_NOISE), n=2)


def _shifted(x: Any, y: Any) -> tuple[Any, Any]:
    return x + 1e-3 * y + 0.3, y - 1e-3 * x - 0.4


def warp_data(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.resample import warp

    y, x = np.indices(SHAPE, dtype=np.float32)
    at = _shifted(x, y)[::-1]
    return measured(lambda: warp(s.new, _shifted, SHAPE), rival="scipy.ndimage.map_coordinates, cubic spline",
                    rival_call=lambda: scipy.ndimage.map_coordinates(s.new, at, order=3, output=np.float32),
                    floor="a copy of the frame", floor_call=lambda: s.new.copy())


def warp_all(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.resample import warp

    flags = s.mask.astype(np.uint16)
    return measured(lambda: warp(s.new, _shifted, SHAPE, variance=s.variance_new, flags=flags, bad=s.mask))


def convolve(s: Scene) -> Figures:
    import scipy.signal

    from seechange_mpi.gpu_kernels.convolve import convolve_fft

    return measured(lambda: convolve_fft(s.new, s.psf_new), rival="scipy.signal.oaconvolve",
                    rival_call=lambda: scipy.signal.oaconvolve(s.new, s.psf_new, mode="same"),
                    floor="2 real transforms of the frame", floor_call=transforms(s, 2))


def background(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.background import fit_background, render_mesh

    def ours() -> tuple[Any, Any]:
        mesh, rms = fit_background(s.new, s.mask)
        return render_mesh(mesh, 128, SHAPE), rms

    def sep_twice() -> object:
        import sep

        first = sep.Background(s.new, mask=s.mask, bw=128, bh=128)
        return first.back()

    return measured(ours, rival="sep.Background and back(): one pass, sources in", rival_call=sep_twice, needs="sep",
                    floor="one numpy.partition of the frame in boxes",
                    floor_call=lambda: np.partition(s.new.reshape(512, -1), 8192, axis=1))


def cosmics(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics

    def rival() -> object:
        import astroscrappy

        return astroscrappy.detect_cosmics(s.new, inmask=s.mask, invar=s.variance_new, gain=1, readnoise=0,
                                           satlevel=1e9, niter=3, cleantype="medmask", fsmode="median")
    return measured(lambda: detect_cosmics(s.new, s.variance_new, s.mask), rival="astroscrappy.detect_cosmics",
                    rival_call=rival, needs="astroscrappy", n=2)


def photometry_psf(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.photometry import psf_photometry

    few = slice(0, 500)

    def rival() -> object:
        from astropy.table import Table
        from photutils.psf import ImagePSF, PSFPhotometry

        model = ImagePSF(s.psf_new, x_0=0, y_0=0)
        start = Table({"x": s.x[few], "y": s.y[few], "flux": s.flux[few]})
        return PSFPhotometry(model, (9, 9))(s.new, error=np.sqrt(s.variance_new), mask=s.mask, init_params=start)

    figures = measured(lambda: psf_photometry(s.new, s.variance_new, s.mask, s.x, s.y, s.psf_new),
                       rival="photutils PSFPhotometry (500 stars × 10)", rival_call=rival, needs="photutils")
    figures.rival_s *= 10
    return figures


def photometry_aperture(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.photometry import aperture_photometry

    radii = np.array([3.0, 5.0, 8.0, 10.0])

    def rival() -> object:
        import sep

        return [sep.sum_circle(s.new, s.x, s.y, r, var=s.variance_new, mask=s.mask, subpix=0) for r in radii]

    return measured(lambda: aperture_photometry(s.new, s.variance_new, s.mask, s.x, s.y, radii),
                    rival="sep.sum_circle, exact", rival_call=rival, needs="sep")


def peaks(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.detect import find_peaks

    width = FWHM_NEW / 2.355
    score = scipy.ndimage.gaussian_filter(s.new, width) * np.float32(2 * np.sqrt(np.pi) * width / SKY)

    def rival() -> object:
        import sep

        return sep.extract(score, 5.0, minarea=1, deblend_cont=1.0)

    return measured(lambda: find_peaks(score, 5.0, s.mask), rival="sep.extract, no deblending", rival_call=rival,
                    needs="sep", floor="|score| ≥ threshold", floor_call=lambda: np.abs(score) >= 5)


def psf_fit(s: Scene) -> Figures:
    from seechange_mpi.gpu_kernels.psf_model import fit_psf

    chosen = slice(None, None, max(1, len(s.x) // 300))

    def rival() -> object:
        from astropy.nddata import NDData
        from astropy.table import Table
        from photutils.psf import EPSFBuilder, extract_stars

        stars = extract_stars(NDData(s.new), Table({"x": s.x[chosen], "y": s.y[chosen]}), size=SIZE)
        return EPSFBuilder(oversampling=1, maxiters=3, progress_bar=False)(stars)

    return measured(lambda: fit_psf(s.new, s.variance_new, s.mask, s.x[chosen], s.y[chosen], size=SIZE),
                    rival="photutils EPSFBuilder, constant PSF, 3 iterations", rival_call=rival, needs="photutils")


ROWS: dict[str, tuple[str, Callable[[Scene], Figures]]] = {
    "zogy": ("zogy_subtract, all outputs, variance from the image", zogy_plain_input),
    "zogy-full": ("zogy_subtract, all outputs, variances and mask given", zogy_full_input),
    "zogy-varying": ("the same, PSFs asked in 32 tiles", zogy_varying),
    "alard-lupton": ("alard_lupton_subtract: fit, apply, decorrelate, score", alard_lupton),
    "sfft": ("sfft_subtract: fit, apply, decorrelate, score", sfft),
    "warp": ("warp, Lanczos-3, data only", warp_data),
    "warp-all": ("warp with variance, flags and bad pixels", warp_all),
    "convolve": ("convolve_fft with a 25 × 25 stamp", convolve),
    "background": ("fit_background and render: 3 passes, sources masked", background),
    "cosmics": ("detect_cosmics, 3 iterations", cosmics),
    "psf-photometry": ("psf_photometry, 5,000 stars, position fitted", photometry_psf),
    "aperture-photometry": ("aperture_photometry, 5,000 stars × 4 radii", photometry_aperture),
    "peaks": ("find_peaks with sub-pixel fit", peaks),
    "psf-fit": ("fit_psf, 300 stars, linear in position", psf_fit),
}


def run_row(name: str) -> Figures:
    """Measure one row in a process of its own."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    done = subprocess.run([sys.executable, __file__, "--only", name, "--json"], capture_output=True, text=True,
                          env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def number(value: float, digits: int = 2) -> str:
    return "–" if not np.isfinite(value) else f"{value:.{digits}f}"


def table(names: list[str]) -> bool:
    """Print the table as it comes; False if a row failed."""
    print(f"{cpu_name()}, one thread, {SHAPE[0]}×{SHAPE[1]} float32, 5,000 stars, CPU seconds, "
          f"{datetime.now(UTC):%Y-%m-%d}.\n"
          "\"pairs\": ours over one scipy float32 rfft2 + irfft2 of the frame in the same process.\n")
    head = ["kernel", "ours [s]", "pairs", "peak with inputs [MB]", "rival", "rival [s]", "rival / ours", "floor",
            "floor [s]"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    good = True
    for name in names:
        title = ROWS[name][0]
        try:
            f = run_row(name)
        except RuntimeError as err:
            print(f"| {title} | failed |", flush=True)
            print(err, file=sys.stderr)
            good = False
            continue
        print(f"| {title} | {number(f.ours)} | {number(f.ours / f.pair_s, 1)} | {number(f.peak_mb, 0)} | {f.rival} | "
              f"{number(f.rival_s)} | {number(f.rival_s / f.ours, 1)} | {f.floor} | {number(f.floor_s)} |", flush=True)
    return good


def main() -> int:
    """Print the table, or one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(ROWS), action="append", help="only this row")
    parser.add_argument("--json", action="store_true", help="measure here and print JSON (used for each row)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return 0
    if options.json:
        s = scene()
        figures = ROWS[options.only[0]][1](s)
        figures.pair_s = fft_pair(s)
        print(json.dumps(asdict(figures)))
        return 0
    return 0 if table(options.only or list(ROWS)) else 1


if __name__ == "__main__":
    sys.exit(main())
