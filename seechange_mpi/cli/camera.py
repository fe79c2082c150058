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
        n, every = len(c.section_ids), len(c.sections)
        number = f"{n} sections" if n == every else f"{n} of {every} sections"
        bands = f", filters {' '.join(c.filters)}" if c.filters else ""
        typer.echo(f"{name:<14}{number:>18}, {c.pixel_scale_arcsec:g}\"/pix{bands}, {kind}"
                   + (f"; {c.telescope}" if c.telescope else ""))


@app.command()
def show(camera: CameraArgument) -> None:
    """Print the file of a camera: copy it, change it, and name your copy with --camera."""
    from seechange_mpi.instruments import camera as module

    module.load_camera(camera)
    shipped = Path(module.__file__).with_name(f"{camera}.yaml")
    path = shipped if shipped.is_file() else Path(camera)
    typer.echo(path.read_text(encoding="utf-8"), nl=False)


@app.command()
def info(
    camera: CameraArgument,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the focal plane (PNG, SVG, PDF)."),
                    ] = None,
) -> None:
    """Tell what a camera is: sections, amplifiers, filters with their colour terms, defects; draw its focal plane."""
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.mpi.summary import format_table

    c = load_camera(camera)
    typer.echo(f"{c.name}: {c.telescope or 'telescope not told'}, {c.pixel_scale_arcsec:g}\"/pix, "
               f"{'reduced images' if c.reduced else 'raw exposures'}")
    typer.echo(f"filters {', '.join(c.filters) or 'any'}; objects within {c.association_radius_arcsec:g}\"; pointing "
               f"good to {c.pointing_error_arcsec:g}\"")
    for band, rule in c.photometry.items():
        terms = " ".join(f"{t:+g} {colour_power(rule.colour, k)}".rstrip() for k, t in enumerate(rule.terms))
        typer.echo(f"  {band} = {rule.band} {terms}, {rule.colour_range[0]:g} < {'-'.join(rule.colour)} < "
                   f"{rule.colour_range[1]:g}")
    rows = []
    for s in c.sections:
        size = f"{s.size[0]} x {s.size[1]}" if s.size else "as in the file"
        dates = ", ".join(f"{a or ''}..{b or ''}" for a, b in s.defective_dates)
        amps = ", ".join(f"{a.name or '-'}: gain {a.gain or c.gain or 'not told'}" for a in s.amplifiers)
        rows.append([s.id, str(s.hdu), size, s.filter or "-", f"{s.offset_arcsec[0]:.0f}", f"{s.offset_arcsec[1]:.0f}",
                     amps, "defective" if s.defective else f"defective {dates}" if dates else "-"])
    header = ["section", "HDU", "pixels", "filter", "east \"", "north \"", "amplifiers", "defects"]
    typer.echo(format_table(header, rows))
    if plot is not None:
        from seechange_mpi.report.focal_plane import draw_camera

        draw_camera(c, plot)
        typer.echo(str(plot))


def colour_power(colour: tuple[str, str], k: int) -> str:
    """Text of the k-th power of a colour; "" for k = 0."""
    return "" if k == 0 else f"({'-'.join(colour)})" + (f"^{k}" if k > 1 else "")


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
    for section_id in c.section_ids_at(info.mjd):
        raw = read_section(info, c, section_id)
        typer.echo(f"  {section_id}: {raw.shape[1]}×{raw.shape[0]} pixels, filter {raw.filter}"
                   f"{'' if raw.header_wcs else ', no position'}")
        for amp in raw.amplifiers:
            over = "none" if amp.overscan is None else f"{amp.overscan.shape[1]}×{amp.overscan.shape[0]}"
            typer.echo(f"    amplifier {amp.name or '-'}: at ({amp.x0}, {amp.y0}), overscan {over}, gain {amp.gain:g}, "
                       f"read noise {amp.read_noise_e:g}, saturation {amp.saturation_adu:g}")
