"""Products of one section in memory: the object that a pipeline hands from step to step.

`data_store.DataStore` is one that also looks into bundles and the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import (
    PSF,
    Background,
    Cutouts,
    Detections,
    Image,
    Measurements,
    Reference,
    Scores,
    SectionProducts,
    SourceList,
    SubImage,
    WorldCoordinates,
    ZeroPoint,
)
from seechange_mpi.model.provenance import ProvenanceRecord
from seechange_mpi.model.task import PROCESS_OF_STEP, STEPS, SectionReport

ProvenanceLike = str | ProvenanceRecord | Mapping[str, Any]
"""A provenance: its id, its record, a mapping with ``process``, ``parameters`` and upstream ids, or a tree: process ->
id or record."""

PARTS_OF_STEP: dict[str, tuple[str, ...]] = {
    "preprocessing": ("image",),
    "extraction": ("background", "psf", "sources"),
    "astrocal": ("wcs",),
    "photocal": ("zp",),
    "subtraction": ("sub",),
    "detection": ("detections",),
    "cutting": ("cutouts",),
    "measuring": ("measurements",),
    "scoring": ("scores",),
}
"""Names of products (attributes of `SectionProducts`) that a step makes."""

PROCESS_OF_PRODUCT: dict[str, str] = {
    name: PROCESS_OF_STEP[step] for step, names in PARTS_OF_STEP.items() for name in names}
"""Process whose provenance a product has."""


def parts_through(step: str) -> tuple[str, ...]:
    """Return the names of all products made up to and including a step."""
    return tuple(name for s in STEPS[: STEPS.index(step) + 1] for name in PARTS_OF_STEP[s])


class SectionStore:
    """Products of one section.

    ``get_…(provenance=None)`` returns a product, or None where there is none (of that provenance).

    Parameters
    ----------
    exposure, section_id : what the products are of.
    products : what is there to begin with.

    Attributes
    ----------
    products : SectionProducts, what is in memory.
    provenance_ids : process -> id of what is in memory; a process that is not named has no known provenance.
    reference : Reference or None, what was subtracted.
    inputs, digests : identities of what went in (see `StoredSection`).
    shape : (ny, nx) of the section.
    report : SectionReport or None, of the last run.
    """

    def __init__(self, exposure: ExposureInfo, section_id: str, products: SectionProducts | None = None) -> None:
        self.exposure, self.section_id = exposure, section_id
        self.products = products or SectionProducts()
        self.provenance_ids: dict[str, str] = {}
        self.reference: Reference | None = None
        self.inputs: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.shape = (0, 0)
        self.report: SectionReport | None = None

    def has(self, name: str) -> bool:
        """Return whether a product (an attribute of `SectionProducts`) is in memory."""
        if name not in PROCESS_OF_PRODUCT:
            raise ConfigError(f"there is no product '{name}'; there are: {', '.join(PROCESS_OF_PRODUCT)}")
        return bool(getattr(self.products, name) not in (None, []))

    def set(self, name: str, product: Any, provenance: str = "") -> None:
        """Put a product in; with `provenance`, the id of its process is that from now on."""
        self.has(name)
        setattr(self.products, name, product)
        if provenance:
            self.provenance_ids[PROCESS_OF_PRODUCT[name]] = provenance

    def load(self, through: str) -> None:
        """Bring all products up to and including a step into memory; here they must be there."""
        lacking = [name for name in parts_through(through) if not self.has(name)]
        if lacking:
            raise ConfigError(f"section {self.section_id}: {', '.join(lacking)} must be there to continue after "
                              f"{through}; begin with an earlier step")

    def keep_through(self, step: str | None) -> None:
        """Forget the products of all steps after `step`; None: of all."""
        kept = parts_through(step) if step else ()
        old = self.products
        self.products = SectionProducts(**{name: getattr(old, name) for name in kept})

    def get(self, name: str, provenance: ProvenanceLike | None = None) -> Any:
        """Return a product by its name, or None."""
        if not self.has(name):
            return None
        process = PROCESS_OF_PRODUCT[name]
        if provenance is not None and provenance_id_of(provenance, process) != self.provenance_ids.get(process):
            return None
        return getattr(self.products, name)

    def get_exposure(self) -> ExposureInfo:
        """Return what is known of the exposure."""
        return self.exposure

    def get_report(self) -> SectionReport | None:
        """Return how the section went."""
        return self.report

    def get_image(self, provenance: ProvenanceLike | None = None) -> Image | None:
        """Return the preprocessed image."""
        return self.get("image", provenance)  # type: ignore[no-any-return]

    def get_background(self, provenance: ProvenanceLike | None = None) -> Background | None:
        """Return the background of the image."""
        return self.get("background", provenance)  # type: ignore[no-any-return]

    def get_psf(self, provenance: ProvenanceLike | None = None) -> PSF | None:
        """Return the PSF of the image."""
        return self.get("psf", provenance)  # type: ignore[no-any-return]

    def get_sources(self, provenance: ProvenanceLike | None = None) -> SourceList | None:
        """Return the sources of the image."""
        return self.get("sources", provenance)  # type: ignore[no-any-return]

    def get_wcs(self, provenance: ProvenanceLike | None = None) -> WorldCoordinates | None:
        """Return the astrometric solution."""
        return self.get("wcs", provenance)  # type: ignore[no-any-return]

    def get_zp(self, provenance: ProvenanceLike | None = None) -> ZeroPoint | None:
        """Return the zero point."""
        return self.get("zp", provenance)  # type: ignore[no-any-return]

    def get_subtraction(self, provenance: ProvenanceLike | None = None) -> SubImage | None:
        """Return the difference image."""
        return self.get("sub", provenance)  # type: ignore[no-any-return]

    def get_detections(self, provenance: ProvenanceLike | None = None) -> Detections | None:
        """Return the detections in the difference image."""
        return self.get("detections", provenance)  # type: ignore[no-any-return]

    def get_cutouts(self, provenance: ProvenanceLike | None = None) -> Cutouts | None:
        """Return the stamps around the detections."""
        return self.get("cutouts", provenance)  # type: ignore[no-any-return]

    def get_measurements(self, provenance: ProvenanceLike | None = None) -> Measurements | None:
        """Return the measurements of the detections."""
        return self.get("measurements", provenance)  # type: ignore[no-any-return]

    def get_measurement_set(self, provenance: ProvenanceLike | None = None) -> Measurements | None:
        """Return the measurements of the detections, under SeeChange's name."""
        return self.get_measurements(provenance)

    def get_scores(self, provenance: ProvenanceLike | None = None, algorithm: str | None = None) -> Scores | None:
        """Return the real-bogus scores of an algorithm; None: of the first by name."""
        found: list[Scores] = self.get("scores", provenance) or []
        return next((s for s in found if algorithm in (None, s.algorithm)), None)

    def get_reference(self, provenance: ProvenanceLike | None = None) -> Reference | None:
        """Return what was subtracted; `provenance` is that of the subtraction."""
        if provenance is not None and provenance_id_of(provenance, "subtraction") != self.provenance_ids.get(
                "subtraction"):
            return None
        return self.reference


def provenance_id_of(provenance: ProvenanceLike, process: str) -> str:
    """Return the id that a provenance, in whatever form it is given, has for a process.

    Raises
    ------
    ConfigError
        A mapping is neither a provenance of that process nor a tree that names it.
    """
    from seechange_mpi.model.provenance import CODE_VERSIONS, provenance_id

    if isinstance(provenance, str):
        return provenance
    if isinstance(provenance, ProvenanceRecord):
        if provenance.process != process:
            raise ConfigError(f"provenance {provenance.id} is one of {provenance.process}, not of {process}")
        return provenance.id
    if process in provenance and "parameters" not in provenance:
        inner = provenance[process]
        return provenance_id_of(inner, process)
    for key in ("id", "_id"):
        if key in provenance:
            return str(provenance[key])
    if "parameters" not in provenance or provenance.get("process", process) != process:
        raise ConfigError(f"a provenance of {process} is an id, a record, or a mapping with its parameters and "
                          f"upstream_ids; found one with: {', '.join(map(str, provenance)) or 'nothing'}")
    upstream = provenance.get("upstream_ids", provenance.get("upstreams", ()))
    return provenance_id(process, provenance["parameters"], [str(u) for u in upstream],
                         str(provenance.get("code_version", CODE_VERSIONS[process])))
