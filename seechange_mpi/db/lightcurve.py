"""The light curve of an object: what was measured, what was forced, and limits where nothing was."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from seechange_mpi.db.forced import SubFootprint, sub_footprints
from seechange_mpi.db.positions import NEWEST_ONLY, OF_MEASUREMENTS
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.products import Table
from seechange_mpi.model.tables import Column, empty_table
from seechange_mpi.pipeline.forced import inside

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

NJY_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy."""
_POGSON = 2.5 / np.log(10)

LIGHT_CURVE: tuple[Column, ...] = (
    Column("kind", "U8", "", "measured: a detection; forced: at the object's position; limit: covered, not measured"),
    Column("mjd", "f8", "d", "time of the exposure"),
    Column("filter", "U16", "", "filter"),
    Column("flux_njy", "f8", "nJy", "PSF flux in the difference, signed"),
    Column("flux_err_njy", "f8", "nJy", "its error"),
    Column("flux_aperture_njy", "f8", "nJy", "aperture flux (forced)"),
    Column("flux_aperture_err_njy", "f8", "nJy", "its error"),
    Column("mag", "f8", "mag", "AB-like magnitude where the flux is positive"),
    Column("mag_err", "f8", "mag", "its error"),
    Column("lim_mag", "f8", "mag", "faintest detection: from the local error (forced), from the depths of new and "
                                   "reference (limit)"),
    Column("zp", "f8", "mag", "zero point at the position"),
    Column("score", "f4", "sigma", "detection statistic (measured)"),
    Column("rb", "f4", "", "real-bogus score (measured)"),
    Column("is_bad", "?", "", "failed a threshold (measured), masked or without flux (forced)"),
    Column("flags", "i4", "", "flags of the PSF fit"),
    Column("badness", "i8", "", "badness bits, own and upstream (measured)"),
    Column("ra", "f8", "deg", "where it was measured"),
    Column("dec", "f8", "deg", "where it was measured"),
    Column("exposure", "U80", "", "exposure"),
    Column("section", "U16", "", "section"),
    Column("image_id", "U36", "", "id of the difference image"),
)


def light_curve(conn: Connection, object_id: UUID) -> Table:
    """Return the rows of `LIGHT_CURVE` of an object, in the order of time.

    Of several versions of a section the one committed last counts. A difference image that covers the object and
    has neither a measurement nor forced photometry gives a row of kind ``limit``.

    Raises
    ------
    ConfigError
        There is no such object.
    """
    with conn.transaction():
        place: Any = conn.execute("SELECT ra, dec, is_test FROM objects WHERE _id = %s", (object_id,)).fetchone()
        if place is None:
            raise ConfigError(f"there is no object {object_id}; seechange-mpi object list shows what there is")
        subs = sub_footprints(conn, near=place[:2], of_test=place[2])
        table = np.concatenate([_measured(conn, object_id), _forced(conn, object_id, subs)])
    known = set(table["image_id"])
    limits = [s for s in subs if str(s.id) not in known and inside(s.corners, [place[0]], [place[1]], 0.0)[0]]
    table = np.concatenate([table, _limits(limits)])
    return table[np.lexsort((table["section"], table["kind"] != "measured", table["mjd"]))]


def _empty(n: int) -> Table:
    out = empty_table(LIGHT_CURVE, n)
    for c in LIGHT_CURVE:
        if c.dtype in ("f4", "f8"):
            out[c.name] = np.nan
    return out


def _floats(values: list[Any]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], float)


def _calibrate(out: Table, flux: npt.NDArray[np.float64], error: npt.NDArray[np.float64], zp: npt.NDArray[np.float64]
               ) -> None:
    """Fill fluxes and magnitudes from ADU and the zero point at the place."""
    scale = 10 ** (0.4 * (NJY_ZERO_POINT - zp))
    out["zp"], out["flux_njy"], out["flux_err_njy"] = zp, flux * scale, error * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        positive = flux > 0
        out["mag"] = np.where(positive, zp - 2.5 * np.log10(np.where(positive, flux, 1.0)), np.nan)
        out["mag_err"] = np.where(positive, _POGSON * error / flux, np.nan)


def _measured(conn: Connection, object_id: UUID) -> Table:
    rows: list[Any] = conn.execute(
        "SELECT i.mjd, i.filter, e.origin_identifier, i.section_id, i._id::text, m.ra, m.dec, m.flux_psf, "
        "m.flux_psf_err, m.mag, z.zp, m.score, (SELECT q.score FROM deepscore_sets p JOIN deepscores q "
        "ON q.deepscoreset_id = p._id WHERE p.measurementset_id = s._id AND q.index_in_sources = m.index_in_sources "
        "ORDER BY p.created_at DESC, p.algorithm LIMIT 1), m.is_bad, m.psf_fit_flags, m._bitflag | m._upstream_bitflag "
        f"FROM {OF_MEASUREMENTS} JOIN exposures e ON i.exposure_id = e._id WHERE m.object_id = %s AND {NEWEST_ONLY}",
        (object_id,)).fetchall()
    out = _empty(len(rows))
    if not rows:
        return out
    columns = list(zip(*rows, strict=True))
    out["kind"] = "measured"
    for name, values in zip(("mjd", "filter", "exposure", "section", "image_id", "ra", "dec"), columns, strict=False):
        out[name] = values
    flux, error, mag, zp = (_floats(list(c)) for c in columns[7:11])
    with np.errstate(divide="ignore", invalid="ignore"):
        # the magnitude knows how the zero point changes over the section
        local = mag + 2.5 * np.log10(np.abs(flux))
    _calibrate(out, flux, error, np.where(np.isfinite(local), local, zp))
    out["score"], out["rb"] = _floats(list(columns[11])), _floats(list(columns[12]))
    out["is_bad"], out["badness"] = columns[13], columns[15]
    out["flags"] = [v or 0 for v in columns[14]]
    return out


def _forced(conn: Connection, object_id: UUID, subs: list[SubFootprint]) -> Table:
    """Forced photometry, of each image what was made last."""
    by_id = {s.id: s for s in subs}
    rows: list[Any] = conn.execute(
        "SELECT DISTINCT ON (image_id) image_id, mjd, filter, ra, dec, flags, flux_psf, flux_psf_err, flux_aperture, "
        "flux_aperture_err, lim_mag, zp FROM forced_photometry WHERE object_id = %s AND image_id = ANY(%s) "
        "ORDER BY image_id, modified DESC", (object_id, list(by_id))).fetchall()
    # a position that only the footprint's margin holds is no part of the history
    rows = [r for r in rows if not r[5] & 32]
    out = _empty(len(rows))
    if not rows:
        return out
    columns = list(zip(*rows, strict=True))
    out["kind"] = "forced"
    for name, values in zip(("mjd", "filter", "ra", "dec", "flags"), columns[1:6], strict=True):
        out[name] = values
    out["exposure"] = [by_id[i].exposure for i in columns[0]]
    out["section"] = [by_id[i].section for i in columns[0]]
    out["image_id"] = [str(i) for i in columns[0]]
    flux, error, aperture, aperture_error, limit, zp = (_floats(list(c)) for c in columns[6:12])
    _calibrate(out, flux, error, zp)
    scale = 10 ** (0.4 * (NJY_ZERO_POINT - zp))
    out["flux_aperture_njy"], out["flux_aperture_err_njy"] = aperture * scale, aperture_error * scale
    out["lim_mag"] = limit
    out["is_bad"] = (out["flags"] != 0) | ~np.isfinite(flux)
    return out


def _limits(subs: list[SubFootprint]) -> Table:
    out = _empty(len(subs))
    out["kind"] = "limit"
    for k, s in enumerate(subs):
        out["mjd"][k], out["filter"][k], out["lim_mag"][k] = s.mjd, s.filter, s.lim_mag
        out["exposure"][k], out["section"][k], out["image_id"][k] = s.exposure, s.section, str(s.id)
    return out


def write_csv(table: Table, path: Path) -> None:
    """Write a light curve as CSV with a header line; what is not known is empty."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(table.dtype.names or ())
        for row in table:
            writer.writerow(["" if isinstance(v, float) and not np.isfinite(v) else v for v in row.tolist()])
