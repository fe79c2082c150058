"""Every kernel gives on a device what it gives on NumPy: one table, one test.

To add a kernel add an `Entry` to `TABLE`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from kernel_truth import add_stars, grid_positions, stamp

from seechange_mpi import gpu_kernels
from seechange_mpi.gpu_kernels.alard_lupton import solve_alard_lupton
from seechange_mpi.gpu_kernels.background import (
    fit_background,
    fit_mesh,
    measure_background,
    render_mesh,
    source_mask,
)
from seechange_mpi.gpu_kernels.combine import combine_clipped
from seechange_mpi.gpu_kernels.convolve import convolve_direct, convolve_fft, convolve_variance, convolve_varying
from seechange_mpi.gpu_kernels.cosmicray import detect_cosmics
from seechange_mpi.gpu_kernels.detect import find_peaks, value_at_peaks
from seechange_mpi.gpu_kernels.difference import Pair
from seechange_mpi.gpu_kernels.difference_filter import matched_filter
from seechange_mpi.gpu_kernels.fft import centred_kernel
from seechange_mpi.gpu_kernels.fill import fill_values
from seechange_mpi.gpu_kernels.joint import joint_photometry
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.matched import matched_subtract
from seechange_mpi.gpu_kernels.methods import alard_lupton_subtract, sfft_subtract
from seechange_mpi.gpu_kernels.photometry import aperture_photometry, moments, psf_photometry, render_sources
from seechange_mpi.gpu_kernels.psf_model import ConstantPSF, fit_psf, render
from seechange_mpi.gpu_kernels.resample import warp
from seechange_mpi.gpu_kernels.sfft import solve_sfft
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.gpu_kernels.stats import clipped, mad_std
from seechange_mpi.gpu_kernels.trails import find_trails
from seechange_mpi.gpu_kernels.variance import add_source_variance
from seechange_mpi.gpu_kernels.zogy import zogy_subtract

SHAPE = (151, 170)
SKY = 6.0
FWHM = 3.2


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kernel on one small input.

    Attributes
    ----------
    inputs : () -> the arguments by name; arrays are put on the device, everything else is passed as it is.
    call : the kernel; called with `inputs` as keywords. It returns an array, a number, or a tuple or dataclass of them.
    tolerance : largest difference [in units of the output], for float32 results about 1e-5 of their largest value, for
        float64 ones 1e-9; integers and booleans must be equal.
    per_output : other tolerances, by output name (field name, or index in a tuple).
    unequal : fraction of pixels of boolean or integer images that may differ: decisions at a threshold on values that
        differ by rounding.
    host : outputs that are host arrays.
    """

    name: str
    inputs: Callable[[], dict[str, Any]]
    call: Callable[..., Any]
    tolerance: float
    per_output: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unequal: float = 0.0
    host: frozenset[str] = frozenset()


def star_field(seed: int = 3, *, gradient: float = 0.0, shape: tuple[int, int] = SHAPE) -> dict[str, np.ndarray]:
    """Data, variance, mask and the positions of stars; bad and NaN pixels included."""
    rng = np.random.default_rng(seed)
    x, y = grid_positions(rng, shape, 21)
    flux = 10 ** rng.uniform(3.2, 5, len(x))
    clean = np.zeros(shape)
    add_stars(clean, x, y, flux, FWHM, 25)
    data = clean + rng.normal(0, 1, shape) * np.sqrt(SKY**2 + clean) + gradient * np.mgrid[:shape[0], :shape[1]][0]
    mask = rng.random(shape) < 0.003
    data[mask] = 5e4
    data[70, 33:36] = np.nan
    return {"data": data.astype(np.float32), "variance": (SKY**2 + clean).astype(np.float32), "mask": mask,
            "x": x + rng.normal(0, 0.1, len(x)), "y": y + rng.normal(0, 0.1, len(x)), "flux": flux}


def some(field: dict[str, Any], *names: str) -> dict[str, Any]:
    """The named arguments."""
    return {n: field[n] for n in names}


def pair() -> dict[str, Any]:
    """Arguments of a subtraction."""
    new, ref = star_field(3), star_field(4)
    mask = new["mask"] | ref["mask"]
    return {"new": new["data"], "ref": ref["data"], "psf_new": stamp(15, FWHM).astype(np.float32),
            "psf_ref": stamp(15, 2.6).astype(np.float32), "noise_new": SKY, "noise_ref": SKY, "flux_new": 0.9,
            "variance_new": new["variance"], "variance_ref": ref["variance"], "sigma_x": 0.1, "sigma_y": 0.05,
            "mask": mask}


def calibration_stack() -> dict[str, Any]:
    """Arguments of a combination: outliers, masked and NaN values, a model of the noise."""
    rng = np.random.default_rng(8)
    stack = rng.normal(5, 2, (9, 40, 50)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.01] += 500
    stack[2, 7, 9] = np.nan
    mask = rng.random(stack.shape) < 0.05
    mask[:, 0, 0] = True
    return {"stack": stack, "mask": mask, "read_variance": np.full((9, 1, 1), 4, np.float32), "poisson": 0.01,
            "weights": np.linspace(1, 2, 9).astype(np.float32)}


def same_stars() -> dict[str, Any]:
    """Arguments of a subtraction of images that show the same stars, with bad and NaN pixels."""
    rng = np.random.default_rng(12)
    shape = (221, 230)
    x, y = grid_positions(rng, shape, 30)
    flux = 10 ** rng.uniform(4, 5, len(x))
    given: dict[str, Any] = {"mask": rng.random(shape) < 0.001}
    for key, fwhm in (("new", FWHM), ("ref", 2.6)):
        clean = np.zeros(shape)
        add_stars(clean, x, y, flux, fwhm, 25)
        data = clean + rng.normal(0, 1, shape) * np.sqrt(SKY**2 + clean)
        data[given["mask"]] = 5e4
        given |= {key: data.astype(np.float32), f"variance_{key}": (SKY**2 + clean).astype(np.float32),
                  f"psf_{key}": stamp(21, fwhm).astype(np.float32), f"noise_{key}": SKY}
    given["ref"][100, 33:36] = np.nan
    return given


def for_solver(**more: Any) -> dict[str, Any]:
    """Arguments of a solver of the matching kernel."""
    return {**some(same_stars(), "new", "ref", "variance_new", "variance_ref", "mask"), "fwhm_new": FWHM,
            "fwhm_ref": 2.6, **more}


def solved(solve: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel that a solver finds: its planes, background and flux scale."""
    def call(**given: Any) -> tuple[np.ndarray, np.ndarray, float]:
        solution = solve(**given)
        return solution.planes, solution.background, solution.flux_scale
    return call


def without_solution(subtract: Callable[..., Any]) -> Callable[..., Any]:
    """A subtraction whose result has images only."""
    return lambda **given: dataclasses.replace(subtract(**given), solution=None)


def known_solution(convolved: str) -> KernelSolution:
    """A kernel that varies linearly."""
    planes = np.stack([stamp(9, 1.9), np.zeros((9, 9)), 0.05 * (stamp(9, 2.5) - stamp(9, 1.9))])
    return KernelSolution(planes, 1, np.array([1.0, 0.5, -0.5]), 1, 115.0, 110.0, 115.0, 110.0, convolved, 1.0)


def kernel_at(x: float, y: float) -> np.ndarray:
    return stamp(9, 3.0) * (1 + 1e-3 * x - 2e-3 * y)


def filled(new: Any, ref: Any, psf_new: Any, psf_ref: Any, mask: Any) -> Any:
    """What `zogy_subtract` would fill."""
    def at(_x: float, _y: float) -> Any:
        p_n, p_r = (centred_kernel(p.astype(np.float64), (128, 128)) for p in (psf_new, psf_ref))
        return matched_filter(p_r, p_n, p_n, (128, 128), noise_new=SKY, noise_ref=SKY, floor_n=1e-5, floor_r=1e-5)

    images = Pair(new, ref, None, None, lambda x, y: SKY, lambda x, y: SKY)
    return fill_values(images, mask | ~(new + ref < 1e30), at, varying=False)


def one_field_twice() -> dict[str, Any]:
    """The same stars twice, masked here and there."""
    first, noise = star_field(3), np.random.default_rng(4).normal(0, SKY, SHAPE).astype(np.float32)
    return {**some(pair(), "psf_new", "psf_ref"), "new": first["data"], "ref": first["data"] + noise,
            "mask": first["mask"]}


def score() -> dict[str, Any]:
    """A smooth significance image with peaks of both signs."""
    rng = np.random.default_rng(8)
    image = np.zeros(SHAPE)
    x, y = grid_positions(rng, SHAPE, 17)
    add_stars(image, x, y, rng.choice([-1, 1], len(x)) * 10 ** rng.uniform(1, 3, len(x)), FWHM, 15)
    image += rng.normal(0, 0.3, SHAPE)
    image[20:23, 40] = np.nan
    return {"score": image.astype(np.float32), "threshold": 5.0, "mask": rng.random(SHAPE) < 0.01}


def cosmics() -> dict[str, Any]:
    """A field with cosmic rays."""
    field = star_field(6)
    rng = np.random.default_rng(9)
    for _ in range(25):
        j, i, n = rng.integers(5, SHAPE[0] - 15), rng.integers(5, SHAPE[1] - 15), rng.integers(1, 8)
        field["data"][j + np.arange(n), i + np.arange(n) // 2] += rng.uniform(200, 2000)
    return {**some(field, "variance", "mask"), "data": np.nan_to_num(field["data"])}


def streaked() -> dict[str, Any]:
    """Stars and a trail across them."""
    rng = np.random.default_rng(6)
    shape = (331, 350)
    y, x = np.mgrid[: shape[0], : shape[1]]
    clean = 18 * np.exp(-0.4 * ((y - 20 - 0.6 * x) * 0.857) ** 2)
    add_stars(clean, rng.uniform(0, 350, 12), rng.uniform(0, 331, 12), 10 ** rng.uniform(3, 5, 12), FWHM, 25)
    data = clean + rng.normal(0, SKY, shape)
    return {"data": data.astype(np.float32), "variance": np.full(shape, SKY**2, np.float32),
            "mask": rng.random(shape) < 0.003}


def figures_of_trails(mask: Any, trails: list[Any]) -> tuple[Any, int, float, float]:
    return mask, len(trails), trails[0].x1, trails[0].sigma


def warped() -> dict[str, Any]:
    """A rotation by 2°, a shift, flags and bad pixels."""
    field = star_field(7)
    c, s = np.cos(0.035), np.sin(0.035)
    flags = np.random.default_rng(1).integers(0, 8, SHAPE).astype(np.uint16)
    return {"data": field["data"], "xy_of": lambda x, y: (c * x - s * y + 3.3, s * x + c * y - 1.7),
            "shape": (140, 163), "variance": field["variance"], "flags": flags, "bad": field["mask"]}


def psf_basis() -> np.ndarray:
    """Basis of a PSF that varies linearly."""
    p = stamp(21, FWHM)
    return np.stack([p, 0.1 * (np.roll(p, 1, 1) - p), 0.1 * (np.roll(p, 1, 0) - p)]).astype(np.float32)


def model_of(basis: Any) -> ConstantPSF:
    return ConstantPSF(basis, 1, 85.0, 75.0, 85.0, 75.0)


def sources(**more: Any) -> dict[str, Any]:
    """Arguments of photometry at the stars and at some places off the image or on nothing."""
    field = star_field(5)
    field["x"] = np.concatenate([field["x"], [0.2, 169.6, 80.0]])
    field["y"] = np.concatenate([field["y"], [0.3, 75.0, 71.0]])
    return {**some(field, "data", "variance", "mask", "x", "y"), **more}


def crowd(**more: Any) -> dict[str, Any]:
    """`sources` without those on nothing, with neighbours beside the first ones."""
    field = sources(**more)
    x, y = field["x"][:-2], field["y"][:-2]
    return {**field, "x": np.concatenate([x, x[:8] + 3.1]), "y": np.concatenate([y, y[:8] - 1.7])}


def nothing(**more: Any) -> dict[str, Any]:
    return {**sources(**more), "x": np.zeros(0), "y": np.zeros(0)}


def convolution() -> dict[str, Any]:
    field = star_field(3)
    return {"image": field["data"], "mask": field["mask"], "kernel": stamp(9, 3.0)}


STAMP = stamp(21, FWHM).astype(np.float32)
PEAKS = frozenset(["peak_x", "peak_y", "x", "y", "peak", "num_pixels", "num_flagged", "peak_value"])
SOLUTION = frozenset(["0", "1"])
PRODUCTS = {"psf": 1e-5, "score": 0.1, "flux": 0.2, "flux_err": 1e-2, "translient": 0.1, "flux_zero_point": 1e-4}

TABLE = [
    Entry("zogy_subtract", pair, zogy_subtract, 1e-3, {"psf": 1e-6, "score": 3e-2, "flux": 0.05, "flux_err": 1e-3,
                                                       "translient": 3e-2, "flux_zero_point": 1e-9}),
    Entry("zogy_subtract plain", lambda: some(pair(), "new", "ref", "psf_new", "psf_ref", "noise_new", "noise_ref"),
          zogy_subtract, 1e-3, {"psf": 1e-6, "score": 3e-2, "flux": 0.05, "translient": 3e-2}),
    Entry("fill_values", one_field_twice, filled, 1.0, {"log_kept": 1e-4}),
    Entry("alard_lupton_subtract", same_stars, without_solution(alard_lupton_subtract), 5e-3, PRODUCTS),
    Entry("sfft_subtract", same_stars, without_solution(sfft_subtract), 5e-3, PRODUCTS),
    *(Entry(f"matched_subtract {convolved}", lambda: {k: v for k, v in same_stars().items() if k != "psf_ref"},
            lambda convolved=convolved, **k: without_solution(matched_subtract)(
                solution=known_solution(convolved), **k), 5e-3, PRODUCTS) for convolved in ("ref", "new")),
    Entry("solve_alard_lupton", for_solver, solved(solve_alard_lupton), 1e-5, {"1": 1e-2}, host=SOLUTION),
    Entry("solve_sfft", lambda: for_solver(half_width=6), solved(solve_sfft), 1e-5, {"1": 1e-2}, host=SOLUTION),
    Entry("convolve_fft", convolution, convolve_fft, 0.05),
    Entry("convolve_direct", convolution, convolve_direct, 0.05),
    Entry("convolve_variance", lambda: {**some(star_field(3), "variance", "mask"), "kernel": stamp(9, 3.0)},
          convolve_variance, 0.05),
    Entry("convolve_varying", lambda: {"image": star_field()["data"], "kernel_at": kernel_at, "tile": 64},
          convolve_varying, 0.05),
    Entry("find_peaks", score, find_peaks, 1e-4, host=PEAKS),
    Entry("find_peaks none", lambda: {**score(), "threshold": 1e9}, find_peaks, 0, host=PEAKS),
    Entry("value_at_peaks", lambda: {**score(), "image": 3 * score()["score"]},
          lambda image, **k: value_at_peaks(image, find_peaks(**k), k["mask"]), 1e-3, host=frozenset([""])),
    Entry("psf_photometry", lambda: sources(psf=STAMP), psf_photometry, 1e-6, {"flux": 1e-3, "flux_err": 1e-4}),
    Entry("psf_photometry forced", lambda: sources(psf=STAMP, fit_position=False, radius=5.0), psf_photometry, 1e-6,
          {"flux": 1e-3, "flux_err": 1e-4}),
    Entry("psf_photometry equal weights", lambda: sources(psf=STAMP, fit_position=False, radius=5.0,
                                                          equal_weights=True), psf_photometry, 1e-6,
          {"flux": 1e-3, "flux_err": 1e-4}),
    Entry("psf_photometry varying PSF", lambda: sources(basis=psf_basis()),
          lambda basis, **k: psf_photometry(psf=model_of(basis), **k), 1e-6, {"flux": 1e-3, "flux_err": 1e-4}),
    Entry("psf_photometry none", lambda: nothing(psf=STAMP), psf_photometry, 0),
    Entry("joint_photometry", lambda: crowd(psf=STAMP), joint_photometry, 1e-4, {
        "flux": 2e-2, "flux_err": 1e-3, "residual": 2e-2, "blend": 1e-4}),
    Entry("joint_photometry none", lambda: nothing(psf=STAMP), joint_photometry, 1e-5),
    Entry("aperture_photometry", lambda: sources(radii=(2.0, 4.5, 7.0)), aperture_photometry, 1e-5),
    Entry("aperture_photometry none", lambda: nothing(radii=(2.0,)), aperture_photometry, 0),
    Entry("moments", lambda: some(sources(sigma=2.0), "data", "mask", "x", "y", "sigma"), moments, 1e-7,
          {"flux": 1e-3, "theta": 1e-5}),
    Entry("measure_background", lambda: {"data": star_field(2, gradient=0.5)["data"], "mask": star_field(2)["mask"],
                                         "box_size": 40}, measure_background, 5e-3),
    Entry("fit_background", lambda: {"data": star_field(2, gradient=0.5)["data"], "mask": star_field(2)["mask"],
                                     "box_size": 40}, fit_background, 5e-3),
    Entry("fit_mesh", lambda: {**some(star_field(2), "data", "mask"), "box_size": 40}, fit_mesh, 1e-3),
    Entry("render_mesh", lambda: {"mesh": np.random.default_rng(0).normal(100, 5, (4, 5)).astype(np.float32),
                                  "box_size": 37, "shape": SHAPE}, render_mesh, 1e-3),
    Entry("render_mesh one box", lambda: {"mesh": np.full((1, 1), 7, np.float32), "box_size": 200, "shape": SHAPE},
          render_mesh, 0),
    Entry("render_mesh one row", lambda: {"mesh": np.arange(4, dtype=np.float32)[None], "box_size": 40,
                                          "shape": (40, 160)}, render_mesh, 1e-5),
    Entry("source_mask", lambda: {"residual": star_field(2)["data"], "rms": np.full(SHAPE, SKY, np.float32)},
          source_mask, 0, unequal=1e-3),
    Entry("warp", warped, warp, 0.05, {"variance": 0.05}, unequal=1e-4),
    Entry("warp data only", lambda: some(warped(), "data", "xy_of", "shape"), warp, 0.05, unequal=1e-4),
    Entry("detect_cosmics", cosmics, detect_cosmics, 0, unequal=1e-4),
    Entry("find_trails", streaked, lambda **k: figures_of_trails(*find_trails(min_length=100, **k)), 0.05,
          unequal=1e-3),
    Entry("add_source_variance", lambda: {**some(star_field(6), "mask"), "data": cosmics()["data"], "gain": 1.7, **{
        k: np.full(SHAPE, v, np.float32) for k, v in (("sky", 3.0), ("base", SKY**2), ("response", 0.9))}},
          add_source_variance, 0.1),
    Entry("fit_psf", lambda: {**some(star_field(5), "data", "variance", "mask", "x", "y"), "size": 21},
          fit_psf, 1e-5, {"chi2": 1e-3, "fwhm": 5e-3}, host=frozenset(["chi2", "used"])),
    Entry("render", lambda: {"basis": psf_basis(), "x": np.array([3.2, 88.9]), "y": np.array([150.4, 70.1])},
          lambda basis, **k: render(model_of(basis), **k), 1e-6),
    Entry("render centred", lambda: {"basis": psf_basis(), "x": np.array([3.2]), "y": np.array([150.4]), "size": 15,
                                     "phase": False}, lambda basis, **k: render(model_of(basis), **k), 1e-6),
    Entry("render_sources", lambda: {"shape": SHAPE, **some(sources(psf=STAMP), "x", "y", "psf"),
                                     "flux": np.full(len(sources()["x"]), 1e3)}, render_sources, 1e-3),
    Entry("cut_stamps", lambda: {"image": star_field()["data"], "x": np.array([-3, 0, 80, 169]),
                                 "y": np.array([5, 150, 60, 149]), "size": 9}, cut_stamps, 0),
    Entry("clipped", lambda: {"values": star_field()["data"], "mask": star_field()["mask"]}, clipped, 1e-6),
    Entry("combine_clipped", lambda: calibration_stack(), combine_clipped, 1e-4,
          per_output={"chi2": 1e-3, "half_difference": 1e-4}),
    Entry("combine_clipped without a model", lambda: {"stack": calibration_stack()["stack"], "n_sigma": 4.0},
          combine_clipped, 1e-4, per_output={"chi2": 1e-3}),
    Entry("mad_std", lambda: {"values": star_field()["data"]}, mad_std, 1e-5),
]

PARTS = {
    "laplacian", "mad_factor", "expected_loss", "mapping_grid", "polynomial_terms", "shift_matrices", "shifted",
    "shifted_with_slopes", "local_stamps", "fwhm_of", "stamp_index", "take_stamps", "truncated_variance", "subtract",
    "matched_filter", "reach", "psf_stamp", "default_basis", "fit_direction", "part_of", "signal_to_noise",
    "spread_order", "basis_functions", "flux_constant_transform", "convolve_basis", "usable", "bad_pixels", "cut",
    "background_columns", "sky", "find_regions", "whole_frame", "spread_model", "line_sums",
    "strongest_lines", "cut_strip"}
"""Public functions that only work inside kernels of the table."""


def outputs(result: Any) -> dict[str, Any]:
    """The parts of a result by name."""
    if dataclasses.is_dataclass(result):
        return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    if isinstance(result, tuple):
        names = getattr(result, "_fields", [str(k) for k in range(len(result))])
        return dict(zip(names, result, strict=True))
    return {"": result}


def compare(entry: Entry, name: str, found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    if expected.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=f"NaN of {name}")
        tolerance = entry.per_output.get(name, entry.tolerance)
        np.testing.assert_allclose(found, expected, rtol=1e-5 if tolerance else 0, atol=tolerance, err_msg=name)
    else:
        assert np.count_nonzero(found != expected) <= entry.unequal * expected.size, name


@pytest.mark.parametrize("entry", TABLE, ids=lambda e: e.name)
def test_device_agrees_with_numpy(cuda_device, entry):
    given = entry.inputs()
    expected = outputs(entry.call(**copy.deepcopy(given)))
    there = {k: cuda_device.asarray(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    found = outputs(entry.call(**there))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        got = found[name]
        if isinstance(value, np.ndarray):
            on_host = isinstance(got, np.ndarray) and name in entry.host
            compare(entry, name, got if on_host else cuda_device.asnumpy(got), value)
        else:
            assert isinstance(got, type(value)), f"{name} is a {type(got)}"
            tolerance = entry.per_output.get(name, entry.tolerance)
            assert got == (pytest.approx(value, rel=1e-6, abs=tolerance) if isinstance(value, float) else value), name
    for k, v in given.items():
        if isinstance(v, np.ndarray):
            np.testing.assert_array_equal(cuda_device.asnumpy(there[k]), v, err_msg=f"{entry.name} changed {k}")


def test_the_table_is_complete():
    """Every public function of the kernels has an entry or is named as a part of one that has."""
    public = set()
    for info in pkgutil.iter_modules(gpu_kernels.__path__):
        if info.name not in ("backend", "checks", "device", "cuda", "fft", "polynomials", "tiles"):
            module = importlib.import_module(f"seechange_mpi.gpu_kernels.{info.name}")
            public |= {n for n, f in vars(module).items() if not n.startswith("_") and inspect.isfunction(f)
                       and f.__module__ == module.__name__}
    missing = public - {e.name.partition(" ")[0] for e in TABLE} - PARTS
    assert missing == set(), "add an Entry to TABLE, or the name to PARTS"
