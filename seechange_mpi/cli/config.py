"""``seechange-mpi config``: show the configuration and where every value came from."""

from __future__ import annotations

from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

app = typer.Typer(help="Configuration: every value, and where it came from.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)


@app.command()
def show(
    section: Annotated[str | None, typer.Argument(help="Only this section, e.g. extraction.sources.")] = None,
    sources: Annotated[bool, typer.Option("--sources", help="Tell where each value came from.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Print the resolved configuration, secrets hidden. Unknown keys and wrong values are reported."""
    from seechange_mpi.config.resolve import redact
    from seechange_mpi.pipeline.top_level import Pipeline

    resolved = load_config(config, set_)
    Pipeline.from_settings(resolved.steps())
    rows = [(k, redact(v, k.rsplit(".", 1)[-1]), s) for k, v, s in resolved.items()
            if section is None or k == section or k.startswith(section + ".")]
    if not rows:
        raise typer.BadParameter(f"no section '{section}'")
    width = max(len(f"{k} = {v!r}") for k, v, _ in rows) if sources else 0
    for key, value, source in rows:
        line = f"{key} = {value!r}"
        typer.echo(f"{line:<{min(width, 70)}}  # {source}" if sources else line)


@app.command()
def template() -> None:
    """Print a configuration file with every key, its default and its meaning."""
    from seechange_mpi.pipeline.template import config_template

    typer.echo(config_template(), nl=False)
