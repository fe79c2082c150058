"""``seechange-mpi catalog``: build a catalogue folder, and show what a catalogue holds."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.config.resolve import Config

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False,
                  help="Star catalogues: build a folder of sky cells, show what is there.",
                  context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to make; then set catalog.path to it.")],
    files: Annotated[list[str], typer.Option("--from", help="Tables of stars; patterns such as 'gaia/*.csv.gz' too.")],
    order: Annotated[int, typer.Option("--order", min=0, max=10, help="HEALPix order of the cells.")] = 5,
    max_mag: Annotated[float | None, typer.Option("--max-mag", help="Leave out fainter stars.")] = None,
    min_mag: Annotated[float | None, typer.Option("--min-mag", help="Leave out brighter stars.")] = None,
    mag: Annotated[str | None, typer.Option("--mag", help="Magnitude that the limits apply to; default: g, of sources "
                                                          "mag.")] = None,
    keep: Annotated[str | None, typer.Option("--keep", help="Magnitudes to keep, e.g. g,bp,rp.")] = None,
    sources: Annotated[bool, typer.Option("--sources", help="For objects.crossmatch_catalog: keep id, mag, is_star "
                                                            "and xgboost in place of bands.")] = False,
    chunk_rows: Annotated[int, typer.Option("--chunk-rows", min=1000, help="Rows in memory at a time.")] = 200_000,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Build a catalogue folder from Gaia downloads (CSV.gz), FITS, Parquet or ECSV tables.

    \b
    seechange-mpi catalog build /data/gaia --from 'GaiaSource_*.csv.gz' --max-mag 20.5

    The folder appears when it is complete; a build that was interrupted goes on where it stopped when the same
    command is given again. Columns and units are mapped by catalog.columns and catalog.units.

    \b
    seechange-mpi catalog build /data/legacy --from 'sweep-*.fits' --sources
    """
    from seechange_mpi.io.catalog_build import BuildOptions, build_folder
    from seechange_mpi.model.errors import ConfigError

    settings = load_config(config, set_).settings.catalog
    paths = []
    for pattern in files:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not found:
            raise ConfigError(f"--from {pattern}: no such files")
        paths += [Path(p) for p in found]
    spec = {k: v for k, v in settings.model_dump().items() if k in ("columns", "angle_unit", "units", "ref_epoch")}
    kept = tuple(k.strip() for k in keep.split(",")) if keep else ()
    if sources:
        from seechange_mpi.io.source_catalog import columns_of_file

        columns = columns_of_file(paths[0]) | settings.columns
        if "id" not in columns:
            raise ConfigError(f"--sources: {paths[0]} has no column of ids; name it: --set catalog.columns.id=COLUMN")
        spec["columns"] = columns
        kept = kept or tuple(k for k in ("mag", "is_star", "xgboost") if k in columns)
    options = BuildOptions(order, min_mag, max_mag, mag or ("mag" if sources else "g"), spec, chunk_rows, kept)
    index = build_folder(out, list(dict.fromkeys(paths)), options, typer.echo)
    typer.echo(f"{out}: {index.rows} stars in {len(index.cells)} cells of order {index.order}")


@app.command()
def show(
    path: Annotated[str | None, typer.Argument(
        help="Catalogue file or folder, or the URL of a service; none = the excerpts that runs have made.")] = None,
    ra: Annotated[float | None, typer.Option("--ra", help="Centre of a cone [deg].")] = None,
    dec: Annotated[float | None, typer.Option("--dec", min=-90, max=90, help="Centre of a cone [deg].")] = None,
    radius: Annotated[float, typer.Option("--radius", min=0, help="Radius of the cone [deg].")] = 0.1,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Stars to list, brightest first.")] = 10,
    check: Annotated[bool, typer.Option("--check", help="Compare every cell with its checksum.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Show what a catalogue holds, and the stars of a cone; without a PATH, list the excerpts of the database.

    \b
    seechange-mpi catalog show /data/gaia --ra 150 --dec 2.2
    seechange-mpi catalog show
    """
    from seechange_mpi.model.errors import ConfigError

    if path is None:
        if ra is not None or dec is not None or check:
            raise ConfigError("--ra, --dec and --check need a catalogue: give its path")
        _list_excerpts(load_config(config, set_))
        return 0
    is_url = path.startswith(("http://", "https://"))
    if (ra is None) != (dec is None):
        raise ConfigError("give both --ra and --dec")
    code = 0
    if not is_url and Path(path).is_dir():
        code = _show_folder(Path(path), check)
    elif check:
        raise ConfigError("--check is for catalogue folders")
    elif is_url and ra is None:
        raise ConfigError("give --ra and --dec to ask a service")
    if (ra is not None and dec is not None) or not Path(path).is_dir():
        spec = load_config(config, set_).settings.catalog.model_dump()
        spec |= {"path": None, "url": path} if is_url else {"path": path, "url": None}
        _show_stars(spec, (0.0, 0.0, 180.0) if ra is None or dec is None else (ra, dec, radius), rows)
    return code


def _list_excerpts(resolved: Config) -> None:
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.excerpts import list_excerpts
    from seechange_mpi.mpi.summary import format_table

    with session(resolved) as conn:
        rows = list_excerpts(conn)
    if not rows:
        typer.echo("no excerpt is registered: a run makes one for each field (catalog.path or catalog.url)")
        return
    typer.echo(format_table(
        ["id", "ra", "dec", "radius", "stars", "mag", "filters", "from", "made", "file"],
        [[r.id[:8], f"{r.ra:.4f}", f"{r.dec:+.4f}", f"{r.radius:.3f}", str(r.num_items),
          "-" if r.minmag is None or r.maxmag is None else f"{r.minmag:.1f}-{r.maxmag:.1f}", ",".join(r.filters),
          r.origin, f"{r.created_at:%Y-%m-%d}", r.filepath if Path(r.filepath).is_file() else f"{r.filepath} (gone)"]
         for r in rows]))


def _show_folder(folder: Path, check: bool) -> int:
    from seechange_mpi.io.catalog_folder import damaged_cells, read_index

    index = read_index(folder)
    low, high = index.limits
    typer.echo(f"{folder}: {index.rows} stars in {len(index.cells)} cells of HEALPix order {index.order} (nested)")
    first, last = index.epoch
    typer.echo(f"  epoch    {first:g}" + (f" to {last:g}" if last > first else ""))
    typer.echo(f"  limits   {'-' if low is None else low} to {'-' if high is None else high} mag")
    typer.echo("  columns  " + ", ".join(f"{n} [{u}]" if u else n for n, u in index.columns.items()))
    typer.echo(f"  built    from {len(index.sources)} files: {', '.join(index.sources[:3])}"
               + (" …" if len(index.sources) > 3 else ""))
    if check:
        problems = damaged_cells(folder)
        for text in problems:
            typer.echo(f"  damaged  {text}")
        typer.echo(f"  checked  {len(index.cells)} cells, {len(problems)} damaged")
        return 4 if problems else 0
    return 0


def _show_stars(spec: dict[str, object], cone: tuple[float, float, float], rows: int) -> None:
    import numpy as np

    from seechange_mpi.io.catalog import brightness, read_catalog
    from seechange_mpi.io.star_file import columns_of

    stars = read_catalog(spec, *cone)
    typer.echo(f"{len(stars)} stars of {stars.rows_in_file} within {cone[2]:g} deg of {cone[0]:.4f} {cone[1]:+.4f}")
    columns = columns_of(stars)
    typer.echo("  columns  " + ", ".join(f"{n} ({stars.columns[n]})" if stars.columns.get(n, n) != n else n
                                         for n in columns))
    order = np.argsort(np.nan_to_num(brightness(stars), nan=99.0), kind="stable")[:rows]
    names = [n for n in columns if n != "ref_epoch"]
    if len(order):
        typer.echo("  " + "  ".join(f"{n[:11]:>{_formats(n)[0]}}" for n in names))
    for k in order:
        typer.echo("  " + "  ".join(f"{columns[n][k]:{''.join(_formats(n))}}" for n in names))


def _formats(name: str) -> tuple[str, str]:
    """Width and format of a column."""
    return ("19", "d") if name == "id" else ("11", ".6f" if name in ("ra", "dec") else ".3f")
