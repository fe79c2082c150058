"""What is left to do: from provenance and inputs alone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from seechange_mpi.io.shard import ShardInfo
from seechange_mpi.model.task import PROCESS_OF_STEP, STEPS
from seechange_mpi.mpi.worklist import plan_section

IDS = {p: p.upper() for p in PROCESS_OF_STEP.values()}
INPUTS = {"calibration.flat": "f:1", "catalog": "c:1", "reference": "r1"}


def shard(completed="scoring", ids=IDS, inputs=INPUTS, *, success=True, caveat="", digest="aa", section="S1"):
    path = Path(f"{section}_{digest}.h5")
    return ShardInfo(path, section, dict(ids), dict(inputs), completed, success, caveat, digest)


def plan(*shards, **kwargs):
    return plan_section("S1", shards, IDS, INPUTS, **kwargs)


def test_nothing_durable_means_everything_to_do():
    p = plan()
    assert (p.shard, p.reuse_through, p.complete) == (None, None, False)
    assert p.describe("scoring") == "preprocessing … scoring"


def test_a_whole_shard_is_complete_and_other_sections_do_not_count():
    assert plan(shard()).complete
    assert not plan(shard(section="S2")).complete


def test_a_failed_shard_resumes_after_its_last_good_step():
    p = plan(shard("astrocal", success=False))
    assert (p.complete, p.reuse_through) == (False, "astrocal")
    assert "photocal … scoring" in p.describe("scoring")


def test_a_shard_without_reference_is_complete_until_there_is_one():
    ids = {k: v for k, v in IDS.items() if k in ("preprocessing", "extraction")}
    inputs = {k: v for k, v in INPUTS.items() if k != "reference"}
    waiting = shard("photocal", ids, inputs, caveat="no_reference")
    alone = plan_section("S1", [waiting], ids, inputs, last_step="photocal")
    assert alone.complete
    p = plan(waiting)
    assert (p.complete, p.reuse_through) == (False, "photocal")


def test_forcing_a_step_keeps_what_lies_before_it():
    p = plan(shard(), first_step="detection", forced=True)
    assert (p.complete, p.reuse_through) == (False, "subtraction")
    assert plan(shard(), first_step="preprocessing", forced=True).reuse_through is None


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.booleans(), st.booleans(), st.integers(0, 99)), max_size=6))
def test_the_choice_is_the_deepest_and_does_not_depend_on_the_order(items):
    shards = [shard(step, IDS if same else IDS | {"extraction": "OTHER"}, success=success, digest=f"{n:02d}{k}")
              for k, (step, success, same, n) in enumerate(items)]
    first, second = plan(*shards), plan(*reversed(shards))
    assert first == second
    depths = [STEPS.index(s.completed_step) if s.provenance_ids == IDS else 0 for s in shards]
    assert (first.reuse_through is None) == (not shards)
    if shards:
        assert STEPS.index(first.reuse_through) == max(depths)
    whole = [s for s in shards if s.success and s.completed_step == STEPS[-1] and s.provenance_ids == IDS]
    assert first.complete == bool(whole)
