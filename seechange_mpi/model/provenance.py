"""Provenance ids, computed exactly as SeeChange computes them.

The id is the first 20 characters of base32(sha256(text)); the text is ``json.dumps`` with sorted keys and
default separators of ``{process, parameters, upstream_hashes, code_version}``, code_version being
"major.minor" and upstream_hashes the upstream ids in ascending order.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

CODE_VERSIONS: dict[str, str] = {
    "acquire_exposure": "0.1.0",
    "calibration": "0.1.0",
    "preprocessing": "0.1.1",
    "extraction": "0.1.0",
    "referencing": "0.1.0",
    "subtraction": "0.1.0",
    "detection": "0.1.0",
    "cutting": "0.1.0",
    "measuring": "0.1.0",
    "scoring": "0.1.0",
    "positioning": "0.1.0",
    "forcedphot": "0.1.0",
}
"""Version (major.minor.patch) of the code of each process; the patch does not enter the id."""

UPSTREAM_STEPS: dict[str, tuple[str, ...]] = {
    "acquire_exposure": (),
    "preprocessing": ("acquire_exposure",),
    "extraction": ("preprocessing",),
    "referencing": (),
    "subtraction": ("preprocessing", "extraction", "referencing"),
    "detection": ("subtraction",),
    "cutting": ("detection",),
    "measuring": ("cutting",),
    "scoring": ("measuring",),
}
"""Upstream processes of each process; ``referencing`` stands for the reference's own
preprocessing and extraction provenances."""


@dataclass(frozen=True, slots=True)
class ProvenanceRecord:
    """One row of the provenance table."""

    id: str
    process: str
    code_version: str
    parameters: Mapping[str, Any]
    upstream_ids: tuple[str, ...]


def _native(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a provenance parameter of type {type(value).__name__} cannot be stored")


def canonical_json(value: Any) -> str:
    """JSON text with sorted keys, default separators and numpy, UUID and dates made native."""
    return json.dumps(value, sort_keys=True, default=_native)


def provenance_id(
    process: str, parameters: Mapping[str, Any], upstream_ids: Iterable[str], code_version: str
) -> str:
    """Return the 20-character id of a provenance.

    Parameters
    ----------
    process : str
    parameters : mapping
        The critical parameters, defaults included.
    upstream_ids : iterable of str
        Ids of the upstream provenances, in any order.
    code_version : str
        "major.minor" or "major.minor.patch"; the patch is ignored.
    """
    text = canonical_json({
        "process": process,
        "parameters": dict(parameters),
        "upstream_hashes": sorted(upstream_ids),
        "code_version": ".".join(code_version.split(".")[:2]),
    })
    return base64.b32encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()[:20]


def ids_of_tests(records: Iterable[ProvenanceRecord]) -> frozenset[str]:
    """Return the ids of those provenances that are of a test: their parameters say so, or they follow one that is."""
    left = list(records)
    found = {r.id for r in left if r.parameters.get("is_testing") is True}
    more = found
    while more:
        more = {r.id for r in left if not more.isdisjoint(r.upstream_ids)} - found
        found = found | more
    return frozenset(found)


def make_record(
    process: str, parameters: Mapping[str, Any], upstream_ids: Iterable[str]
) -> ProvenanceRecord:
    """Return the record of a process with this code's version."""
    version = CODE_VERSIONS[process]
    upstream = tuple(sorted(upstream_ids))
    return ProvenanceRecord(
        provenance_id(process, parameters, upstream, version), process, version, dict(parameters), upstream
    )
