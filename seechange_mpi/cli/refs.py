"""``seechange-mpi refs``: reference images."""

from __future__ import annotations

from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

app = typer.Typer(help="References: processed exposures that later ones are compared with.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)
Refset = Annotated[str | None, typer.Option("--refset", help="Set of references; default: references.refset.")]


@app.command()
def add(
    exposures: Annotated[list[str], typer.Argument(help="Identifiers of processed exposures, or their bundles.")],
    sections: Annotated[str | None, typer.Option("--sections", help="Only these, e.g. S1,S3.")] = None,
    refset: Refset = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Register processed exposures as references.

    Example: seechange-mpi run night/deep.fits && seechange-mpi refs add deep
    """
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.references import add_reference
    from seechange_mpi.io.bundle import read_bundle
    from seechange_mpi.model.exposure import identifier_of

    resolved = load_config(config, set_)
    name = refset or resolved.settings.references.refset
    only = [s.strip() for s in sections.split(",")] if sections else None
    with session(resolved) as conn:
        for exposure in exposures:
            is_bundle = exposure.endswith(".h5")
            identifier = read_bundle(exposure).exposure.identifier if is_bundle else identifier_of(exposure)
            new = add_reference(conn, identifier, refset=name, sections=only)
            typer.echo(f"{identifier}: {len(new)} sections are new references in '{name}'"
                       + (f" ({', '.join(new)})" if new else " (they were there already)"))


@app.command("list")
def list_(config: ConfigOption = None, set_: SetOption = None) -> None:
    """List all references."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.references import list_references
    from seechange_mpi.model.flags import badness_words
    from seechange_mpi.mpi.summary import format_table

    with session(load_config(config, set_)) as conn:
        rows = list_references(conn)
    if not rows:
        typer.echo("there are no references: process an exposure, then seechange-mpi refs add EXPOSURE")
        return
    typer.echo(format_table(["refset", "exposure", "camera", "filter", "section", "FWHM \"", "zero pt", "lim mag",
                             "badness"],
                            [[str(v) if isinstance(v, str) else f"{v:.2f}" for v in r[:-1]]
                             + [badness_words(r[-1]) or "-"] for r in rows]))


@app.command()
def remove(
    exposures: Annotated[list[str], typer.Argument(help="Identifiers.")],
    refset: Refset = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Take exposures out of a set of references; nothing else is deleted."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.references import remove_reference
    from seechange_mpi.model.errors import ConfigError

    resolved = load_config(config, set_)
    name = refset or resolved.settings.references.refset
    with session(resolved) as conn:
        for exposure in exposures:
            n = remove_reference(conn, exposure, name)
            if n == 0:
                raise ConfigError(f"{exposure} is not in the set '{name}'; see seechange-mpi refs list")
            typer.echo(f"{exposure}: {n} sections removed from '{name}'")
