"""``seechange-mpi clean``: make room, by removing what the archive has."""

from __future__ import annotations

from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption


def command(
    exposures: Annotated[list[str] | None, typer.Argument(help="Identifiers of exposures; none = all.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; otherwise it is only shown.")] = False,
    kinds: Annotated[str, typer.Option("--kinds", help="What may go: shards, raw (copies of raw exposures below "
                                                       "paths.root), or both.")] = "shards,raw",
    older_than: Annotated[str | None, typer.Option(
        "--older-than", metavar="TIME", help="Only files written so long ago, e.g. 30d.")] = None,
    references: Annotated[bool, typer.Option(
        "--references", help="Shards of references as well; the next run brings them back.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Remove shards and raw copies here, after proving that the archive has them.

    Bundles stay: everything but pixels is in them, and what a bundle links to comes back by itself when it is opened.
    A copy that was never verified is read back and compared first. Raw exposures that lie elsewhere than below
    paths.root, and files of exposures that the queue has not done, are never touched. Exit code 3 if a copy was not
    whole.

    \b
    seechange-mpi clean                          say what could go, and how many bytes
    seechange-mpi clean --older-than 30d --yes   do it
    """
    from seechange_mpi.cli.archive import archivist, megabytes
    from seechange_mpi.db.cleaning import KINDS, plan_cleaning, remove_files
    from seechange_mpi.model.errors import ConfigError, ExitCode
    from seechange_mpi.mpi.deadline import parse_duration
    from seechange_mpi.mpi.summary import format_table

    chosen = [k.strip() for k in kinds.split(",") if k.strip()]
    if not chosen or not set(chosen) <= set(KINDS):
        raise ConfigError(f"--kinds {kinds}: expected some of {', '.join(KINDS)}")
    days = parse_duration(older_than) / 86400.0 if older_than else 0.0
    with archivist(config, set_) as keeper:
        plan = plan_cleaning(keeper, exposures or None, chosen, older_days=days, references=references)
        rows = []
        for name in sorted({c.file.exposure for c in plan.files}):
            of = [c for c in plan.files if c.file.exposure == name]
            rows.append([name, *(str(sum(c.kind == k for c in of)) for k in KINDS), megabytes(sum(c.size for c in of)),
                         str(sum(c.file.verified for c in of))])
        if rows:
            typer.echo(format_table(["exposure", *KINDS, "size", "verified"], rows))
        for reason, (n, size) in plan.kept.items():
            typer.echo(f"kept: {n} files, {megabytes(size)}: {reason}")
        total = sum(c.size for c in plan.files)
        if not yes or not plan.files:
            again = "; to do it: seechange-mpi clean --yes" if plan.files else ""
            typer.echo(f"{len(plan.files)} files, {megabytes(total)} can go{again}")
            return int(ExitCode.OK)
        removed, problems = remove_files(keeper, plan)
    for problem in problems:
        typer.echo(f"  {problem}")
    typer.echo(f"removed {len(removed)} files, {megabytes(sum(c.size for c in removed))}")
    return int(ExitCode.SECTIONS_FAILED if problems else ExitCode.OK)
