"""What is done with an exposure around its sections: claim, prepare, bundle, commit, release, report.

Called from threads beside rank 0's main loop; nothing here knows MPI.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from seechange_mpi.conductor_client.patience import patiently
from seechange_mpi.conductor_client.protocol import Claim, ReleaseStatus, WorkSource
from seechange_mpi.config.resolve import Config
from seechange_mpi.instruments.camera import Camera, load_camera
from seechange_mpi.io import retrieval
from seechange_mpi.io.bundle import (
    bundle_path,
    read_bundle,
    read_section,
    scan_exposure,
    section_shards,
    shard_folder,
    write_bundle,
)
from seechange_mpi.io.drafts import clean_leftovers
from seechange_mpi.io.raw import read_exposure_info, section_footprints
from seechange_mpi.model.errors import BadInput, TransientError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.provenance import ProvenanceRecord
from seechange_mpi.model.task import STEPS, ReferenceLink, SectionTask
from seechange_mpi.mpi.archiving import bring_inputs
from seechange_mpi.mpi.catalogs import catalog_spec, exposure_catalog, stars_per_section
from seechange_mpi.mpi.heartbeat import owner_name
from seechange_mpi.mpi.results import ExposureResult
from seechange_mpi.mpi.runlog import Kind, RunLog
from seechange_mpi.mpi.worklist import SectionPlan, plan_section
from seechange_mpi.pipeline.inputs import identify
from seechange_mpi.pipeline.top_level import Pipeline
from seechange_mpi.pipeline.tree import make_tree

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asks of a run."""

    first_step: str = STEPS[0]
    last_step: str = STEPS[-1]
    forced: bool = False
    """Redo from `first_step` on even what could be reused."""
    sections: tuple[str, ...] = ()
    report: bool = True


@dataclass(slots=True)
class Prepared:
    """An exposure ready to be worked on."""

    exposure: ExposureInfo
    camera: Camera
    tasks: dict[str, SectionTask]
    plans: dict[str, SectionPlan]
    records: dict[str, ProvenanceRecord]
    last_steps: dict[str, str]
    problems: list[str] = field(default_factory=list)
    stars: dict[str, int] = field(default_factory=dict)

    @property
    def bundle_provenance(self) -> str:
        """The provenance that names the bundle: the last process of the first section."""
        first = self.tasks[next(iter(self.tasks))]
        return list(first.provenances.values())[-1]

    def reused(self) -> list[str]:
        """Sections that are complete already."""
        return [s for s, p in self.plans.items() if p.complete]

    def todo(self) -> list[str]:
        """Sections that are not."""
        return [s for s, p in self.plans.items() if not p.complete]

    def steps_of(self, section: str) -> tuple[str, str]:
        """First and last step that are left to do for a section."""
        through = self.plans[section].reuse_through
        first = STEPS[STEPS.index(through) + 1] if through is not None else STEPS[0]
        return first, max(first, self.last_steps[section], key=STEPS.index)


T = TypeVar("T")
LOST = "the claim was lost to another job; its results are kept and nothing was committed"


class Stages:
    """The stages of an exposure on the database, the bundles, and whatever hands out work.

    Parameters
    ----------
    opened : opens database connections.
    source : where exposures come from.
    note : told what an operator should read.
    """

    def __init__(self, config: Config, opened: Callable[[], Connection], source: WorkSource, options: RunOptions,
                 note: Callable[[str], None] = lambda _text: None) -> None:
        self.config, self.opened, self.source, self.options, self.note = config, opened, source, options, note
        self.pipeline = Pipeline.from_settings(config.steps())
        self.owner = owner_name()
        self.catalog = catalog_spec(config)
        self.out_of_time: Callable[[], bool] = lambda: False
        """Asked between attempts at a commit."""
        self._tag_checked: set[frozenset[str]] = set()

        self.log = RunLog(None, 0)
        self.archive: Callable[[str], None] = lambda _identifier: None
        """Told of every committed exposure."""
        self.match: Callable[[str], object] | None = None
        """Told of it afterwards, to look its objects up in a catalogue; takes its time, and never fails."""

        self.brings_inputs = True
        """Bring shards that sections need back from the archive before they begin."""

    def claim(self) -> Claim | None:
        """Return the next exposure; None when there is none."""
        return self.source.claim(self.owner, self.config.settings.queue.lease_s)

    def give_back(self, claim: Claim, why: str) -> None:
        """Return an exposure to the source; what is durable is kept."""
        self._tell(lambda: self.source.release(claim, "given_back", {}, why), claim.identifier)

    def fail(self, claim: Claim, result: ExposureResult) -> None:
        """Tell the source that an exposure failed; what failed for a passing reason is given back instead."""
        first = result.message.splitlines()[0] if result.message else "failed"
        if result.passing:
            self.give_back(claim, first)
            return
        self._tell(lambda: self.source.fail(claim, first, counts_of(result)), claim.identifier)

    def prepare(self, claim: Claim, *, planning: bool = False) -> Prepared:
        """Find what the sections of an exposure need; a database that is away is waited for (see `_prepare`).

        Parameters
        ----------
        planning : nothing will be run, so that a tag without room for the provenances is no obstacle.
        """
        prepared = self._patiently(lambda: self._prepare(claim))
        if not planning:
            self._patiently(lambda: self.check_tag(prepared.records))
        return prepared

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, patience_s=self.config.settings.run.patience_s, stop=self.out_of_time, tell=self.note)

    def _prepare(self, claim: Claim) -> Prepared:
        """Read the header, find references, compute provenances, and see what is left to do.

        Raises
        ------
        BadInput
            The exposure is unreadable, or another one has its name.
        TransientError
            The database does not answer.
        """
        from seechange_mpi.db.exposures import check_identity

        if claim.token:
            self._raise_fence(claim)
        camera = load_camera(claim.instrument)
        exposure = read_exposure_info(claim.path, camera, claim.params)
        with self.opened() as conn:
            check_identity(conn, exposure.identifier, camera.name, exposure.mjd, claim.path)
        sections = self._sections(camera, exposure.mjd)
        filters = {s: camera.section(s).filter or exposure.filter for s in sections}
        footprints = section_footprints(exposure, camera)
        references = self._references(exposure, camera, filters, footprints)
        catalog = exposure_catalog(self.catalog, footprints, self.config, self.pipeline, self.opened)
        frames = self._calibration(exposure, camera, filters)
        shards = shard_folder(self.config.bundles, exposure.identifier)
        clean_leftovers(shards)
        clean_leftovers(shards.parent)
        found = scan_exposure(shards.parent)
        relative = self.pipeline.photcalibrator.pars.method == "relative"
        last = min(self.options.last_step, claim.through_step or STEPS[-1], key=STEPS.index)
        prepared = Prepared(exposure, camera, {}, {}, {}, {}, list(found.problems),
                            stars_per_section(catalog, footprints))
        settings = self.pipeline.settings()
        for section in sections:
            link = references.get(section)
            tree = make_tree(self.pipeline, camera, exposure, link.provenance_ids if link else None,
                             exposure.overrides, is_testing=self.config.settings.run.is_testing)
            prepared.records.update({r.id: r for r in tree.values()})
            calibration = frames[section]
            inputs = identify(calibration, catalog, link, relative_zero_point=relative)
            ids = {p: r.id for p, r in tree.items()}
            reachable = last if link else min(last, "photocal", key=STEPS.index)
            plan = plan_section(section, found.shards, ids, inputs, first_step=self.options.first_step,
                                last_step=reachable, forced=self.options.forced)
            prepared.plans[section], prepared.last_steps[section] = plan, reachable
            prepared.tasks[section] = SectionTask(
                exposure, section, camera, settings, ids, str(shards), calibration, catalog, link,
                str(plan.shard.path) if plan.shard else None, plan.reuse_through, inputs, self.options.first_step,
                last, claim.attempt)
        if self.brings_inputs and retrieval.is_active():
            bring_inputs(prepared, self.config.settings.archive.streams)
        return prepared

    def check_tag(self, records: dict[str, ProvenanceRecord]) -> None:
        """Refuse before anything is computed what the commit would refuse: see `db.tags.check_tag`."""
        from seechange_mpi.db.tags import check_tag

        tag, ids = self.config.settings.run.provenance_tag, frozenset(records)
        if tag and ids not in self._tag_checked:
            with self.opened() as conn:
                check_tag(conn, tag, records.values())
            self._tag_checked.add(ids)

    def _sections(self, camera: Camera, mjd: float) -> tuple[str, ...]:
        for s in self.options.sections:
            camera.section(s)
        return tuple(s for s in camera.section_ids_at(mjd) if not self.options.sections or s in self.options.sections)

    def _references(self, exposure: ExposureInfo, camera: Camera, filters: dict[str, str],
                    corners: dict[str, list[tuple[float, float]]]) -> dict[str, ReferenceLink]:
        from seechange_mpi.db.references import find_references

        footprints = {s: c for s, c in corners.items() if s in filters}
        chosen = self.config.settings.references
        with self.opened() as conn:
            return find_references(
                conn, footprints, instrument=camera.name, filters=filters, refset=chosen.refset,
                min_overlap=chosen.min_overlap, any_filter=self.pipeline.subtractor.pars.allow_other_filter,
                exclude=exposure.identifier)

    def _calibration(self, exposure: ExposureInfo, camera: Camera, filters: dict[str, str]
                     ) -> dict[str, dict[str, str]]:
        """Section -> kind -> path of its calibration frames."""
        from seechange_mpi.db.calibrators import choose_frames

        chosen = self.config.settings.calibrators
        with self.opened() as conn:
            return choose_frames(conn, camera, exposure, filters, self.config.settings.paths.calibration,
                                 source=chosen.source, sets=chosen.set, flat_types=chosen.flat_types,
                                 kinds=sorted(self.pipeline.preprocessor.kinds))

    def finish(self, claim: Claim, prepared: Prepared, result: ExposureResult, lost: Callable[[], bool]) -> None:
        """Bundle, commit, release; `result` says how it went.

        Parameters
        ----------
        lost : whether the claim has been taken over by another job meanwhile.
        """
        path = bundle_path(self.config.bundles, prepared.exposure.identifier, prepared.bundle_provenance)
        result.bundle = path
        fresh = bool(result.outcomes) or not is_whole(path)
        if fresh:
            with self._timed("bundle", claim.identifier, path):
                self._write_bundle(prepared, result, path)
        if lost():
            result.state = "given_back"
            result.message = LOST
            return
        try:
            with self._timed("commit", claim.identifier, path):
                unchanged = self._patiently(lambda: self._commit(claim, prepared, result))
        except TransientError as err:
            result.state, result.passing = "uncommitted", True
            result.message = f"{err}. The next run commits it, or: seechange-mpi db commit {path}"
            self.fail(claim, result)
            return
        result.state = state_of(prepared, result, nothing_new=unchanged and not result.outcomes)
        self._release(claim, prepared, result)
        self.archive(prepared.exposure.identifier)
        if self.match is not None:
            with self._timed("match", claim.identifier, path):
                self.match(prepared.exposure.identifier)
        if self.options.report and (fresh or not path.with_suffix(".html").is_file()):
            self._write_report(path, result)

    @contextmanager
    def _timed(self, kind: Kind, identifier: str, bundle: Path) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.log.event(kind, exposure=identifier, seconds=time.perf_counter() - started, bundle=str(bundle))

    def _write_bundle(self, prepared: Prepared, result: ExposureResult, path: Path) -> None:
        shards, failures = [], {}
        hashes: dict[str, str] = {}
        for section, plan in prepared.plans.items():
            outcome = result.outcomes.get(section)
            if outcome is None:
                assert plan.shard is not None
                shards.append(plan.shard.path)
            elif outcome.shard:
                shards.append(Path(prepared.tasks[section].shard_dir) / outcome.shard)
                hashes[outcome.shard] = outcome.shard_sha256
            else:
                failures[section] = outcome.report
        kept, known = kept_sections(path, prepared.plans)
        write_bundle(path, prepared.exposure, (known | prepared.records).values(), self.config.public(),
                     [*shards, *kept], failures, hashes)

    def _raise_fence(self, claim: Claim) -> None:
        """Say that work begins: from now on an older claim of this exposure cannot commit."""
        from seechange_mpi.db.commit import raise_fence

        with self.opened() as conn:
            raise_fence(conn, claim.identifier, claim.token)

    def _commit(self, claim: Claim, prepared: Prepared, result: ExposureResult) -> bool:
        """Commit the bundle; return whether everything was there already."""
        from seechange_mpi.db.commit import commit_bundle
        from seechange_mpi.db.linking import Linkage

        assert result.bundle is not None
        objects = self.config.settings.objects
        radius = objects.association_radius_arcsec or prepared.camera.association_radius_arcsec
        with self.opened() as conn:
            done = commit_bundle(conn, result.bundle, radius_arcsec=radius, token=claim.token,
                                 tag=self.config.settings.run.provenance_tag,
                                 max_new_objects=objects.max_new_per_exposure, how=Linkage.of(objects))
        result.new_objects, result.objects = done.new_objects, done.linked
        return done.unchanged

    def _release(self, claim: Claim, prepared: Prepared, result: ExposureResult) -> None:
        counts = counts_of(result)
        if result.failed_sections:
            failed = ", ".join(result.failed_sections)
            self._tell(lambda: self.source.fail(claim, f"sections failed: {failed}", counts), result.identifier)
            return
        usable = prepared.camera.section_ids_at(prepared.exposure.mjd)
        partial = is_partial(prepared, result) or len(prepared.tasks) < len(usable)
        status: ReleaseStatus = "partial" if partial else "done"
        self._tell(lambda: self.source.release(claim, status, counts), result.identifier)

    def _tell(self, call: Callable[[], None], identifier: str) -> None:
        """Tell the source; if it does not listen, the lease will run out by itself."""
        try:
            call()
        except Exception as err:  # noqa: BLE001 - results are safe; the lease expires
            self.note(f"{identifier}: the queue could not be told: {err}; the lease will expire")

    def _write_report(self, path: Path, result: ExposureResult) -> None:
        try:
            from seechange_mpi.report import write_report

            result.html = write_report([path], path.with_suffix(".html"))
        except Exception as err:  # noqa: BLE001 - a report is a convenience
            self.note(f"{result.identifier}: no HTML report: {type(err).__name__}: {err}")


def state_of(prepared: Prepared, result: ExposureResult, *, nothing_new: bool) -> str:
    """Word for how an exposure went."""
    if result.failed_sections:
        whole = len(result.failed_sections) == len(prepared.tasks)
        if whole:
            result.message = "every section failed"
        return "failed" if whole else "sections_failed"
    if nothing_new:
        return "nothing_to_do"
    return "partial" if is_partial(prepared, result) else "done"


def is_partial(prepared: Prepared, result: ExposureResult) -> bool:
    """Whether a section stopped, now or earlier, before the last step it could reach."""
    for section, plan in prepared.plans.items():
        outcome = result.outcomes.get(section)
        if outcome is not None:
            if outcome.status == "partial":
                return True
        elif plan.shard is not None:
            reachable = STEPS[-1] if prepared.tasks[section].reference else "photocal"
            if STEPS.index(plan.shard.completed_step) < STEPS.index(reachable):
                return True
    return False


def is_whole(path: Path) -> bool:
    """Whether a bundle is there and all its tables can be read; a damaged one is written again from its shards."""
    try:
        for section in read_bundle(path).section_ids:
            read_section(path, section, pixels=False)
    except BadInput:
        return False
    return True


def kept_sections(path: Path, asked: Container[str]) -> tuple[list[Path], dict[str, ProvenanceRecord]]:
    """Return shards and provenances of the sections of an existing bundle that this run was not asked for.

    A damaged bundle, or a shard that is gone, keeps nothing.
    """
    if not path.is_file():
        return [], {}
    try:
        info = read_bundle(path)
        named = section_shards(path)
    except BadInput:
        return [], {}
    others = [shard for section, shard in named.items() if section not in asked]
    whole = {s.path.name for s in scan_exposure(path.parent).shards} if others else set()
    kept = [shard for shard in others if shard.name in whole]
    return kept, {r.id: r for r in info.provenances} if kept else {}


def counts_of(result: ExposureResult) -> dict[str, int]:
    """Counts told to the source."""
    return {"sections": len(result.outcomes) + len(result.reused), "failed": len(result.failed_sections),
            "reused": len(result.reused)}

