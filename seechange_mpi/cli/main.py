"""Entry point ``seechange-mpi``: finds the verb, imports only that, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click
import typer
import typer.main

GROUPS: dict[str, str] = {
    "camera": "Cameras: list, show, and check a YAML of your own.",
    "config": "Configuration: show every value and where it came from.",
    "queue": "Exposures waiting: add, list, retry, hold, release, why.",
    "refs": "References: register a processed exposure, list them.",
    "bundle": "Bundles (one HDF5 file per exposure): info, validate, export, pack.",
    "db": "Science database: init, start, stop, status, commit.",
}
COMMANDS: dict[str, str] = {
    "demo": "Simulate a small survey, process it, and compare with the truth.",
    "run": "Process exposures: from raw pixels to objects in the database.",
    "report": "Write an HTML report of bundles: tables, focal plane, cutouts.",
    "simulate": "Make raw exposures of an invented sky, with truth tables.",
}
ORDER = ("demo", "run", "report", "simulate", "refs", "queue", "bundle", "db", "camera", "config")

HELP = """Difference imaging for sky surveys: raw exposures in, transient objects out.

\b
Begin with        seechange-mpi demo
your own images   seechange-mpi run -n 4 --camera CAMERA EXPOSURE…
learn a verb      seechange-mpi VERB --help

Exit codes: 0 all done, 3 some sections failed, 4 an exposure failed, 5 stopped with work
given back, 2 usage or configuration, 1 a bug or a lost rank."""


class LazyGroup(click.Group):
    """A click group whose verbs are imported only when they are called; the help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ORDER)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ORDER:
            return None
        text = GROUPS.get(cmd_name) or COMMANDS[cmd_name]
        return click.Command(cmd_name, help=text, short_help=text)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name in ORDER:
            return name, _load(name), args[1:]
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    module = importlib.import_module(f"seechange_mpi.cli.{name}")
    if name in GROUPS:
        return typer.main.get_command(module.app)
    single = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    single.command(help=module.command.__doc__)(module.command)
    return typer.main.get_command(single)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from seechange_mpi import __version__

        click.echo(f"seechange-mpi {__version__}")
        ctx.exit()


def build() -> click.Group:
    """Return the command line as a click group."""
    option = click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version,
                          help="Print the version and leave.")
    return LazyGroup("seechange-mpi", help=HELP, params=[option], no_args_is_help=True,
                     context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    from seechange_mpi.model.errors import ConfigError, Drain, ExitCode, SeeChangeError

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        code = build().main(args=argv, prog_name="seechange-mpi", standalone_mode=False)
    except click.ClickException as err:
        err.show()
        sys.exit(int(ExitCode.USAGE))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    except ConfigError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(int(ExitCode.USAGE))
    except SeeChangeError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(int(ExitCode.EXPOSURE_FAILED))
    except Drain as err:
        click.echo(f"stopped: {err}", err=True)
        sys.exit(int(ExitCode.DRAINED))
    except BrokenPipeError:
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else int(ExitCode.OK))


if __name__ == "__main__":
    main()
