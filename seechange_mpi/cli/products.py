"""``seechange-mpi products``: delete what was made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.cascade import Deletion
    from seechange_mpi.db.cascade_files import FilesToGo
    from seechange_mpi.db.engine import Connection

app = typer.Typer(help="What was made of exposures: delete it, with all that was made from it.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """Keep `delete` a verb of its own."""


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(
        help="Identifiers of exposures, EXPOSURE/SECTION, or ids of images.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    archived: Annotated[bool, typer.Option("--archived", help="Delete archived copies as well.")] = False,
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Delete only from the database.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Delete exposures or images with everything that was made from them, after showing it.

    Differences that other exposures have made with a deleted image as their reference go too; their own images stay.
    The database is changed in one transaction, objects without a measurement go with it, files follow. Raw exposures
    are never deleted. Exit code 3 if files could not be removed.

    \b
    seechange-mpi products delete tiny_20251124_022400_r       the whole exposure
    seechange-mpi products delete tiny_20251124_022400_r/T2    one section of it
    """
    from seechange_mpi.db.cascade import delete_rows, plan_deletion
    from seechange_mpi.db.cascade_files import FilesToGo, plan_files, remove
    from seechange_mpi.db.engine import session
    from seechange_mpi.model.errors import ExitCode

    resolved = load_config(config, set_)
    with session(resolved) as conn:
        plan = plan_deletion(conn, names)
        files = FilesToGo() if keep_files else plan_files(resolved.bundles, plan.exposures.values(), plan.sections())
        copies = _copies(conn, resolved, plan, files)
        conn.rollback()  # no transaction stays open while somebody reads
        _show(plan, files, sum(copies.values()), len(copies), archived)
        if not yes and not (sys.stdin.isatty() and typer.confirm("Delete all this?")):
            typer.echo("nothing was deleted; to do it: --yes")
            return int(ExitCode.OK)
        delete_rows(conn, names, plan, _radius(resolved, plan))
        typer.echo(f"{sum(plan.rows.values())} rows deleted")
        problems = remove(files)
        if archived:
            problems += _delete_copies(conn, resolved, list(copies))
    for problem in problems:
        typer.echo(f"  {problem}")
    again = " ".join(sorted(plan.exposures.values()))
    if again:
        typer.echo(f"to make them again: seechange-mpi queue retry {again}, or run on the raw files")
    return int(ExitCode.SECTIONS_FAILED if problems else ExitCode.OK)


def _show(plan: Deletion, files: FilesToGo, copied: int, n_copies: int, archived: bool) -> None:
    from seechange_mpi.cli.archive import megabytes

    for name in plan.exposures.values():
        typer.echo(f"exposure {name}")
    for i in plan.images:
        if i.exposure_id not in plan.exposures and i not in plan.downstream:
            typer.echo(f"{'difference' if i.is_sub else 'image'} {i.exposure}/{i.section}")
    if plan.downstream:
        others = sorted({i.exposure for i in plan.downstream})
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        typer.echo(f"{len(plan.downstream)} differences of other exposures that were made with these as reference: "
                   f"{', '.join(others[:10])}{more}")
    typer.echo("rows")
    for table, n in plan.rows.items():
        typer.echo(f"  {table:<30}{n:>10}")
    every = files.all_files()
    typer.echo(f"files: {len(every)}, {megabytes(sum(p.stat().st_size for p in every))}")
    for path in [*files.folders, *files.files][:20]:
        typer.echo(f"  {path}")
    for bundle, gone in files.rewritten.items():
        typer.echo(f"  {bundle} (written anew without {', '.join(sorted(gone))})")
    if n_copies:
        typer.echo(f"archived copies: {n_copies}, {megabytes(copied)}"
                   + ("" if archived else "; they stay (--archived deletes them)"))
    kept = [i for i in plan.images if i.is_sub and i.exposure_id not in plan.exposures
            and i.section not in plan.sections().get(i.exposure, ())]
    if kept:
        typer.echo("the pixels of differences stay in the shards of their sections, beside the images: "
                   "'db commit BUNDLE' would put them back")


def _copies(conn: Connection, config: Config, plan: Deletion, files: FilesToGo) -> dict[str, int]:
    """Key -> size of archived copies of exposures and shards that go."""
    from seechange_mpi.db.archived import archived_files
    from seechange_mpi.io.archive import open_archive
    from seechange_mpi.io.archive_retriever import BUNDLES, Layout

    archive = open_archive(config.settings.archive)
    if archive is None:
        return {}
    layout = Layout(config.root, config.bundles)
    single = {layout.key_of(p) for p in files.files}
    names = sorted({*plan.exposures.values(), *plan.sections()})
    return {f.key: f.size for f in archived_files(conn, archive.name, names).values()
            if (f.exposure in plan.exposures.values() and f.key.startswith(f"{BUNDLES}/")) or f.key in single}


def _delete_copies(conn: Connection, config: Config, keys: list[str]) -> list[str]:
    from seechange_mpi.db.archived import forget
    from seechange_mpi.io.archive import needed_archive
    from seechange_mpi.model.errors import SeeChangeError

    problems, gone = [], []
    if keys:
        archive = needed_archive(config.settings.archive)
        for key in keys:
            try:
                archive.delete(key)
                gone.append(key)
            except SeeChangeError as err:
                problems.append(str(err))
        forget(conn, archive.name, gone)
        typer.echo(f"{len(gone)} archived copies deleted")
    return problems


def _radius(config: Config, plan: Deletion) -> float:
    """Largest distance [arcsec] of a measurement to its object, of all cameras concerned."""
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.model.errors import SeeChangeError

    radius = config.settings.objects.association_radius_arcsec
    if radius is not None:
        return radius
    radii = [2.0]
    for name in sorted({i.instrument for i in plan.images}):
        try:
            radii.append(load_camera(name).association_radius_arcsec)
        except SeeChangeError:
            radii.append(5.0)  # a camera file that has gone: locks reach a little too far
    return max(radii)
