"""Sky background of a preprocessed image: a mesh of clipped levels and rms, sources masked."""

from __future__ import annotations

import numpy as np

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.background import measure_background, render_mesh
from seechange_mpi.model.errors import AlgorithmError
from seechange_mpi.model.products import F32, Background, Image
from seechange_mpi.pipeline.step import Step


class BackgroundParameters(Parameters):
    """Parameters of `Backgrounder`."""

    section = "extraction.bg"
    box_size: int = par(128, "size of a mesh box; larger than any galaxy, smaller than the sky's structure",
                        unit="pix", ge=16)
    filt_size: int = par(3, "median filter over the mesh", unit="boxes", ge=1)
    detect_sigma: float = par(2.0, "significance of smoothed pixels left out as sources", unit="sigma", gt=0)
    iterations: int = par(2, "rounds of finding sources and fitting again", ge=0)


class Backgrounder(Step[BackgroundParameters]):
    """Fit the sky of an image."""

    process = "extraction"
    parameters_class = BackgroundParameters

    def run(self, image: Image) -> Background:
        """Return the background of `image`; flagged pixels are left out.

        Raises
        ------
        AlgorithmError
            No good pixel, or an rms that is not positive.
        """
        mask = image.flags != 0
        if mask.all():
            raise AlgorithmError("background", "every pixel is flagged", {"pixels": mask.size})
        p = self.pars
        box = min(p.box_size, *image.shape)
        mesh, rms, error = measure_background(image.data, mask, box, p.filt_size, p.detect_sigma, p.iterations)
        if not (np.isfinite(rms).all() and (rms > 0).all()):
            raise AlgorithmError("background", "the rms of the sky is not positive: constant or missing data",
                                 {"least_rms": float(np.nanmin(rms)), "good_pixels": int((~mask).sum())})
        value = float(np.median(render_mesh(mesh, box, image.shape)))
        noise = float(np.median(render_mesh(rms, box, image.shape)))
        return Background(mesh, rms, box, image.shape, value, noise, float(np.median(error)))


def subtract_background(image: Image, background: Background) -> F32:
    """Return (ny, nx) float32 `image.data` less its background [ADU]; flagged pixels are as in the image."""
    level: F32 = render_mesh(background.mesh, background.box_size, background.shape)
    out: F32 = image.data - level
    return out


def render_rms(background: Background) -> F32:
    """Return the (ny, nx) float32 rms of the sky [ADU]."""
    out: F32 = render_mesh(background.mesh_rms, background.box_size, background.shape)
    return out
