"""Names of objects: from their position, or counted within a year, without any lock on a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.db.linking import Nearby

PREFIX = "SCM"
_LOCK = 0x5EE0B1EC
"""Advisory lock under which the sequence of a year is made."""
_MJD_0 = datetime(1858, 11, 17, tzinfo=UTC)
_SOUTH = 1 << 26


def place_keys(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return a number for every position [deg]; two are equal where `place_names` are."""
    ms = (np.asarray(ra, float) / 15 * 3.6e6).astype(np.int64)
    dec = np.asarray(dec, float)
    return np.asarray((ms << 27) | np.where(dec < 0, _SOUTH, 0) | (np.abs(dec) * 3.6e5).astype(np.int64))


def place_names(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.bytes_]:
    """Positions [deg] as IAU-like names have them, e.g. ``J100000.000+021200.00``, as ``S21``."""
    keys = np.atleast_1d(place_keys(ra, dec))
    ms, cas = keys >> 27, keys & (_SOUTH - 1)
    text = np.frombuffer(b"J000000.000+000000.00", np.uint8)
    out = np.repeat(text[None], len(keys), axis=0)
    fields = ((1, 2, ms // 3_600_000), (3, 2, ms // 60_000 % 60), (5, 2, ms // 1000 % 60), (8, 3, ms % 1000),
              (12, 2, cas // 360_000), (14, 2, cas // 6000 % 60), (16, 2, cas // 100 % 60), (19, 2, cas % 100))
    for at, digits, number in fields:
        for k in range(digits):
            out[:, at + k] += (number // 10 ** (digits - 1 - k) % 10).astype(np.uint8)
    out[:, 11] = np.where(keys & _SOUTH, ord("-"), ord("+"))
    return out.view("S21").reshape(-1)


def object_name(ra_deg: float, dec_deg: float, prefix: str = PREFIX) -> str:
    """IAU-like name from the founding position, e.g. ``SCM J100000.000+021200.00``."""
    return f"{prefix} {place_names(ra_deg, dec_deg)[0].decode()}"


def free_names(conn: Connection, wanted: npt.NDArray[np.bytes_], keys: npt.NDArray[np.int64], known: Nearby,
               taken: Sequence[bytes]) -> list[bytes]:
    """Names as wanted; a number is added where sections overlap and two objects have one position.

    Only objects at the very place can have a name already: the database is asked where there are some.

    Parameters
    ----------
    keys : of the places, see `place_keys`.
    taken : names that other new objects have.
    """
    _, first, times = np.unique(keys, return_inverse=True, return_counts=True)
    at_place = np.isin(known.keys, keys)
    used = {name for name in taken if name}
    out: list[bytes] = wanted.tolist()
    clash = (times[first] > 1) | np.isin(keys, known.keys[at_place])
    if used:
        clash |= np.isin(wanted, np.array(sorted(used)))
    if at_place.any():
        used |= known.names(conn, at_place)
    for k in np.flatnonzero(clash):
        base, n = out[k], 1
        while out[k] in used:
            n += 1
            out[k] = base + b"-%d" % n
        used.add(out[k])
    return out


def letters(number: int) -> str:
    """Return a number from 0 on in base 26, a being 0: a, b … z, ba, bb …"""
    out = ""
    while number >= 26:
        number, digit = divmod(number, 26)
        out = chr(ord("a") + digit) + out
    return chr(ord("a") + number) + out


def year_of(mjd: float) -> int:
    """Year (UTC) of a modified Julian date."""
    return (_MJD_0 + timedelta(days=mjd)).year


def _sequence(year: int) -> sql.Identifier:
    return sql.Identifier(f"object_names_{year}")


def prepare_counter(conn: Connection, year: int) -> None:
    """Make the sequence of a year if it is not there, in a transaction of its own, so that no commit waits for another.

    The connection must not be in a transaction.
    """
    if _there(conn, year):
        return
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        conn.execute(sql.SQL("CREATE SEQUENCE IF NOT EXISTS {} AS bigint MINVALUE 0 START 0").format(_sequence(year)))


def _there(conn: Connection, year: int) -> bool:
    with conn.transaction():
        row: Any = conn.execute("SELECT to_regclass(%s)", (_sequence(year).as_string(conn),)).fetchone()
    return row[0] is not None


def counter_names(conn: Connection, prefix: str, year: int, n: int) -> list[str]:
    """Reserve names that no object has, ``<prefix><last two digits of the year><letters>``, in ascending order.

    Numbers are taken with one query. They are not given back: a commit that fails leaves a gap. Where the sequence is
    behind the names in the table (tables restored without it), it catches up.
    """
    names: list[str] = []
    while len(names) < n:
        numbers = [int(r[0]) for r in _rows(conn, sql.SQL("SELECT nextval({}) FROM generate_series(1, {})").format(
            sql.Literal(_sequence(year).as_string(conn)), sql.Literal(n - len(names))))]
        fresh = [f"{prefix}{year % 100:02d}{letters(k)}" for k in sorted(numbers)]
        used = {r[0] for r in _rows(conn, sql.SQL("SELECT name FROM objects WHERE name = ANY({})").format(
            sql.Literal(fresh)))}
        names += [name for name in fresh if name not in used]
    return names


def _rows(conn: Connection, query: sql.Composed) -> Sequence[Any]:
    return conn.execute(query).fetchall()
