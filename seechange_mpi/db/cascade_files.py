"""Files of exposures and sections that were deleted from the database."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from seechange_mpi.io.bundle import exposure_folder, read_bundle, read_section, section_shards, write_bundle
from seechange_mpi.io.records import record_of
from seechange_mpi.io.shard import scan_shards
from seechange_mpi.model.errors import BadInput


@dataclass(slots=True)
class FilesToGo:
    """What goes from the disk.

    Attributes
    ----------
    folders : of exposures that go as a whole.
    files : single files.
    rewritten : bundle -> sections that are left out when it is written anew.
    """

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    rewritten: dict[Path, set[str]] = field(default_factory=dict)

    def all_files(self) -> list[Path]:
        """Every file that goes."""
        return [*(p for folder in self.folders for p in sorted(folder.rglob("*")) if p.is_file()), *self.files]


def plan_files(bundles: Path, exposures: Iterable[str], sections: dict[str, set[str]]) -> FilesToGo:
    """Find the files of whole exposures and of sections of others.

    Parameters
    ----------
    bundles : folder of all bundles.
    sections : exposure -> its sections that go.
    """
    plan = FilesToGo()
    for name in exposures:
        folder = exposure_folder(bundles, name)
        if folder.is_dir() and folder.resolve().parent == bundles.resolve():
            plan.folders.append(folder)
    for name, gone in sections.items():
        folder = exposure_folder(bundles, name)
        plan.files += [s.path for s in scan_shards(folder / "shards").shards if s.section_id in gone]
        for bundle in sorted(folder.glob("*.h5")):
            with suppress(BadInput):
                left = set(read_bundle(bundle).section_ids) - gone
                if not left:
                    plan.files += [p for p in (bundle, record_of(bundle), bundle.with_suffix(".html")) if p.exists()]
                elif left != set(read_bundle(bundle).section_ids):
                    plan.rewritten[bundle] = gone
                    plan.files += [p for p in (bundle.with_suffix(".html"),) if p.exists()]
    return plan


def remove(plan: FilesToGo) -> list[str]:
    """Remove the files, bundles first written anew without their sections; return what went wrong."""
    problems = []
    for bundle, gone in plan.rewritten.items():
        try:
            _without(bundle, gone)
        except BadInput as err:
            problems.append(f"{bundle} still names {', '.join(sorted(gone))}: {err}")
    for path in plan.files:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            problems.append(f"{path}: {err.strerror or err}")
    for folder in plan.folders:
        try:
            shutil.rmtree(folder)
        except OSError as err:
            problems.append(f"{folder}: {err.strerror or err}")
    return problems


def _without(bundle: Path, gone: set[str]) -> None:
    """Write a bundle anew without some of its sections."""
    info = read_bundle(bundle)
    shards = {s: p for s, p in section_shards(bundle).items() if s not in gone}
    failures = {s: read_section(bundle, s).report for s in info.section_ids if s not in gone and s not in shards}
    write_bundle(bundle, info.exposure, info.provenances, info.config, list(shards.values()), failures)
