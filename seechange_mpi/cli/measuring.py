"""``seechange-mpi measuring``: what became of measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, chosen_run, load_config

if TYPE_CHECKING:
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.pipeline.cuts import CutCounts

app = typer.Typer(help="Measurements: which cuts they failed, how many were kept.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """Keep the verb a group, however many commands it has."""


@app.command()
def explain(
    places: Annotated[list[str] | None, typer.Argument(
        metavar="[RUN|FOLDER|BUNDLE]...", help="Folder or name of a run, a folder with bundles, or bundles; default: "
                                               "the latest run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: also bundle by bundle.")] = False,
    config: ConfigOption = None, set_: SetOption = None,
) -> int:
    """Count what failed which cut, and what became of it.

    good passed every cut; bad failed one of measuring.bad_thresholds and is marked in the database; deleted failed one
    of measuring.deletion_thresholds and is in the bundle alone. 'only' counts those that failed nothing else: as many
    would be good without the cut. Bundles are enough, no database is asked. Exit code 3 if one cannot be read.

    Examples: seechange-mpi measuring explain
              seechange-mpi measuring explain bundles/exp1/exp1_K6ILA3.h5
    """
    from seechange_mpi.model.errors import BadInput, ExitCode
    from seechange_mpi.pipeline.cuts import CutCounts

    resolved = load_config(config, set_)
    found: dict[str, dict[str, CutCounts]] = {}
    limits: dict[str, dict[str, Any]] = {}
    broken = 0
    for path in dict.fromkeys(_bundles(places, resolved)):
        try:
            found[str(path)] = _count(path, limits)
        except BadInput as err:
            broken += 1
            typer.echo(f"passed over: {err}", err=True)
    by_section: dict[str, CutCounts] = {}
    total = CutCounts()
    for sections in found.values():
        for name, counts in sections.items():
            by_section.setdefault(name, CutCounts()).add(counts)
            total.add(counts)
    if as_json:
        typer.echo(json.dumps({
            "bundles": {p: {s: c.as_dict() for s, c in sections.items()} for p, sections in found.items()},
            "sections": {s: c.as_dict() for s, c in by_section.items()}, "sum": total.as_dict(), "thresholds": limits},
            indent=1))
    else:
        _show(len(found), by_section, total, limits)
    return int(ExitCode.SECTIONS_FAILED if broken else ExitCode.OK)


def _bundles(places: Sequence[str] | None, config: Config) -> Iterator[Path]:
    """Bundles of runs, in folders, or named."""
    from seechange_mpi.data_store.trees import LOG, bundles_of_run
    from seechange_mpi.io.bundle import files_below
    from seechange_mpi.model.errors import BadInput

    chosen: list[Path | None] = [Path(place) for place in places or ()]
    for path in chosen or [None]:
        if path is not None and (path.suffix == ".h5" or path.is_file()):
            yield path
        elif path is not None and path.is_dir() and not (path / LOG).is_file():
            below = list(files_below([path]))
            if not below:
                raise BadInput(path, "folder", "bundles, or the log of a run", "neither")
            yield from below
        else:
            run = chosen_run(path, config)
            bundles = bundles_of_run(run)
            if not bundles:
                raise BadInput(run, "log of the run", "at least one bundle", "none was written")
            yield from bundles


def _count(path: Path, limits: dict[str, dict[str, Any]]) -> dict[str, CutCounts]:
    """Counts of the sections of a bundle that were measured; adds the thresholds that were used to `limits`."""
    from seechange_mpi.io.bundle import read_bundle, read_section
    from seechange_mpi.pipeline.cuts import count_cuts

    info = read_bundle(path)
    for record in info.provenances:
        if record.process == "measuring":
            limits[record.id] = {k: record.parameters.get(k) or {} for k in ("bad_thresholds", "deletion_thresholds")}
    out = {}
    for section in info.section_ids:
        measured = read_section(path, section, parts=("measurements",)).products.measurements
        if measured is not None:
            out[section] = count_cuts(measured.table)
    return out


def _show(n_bundles: int, by_section: dict[str, CutCounts], total: CutCounts, limits: dict[str, dict[str, Any]]
          ) -> None:
    from seechange_mpi.pipeline.measuring import CUTS

    typer.echo(f"{n_bundles} bundles, {len(by_section)} sections, {total.measurements} measurements: {total.good} "
               f"good, {total.bad} bad (marked in the database), {total.deleted} deleted (not in the database)\n")
    names = [*CUTS, *sorted(total.failed.keys() - CUTS.keys())]
    rows = [["cut", "threshold", "bad at", "deleted at", "failed", "only", "deleted"]]
    for name in names:
        threshold = CUTS.get(name, "?")
        rows.append([name, threshold, *(_limit(limits, kind, threshold) for kind in ("bad_thresholds",
                                                                                   "deletion_thresholds")),
                     str(total.failed[name]), str(total.only[name]), str(total.deleted_by[name])])
    _table(rows, 2)
    typer.echo("")
    rows = [["section", "all", "good", "bad", "deleted", *names]]
    for section, c in [*sorted(by_section.items()), ("sum", total)]:
        rows.append([section, *map(str, (c.measurements, c.good, c.bad, c.deleted)),
                     *(str(c.failed[name]) for name in names)])
    _table(rows, 1)


def _limit(limits: dict[str, dict[str, Any]], kind: str, threshold: str) -> str:
    """A threshold, "-" where there is none, "several" where the bundles differ."""
    values = {str(x[kind].get(threshold, None)) for x in limits.values()} or {"None"}
    if len(values) > 1:
        return "several"
    value = values.pop()
    return "-" if value == "None" else value


def _table(rows: list[list[str]], left: int) -> None:
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    for r in rows:
        cells = [c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths, strict=True))]
        typer.echo("  ".join(cells).rstrip())
