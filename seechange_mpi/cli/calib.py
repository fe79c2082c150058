"""``seechange-mpi calib``: make, register, list and retire calibration frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.db.calibrators import CalibratorRow

app = typer.Typer(help="Calibration frames: make of raw exposures, register, list, show, retire.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)
CameraOption = Annotated[str | None, typer.Option("--camera", help="Camera name or YAML file.")]
From = Annotated[str | None, typer.Option("--valid-from", metavar="DATE",
                                          help="2026-11-20, 2026-11-20T12:00 or an mjd.")]
To = Annotated[str | None, typer.Option("--valid-to", metavar="DATE", help="End of validity, exclusive.")]
Names = Annotated[list[str], typer.Argument(help="Ids (first 6 letters or more), files, as in 'calib list'.")]


@app.command()
def make(
    kind: Annotated[str, typer.Argument(help="bias, dark, flat, fringe or badpixels.")],
    exposures: Annotated[list[str] | None, typer.Argument(
        help="Raw exposures: files, patterns, folders; none = calibrators.raw, with --night.")] = None,
    night: Annotated[list[str] | None, typer.Option("--night", metavar="DATE",
                                                    help="Only exposures of this night; may be repeated.")] = None,
    camera: CameraOption = None,
    type_: Annotated[str, typer.Option("--type", help="Light of a flat: dome, twilight or sky.")] = "dome",
    filters: Annotated[str | None, typer.Option("--filter", help="Only these filters, e.g. g,r.")] = None,
    sections: Annotated[str | None, typer.Option("--sections", help="Only these, e.g. S1,S3.")] = None,
    chosen: Annotated[str | None, typer.Option(
        "--as", help="nightly or general; default: nightly with one --night, else general.")] = None,
    valid_from: From = None,
    valid_to: To = None,
    any_type: Annotated[bool, typer.Option("--any-type", help="Take what headers call something else, too.")] = False,
    processes: Annotated[int, typer.Option("-n", "--processes", min=1, help="Start this many MPI processes.")] = 1,
    quick_look: Annotated[bool, typer.Option("--quick-look/--no-quick-look",
                                             help="A picture beside each frame.")] = True,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Make frames of every section, register them, and say how good they are.

    \b
    seechange-mpi calib make bias --camera LS4 --night 2026-11-20 /data/raw
    seechange-mpi calib make dark --camera LS4 night1/*.fits night2/*.fits
    seechange-mpi calib make flat --type twilight --filter g,r --night 2026-11-20 /data/raw
    seechange-mpi calib make fringe --filter z /data/raw/2026-11-*

    The header's OBSTYPE (IMAGETYP …) tells which exposures are meant. An input that is unlike the others is left out
    and named. A section that fails does not stop the others; the exit code is then 3.
    """
    from seechange_mpi.cli.calib_make import start
    from seechange_mpi.mpi.calibration_plan import MakeOptions

    options = MakeOptions(kind, tuple(exposures or ()), tuple(night or ()), camera, type_, _words(filters),
                          _words(sections), chosen, valid_from, valid_to, any_type)
    return start(options, processes, load_config(config, set_), quick_look=quick_look)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(w.strip() for w in text.split(",") if w.strip()) if text else ()


@app.command()
def add(
    frame: Annotated[str, typer.Argument(help="FITS file, or a pattern such as calib/flat_{section}_{filter}.fits.")],
    kind: Annotated[str | None, typer.Option("--kind", help="Default: what the header says.")] = None,
    camera: CameraOption = None,
    section: Annotated[str | None, typer.Option("--section", help="Default: the header's; all, for a pattern.")] = None,
    filter_: Annotated[str | None, typer.Option("--filter", help="Of flats, fringes and illumination.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="dome, twilight, sky or externally_supplied.")] = None,
    chosen: Annotated[str | None, typer.Option("--as", help="nightly, general or externally_supplied.")] = None,
    valid_from: From = None,
    valid_to: To = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Register existing frames with the dates for which they hold; the files stay where they are.

    Example: seechange-mpi calib add 'calib/flat_{section}_g.fits' --kind flat --filter g --camera DECam
    """
    from seechange_mpi.calibration.existing import describe_existing
    from seechange_mpi.calibration.select import mjd_of_text
    from seechange_mpi.db.calibrators import add_calibrators
    from seechange_mpi.db.engine import session
    from seechange_mpi.instruments.camera import load_camera

    resolved = load_config(config, set_)
    frames = describe_existing(
        frame, load_camera(camera or resolved.settings.camera.name), kind=kind, section=section, band=filter_,
        flat_type=type_, calibrator_set=chosen, start_mjd=mjd_of_text(valid_from), end_mjd=mjd_of_text(valid_to))
    with session(resolved) as conn:
        changed = add_calibrators(conn, frames)
    for f in frames:
        typer.echo(f"{f.kind} {f.section_id} {f.filter}: {f.path}".replace(" :", ":"))
    typer.echo(f"{changed} of {len(frames)} frames are new or have new dates")


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind.")] = None,
    camera: CameraOption = None,
    section: Annotated[str | None, typer.Option("--section", help="Only this section.")] = None,
    filter_: Annotated[str | None, typer.Option("--filter", help="Only this filter.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="DATE", help="Only those valid then.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """List registered frames."""
    from seechange_mpi.calibration.select import mjd_of_text
    from seechange_mpi.db.calibrators import list_calibrators
    from seechange_mpi.db.engine import session
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.mpi.summary import format_table

    with session(load_config(config, set_)) as conn:
        rows = list_calibrators(conn, kind=kind, instrument=load_camera(camera).name if camera else None,
                                section=section, band=filter_, at_mjd=mjd_of_text(at))
    if not rows:
        typer.echo("no such calibration frame is registered: seechange-mpi calib make, calib add")
        return
    typer.echo(format_table(
        ["id", "kind", "type", "filter", "section", "set", "valid from", "valid to", "inputs", "noise"],
        [[r.id[:8], r.kind, r.flat_type or "-", r.filter or "-", r.section_id, r.calibrator_set,
          _date(r.validity_start), _date(r.validity_end), *_figures(r)] for r in rows]))


def _date(time: Any) -> str:
    from datetime import UTC

    return "-" if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M}"


def _figures(row: CalibratorRow) -> list[str]:
    quality = row.info.get("quality", {})
    return [f"{quality['n_inputs']:.0f}" if "n_inputs" in quality else "-",
            f"{quality['noise']:.3g}" if "noise" in quality else "-"]


@app.command()
def show(
    names: Names,
    picture: Annotated[Path | None, typer.Option("--quick-look", metavar="PNG", help="Draw the first one.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Show frames: dates, file, inputs, what was left out and why, figures."""
    from seechange_mpi.db.calibrators import get_calibrators
    from seechange_mpi.db.engine import session

    with session(load_config(config, set_)) as conn:
        rows = [r for name in names for r in get_calibrators(conn, name)]
    for r in rows:
        light = f" ({r.flat_type})" if r.flat_type else ""
        band = f", filter {r.filter}" if r.filter else ""
        typer.echo(f"{r.id}\n  {r.kind}{light} of {r.instrument} {r.section_id}{band}, {r.calibrator_set}")
        typer.echo(f"  valid from {_date(r.validity_start)} to {_date(r.validity_end)}, provenance {r.provenance_id}")
        there = "" if Path(r.path).is_file() else "  (not there)"
        typer.echo(f"  {r.path}{there}")
        for name, value in r.info.get("quality", {}).items():
            typer.echo(f"    {name:<24}{value:.6g}")
        if r.info.get("inputs"):
            typer.echo("  inputs: " + ", ".join(r.info["inputs"]))
        for rejected in r.info.get("rejected", []):
            typer.echo(f"  left out: {rejected['identifier']}: {rejected['reason']}")
    if picture is not None:
        from seechange_mpi.report.calibration import quick_look

        typer.echo(f"  picture: {quick_look(rows[0].path, picture)}")


@app.command()
def retire(
    names: Names,
    at: Annotated[str | None, typer.Option("--at", metavar="DATE", help="End of validity; default: now.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """End the validity of frames; exposures from that date on get others. Nothing is deleted.

    Example: seechange-mpi calib retire 3fa81c02 --at 2026-12-01
    """
    from datetime import UTC, datetime

    from seechange_mpi.calibration.select import mjd_of_text
    from seechange_mpi.db.calibrators import get_calibrators, mjd_of, retire
    from seechange_mpi.db.engine import session

    end = mjd_of_text(at) if at else mjd_of(datetime.now(UTC))
    assert end is not None
    with session(load_config(config, set_)) as conn:
        rows = [r for name in names for r in get_calibrators(conn, name)]
        changed = retire(conn, [r.id for r in rows], end)
    typer.echo(f"{changed} frames retired")
