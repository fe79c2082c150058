"""``seechange-mpi status``: how a run stands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, chosen_run, load_config


def command(
    run: Annotated[Path | None, typer.Argument(help="Folder or name of a run; default: the latest.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second until the run ends.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Say how a run stands: exposures, and the step each rank is in. Exit code 1: the run is gone without an end."""
    from seechange_mpi.mpi.status import rank_activity, read_status
    from seechange_mpi.mpi.status_text import status_text

    folder = chosen_run(run, load_config(config, set_))
    try:
        while True:
            status = read_status(folder)
            if watch:
                typer.echo("\x1b[2J\x1b[H", nl=False)
            typer.echo(status_text(status, rank_activity(folder)))
            if not watch or status.state in ("ended", "lost"):
                return int(status.state == "lost")
            time.sleep(1.0)
    except KeyboardInterrupt:
        return 130
