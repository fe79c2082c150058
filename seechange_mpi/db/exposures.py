"""Row of an exposure, and what the rows of its images say of instrument, time and place."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.sky import RING, bounds, columns_of
from seechange_mpi.io.bundle import BundleInfo
from seechange_mpi.model.errors import BadInput, SeeChangeError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.flags import REDUCED_ELSEWHERE
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.products import StoredSection

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.instruments.camera import Camera

_SECONDS_OF_DAY = 86400.0
_SAME_TIME_DAYS = 1e-6
"""Times of one exposure, read again, differ by less."""


class ImageType(IntEnum):
    """``_type`` of exposures and images, numbered as in SeeChange."""

    SCI = 1
    COMSCI = 2
    DIFF = 3
    COMDIFF = 4
    BIAS = 5
    COMBIAS = 6
    DARK = 7
    COMDARK = 8
    DOMEFLAT = 9
    COMDOMEFLAT = 10
    SKYFLAT = 11
    COMSKYFLAT = 12
    TWIFLAT = 13
    COMTWIFLAT = 14
    FRINGE = 15
    WARPED = 16
    COMWARPED = 17


class FileFormat(IntEnum):
    """``_format`` of exposures and images, numbered as in SeeChange."""

    FITS = 1
    HDF5 = 2
    FITSFZ = 17


def exposure_row(info: BundleInfo, sections: Iterable[StoredSection]) -> dict[str, Any]:
    """Row of ``exposures``. Of cameras with a filter per section ``filter`` is NULL and ``filter_array`` has those of
    the sections that are there."""
    e = info.exposure
    acquired = next(p for p in info.provenances if p.process == "acquire_exposure")
    found = sorted({s.products.image.filter for s in sections if s.products.image is not None})
    reduced = acquired.parameters.get("proc_type") == "reduced"
    return {
        "_id": stable_id("exposure", e.identifier),
        "filepath": e.path,
        "origin_identifier": e.identifier,
        "instrument": e.instrument,
        "project": e.project,
        "target": e.target,
        "filter": e.filter or None,
        "filter_array": None if e.filter else found,
        "mjd": e.mjd,
        "exp_time": e.exp_time_s,
        "airmass": e.airmass,
        "ra": e.ra_deg,
        "dec": e.dec_deg,
        **columns_of(e.ra_deg, e.dec_deg),
        "_type": int(ImageType.SCI),
        "_format": int(FileFormat.FITSFZ if e.path.endswith(".fz") else FileFormat.FITS),
        "preproc_bitflag": int(REDUCED_ELSEWHERE) if reduced else 0,
        "info": json.dumps(e.header, sort_keys=True),
        "provenance_id": acquired.id,
    }


def store_exposure(conn: Connection, row: dict[str, Any]) -> int:
    """Insert an exposure; filters of sections that came later are added to those it has. Return how many are new.

    Raises
    ------
    BadInput
        See `check_identity`.
    """
    new = insert_rows(conn, "exposures", [row])
    if not new:
        check_identity(conn, row["origin_identifier"], row["instrument"], row["mjd"], row["filepath"])
    if row["filter_array"] and not new:
        conn.execute(
            "UPDATE exposures SET modified = now(), filter_array = ARRAY(SELECT DISTINCT f FROM "
            "unnest(filter_array || %(found)s::text[]) f ORDER BY f) WHERE _id = %(id)s AND NOT filter_array @> "
            "%(found)s::text[]", {"found": row["filter_array"], "id": row["_id"]})
    return new


def check_identity(conn: Connection, identifier: str, instrument: str, mjd: float, path: str) -> None:
    """Refuse an exposure that has the name of another one: names of files are the names of exposures.

    Raises
    ------
    BadInput
        The database has an exposure of this name from another camera or another time.
    """
    known: Any = conn.execute("SELECT instrument, mjd FROM exposures WHERE origin_identifier = %s",
                              (identifier,)).fetchone()
    if known is not None and (known[0] != instrument or abs(known[1] - mjd) > _SAME_TIME_DAYS):
        raise BadInput(path, "exposure", f"{identifier} of {known[0]} at MJD {known[1]:.6f}, which the database has "
                       f"under this name (give the file another name, or remove that one: seechange-mpi products "
                       f"delete {identifier})", f"one of {instrument} at MJD {mjd:.6f}")


@lru_cache(maxsize=16)
def _shipped(instrument: str) -> Camera | None:
    """A camera that comes with the program: a user's own may have changed since."""
    from seechange_mpi.instruments.camera import list_cameras, load_camera

    try:
        return load_camera(instrument) if instrument in list_cameras() else None
    except SeeChangeError:
        return None


def telescope_of(instrument: str, header: dict[str, Any]) -> str:
    """Return the telescope of a camera that comes with the program, else what the header says."""
    camera = _shipped(instrument)
    return (camera.telescope if camera is not None else "") or str(header.get("TELESCOP", "")).strip()


def _sky_subtracted(e: ExposureInfo) -> bool:
    camera = _shipped(e.instrument)
    return bool(e.overrides.get("sky_subtracted", camera is not None and camera.sky_subtracted))


def exposure_columns(e: ExposureInfo) -> dict[str, Any]:
    """Columns of images that say the same of all images of an exposure."""
    return {
        "instrument": e.instrument,
        "telescope": telescope_of(e.instrument, e.header),
        "project": e.project,
        "target": e.target,
        "airmass": e.airmass,
        "_type": int(ImageType.SCI),
        "_format": int(FileFormat.HDF5),
        "sky_sub_done": _sky_subtracted(e),
    }


def times(mjd: float, exp_time_s: float) -> dict[str, float]:
    """Columns of images that say when."""
    return {"mjd": mjd, "exp_time": exp_time_s, "end_mjd": mjd + exp_time_s / _SECONDS_OF_DAY}


def outline(header: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Centre, corners and bounds; corners as in SeeChange: 0x at low, 1x at high ra; x0 at low, x1 at high dec."""
    from seechange_mpi.pipeline.wcs_tools import pixel_to_sky

    ny, nx = shape
    ra, dec = pixel_to_sky(header, [(nx - 1) / 2, 0, 0, nx - 1, nx - 1], [(ny - 1) / 2, 0, ny - 1, 0, ny - 1])
    from_centre = (ra[1:] - ra[0] + 180) % 360 - 180
    by_ra = np.argsort(from_centre, kind="stable") + 1
    low, high = (half[np.argsort(dec[half], kind="stable")] for half in (by_ra[:2], by_ra[2:]))
    out: dict[str, Any] = {"ra": float(ra[0]), "dec": float(dec[0])}
    for name, k in zip(("00", "01", "10", "11"), (*low, *high), strict=True):
        # as the database will have them
        out |= {f"ra_corner_{name}": float(np.float32(ra[k])), f"dec_corner_{name}": float(np.float32(dec[k]))}
    limits = bounds(out["ra"], [out[f"ra_corner_{n}"] for n in RING], [out[f"dec_corner_{n}"] for n in RING])
    return out | columns_of(out["ra"], out["dec"]) | {name: limit[0].item() for name, limit in limits.items()}
