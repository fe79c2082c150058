"""Variance of every pixel of a corrected section: sky, detector and sources."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seechange_mpi.gpu_kernels.background import fit_mesh, render_mesh
from seechange_mpi.gpu_kernels.variance import add_source_variance
from seechange_mpi.model.products import F32
from seechange_mpi.pipeline.corrections import Frame

_BOX = 128


def estimate_variance(frame: Frame, mask: npt.NDArray[np.bool_], *, measured: bool) -> tuple[F32, F32]:
    """Return the total variance [ADU²] and the sky level [ADU] of each pixel.

    The read noise is that of the pixel's own amplifier; an ADU of a corrected image is worth gain × response
    electrons; subtracted dark current and fringes count with their noise.

    Parameters
    ----------
    frame : its data are finite, unusable pixels 0.
    mask : (ny, nx) bool, True = leave out of the sky.
    measured : bool
        True: the sky's variance is its measured scatter (the sky level may have been subtracted before).
        False: it is the Poisson variance of the level plus read noise.
    """
    shape = (frame.data.shape[0], frame.data.shape[1])
    mesh, mesh_rms = fit_mesh(frame.data, mask, min(_BOX, *shape))
    sky: F32 = render_mesh(mesh, _BOX, shape)
    if measured:
        base: F32 = render_mesh(mesh_rms, _BOX, shape)
        np.maximum(base, np.float32(1e-6), out=base)
        base *= base
    else:
        base = _expected(frame, sky)
    return add_source_variance(frame.data, sky, mask, base, frame.gain, frame.response), sky


def _expected(frame: Frame, sky: F32) -> F32:
    """Return (sky / f + dark / f² + R² / (g f²)) / g: response f, gain g, the amplifier's read noise R [e-]."""
    base = sky.copy()
    if frame.fringe is not None:
        base += frame.fringe
    np.maximum(base, 0, out=base)
    for amp, place in zip(frame.amplifiers, frame.places, strict=True):
        detector: F32 | np.float32 = np.float32(amp.read_noise_e**2 / frame.gain)
        if frame.dark is not None:
            detector = np.maximum(frame.dark[place], 0) + detector
        base[place] += detector if frame.response is None else detector / frame.response[place]
    if frame.response is not None:
        base /= frame.response
    base *= np.float32(1 / frame.gain)
    return base
