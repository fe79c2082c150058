"""``seechange-mpi queue``: exposures waiting to be processed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.db.queue import LocalQueue

app = typer.Typer(help="Exposures waiting: 'run' without exposures works on them.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)
Names = Annotated[list[str], typer.Argument(help="Identifiers, as in 'queue list'.")]


@contextmanager
def _queue(config: str | None, sets: list[str] | None) -> Iterator[LocalQueue]:
    from seechange_mpi.db.engine import server
    from seechange_mpi.db.queue import LocalQueue

    resolved = load_config(config, sets)
    with server(resolved) as opened:
        queue = LocalQueue(opened, max_attempts=resolved.settings.queue.max_attempts)
        try:
            yield queue
        finally:
            queue.close()


@app.command()
def add(
    exposures: Annotated[list[Path], typer.Argument(help="Raw exposures.")],
    camera: Annotated[str | None, typer.Option("--camera", help="Camera name or YAML file.")] = None,
    priority: Annotated[int, typer.Option("--priority", help="Higher comes first.")] = 0,
    hold: Annotated[bool, typer.Option("--hold", help="Wait for 'queue release'.")] = False,
    through: Annotated[str | None, typer.Option("--through", help="Last step wanted.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Add exposures; those already there stay as they are."""
    from seechange_mpi.model.errors import BadInput
    from seechange_mpi.model.task import STEPS

    if through is not None and through not in STEPS:
        raise typer.BadParameter(f"no step '{through}'; there are: {', '.join(STEPS)}")
    for path in exposures:
        if not path.is_file():
            raise BadInput(path, "exposure", "a file", "no such file")
    name = camera or load_config(config, set_).settings.camera.name
    with _queue(config, set_) as queue:
        for path in exposures:
            typer.echo(queue.add(path, name, priority=priority, hold=hold, through_step=through))


@app.command("list")
def list_(
    state: Annotated[list[str] | None, typer.Option("--state", help="Only these states.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """List the queue in the order of claims."""
    from seechange_mpi.mpi.summary import format_table

    with _queue(config, set_) as queue:
        rows = queue.list(state)
    if not rows:
        typer.echo("the queue is empty: seechange-mpi queue add EXPOSURE…")
        return
    typer.echo(format_table(["exposure", "state", "camera", "priority", "attempts", "claimed by"],
                            [[r.identifier, r.state, r.instrument, str(r.priority), str(r.attempts),
                              (r.owner or "-") if r.state == "claimed" else "-"] for r in rows]))


@app.command()
def retry(names: Names, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Make failed, partial or done exposures ready again."""
    with _queue(config, set_) as queue:
        typer.echo(f"{queue.set_state(names, 'ready', ('failed', 'partial', 'done'))} ready again")


@app.command()
def hold(names: Names, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Keep ready exposures from being claimed."""
    with _queue(config, set_) as queue:
        typer.echo(f"{queue.set_state(names, 'held', ('ready',))} held")


@app.command()
def release(names: Names, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Let held exposures be claimed."""
    with _queue(config, set_) as queue:
        typer.echo(f"{queue.set_state(names, 'ready', ('held',))} released")


@app.command()
def why(name: Annotated[str, typer.Argument(help="Identifier.")], config: ConfigOption = None,
        set_: SetOption = None) -> None:
    """Say how an exposure stands, and why."""
    from seechange_mpi.model.errors import ConfigError

    with _queue(config, set_) as queue:
        found = [r for r in queue.list() if r.identifier == name]
    if not found:
        raise ConfigError(f"not in the queue: {name}; see seechange-mpi queue list")
    for r in found:
        typer.echo(f"{r.identifier} ({r.instrument}): {r.state}, {r.attempts} attempts, {r.filepath}")
        if r.state == "claimed":
            typer.echo(f"  claimed by {r.owner}, the lease ends {r.lease_expires:%Y-%m-%d %H:%M:%S %Z}")
        if r.counts:
            typer.echo("  " + ", ".join(f"{k} {v}" for k, v in r.counts.items()))
        if r.last_error:
            typer.echo(f"  {r.last_error}")
        if r.state in ("failed", "partial"):
            typer.echo(f"  again: seechange-mpi queue retry {r.identifier}")
