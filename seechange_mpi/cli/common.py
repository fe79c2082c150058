"""What the verbs share: configuration options and how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seechange_mpi.config.resolve import Config

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="FILE", envvar="SEECHANGE_CONFIG", show_envvar=True,
                 help="Configuration file, merged over the defaults."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE",
                 help="Override one value, e.g. --set detection.threshold=6. May be repeated."),
]


def load_config(config: str | None = None, sets: list[str] | None = None) -> Config:
    """Read the configuration named on the command line and make it this process's."""
    from seechange_mpi.config.resolve import Config

    return Config.get(config, sets or ()) if config or sets else Config.get()
