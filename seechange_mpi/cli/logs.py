"""``seechange-mpi logs``: what the ranks of a run wrote."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, chosen_run, load_config


def command(
    run: Annotated[Path | None, typer.Argument(help="Folder or name of a run; default: the latest.")] = None,
    exposure: Annotated[str | None, typer.Option("--exposure", help="Only this exposure.")] = None,
    section: Annotated[str | None, typer.Option("--section", help="Only this section.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="Only this rank.")] = None,
    step: Annotated[str | None, typer.Option("--step", help="Only this step.")] = None,
    level: Annotated[str, typer.Option("--level", help="info, warning or error: this and worse.")] = "info",
    json: Annotated[bool, typer.Option("--json", help="Lines as they were written.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    trace: Annotated[Path | None, typer.Option(
        "--trace", help="Write a Chrome trace of the whole run to this file instead (ui.perfetto.dev).")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Show the logs of all ranks of a run, merged by time (UTC)."""
    from seechange_mpi.mpi import logview
    from seechange_mpi.mpi.runlog import LEVELS, matches, read_log
    from seechange_mpi.mpi.status import read_status

    folder = chosen_run(run, load_config(config, set_))
    if level not in LEVELS:
        raise typer.BadParameter(f"--level is one of {', '.join(LEVELS)}, not '{level}'")
    if trace is not None:
        from seechange_mpi.mpi.trace import write_trace

        typer.echo(str(write_trace(folder, trace)))
        return 0
    over = lambda: read_status(folder).state in ("ended", "lost")  # noqa: E731
    records = logview.follow(folder, over) if follow else read_log(folder)
    try:
        for record in records:
            if matches(record, exposure=exposure, section=section, rank=rank, step=step, level=level):
                typer.echo(json_.dumps(record, ensure_ascii=False) if json else logview.format_record(record))
    except KeyboardInterrupt:
        return 130
    return 0
