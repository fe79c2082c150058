"""Provenance ids equal SeeChange's."""

from datetime import datetime
from uuid import UUID

import numpy as np
import pytest

from seechange_mpi.model.provenance import make_record, provenance_id

EXPOSURE = {"instrument": "DECam", "method": "download", "proc_type": "raw"}
PREPROCESSING = {"calibset": "externally_supplied", "flattype": "externally_supplied",
                 "preprocessing": "internal", "steps_required": ["overscan", "linearity", "flat", "fringe"]}


def test_reference_vectors():
    exposure = provenance_id("acquire_exposure", EXPOSURE, [], "0.1")
    assert exposure == "6JS3XBTYW6JQ7WLB63HH"
    assert provenance_id("preprocessing", PREPROCESSING, [exposure], "0.1") == "Q6PAJHPFOC5XOLTIVFGS"
    changed = PREPROCESSING | {"test_parameter": "test_value"}
    assert provenance_id("preprocessing", changed, [exposure], "0.1") == "JGZHA57GFJG6DRDAJXWG"
    ptf = provenance_id("acquire_exposure", EXPOSURE | {"instrument": "PTF"}, [], "0.1")
    assert provenance_id("preprocessing", changed, [ptf], "0.1").startswith("NJSXRT")


def test_patch_version_and_order_of_upstreams_do_not_matter():
    a = provenance_id("x", {}, ["B", "A"], "1.2.3")
    assert a == provenance_id("x", {}, ["A", "B"], "1.2")
    assert a != provenance_id("x", {}, ["A"], "1.2")


def test_native_values():
    plain = provenance_id("x", {"n": 3, "t": "2020-01-01T00:00:00", "u": str(UUID(int=5))}, [], "0.1")
    rich = provenance_id("x", {"n": np.int64(3), "t": datetime(2020, 1, 1), "u": UUID(int=5)}, [], "0.1")
    assert plain == rich
    with pytest.raises(TypeError):
        provenance_id("x", {"n": object()}, [], "0.1")


def test_record_carries_the_full_version():
    record = make_record("preprocessing", PREPROCESSING, ["6JS3XBTYW6JQ7WLB63HH"])
    assert record.id == "Q6PAJHPFOC5XOLTIVFGS"
    assert record.code_version == "0.1.1"
