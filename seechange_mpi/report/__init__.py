"""HTML reports of bundles, for people: tables, focal plane, cutout triplets. Never imported on workers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seechange_mpi.report.figures import triplet_figure
    from seechange_mpi.report.page import write_report

__all__ = ["triplet_figure", "write_report"]
_HOME = {"triplet_figure": "figures", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
