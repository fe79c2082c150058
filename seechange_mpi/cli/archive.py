"""``seechange-mpi archive``: files into the archive and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.db.archiving import Archivist, Transfer

app = typer.Typer(help="The archive (a folder, an object store, SeeChange's upload server; settings 'archive'): "
                       "bundles and shards are uploaded after each commit and come back when they are missing.",
                  no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Names = Annotated[list[str] | None, typer.Argument(help="Identifiers of exposures; none = all.")]


@contextmanager
def archivist(config: str | None, sets: list[str] | None) -> Iterator[Archivist]:
    """Yield the archive of the configuration with its table."""
    from seechange_mpi.db.archiving import Archivist
    from seechange_mpi.db.engine import server
    from seechange_mpi.io.archive import needed_archive

    resolved = load_config(config, sets)
    archive = needed_archive(resolved.settings.archive)
    with server(resolved) as opened:
        yield Archivist(resolved, opened, archive)


def megabytes(size: int) -> str:
    """Write a number of bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _close(total: Transfer, verb: str, seconds: float) -> int:
    from seechange_mpi.model.errors import ExitCode

    rate = f", {total.size / 1e6 / seconds:.0f} MB/s" if total.files and seconds > 0.01 else ""
    typer.echo(f"{total.files} files {verb} ({megabytes(total.size)}{rate}), {total.present} were there, "
               f"{len(total.problems)} problems")
    return int(ExitCode.EXPOSURE_FAILED if total.problems else ExitCode.OK)


def _tell(name: str, done: Transfer, verb: str) -> None:
    if done.files:
        typer.echo(f"{name}: {done.files} files {verb}, {megabytes(done.size)}")
    for problem in done.problems:
        typer.echo(f"  {problem}")


@app.command()
def push(names: Names = None, config: ConfigOption = None, set_: SetOption = None) -> int:
    """Upload what the archive lacks. After an interruption it goes on with what is missing.

    A run does this by itself after each commit (archive.push). Exit code 4 if something could not be uploaded.

    Example: seechange-mpi archive push --set archive.kind=directory --set archive.path=/mnt/store
    """
    from seechange_mpi.db.archiving import Transfer
    from seechange_mpi.model.errors import ConfigError

    total, began = Transfer(), time.perf_counter()
    with archivist(config, set_) as keeper:
        here = keeper.exposures_here()
        for name in names or ():
            if name not in here:
                raise ConfigError(f"{name}: there is no bundle of it below {keeper.config.bundles}")
        for name in names or here:
            done = keeper.push(name)
            _tell(name, done, "uploaded")
            total.add(done)
    return _close(total, "uploaded", time.perf_counter() - began)


@app.command()
def pull(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All exposures that the database knows archived.")] = False,
    config: ConfigOption = None, set_: SetOption = None,
) -> int:
    """Bring files back that are not here, each compared with its sha256. Exit code 4 if one could not be.

    Single files come back by themselves when something opens them. Where the database knows nothing of an exposure
    (a new one), a folder or an object store is searched for it; then: seechange-mpi db commit --pending
    """
    from seechange_mpi.db.archived import archived_files
    from seechange_mpi.db.archiving import Transfer
    from seechange_mpi.io.archive_retriever import BUNDLES
    from seechange_mpi.model.errors import ConfigError

    if not names and not everything:
        raise ConfigError("no exposure is named; name some, or --all")
    total, began = Transfer(), time.perf_counter()
    with archivist(config, set_) as keeper:
        if everything:
            with keeper.opened() as conn:
                known = {f.exposure for f in archived_files(conn, keeper.archive.name).values()}
            names = sorted(known or {k.split("/")[1] for k in keeper.archive.keys(f"{BUNDLES}/")})
        for name in names or ():
            done = keeper.pull(name)
            _tell(name, done, "brought back")
            total.add(done)
    return _close(total, "brought back", time.perf_counter() - began)


@app.command()
def status(names: Names = None, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Say what is here, what is in the archive, and what is only in one of them."""
    from seechange_mpi.db.archived import archived_files
    from seechange_mpi.mpi.summary import format_table

    with archivist(config, set_) as keeper:
        with keeper.opened() as conn:
            files = archived_files(conn, keeper.archive.name, names or None)
        rows = []
        for name in sorted({f.exposure for f in files.values()} | set(names or keeper.exposures_here())):
            of = [f for f in files.values() if f.exposure == name]
            here = {k for p in (keeper.config.bundles / name).rglob("*") if p.is_file() and not p.name.startswith(".")
                    and p.suffix in (".h5", ".sha256") and (k := keeper.layout.key_of(p)) is not None}
            gone = [f for f in of if not keeper.layout.path_of(f.key).exists()]
            rows.append([name, str(len(here)), str(len(of)), megabytes(sum(f.size for f in of)),
                         str(sum(f.verified for f in of)), str(len(here - files.keys())), str(len(gone))])
        typer.echo(f"archive {keeper.archive.name}")
    if not rows:
        typer.echo("nothing is here and nothing is archived")
        return
    typer.echo(format_table(["exposure", "here", "archived", "size", "verified", "only here", "only archived"], rows))


@app.command()
def verify(names: Names = None, config: ConfigOption = None, set_: SetOption = None) -> int:
    """Read every archived copy and compare its sha256. Exit code 3 if one is missing or damaged.

    A damaged copy of a file that is whole here is removed from the archive; 'archive push' sends it again.
    """
    from seechange_mpi.db.archived import archived_files
    from seechange_mpi.model.errors import ExitCode

    began = time.perf_counter()
    with archivist(config, set_) as keeper:
        with keeper.opened() as conn:
            files = archived_files(conn, keeper.archive.name, names or None)
        done = keeper.verify(files.values())
    for problem in done.problems:
        typer.echo(f"  {problem}")
    rate = done.size / 1e6 / max(time.perf_counter() - began, 1e-3)
    typer.echo(f"{done.files} of {len(files)} copies are whole ({megabytes(done.size)}, {rate:.0f} MB/s)")
    return int(ExitCode.SECTIONS_FAILED if done.problems else ExitCode.OK)
