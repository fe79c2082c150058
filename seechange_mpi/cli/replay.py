"""``seechange-mpi replay``: rerun a section from what its bundle says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config


def command(
    bundle: Annotated[Path, typer.Argument(help="Bundle file (<exposure>_<provenance>.h5).")],
    section: Annotated[list[str] | None, typer.Option("--section", help="Only this; may be repeated. Default: all.")
                       ] = None,
    step: Annotated[list[str] | None, typer.Option(
        "--step", help="Only this step, on what is stored of those before it; may be repeated.")] = None,
    raw: Annotated[Path | None, typer.Option("--raw", help="The raw exposure, if it is not where it was.")] = None,
    calibration: Annotated[Path | None, typer.Option(
        "--calibration", help="Folder of calibration frames, if they are not where they were.")] = None,
    catalog: Annotated[Path | None, typer.Option("--catalog", help="Star catalogue, likewise.")] = None,
    camera: Annotated[str | None, typer.Option("--camera", help="Camera name or YAML file, likewise.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Rerun sections from the parameters, inputs and provenances stored in a bundle, and compare.

    Raw file, calibration frames, catalogue, camera and reference are checked against the digests in the bundle first;
    what is missing or is not what it was is refused. Nothing is written. A configuration is only needed where a
    database must be asked for registered calibration frames or the reference.

    Exit code 0 if everything is the same (to the last bit, or within the tolerances that are printed), 3 if something
    differs, 2 or 4 if it cannot be rerun.

    Examples: seechange-mpi replay bundles/exp1/exp1_K6ILA3.h5 --section S1
              seechange-mpi replay bundles/exp1/exp1_K6ILA3.h5 --section S1 --step detection --step measuring
    """
    import os

    from seechange_mpi.config.resolve import ENVIRONMENT_VARIABLE
    from seechange_mpi.io.bundle import read_bundle
    from seechange_mpi.model.errors import ExitCode
    from seechange_mpi.replay.inputs import Places
    from seechange_mpi.replay.rerun import replay_section

    given = load_config(config, set_) if config or set_ or os.environ.get(ENVIRONMENT_VARIABLE) else None
    places = Places(raw, camera, calibration, catalog, given)
    differs = False
    for name in section or read_bundle(bundle).section_ids:
        done = replay_section(bundle, name, step or (), places)
        word = "identical" if not done.differences else "the same" if done.same else "DIFFERENT"
        typer.echo(f"{name}: {word} ({', '.join(done.steps)})")
        for line in (*done.notes, *map(str, done.differences)):
            typer.echo(f"  {line}")
        differs |= not done.same
    return int(ExitCode.SECTIONS_FAILED if differs else ExitCode.OK)
