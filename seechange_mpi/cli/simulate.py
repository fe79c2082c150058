"""``seechange-mpi simulate``: raw exposures of an invented sky."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    outdir: Annotated[Path, typer.Argument(help="Folder to write to.")],
    camera: Annotated[str, typer.Option("--camera", help="Camera name or YAML file.")] = "simulated",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Number of exposures of the field.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same files.")] = 1,
    set_: Annotated[list[str] | None, typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Any other parameter, e.g. --set stars_per_sq_deg=20000.")] = None,
    calibration_night: Annotated[bool, typer.Option(
        "--calibration-night", help="Also a night of biases, darks, flats and dithered sky, in raw_calib/.")] = False,
    show: Annotated[bool, typer.Option("--show-parameters", help="Print all parameters and stop.")] = False,
) -> None:
    """Make raw multi-section exposures with calibration frames, a catalogue and truth tables.

    The default is four sections of 1024 × 1024 pixels in three epochs, in seconds. Full size:
    --camera LS4 (32 sections of 2048 × 4096 pixels, minutes per exposure).
    """
    from seechange_mpi.config.resolve import parse_assignment
    from seechange_mpi.simulate.parameters import SimulationParameters
    from seechange_mpi.simulate.survey import simulate_survey

    pars = SimulationParameters(camera=camera, epochs=epochs, seed=seed)
    for item in set_ or ():
        pars.update(parse_assignment(item))
    if show:
        pars.show_pars()
        return
    paths = simulate_survey(outdir, pars, typer.echo)
    typer.echo(f"\nwritten to {outdir}: raw/, calib/, catalog.fits, truth/, seechange.yaml")
    if calibration_night:
        from seechange_mpi.simulate.calib_night import simulate_night

        simulate_night(outdir, pars, progress=typer.echo)
        typer.echo(f"written to {outdir}/raw_calib:  seechange-mpi calib make bias --config {paths.config} "
                   f"{outdir}/raw_calib")
    typer.echo(f"next:  seechange-mpi run --config {paths.config} {outdir}/raw/*.fits")
