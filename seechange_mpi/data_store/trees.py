"""Provenance trees: process -> record, of a tag, a bundle or a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_mpi.config.resolve import Config
from seechange_mpi.io.bundle import read_bundle
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.provenance import UPSTREAM_STEPS, ProvenanceRecord, make_record

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

Tree = dict[str, ProvenanceRecord]
LOG = "rank-0000.jsonl"
"""Log of rank 0, in the folder of a run."""


def tree_of_bundle(path: str | Path, section_id: str) -> Tree:
    """Return the provenances of a section of a bundle; of its other sections' where it does not have the section.

    Raises
    ------
    BadInput
        It is not a readable bundle, or other sections have several provenances of one process.
    """
    from seechange_mpi.data_store.holdings import holdings_of

    records = {r.id: r for r in read_bundle(path).provenances}
    holdings = holdings_of(Path(path))
    chosen = [h for h in holdings if h.section_id == section_id] or holdings
    tree: Tree = {}
    for h in chosen:
        for process, id_ in h.provenance_ids.items():
            if process in tree and tree[process].id != id_:
                raise BadInput(path, "provenances", f"one of {process}", f"{tree[process].id} and {id_}")
            if id_ in records:
                tree[process] = records[id_]
    return tree


def tree_of_tag(conn: Connection, tag: str) -> Tree:
    """Return the provenances of a tag; see `db.tags.tagged`."""
    from seechange_mpi.db.tags import tagged, tree_of

    return tree_of(tagged(conn, tag))


def bundle_of_run(run: str | Path, exposure: str, config: Config) -> Path:
    """Return the bundle of an exposure that a run has written or committed.

    Parameters
    ----------
    run : folder of a run, or its name below the working folder's ``runs``.

    Raises
    ------
    ConfigError
        There is no such run.
    BadInput
        It has no bundle of the exposure.
    """
    folder = Path(run)
    if not folder.is_dir():
        folder = config.root / "runs" / run
    if not folder.is_dir():
        raise ConfigError(f"there is no run {run}, neither as a folder nor in {config.root / 'runs'}")
    found = [str(line["bundle"]) for line in _lines(folder) if line.get("exposure") == exposure and "bundle" in line]
    if not found:
        raise BadInput(folder, "log of the run", f"a bundle of {exposure}", "none")
    return Path(found[-1])


def bundles_of_run(folder: Path) -> list[Path]:
    """Return the bundles that a run has written or committed, the last of each exposure, in the order of its log.

    Raises
    ------
    BadInput
        The folder has no log of a run.
    """
    if not (folder / LOG).is_file():
        raise BadInput(folder, "log of a run", LOG, "no such file")
    return [Path(p) for p in {str(x["exposure"]): str(x["bundle"]) for x in _lines(folder)
                              if "bundle" in x and "exposure" in x}.values()]


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of rank 0 about bundles."""
    log = folder / LOG
    with log.open(encoding="utf-8") as f:
        for text in f:
            if '"bundle"' in text:
                try:
                    yield json.loads(text)
                except ValueError:  # the line being written when the run was killed
                    continue


def derive(process: str, parameters: dict[str, Any], tree: Tree) -> ProvenanceRecord:
    """Return the provenance that a process has with these parameters and the upstream of a tree.

    Raises
    ------
    ConfigError
        The process is unknown, or the tree lacks an upstream one.
    """
    if process not in UPSTREAM_STEPS:
        raise ConfigError(f"there is no process '{process}'; there are: {', '.join(UPSTREAM_STEPS)}")
    upstream: list[str] = []
    for name in UPSTREAM_STEPS[process]:
        if name == "referencing":
            # the reference's own, which the tree's subtraction names
            if process not in tree:
                raise ConfigError(f"the provenance tree has no {process}, whose reference would be the same")
            upstream += tree[process].upstream_ids
        elif name not in tree:
            raise ConfigError(f"the provenance tree has no {name}, which {process} follows")
        elif process != "subtraction":
            upstream.append(tree[name].id)
    return make_record(process, parameters, set(upstream))
