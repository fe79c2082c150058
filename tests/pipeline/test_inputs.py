"""What may be reused: by provenance and by identity of inputs, never by file times."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.task import PROCESS_OF_STEP, STEPS, ReferenceLink
from seechange_mpi.pipeline.inputs import file_identity, identify, inputs_of_step, reusable_through

IDS = {process: process.upper() for process in set(PROCESS_OF_STEP.values())}
INPUTS = {"calibration.flat": "flat.fits:1", "catalog": "cat:1", "reference": "ref1"}


def test_identity_follows_content_not_time(tmp_path):
    file = tmp_path / "flat.fits"
    file.write_bytes(b"one")
    first = file_identity(file)
    os.utime(file, (1, 1))
    assert file_identity(file) == first
    file.write_bytes(b"two")
    assert file_identity(file) != first
    with pytest.raises(BadInput, match=r"gone\.fits"):
        file_identity(tmp_path / "gone.fits")


def test_relative_zero_point_depends_on_the_reference():
    link = ReferenceLink("p", "S1", "id1", "e", "r", "cam", {})
    assert "photocal.reference" not in identify({}, None, link)
    assert identify({}, None, None, relative_zero_point=True)["photocal.reference"] == "none"
    with_link = identify({}, None, link, relative_zero_point=True)
    assert "photocal.reference" in inputs_of_step(with_link, "photocal")
    assert "photocal.reference" not in inputs_of_step(with_link, "astrocal")


@pytest.mark.parametrize(("name", "last"), [
    ("calibration.flat", None), ("catalog", "extraction"), ("reference", "photocal"),
])
def test_a_changed_input_redoes_its_step_and_all_after(name, last):
    wanted = INPUTS | {name: "other"}
    assert reusable_through(IDS, INPUTS, "scoring", IDS, wanted) == last


def test_a_new_reference_resumes_at_subtraction():
    stored_ids = {k: v for k, v in IDS.items() if k in ("preprocessing", "extraction")}
    stored_inputs = {k: v for k, v in INPUTS.items() if k != "reference"}
    assert reusable_through(stored_ids, stored_inputs, "photocal", IDS, INPUTS) == "photocal"


@given(completed=st.sampled_from(STEPS), changed=st.sampled_from([None, *sorted(IDS)]))
def test_reuse_ends_before_the_first_change(completed, changed):
    wanted = IDS if changed is None else IDS | {changed: "OTHER"}
    last = reusable_through(IDS, INPUTS, completed, wanted, INPUTS)
    expected = list(STEPS[: STEPS.index(completed) + 1])
    if changed is not None:
        keep = [s for s in expected if PROCESS_OF_STEP[s] != changed]
        expected = [s for s in keep if all(STEPS.index(s) < STEPS.index(c)
                                           for c in STEPS if PROCESS_OF_STEP[c] == changed)]
    assert last == (expected[-1] if expected else None)
