"""What the verbs share: configuration options and how they are read."""

from __future__ import annotations

from pathlib import Path
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

    resolved = Config.get(config, sets or ()) if config or sets else Config.get()
    use_archive(resolved)
    return resolved


def use_archive(config: Config) -> None:
    """Have files that are missing in this process brought back from the archive, if one is configured."""
    from seechange_mpi.io.retrieval import set_retriever

    if config.settings.archive.kind == "none":
        set_retriever(None)
        return
    from seechange_mpi.io.archive_retriever import ArchiveRetriever

    set_retriever(ArchiveRetriever.of(config))


def chosen_run(run: Path | None, config: Config) -> Path:
    """Return the folder of a run: the one given, by path or name, or the latest.

    Raises
    ------
    ConfigError
        There is no such run.
    """
    from seechange_mpi.model.errors import ConfigError
    from seechange_mpi.mpi.runlog import latest_run, runs_folder

    if run is None:
        found = latest_run(config.root)
        if found is None:
            raise ConfigError(f"no run has left a log in {runs_folder(config.root)}; name the folder of one")
        return found
    for folder in (run, runs_folder(config.root) / run):
        if folder.is_dir():
            return folder
    raise ConfigError(f"there is no run {run}, neither as a folder nor in {runs_folder(config.root)}")
