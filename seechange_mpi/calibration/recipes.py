"""How bias, dark, flat and fringe frames are made of their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.ndimage

from seechange_mpi.calibration.corrections import plane_of
from seechange_mpi.calibration.inputs import Inputs, bad_exposure, load, odd_exposed, odd_unexposed
from seechange_mpi.calibration.pixels import dead_pixels, hot_pixels
from seechange_mpi.calibration.stack import StackMean, combine, robust_std
from seechange_mpi.calibration.task import CalibrationTask, Made
from seechange_mpi.calibration.transfer import gain_of_flats, read_noise_electrons
from seechange_mpi.config.calibration import CalibrationSettings
from seechange_mpi.gpu_kernels.background import fit_background, render_mesh, source_mask
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import F32, F64

_FLAT_BOX = 128
_REFINEMENTS = 2
"""Times that fringes are taken off their inputs to find the sky below them."""


def make_bias(task: CalibrationTask, frames: Mapping[str, F32]) -> Made:
    """Combine biases: ADU after overscan, raw amplifiers.

    Raises
    ------
    AlgorithmError
        Too few inputs are good.
    """
    pars = task.parameters()
    with _loaded(task, frames, (), match_gains=False, mask_saturated=False) as inputs:
        inputs.drop(odd_unexposed(inputs.members, np.ones(len(inputs.members)), pars))
        inputs.require(pars.min_inputs, task.name)
        done = combined(inputs, np.ones(len(inputs.members)), pars, exposed=False)
        quality = _quality(inputs, done, done.mean, 0.0)
        noise = read_noise_electrons(inputs.stack, inputs.indices, inputs.layout.channels)
        quality |= {f"read_noise_{name}": value for name, value in noise.items()}
        quality["hot_fraction"] = float(hot_pixels(done.mean, pars.hot_sigma).mean())
        return made_of(done.mean, "adu", quality, inputs)


def make_dark(task: CalibrationTask, frames: Mapping[str, F32]) -> Made:
    """Combine darks: ADU/s after overscan and bias, raw amplifiers, weighted by exposure time.

    Raises
    ------
    AlgorithmError
        Too few inputs are good, or have no exposure time.
    """
    pars = task.parameters()
    with _loaded(task, frames, ("bias",), match_gains=False, mask_saturated=False) as inputs:
        inputs.drop({m.name: f"its exposure time is {m.exposure.exp_time_s:g} s" for m in inputs.members
                     if not m.exposure.exp_time_s > 0})
        inputs.require(pars.min_inputs, task.name)
        inputs.drop(odd_unexposed(inputs.members, inputs.times, pars))
        inputs.require(pars.min_inputs, task.name)
        times = inputs.times
        done = combined(inputs, 1 / times, pars, weights=times)
        quality = _quality(inputs, done, done.mean, _noise_of(task, "bias") * len(times) / times.sum())
        quality |= {"exp_time_total_s": float(times.sum()), "exp_time_shortest_s": float(times.min()),
                    "exp_time_longest_s": float(times.max()),
                    "hot_fraction": float(hot_pixels(done.mean, pars.hot_sigma).mean())}
        return made_of(done.mean, "adu/s", quality, inputs)


def make_flat(task: CalibrationTask, frames: Mapping[str, F32]) -> Made:
    """Combine flats: response relative to its median, amplifiers of one gain, weighted by level (photon noise).

    Sky flats are made twice: the first one flattens the inputs, so that their sources can be masked.

    Raises
    ------
    AlgorithmError
        Too few inputs are good; says which are too faint, saturated or odd.
    """
    pars = task.parameters()
    sky = task.flat_type == "sky"
    with _loaded(task, frames, ("bias", "dark"), match_gains=True, mask_saturated=True) as inputs:
        option = "sky_min_electrons" if sky else "flat_min_electrons"
        inputs.drop(bad_exposure(inputs.members, inputs.layout, pars, float(getattr(pars, option)), option))
        inputs.drop(odd_exposed(inputs.members, pars, same_level=task.flat_type != "twilight"))
        inputs.require(pars.min_inputs, task.name)
        gains = {} if sky else gain_of_flats(inputs.stack, inputs.indices, inputs.layout.channels)
        levels = inputs.array("level")
        done = combined(inputs, 1 / levels, pars, weights=levels)
        if sky:
            levels = _mask_sources(inputs, done.mean, pars)
            done = combined(inputs, 1 / levels, pars, weights=levels)
        middle = float(np.nanmedian(done.mean))
        if not middle > 0:
            raise AlgorithmError("calibration", f"{task.name}: the combined flat has no positive median",
                                 {"median": middle})
        flat = np.asarray(done.mean / np.float32(middle), dtype=np.float32)
        quality = _quality(inputs, done, flat, _noise_of(task, "bias") * len(levels) / float(levels.sum()))
        quality |= {f"gain_{name}": value for name, value in gains.items()}
        quality |= {"level_lowest_adu": float(levels.min()), "level_highest_adu": float(levels.max()),
                    "dead_fraction": float(dead_pixels(flat, pars.dead_response).mean())}
        return made_of(flat, "", quality, inputs)


def make_fringe(task: CalibrationTask, frames: Mapping[str, F32]) -> Made:
    """Combine sky exposures to the pattern of fringes: zero mean, in units of the sky level.

    The sky below the fringes is a mesh wider than they are; the pattern found is taken off before the mesh is fitted
    again and sources are masked.

    Raises
    ------
    AlgorithmError
        There is no flat, or too few inputs are good.
    """
    pars = task.parameters()
    if "flat" not in frames:
        raise AlgorithmError("calibration", f"{task.name}: fringes need a flat of the filter; make or register one "
                             "(seechange-mpi calib make flat, calib add)")
    with _loaded(task, frames, ("bias", "dark", "flat"), match_gains=True, mask_saturated=True) as inputs:
        inputs.drop(bad_exposure(inputs.members, inputs.layout, pars, pars.sky_min_electrons, "sky_min_electrons"))
        inputs.drop(odd_exposed(inputs.members, pars, same_level=False))
        inputs.require(pars.min_inputs, task.name)
        levels = inputs.array("level")
        pattern: F32 | None = None
        meshes: dict[int, F32] = {}
        for _ in range(1 + _REFINEMENTS):
            levels = _flatten_sky(inputs, pattern, meshes, levels, pars)
            done = combined(inputs, 1 / levels, pars, pedestal=1.0, weights=levels,
                            flat=frames["flat"])
            pattern = np.nan_to_num(done.mean, nan=0.0)
            pattern -= np.float32(_plain_mean(pattern))
        assert pattern is not None
        quality = _quality(inputs, done, pattern, _noise_of(task, "flat"))
        quality |= {"level_lowest_adu": float(levels.min()), "level_highest_adu": float(levels.max()),
                    "amplitude": float(np.subtract(*np.percentile(pattern[::2, ::2], [97.5, 2.5])) / 2)}
        return made_of(pattern, "", quality, inputs)


def _loaded(task: CalibrationTask, frames: Mapping[str, F32], kinds: tuple[str, ...], *, match_gains: bool,
            mask_saturated: bool) -> Inputs:
    return load(task.exposures, task.camera, task.section_id, Path(task.scratch),
                {k: frames[k] for k in kinds if k in frames}, match_gains=match_gains, mask_saturated=mask_saturated,
                what=task.name, least=task.parameters().min_inputs, overscan=task.overscan)


def combined(inputs: Inputs, scales: F64, pars: CalibrationSettings, *, pedestal: float = 0.0,
              weights: F64 | None = None, flat: F32 | None = None, exposed: bool = True) -> StackMean:
    """Combine the members, with the noise that their amplifiers have (over the flat, if they were divided by one)."""
    read, unit = (plane_of(inputs.layout.channels, name, inputs.stack.shape)
                  for name in ("read_variance", "unit_per_electron"))
    if not exposed:  # what a bias has is no light
        unit = np.zeros_like(unit)
    if flat is not None:
        response = np.maximum(flat / np.float32(np.nanmedian(flat[::3, ::3])), np.float32(0.05))
        read, unit = read / response**2, unit / response
    return combine(inputs.stack, inputs.indices, scales, read, unit, pedestal=pedestal, weights=weights,
                   n_sigma=pars.n_sigma, memory_mb=pars.memory_mb)


def _quality(inputs: Inputs, done: StackMean, frame: F32, noise_common: float) -> dict[str, float]:
    """Figures that every frame has; `noise_common`: of the frames that corrected all inputs."""
    return {"n_inputs": float(len(inputs.members)), "n_rejected": float(len(inputs.rejected)),
            "median": float(np.nanmedian(frame[::2, ::2])), "rms": robust_std(frame),
            "clipped_fraction": done.clipped_fraction, "noise_expected": done.noise_expected,
            "noise_measured": done.noise_measured, "noise": math.hypot(done.noise_measured, noise_common),
            "chi2": float(np.nanmean(np.minimum(done.chi2[::2, ::2], 10.0)))}


def _noise_of(task: CalibrationTask, kind: str) -> float:
    """Noise that a frame's header declares; 0 if it says nothing."""
    from astropy.io import fits

    path = task.calibration.get(kind)
    value = fits.getheader(path).get("NOISE") if path is not None else None
    return float(value) if isinstance(value, int | float) else 0.0


def made_of(data: F32, unit: str, quality: dict[str, float], inputs: Inputs) -> Made:
    return Made(np.asarray(data, dtype=np.float32), unit, quality, {m.name: m.digest for m in inputs.members},
                list(inputs.rejected))


def _plain_mean(pattern: F32) -> float:
    """Mean without the few pixels far outside."""
    sigma = robust_std(pattern)
    return float(pattern[np.abs(pattern) < 8 * sigma].mean()) if sigma > 0 else float(pattern.mean())


def _grown(mask: np.ndarray, grow: int) -> np.ndarray:
    """Grow a mask by a square."""
    out = mask.astype(np.uint8)
    for axis in (0, 1):
        out = scipy.ndimage.maximum_filter1d(out, 2 * grow + 1, axis=axis)
    return out.astype(bool)


def _mask_sources(inputs: Inputs, flat: F32, pars: CalibrationSettings) -> F64:
    """Make the pixels of sources NaN in every member; return their levels from what is left, relative to `flat`."""
    usable = flat > 0.05
    levels = []
    for m in inputs.members:
        data = inputs.stack.read(m.index)
        ratio = np.where(usable, data / np.where(usable, flat, 1), np.nan).astype(np.float32)
        bad = ~np.isfinite(ratio)
        box = min(_FLAT_BOX, *ratio.shape)
        mesh, rms = fit_background(ratio, bad, box)
        shape = (ratio.shape[0], ratio.shape[1])
        mask = source_mask(ratio - render_mesh(mesh, box, shape), render_mesh(rms, box, shape), pars.source_sigma)
        mask = _grown(mask, pars.source_grow)
        level = float(np.median(ratio[~(mask | bad)])) if (~(mask | bad)).any() else m.level
        data[mask] = np.nan
        inputs.stack.put(m.index, data)
        levels.append(level)
    return np.array(levels)


def _flatten_sky(inputs: Inputs, pattern: F32 | None, meshes: dict[int, F32], levels: F64,
                 pars: CalibrationSettings) -> F64:
    """Leave only what rises above a smooth sky in every member; return the sky levels.

    With a `pattern`, it is taken off before the sky is found, and sources are masked.
    """
    out = []
    shape = inputs.stack.shape
    box = min(pars.fringe_box, *shape)
    for m, level in zip(inputs.members, levels, strict=True):
        data = inputs.stack.read(m.index)
        if m.index in meshes:
            data += render_mesh(meshes[m.index], box, shape)
        below = data if pattern is None else data - np.float32(level) * pattern
        mesh, rms = fit_background(below, ~np.isfinite(below), box)
        sky = render_mesh(mesh, box, shape)
        data -= sky
        meshes[m.index] = mesh
        if pattern is not None:
            mask = _grown(source_mask(below - sky, render_mesh(rms, box, shape), pars.source_sigma), pars.source_grow)
            data[mask] = np.nan
        inputs.stack.put(m.index, data)
        out.append(float(np.median(sky)))
    return np.array(out)
