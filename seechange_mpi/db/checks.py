"""What a bundle must say of itself before its rows are made: it may come from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from seechange_mpi.io.bundle import BundleInfo
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import StoredSection
from seechange_mpi.model.provenance import ProvenanceRecord, ids_of_tests, provenance_id

_IMAGE = ("preprocessing", "extraction")
_SUB = ("subtraction", "detection", "cutting", "measuring", "scoring")


def check_provenances(path: str | Path, records: Iterable[ProvenanceRecord]) -> None:
    """Refuse provenances whose ids are not those of their parameters: they were changed or damaged.

    Raises
    ------
    BadInput
        Names the first.
    """
    for r in records:
        right = provenance_id(r.process, r.parameters, r.upstream_ids, r.code_version)
        if right != r.id:
            raise BadInput(path, f"provenance of {r.process}", f"{right}, the id of its parameters",
                           f"{r.id}: the file was changed or is damaged (seechange-mpi bundle validate)")


def check_bundle(info: BundleInfo, sections: Iterable[StoredSection]) -> None:
    """Refuse a bundle whose provenances are wrong, or whose sections do not say what made them.

    Raises
    ------
    BadInput
        Names section and process.
    """
    check_provenances(info.path, info.provenances)
    known = {r.id for r in info.provenances}
    sections = list(sections)
    if "acquire_exposure" not in {r.process for r in info.provenances}:
        raise BadInput(info.path, "provenances", "one of acquire_exposure", "none")
    for s in sections:
        p, where = s.products, f"section {s.section_id}"
        needed = (_IMAGE if p.zp is not None else ()) + (_SUB if p.scores else ())
        lacking = [process for process in needed if s.provenance_ids.get(process) not in known]
        if lacking:
            raise BadInput(info.path, where, f"a provenance of {', '.join(lacking)} that is in the bundle",
                           ", ".join(s.provenance_ids.get(x, "none") for x in lacking))
        if p.scores and not _is_uuid(s.inputs.get("reference", "")):
            raise BadInput(info.path, where, "the id of its reference image", s.inputs.get("reference", "none"))
    of_tests = ids_of_tests(info.provenances)
    if len({s.provenance_ids["measuring"] in of_tests for s in sections if s.products.scores}) > 1:
        raise BadInput(info.path, "sections", "those of a test or real ones", "both")


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
