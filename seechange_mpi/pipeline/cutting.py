"""Stamps of new, reference and difference around every detection."""

from __future__ import annotations

import numpy as np
from pydantic import field_validator

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.stamps import cut_stamps
from seechange_mpi.model.products import Cutouts, Detections, SectionProducts, SubImage
from seechange_mpi.pipeline.backgrounding import subtract_background
from seechange_mpi.pipeline.step import Step


class CuttingParameters(Parameters):
    """Parameters of `Cutter`."""

    section = "cutting"
    cutout_size: int = par(41, "side of the stamps, odd", unit="pix", ge=11)

    @field_validator("cutout_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class Cutter(Step[CuttingParameters]):
    """Cut stamps."""

    process = "cutting"
    parameters_class = CuttingParameters

    def run(self, new: SectionProducts, sub: SubImage, detections: Detections) -> Cutouts:
        """Return (n, size, size) stamps in ADU of the new image, NaN where flagged or off the section.

        The new image is background-subtracted; the reference is warped and scaled to the new image.
        """
        assert new.image is not None
        assert new.background is not None
        x, y = detections.table["peak_x"], detections.table["peak_y"]
        planes = ((subtract_background(new.image, new.background), new.image.flags != 0),
                  (sub.ref_data, sub.ref_flags != 0), (sub.data, sub.flags != 0))
        stamps = []
        for data, bad in planes:
            masked = np.where(bad, np.float32(np.nan), data)
            stamps.append(cut_stamps(masked, x, y, self.pars.cutout_size, fill=np.nan)[0].astype(np.float32))
        return Cutouts(*stamps)
