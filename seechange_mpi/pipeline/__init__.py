"""The steps of a section, one file each; usable alone in a notebook, with neither MPI nor a database.

``from seechange_mpi.pipeline import Pipeline, Preprocessor, Detector, …`` imports only what is named.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Pipeline": "top_level",
    "Preprocessor": "preprocessing",
    "Backgrounder": "backgrounding",
    "Detector": "extraction",
    "AstroCalibrator": "astrocal",
    "PhotCalibrator": "photocal",
    "Subtractor": "subtraction",
    "Cutter": "cutting",
    "Measurer": "measuring",
    "Scorer": "scoring",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
