"""``seechange-mpi report``: HTML page of bundles, and a picture of their best measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config


def command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files (<exposure>_<provenance>.h5).")],
    out: Annotated[Path | None, typer.Option(
        "--out", "-o", help="HTML file; default: beside the first bundle.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=0, help="Most cutout triplets per bundle.")] = 24,
    triplets: Annotated[Path | None, typer.Option(
        "--triplets", help="Also write a PNG with the best measurements of the first bundle.")] = None,
    config: ConfigOption = None, set_: SetOption = None,
) -> None:
    """Write an HTML report of bundles: section table, focal plane, cutout triplets, provenance.

    The page is one file without scripts or outside resources: mail it, or open it from disk.
    """
    from seechange_mpi.report import triplet_figure, write_report

    load_config(config, set_)
    path = write_report(bundles, out if out is not None else bundles[0].with_suffix(".html"), n)
    typer.echo(str(path))
    if triplets is not None:
        typer.echo(str(triplet_figure(bundles[0], triplets, min(max(n, 1), 6))))
