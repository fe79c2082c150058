"""Planes that come with reduced images: weight and mask, in the same file or beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from seechange_mpi.instruments.camera import Hdu
from seechange_mpi.io.fits_files import get_hdu, open_fits
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import F32, U16


class PlaneReader:
    """Reads planes of one section.

    Parameters
    ----------
    hdus : the opened exposure;  path : its file.
    section_hdu : HDU of the section's pixels.
    shape : (ny, nx) that planes must have.
    """

    def __init__(self, hdus: fits.HDUList, path: str, section_hdu: Hdu, shape: tuple[int, int]) -> None:
        self.hdus, self.path, self.section_hdu, self.shape = hdus, path, section_hdu, shape

    def read(self, hdu: Hdu | None, file: tuple[str, str] | None, what: str) -> npt.NDArray[Any] | None:
        """Return a plane, or None where the camera has none.

        Raises
        ------
        BadInput
            The file's name has no such text, there is no such file or HDU, or the plane has another shape.
        """
        if file is None:
            return None if hdu is None else self._plane(self.hdus, self.path, hdu, what)
        name = os.path.basename(self.path)
        if file[0] not in name:
            raise BadInput(self.path, f"{what} file", f"'{file[0]}' in the exposure's file name", name)
        beside = str(Path(self.path).with_name(name.replace(file[0], file[1])))
        with open_fits(beside) as hdus:
            return self._plane(hdus, beside, self.section_hdu if hdu is None else hdu, what)

    def _plane(self, hdus: fits.HDUList, path: str, hdu: Hdu, what: str) -> npt.NDArray[Any]:
        data = get_hdu(hdus, hdu, path, what).data
        if data is None or data.shape != self.shape:
            raise BadInput(path, what, f"a plane of {self.shape[1]}×{self.shape[0]} pixels",
                           "none" if data is None else f"shape {data.shape}")
        return np.asarray(data)


def inverse_variance(plane: npt.NDArray[Any], kind: str) -> F32:
    """Return 1 / variance [ADU**-2] of a plane of kind weight, ivar, variance or sigma; 0 where it says nothing."""
    out = np.array(plane, dtype=np.float32)
    if kind == "sigma":
        out *= np.abs(out)
    if kind in ("variance", "sigma"):
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(np.float32(1), out, out=out)
    out[~((out > 0) & np.isfinite(out))] = 0
    return out


def translate_mask(mask: npt.NDArray[Any], kind: str, meaning: Mapping[int, str]) -> U16:
    """Return a delivered mask in `PixelFlag` bits.

    Parameters
    ----------
    mask : integers;  kind : ``values`` (one code per pixel) or ``bits``.
    meaning : code, or number of the bit, -> name of a `PixelFlag` or ``ignore``; anything else is BAD_PIXEL.
    """
    flags: U16 = np.zeros(mask.shape, np.uint16)
    # masks are stored as integers, or as floats by programs that know nothing else
    rest = np.rint(np.nan_to_num(mask, nan=-1)).astype(np.int64)
    for number, name in meaning.items():
        hit = rest == number if kind == "values" else (rest >> number) & 1 != 0
        if name != "ignore":
            flags[hit] |= np.uint16(PixelFlag[name])
        rest[hit] = 0 if kind == "values" else rest[hit] & ~np.int64(1 << number)
    flags[rest != 0] |= np.uint16(PixelFlag.BAD_PIXEL)
    return flags
