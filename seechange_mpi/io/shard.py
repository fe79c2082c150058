"""Shards: everything one section produced, in one immutable file named by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from seechange_mpi.io.h5util import check_format, durable_h5, open_h5, publish, set_attrs
from seechange_mpi.io.section_h5 import (
    IMAGE_GROUPS,
    SUB_GROUPS,
    content_hash,
    read_products,
    read_report,
    stored_parts,
    write_products,
    write_report,
)
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import SectionProducts, StoredSection
from seechange_mpi.model.task import STEPS, SectionReport

if TYPE_CHECKING:
    import h5py

FORMAT = "seechange-mpi shard"
VERSION = 1


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What the attributes of a shard say.

    Attributes
    ----------
    path : file;  section_id : str;  provenance_ids, inputs : dict.
    completed_step : last step with durable products;  success : no failure;  caveat : as in the report.
    """

    path: Path
    section_id: str
    provenance_ids: dict[str, str]
    inputs: dict[str, str]
    completed_step: str
    success: bool
    caveat: str
    content_hash: str


@dataclass(slots=True)
class ShardScan:
    """Result of `scan_shards`: readable shards in the order of names, and what could not be read."""

    shards: list[ShardInfo] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def write_shard(
    shard_dir: str | Path, exposure: ExposureInfo, section_id: str, products: SectionProducts, report: SectionReport,
    provenance_ids: Mapping[str, str], inputs: Mapping[str, str], shape: tuple[int, int],
    digests: Mapping[str, str] | None = None,
) -> Path:
    """Write a shard under a temporary name, then rename it to ``<section>_<hash of content and origin>.h5``.

    Parameters
    ----------
    digests : digests of what went in beyond `inputs` (``raw``, ``reference``), for `replay`.

    Raises
    ------
    TransientError
        The disk is full.
    """
    return store_shard(shard_dir, exposure, section_id, products, report, provenance_ids, inputs, shape, digests)[0]


def store_shard(
    shard_dir: str | Path, exposure: ExposureInfo, section_id: str, products: SectionProducts, report: SectionReport,
    provenance_ids: Mapping[str, str], inputs: Mapping[str, str], shape: tuple[int, int],
    digests: Mapping[str, str] | None = None,
) -> tuple[Path, str]:
    """Write a shard (see `write_shard`); return its path and the sha256 of its bytes."""
    folder = Path(shard_dir)
    with durable_h5(folder, f"{section_id}") as (f, draft):
        f.attrs.update({"format": FORMAT, "version": VERSION, "exposure": exposure.identifier,
                        "instrument": exposure.instrument})
        g = f.create_group(f"sections/{section_id}")
        write_products(g, products)
        write_report(g, report)
        image, sub = content_hash(g, IMAGE_GROUPS), content_hash(g, SUB_GROUPS)
        total = content_hash(g, IMAGE_GROUPS + SUB_GROUPS)
        g.attrs.update({"provenance_ids": json.dumps(dict(provenance_ids), sort_keys=True),
                        "inputs": json.dumps(dict(inputs), sort_keys=True), "shape": shape,
                        "content_hash": total, "image_hash": image, "sub_hash": sub,
                        "digests": json.dumps(dict(digests or {}), sort_keys=True)})
        set_attrs(g.create_group("inputs"), dict(inputs))
        # the same pixels made in another way are another shard: an older bundle's shard is never replaced
        origin = f"{total} {g.attrs['provenance_ids']} {g.attrs['inputs']}"
    path = folder / f"{section_id}_{hashlib.sha256(origin.encode()).hexdigest()[:12]}.h5"
    publish(draft, path)
    return path, draft.sha256


def read_group(g: object, section_id: str, path: str, *, pixels: bool, parts: Container[str] | None = None
               ) -> StoredSection:
    """Read a section's group of a shard or bundle; see `section_h5.read_products`."""
    import h5py

    if not isinstance(g, h5py.Group):
        raise BadInput(path, f"section {section_id}", "a group", type(g).__name__.lower())
    a = g.attrs
    return StoredSection(
        section_id, read_products(g, path, pixels=pixels, parts=parts), read_report(g),
        json.loads(a.get("provenance_ids", "{}")), json.loads(a.get("inputs", "{}")),
        tuple(int(n) for n in a.get("shape", (0, 0))),  # type: ignore[arg-type]
        str(a.get("content_hash", "")), path, str(a.get("image_hash", "")), str(a.get("sub_hash", "")),
        json.loads(a.get("digests", "{}")), stored_parts(g))


def read_shard(path: str | Path, pixels: bool = True) -> StoredSection:
    """Read a shard.

    Raises
    ------
    BadInput
        It is missing, truncated, not a shard, or one of a later version.
    """
    with open_h5(path) as f:
        check_format(f, path, {FORMAT: VERSION})
        section_id = _only_section(f, path)
        return read_group(f["sections"][section_id], section_id, str(path), pixels=pixels)


def check_shard(bundle: str | Path, group: h5py.Group) -> None:
    """Open the shard to which a section of a bundle links, so that a lost or damaged one is named, not the bundle.

    Raises
    ------
    BadInput
        See `read_shard`.
    """
    path = Path(bundle).parent / str(group.attrs["shard"])
    with open_h5(path) as f:
        check_format(f, path, {FORMAT: VERSION})


def shard_info(path: Path, section_id: str, g: object) -> ShardInfo:
    """Return what a section's group, in a shard or in a bundle that links to it, says of the shard `path`."""
    import h5py

    assert isinstance(g, h5py.Group)
    report = read_report(g)
    return ShardInfo(path, section_id, json.loads(g.attrs["provenance_ids"]), json.loads(g.attrs["inputs"]),
                     report.completed_step if report.completed_step in STEPS else "", report.success, report.caveat,
                     str(g.attrs["content_hash"]))


def scan_shards(shard_dir: str | Path) -> ShardScan:
    """Read the attributes of all shards of an exposure; damaged ones are named, not raised."""
    out = ShardScan()
    for path in sorted(Path(shard_dir).glob("*.h5")):
        try:
            with open_h5(path) as f:
                check_format(f, path, {FORMAT: VERSION})
                section_id = _only_section(f, path)
                out.shards.append(shard_info(path, section_id, f["sections"][section_id]))
        except BadInput as err:
            out.problems.append(str(err))
    return out


def _only_section(f: h5py.File, path: str | Path) -> str:
    for section_id in f["sections"]:
        return str(section_id)
    raise BadInput(path, "section", "one", "no section inside")
