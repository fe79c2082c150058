"""The `Pipeline`: every step with its parameters, from the configuration file or from keywords.

>>> pipeline = Pipeline(extraction={"sources": {"threshold": 4}}, detection={"threshold": 6})
>>> pipeline.extractor.pars.threshold
4.0
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seechange_mpi.config.settings import STEP_SECTIONS
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.model.task import Outcome, SectionTask
from seechange_mpi.pipeline.astrocal import AstroCalibrator
from seechange_mpi.pipeline.backgrounding import Backgrounder
from seechange_mpi.pipeline.badness import ExtractionBadness
from seechange_mpi.pipeline.cutting import Cutter
from seechange_mpi.pipeline.extraction import Detector
from seechange_mpi.pipeline.measuring import Measurer
from seechange_mpi.pipeline.photocal import PhotCalibrator
from seechange_mpi.pipeline.preprocessing import Preprocessor
from seechange_mpi.pipeline.scoring import Scorer
from seechange_mpi.pipeline.subtraction import Subtractor

if TYPE_CHECKING:
    from seechange_mpi.pipeline.section_store import SectionStore

EXTRACTION_PARTS: tuple[str, ...] = ("sources", "bg", "wcs", "zp", "badness")
"""Sub-sections of ``extraction``: they share one provenance."""


def merge(base: Mapping[str, Any], new: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `base` with `new` merged over it, key by key."""
    out = copy.deepcopy(dict(base))
    for key, value in (new or {}).items():
        if isinstance(value, Mapping) and isinstance(out.get(key), dict):
            out[key] = merge(out[key], value)
        else:
            out[key] = copy.deepcopy(value)
    return out


class Pipeline:
    """All steps of a section, ready to run.

    Parameters
    ----------
    preprocessing, extraction, subtraction, detection, cutting, measuring, scoring : mapping, optional
        Parameters that override the configuration file (``Config.get()``). ``extraction`` has the parts
        ``sources``, ``bg``, ``wcs``, ``zp`` and ``badness``.

    Attributes
    ----------
    preprocessor, backgrounder, extractor, astrocalibrator, photcalibrator, subtractor, detector, cutter,
    measurer, scorer : the steps; their ``pars`` may be changed until they run.
    badness : ExtractionBadness, limits beyond which products of extraction are marked as doubtful; those of images and
        differences are ``preprocessor.pars.badness`` and ``subtractor.pars.badness``.
    """

    def __init__(
        self,
        preprocessing: Mapping[str, Any] | None = None,
        extraction: Mapping[str, Any] | None = None,
        subtraction: Mapping[str, Any] | None = None,
        detection: Mapping[str, Any] | None = None,
        cutting: Mapping[str, Any] | None = None,
        measuring: Mapping[str, Any] | None = None,
        scoring: Mapping[str, Any] | None = None,
    ) -> None:
        from seechange_mpi.config.resolve import Config

        given = {"preprocessing": preprocessing, "extraction": extraction, "subtraction": subtraction,
                 "detection": detection, "cutting": cutting, "measuring": measuring, "scoring": scoring}
        file = Config.get().steps()
        self._build({name: merge(file.get(name, {}), given[name]) for name in STEP_SECTIONS})

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Pipeline:
        """Build a pipeline from resolved settings alone; no file is read."""
        new = cls.__new__(cls)
        new._build(settings)
        return new

    def _build(self, settings: Mapping[str, Any]) -> None:
        unknown = set(settings) - set(STEP_SECTIONS)
        if unknown:
            raise ConfigError(f"no such step: {', '.join(sorted(unknown))}; there are: {', '.join(STEP_SECTIONS)}")
        extraction = settings.get("extraction") or {}
        unknown = set(extraction) - set(EXTRACTION_PARTS)
        if unknown:
            raise ConfigError(f"extraction.{min(unknown)}: no such part; there are: "
                              f"{', '.join(EXTRACTION_PARTS)}")
        part = {name: extraction.get(name) or {} for name in EXTRACTION_PARTS}
        step = {name: settings.get(name) or {} for name in STEP_SECTIONS}
        self.preprocessor = Preprocessor(**step["preprocessing"])
        self.extractor = Detector(**part["sources"])
        self.backgrounder = Backgrounder(**part["bg"])
        self.astrocalibrator = AstroCalibrator(**part["wcs"])
        self.photcalibrator = PhotCalibrator(**part["zp"])
        self.badness = ExtractionBadness(**part["badness"])
        self.subtractor = Subtractor(**step["subtraction"])
        self.detector = Detector(**{"subtraction": True, **step["detection"]})
        self.cutter = Cutter(**step["cutting"])
        self.measurer = Measurer(**step["measuring"])
        self.scorer = Scorer(**step["scoring"])

    def critical_parameters(self, process: str) -> dict[str, Any]:
        """Return the parameters of a process that enter its provenance, as the steps have them now."""
        if process == "extraction":
            return {"sources": self.extractor.pars.critical(), "bg": self.backgrounder.pars.critical(),
                    "wcs": self.astrocalibrator.pars.critical(), "zp": self.photcalibrator.pars.critical(),
                    "badness": self.badness.critical()}
        steps: dict[str, Any] = {
            "preprocessing": self.preprocessor, "subtraction": self.subtractor, "detection": self.detector,
            "cutting": self.cutter, "measuring": self.measurer, "scoring": self.scorer}
        parameters: dict[str, Any] = steps[process].pars.critical()
        return parameters

    def settings(self) -> dict[str, Any]:
        """Return the complete settings of all steps: `from_settings` of them gives an equal pipeline."""
        return {
            "preprocessing": self.preprocessor.pars.model_dump(),
            "extraction": {"sources": self.extractor.pars.model_dump(), "bg": self.backgrounder.pars.model_dump(),
                           "wcs": self.astrocalibrator.pars.model_dump(),
                           "zp": self.photcalibrator.pars.model_dump(), "badness": self.badness.model_dump()},
            "subtraction": self.subtractor.pars.model_dump(),
            "detection": self.detector.pars.model_dump(),
            "cutting": self.cutter.pars.model_dump(),
            "measuring": self.measurer.pars.model_dump(),
            "scoring": self.scorer.pars.model_dump(),
        }

    def run(self, task: SectionTask, data: SectionStore | None = None) -> Outcome:
        """Process one section with this pipeline's parameters; see `pipeline.section.run_section`.

        Parameters
        ----------
        data : SectionStore, optional
            Has the products afterwards, a `data_store.DataStore` for instance.
        """
        from seechange_mpi.pipeline.section import run_section

        return run_section(task, self, data=data)
