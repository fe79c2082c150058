"""Astrometry of source lists without images, and what the lists of one exposure tell each other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.source_list import ListSettings, count_lists
from seechange_mpi.model.errors import ConfigError, SeeChangeError
from seechange_mpi.model.exposure import identifier_of
from seechange_mpi.model.products import WorldCoordinates
from seechange_mpi.pipeline.plate import initial_plate
from seechange_mpi.pipeline.wcs_figures import displacement, header_change
from seechange_mpi.pipeline.wcs_tools import design_matrix

F64 = npt.NDArray[np.float64]
Displacement = tuple[tuple[float, float], ...]
"""Six terms (1, x, y, x², xy, y²; x, y in 1000 arcsec of the tangent plane) for the two axes [arcsec]."""
_NEIGHBOURS = 5
_REACH = 12.0
_NARROW = {"max_offset_arcsec": 4.0, "max_rotation_deg": 0.15, "max_scale_error": 0.01}


@dataclass(frozen=True, slots=True)
class ListTask:
    """One list to be solved.

    Attributes
    ----------
    path : str;  index : int, which table of the file;  name : str, for tables and files.
    settings : ListSettings;  parameters : of `AstroCalibrator`;  catalog : as for `read_catalog`.
    hint : the header's error as the other lists tell it; the search is then narrow.
    """

    path: str
    index: int
    name: str
    settings: ListSettings
    parameters: Mapping[str, Any]
    catalog: Mapping[str, Any]
    hint: Displacement | None = None


@dataclass(slots=True)
class ListResult:
    """How a list went: its solution, or the reason for refusing it."""

    name: str
    n_sources: int = 0
    wcs: WorldCoordinates | None = None
    refusal: str = ""
    centre: tuple[float, float] = (0.0, 0.0)
    """Position of the middle by the header [deg]."""
    displacement: Displacement | None = None
    """What takes the header to the solution."""
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

    out = ListResult(task.name, hinted=task.hint is not None)
    started = time.process_time()
    try:
        image, sources = read_source_list(Path(task.path), task.settings, task.index)
        out.n_sources = len(sources.table)
        cone = footprint_cone(image.header_wcs, image.shape)
        out.centre, out.extent_arcsec = (cone[0], cone[1]), cone[2] * 3600.0
        parameters = {**task.parameters, **(_NARROW if task.hint else {})}
        margin = 60.0 / 3600.0 + float(parameters.get("max_offset_arcsec", 60.0)) / 3600.0
        catalog = read_catalog(task.catalog, cone[0], cone[1], cone[2] + margin)
        header = image.header_wcs
        if task.hint is not None:
            image.header_wcs = displaced_header(header, image.shape, task.hint)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            wcs, _ = AstroCalibrator(**parameters).run(image, sources, catalog)
        out.warnings = sorted({str(w.message) for w in caught})
        (wcs.header_offset_ra_arcsec, wcs.header_offset_dec_arcsec, wcs.header_rotation_deg,
         wcs.header_scale) = header_change(header, wcs.header, image.shape)
        out.displacement, out.wcs = displacement_of(header, wcs.header, image.shape), wcs
    except SeeChangeError as err:
        out.refusal = str(err)
    out.seconds = time.process_time() - started
    return out


def list_tasks(paths: Sequence[Path], settings: ListSettings, parameters: Mapping[str, Any],
               catalog: Mapping[str, Any]) -> list[ListTask]:
    """Return the tasks of files; a file of several tables gives as many, named with their number.

    Raises
    ------
    ConfigError
        Two files have the same name.
    """
    out: list[ListTask] = []
    for path in dict.fromkeys(p.absolute() for p in paths):
        count, stem = count_lists(path), identifier_of(path).removesuffix(".ldac").removesuffix(".cat")
        out += [ListTask(str(path), k, stem if count == 1 else f"{stem}_{k + 1}", settings, parameters, catalog)
                for k in range(count)]
    names = [t.name for t in out]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"two lists are called {twice[0]}; solve them apart, results are named after their files")
    return out


def list_cones(tasks: Sequence[ListTask], margin_deg: float) -> list[tuple[float, float, float]]:
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
    for task in tasks:
        try:
            image, _ = read_source_list(Path(task.path), task.settings, task.index)
            out.append(footprint_cone(image.header_wcs, image.shape, 3600.0 * margin_deg))
        except SeeChangeError as err:
            first = first or err
    if not out and first is not None:
        raise first
    return out


def hint_for(result: ListResult, solved: Sequence[ListResult]) -> Displacement | None:
    """Return what the solved lists of the exposure say of a header's error; None with fewer than six near enough.

    The shift is the median of the nearest; rotation, scale and curvature change smoothly over the field of view and
    are taken from a plane through those of all lists, fitted robustly.
    """
    from seechange_mpi.pipeline.wcs_tools import project

    if result.extent_arcsec == 0:
        return None
    known = [r for r in solved if r.displacement is not None]
    centres = np.array([r.centre for r in known]).reshape(-1, 2)
    place = np.stack(project(centres[:, 0], centres[:, 1], *result.centre), axis=-1) * 3600.0
    with np.errstate(invalid="ignore"):
        near = np.hypot(*place.T) < _REACH * result.extent_arcsec
    if near.sum() < 6:
        return None
    place = place[near]
    values = np.array([r.displacement for r, n in zip(known, near, strict=True) if n]).reshape(len(place), -1)
    out = np.array([_plane_at_origin(place, v) for v in values.T]).reshape(-1, 2)
    nearest = np.argsort(np.hypot(*place.T), kind="stable")[:_NEIGHBOURS]
    out[0] = np.median(values[nearest, :2], axis=0)
    return tuple((float(a), float(b)) for a, b in out)


def _plane_at_origin(place: F64, values: F64) -> float:
    """Value at the origin of a plane through values, far ones clipped."""
    unit = max(float(np.abs(place).max()), 1e-9)
    design = np.stack([np.ones(len(place)), place[:, 0] / unit, place[:, 1] / unit], axis=-1)
    keep = np.ones(len(values), bool)
    c: F64 = np.zeros(3)
    for _ in range(5):
        c = np.asarray(np.linalg.lstsq(design[keep], values[keep], rcond=None)[0], np.float64)
        r = np.abs(values - design @ c)
        keep = r <= 3.0 * 1.4826 * max(float(np.median(r)), 1e-12)
        if keep.sum() < 6:
            break
    return float(c[0])


def displacement_of(before: str, after: str, shape: tuple[int, int]) -> Displacement:
    """Return the quadratic polynomial of tangent-plane position [1000 arcsec] that takes one header to another."""
    p, q = displacement(before, after, shape)
    c = np.linalg.lstsq(design_matrix(p[:, 0] / 1000.0, p[:, 1] / 1000.0, 2), q - p, rcond=None)[0]
    return tuple((float(a), float(b)) for a, b in c)


def displaced_header(header: str, shape: tuple[int, int], by: Displacement) -> str:
    """Return the header after a displacement."""
    plate = initial_plate(header, shape)
    ny, nx = shape
    gx, gy = (g.ravel() for g in np.meshgrid(np.linspace(-0.5, nx - 0.5, 9), np.linspace(-0.5, ny - 0.5, 9)))
    p = plate.sky_arcsec(gx, gy)
    target = p + design_matrix(p[:, 0] / 1000.0, p[:, 1] / 1000.0, 2) @ np.array(by)
    c = np.linalg.lstsq(design_matrix(*plate.base(gx, gy), 2), target, rcond=None)[0]
    return replace(plate, order=2, coefficients=np.asarray(c, np.float64)).header()
