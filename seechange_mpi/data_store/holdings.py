"""What bundles hold of a section: attributes alone, no tables or pixels are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from seechange_mpi.io.bundle import opened_bundle, provenances_of
from seechange_mpi.io.h5util import get_text
from seechange_mpi.io.retrieval import ensure
from seechange_mpi.io.section_h5 import stored_parts
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.provenance import ids_of_tests

Opener = Callable[[Path], Path]
"""Given the path of a bundle or shard as it was written, returns the path of a file that can be read now."""


def local_file(path: Path) -> Path:
    """Return the path itself, of a file where it was written, brought back from the archive if it is gone.

    Raises
    ------
    BadInput
        There is no such file, nor an archive that has it.
    """
    if not ensure(path):
        raise BadInput(path, "bundle", "a file where it was written", "no such file")
    return path


@dataclass(frozen=True, slots=True)
class Holding:
    """One bundle's products of one section.

    Attributes
    ----------
    parts : names of products (of `SectionProducts`).
    created : when the bundle was written (ISO 8601).
    image_hash, sub_hash : digests of what it holds.
    shard : path of the file with the pixels; None: they lie in the bundle itself.
    is_testing : whether it was made in a test (``run.is_testing``).
    """

    path: Path
    exposure: str
    section_id: str
    provenance_ids: dict[str, str]
    parts: tuple[str, ...]
    inputs: dict[str, str]
    created: str
    image_hash: str = ""
    sub_hash: str = ""
    shard: Path | None = None
    is_testing: bool = False

    def has(self, name: str, process: str, wanted: str | None) -> bool:
        """Whether a product is there, of a provenance (None: any)."""
        return name in self.parts and (wanted is None or same_id(self.provenance_ids.get(process, ""), wanted))

    @property
    def image_id(self) -> str:
        """Id of the image in the database."""
        return str(stable_id("image", self.exposure, self.provenance_ids.get("preprocessing", ""), self.section_id))


def same_id(id_: str, wanted: str) -> bool:
    """Whether an id is the wanted one, or begins with its six letters or more."""
    return id_ == wanted or (len(wanted) >= 6 and id_.startswith(wanted))


def holdings_of(path: Path) -> list[Holding]:
    """Read what a bundle holds of each of its sections.

    Raises
    ------
    BadInput
        It is missing, damaged or not a bundle.
    """
    out = []
    with opened_bundle(path) as f:
        testing = ids_of_tests(provenances_of(f))
        for section, g in f["sections"].items():
            a = g.attrs
            ids = json.loads(get_text(g, "provenance_ids", "{}"))
            shard = path.parent / get_text(g, "shard") if "shard" in a else None
            out.append(Holding(
                path, str(f.attrs["exposure"]), section, ids,
                stored_parts(g), json.loads(get_text(g, "inputs", "{}")), str(f.attrs["created"]),
                get_text(g, "image_hash"), get_text(g, "sub_hash"), shard,
                not testing.isdisjoint(ids.values())))
    return out


def bundles_in(folder: Path) -> Iterator[Path]:
    """Files of an exposure's folder that may be bundles."""
    if folder.is_dir():
        yield from (p for p in sorted(folder.glob("*.h5")) if not p.name.startswith("."))


def find_image(folders: Iterable[Path], image_id: str) -> list[Holding]:
    """Return the holdings of an image that bundles in folders of exposures below `folders` have."""
    found: list[Holding] = []
    for root in folders:
        for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
            for path in bundles_in(folder):
                try:
                    found += [h for h in holdings_of(path) if h.image_id == image_id]
                except BadInput:
                    continue
    return found


def choose_section(sections: Iterable[str], wanted: str | int | None, where: str) -> str:
    """Return the id of a section: as given, by its number if only one has it, or the only one there is.

    Raises
    ------
    BadInput
        There is no such section, or several.
    """
    there = list(dict.fromkeys(sections))
    names = ", ".join(there) or "none"
    if wanted is None:
        if len(there) == 1:
            return there[0]
        raise BadInput(where, "section", f"one of {names}", "no section_id given")
    if str(wanted) in there:
        return str(wanted)
    if str(wanted).isdigit():
        numbered = [s for s in there if _number(s) == int(wanted)]
        if len(numbered) == 1:
            return numbered[0]
        if numbered:
            raise BadInput(where, f"section {wanted}", "one section with this number", ", ".join(numbered))
    raise BadInput(where, "section", f"one of {names}", str(wanted))


def _number(section: str) -> int | None:
    """Number at the end of a section's id."""
    digits = section[len(section.rstrip("0123456789")):]
    return int(digits) if digits else None
