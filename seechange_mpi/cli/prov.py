"""``seechange-mpi prov``: what made a product, and how two of them differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

if TYPE_CHECKING:
    from seechange_mpi.model.provenance import ProvenanceRecord
    from seechange_mpi.model.provenance_diff import Tree

app = typer.Typer(help="Provenances: show what made a product, compare two, and tag them.", no_args_is_help=True,
                  rich_markup_mode=None, add_completion=False)
tag_app = typer.Typer(help="Tags: one provenance of each process under one name (of referencing: any number).",
                      no_args_is_help=True, rich_markup_mode=None, add_completion=False)
app.add_typer(tag_app, name="tag", help="Tags: add, clone, list, remove.")
What = Annotated[str, typer.Argument(help="Id of a provenance (or the beginning of one), tag, or bundle file.")]
Tag = Annotated[str, typer.Argument(help="Name of a tag.")]


def _tree(what: str, config: str | None, set_: list[str] | None) -> Tree:
    """The provenances that an argument stands for; a bundle needs no database."""
    from seechange_mpi.model.provenance_diff import Tree

    if what.endswith(".h5") or Path(what).is_file():
        from seechange_mpi.io.bundle import read_bundle

        return Tree(what, list(read_bundle(what).provenances))
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.provenance import find_record, upstream_tree
    from seechange_mpi.db.tags import list_tags, tagged

    with session(load_config(config, set_)) as conn:
        if any(name == what for name, _, _ in list_tags(conn)):
            return Tree(what, tagged(conn, what))
        record = find_record(conn, what)
        return Tree(what, list(upstream_tree(conn, record).values()), record.id)


@app.command()
def show(
    what: What,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Show a provenance with its parameters and everything upstream, or all provenances of a tag or bundle.

    Examples: seechange-mpi prov show K6ILA3
              seechange-mpi prov show bundles/exp1/exp1_K6ILA3.h5
    """
    tree = _tree(what, config, set_)
    if as_json:
        typer.echo(json.dumps([_plain(r) for r in tree.in_order()], indent=1))
        return
    said = _judgements(what, [r.id for r in tree.in_order()], config, set_)
    for r in tree.in_order():
        typer.echo(f"{r.id}  {r.process}, code {r.code_version}" + (", this one" if r.id == tree.top else ""))
        if r.id in said:
            typer.echo(f"    {said[r.id]}")
        for up in r.upstream_ids:
            typer.echo(f"    from {up}  {tree.process_of(up)}")
        for name, value in sorted(tree.parameters(r).items()):
            typer.echo(f"    {name} = {json.dumps(value)}")


def _judgements(what: str, ids: list[str], config: str | None, set_: list[str] | None) -> dict[str, str]:
    """What the database says of provenances; a bundle needs none."""
    if what.endswith(".h5") or Path(what).is_file():
        return {}
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.judgement import judgements

    with session(load_config(config, set_)) as conn:
        return judgements(conn, ids)


@app.command()
def bad(
    provenance: Annotated[str, typer.Argument(help="Id of a provenance, or the beginning of one.")],
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why.")] = "",
    replaced_by: Annotated[str | None, typer.Option("--replaced-by", help="Id of the one to use in its place.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Call it good again.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Call a provenance bad, for those who read the database: provenances.is_bad, bad_comment, replaced_by.

    Nothing is deleted and no product is marked (seechange-mpi badness does that); 'prov show' tells it.

    Example: seechange-mpi prov bad K6ILA3 -m "scores of an old network" --replaced-by QW7ZPT
    """
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.judgement import judge, judgements
    from seechange_mpi.db.provenance import find_record

    with session(load_config(config, set_)) as conn:
        record = find_record(conn, provenance)
        successor = find_record(conn, replaced_by).id if replaced_by and not undo else None
        judge(conn, record.id, bad=not undo, comment="" if undo else comment, replaced_by=successor)
        said = judgements(conn, [record.id]).get(record.id, "good")
    typer.echo(f"{record.id}  {record.process}: {said}")


def _plain(r: ProvenanceRecord) -> dict[str, Any]:
    return {"id": r.id, "process": r.process, "code_version": r.code_version, "parameters": dict(r.parameters),
            "upstream_ids": list(r.upstream_ids)}


@app.command()
def diff(a: What, b: What, config: ConfigOption = None, set_: SetOption = None) -> int:
    """Tell in what two provenances differ: parameters, code versions and all that is upstream.

    What the first has stands left of the bar, what the second has right of it. Exit code 0 if they are the same, 1 if
    they differ, as 'diff' has it; 2 and more are errors.

    Example: seechange-mpi prov diff exp1/exp1_K6ILA3.h5 exp1/exp1_QW7ZPT.h5
    """
    from seechange_mpi.model.provenance_diff import differences

    lines = differences(_tree(a, config, set_), _tree(b, config, set_))
    for line in lines:
        typer.echo(line)
    if not lines:
        typer.echo("the same")
    return 1 if lines else 0


@tag_app.command("add")
def tag_add(
    tag: Tag,
    what: Annotated[list[str], typer.Argument(help="Ids, or bundles, all provenances of which are meant.")],
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Put provenances under a tag. A second one of a process is refused.

    Example: seechange-mpi prov tag add dr1 bundles/exp1/exp1_K6ILA3.h5
    """
    from seechange_mpi.db.checks import check_provenances
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.provenance import find_record, store_provenances
    from seechange_mpi.db.tags import tag_provenances
    from seechange_mpi.io.bundle import read_bundle

    with session(load_config(config, set_)) as conn, conn.transaction():
        records = []
        for name in what:
            if name.endswith(".h5"):
                found = read_bundle(name).provenances
                check_provenances(name, found)
                records += list(found)
            else:
                records.append(find_record(conn, name))
        store_provenances(conn, records)
        n = tag_provenances(conn, tag, records)
    typer.echo(f"{tag}: {n} added, {len({r.id for r in records}) - n} were there")


@tag_app.command("clone")
def tag_clone(
    old: Tag,
    new: Tag,
    clobber: Annotated[bool, typer.Option("--clobber", help="Replace the new tag if it is there.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Put the provenances of one tag under another as well."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.tags import clone_tag

    with session(load_config(config, set_)) as conn:
        typer.echo(f"{new}: {clone_tag(conn, old, new, clobber=clobber)} provenances, as in {old}")


@tag_app.command("list")
def tag_list(
    tag: Annotated[str | None, typer.Argument(help="Show this one's provenances.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """List all tags, or the provenances of one."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.tags import list_tags, tagged

    with session(load_config(config, set_)) as conn:
        if tag is not None:
            for r in tagged(conn, tag):
                typer.echo(f"{r.process:<18}{r.id}  code {r.code_version}")
            return
        tags = list_tags(conn)
    for name, n, processes in tags:
        typer.echo(f"{name:<24}{n} provenances of {processes} processes")
    if not tags:
        typer.echo("there are no tags: a run makes one (run.provenance_tag), and so does prov tag add")


@tag_app.command("remove")
def tag_remove(
    tag: Tag,
    ids: Annotated[list[str] | None, typer.Argument(help="Only these; default: the whole tag.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Take provenances out of a tag, or remove the tag. No provenance and no product is deleted."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.provenance import find_record
    from seechange_mpi.db.tags import remove_from_tag

    with session(load_config(config, set_)) as conn:
        chosen = [find_record(conn, i).id for i in ids] if ids else None
        typer.echo(f"{tag}: {remove_from_tag(conn, tag, chosen)} removed")
