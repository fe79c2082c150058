"""What rank 0 sends to a worker, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seechange_mpi.model.exposure import ExposureInfo

if TYPE_CHECKING:
    from seechange_mpi.instruments.camera import Camera

STEPS: tuple[str, ...] = (
    "preprocessing", "extraction", "astrocal", "photocal",
    "subtraction", "detection", "cutting", "measuring", "scoring",
)  # fmt: skip
"""Steps of a section in order; names of ``run --from`` and ``--through``."""

PROCESS_OF_STEP: dict[str, str] = {
    **{s: s for s in STEPS}, "astrocal": "extraction", "photocal": "extraction",
}  # fmt: skip
"""Process whose provenance a step belongs to (astrocal and photocal are substeps of extraction)."""


@dataclass(frozen=True, slots=True)
class ReferenceLink:
    """Where the reference of a section lies.

    Attributes
    ----------
    path : str
        Bundle or shard file (absolute).
    section_id, image_id, exposure_identifier, filter, instrument : str
    provenance_ids : dict
        ``{"preprocessing": id, "extraction": id}`` of the reference itself.
    """

    path: str
    section_id: str
    image_id: str
    exposure_identifier: str
    filter: str
    instrument: str
    provenance_ids: dict[str, str]


@dataclass(frozen=True, slots=True)
class SectionTask:
    """One section of one exposure: small, frozen, picklable.

    Attributes
    ----------
    exposure : ExposureInfo
    section_id : str
    camera : Camera
        The camera's definition (a pydantic model, picklable).
    settings : dict
        Resolved ``pipeline`` settings: step name -> parameters (see `pipeline.top_level.Pipeline`).
    provenances : dict
        Process -> provenance id; "subtraction" and later are absent without a reference.
    calibration : dict
        Kind (``bias``, ``flat``, ``badpixels`` ...) -> absolute path of the frame of this section.
    catalog : dict or None
        What `read_catalog` takes: the exposure's excerpt with its identity (or the configured catalogue where the
        exposure has no position); None if there is none.
    reference : ReferenceLink or None
    shard_dir : str
        Folder for the finished shard (absolute).
    resume_from : str or None
        A durable shard of this section whose products may be reused.
    reuse_through : str or None
        Last step whose products in that shard are still valid; the section continues after it.
    inputs : dict
        Name -> identity of everything that goes in besides the exposure (`pipeline.inputs`).
    first_step, last_step : str
        Steps asked for.
    attempt : int
    """

    exposure: ExposureInfo
    section_id: str
    camera: Camera
    settings: dict[str, Any]
    provenances: dict[str, str]
    shard_dir: str
    calibration: dict[str, str] = field(default_factory=dict)
    catalog: dict[str, Any] | None = None
    reference: ReferenceLink | None = None
    resume_from: str | None = None
    reuse_through: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    first_step: str = STEPS[0]
    last_step: str = STEPS[-1]
    attempt: int = 1


@dataclass(slots=True)
class StepRecord:
    """Cost and fate of one step."""

    step: str
    status: str
    """``done``, ``reused``, ``failed`` or ``skipped``."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    rss_mb: float = 0.0
    """High-water resident memory while the step ran (of the process so far where the kernel keeps one mark only)."""
    gpu_mb: float = 0.0
    """Most of CuPy's memory pool that was in use while the step ran."""
    read_mb: float = 0.0
    written_mb: float = 0.0
    """What the process read and wrote through system calls meanwhile."""


@dataclass(slots=True)
class SectionReport:
    """How a section went; stored in shard, bundle and database."""

    success: bool = False
    caveat: str = ""
    """``no_reference``, ``partial`` (stopped before the last step on request) or empty."""
    completed_step: str = ""
    """Last step whose products are durable."""
    error_step: str = ""
    error_type: str = ""
    error_message: str = ""
    error_traceback: str = ""
    warnings: list[str] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    rank: int = 0
    host: str = ""
    start_time: str = ""
    finish_time: str = ""
    bitflag: int = 0
    """Badness bits of all products, and of why the section failed."""
    cluster: str = ""
    """Name that Slurm gives the cluster; empty elsewhere."""


@dataclass(slots=True)
class Outcome:
    """A worker's answer: always sent, success or failure. Pixels stay in the shard."""

    exposure_identifier: str
    section_id: str
    status: str
    """``done``, ``no_reference``, ``partial`` or ``failed``."""
    report: SectionReport
    shard: str = ""
    """File name (no folder) of the durable shard; empty when nothing could be written."""
    summary: dict[str, float] = field(default_factory=dict)
    """Figures of the closing table: fwhm_arcsec, zp, lim_mag, astro_rms_mas, n_sources,
    n_detections, n_measurements, n_good, bitflag, seconds, rss_mb."""
    is_bug: bool = False
    """The failure was an unforeseen exception (exit code 1)."""
    shard_sha256: str = ""
    """Of the bytes of the shard, computed while it was written."""
