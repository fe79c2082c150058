"""Names of objects from the places where they were founded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.db.linking import Nearby

F64 = npt.NDArray[np.float64]
_SOUTH = 1 << 26


def place_keys(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return a number for every position [deg]; two are equal where `object_names` are."""
    ms = (np.asarray(ra, float) / 15 * 3.6e6).astype(np.int64)
    dec = np.asarray(dec, float)
    return np.asarray((ms << 27) | np.where(dec < 0, _SOUTH, 0) | (np.abs(dec) * 3.6e5).astype(np.int64))


def object_names(ra: npt.ArrayLike, dec: npt.ArrayLike) -> npt.NDArray[np.bytes_]:
    """IAU-like names of founding positions [deg], e.g. ``SCM J100000.000+021200.00``, as ``S25``."""
    keys = np.atleast_1d(place_keys(ra, dec))
    ms, cas = keys >> 27, keys & (_SOUTH - 1)
    text = np.frombuffer(b"SCM J000000.000+000000.00", np.uint8)
    out = np.repeat(text[None], len(keys), axis=0)
    fields = ((5, 2, ms // 3_600_000), (7, 2, ms // 60_000 % 60), (9, 2, ms // 1000 % 60), (12, 3, ms % 1000),
              (16, 2, cas // 360_000), (18, 2, cas // 6000 % 60), (20, 2, cas // 100 % 60), (23, 2, cas % 100))
    for at, digits, number in fields:
        for k in range(digits):
            out[:, at + k] += (number // 10 ** (digits - 1 - k) % 10).astype(np.uint8)
    out[:, 15] = np.where(keys & _SOUTH, ord("-"), ord("+"))
    return out.view("S25").reshape(-1)


def object_name(ra_deg: float, dec_deg: float) -> str:
    """Name of one position; see `object_names`."""
    return str(object_names(ra_deg, dec_deg)[0].decode())


def free_names(conn: Connection, ra: F64, dec: F64, known: Nearby) -> npt.NDArray[np.bytes_]:
    """Names of positions; a number is added where sections overlap and two objects have one position.

    Only objects at the very place can have a name already: the database is asked where there are some.
    """
    names, keys = object_names(ra, dec), place_keys(ra, dec)
    _, first, times = np.unique(keys, return_inverse=True, return_counts=True)
    at_place = np.isin(known.keys, keys)
    clash = np.flatnonzero((times[first] > 1) | np.isin(keys, known.keys[at_place]))
    if not len(clash):
        return names
    used = known.names(conn, at_place)
    out: list[bytes] = names.tolist()
    for k in clash:
        base, n = out[k], 1
        while out[k] in used:
            n += 1
            out[k] = base + b"-%d" % n
        used.add(out[k])
    return np.array(out, "S")
