"""References: processed exposures that later ones are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.db.badness import hold_marks
from seechange_mpi.db.bulk import insert_rows
from seechange_mpi.db.matching import unit_vectors
from seechange_mpi.db.provenance import store_provenances
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.flags import Badness
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import make_record
from seechange_mpi.model.task import ReferenceLink

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

Corners = Sequence[tuple[float, float]]


def add_reference(
    conn: Connection, identifier: str, *, refset: str = "default", sections: Iterable[str] | None = None
) -> list[str]:
    """Register the committed sections of an exposure; return those that are new.

    Of several versions (provenances) of a section the one committed last is taken; tests (``run.is_testing``) never.
    The set's own provenance becomes that of the newest reference.

    Raises
    ------
    ConfigError
        The exposure is not in the database, or no section of it is calibrated.
    """
    wanted = sorted(sections) if sections is not None else None
    with conn.transaction():
        hold_marks(conn)
        rows: list[Any] = conn.execute(
            "SELECT DISTINCT ON (i.section_id) i.section_id, i._id, z._id, z.provenance_id, i.provenance_id, "
            "i.instrument, i.filter, i.filepath, z._bitflag | z._upstream_bitflag "
            "FROM images i JOIN exposures e ON i.exposure_id = e._id "
            "JOIN source_lists s ON s.image_id = i._id JOIN world_coordinates w ON w.sources_id = s._id "
            "JOIN zero_points z ON z.wcs_id = w._id JOIN provenances p ON i.provenance_id = p._id "
            "WHERE NOT p.is_testing AND e.origin_identifier = %(name)s AND NOT i.is_sub "
            "AND (%(only)s::text[] IS NULL OR i.section_id = ANY(%(only)s)) ORDER BY i.section_id, z.created_at DESC",
            {"name": identifier, "only": wanted},
        ).fetchall()
        if not rows:
            known = [r[0] for r in conn.execute("SELECT origin_identifier FROM exposures ORDER BY mjd LIMIT 20")]
            raise ConfigError(
                f"{identifier}: no calibrated section of it is in the database, tests aside; exposures there: "
                f"{', '.join(str(k) for k in known) or 'none'}"
            )
        lacking = set(wanted or ()) - {r[0] for r in rows}
        if lacking:
            names = ", ".join(sorted(lacking))
            raise ConfigError(f"{identifier}: no calibrated section {names} of it is in the database")
        refset_id = stable_id("refset", refset)
        insert_rows(conn, "refsets", [{"_id": refset_id, "name": refset}])
        new = []
        for section, image_id, zp_id, extraction, preprocessing, instrument, band, path, bits in rows:
            record = make_record("referencing", {"refset": refset}, [preprocessing, extraction])
            store_provenances(conn, [record])
            done = insert_rows(
                conn,
                "refs",
                [
                    {
                        "_id": stable_id("ref", refset, zp_id),
                        "refset_id": refset_id,
                        "zp_id": zp_id,
                        "image_id": image_id,
                        "provenance_id": record.id,
                        "instrument": instrument,
                        "filter": band,
                        "section_id": section,
                        "filepath": path,
                        "_bitflag": int(Badness.REF_BAD) if bits else 0,
                        "_upstream_bitflag": bits,
                    }
                ],
            )
            if done:
                new.append(str(section))
                conn.execute("UPDATE refsets SET provenance_id = %s, modified = now() WHERE _id = %s",
                             (record.id, refset_id))
    return new


def remove_reference(conn: Connection, identifier: str, refset: str = "default") -> int:
    """Take an exposure out of a set of references; return the number of sections."""
    with conn.transaction():
        done = conn.execute(
            "DELETE FROM refs r USING images i, exposures e, refsets s WHERE r.image_id = i._id AND "
            "i.exposure_id = e._id AND r.refset_id = s._id AND e.origin_identifier = %s AND s.name = %s",
            (identifier, refset),
        )
    return done.rowcount


def list_references(conn: Connection) -> list[tuple[Any, ...]]:
    """Return (refset, exposure, instrument, filter, section, fwhm, zero point, limit, bits) of all references."""
    return list(
        conn.execute(
            "SELECT s.name, e.origin_identifier, r.instrument, r.filter, r.section_id, i.fwhm_estimate, "
            "i.zero_point_estimate, i.lim_mag_estimate, r._bitflag | r._upstream_bitflag "
            "FROM refs r JOIN refsets s ON r.refset_id = s._id "
            "JOIN images i ON r.image_id = i._id JOIN exposures e ON i.exposure_id = e._id "
            "ORDER BY s.name, e.mjd, e.origin_identifier, r.section_id"
        ).fetchall()
    )


def find_references(
    conn: Connection,
    footprints: Mapping[str, Corners],
    *,
    instrument: str,
    filters: Mapping[str, str],
    refset: str = "default",
    min_overlap: float = 0.5,
    any_filter: bool = False,
    exclude: str = "",
) -> dict[str, ReferenceLink]:
    """Choose the reference of every section with one query.

    The one that covers most of the section is taken, of equals (within a tenth) the deeper, then the newer.
    An exposure is never its own reference.

    Parameters
    ----------
    footprints : section id -> four approximate corners (ra, dec) [deg].
    filters : section id -> filter.
    exclude : identifier of the exposure itself.
    """
    if not footprints:
        return {}
    ra, dec = _centre([c for corners in footprints.values() for c in corners])
    radius = max(_separation(ra, dec, *c) for corners in footprints.values() for c in corners)
    with conn.transaction():
        rows: list[Any] = conn.execute(
            "SELECT r.section_id, r.filepath, r.filter, i._id::text, e.origin_identifier, i.provenance_id, "
            "z.provenance_id, i.lim_mag_estimate, i.mjd, i.ra_corner_00, i.dec_corner_00, i.ra_corner_01, "
            "i.dec_corner_01, i.ra_corner_11, i.dec_corner_11, i.ra_corner_10, i.dec_corner_10 "
            "FROM refs r JOIN refsets s ON r.refset_id = s._id JOIN images i ON r.image_id = i._id "
            "JOIN exposures e ON i.exposure_id = e._id JOIN zero_points z ON r.zp_id = z._id "
            "WHERE s.name = %(set)s AND r.instrument = %(cam)s AND (%(any)s OR r.filter = ANY(%(filters)s)) "
            f"AND e.origin_identifier <> %(self)s AND {_distance('%(ra)s', '%(dec)s')} <= "
            f"%(radius)s + 1.5 * {_distance('i.ra_corner_00', 'i.dec_corner_00')} ORDER BY i._id",
            {
                "set": refset,
                "cam": instrument,
                "any": any_filter,
                "filters": sorted(set(filters.values())),
                "self": exclude,
                "ra": ra,
                "dec": dec,
                # approximate pointings, footprints that are not centred
                "radius": 1.2 * radius + 0.1,
            },
        ).fetchall()
    out: dict[str, ReferenceLink] = {}
    quads = [[(r[k], r[k + 1]) for k in (9, 11, 13, 15)] for r in rows]
    circles = _circles(quads)
    for section_id, corners in footprints.items():
        best: tuple[tuple[float, ...], Any] | None = None
        for n in np.flatnonzero(_touching(_circles([corners]), circles)):
            r = rows[n]
            if r[2] != filters[section_id] and not any_filter:
                continue
            cover = overlap(corners, quads[n])
            if cover < min_overlap:
                continue
            depth = float(r[7]) if r[7] is not None and np.isfinite(r[7]) else 0.0
            rank = (float(r[2] == filters[section_id]), round(cover, 1), depth, float(r[8]))
            if best is None or rank > best[0]:
                best = (rank, r)
        if best is not None:
            r = best[1]
            out[section_id] = ReferenceLink(
                r[1], r[0], r[3], r[4], r[2], instrument, {"preprocessing": r[5], "extraction": r[6]}
            )
    return out


def _distance(ra: str, dec: str) -> str:
    """SQL: angle [deg] between an image's centre and a position."""
    return f"acosd(least(1, greatest(-1, sind(i.dec) * sind({dec}) + cosd(i.dec) * cosd({dec}) * cosd(i.ra - {ra}))))"


def _separation(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Angle [deg] between two positions."""
    a, b = unit_vectors([ra1, ra2], [dec1, dec2])
    return float(np.rad2deg(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def _circles(quads: Sequence[Corners]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centres (n, 3) and radii (n,), as chords of the unit sphere, of circles around quadrilaterals."""
    corners = np.asarray(quads, float).reshape(-1, 2)
    v = unit_vectors(corners[:, 0], corners[:, 1]).reshape(-1, 4, 3)
    centre = v.mean(axis=1)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    return centre, np.linalg.norm(v - centre[:, None], axis=2).max(axis=1, initial=0.0)


def _touching(one: tuple[npt.NDArray[np.float64], ...], many: tuple[npt.NDArray[np.float64], ...]) -> Any:
    """Which circles touch one circle."""
    return np.linalg.norm(many[0] - one[0], axis=1) <= 1.01 * (many[1] + one[1][0]) + 1e-9


def overlap(section: Corners, reference: Corners, grid: int = 20) -> float:
    """Fraction of a footprint that another covers (convex quadrilaterals; corners in order around)."""
    ra0, dec0 = _centre(section)
    a, b = _plane(section, ra0, dec0), _plane(reference, ra0, dec0)
    if not np.isfinite(b).all():
        return 0.0
    u, v = np.meshgrid(*[(np.arange(grid) + 0.5) / grid] * 2)
    a = a[np.argsort(np.arctan2(*(a - a.mean(axis=0)).T[::-1]))]
    b = b[np.argsort(np.arctan2(*(b - b.mean(axis=0)).T[::-1]))]
    p = (
        (1 - u)[..., None] * (1 - v)[..., None] * a[0]
        + u[..., None] * (1 - v)[..., None] * a[1]
        + u[..., None] * v[..., None] * a[2]
        + (1 - u)[..., None] * v[..., None] * a[3]
    ).reshape(-1, 2)
    inside = np.ones(len(p), bool)
    for k in range(4):
        e, f = b[(k + 1) % 4] - b[k], p - b[k]
        inside &= e[0] * f[:, 1] - e[1] * f[:, 0] >= 0
    return float(inside.mean())


def _centre(corners: Corners) -> tuple[float, float]:
    a, d = np.deg2rad(np.array(corners, float)).T
    x, y, z = np.mean(np.cos(d) * np.cos(a)), np.mean(np.cos(d) * np.sin(a)), np.mean(np.sin(d))
    return float(np.rad2deg(np.arctan2(y, x))), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


def _plane(corners: Corners, ra0: float, dec0: float) -> npt.NDArray[np.float64]:
    from seechange_mpi.pipeline.wcs_tools import project

    ra, dec = np.array(corners, float).T
    return np.stack(project(ra, dec, ra0, dec0), axis=1)
