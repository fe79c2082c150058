"""``seechange-mpi camera``: the cameras there are, and checks of a YAML file of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Cameras: list, show, and check a YAML of your own.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)
CameraArgument = Annotated[str, typer.Argument(help="Name of a shipped camera, or path of a YAML file.")]


@app.command("list")
def list_() -> None:
    """List the shipped cameras."""
    from seechange_mpi.instruments.camera import list_cameras, load_camera

    for name in list_cameras():
        c = load_camera(name)
        kind = "reduced images" if c.reduced else "raw exposures"
        typer.echo(f"{name:<16}{len(c.section_ids):>3} sections, {c.pixel_scale_arcsec:g}\"/pix, {kind}; {c.telescope}")


@app.command()
def show(camera: CameraArgument) -> None:
    """Print the file of a camera: copy it, change it, and name your copy with --camera."""
    from seechange_mpi.instruments import camera as module

    module.load_camera(camera)
    shipped = Path(module.__file__).with_name(f"{camera}.yaml")
    path = shipped if shipped.is_file() else Path(camera)
    typer.echo(path.read_text(encoding="utf-8"), nl=False)


@app.command()
def validate(
    camera: CameraArgument,
    exposure: Annotated[Path | None, typer.Argument(help="An exposure to read with it.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", metavar="KEY=VALUE",
                                                    help="Header value in place of the file's.")] = None,
) -> None:
    """Check a camera's definition and, with an exposure, that its header and every section can be read.

    Example: seechange-mpi camera validate my-camera.yaml night/first.fits
    """
    from seechange_mpi.config.resolve import parse_assignment
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.io.raw import read_exposure_info, read_section

    c = load_camera(camera)
    typer.echo(f"{c.name}: {len(c.section_ids)} sections, {c.pixel_scale_arcsec:g}\"/pix")
    if exposure is None:
        return
    overrides = {k: v for item in param or () for k, v in parse_assignment(item).items()}
    info = read_exposure_info(exposure, c, overrides)
    typer.echo(f"{info.identifier}: filter {info.filter or '(by section)'}, mjd {info.mjd:.5f}, {info.exp_time_s:g} s, "
               f"ra {info.ra_deg}, dec {info.dec_deg}, airmass {info.airmass}")
    for section_id in c.section_ids:
        raw = read_section(info, c, section_id)
        typer.echo(f"  {section_id}: {raw.shape[1]}×{raw.shape[0]} pixels, filter {raw.filter}"
                   f"{'' if raw.header_wcs else ', no position'}")
        for amp in raw.amplifiers:
            over = "none" if amp.overscan is None else f"{amp.overscan.shape[1]}×{amp.overscan.shape[0]}"
            typer.echo(f"    amplifier {amp.name or '-'}: at ({amp.x0}, {amp.y0}), overscan {over}, gain {amp.gain:g}, "
                       f"read noise {amp.read_noise_e:g}, saturation {amp.saturation_adu:g}")
