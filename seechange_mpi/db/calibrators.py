"""Calibration frames: registered with a range of dates, found by the date of an exposure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.provenance import store_provenances
from seechange_mpi.instruments.camera import Camera
from seechange_mpi.model.calibration import FLAT_TYPES, KINDS, SETS, CalibratorFrame
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.ids import stable_id

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_MJD_ZERO = datetime(1858, 11, 17, tzinfo=UTC)


def time_of(mjd: float | None) -> datetime | None:
    """Return an mjd as UTC."""
    return None if mjd is None else _MJD_ZERO + timedelta(days=mjd)


def mjd_of(time: datetime | None) -> float | None:
    """Return a time as mjd."""
    return None if time is None else (time - _MJD_ZERO) / timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CalibratorRow:
    """One registered frame; `info` holds quality figures, inputs, and inputs left out."""

    id: str
    kind: str
    calibrator_set: str
    flat_type: str
    instrument: str
    section_id: str
    filter: str
    path: str
    sha256: str
    validity_start: datetime | None
    validity_end: datetime | None
    provenance_id: str
    info: Mapping[str, Any]


_COLUMNS = ("c._id::text, c.type, c.calibrator_set, coalesce(c.flat_type, ''), c.instrument, c.sensor_section, "
            "coalesce(c.filter, ''), d.filepath, d.sha256, c.validity_start, c.validity_end, d.provenance_id, c.info")
_FROM = "FROM calibrator_files c JOIN data_files d ON c.datafile_id = d._id"


def add_calibrators(conn: Connection, frames: Iterable[CalibratorFrame]) -> int:
    """Register frames in one transaction; return how many are new or have another range of dates.

    A frame that is registered already (same kind, set, camera, section, filter, file and content) gets the dates given
    now, and keeps its figures.
    """
    frames = list(frames)
    files: dict[Any, dict[str, Any]] = {}
    rows: dict[Any, dict[str, Any]] = {}
    for f in frames:
        file_id = stable_id("data_file", f.path)
        files[file_id] = {"_id": file_id, "provenance_id": f.provenance.id, "filepath": f.path, "sha256": f.sha256}
        row_id = stable_id("calibrator", f.kind, f.calibrator_set, f.flat_type, f.instrument, f.section_id, f.filter,
                           f.path)
        # JSON knows no NaN
        info = {"quality": {k: v for k, v in f.quality.items() if math.isfinite(v)}, "inputs": f.inputs,
                "rejected": [{"identifier": r.identifier, "reason": r.reason} for r in f.rejected]}
        rows[row_id] = {
            "_id": row_id, "type": f.kind, "calibrator_set": f.calibrator_set, "flat_type": f.flat_type or None,
            "instrument": f.instrument, "sensor_section": f.section_id, "filter": f.filter or None,
            "datafile_id": file_id, "validity_start": time_of(f.validity_start_mjd),
            "validity_end": time_of(f.validity_end_mjd), "info": json.dumps(info, sort_keys=True)}
    with conn.transaction():
        known: list[Any] = conn.execute(
            "SELECT c._id, c.datafile_id, d.sha256, c.validity_start, c.validity_end "
            f"{_FROM} WHERE c._id = ANY(%s)", (list(rows),)).fetchall()
        same = {r[0]: (r[3], r[4]) for r in known if files[r[1]]["sha256"] == r[2]}
        new = {i: r for i, r in rows.items() if i not in same}
        written = {r["datafile_id"] for r in new.values()}
        store_provenances(conn, [f.provenance for f in frames if stable_id("data_file", f.path) in written])
        insert_rows(conn, "data_files", [files[i] for i in sorted(written)], update=True)
        insert_rows(conn, "calibrator_files", list(new.values()), update=True)
        dates = {i: (rows[i]["validity_start"], rows[i]["validity_end"]) for i in same}
        # in one order, so that jobs that register the same frames at once cannot wait for each other in a circle
        for i in sorted(i for i in same if dates[i] != same[i]):
            conn.execute("UPDATE calibrator_files SET validity_start = %s, validity_end = %s, modified = now() "
                         "WHERE _id = %s", (*dates[i], i))
    return len(new) + sum(dates[i] != same[i] for i in same)


def find_calibrators(
    conn: Connection, camera: Camera, exposure: ExposureInfo, *, filters: Mapping[str, str],
    kinds: Sequence[str] | None = None, sets: Sequence[str] = SETS, flat_types: Sequence[str] = FLAT_TYPES,
) -> dict[str, dict[str, str]]:
    """Return section -> kind -> path of the frames that hold for an exposure, found with one query.

    Of several valid ones: the set named first in `sets`, for flats the type named first in `flat_types`, then the one
    whose validity began last, then the one registered last.

    Parameters
    ----------
    filters : section -> filter of the exposure there; sections that are not in it are passed over.
    kinds : only these; None: all. ``flat`` is the best of the allowed types, ``flat_dome``, ``flat_twilight`` and
        ``flat_sky`` are the best of theirs.
    """
    sections = [s for s in camera.section_ids if s in filters]
    names = list(KINDS if kinds is None else kinds)
    lights = [n.removeprefix("flat_") if n.startswith("flat_") else None for n in names]
    rows: list[Any] = conn.execute(
        "SELECT DISTINCT ON (c.sensor_section, k.name) c.sensor_section, k.name, d.filepath "
        f"{_FROM} JOIN unnest(%(sections)s::text[], %(filters)s::text[]) AS s(section, band) "
        "ON c.sensor_section = s.section AND (c.filter IS NULL OR c.filter = s.band) "
        "JOIN unnest(%(names)s::text[], %(types)s::text[], %(lights)s::text[]) AS k(name, type, light) "
        "ON c.type = k.type AND (k.light IS NULL OR c.flat_type = k.light) "
        "WHERE c.instrument = %(camera)s AND c.calibrator_set = ANY(%(sets)s) "
        "AND (c.flat_type IS NULL OR k.light IS NOT NULL OR c.flat_type = ANY(%(flats)s)) "
        "AND (c.validity_start IS NULL OR c.validity_start <= %(time)s) "
        "AND (c.validity_end IS NULL OR c.validity_end > %(time)s) "
        "ORDER BY c.sensor_section, k.name, array_position(%(sets)s::text[], c.calibrator_set), "
        "array_position(%(flats)s::text[], c.flat_type), c.validity_start DESC NULLS LAST, c.created_at DESC, c._id",
        {"sections": sections, "filters": [filters[s] for s in sections], "camera": camera.name, "sets": list(sets),
         "names": names, "types": [n if light is None else "flat" for n, light in zip(names, lights, strict=True)],
         "lights": lights, "flats": list(flat_types), "time": time_of(exposure.mjd)},
    ).fetchall()
    out: dict[str, dict[str, str]] = {s: {} for s in sections}
    for section, kind, path in rows:
        out[section][kind] = path
    return out


def choose_frames(
    conn: Connection, camera: Camera, exposure: ExposureInfo, filters: Mapping[str, str], calib_dir: str | None, *,
    source: str, sets: Sequence[str], flat_types: Sequence[str], kinds: Sequence[str] | None = None,
) -> dict[str, dict[str, str]]:
    """Return section -> kind -> path: registered frames, files after the camera's patterns, or both.

    Parameters
    ----------
    source : ``both`` (a registered frame wins), ``database`` or ``files``.
    kinds : only these; None: all.
    """
    files = {s: {k: p for k, p in camera.calibration_paths(s, filters[s], calib_dir).items()
                 if source != "database" and (kinds is None or k in kinds)} for s in filters}
    if source == "files" or camera.reduced:
        return files
    found = find_calibrators(conn, camera, exposure, filters=filters, kinds=kinds, sets=sets, flat_types=flat_types)
    return {s: files[s] | found.get(s, {}) for s in filters}


def list_calibrators(
    conn: Connection, *, kind: str | None = None, instrument: str | None = None, section: str | None = None,
    band: str | None = None, at_mjd: float | None = None,
) -> list[CalibratorRow]:
    """Return registered frames, by kind, section and date."""
    rows: list[Any] = conn.execute(
        f"SELECT {_COLUMNS} {_FROM} WHERE (%(kind)s::text IS NULL OR c.type = %(kind)s) "
        "AND (%(camera)s::text IS NULL OR c.instrument = %(camera)s) "
        "AND (%(section)s::text IS NULL OR c.sensor_section = %(section)s) "
        "AND (%(band)s::text IS NULL OR c.filter = %(band)s) AND (%(at)s::timestamptz IS NULL OR "
        "(coalesce(c.validity_start, '-infinity') <= %(at)s AND coalesce(c.validity_end, 'infinity') > %(at)s)) "
        "ORDER BY c.instrument, c.type, c.filter, c.calibrator_set, c.validity_start, c.sensor_section, c._id",
        {"kind": kind, "camera": instrument, "section": section, "band": band, "at": time_of(at_mjd)}).fetchall()
    return [CalibratorRow(*r) for r in rows]


def get_calibrators(conn: Connection, name: str) -> list[CalibratorRow]:
    """Return the registered frames that a name stands for: beginning of an id, path, or name of the file.

    Raises
    ------
    ConfigError
        There is none.
    """
    rows: list[Any] = conn.execute(
        f"SELECT {_COLUMNS} {_FROM} WHERE (starts_with(c._id::text, %(name)s) AND %(long)s) OR d.filepath = %(name)s "
        "OR right(d.filepath, %(length)s) = %(end)s ORDER BY c.type, c.sensor_section",
        {"name": name, "long": len(name) >= 6, "length": len(name) + 1, "end": f"/{name}"}).fetchall()
    if not rows:
        raise ConfigError(f"no calibration frame '{name}' is registered; see seechange-mpi calib list")
    return [CalibratorRow(*r) for r in rows]


def retire(conn: Connection, ids: Iterable[str], end_mjd: float) -> int:
    """End the validity of frames; those that ended before keep their end. Return how many changed.

    Raises
    ------
    ConfigError
        A frame would end before it begins.
    """
    end = time_of(end_mjd)
    chosen = sorted(ids)
    with conn.transaction():
        wrong = conn.execute("SELECT count(*) FROM calibrator_files WHERE _id::text = ANY(%s) AND validity_start > %s",
                             (chosen, end)).fetchone()
        if wrong and wrong[0]:
            raise ConfigError(f"{wrong[0]} of the frames begin after {end:%Y-%m-%d %H:%M}; choose a later --at")
        done = conn.execute("UPDATE calibrator_files SET validity_end = %s, modified = now() WHERE _id::text = ANY(%s) "
                            "AND (validity_end IS NULL OR validity_end > %s)", (end, chosen, end))
    return done.rowcount
