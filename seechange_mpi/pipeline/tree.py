"""The provenances of a run, computed once on rank 0."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from seechange_mpi.instruments.camera import Camera
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.provenance import UPSTREAM_STEPS, ProvenanceRecord, canonical_json, make_record
from seechange_mpi.pipeline.top_level import Pipeline


def camera_digest(camera: Camera) -> str:
    """Return a short digest of a camera's definition: other gains or geometry give other products."""
    return hashlib.sha256(canonical_json(camera.model_dump(mode="json")).encode()).hexdigest()[:12]


def make_tree(
    pipeline: Pipeline,
    camera: Camera,
    exposure: ExposureInfo,
    reference_ids: Mapping[str, str] | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    is_testing: bool = False,
) -> dict[str, ProvenanceRecord]:
    """Return process -> provenance of everything that can be computed.

    Parameters
    ----------
    pipeline : Pipeline
        Its steps' critical parameters are taken as they are now.
    camera, exposure
        The camera's definition enters through a digest in the preprocessing parameters.
    reference_ids : mapping or None
        ``preprocessing`` and ``extraction`` provenance ids of the reference, which stand in for
        ``referencing``; None: there is no reference and the tree ends with extraction.
    overrides : mapping, optional
        Header values given by the user in place of the file's.
    is_testing : bool
        The products are those of a test: from preprocessing on they have provenances of their own.
    """
    own: dict[str, dict[str, Any]] = {
        "acquire_exposure": {"instrument": exposure.instrument, "method": "local",
                             "proc_type": "reduced" if camera.reduced else "raw"},
    }
    preprocessing = pipeline.critical_parameters("preprocessing") | {"camera": camera_digest(camera)}
    if overrides:
        preprocessing["exposure_overrides"] = dict(overrides)
    if is_testing:
        preprocessing["is_testing"] = True
    own["preprocessing"] = preprocessing
    tree: dict[str, ProvenanceRecord] = {}
    for process, upstream in UPSTREAM_STEPS.items():
        if process == "referencing":
            continue
        ids: list[str] = []
        for name in upstream:
            if name == "referencing":
                ids += [(reference_ids or {})[k] for k in ("preprocessing", "extraction")]
            else:
                ids.append(tree[name].id)
        parameters = own.get(process) or pipeline.critical_parameters(process)
        tree[process] = make_record(process, parameters, set(ids))
        if process == "extraction" and reference_ids is None:
            break
    return tree
