"""Typed settings of everything that is not a pipeline step.

Step sections (``preprocessing`` … ``scoring``) are checked by the steps' own `Parameters` classes, which
live with the steps; here they stay plain mappings.
"""

from __future__ import annotations

from typing import Any, Literal

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.config.calibration import CalibrationSettings, CalibratorSettings
from seechange_mpi.config.history import ForcedPhotometrySettings, PositioningSettings
from seechange_mpi.config.parameters import Parameters, par

STEP_SECTIONS: tuple[str, ...] = (
    "preprocessing", "extraction", "subtraction", "detection", "cutting", "measuring", "scoring",
)  # fmt: skip
"""Configuration sections that belong to pipeline steps."""


class PathSettings(Parameters):
    """Where files lie. Relative paths are relative to the current folder."""

    section = "paths"
    root: str = par("seechange-data", "working folder: bundles and the embedded database", critical=False)
    bundles: str | None = par(None, "folder of bundles and shards; null = <root>/bundles", critical=False)
    calibration: str | None = par(None, "calibration frames, {calib_dir} in camera files", critical=False)


class DatabaseSettings(Parameters):
    """The science database."""

    section = "database"
    url: str = par("embedded", "'embedded' = a private PostgreSQL in <paths.root>/postgres, started when "
                               "needed; else postgresql://user@host/name", critical=False)
    bindir: str | None = par(None, "folder of initdb and pg_ctl for the embedded server; null = find one",
                             critical=False)
    connect_timeout_s: float = par(10.0, "time to wait for one connection", unit="s", critical=False, gt=0)
    attempts: int = par(3, "connection attempts before giving up", critical=False, ge=1)


class CameraSettings(Parameters):
    """Which camera the exposures come from."""

    section = "camera"
    name: str = par("simulated", "name of a shipped camera or path of a YAML file; --camera overrides it",
                    critical=False)


class CatalogSettings(Parameters):
    """Astrometric and photometric reference catalogue: a local file or folder, or a Gaia service."""

    section = "catalog"
    path: str | None = par(None, "FITS, Parquet, ECSV or CSV file, or a folder made by 'seechange-mpi catalog build'; "
                                 "null = none (see astrocal 'header', photocal 'relative')", critical=False)
    url: str | None = par(None, "in place of path: a Gaia service that answers POST /gaiarect/..., such as SeeChange's",
                          critical=False)
    url_timeout_s: float = par(5.0, "time to wait for an answer of the service", unit="s", critical=False, gt=0)
    url_attempts: int = par(5, "requests before giving up", critical=False, ge=1)
    cache: str | None = par(None, "folder of excerpts, one for each field; null = <paths.root>/catalog-cache",
                            critical=False)
    wait_s: float = par(120.0, "time to wait for another job that fetches the same region, before it is fetched here "
                               "as well", unit="s", critical=False, gt=0)
    min_mag: float | None = par(None, "leave out brighter stars (in G, else the catalogue's first band)", unit="mag",
                                critical=False)
    max_mag: float | None = par(None, "leave out fainter stars", unit="mag", critical=False)
    columns: dict[str, str] = par({}, "our name -> column of the file, for ra dec pmra pmdec parallax, their errors "
                                      "(ra_error ...), ruwe, ref_epoch and magnitudes; "
                                      "Gaia's own names are understood without it", critical=False)
    angle_unit: str = par("deg", "unit of ra and dec in the file: deg or rad", critical=False)
    units: dict[str, str] = par({}, "our name -> unit of its column, where the file does not tell it and it is not "
                                    "Gaia's (mas, mas/yr, mag); a flux density such as nJy becomes AB magnitudes",
                                critical=False)
    ref_epoch: float = par(2016.0, "epoch of the catalogue positions", unit="yr", critical=False)


class ReferenceSettings(Parameters):
    """How the reference of a section is chosen."""

    section = "references"
    refset: str = par("default", "set of references to choose from", critical=False)
    min_overlap: float = par(0.5, "least fraction of the section that a reference must cover", critical=False,
                             ge=0, le=1)


class ObjectSettings(Parameters):
    """How measurements become objects."""

    section = "objects"
    association_radius_arcsec: float | None = par(None, "largest distance of a measurement to its object; "
                                                        "null = the camera's", unit="arcsec", critical=False)
    matching: Literal["nearest", "likelihood"] = par(
        "nearest", "which object a measurement takes within the radius: the nearest, or the likeliest by separation "
                   "and errors of both (de Ruiter et al. 1977)", critical=False)
    error_floor_mas: float = par(30.0, "error of the astrometry that adds to those of measurement and object, for "
                                       "matching=likelihood", unit="mas", critical=False, gt=0)
    naming: Literal["position", "counter"] = par(
        "position", "names of new objects: position (SCM J100000.000+021200.00) or counter (SCM25a, SCM25b … SCM25ba: "
                    "year of the exposure that found it first, then a number in letters)", critical=False)
    name_prefix: str = par("SCM", "what names of new objects begin with: letters and digits", critical=False,
                           pattern="^[A-Za-z][A-Za-z0-9]*$")
    max_new_per_exposure: int = par(100_000, "refuse to commit an exposure that would make more new objects",
                                    critical=False, ge=1)
    crossmatch_catalog: str | None = par(
        None, "stars and galaxies near new objects are noted after the commit: FITS or Parquet file, or a folder made "
              "by 'seechange-mpi catalog build --sources', with ra, dec, id, mag, is_star; null = none", critical=False)
    crossmatch_radius_arcsec: float = par(20.0, "how near", unit="arcsec", critical=False, gt=0, le=600)


class QueueSettings(Parameters):
    """The local queue of exposures, kept in the database."""

    section = "queue"
    lease_s: float = par(600.0, "a claim not renewed for this long goes back to the queue", unit="s",
                         critical=False, gt=1)
    max_attempts: int = par(3, "claims of one exposure before it stays failed", critical=False, ge=1)


class RunSettings(Parameters):
    """The MPI run."""

    section = "run"
    mpiexec: str | None = par(None, "launcher for 'run -n N'; null = the one beside this Python, else on PATH",
                              critical=False)
    report: bool = par(True, "write an HTML report beside each bundle", critical=False)
    rank0_computes: bool | None = par(None, "whether rank 0 processes sections too; null = when there are not more "
                                            "ranks than sections", critical=False)
    step_timeout_s: float = par(900.0, "a step that takes longer is ended, and its section fails", unit="s",
                                critical=False, gt=0)
    step_grace_s: float = par(10.0, "time for it to react before its process is killed", unit="s", critical=False,
                              gt=0)
    memory_check: bool = par(True, "refuse to begin with more processes than the node's memory holds", critical=False)
    section_attempts: int = par(2, "tries of a section whose process died, or that met a passing trouble",
                                critical=False, ge=1)
    section_guess_s: float = par(60.0, "duration of a section before any was measured", unit="s", critical=False,
                                 gt=0)
    commit_guess_s: float = par(10.0, "time to bundle and commit an exposure before any was measured", unit="s",
                                critical=False, gt=0)
    leave_s: float = par(5.0, "kept at the end for giving claims back and leaving", unit="s", critical=False, gt=0)
    usr1_s: float = par(60.0, "time that is left after the signal USR1", unit="s", critical=False, gt=0)
    term_s: float = par(10.0, "time that is left after TERM, HUP or Ctrl-C; a second one ends at once", unit="s",
                        critical=False, gt=0)
    silence_s: float = par(120.0, "a rank at work that is not heard of for so long is lost, and the job ends", unit="s",
                           critical=False, gt=10)
    poll_s: float = par(10.0, "mean time between questions to an empty queue", unit="s", critical=False, gt=0)
    provenance_tag: str | None = par(None, "tag given to the provenances of this run; a tag has one provenance of "
                                           "each process, other parameters need another; null = none", critical=False)
    is_testing: bool = par(False, "these results are a test: they get provenances and objects of their own, apart from "
                                  "the real ones, and never become references", critical=False)
    patience_s: float = par(180.0, "how long a database or conductor may be away before work that needs it is put off",
                            unit="s", critical=False, ge=0)


class Settings(Parameters):
    """All settings; unknown sections and keys are errors."""

    paths: PathSettings = par(PathSettings(), "paths", critical=False)
    database: DatabaseSettings = par(DatabaseSettings(), "database", critical=False)
    camera: CameraSettings = par(CameraSettings(), "camera", critical=False)
    catalog: CatalogSettings = par(CatalogSettings(), "catalog", critical=False)
    calibrators: CalibratorSettings = par(CalibratorSettings(), "calibrators", critical=False)
    calibration: CalibrationSettings = par(CalibrationSettings(), "calibration", critical=False)
    references: ReferenceSettings = par(ReferenceSettings(), "references", critical=False)
    objects: ObjectSettings = par(ObjectSettings(), "objects", critical=False)
    positioning: PositioningSettings = par(PositioningSettings(), "positioning", critical=False)
    forcedphot: ForcedPhotometrySettings = par(ForcedPhotometrySettings(), "forcedphot", critical=False)
    queue: QueueSettings = par(QueueSettings(), "queue", critical=False)
    run: RunSettings = par(RunSettings(), "run", critical=False)
    archive: ArchiveSettings = par(ArchiveSettings(), "archive", critical=False)
    preprocessing: dict[str, Any] = par({}, "parameters of the step")
    extraction: dict[str, Any] = par({}, "parameters of the step")
    subtraction: dict[str, Any] = par({}, "parameters of the step")
    detection: dict[str, Any] = par({}, "parameters of the step")
    cutting: dict[str, Any] = par({}, "parameters of the step")
    measuring: dict[str, Any] = par({}, "parameters of the step")
    scoring: dict[str, Any] = par({}, "parameters of the step")
