"""What the classes of rows share: identity, files, places on the sky, outlines, badness.

The columns are those of `db.schema`; nothing is declared twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import numpy as np
from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Session

from seechange_mpi.db.linking import ORDER
from seechange_mpi.db.matching import F64, unit_vectors
from seechange_mpi.db.schema import metadata
from seechange_mpi.db.sky import RING, inside, ring, touch
from seechange_mpi.model.flags import badness_bits, badness_words

DEGREES: dict[str, float] = {"arcsec": 1 / 3600, "arcmin": 1 / 60, "degrees": 1.0, "radians": 180 / np.pi}
_ROUNDING = 1e-4
"""Bounds have single precision [deg]."""


class Base(DeclarativeBase):
    """A row. Attributes are named as the columns."""

    metadata = metadata

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Columns are not declared here."""

    def __repr__(self) -> str:
        key = ", ".join(f"{c.name}={getattr(self, c.name)}" for c in self.__table__.primary_key)
        return f"<{type(self).__name__} {key}>"


class UUIDMixin:
    """A row with an id of its own: ``id``, the column ``_id``."""

    @hybrid_property
    def id(self) -> Any:
        """The id."""
        return self._id  # type: ignore[attr-defined]

    @classmethod
    def get_by_id(cls, session: Session, id: UUID | str) -> Self | None:
        """Return the row with an id, None if there is none."""
        return session.get(cls, UUID(id) if isinstance(id, str) else id)


class FileOnDiskMixin:
    """A row whose data lie in a file."""

    if TYPE_CHECKING:
        filepath: str

    def get_fullpath(self, download: bool = True) -> Path:
        """Return the path of the file.

        Parameters
        ----------
        download : bring it back from the archive if it is missing and the archive has it.

        Raises
        ------
        TransientError
            The archive does not answer, or there is no room.
        """
        from seechange_mpi.io.retrieval import ensure

        path = Path(self.filepath)
        if download:
            ensure(path)
        return path

    def exists(self) -> bool:
        """Return whether the file is on this machine."""
        return self.get_fullpath(download=False).is_file()


class SpatiallyIndexed:
    """A row with a position (ra, dec [deg]) and its HEALPix index. Searches need no q3c, and are right at the poles and
    across RA 0."""

    if TYPE_CHECKING:
        ra: Any
        dec: Any
        healpix: Any

    @classmethod
    def separation_arcsec(cls, ra: float, dec: float) -> ColumnElement[Any]:
        """Return the angle to a position as SQL [arcsec]."""
        half = (func.power(func.sind((cls.dec - dec) * 0.5), 2)
                + func.cosd(cls.dec) * func.cosd(dec) * func.power(func.sind((cls.ra - ra) * 0.5), 2))
        return func.asind(func.sqrt(func.least(1.0, half))) * 7200.0

    @classmethod
    def within_radius(cls, ra: float, dec: float, radius: float, unit: str = "arcsec") -> ColumnElement[bool]:
        """Return a condition for ``select(...).where``: no farther than `radius` from a position [deg].

        Parameters
        ----------
        unit : of the radius: arcsec, arcmin, degrees or radians.
        """
        degrees = radius * DEGREES[unit]
        near = [cls.healpix.between(low, high) for low, high in _cells(ra, dec, degrees)]
        return and_(or_(*near), cls.separation_arcsec(ra, dec) <= degrees * 3600)

    @classmethod
    def cone_search(cls, session: Session, ra: float, dec: float, radius: float, unit: str = "arcsec",
                    *where: ColumnElement[bool]) -> list[Self]:
        """Return the rows within a radius of a position [deg], the nearest first."""
        query = select(cls).where(cls.within_radius(ra, dec, radius, unit), *where)
        return list(session.scalars(query.order_by(cls.separation_arcsec(ra, dec))))

    def distance_to(self, other: SpatiallyIndexed, unit: str = "arcsec") -> float:
        """Return the angle between two rows."""
        a, b = unit_vectors([self.ra, other.ra], [self.dec, other.dec])
        return float(np.rad2deg(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)) / DEGREES[unit])


def _cells(ra: float, dec: float, radius_deg: float) -> list[tuple[int, int]]:
    """Return ranges of the index (order `ORDER`) that cover a circle."""
    import hpgeom

    order = int(np.clip(np.floor(np.log2(58.6 / max(radius_deg, 1e-9))) + 2, 0, ORDER))
    ranges = hpgeom.query_circle(1 << order, ra % 360.0, dec, min(radius_deg + 1e-9, 180.0), inclusive=True, nest=True,
                                 return_pixel_ranges=True)
    shift = 2 * (ORDER - order)
    return [(int(low) << shift, (int(high) << shift) - 1) for low, high in ranges]


class FourCorners:
    """A row with four corners (``ra_corner_00`` …) and bounds (``minra`` …; maxra < minra: it crosses RA 0)."""

    if TYPE_CHECKING:
        minra: Any
        maxra: Any
        mindec: Any
        maxdec: Any

    def corners(self) -> F64:
        """Return the corners as unit vectors (4, 3), in order around."""
        ra, dec = ([getattr(self, f"{c}_corner_{n}") for n in RING] for c in ("ra", "dec"))
        return ring(unit_vectors(ra, dec))

    def contains(self, ra: float, dec: float) -> bool:
        """Return whether a position [deg] lies within."""
        return bool(inside(self.corners(), unit_vectors(ra, dec))[0])

    def overlaps(self, other: FourCorners) -> bool:
        """Return whether two outlines have anything in common."""
        return touch(self.corners(), other.corners())

    @classmethod
    def in_bounds(cls, minra: float, maxra: float, mindec: float, maxdec: float) -> ColumnElement[bool]:
        """Return a condition for ``select(...).where``: the bounds touch others (a little more than exact)."""
        high, width = case((cls.maxra < cls.minra, cls.maxra + 360.0), else_=cls.maxra), (maxra - minra) % 360.0
        if maxra - minra >= 360.0:
            width = 360.0
        meets = [and_(cls.minra <= minra + turn + width + _ROUNDING, high >= minra + turn - _ROUNDING)
                 for turn in (-360.0, 0.0, 360.0)]
        return and_(cls.mindec <= maxdec + _ROUNDING, cls.maxdec >= mindec - _ROUNDING, or_(*meets))

    @classmethod
    def find_containing(cls, session: Session, ra: float, dec: float, *where: ColumnElement[bool]) -> list[Self]:
        """Return the rows in whose outline a position [deg] lies.

        Parameters
        ----------
        where : further conditions, e.g. ``Image.filter == "r"``.
        """
        rows = session.scalars(select(cls).where(cls.in_bounds(ra % 360, ra % 360, dec, dec), *where))
        return [r for r in rows if r.contains(ra, dec)]

    @classmethod
    def find_overlapping(cls, session: Session, other: FourCorners, *where: ColumnElement[bool]) -> list[Self]:
        """Return the rows whose outline has anything in common with another; itself is one of them."""
        bounds = cls.in_bounds(other.minra, other.maxra, other.mindec, other.maxdec)
        return [r for r in session.scalars(select(cls).where(bounds, *where)) if r.overlaps(other)]


class HasBitFlagBadness:
    """A row with badness bits: ``_bitflag``, its own, and ``_upstream_bitflag``, of everything it was made from."""

    if TYPE_CHECKING:
        _id: UUID
        _bitflag: Any
        _upstream_bitflag: Any

    @hybrid_property
    def bitflag(self) -> Any:
        """Own and upstream bits. Setting it sets own bits."""
        return (self._bitflag or 0) | (self._upstream_bitflag or 0)

    @bitflag.inplace.expression
    @classmethod
    def _bitflag_expression(cls) -> ColumnElement[int]:
        return cls._bitflag.op("|")(cls._upstream_bitflag)  # type: ignore[no-any-return]

    @bitflag.inplace.setter
    def _bitflag_setter(self, bits: int) -> None:
        self._bitflag = int(bits)

    @property
    def badness(self) -> str:
        """The words of all bits, comma separated. Setting it sets own bits."""
        return badness_words(self.bitflag)

    @badness.setter
    def badness(self, words: str) -> None:
        self._bitflag = badness_bits(words)

    def append_badness(self, words: str) -> None:
        """Add own bits by word; `update_downstream_badness` hands them on."""
        self._bitflag = (self._bitflag or 0) | badness_bits(words)

    def update_downstream_badness(self, session: Session) -> dict[str, int]:
        """Hand the bits on to everything made from this row, whatever the depth; return table -> rows that changed.

        One statement for each table. The caller commits; what the session has loaded is read anew.
        """
        from seechange_mpi.db.badness import hand_on, stop_commits

        conn: Any = session.connection().connection.driver_connection
        with session.no_autoflush:
            stop_commits(conn)
        session.flush()
        changed = hand_on(conn, {self.__table__.name: [self._id]})  # type: ignore[attr-defined]
        session.expire_all()
        return changed
