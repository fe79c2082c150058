"""Rank 0 finds the star catalogue: what the configuration names, and one excerpt of it for each exposure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_mpi.config.resolve import Config
from seechange_mpi.io.catalog_excerpt import LARGEST_DEG, Cone, bounding_cone, make_excerpt
from seechange_mpi.model.errors import ConfigError, SeeChangeError
from seechange_mpi.pipeline.top_level import Pipeline

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_SPARE_DEG = 60.0 / 3600.0
"""Between the corners known beforehand and the sections' own footprints."""


def catalog_spec(config: Config, path: str | None = None) -> dict[str, Any] | None:
    """Return the catalogue that the configuration (or `path`) names, for `read_catalog`; None if there is none.

    Raises
    ------
    ConfigError
        Both a path and a URL are given, or nothing lies at the path.
    """
    settings = config.settings.catalog
    named = path or settings.path
    if named is None:
        return settings.model_dump() if settings.url else None
    if settings.url and not path:
        raise ConfigError("catalog.path and catalog.url are both given; keep one of them")
    if not Path(named).expanduser().exists():
        raise ConfigError(f"catalog.path: {named}: no such file")
    return settings.model_dump() | {"path": str(Path(named).expanduser().absolute()), "url": None}


def cache_folder(config: Config) -> Path:
    """Return the folder of excerpts, absolute."""
    given = config.settings.catalog.cache
    return Path(given).expanduser().absolute() if given else config.root / "catalog-cache"


def shared_excerpt(spec: Mapping[str, Any], cones: Iterable[Cone], config: Config,
                   opened: Callable[[], Connection] | None = None) -> dict[str, Any]:
    """Return one excerpt for all cones; the catalogue itself where they are spread too far.

    Parameters
    ----------
    opened : opens database connections: of all jobs that need the region one makes the excerpt, and it is registered.
        None: neither.
    """
    cone = bounding_cone(cones)
    if cone[2] > LARGEST_DEG:
        return dict(spec)
    if opened is None:
        return make_excerpt(spec, cone, cache_folder(config))
    from seechange_mpi.db.excerpts import ExcerptKeeper

    keeper = ExcerptKeeper(opened, config.settings.catalog.wait_s)
    excerpt = make_excerpt(spec, cone, cache_folder(config), keeper.alone)
    keeper.register(spec, Path(excerpt["path"]))
    return excerpt


def exposure_catalog(spec: Mapping[str, Any] | None, footprints: Mapping[str, list[tuple[float, float]]],
                     config: Config, pipeline: Pipeline, opened: Callable[[], Connection] | None = None
                     ) -> dict[str, Any] | None:
    """Return the excerpt that covers all sections of an exposure and the error of its pointing.

    All sections of the camera count, also those that are not asked for now: the identity of the stars must not depend
    on that. Without any position the catalogue itself is returned. For `opened` see `shared_excerpt`.
    """
    if spec is None or not footprints:
        return dict(spec) if spec else None
    margin = pipeline.astrocalibrator.catalog_margin_arcsec / 3600.0 + _SPARE_DEG
    corners = [(ra, dec, margin) for section in footprints.values() for ra, dec in section]
    return shared_excerpt(spec, corners, config, opened)


def stars_per_section(catalog: Mapping[str, Any] | None, footprints: Mapping[str, list[tuple[float, float]]]
                      ) -> dict[str, int]:
    """Return how many stars of an exposure's excerpt lie on each section, roughly; empty where that is not known.

    Only used to predict durations.
    """
    import numpy as np

    from seechange_mpi.io.catalog import read_catalog

    if not catalog or catalog.get("url") or not footprints:
        return {}
    corners = [(ra, dec, _SPARE_DEG) for section in footprints.values() for ra, dec in section]
    try:
        stars = read_catalog(catalog, *bounding_cone(corners))
    except SeeChangeError:
        return {}  # the sections will say so, each for itself
    counts = {}
    for section, outline in footprints.items():
        ra, dec = np.array(outline, dtype=float).T
        east = (stars.ra - ra[0] + 180.0) % 360.0
        east_edges = (ra - ra[0] + 180.0) % 360.0
        inside = (east >= east_edges.min()) & (east <= east_edges.max())
        counts[section] = int(np.count_nonzero(inside & (stars.dec >= dec.min()) & (stars.dec <= dec.max())))
    return counts
