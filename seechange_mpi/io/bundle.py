"""Bundles: one file per exposure and provenance, tables inside, pixels by relative links to the shards.

A bundle explains itself without the database, and the database can be rebuilt from it. It is written
last, under a temporary name: where there is a bundle, its shards are whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py

from seechange_mpi import __version__
from seechange_mpi.io.digests import digest_of
from seechange_mpi.io.h5util import check_format, durable_h5, get_text, open_h5, publish, require_space, set_attrs
from seechange_mpi.io.records import known_hash, read_record, record_of, write_record
from seechange_mpi.io.retrieval import ensure, is_retrievable
from seechange_mpi.io.section_h5 import IMAGE_GROUPS, PIXEL_NAMES, SUB_GROUPS, content_hash, write_report
from seechange_mpi.io.shard import FORMAT as SHARD_FORMAT
from seechange_mpi.io.shard import VERSION as SHARD_VERSION
from seechange_mpi.io.shard import ShardScan, check_shard, read_group, scan_shards, shard_info
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import StoredSection
from seechange_mpi.model.provenance import ProvenanceRecord, canonical_json, provenance_id
from seechange_mpi.model.task import SectionReport

FORMAT = "seechange-mpi bundle"
VERSION = 1
READABLE = {FORMAT: VERSION, SHARD_FORMAT: SHARD_VERSION}
"""Formats in which a section can be read, and the newest version of each."""


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """What a bundle says of itself, sections aside."""

    path: Path
    exposure: ExposureInfo
    provenances: tuple[ProvenanceRecord, ...]
    config: dict[str, Any]
    section_ids: tuple[str, ...]
    created: str
    code_version: str


def exposure_folder(root: str | Path, identifier: str) -> Path:
    """Folder of an exposure's bundles and shards."""
    return Path(root) / identifier


def shard_folder(root: str | Path, identifier: str) -> Path:
    """Folder of an exposure's shards."""
    return exposure_folder(root, identifier) / "shards"


def bundle_path(root: str | Path, identifier: str, provenance: str) -> Path:
    """Path of a bundle: ``<root>/<exposure>/<exposure>_<prov6>.h5``."""
    return exposure_folder(root, identifier) / f"{identifier}_{provenance[:6]}.h5"


def write_bundle(
    path: str | Path, exposure: ExposureInfo, provenances: Iterable[ProvenanceRecord], config: Mapping[str, Any],
    shards: Sequence[str | Path], failures: Mapping[str, SectionReport] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Path:
    """Write the bundle of an exposure, and beside it the record of its sha256 and those of its shards.

    Parameters
    ----------
    shards : paths of the shards, one per section, durable already.
    failures : reports of sections that could not write a shard.
    config : resolved configuration, secrets removed.
    hashes : file name -> sha256 of shards, as far as it is known from writing them; others are looked up or read.

    Raises
    ------
    TransientError
        The disk is full.
    BadInput
        A shard cannot be read.
    """
    path = Path(path)
    with durable_h5(path.parent, path.stem) as (f, draft):
        f.attrs.update({"format": FORMAT, "version": VERSION, "exposure": exposure.identifier,
                        "instrument": exposure.instrument, "mjd": exposure.mjd, "filter": exposure.filter,
                        "code_version": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds")})
        _write_provenances(f, provenances)
        e = f.create_group("exposure")
        set_attrs(e, {"info": json.dumps(asdict(exposure), sort_keys=True, default=str),
                      "config": canonical_json(dict(config))})
        sections = f.create_group("sections")
        for shard in shards:
            _copy_section(sections, Path(shard), path.parent)
        for section_id, report in (failures or {}).items():
            write_report(sections.create_group(section_id), report)
    known = hashes or {}
    record = {os.path.relpath(s, path.parent): known.get(Path(s).name) or known_hash(Path(s)) for s in shards}
    publish(draft, path)
    write_record(record_of(path), record | {path.name: draft.sha256})
    return path


def _write_provenances(f: h5py.File, provenances: Iterable[ProvenanceRecord]) -> None:
    rows = sorted(provenances, key=lambda r: r.id)
    text = h5py.string_dtype()
    dtype = [("id", text), ("process", text), ("code_version", text), ("parameters", text), ("upstream_ids", text)]
    table = f.create_dataset("provenance", shape=(len(rows),), dtype=dtype)
    for k, r in enumerate(rows):
        table[k] = (r.id, r.process, r.code_version, canonical_json(dict(r.parameters)),
                    json.dumps(list(r.upstream_ids)))


def _copy_section(sections: h5py.Group, shard: Path, folder: Path) -> None:
    """Copy tables and attributes; link pixels by a path relative to the bundle."""
    relative = os.path.relpath(shard, folder)
    with open_h5(shard) as src:
        check_format(src, shard, {SHARD_FORMAT: SHARD_VERSION})
        section_id = next(iter(src["sections"]))
        g = src["sections"][section_id]
        out = sections.create_group(section_id)
        out.attrs.update(dict(g.attrs))
        out.attrs["shard"] = relative
        for name in g:
            if name in PIXEL_NAMES:
                continue
            if isinstance(g[name], h5py.Group):
                inner = out.create_group(name)
                inner.attrs.update(dict(g[name].attrs))
                for part in g[name]:
                    link = g[name].get(part, getlink=True)
                    if isinstance(link, h5py.SoftLink):
                        inner[part] = link
                    elif f"{name}/{part}" not in PIXEL_NAMES:
                        g.copy(f"{name}/{part}", inner)
            else:
                g.copy(name, out)
        for name in PIXEL_NAMES:
            if name in g:
                out[name] = h5py.ExternalLink(relative, f"/sections/{section_id}/{name}")
        if "image" in g:
            out.create_group("image_meta").attrs.update(dict(g["image"].attrs))


@contextmanager
def opened_bundle(path: str | Path) -> Iterator[h5py.File]:
    """Open a bundle for reading its attributes and tables.

    Raises
    ------
    BadInput
        It is missing, damaged, not a bundle, or one of a later version.
    """
    with open_h5(path) as f:
        check_format(f, path, {FORMAT: VERSION})
        yield f


def read_bundle(path: str | Path) -> BundleInfo:
    """Read what a bundle says of itself.

    Raises
    ------
    BadInput
        It is missing, damaged or not a bundle.
    """
    with open_h5(path) as f:
        check_format(f, path, {FORMAT: VERSION})
        return BundleInfo(
            Path(path), ExposureInfo(**json.loads(get_text(f["exposure"], "info"))), provenances_of(f),
            json.loads(get_text(f["exposure"], "config", "{}")), tuple(f["sections"]), str(f.attrs["created"]),
            str(f.attrs["code_version"]))


def provenances_of(f: h5py.File) -> tuple[ProvenanceRecord, ...]:
    """Return the provenances of an open bundle."""
    rows = []
    for r in f["provenance"][...]:
        id_, process, version, parameters, upstream = (v.decode() if isinstance(v, bytes) else str(v) for v in r)
        rows.append(ProvenanceRecord(id_, process, version, json.loads(parameters), tuple(json.loads(upstream))))
    return tuple(rows)


def section_shards(path: str | Path) -> dict[str, Path]:
    """Return section -> shard of a bundle; sections without a shard are left out.

    Raises
    ------
    BadInput
        The bundle is missing, damaged or not a bundle.
    """
    with open_h5(path) as f:
        check_format(f, path, {FORMAT: VERSION})
        groups = f["sections"]
        return {s: Path(path).parent / str(groups[s].attrs["shard"]) for s in groups if "shard" in groups[s].attrs}


def files_below(places: Iterable[Path]) -> Iterator[Path]:
    """Files that may be bundles: those named, and those in folders; folders of shards are not entered."""
    for place in places:
        if place.is_file():
            yield place
        for folder, inner, names in os.walk(place):
            inner[:] = sorted(n for n in inner if n != "shards")
            yield from (Path(folder) / n for n in sorted(names) if n.endswith(".h5") and not n.startswith("."))


def scan_exposure(folder: Path) -> ShardScan:
    """Read the attributes of all shards of an exposure, also of those that bundles name and only an archive has.

    Parameters
    ----------
    folder : of the exposure's bundles.
    """
    out = scan_shards(folder / "shards")
    for bundle in sorted(folder.glob("*.h5")):
        try:
            gone = {s: p for s, p in section_shards(bundle).items() if not p.exists() and is_retrievable(p)}
            with open_h5(bundle) as f:
                out.shards += [shard_info(p, s, f["sections"][s]) for s, p in gone.items()]
        except BadInput:
            continue  # whoever needs it is told
    return out


def read_section(path: str | Path, section_id: str, pixels: bool = False, parts: Container[str] | None = None
                 ) -> StoredSection:
    """Read a section of a bundle or of a shard.

    Parameters
    ----------
    pixels : read image planes and cutouts too.
    parts : names of `SectionProducts`; only these products are read. None: all.

    Raises
    ------
    BadInput
        The file or the section is missing or damaged, or (with `pixels`) a linked shard is gone.
    """
    with open_h5(path) as f:
        check_format(f, path, READABLE)
        if section_id not in f["sections"]:
            raise BadInput(path, "section", section_id, ", ".join(f["sections"]) or "no section")
        group = f["sections"][section_id]
        if pixels and "shard" in group.attrs:
            check_shard(path, group)
        return read_group(group, section_id, str(path), pixels=pixels, parts=parts)


def read_tables(path: str | Path) -> list[StoredSection]:
    """Read all sections of a bundle without their pixels, with one opening of the file.

    Raises
    ------
    BadInput
        It is missing, damaged or not a bundle.
    """
    with opened_bundle(path) as f:
        return [read_group(g, section, str(path), pixels=False) for section, g in f["sections"].items()]


def bring_shard(path: str | Path, group: h5py.Group) -> None:
    """Bring the shard back to which a section of a bundle links, if it is gone and in an archive."""
    if "shard" in group.attrs:
        ensure(Path(path).parent / str(group.attrs["shard"]))


def validate_bundle(path: str | Path) -> list[str]:
    """Return everything that is wrong with a bundle; empty = whole.

    Reads every byte (checksums), follows every link, recomputes provenance ids and content hashes.
    """
    problems: list[str] = []
    info = read_bundle(path)
    for r in info.provenances:
        if provenance_id(r.process, r.parameters, r.upstream_ids, r.code_version) != r.id:
            problems.append(f"provenance {r.id} ({r.process}) is not the id of its parameters")
    known = {r.id for r in info.provenances}
    with open_h5(path) as f:
        for section_id in info.section_ids:
            g = f["sections"][section_id]
            lost = set(json.loads(g.attrs.get("provenance_ids", "{}")).values()) - known
            if lost:
                problems.append(f"section {section_id}: provenances {', '.join(sorted(lost))} are not in the bundle")
            found: list[str] = []
            if "shard" in g.attrs:
                found = _validate_shard(Path(path).parent / str(g.attrs["shard"]), g, section_id)
            if not found and "content_hash" in g.attrs:
                found = _validate_content(g, section_id)
            problems += found
    return problems + _validate_record(Path(path))


def _validate_record(path: Path) -> list[str]:
    """Compare the bytes of the bundle and of its shards with the record beside it; newer files are not in it."""
    record = record_of(path)
    if not record.exists():
        return []
    written = record.stat().st_mtime_ns
    files = {path.parent / name: digest for name, digest in read_record(record).items()}
    return [f"{p.name}: its bytes are not those that were written ({record.name})" for p, digest in files.items()
            if p.exists() and p.stat().st_mtime_ns <= written and digest_of(p).sha256 != digest]


def _validate_shard(shard: Path, g: h5py.Group, section_id: str) -> list[str]:
    try:
        with open_h5(shard) as src:
            s = src["sections"][section_id]
            names = tuple(s)
            found = content_hash(s, IMAGE_GROUPS + SUB_GROUPS)
    except BadInput as err:
        return [f"section {section_id}: {err}"]
    problems = [f"section {section_id}: {name} is missing" for name in names if name not in g]
    if found != g.attrs["content_hash"]:
        problems.append(f"section {section_id}: {shard.name} does not hold what the bundle describes")
    return problems


def _validate_content(g: h5py.Group, section_id: str) -> list[str]:
    """Recompute the content hash of a section as the bundle shows it, its own tables and linked pixels together."""
    try:
        same = content_hash(g, IMAGE_GROUPS + SUB_GROUPS) == g.attrs["content_hash"]
    except (OSError, KeyError, RuntimeError) as err:
        return [f"section {section_id}: missing or damaged content: {err}"]
    return [] if same else [f"section {section_id}: tables or pixels are not those that were written"]


def pack_bundle(path: str | Path, out: str | Path) -> Path:
    """Write a single file that holds the bundle with all pixels, for the archive.

    Raises
    ------
    TransientError
        There is not enough room.
    BadInput
        The bundle or one of its shards is missing or damaged.
    """
    out = Path(out)
    parts = [Path(path), *section_shards(path).values()]
    for part in parts:
        if not ensure(part):
            raise BadInput(part, "file of the bundle", "a file", "no such file")
    require_space(out.parent, out.stem, sum(part.stat().st_size for part in parts))
    with open_h5(path) as f, durable_h5(out.parent, out.stem, in_memory=False) as (packed, draft):
        check_format(f, path, {FORMAT: VERSION})
        for name in f:
            f.copy(name, packed, expand_external=True)
        packed.attrs.update(dict(f.attrs))
        for section_id in packed["sections"]:
            packed["sections"][section_id].attrs.pop("shard", None)
    publish(draft, out)
    write_record(record_of(out), {out.name: draft.sha256})
    return out
