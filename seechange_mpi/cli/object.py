"""``seechange-mpi object``: objects, their positions and their light curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.pipeline.forced import ForcedTask

app = typer.Typer(help="Objects in the database: list, show, position, light curve, forced photometry, what is "
                       "near them in a catalogue.",
                  no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Name = Annotated[str, typer.Argument(metavar="NAME|ID", help="Name as in 'object list', or id. Case, spaces and "
                                                             "underscores of names do not matter.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME|ID]...", help="Objects; default: all.")]


@app.command("list")
def list_(
    near: Annotated[str | None, typer.Option("--near", metavar="RA,DEC", help="Only around this place [deg], nearest "
                                                                              "first.")] = None,
    radius: Annotated[float, typer.Option("--radius", min=0, help="How far around it [arcsec].")] = 10.0,
    least: Annotated[int, typer.Option("--min-measurements", min=0, help="Least number of good measurements.")] = 1,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most lines.")] = 50,
    bad: Annotated[bool, typer.Option("--bad", help="Also objects marked as bad.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Those of tests (run.is_testing) in place of the real ones.")
                    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """List objects, those with most measurements first.

    Example: seechange-mpi object list --near 150.1,2.2 --radius 30
    """
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.objects import list_objects
    from seechange_mpi.mpi.summary import format_table

    place = _place(near, radius)
    with session(load_config(config, set_)) as conn:
        found = list_objects(conn, near=place, min_measurements=least, with_bad=bad, limit=limit, of_test=test)
    if not found:
        typer.echo("no object there" if near else "there are no objects with so many measurements")
        return
    typer.echo(format_table(
        ["object", "ra", "dec", "measured", "first mjd", "last mjd", "id"],
        [[o.name + (" (bad)" if o.is_bad else ""), f"{o.ra:.6f}", f"{o.dec:+.6f}", str(o.n_measurements),
          "-" if o.first_mjd is None else f"{o.first_mjd:.3f}", "-" if o.last_mjd is None else f"{o.last_mjd:.3f}",
          str(o.id)] for o in found]))


def _place(near: str | None, radius: float) -> tuple[float, float, float] | None:
    if near is None:
        return None
    try:
        ra, dec = (float(v) for v in near.split(","))
    except ValueError:
        raise typer.BadParameter(f"--near {near}: expected RA,DEC in degrees, for example --near 150.1,2.2") from None
    if not -90 <= dec <= 90:
        raise typer.BadParameter(f"--near {near}: the declination must be between -90 and 90 degrees")
    return ra % 360.0, dec, radius


_SHOWN = 10
"""Most matches that 'object show' lists."""


@app.command()
def show(name: Name, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Show one object: where it is, how well that is known, what there is of it, and what a catalogue has nearby."""
    from seechange_mpi.db.crossmatch import matches_of
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.lightcurve import light_curve
    from seechange_mpi.db.objects import find_objects
    from seechange_mpi.db.positions import newest_position

    with session(load_config(config, set_)) as conn:
        found = find_objects(conn, [name])[0]
        mean: Any = newest_position(conn, found.id)
        table = light_curve(conn, found.id)
        near = matches_of(conn, found.id)
    typer.echo(f"{found.name}  {found.id}{'  marked as bad' if found.is_bad else ''}"
               f"{'  of a test' if found.is_test else ''}")
    typer.echo(f"  founded at   {found.ra:.7f} {found.dec:+.7f}")
    if mean is None:
        typer.echo("  no mean position: seechange-mpi object position makes it")
    else:
        rho = mean[4] / (mean[2] * mean[3]) if mean[2] and mean[3] else 0.0
        typer.echo(f"  mean         {mean[0]:.7f} {mean[1]:+.7f}  ± {mean[2] * 3.6e6:.0f} {mean[3] * 3.6e6:.0f} mas, "
                   f"correlation {rho:+.2f}, {mean[5]} measurements, {mean[7]:%Y-%m-%d}")
    for kind in ("measured", "forced", "limit"):
        rows = table[table["kind"] == kind]
        if len(rows):
            typer.echo(f"  {kind:<12} {len(rows)} in {', '.join(sorted(set(rows['filter'])))}, "
                       f"mjd {rows['mjd'].min():.3f} to {rows['mjd'].max():.3f}, {int(rows['is_bad'].sum())} bad")
    for m in near[:_SHOWN]:
        kind = "unknown" if m.is_star is None else "star" if m.is_star else "galaxy"
        sure = "" if m.star_probability is None else f" (star: {m.star_probability:.2f})"
        mag = "" if m.mag is None else f", mag {m.mag:.2f}"
        typer.echo(f"  near         {m.dist:.2f}\" {kind}{sure}{mag}, {m.ra:.6f} {m.dec:+.6f}, id {m.source_id}")
    if len(near) > _SHOWN:
        typer.echo(f"  near         and {len(near) - _SHOWN} more")


@app.command()
def match(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME|ID]...", help="Objects to match anew.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Match all objects anew.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Match the objects that have no match.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Note which stars and galaxies of a catalogue (objects.crossmatch_catalog) lie near objects.

    A run does this by itself after each commit, for new objects. With --missing it is done for all that have no match:
    those that were founded before there was a catalogue, or while it was away. With names or --all what was
    noted is replaced: do that after the catalogue or objects.crossmatch_radius_arcsec has changed. Objects of tests
    are left out. The exit code is 2 if there is no catalogue, 4 if it cannot be read.

    \b
    seechange-mpi object match --missing --set objects.crossmatch_catalog=/data/legacy
    """
    from seechange_mpi.db.crossmatch import Crossmatcher
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.objects import find_objects
    from seechange_mpi.model.errors import ConfigError

    if bool(names) + everything + missing != 1:
        raise ConfigError("name objects, or give one of --all and --missing")
    resolved = load_config(config, set_)
    matcher = Crossmatcher(resolved.settings.objects)
    with session(resolved) as conn:
        if names:
            chosen = find_objects(conn, names)
            tests = [o.name for o in chosen if o.is_test]
            if tests:
                raise ConfigError(f"{', '.join(tests)}: objects of tests are not matched")
            done = matcher.named(conn, [o.id for o in chosen])
        else:
            done = matcher.all(conn, missing=missing)
    typer.echo(str(done))


@app.command()
def position(names: Names = None, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Make or bring up to date the mean positions of objects; twice changes nothing.

    Clipped mean of the measurements, weighted by S/N, with its covariance. Settings: positioning.sncut, sigma_clip,
    weight_power, filter, until_mjd, use_bad.
    Example: seechange-mpi object position --set positioning.filter=r
    """
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.objects import find_objects
    from seechange_mpi.db.positions import newest_position, position_objects

    resolved = load_config(config, set_)
    with session(resolved) as conn:
        chosen = find_objects(conn, names) if names else None
        done = position_objects(conn, resolved.settings.positioning, [o.id for o in chosen] if chosen else None)
        typer.echo(f"{done.new} new, {done.changed} changed, {done.unchanged} unchanged positions; {done.without} "
                   f"objects without a measurement that counts (provenance {done.provenance_id})")
        for o in chosen or ():
            mean: Any = newest_position(conn, o.id)
            if mean is not None:
                typer.echo(f"{o.name}: {mean[0]:.7f} {mean[1]:+.7f} ± {mean[2] * 3.6e6:.0f} {mean[3] * 3.6e6:.0f} mas")


@app.command()
def lightcurve(
    name: Name,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a PNG file.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Show the light curve of an object: measurements, forced photometry, limits.

    Fluxes are those of the difference (new minus reference) in nJy: mag = 31.4 - 2.5 log10(flux).
    Example: seechange-mpi object lightcurve 'SCM J100023.981+021201.40' --plot lc.png
    """
    import numpy as np

    from seechange_mpi.db.engine import session
    from seechange_mpi.db.lightcurve import light_curve, write_csv
    from seechange_mpi.db.objects import find_objects
    from seechange_mpi.model.errors import ConfigError
    from seechange_mpi.mpi.summary import format_table

    for path in (csv, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    with session(load_config(config, set_)) as conn:
        found = find_objects(conn, [name])[0]
        table = light_curve(conn, found.id)
    if csv is not None:
        write_csv(table, csv)
        typer.echo(f"{csv}: {len(table)} rows")
    if plot is not None:
        from seechange_mpi.report.lightcurve import light_curve_figure

        typer.echo(str(light_curve_figure(table, plot, found.name)))
    if csv is not None or plot is not None:
        return
    typer.echo(format_table(
        ["kind", "mjd", "filter", "flux nJy", "±", "mag", "±", "limit", "bad", "exposure", "section"],
        [[str(r["kind"]), f"{r['mjd']:.4f}", str(r["filter"]),
          *("-" if not np.isfinite(r[c]) else f"{r[c]:.{n}f}" for c, n in
            (("flux_njy", 0), ("flux_err_njy", 0), ("mag", 3), ("mag_err", 3), ("lim_mag", 2))),
          "bad" if r["is_bad"] else "-", str(r["exposure"]), str(r["section"])] for r in table]))


@app.command()
def forced(
    names: Names = None,
    exposures: Annotated[list[str] | None, typer.Option(
        "--exposure", "-e", help="Only in this exposure (identifier). May be repeated.")] = None,
    processes: Annotated[int, typer.Option("--processes", "-n", min=1, help="Processes that measure.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what is left to do.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Measure fluxes at the positions of objects in every difference image that covers them.

    Positions are brought up to date first. What is measured already is left alone, so an interrupted call goes on
    where it stopped, and a call after new exposures measures only those. The exit code is 3 if a bundle could not be
    read. Example: seechange-mpi object forced -n 8
    """
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.forced import plan as planned
    from seechange_mpi.db.forced import store
    from seechange_mpi.db.objects import find_objects
    from seechange_mpi.db.positions import position_objects
    from seechange_mpi.model.errors import ExitCode

    resolved = load_config(config, set_)
    settings = resolved.settings.forcedphot
    with session(resolved) as conn:
        chosen = find_objects(conn, names) if names else None
        ids = [o.id for o in chosen] if chosen else None
        position_objects(conn, resolved.settings.positioning, ids)
        tasks = planned(conn, settings, object_ids=ids, exposures=exposures or None)
        if plan:
            left = list(tasks)
            for t in left:
                typer.echo(f"{t.exposure}: {t.n} in {len(t.sections)} sections")
            typer.echo(f"{sum(t.n for t in left)} measurements in {len(left)} bundles are left")
            return int(ExitCode.OK)
        measured = failed = 0
        for task, tables in _measured(tasks, settings.model_dump(), processes):
            if isinstance(tables, Exception):
                failed += 1
                typer.echo(f"{task.exposure}: {tables}", err=True)
                continue
            n = store(conn, task, tables)
            measured += n
            typer.echo(f"{task.exposure}: {n} measured")
    typer.echo(f"{measured} measurements are new" + (f"; {failed} bundles could not be read" if failed else ""))
    return int(ExitCode.SECTIONS_FAILED if failed else ExitCode.OK)


def _measured(tasks: Iterator[ForcedTask], settings: dict[str, Any], processes: int
              ) -> Iterator[tuple[ForcedTask, Any]]:
    """Yield (task, tables or the error it met), as they are ready; a few tasks are planned ahead."""
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from itertools import islice

    from seechange_mpi.model.errors import SeeChangeError
    from seechange_mpi.pipeline.forced import measure

    if processes == 1:
        for task in tasks:
            try:
                tables: Any = measure(task, settings)
            except SeeChangeError as err:
                tables = err
            yield task, tables
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[Any], ForcedTask] = {}
        while True:
            for task in islice(tasks, 2 * processes - len(running)):
                running[pool.submit(measure, task, settings)] = task
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                met = done.exception()
                if met is not None and not isinstance(met, SeeChangeError):
                    raise met
                yield running.pop(done), done.result() if met is None else met
