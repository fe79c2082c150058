"""Astrometry of source lists without images, and what the lists of one exposure tell each other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seechange_mpi.io.source_list import ListSettings
from seechange_mpi.model.errors import SeeChangeError
from seechange_mpi.model.products import WorldCoordinates
from seechange_mpi.pipeline.matching import Similarity

_NEIGHBOURS = 5
_NARROW = {"max_offset_arcsec": 4.0, "max_rotation_deg": 0.15, "max_scale_error": 0.01}


@dataclass(frozen=True, slots=True)
class ListTask:
    """One list to be solved.

    Attributes
    ----------
    path : str;  settings : ListSettings;  parameters : of `AstroCalibrator`;  catalog : as for `read_catalog`.
    hint : Similarity or None, the header's error as the other lists tell it; the search is then narrow.
    """

    path: str
    settings: ListSettings
    parameters: Mapping[str, Any]
    catalog: Mapping[str, Any]
    hint: Similarity | None = None


@dataclass(slots=True)
class ListResult:
    """How a list went: its solution, or the reason for refusing it."""

    path: str
    n_sources: int = 0
    wcs: WorldCoordinates | None = None
    refusal: str = ""
    centre: tuple[float, float] = (0.0, 0.0)
    """Position of the middle by the header [deg]."""
    extent_arcsec: float = 0.0
    hinted: bool = False
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def solve_list(task: ListTask) -> ListResult:
    """Solve one list; a refusal is a result too."""
    from seechange_mpi.io.catalog import read_catalog
    from seechange_mpi.io.source_list import read_source_list
    from seechange_mpi.pipeline.astrocal import AstroCalibrator
    from seechange_mpi.pipeline.wcs_tools import footprint_cone

    out = ListResult(task.path, hinted=task.hint is not None)
    started = time.process_time()
    try:
        image, sources = read_source_list(Path(task.path), task.settings)
        out.n_sources = len(sources.table)
        cone = footprint_cone(image.header_wcs, image.shape)
        out.centre, out.extent_arcsec = (cone[0], cone[1]), cone[2] * 3600.0
        parameters = {**task.parameters, **(_NARROW if task.hint else {})}
        margin = 60.0 / 3600.0 + float(parameters.get("max_offset_arcsec", 60.0)) / 3600.0
        catalog = read_catalog(task.catalog, cone[0], cone[1], cone[2] + margin)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            out.wcs, _ = AstroCalibrator(**parameters).run(image, sources, catalog, task.hint)
        out.warnings = sorted({str(w.message) for w in caught})
    except SeeChangeError as err:
        out.refusal = str(err)
    out.seconds = time.process_time() - started
    return out


def list_cones(paths: Sequence[Path], settings: ListSettings, margin_deg: float) -> list[tuple[float, float, float]]:
    """Return the cones [deg] of those lists that have a position.

    Raises
    ------
    BadInput
        None has one; the reason is that of the first.
    """
    from seechange_mpi.io.source_list import read_source_list
    from seechange_mpi.pipeline.wcs_tools import footprint_cone

    out = []
    first: SeeChangeError | None = None
    for path in paths:
        try:
            image, _ = read_source_list(path, settings)
            out.append(footprint_cone(image.header_wcs, image.shape, 3600.0 * margin_deg))
        except SeeChangeError as err:
            first = first or err
    if not out and first is not None:
        raise first
    return out


def hint_for(result: ListResult, solved: Sequence[ListResult]) -> Similarity | None:
    """Return what the nearest solved lists of the exposure say of the header's error; None with fewer than three.

    Only lists within twelve times the section's size count: others belong to another pointing.
    """
    from seechange_mpi.pipeline.wcs_tools import separation_deg

    known = [(r, r.wcs) for r in solved if r.wcs is not None and np.isfinite(r.wcs.header_offset_ra_arcsec)]
    if not known or result.extent_arcsec == 0:
        return None
    centres = np.array([r.centre for r, _ in known])
    distance = separation_deg(centres[:, 0], centres[:, 1], *result.centre) * 3600.0
    near = [k for k in np.argsort(distance, kind="stable")[:_NEIGHBOURS] if distance[k] < 12 * result.extent_arcsec]
    if len(near) < 3:
        return None
    values = np.array([[known[k][1].header_offset_ra_arcsec, known[k][1].header_offset_dec_arcsec,
                        known[k][1].header_rotation_deg, known[k][1].header_scale] for k in near])
    dx, dy, angle, scale = np.median(values, axis=0)
    return Similarity(float(dx), float(dy), float(angle), float(scale))
