"""Tables of a hundred thousand rows: columns of numpy, written with binary COPY, never a Python object per row.

The format is that of PostgreSQL's manual, "COPY", "Binary Format": per row the number of fields, per field its length
and big-endian value; length -1 is NULL. Rows that look alike (same NULLs, same lengths of texts) are one structured
array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter

from seechange_mpi.model.ids import NAMESPACE

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_UUID, _TEXT, _REALS = "uuid", "text", "_float4"
_FIXED = {"bool": "?", "int2": ">i2", "int4": ">i4", "int8": ">i8", "float4": ">f4", "float8": ">f8"}
_FLOAT4_OID = 700

Column = Any
"""A column of a block: an array with one entry per row, or one value (number, bool, str, UUID) for all."""


@dataclass(slots=True)
class Block:
    """Rows of one table.

    Attributes
    ----------
    n : number of rows.
    columns : name -> (n,) array, (n, k) float array, or one value. Ids are arrays of ``V16``, texts of ``S``.
    nulls : name -> (n,) bool, True where the column is NULL.
    """

    n: int
    columns: dict[str, Column]
    nulls: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a column with one entry per row."""
        return _full(self.columns[name], self.n)


def concatenate(blocks: Sequence[Block]) -> Block:
    """Put blocks of the same columns one below the other."""
    if not blocks:
        return Block(0, {})
    return Block(sum(b.n for b in blocks),
                 {k: np.concatenate([b.array(k) for b in blocks]) for k in blocks[0].columns},
                 {k: np.concatenate([b.nulls[k] for b in blocks]) for k in blocks[0].nulls})


def ids_of(*parts: object, numbers: Iterable[object]) -> npt.NDArray[np.void]:
    """Return ``stable_id(*parts, number)`` of every number, as (n,) ``V16``."""
    start = NAMESPACE.bytes + "".join(f"{p}|" for p in parts).encode()
    texts = [str(n).encode() for n in numbers]
    digests = b"".join([hashlib.sha1(start + t, usedforsecurity=False).digest() for t in texts])
    raw = np.frombuffer(digests, np.uint8).reshape(-1, 20)[:, :16].copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x50
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    return raw.view("V16").reshape(-1)


def id_array(ids: Sequence[UUID]) -> npt.NDArray[np.void]:
    """Return ids as (n,) ``V16``."""
    return np.frombuffer(b"".join(i.bytes for i in ids), "V16").copy()


def uuids(ids: npt.NDArray[np.void]) -> list[UUID]:
    """Return ids as objects."""
    return [UUID(bytes=bytes(i)) for i in ids]


def id_texts(ids: npt.NDArray[np.void]) -> list[str]:
    """Return ids as they are printed."""
    h = ids.tobytes().hex()
    return [f"{h[k:k + 8]}-{h[k + 8:k + 12]}-{h[k + 12:k + 16]}-{h[k + 16:k + 20]}-{h[k + 20:k + 32]}"
            for k in range(0, len(h), 32)]


def _full(value: Column, n: int) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, UUID):
        return np.full(n, np.void(value.bytes))
    if isinstance(value, str):
        return np.full(n, value.encode())
    return np.full(n, value)


def write_block(conn: Connection, table: str, block: Block, *, fresh: bool = False) -> int:
    """Insert the rows of a block; return how many were new.

    Parameters
    ----------
    fresh : none of the rows can be in the database: they are copied into the table itself. Else into a temporary one,
        from which one sorted INSERT passes over those that exist.
    """
    if not block.n:
        return 0
    names = sql.SQL(", ").join(map(sql.Identifier, block.columns))
    types = _types(conn, table)
    target = goal = sql.Identifier(table)
    if not fresh:
        goal = sql.Identifier(f"new_{table}")
        conn.execute(sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} (LIKE {} INCLUDING DEFAULTS) ON COMMIT DROP"
                             ).format(goal, target))
        conn.execute(sql.SQL("TRUNCATE {}").format(goal))
    cursor = conn.cursor()
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(goal, names)
    # the server inserts the first rows while the next are put together
    with cursor.copy(statement, writer=QueuedLibpqWriter(cursor)) as copy:
        for piece in encode(block, types):
            copy.write(piece)
    if fresh:
        return block.n
    key = sql.Identifier(next(iter(block.columns)))
    return conn.execute(sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY {} ON CONFLICT DO NOTHING").format(
        target, names, names, goal, key)).rowcount


def _types(conn: Connection, table: str) -> dict[str, str]:
    """Column -> name of its type, in the database as it is."""
    rows: list[Any] = conn.execute(
        "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON a.atttypid = t.oid "
        "WHERE a.attrelid = %s::regclass AND a.attnum > 0", (table,)).fetchall()
    return {r[0]: r[1] for r in rows}


def encode(block: Block, types: Mapping[str, str], *, rows_at_once: int = 4_000) -> Iterator[bytes]:
    """Yield the rows in PostgreSQL's binary format.

    Parameters
    ----------
    types : name of the PostgreSQL type of every column.
    """
    columns = {name: _prepared(block.array(name), types[name]) for name in block.columns}
    yield _HEADER
    for rows, missing in _alike(block, columns, types):
        for first in range(0, len(rows), rows_at_once):
            yield _rows(columns, types, rows[first : first + rows_at_once], missing)
    yield _TRAILER


def _prepared(array: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    if kind == _TEXT:
        return array if array.dtype.kind == "S" else np.char.encode(array.astype(str), "utf-8")
    return array


def _alike(block: Block, columns: Mapping[str, npt.NDArray[Any]], types: Mapping[str, str]
           ) -> Iterator[tuple[npt.NDArray[np.intp], frozenset[str]]]:
    """Yield the rows that have the same NULLs and texts of the same lengths, and which columns are NULL in them."""
    names = sorted(block.nulls)
    keys = [block.nulls[k].astype(np.int64) for k in names]
    keys += [np.char.str_len(columns[k]) for k in columns if types[k] == _TEXT]
    if not keys:
        yield np.arange(block.n), frozenset()
        return
    kinds, which = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    for k, kind in enumerate(kinds):
        missing = frozenset(n for n, is_null in zip(names, kind, strict=False) if is_null)
        yield np.flatnonzero(which.reshape(-1) == k), missing


def _rows(columns: Mapping[str, npt.NDArray[Any]], types: Mapping[str, str], rows: npt.NDArray[np.intp],
          missing: frozenset[str]) -> bytes:
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    constants: dict[str, int] = {"fields": len(columns)}
    values: dict[str, npt.NDArray[Any]] = {}

    def put(name: str, kind: str, size: int, value: npt.NDArray[Any]) -> None:
        layout.extend([(f"{name}:length", ">i4"), (name, kind)])
        constants[f"{name}:length"] = size
        values[name] = value

    for name, array in columns.items():
        kind = types[name]
        if name in missing:
            layout.append((f"{name}:length", ">i4"))
            constants[f"{name}:length"] = -1
        elif kind == _UUID:
            put(name, "V16", 16, array[rows])
        elif kind == _TEXT:
            size = int(np.char.str_len(array[rows[:1]])[0])
            put(name, f"S{size}" if size else "V0", size, array[rows])
        elif kind == _REALS:
            put(name, f"V{20 + 8 * array.shape[1]}", 20 + 8 * array.shape[1], _reals(array[rows]))
        else:
            dtype = np.dtype(_FIXED[kind])
            put(name, _FIXED[kind], dtype.itemsize, array[rows])
    out = np.zeros(len(rows), np.dtype(layout))
    for name, constant in constants.items():
        out[name] = constant
    for name, value in values.items():
        if out.dtype[name].itemsize:
            out[name] = value
    return out.tobytes()


def _reals(array: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """Binary form of one-dimensional arrays of ``real``: dimensions, NULLs?, type, length, first index, elements."""
    n, k = array.shape
    out = np.zeros(n, np.dtype([("head", ">i4", (5,)), ("elements", [("length", ">i4"), ("value", ">f4")], (k,))]))
    out["head"] = (1, 0, _FLOAT4_OID, k, 1)
    out["elements"]["length"] = 4
    out["elements"]["value"] = array
    return out.view(f"V{out.dtype.itemsize}").reshape(-1)


_SEND = {"V16": "uuid_send", "f8": "float8send", "i8": "int8send"}


def read_columns(conn: Connection, source: sql.Composable, dtype: Mapping[str, tuple[str, str]]) -> npt.NDArray[Any]:
    """Return columns that are never NULL as one structured array; the server packs them into one value.

    Parameters
    ----------
    source : what follows SELECT and the columns.
    dtype : name -> expression in SQL, and ``V16`` (uuid), ``f8`` or ``i8`` as the database has it.
    """
    packed = sql.SQL(" || ").join(sql.SQL("{}({})").format(sql.SQL(_SEND[kind]), sql.SQL(expression))  # type: ignore[arg-type]
                                  for expression, kind in dtype.values())
    row: Any = conn.cursor(binary=True).execute(
        sql.SQL("SELECT string_agg({}, ''::bytea) {}").format(packed, source)).fetchone()
    big = [(name, kind if kind[0] == "V" else f">{kind}") for name, (_, kind) in dtype.items()]
    native = [(name, kind) for name, (_, kind) in dtype.items()]
    return np.frombuffer(row[0] or b"", big).astype(native)
