"""What is left to do for a section, from what is durable: by provenance and inputs, never by rank or file time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seechange_mpi.io.shard import ShardInfo
from seechange_mpi.model.task import STEPS
from seechange_mpi.pipeline.inputs import reusable_through


@dataclass(frozen=True, slots=True)
class SectionPlan:
    """Decision for one section.

    Attributes
    ----------
    section_id : str
    shard : ShardInfo or None
        The durable shard to keep (`complete`) or to continue from.
    reuse_through : str or None
        Last step whose products are kept.
    complete : bool
        Nothing is left to do.
    """

    section_id: str
    shard: ShardInfo | None
    reuse_through: str | None
    complete: bool

    def describe(self, last_step: str) -> str:
        """Say it in words."""
        if self.complete:
            return "complete"
        if self.reuse_through is None:
            return f"{STEPS[0]} … {last_step}"
        following = STEPS[STEPS.index(self.reuse_through) + 1]
        return f"{following} … {last_step} (the rest is reused)"


def plan_section(
    section_id: str, shards: Iterable[ShardInfo], wanted_ids: Mapping[str, str], wanted_inputs: Mapping[str, str], *,
    first_step: str = STEPS[0], last_step: str = STEPS[-1], forced: bool = False,
) -> SectionPlan:
    """Choose the shard that saves most work.

    Parameters
    ----------
    shards : durable shards of this section (others are passed over).
    wanted_ids, wanted_inputs : provenance ids and input identities of the products wanted now.
    first_step : str
        With `forced`, this step and all after it are done again even if they could be reused.
    last_step : str
        Last step that can be done now (``photocal`` when there is no reference).
    """
    last = STEPS.index(last_step)
    limit = STEPS.index(first_step) - 1 if forced else last
    candidates = []
    for shard in shards:
        if shard.section_id != section_id:
            continue
        through = reusable_through(shard.provenance_ids, shard.inputs, shard.completed_step, wanted_ids, wanted_inputs)
        if through is None or min(STEPS.index(through), limit) < 0:
            continue
        # of equals, one whose every product is wanted is kept as it is, and the one that went furthest (a run that
        # is asked to stop early never takes away what is there); the content hash makes the choice unique
        whole = shard.success and shard.completed_step == through
        candidates.append((min(STEPS.index(through), limit), whole, STEPS.index(through), shard.content_hash, shard))
    if not candidates:
        return SectionPlan(section_id, None, None, False)
    depth, whole, _, _, best = max(candidates, key=lambda c: c[:4])
    return SectionPlan(section_id, best, STEPS[depth], depth >= last and whole)
