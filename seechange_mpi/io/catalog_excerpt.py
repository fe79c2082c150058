"""Excerpts: the stars around one exposure in one file that all ranks read, cached for later exposures of the field.

An excerpt is named after its query (what catalogue, how it is read) and its cone. The identity that goes into an
exposure's inputs is the digest of the stars in the exposure's own cone, whatever excerpt they came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from seechange_mpi.io.catalog import EXCERPT_SUFFIX, CatalogTable, inside_cone, read_catalog
from seechange_mpi.io.catalog_folder import INDEX
from seechange_mpi.io.star_file import (
    columns_of,
    content_digest,
    read_star_file,
    sorted_by_declination,
    write_star_file,
)
from seechange_mpi.model.errors import BadInput

Cone = tuple[float, float, float]
Alone = Callable[[str, Cone], AbstractContextManager[object]]
"""Entered with the digest of a query and a cone; keeps others from making such an excerpt meanwhile."""
LARGEST_DEG = 15.0
"""Above this radius no excerpt is made."""
_NAME = re.compile(r"([0-9a-f]{16})_([0-9.]+)([+-][0-9.]+)_([0-9.]+)" + re.escape(EXCERPT_SUFFIX) + "$")
_QUERY = ("path", "url", "columns", "angle_unit", "units", "ref_epoch", "min_mag", "max_mag")


def bounding_cone(cones: Iterable[Cone]) -> Cone:
    """Return a cone around others (centre and radius in degrees)."""
    list_ = np.array(list(cones), float)
    a, d = np.radians(list_[:, 0]), np.radians(list_[:, 1])
    v = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
    centre = v.mean(axis=0)
    centre /= max(float(np.linalg.norm(centre)), 1e-12)
    chord = np.linalg.norm(v - centre, axis=1)
    radius = float((np.degrees(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0))) + list_[:, 2]).max())
    # rounded, so that the name of a file tells it exactly
    ra = round(float(np.degrees(np.arctan2(centre[1], centre[0]))) % 360.0, 4) % 360.0
    return ra, round(float(np.degrees(np.arcsin(centre[2]))), 4), np.ceil((radius + 2e-4) * 1e4) / 1e4


def query_digest(spec: Mapping[str, Any]) -> str:
    """Return what distinguishes one catalogue and way of reading it from another; a changed file is another."""
    query = {k: spec.get(k) for k in _QUERY}
    if query["path"]:
        path = Path(str(query["path"])).expanduser()
        file = path / INDEX if path.is_dir() else path
        try:
            stat = os.stat(file)
        except OSError as err:
            raise BadInput(path, "catalogue", "a readable file or folder", err.strerror) from None
        query["state"] = [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(query, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_excerpt(spec: Mapping[str, Any], cone: Cone, cache: Path,
                 alone: Alone = lambda _query, _cone: nullcontext()) -> dict[str, Any]:
    """Return the specification of an excerpt that covers a cone, made now or found in the cache.

    The result goes to `read_catalog` in place of `spec`; its ``identity`` depends only on the stars in the cone.

    Parameters
    ----------
    alone : entered while an excerpt is made, so that of several processes one asks the catalogue. Without it they may
        all ask; the file is whole in any case.

    Raises
    ------
    BadInput
        The catalogue is unusable.
    TransientError
        The service does not answer, or the cache cannot be written.
    """
    digest = query_digest(spec)
    found = _from_cache(cache, digest, cone)
    if found is None:
        with alone(digest, cone):
            found = _from_cache(cache, digest, cone, last=True) or _fetch(spec, cone, cache, digest)
    path, stars = found
    origin = Path(str(spec["path"])).name if spec.get("path") else str(spec["url"])
    return {"path": str(path), "origin": dict(spec), "identity": f"{origin}:{content_digest(stars)}"}


def _from_cache(cache: Path, digest: str, cone: Cone, *, last: bool = False) -> tuple[Path, CatalogTable] | None:
    """The excerpt in the cache and its stars; a damaged one is removed by whoever makes it anew (`last`)."""
    path = _cached(cache, digest, cone)
    if path is None:
        return None
    try:
        return path, read_star_file(path, cone)[0]
    except BadInput as err:
        if last:
            warnings.warn(f"a damaged excerpt is made anew: {err}", stacklevel=2)
            path.unlink(missing_ok=True)
        return None


def _fetch(spec: Mapping[str, Any], cone: Cone, cache: Path, digest: str) -> tuple[Path, CatalogTable]:
    # dithered exposures of the field are to find it large enough
    whole = cone[0], cone[1], round(min(1.1 * cone[2] + 0.02, 180.0), 4)
    more = sorted_by_declination(read_catalog(spec, *whole))
    path = cache / f"{digest}_{whole[0]:.4f}{whole[1]:+.4f}_{whole[2]:.4f}{EXCERPT_SUFFIX}"
    write_star_file(path, columns_of(more), {
        "EXCRA": whole[0], "EXCDEC": whole[1], "EXCRAD": whole[2], "EXCROWS": more.rows_in_file,
        "EXCFROM": Path(str(spec.get("path") or spec.get("url"))).name[:60]})
    return path, more.chosen(inside_cone(more.ra, more.dec, *cone))


def _cached(cache: Path, digest: str, cone: Cone) -> Path | None:
    """The smallest excerpt of the same query that contains the cone."""
    best: tuple[float, Path] | None = None
    for path in sorted(cache.glob(f"{digest}_*{EXCERPT_SUFFIX}")) if cache.is_dir() else ():
        found = _NAME.match(path.name)
        if not found:
            continue
        ra, dec, radius = (float(v) for v in found.groups()[1:])
        if covers((ra, dec, radius), cone) and (best is None or radius < best[0]):
            best = radius, path
    return best[1] if best else None


def covers(outer: Cone, inner: Cone) -> bool:
    """Whether one cone contains another."""
    d1, d0 = np.radians(inner[1]), np.radians(outer[1])
    h = (np.sin((d1 - d0) / 2) ** 2 + np.cos(d1) * np.cos(d0) * np.sin(np.radians(inner[0] - outer[0]) / 2) ** 2)
    distance = np.degrees(2 * np.arcsin(np.sqrt(min(1.0, float(h)))))
    return bool(distance + inner[2] <= outer[2] + 1e-9)


def read_excerpt(path: Path, spec: Mapping[str, Any], cone: Cone) -> CatalogTable:
    """Read a cone from an excerpt; one that reaches outside is read from the catalogue itself, with a warning.

    Raises
    ------
    BadInput
        The excerpt is missing or damaged.
    """
    stars, cards = read_star_file(path, cone)
    outer = (float(cards["EXCRA"]), float(cards["EXCDEC"]), float(cards["EXCRAD"]))
    if not covers(outer, cone):
        if not spec.get("origin"):
            raise BadInput(path, "excerpt of a catalogue", f"one that covers {cone[2]:.3f} deg around {cone[0]:.4f} "
                           f"{cone[1]:+.4f}", f"{outer[2]:.3f} deg around {outer[0]:.4f} {outer[1]:+.4f}")
        warnings.warn(f"the section reaches outside the exposure's excerpt {path.name}; its stars are read from the "
                      "catalogue", stacklevel=2)
        return read_catalog(spec["origin"], *cone)
    stars.rows_in_file = int(cards.get("EXCROWS", stars.rows_in_file))
    origin = spec.get("origin") or {}
    stars.path = str(origin.get("path") or origin.get("url") or path)
    return stars
