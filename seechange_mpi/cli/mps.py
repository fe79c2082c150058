"""``seechange-mpi mps``: several ranks on one GPU at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The CUDA Multi-Process Service of this node: several ranks on one GPU at once.",
                  no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Folder = Annotated[Path | None, typer.Option("--folder", help="Its files; default: one per user and job in $TMPDIR.")]


@app.command()
def start(folder: Folder = None, timeout: Annotated[float, typer.Option(help="Seconds to wait for it.")] = 20.0
          ) -> None:
    """Start the service and wait until it answers; print the lines that the ranks' environment needs.

    In a batch script, once per node: eval "$(seechange-mpi mps start)"
    """
    import shlex

    from seechange_mpi.mpi.mps import default_base
    from seechange_mpi.mpi.mps import start as begin

    for name, value in begin(folder or default_base(), timeout).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def stop(folder: Folder = None, timeout: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 20.0
         ) -> None:
    """End the service, and wait until it is gone."""
    from seechange_mpi.mpi.mps import default_base
    from seechange_mpi.mpi.mps import stop as end

    typer.echo("stopped" if end(folder or default_base(), timeout) else "it was not running")


@app.command()
def status(folder: Folder = None) -> int:
    """Say whether the service answers (exit code 0) or not (4)."""
    from seechange_mpi.mpi.mps import default_base, is_running

    running = is_running(folder or default_base())
    typer.echo("running" if running else "not running")
    return 0 if running else 4
