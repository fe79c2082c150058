"""Entry point ``seechange-mpi``: finds the verb, imports only that, and turns errors into exit codes.

The list of verbs is printed from this file alone, so that ``--help`` needs no other import.
"""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches
from typing import Any

COMMANDS: dict[str, str] = {
    "demo": "Simulate a small survey, process it, and compare with the truth.",
    "run": "Process exposures: from raw pixels to objects in the database.",
    "status": "How a run stands: exposures, and the step each rank is in.",
    "logs": "What the ranks of a run wrote, merged by time; or a Chrome trace of it.",
    "astrometry": "Solve source lists without images against a star catalogue.",
    "report": "Write an HTML report of bundles: tables, focal plane, cutouts.",
    "submit": "Hand a batch job to Slurm that processes exposures or the queue.",
    "clean": "Make room: remove shards and raw copies that the archive has for certain.",
    "replay": "Rerun a section from what its bundle says of it, and compare.",
    "simulate": "Make raw exposures of an invented sky, with truth tables.",
}
GROUPS: dict[str, str] = {
    "refs": "References: register a processed exposure, list, remove.",
    "calib": "Calibration frames: make, add, list, show, retire.",
    "badness": "Mark exposures or products as doubtful, or take marks away; show them.",
    "products": "What was made of exposures: delete it, with all that was made from it.",
    "queue": "Exposures waiting: add, list, retry, hold, release, why.",
    "catalog": "Star catalogues: build a folder from Gaia's files, show what is there.",
    "bundle": "Bundles (one HDF5 file per exposure): info, validate, export, pack.",
    "archive": "Archive: push, pull, status, verify; missing files come back by themselves.",
    "measuring": "Measurements: which cuts they failed, how many were kept.",
    "prov": "Provenances: show, compare, tag.",
    "object": "Objects: list, show, position, light curve, forced photometry.",
    "db": "Science database: init, start, stop, status, commit.",
    "mps": "Several ranks on one GPU: start, stop, status of CUDA MPS.",
    "camera": "Cameras: list, show, and check a YAML of your own.",
    "config": "Configuration: every value, and where it came from.",
}
VERBS = {**COMMANDS, **GROUPS}

HELP = """Usage: seechange-mpi VERB [OPTIONS] [ARGS]...

  Difference imaging for sky surveys: raw exposures in, transient objects out.

Begin with:
  seechange-mpi demo                                   a small survey from raw pixels to objects
  seechange-mpi run -n 4 --camera CAMERA EXPOSURE...   your own exposures, on four processes
  seechange-mpi VERB --help                            what a verb does, with examples

Verbs:
{verbs}

Options:
  --version   Print the version.
  -h, --help  Show this message.

Exit codes:
  0 every section succeeded      3 some sections failed     4 an exposure failed
  5 stopped, work given back     2 usage or configuration   1 a bug or a lost rank
"""


def _help() -> str:
    return HELP.format(verbs="\n".join(f"  {name:<12}{text}" for name, text in VERBS.items()))


def _load(name: str) -> Any:
    import typer
    import typer.main

    module = importlib.import_module(f"seechange_mpi.cli.{name}")
    if name in GROUPS:
        app = module.app
    else:
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(help=module.command.__doc__,
                    context_settings={"help_option_names": ["-h", "--help"]})(module.command)
    return typer.main.get_command(app)


def explain(err: BaseException) -> int:
    """Write the one line that an expected error deserves; return its exit code."""
    from seechange_mpi.model.errors import ConfigError, Drain, ExitCode

    if isinstance(err, Drain):
        sys.stderr.write(f"stopped: {err}\n")
        return int(ExitCode.DRAINED)
    sys.stderr.write(f"error: {err}\n")
    return int(ExitCode.USAGE if isinstance(err, ConfigError) else ExitCode.EXPOSURE_FAILED)


def _run_verb(name: str, args: list[str]) -> int:
    import typer

    from seechange_mpi.model.errors import Drain, ExitCode, SeeChangeError

    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = _load(name).main(args=args, prog_name=f"seechange-mpi {name}", standalone_mode=False)
    except typer.Exit as err:
        return err.exit_code
    except typer.Abort:
        return 130
    except (SeeChangeError, Drain) as err:
        return explain(err)
    except BrokenPipeError:
        return 141
    except usage_error as err:
        err.show()
        return int(ExitCode.USAGE)
    return code if isinstance(code, int) else int(ExitCode.OK)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        from seechange_mpi import __version__

        sys.stdout.write(f"seechange-mpi {__version__}\n")
        sys.exit(0)
    if args[0] not in VERBS:
        close = get_close_matches(args[0], VERBS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        sys.stderr.write(f"error: there is no verb '{args[0]}'.{hint} See seechange-mpi --help\n")
        sys.exit(2)
    if args[0] == "run" and "--dry-run" not in args and _is_worker():
        from seechange_mpi.mpi.worker import serve_rank

        sys.exit(serve_rank())  # everything it must know comes from rank 0
    sys.exit(_run_verb(args[0], args[1:]))


def _is_worker() -> bool:
    """Whether a launcher has started this process as another rank than the first."""
    if not any(name.startswith(("OMPI_", "PMI", "SLURM_STEP")) for name in os.environ):
        return False
    from seechange_mpi.mpi.comm import announced_rank, announced_size

    size = announced_size()
    return size is not None and size > 1 and bool(announced_rank())


if __name__ == "__main__":
    main()
