"""``seechange-mpi bundle``: look into bundles, prove them whole, turn them into FITS or one single file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.report.collect import SectionSummary

app = typer.Typer(help="Bundles (one HDF5 file per exposure): info, validate, export, pack.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)
BundleArgument = Annotated[Path, typer.Argument(help="Bundle file (<exposure>_<provenance>.h5).")]


@app.command()
def info(
    bundle: BundleArgument, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    config: ConfigOption = None, set_: SetOption = None,
) -> None:
    """Tell what a bundle holds: exposure, sections with their figures, provenances.

    With a configuration that names an archive, all these verbs bring files back that are not here.
    """
    load_config(config, set_)
    from seechange_mpi.io.bundle import read_bundle, read_section
    from seechange_mpi.report.collect import summarize_section

    b = read_bundle(bundle)
    sections = [summarize_section(read_section(bundle, s)) for s in b.section_ids]
    if as_json:
        typer.echo(json.dumps({
            "exposure": b.exposure.identifier, "instrument": b.exposure.instrument, "mjd": b.exposure.mjd,
            "filter": b.exposure.filter, "created": b.created, "code_version": b.code_version,
            "provenances": {r.process: r.id for r in b.provenances},
            "sections": {s.section_id: _figures(s) for s in sections}}, indent=1))
        return
    e = b.exposure
    band = e.filter or "(by section)"
    typer.echo(f"{e.identifier}: {e.instrument}, filter {band}, mjd {e.mjd:.5f}, {e.exp_time_s:g} s")
    typer.echo(f"written {b.created} by version {b.code_version}\n")
    rows = [["section", "status", 'FWHM "', "zero pt", "lim mag", "astro mas", "sources", "det", "meas", "good",
             "badness"]]
    rows += [[s.section_id, s.status, _show(s.fwhm_arcsec, 2), _show(s.zp, 3), _show(s.lim_mag, 2),
              _show(s.astro_rms_mas, 0), str(s.n_sources), str(s.n_detections), str(s.n_measurements), str(s.n_good),
              s.badness or "-"]
             for s in sections]
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    for r in rows:
        cells = [c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths, strict=True))]
        typer.echo("  " + "  ".join(cells))
    for s in sections:
        if s.message:
            typer.echo(f"  {s.section_id}: {s.message}")
    typer.echo("\nprovenances")
    for p in b.provenances:
        typer.echo(f"  {p.process:<18}{p.id}")


def _show(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _figures(s: SectionSummary) -> dict[str, object]:
    keys = ("status", "message", "filter", "fwhm_arcsec", "zp", "dzp", "zp_method", "lim_mag", "astro_rms_mas",
            "n_sources", "n_detections", "n_measurements", "n_good", "badness", "bitflag")
    values = {k: getattr(s, k) for k in keys}
    return {k: (v if not isinstance(v, float) or math.isfinite(v) else None) for k, v in values.items()}


@app.command()
def validate(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files.")],
    config: ConfigOption = None, set_: SetOption = None,
) -> int:
    """Prove bundles whole: checksums, links, provenance ids, content hashes, the record of sha256 beside it.

    Exit code 3 if one is not.
    """
    load_config(config, set_)
    from seechange_mpi.io.bundle import validate_bundle
    from seechange_mpi.model.errors import BadInput, ExitCode

    broken = 0
    for bundle in bundles:
        try:
            problems = validate_bundle(bundle)
        except BadInput as err:
            problems = [str(err)]
        broken += bool(problems)
        typer.echo(f"{bundle}: {'whole' if not problems else f'{len(problems)} problem(s)'}")
        for problem in problems:
            typer.echo(f"  {problem}")
    return int(ExitCode.SECTIONS_FAILED if broken else ExitCode.OK)


@app.command()
def export(
    bundle: BundleArgument,
    outdir: Annotated[Path, typer.Argument(help="Folder for the FITS files.")],
    section: Annotated[list[str] | None, typer.Option("--section", help="Only this section; may be repeated.")] = None,
    config: ConfigOption = None, set_: SetOption = None,
) -> None:
    """Write images, differences and tables as FITS files that any astronomer's tools open."""
    load_config(config, set_)
    from seechange_mpi.io.export import export_bundle

    for path in export_bundle(bundle, outdir, section):
        typer.echo(str(path))


@app.command()
def pack(
    bundle: BundleArgument, out: Annotated[Path, typer.Argument(help="The single file to write.")],
    config: ConfigOption = None, set_: SetOption = None,
) -> None:
    """Write one file that holds the bundle and all its pixels, for an archive."""
    load_config(config, set_)
    from seechange_mpi.io.bundle import pack_bundle

    typer.echo(str(pack_bundle(bundle, out)))
