"""Columns through binary COPY: what is written is what the database has."""

import math
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from seechange_mpi.db.blocks import Block, concatenate, id_array, id_texts, ids_of, read_columns, uuids, write_block
from seechange_mpi.model.ids import stable_id

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
ROW = st.tuples(st.uuids(), TEXT, st.integers(-(2**63), 2**63 - 1), st.integers(-(2**15), 2**15 - 1),
                st.floats(width=64), st.floats(width=32), st.booleans(), st.booleans(),
                st.lists(st.floats(width=32), min_size=3, max_size=3))


def same(a, b):
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def same_real(a, b):
    """Equal as ``real``: the driver reads the shortest decimal that stands for one."""
    return same(float(np.float32(a)), b)


@pytest.mark.db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=15, unique_by=lambda r: r[0]), constant=TEXT)
def test_every_type_comes_back(conn, rows, constant):
    """Texts of all lengths (UTF-8), NULLs, NaN and infinities, arrays, one value for all rows."""
    conn.execute("CREATE TEMPORARY TABLE IF NOT EXISTS kinds (_id uuid, t text, c text, big int8, small int2, "
                 "d float8, r real, b bool, reals real[], o uuid)")
    conn.execute("TRUNCATE kinds")
    ids, texts, big, small, d, r, b, null, reals = zip(*rows, strict=True)
    columns = {"_id": id_array(ids), "t": np.array([t.encode() for t in texts], "S"), "c": constant,
               "big": np.array(big, "i8"), "small": np.array(small, "i2"), "d": np.array(d), "r": np.array(r, "f4"),
               "b": np.array(b), "reals": np.array(reals, "f4"), "o": id_array(ids)}
    block = Block(len(rows), columns, {"o": np.array(null)})
    assert write_block(conn, "kinds", block, fresh=True) == len(rows)
    found = {row[0]: row[1:] for row in conn.execute("SELECT * FROM kinds")}
    assert len(found) == len(rows)
    for i, t, n, s, x, y, flag, empty, many in rows:
        wanted = (t, constant, n, s, x, y, flag, many, None if empty else i)
        got = found[i]
        assert all(same(got[k], wanted[k]) for k in (0, 1, 2, 3, 4, 6))
        assert all(same_real(g, w) for g, w in zip([got[5], *got[7]], [y, *many], strict=True))
        assert got[8] == wanted[8]


@pytest.mark.db
def test_rows_that_exist_stay_as_they_are_and_blocks_are_put_together(conn):
    conn.execute("CREATE TEMPORARY TABLE kept (_id uuid PRIMARY KEY, n int4, d float8)")
    first, second = (Block(2, {"_id": ids_of("x", numbers=[k, k + 1]), "n": np.array([k, k + 1], "i4"), "d": 0.5})
                     for k in (0, 1))
    assert write_block(conn, "kept", first) == 2
    assert write_block(conn, "kept", Block(2, second.columns | {"d": 9.0})) == 1
    assert sorted(conn.execute("SELECT n, d FROM kept").fetchall()) == [(0, 0.5), (1, 0.5), (2, 9.0)]
    both = concatenate([first, second])
    assert both.n == 4
    assert both.array("n").tolist() == [0, 1, 1, 2]
    packed = read_columns(conn, sql.SQL("FROM kept WHERE n > 0"), {"_id": ("_id", "V16"), "d": ("d", "f8")})
    assert sorted(zip(uuids(packed["_id"]), packed["d"].tolist(), strict=True)) == sorted(
        (stable_id("x", k), d) for k, d in ((1, 0.5), (2, 9.0)))
    assert len(read_columns(conn, sql.SQL("FROM kept WHERE n > 9"), {"d": ("d", "f8")})) == 0


def test_ids_are_those_of_single_rows():
    wanted = [stable_id("measurement", "a|b", k) for k in range(300)]
    made = ids_of("measurement", "a|b", numbers=range(300))
    assert uuids(made) == wanted
    assert id_texts(made) == [str(i) for i in wanted]
    assert uuids(id_array(wanted)) == wanted
    assert len(ids_of("x", numbers=[])) == 0
    assert all(i.version == 5 and i.variant == uuid.RFC_4122 for i in uuids(made))
