"""FITS files opened and their HDUs found, with errors that say what is wrong."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from astropy.io import fits

from seechange_mpi.instruments.camera import Hdu
from seechange_mpi.io.retrieval import bring_back
from seechange_mpi.model.errors import BadInput


def open_fits(path: str | Path) -> fits.HDUList:
    """Open a FITS file, brought back from the archive if it is gone and was there.

    A truncated file opens; its incomplete HDUs are refused when they are read.

    Raises
    ------
    BadInput
        The file is missing or is not FITS.
    """
    if not os.path.isfile(path) and not bring_back(Path(path)):
        raise BadInput(path, "exposure", "a FITS file", "no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fits.open(path, memmap=False, lazy_load_hdus=False)
    except (OSError, ValueError, TypeError, EOFError) as err:
        raise BadInput(path, "exposure", "a FITS file", f"unreadable: {err}") from None


def check_whole(hdu: Any, path: str, what: str) -> None:
    """Refuse an HDU whose pixels reach beyond the end of the file.

    Raises
    ------
    BadInput
        The file is truncated.
    """
    place = hdu.fileinfo()
    if place is None or path.endswith((".gz", ".bz2")):
        return
    needed, size = place["datLoc"] + place["datSpan"], os.path.getsize(path)
    if size < needed:
        raise BadInput(path, what, f"a file of at least {needed} bytes, as its header declares",
                       f"{size} bytes: the file is truncated")


def get_hdu(hdus: fits.HDUList, hdu: Hdu, path: str, what: str) -> Any:
    """Return an HDU by number, name or (name, version).

    Raises
    ------
    BadInput
        There is none.
    """
    try:
        return hdus[tuple(hdu) if isinstance(hdu, list | tuple) else hdu]
    except (KeyError, IndexError):
        names = ", ".join(f"{i} {h.name}".strip() for i, h in enumerate(hdus))
        raise BadInput(path, what, f"HDU {hdu}", f"only HDUs {names}") from None
