"""Run the steps of one section: in order, timed, never letting an exception out, ending in a durable shard."""

from __future__ import annotations

import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property

from seechange_mpi.gpu_kernels.device import fallback_counts, reset_fallback_counts
from seechange_mpi.model.errors import AlgorithmError, BadInput, NoWork, SeeChangeError, StepTimeout
from seechange_mpi.model.products import Reference, SectionProducts, StoredSection
from seechange_mpi.model.task import STEPS, Outcome, ReferenceLink, SectionReport, SectionTask, StepRecord
from seechange_mpi.pipeline.badness import Judge, badness_of_failure, badness_of_products
from seechange_mpi.pipeline.inputs import raw_digest
from seechange_mpi.pipeline.metrics import StepMeter, begin_section, peak_rss_mb
from seechange_mpi.pipeline.section_store import SectionStore
from seechange_mpi.pipeline.top_level import Pipeline

FINALIZE = "finalize"
"""What comes after the steps: the products become durable."""

StepWatch = Callable[[str, StepRecord | None], None]
"""Told ``(step, None)`` when a step or `FINALIZE` begins, ``(step, record)`` when it ended. What it raises at the
beginning is raised in the step."""


def run_section(task: SectionTask, pipeline: Pipeline | None = None, rank: int = 0,
                watch: StepWatch | None = None, data: SectionStore | None = None) -> Outcome:
    """Process one section and return how it went.

    Every failure of a step ends in the report; the products made before it are stored all the same.

    Parameters
    ----------
    task : SectionTask
        Without ``shard_dir`` nothing is written.
    pipeline : Pipeline, optional
        Default: built from ``task.settings``.
    rank : int
        Rank of this process, for the report.
    watch : callable, optional
        Told of every step.
    data : SectionStore, optional
        Handed from step to step: its products up to ``task.reuse_through`` are kept, all others are made, and are in
        it afterwards. Default: a new one.
    """
    report = SectionReport(rank=rank, host=socket.gethostname(), start_time=_now(),
                           cluster=os.environ.get("SLURM_CLUSTER_NAME", ""))
    runner: _SectionRun | None = None
    is_bug = False
    started = time.perf_counter()
    reset_fallback_counts()
    begin_section()
    try:
        runner = _SectionRun(task, pipeline or Pipeline.from_settings(task.settings), report, watch, data)
        runner.run()
    except (SeeChangeError, StepTimeout, MemoryError) as err:
        _record_failure(report, err)
    except Exception as err:  # noqa: BLE001 - anything unforeseen fails this section only
        is_bug = True
        _record_failure(report, err)
    report.warnings += [f"GPU memory ran out: {n} {name}{'s' if n > 1 else ''} done on the CPU"
                        for name, n in fallback_counts().items()]
    shard = sha256 = ""
    products = runner.products if runner is not None else SectionProducts()
    report.bitflag |= badness_of_products(products)
    if runner is not None:
        report.finish_time = _now()
        try:
            shard, sha256 = runner.store()
        except (SeeChangeError, StepTimeout, OSError) as err:
            report.success = False
            if not report.error_type:
                _record_failure(report, err, step=FINALIZE)
            else:
                report.warnings.append(f"the shard could not be written: {err}")
    summary = summarize(products, task, time.perf_counter() - started) | {"bitflag": float(report.bitflag)}
    status = "failed" if not report.success else (report.caveat or "done")
    return Outcome(task.exposure.identifier, task.section_id, status, report, shard, summary, is_bug, sha256)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record_failure(report: SectionReport, err: BaseException, step: str = "") -> None:
    report.success = False
    report.error_step = step or report.error_step or "setup"
    report.error_type = type(err).__name__
    report.error_message = str(err) or type(err).__name__
    report.bitflag |= int(badness_of_failure(report.error_step, err))
    if not isinstance(err, AlgorithmError | BadInput):
        report.error_traceback = "".join(traceback.format_exception(err))


class _SectionRun:
    """State of one section while its steps run."""

    def __init__(self, task: SectionTask, pipeline: Pipeline, report: SectionReport,
                 watch: StepWatch | None = None, data: SectionStore | None = None) -> None:
        self.task = task
        self.watch = watch or (lambda _step, _record: None)
        self.pipeline = pipeline
        self.report = report
        self.data = data if data is not None else SectionStore(task.exposure, task.section_id)
        self.reused: str = ""
        self.judge = Judge(pipeline.preprocessor.pars.badness, pipeline.badness, pipeline.subtractor.pars.badness,
                           task.camera.pixel_scale_arcsec)
        self.data.inputs = dict(task.inputs)
        self.data.report = report
        if task.reuse_through and (task.resume_from or data is not None):
            self._resume(task.reuse_through)
        else:
            self.data.keep_through(None)

    @property
    def products(self) -> SectionProducts:
        """What has been made so far."""
        return self.data.products

    def _resume(self, through: str) -> None:
        from seechange_mpi.io.shard import read_shard

        data = self.data
        if self.task.resume_from:
            stored = read_shard(self.task.resume_from, pixels=True)
            data.products, data.shape, data.digests = stored.products, stored.shape, stored.digests
        else:
            data.load(through)
        data.keep_through(through)
        self.report.steps += [StepRecord(step, "reused") for step in STEPS[: STEPS.index(through) + 1]]
        self.reused = through
        self.report.completed_step = through

    def run(self) -> None:
        """Run the steps that are wanted and not yet made."""
        first = STEPS.index(self.reused) + 1 if self.reused else 0
        last = STEPS.index(self.task.last_step)
        for step in STEPS[first : last + 1]:
            try:
                self._run_step(step)
            except NoWork as caveat:
                self.report.caveat = caveat.caveat
                self.report.success = True
                self.report.error_step = ""
                return
        self.report.success = True
        self.report.error_step = ""
        if self.report.completed_step != STEPS[-1]:
            self.report.caveat = "partial"

    def _run_step(self, step: str) -> None:
        action: Callable[[], None] = getattr(self, f"_{step}")
        meter = StepMeter()
        self.report.error_step = step
        status = "failed"
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                self.watch(step, None)
                action()
                self.judge.after(step, self.products, self._reference if step == "subtraction" else None,
                                 catalog_stars=self._catalog_stars if step == "astrocal" else None)
            status = "done"
            self.report.completed_step = step
        except NoWork:
            status = "skipped"
            raise
        except AlgorithmError:
            # what was made before the failure is judged all the same
            self.judge.after(step, self.products)
            raise
        finally:
            self.report.warnings += sorted({f"{step}: {w.message}" for w in caught})
            record = meter.record(step, status)
            self.report.steps.append(record)
            self.watch(step, record)

    def _preprocessing(self) -> None:
        task, preprocessor = self.task, self.pipeline.preprocessor
        raw = preprocessor.read(task.exposure, task.camera, task.section_id, task.calibration)
        self.data.shape, self.data.digests = raw.shape, {"raw": raw_digest(raw)}
        self.products.image = preprocessor.run(raw, task.exposure, task.calibration)

    def _extraction(self) -> None:
        p = self.products
        assert p.image is not None
        p.background = self.pipeline.backgrounder.run(p.image)
        p.sources, p.psf = self.pipeline.extractor.extract(p.image, p.background)

    @cached_property
    def _catalog(self) -> object:
        from seechange_mpi.io.catalog import read_catalog
        from seechange_mpi.pipeline.wcs_tools import footprint_cone

        image = self.products.image
        if not self.task.catalog or image is None:
            return None
        margin = self.pipeline.astrocalibrator.catalog_margin_arcsec
        return read_catalog(self.task.catalog, *footprint_cone(image.header_wcs, image.shape, margin))

    @property
    def _catalog_stars(self) -> int | None:
        """Stars of the catalogue around the section; None: no catalogue was given."""
        return None if self._catalog is None else len(self._catalog)  # type: ignore[arg-type]

    def _astrocal(self) -> None:
        p = self.products
        assert p.image is not None
        assert p.sources is not None
        bits = p.sources.bitflag, p.sources.upstream_bitflag
        p.wcs, p.sources = self.pipeline.astrocalibrator.run(p.image, p.sources, self._catalog)  # type: ignore[arg-type]
        p.sources.bitflag, p.sources.upstream_bitflag = bits

    def _photocal(self) -> None:
        p = self.products
        assert p.image is not None
        assert p.background is not None
        assert p.psf is not None
        assert p.sources is not None
        assert p.wcs is not None
        p.zp = self.pipeline.photcalibrator.run(
            p.image, p.background, p.psf, p.sources, p.wcs,
            self._catalog, self.task.camera, self._reference)  # type: ignore[arg-type]

    @cached_property
    def _reference(self) -> Reference | None:
        link = self.task.reference
        if link is None:
            return None
        if link.instrument != self.task.camera.name:
            raise BadInput(link.path, f"reference of section {self.task.section_id}",
                           f"an exposure of camera {self.task.camera.name}", f"one of {link.instrument}")
        self.data.reference = load_reference(link)
        return self.data.reference

    def _subtraction(self) -> None:
        if self._reference is None:
            raise NoWork("no_reference", "no reference covers this section; register one with "
                                         "'seechange-mpi refs add' and run again")
        self.data.digests["reference"] = self._reference.content_hash
        self.products.sub = self.pipeline.subtractor.run(self.products, self._reference)

    def _detection(self) -> None:
        p = self.products
        assert p.sub is not None
        assert p.psf is not None
        assert p.wcs is not None
        p.detections = self.pipeline.detector.detect(p.sub, p.psf.fwhm_pixels, p.wcs.header)

    def _cutting(self) -> None:
        p = self.products
        assert p.sub is not None
        assert p.detections is not None
        p.cutouts = self.pipeline.cutter.run(p, p.sub, p.detections)

    def _measuring(self) -> None:
        p = self.products
        assert p.sub is not None
        assert p.detections is not None
        assert p.cutouts is not None
        assert self._reference is not None
        p.measurements = self.pipeline.measurer.run(p, p.sub, p.detections, p.cutouts, self._reference)

    def _scoring(self) -> None:
        p = self.products
        assert p.sub is not None
        assert p.cutouts is not None
        assert p.measurements is not None
        p.scores = [self.pipeline.scorer.run(p.measurements, p.cutouts, p.sub)]

    def store(self) -> tuple[str, str]:
        """Write the shard; return its name and sha256. What that costs comes too late for the shard's own report.

        Without a folder for it nothing is written.
        """
        from seechange_mpi.io.shard import store_shard

        task = self.task
        made = {"preprocessing": self.products.image is not None, "extraction": self.products.sources is not None,
                "subtraction": self.products.sub is not None, "detection": self.products.detections is not None,
                "cutting": self.products.cutouts is not None,
                "measuring": self.products.measurements is not None, "scoring": bool(self.products.scores)}
        ids = {process: pid for process, pid in task.provenances.items() if made.get(process, True)}
        self.data.provenance_ids = dict(ids)
        if not task.shard_dir:
            return "", ""
        meter, status = StepMeter(), "failed"
        try:
            self.watch(FINALIZE, None)
            path, sha256 = store_shard(task.shard_dir, task.exposure, task.section_id, self.products, self.report,
                                       ids, task.inputs, self.data.shape, self.data.digests)
            status = "done"
        finally:
            record = meter.record(FINALIZE, status)
            self.report.steps.append(record)
            self.watch(FINALIZE, record)
        return path.name, sha256


def load_reference(link: ReferenceLink) -> Reference:
    """Read a reference section with its pixels.

    Raises
    ------
    BadInput
        The file is unreadable or holds no calibrated image.
    """
    from seechange_mpi.io.bundle import read_section

    stored: StoredSection = read_section(link.path, link.section_id, pixels=True)
    p = stored.products
    if (p.image is None or p.background is None or p.psf is None or p.sources is None
            or p.wcs is None or p.zp is None):
        raise BadInput(link.path, f"reference section {link.section_id}",
                       "image, background, PSF, sources, WCS and zero point",
                       f"a section completed through '{stored.report.completed_step or 'nothing'}'")
    return Reference(p.image, p.background, p.psf, p.sources, p.wcs, p.zp, link.image_id,
                     link.exposure_identifier, dict(link.provenance_ids), stored.path, stored.image_hash)


def summarize(products: SectionProducts, task: SectionTask, seconds: float) -> dict[str, float]:
    """Return the figures of the closing table."""
    p = products
    out: dict[str, float] = {"seconds": seconds, "rss_mb": peak_rss_mb()}
    if p.psf is not None:
        out["fwhm_arcsec"] = p.psf.fwhm_pixels * task.camera.pixel_scale_arcsec
    if p.sources is not None:
        out["n_sources"] = len(p.sources.table)
    if p.wcs is not None:
        out["astro_rms_mas"] = p.wcs.rms_mas
    if p.zp is not None:
        out["zp"] = p.zp.zp
        out["lim_mag"] = p.zp.lim_mag
    if p.detections is not None:
        out["n_detections"] = len(p.detections.table)
    if p.measurements is not None:
        out["n_measurements"] = len(p.measurements.table)
        out["n_good"] = int((~p.measurements.table["is_bad"]).sum())
    return out
