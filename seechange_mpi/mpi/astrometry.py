"""Solve the source lists of whole exposures: each by itself, then those refused with what their neighbours tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seechange_mpi.model.errors import ExitCode
from seechange_mpi.mpi.comm import Communicator
from seechange_mpi.mpi.share_out import share_out
from seechange_mpi.mpi.summary import format_table
from seechange_mpi.pipeline.list_astrometry import ListResult, ListTask, hint_for, solve_list


def solve_lists(comm: Communicator, tasks: Sequence[ListTask],
                say: Callable[[ListResult], None] | None = None) -> list[ListResult]:
    """Return the results in the order of the tasks."""
    tell = say or (lambda _result: None)
    done: dict[str, ListResult] = {}
    for result in share_out(comm, tasks, solve_list):
        done[result.name] = result
        tell(result)
    solved = [r for r in done.values() if r.wcs is not None]
    again = [replace(t, hint=hint) for t in tasks
             if done[t.name].wcs is None and (hint := hint_for(done[t.name], solved)) is not None]
    for result in share_out(comm, again, solve_list):
        if result.wcs is not None:
            done[result.name] = result
            tell(result)
        else:
            done[result.name].refusal += f"; near its neighbours' solutions: {result.refusal}"
    return [done[t.name] for t in tasks]


def residual_table(results: Sequence[ListResult]) -> str:
    """Return the table of residuals, and under it the reasons of refusals."""
    header = ["list", "solution", "sources", "stars", "order", "rms mas", "max mas", "chi2", "offset \"", "centre mas",
              "corner mas", "log p"]

    def show(value: float, digits: int = 1) -> str:
        return f"{value:.{digits}f}" if math.isfinite(value) else "-"

    rows, refusals = [], []
    for r in results:
        name = r.name
        if r.wcs is None:
            rows.append([name, "refused", str(r.n_sources), *["-"] * (len(header) - 3)])
            refusals.append(f"  {name}: {r.refusal}")
            continue
        w = r.wcs
        offset = math.hypot(w.header_offset_ra_arcsec, w.header_offset_dec_arcsec)
        rows.append([name, "by neighbours" if r.hinted else w.method, str(r.n_sources), str(w.n_matched), str(w.order),
                     show(w.rms_radial_mas), show(w.max_residual_mas), show(w.chi2_dof, 2), show(offset, 2),
                     show(w.error_centre_mas), show(w.error_corner_mas), show(w.log10_chance)])
        refusals += [f"  {name}: {text}" for text in r.warnings]
    return "\n".join([format_table(header, rows), *refusals])


def write_solutions(results: Sequence[ListResult], folder: Path) -> Path:
    """Write a ``.wcs`` header file for each solution and ``astrometry.ecsv``; return the table's path."""
    from astropy.io import fits
    from astropy.table import Table

    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for r in results:
        row: dict[str, Any] = {"list": r.name, "solved": r.wcs is not None, "by_neighbours": r.hinted,
                               "sources": r.n_sources, "refusal": r.refusal if r.wcs is None else ""}
        if r.wcs is not None:
            row |= {k: v for k, v in asdict(r.wcs).items() if k not in ("header", "method")}
            fits.PrimaryHDU(header=fits.Header.fromstring(r.wcs.header)).writeto(
                folder / f"{r.name}.wcs", overwrite=True)
        rows.append(row)
    whole = {n: row[n] for row in rows for n in row}
    table = Table({n: [row.get(n, type(whole[n])() if isinstance(whole[n], int | str) else math.nan) for row in rows]
                   for n in whole})
    path = folder / "astrometry.ecsv"
    table.write(path, format="ascii.ecsv", overwrite=True)
    return path


def exit_code(results: Sequence[ListResult]) -> ExitCode:
    """0: all solved; 3: some refused; 4: all refused."""
    refused = sum(r.wcs is None for r in results)
    if refused == len(results):
        return ExitCode.EXPOSURE_FAILED
    return ExitCode.SECTIONS_FAILED if refused else ExitCode.OK
