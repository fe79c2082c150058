"""Commit of an LS4 exposure: 32 sections of 2,000 measurements among many objects, against rows sent one by one.

    python benchmarks/database.py               10^4 to 10^6 objects (part of make bench)
    python benchmarks/database.py --objects 10000 100000 1000000 10000000

The rival writes the same rows of the same bundle into a copy of the same database as the predecessor does: one
statement per row (``INSERT … ON CONFLICT (_id) DO UPDATE``), one search for an object per measurement. It keeps
one connection and one transaction: the predecessor's table lock and new connection for each operation are not counted.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import hpgeom
import numpy as np

from seechange_mpi.db.blocks import Block, ids_of, write_block
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import Connection, connect
from seechange_mpi.db.exposures import exposure_row
from seechange_mpi.db.linking import ORDER, healpix
from seechange_mpi.db.migrate import upgrade
from seechange_mpi.db.names import place_names
from seechange_mpi.db.provenance import store_provenances
from seechange_mpi.db.rows import TABLES_IN_ORDER, section_parts
from seechange_mpi.db.server import EmbeddedServer
from seechange_mpi.io.bundle import read_bundle, read_tables
from seechange_mpi.model.ids import stable_id

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "db"))
from made_bundles import Maker

SECTIONS, MEASUREMENTS, RADIUS = 32, 2000, 2.0
FIELD = (150.0, 2.0)
"""Centre of the field [deg]; 4 x 8 sections of 0.57 x 1.14 deg, as LS4's."""


def section_centres() -> list[tuple[float, float]]:
    """Centres of the sections [deg]."""
    return [(FIELD[0] + 0.57 * (k % 8 - 3.5), FIELD[1] + 1.14 * (k // 8 - 1.5)) for k in range(SECTIONS)]


def make_exposure(maker: Maker, name: str, mjd: float, seed: int, known: np.ndarray) -> Path:
    """Write the bundle of an exposure; half of its measurements are of known objects.

    Parameters
    ----------
    known : (n, 2) positions of objects [deg].
    """
    rng = np.random.default_rng(seed)
    sections = {}
    for k, (ra, dec) in enumerate(section_centres()):
        here = known[(np.abs(known[:, 0] - ra) < 0.28) & (np.abs(known[:, 1] - dec) < 0.56)]
        old = here[rng.permutation(len(here))[: MEASUREMENTS // 2]] + rng.normal(0, 0.2 / 3600, (min(len(here),
                                                                                  MEASUREMENTS // 2), 2))
        new = np.column_stack([rng.uniform(ra - 0.28, ra + 0.28, MEASUREMENTS - len(old)),
                               rng.uniform(dec - 0.56, dec + 0.56, MEASUREMENTS - len(old))])
        sections[f"S{k + 1}"] = {"ra": ra, "dec": dec, "at": np.concatenate([old, new])}
    return Path(maker(sections, name, mjd))


def add_objects(conn: Connection, n: int, seed: int, *, in_area: int = 100_000) -> np.ndarray:
    """Fill the table of objects; return the positions of those in the field, `in_area` at most, the others anywhere."""
    rng = np.random.default_rng(seed)
    m = min(n, in_area)
    field = np.column_stack([rng.uniform(FIELD[0] - 2.28, FIELD[0] + 2.28, m),
                             rng.uniform(FIELD[1] - 2.28, FIELD[1] + 2.28, m)])
    everywhere = np.column_stack([rng.uniform(0, 360, n - m), np.degrees(np.arcsin(rng.uniform(-1, 1, n - m)))])
    at = np.concatenate([field, everywhere])
    names = np.array([b"SCM %s-%d" % (name, k) for k, name in enumerate(place_names(at[:, 0], at[:, 1]).tolist())], "S")
    with conn.transaction():
        for first in range(0, n, 1_000_000):
            some = slice(first, first + 1_000_000)
            write_block(conn, "objects", Block(len(names[some]), {
                "_id": ids_of("o", seed, numbers=range(first, first + len(names[some]))), "name": names[some],
                "ra": at[some, 0], "dec": at[some, 1], "healpix": healpix(at[some, 0], at[some, 1])}), fresh=True)
    conn.autocommit = True
    conn.execute("VACUUM ANALYZE objects")
    conn.autocommit = False
    return field


def row_by_row(conn: Connection, bundle: Path) -> float:
    """Commit a bundle as the predecessor would; return the time [s]."""
    started = time.perf_counter()
    info = read_bundle(bundle)
    sections = read_tables(bundle)
    parts = [p for s in sections for p in section_parts(info, s)]
    with conn.transaction():
        store_provenances(conn, info.provenances)
        _upsert(conn, "exposures", exposure_row(info, sections))
        for p in parts:
            for table in TABLES_IN_ORDER:
                for row in p.rows.get(table, ()):
                    _upsert(conn, table, row)
            for row in _dicts(p.measurements):
                near = conn.execute("SELECT _id FROM objects WHERE healpix = ANY(%s) AND NOT is_test LIMIT 1",
                                    (_pixels(row["ra"], row["dec"]),)).fetchone()
                if near is not None:
                    row["object_id"] = near[0]
                else:
                    row["object_id"] = stable_id("object", row["_id"])
                    _upsert(conn, "objects", {"_id": row["object_id"], "name": str(row["object_id"]), "ra": row["ra"],
                                              "dec": row["dec"], "healpix": row["healpix"]})
                _upsert(conn, "measurements", row)
            for row in p.score_sets:
                _upsert(conn, "deepscore_sets", row)
            for block in p.scores:
                for row in _dicts(block):
                    _upsert(conn, "deepscores", row)
    return time.perf_counter() - started


def _pixels(ra: float, dec: float) -> list[int]:
    """Cells of the sky index around a position."""
    return [int(p) for p in hpgeom.query_circle(1 << ORDER, ra, dec, RADIUS / 3600, inclusive=True, nest=True)]


def _dicts(block: Block | None) -> Iterator[dict[str, Any]]:
    """The rows of a block, one by one."""
    if block is None:
        return
    columns = {name: block.array(name) for name in block.columns}
    for k in range(block.n):
        yield {name: UUID(bytes=bytes(c[k])) if c.dtype.kind == "V" else c[k].decode() if c.dtype.kind == "S"
               else c[k].tolist() for name, c in columns.items()}


def _upsert(conn: Connection, table: str, row: dict[str, Any]) -> None:
    names = list(row)
    key = names[0]
    changes = ", ".join(f'"{c}" = EXCLUDED."{c}"' for c in names[1:])
    quoted = ", ".join(f'"{c}"' for c in names)
    conn.execute(f'INSERT INTO {table} ({quoted}) VALUES ({", ".join(["%s"] * len(names))}) '  # type: ignore[arg-type]
                 f'ON CONFLICT ("{key}") DO UPDATE SET {changes}', [row[c] for c in names])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rival-at", type=int, default=100_000, help="number of objects at which the rival runs")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="seechange-bench-"))
    folder.chmod(0o755)
    own = EmbeddedServer(folder)
    print(f"Commit of {SECTIONS} sections of {MEASUREMENTS} measurements, half of them of known objects; "
          f"{platform.machine()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| objects | commit [s], median | worst | read [s] | products | linking and measurements | scores, reports | "
          "row by row [s] | ratio |\n|---|---|---|---|---|---|---|---|---|")
    try:
        with own.in_use() as url:
            for n in args.objects:
                with connect(url) as admin:
                    admin.autocommit = True
                    admin.execute(f"CREATE DATABASE bench_{n} TEMPLATE template0")  # type: ignore[arg-type]
                with connect(url.replace("/seechange?", f"/bench_{n}?")) as conn:
                    upgrade(conn)
                    print(one_size(conn, n, folder / str(n), args.repeat, rival=n == args.rival_at), flush=True)
                with connect(url) as admin:
                    admin.autocommit = True
                    admin.execute(f"DROP DATABASE bench_{n}")  # type: ignore[arg-type]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(own.data.parent, ignore_errors=True)


def one_size(conn: Connection, n: int, folder: Path, repeat: int, *, rival: bool) -> str:
    """Commit `repeat` exposures among `n` objects; return a row of the table."""
    known = add_objects(conn, n, 1)
    maker = Maker(folder)
    found = []
    for k in range(repeat):
        bundle = make_exposure(maker, f"e{k}", 60000.0 + k, 10 + k, known)
        started = time.perf_counter()
        done = commit_bundle(conn, bundle, radius_arcsec=RADIUS)
        found.append((time.perf_counter() - started, done.seconds))
    found.sort(key=lambda f: f[0])
    total, phases = found[len(found) // 2]
    slow = ""
    if rival:
        took = row_by_row(conn, make_exposure(maker, "rival", 60100.0, 99, known))
        slow = f"{took:.1f} | {took / total:.0f}"
    return (f"| {n:,} | {total:.2f} | {found[-1][0]:.2f} | {phases['read']:.2f} | {phases['products']:.2f} | "
            f"{phases['linking']:.2f} | {phases['finish']:.2f} | {slow or '– | –'} |")


if __name__ == "__main__":
    main()
