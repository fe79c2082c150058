"""Bad pixels from flats of one or two levels, darks and biases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seechange_mpi.calibration.corrections import Channel
from seechange_mpi.calibration.inputs import Inputs, bad_exposure, load, too_few
from seechange_mpi.calibration.pixels import dead_pixels, fill_columns, hot_pixels, non_linear
from seechange_mpi.calibration.recipes import combined
from seechange_mpi.calibration.stack import StackMean
from seechange_mpi.calibration.task import CalibrationTask, Made
from seechange_mpi.config.calibration import CalibrationSettings
from seechange_mpi.model.calibration import DEAD, HOT, NON_LINEAR, UNSTABLE, Rejected
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import F32

U8 = npt.NDArray[np.uint8]
_TWO_LEVELS = 1.5
"""Least ratio of the brighter flats to the fainter ones that says anything of linearity."""
_UNSTABLE_INPUTS = 6
"""Least number of biases from which a pixel's own scatter is judged."""
_FLATS = ("dome", "twilight", "flat")


class _Search:
    """Collects bits, figures, inputs."""

    def __init__(self, task: CalibrationTask, frames: Mapping[str, F32]) -> None:
        self.task, self.frames, self.pars = task, frames, task.parameters()
        self.bits: U8 | None = None
        self.channels: tuple[Channel, ...] = ()
        self.quality: dict[str, float] = {}
        self.inputs: dict[str, str] = {}
        self.rejected: list[Rejected] = []

    def of(self, types: Sequence[str]) -> list[ExposureInfo]:
        return [e for e in self.task.exposures if self.task.types.get(e.identifier, "") in types]

    def load(self, exposures: Sequence[ExposureInfo], what: str, kinds: Sequence[str], *, flats: bool) -> Inputs | None:
        """Read exposures; None, with the reason noted, if there are too few."""
        task = self.task
        if not exposures:
            return None
        try:
            inputs = load(exposures, task.camera, task.section_id, Path(task.scratch),
                          {k: self.frames[k] for k in kinds if k in self.frames}, match_gains=flats,
                          mask_saturated=flats, what=f"{what} for the {task.name}", least=self.pars.min_inputs,
                          overscan=task.overscan)
        except AlgorithmError as err:
            self.rejected += [Rejected(e.identifier, str(err)) for e in exposures]
            return None
        if self.bits is None:
            self.bits = np.zeros(inputs.stack.shape, np.uint8)
            self.channels = inputs.layout.channels
        return inputs

    def mark(self, bad: npt.NDArray[np.bool_], bit: int) -> None:
        assert self.bits is not None
        self.bits[bad] |= np.uint8(bit)

    def keep(self, inputs: Inputs) -> None:
        self.inputs |= {m.name: m.digest for m in inputs.members}
        self.rejected += inputs.rejected


def make_badpixels(task: CalibrationTask, frames: Mapping[str, F32]) -> Made:
    """Find dead, odd, hot, non-linear and unstable pixels.

    Raises
    ------
    AlgorithmError
        Of no kind of exposure there are enough.
    """
    search = _Search(task, frames)
    _from_flats(search)
    _from_darks(search)
    _from_biases(search)
    if search.bits is None:
        raise too_few(task.name, 0, search.pars.min_inputs, search.rejected)
    bits = search.bits
    for bit in (DEAD, HOT, NON_LINEAR):
        search.mark(fill_columns((bits & bit) != 0, search.channels, search.pars.column_fraction), bit)
    fractions = {name: float(((bits & bit) != 0).mean()) for name, bit in
                 (("dead_fraction", DEAD), ("hot_fraction", HOT), ("nonlinear_fraction", NON_LINEAR),
                  ("unstable_fraction", UNSTABLE))}
    quality = {"n_inputs": float(len(search.inputs)), "n_rejected": float(len(search.rejected)),
               "bad_fraction": float((bits != 0).mean())}
    return Made(bits, "", quality | fractions | search.quality, search.inputs, search.rejected)


def _response(inputs: Inputs, members: Sequence[int], pars: CalibrationSettings) -> tuple[F32, StackMean]:
    """Combine some of the members of flats; return the mean relative to its median."""
    everyone = inputs.members
    inputs.members = [everyone[k] for k in members]
    try:
        done = combined(inputs, 1 / inputs.array("level"), pars, weights=inputs.array("level"))
    finally:
        inputs.members = everyone
    return np.asarray(done.mean / np.float32(np.nanmedian(done.mean)), dtype=np.float32), done


def _from_flats(search: _Search) -> None:
    """Dead and odd pixels; non-linear ones where the flats have two levels."""
    pars = search.pars
    inputs = search.load(search.of(_FLATS), "flats", ("bias", "dark"), flats=True)
    if inputs is None:
        return
    with inputs:
        inputs.drop(bad_exposure(inputs.members, inputs.layout, pars, pars.sky_min_electrons, "sky_min_electrons"))
        search.keep(inputs)
        if len(inputs.members) < pars.min_inputs:
            return
        levels = inputs.array("level")
        border = math.sqrt(levels.min() * levels.max())
        groups = [np.flatnonzero(levels < border), np.flatnonzero(levels >= border)]
        two = levels.max() > _TWO_LEVELS * levels.min() and min(len(g) for g in groups) >= pars.min_inputs
        bright, bright_done = _response(inputs, list(groups[1]) if two else list(range(len(levels))), pars)
        dead = dead_pixels(bright, pars.dead_response)
        search.mark(dead, DEAD)
        search.quality["flat_levels"] = 2.0 if two else 1.0
        if two:
            faint, faint_done = _response(inputs, list(groups[0]), pars)
            noise = math.hypot(bright_done.noise_measured, faint_done.noise_measured)
            search.mark(non_linear(faint, bright, dead, noise, pars.nonlinear_tolerance, pars.column_tolerance,
                                   pars.hot_sigma, search.channels), NON_LINEAR)


def _from_darks(search: _Search) -> None:
    """Hot pixels."""
    inputs = search.load([e for e in search.of(("dark",)) if e.exp_time_s > 0], "darks", ("bias",), flats=False)
    if inputs is None:
        return
    with inputs:
        search.keep(inputs)
        done = combined(inputs, 1 / inputs.times, search.pars, weights=inputs.times)
        search.mark(hot_pixels(done.mean, search.pars.hot_sigma), HOT)


def _from_biases(search: _Search) -> None:
    """Pixels far off in the mean, or that scatter more than they should."""
    inputs = search.load(search.of(("bias",)), "biases", (), flats=False)
    if inputs is None:
        return
    with inputs:
        search.keep(inputs)
        n = len(inputs.members)
        done = combined(inputs, np.ones(n), search.pars, exposed=False)
        search.mark(hot_pixels(done.mean, search.pars.hot_sigma, both_signs=True), HOT)
        if n >= _UNSTABLE_INPUTS:
            restless = done.chi2 > 1 + search.pars.hot_sigma * math.sqrt(2 / (n - 1))
            # more outliers than cosmic rays make
            search.mark(restless | (done.kept <= n - max(3, math.ceil(0.2 * n))), UNSTABLE)
