"""``seechange-mpi badness``: mark data as doubtful by hand, or take marks away."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.db.marks import Row

app = typer.Typer(help="Badness in the database: mark exposures or products as doubtful, with all that was made "
                       "of them.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Words = Annotated[str, typer.Argument(help="What it is, comma separated: ghost, \"bright sky\", \"bit 50\" …")]
Names = Annotated[list[str], typer.Argument(
    help="Identifiers of exposures, EXPOSURE/SECTION, or ids of rows (also of single measurements).")]
Product = Annotated[list[str] | None, typer.Option(
    "--product", "-p", help="exposure, image, background, sources, psf, wcs, zp, reference, sub, detections, cutouts, "
                            "measurements, scores; may be repeated. Default: the exposure; of a section its image.")]
ProvenanceOption = Annotated[str, typer.Option("--provenance", help="Only rows of this provenance (id or its "
                                                                    "beginning); default: of all.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
def add(words: Words, names: Names, product: Product = None, provenance: ProvenanceOption = "", yes: Yes = False,
        config: ConfigOption = None, set_: SetOption = None) -> None:
    """Mark rows, and everything that was made from them, after showing how many rows change.

    The marked rows get the bits as their own, all that was made from them as upstream bits: in the same exposure, and
    where it is a reference (as 'bad reference') in the differences of others. Commits wait meanwhile.

    \b
    seechange-mpi badness add ghost exp1/S3                     the image of one section
    seechange-mpi badness add "bright sky" exp1                 a whole exposure
    seechange-mpi badness add "superseded reference" exp0/S3 -p reference
    """
    _change(words, names, product or (), provenance, yes, config, set_, setting=True)


@app.command()
def remove(words: Words, names: Names, product: Product = None, provenance: ProvenanceOption = "", yes: Yes = False,
           config: ConfigOption = None, set_: SetOption = None) -> None:
    """Take own bits of rows away, those of the pipeline's included, and from everything that was made from them.

    Bits that a row has from upstream go where they were set.
    """
    _change(words, names, product or (), provenance, yes, config, set_, setting=False)


@app.command()
def show(names: Names, product: Product = None, provenance: ProvenanceOption = "",
         everything: Annotated[bool, typer.Option("--all", help="Rows without any bit as well.")] = False,
         config: ConfigOption = None, set_: SetOption = None) -> None:
    """Show the badness of all products of exposures or sections, or of rows: their own, and from upstream."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.marks import PRODUCTS, find_rows
    from seechange_mpi.model.flags import badness_words
    from seechange_mpi.mpi.summary import format_table

    with session(load_config(config, set_)) as conn:
        rows = find_rows(conn, names, products=product or [p for p in PRODUCTS if p != "exposure"],
                         provenance=provenance)
        if not product:
            whole = sorted({r.exposure for r in rows if r.exposure})
            rows = (find_rows(conn, whole, products=["exposure"]) if whole else []) + rows
    chosen = [r for r in rows if everything or r.own | r.upstream]
    if chosen:
        typer.echo(format_table(
            ["exposure", "section", "product", "provenance", "own", "from upstream"],
            [[r.exposure or str(r.id), r.section or "-", r.product, r.provenance[:6] or "-",
              badness_words(r.own) or "-", badness_words(r.upstream) or "-"] for r in chosen]))
    if len(chosen) < len(rows):
        typer.echo(f"{len(rows) - len(chosen)} rows without any badness")


def _change(words: str, names: Sequence[str], products: Sequence[str], provenance: str, yes: bool, config: str | None,
            set_: list[str] | None, *, setting: bool) -> None:
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.marks import find_rows, preview, set_marks
    from seechange_mpi.model.errors import ConfigError
    from seechange_mpi.model.flags import badness_bits

    try:
        bits = badness_bits(words)
    except ValueError as err:
        raise ConfigError(str(err)) from None
    if not bits:
        raise ConfigError("no badness is named; seechange-mpi badness add --help shows examples")
    add_, remove_ = (bits, 0) if setting else (0, bits)
    with session(load_config(config, set_)) as conn:
        rows = find_rows(conn, names, products=products, provenance=provenance)
        if not setting:
            _tell_inherited(rows, bits)
        changes = (set_marks if yes else preview)(conn, rows, add=add_, remove=remove_)
        if not changes:
            typer.echo(f"nothing changes: {len(rows)} rows {'have it already' if setting else 'have none of it'}")
            return
        typer.echo("rows that change" if not yes else "rows changed")
        for table, n in changes.items():
            typer.echo(f"  {table:<20}{n:>10}")
        if yes:
            return
        if not (sys.stdin.isatty() and typer.confirm("Do it?")):
            typer.echo("nothing was changed; to do it: --yes")
            return
        typer.echo(f"{sum(set_marks(conn, rows, add=add_, remove=remove_).values())} rows changed")


def _tell_inherited(rows: Sequence[Row], bits: int) -> None:
    from seechange_mpi.model.flags import badness_words

    inherited = [r for r in rows if r.upstream & bits & ~r.own]
    if inherited:
        names = ", ".join(f"{r.exposure}/{r.section} {r.product}" if r.exposure else str(r.id) for r in inherited[:5])
        typer.echo(f"{badness_words(bits)} comes from upstream and stays: {names}"
                   + (" …" if len(inherited) > 5 else "") + "; remove it where it was set (badness show)")
