"""Rerun a section and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seechange_mpi import __version__
from seechange_mpi.model.products import SectionProducts
from seechange_mpi.model.task import SectionReport
from seechange_mpi.pipeline.section_store import PARTS_OF_STEP, SectionStore, parts_through
from seechange_mpi.replay.compare import Difference, compare_products
from seechange_mpi.replay.inputs import Places, Recipe, recipe_of, step_before


@dataclass(slots=True)
class Replayed:
    """How a section compares.

    Attributes
    ----------
    steps : what was rerun.
    differences : everything that is not identical.
    notes : what could not be checked, or is to be known.
    """

    section_id: str
    steps: tuple[str, ...]
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """All differences are within the tolerances."""
        return all(d.within for d in self.differences)


def replay_section(bundle: str | Path, section_id: str, steps: Sequence[str] = (), places: Places | None = None
                   ) -> Replayed:
    """Rerun a section of a bundle, or single steps of it on what is stored of those before, and compare.

    Nothing is written.

    Raises
    ------
    BadInput, ConfigError
        See `inputs.recipe_of`.
    """
    recipe = recipe_of(Path(bundle).absolute(), section_id, steps, places or Places())
    out = Replayed(section_id, recipe.steps)
    if recipe.unknown:
        out.notes.append(f"not checked, as the bundle's version did not store it: {', '.join(recipe.unknown)}")
    if recipe.info.code_version != __version__:
        out.notes.append(f"written by version {recipe.info.code_version}, rerun by {__version__}")
    if steps:
        for step in recipe.steps:
            _replay_step(recipe, step, out)
    else:
        data = SectionStore(recipe.task.exposure, section_id)
        recipe.pipeline.run(recipe.task, data)
        out.differences += compare_products(recipe.stored.products, data.products, parts_through(recipe.steps[-1]))
        out.differences += _compare_reports(recipe.stored.report, data.report, recipe.steps[-1])
    return out


def _replay_step(recipe: Recipe, step: str, out: Replayed) -> None:
    """Rerun one step on what is stored of those before it."""
    before = step_before(step)
    # fresh objects: badness is written into them
    kept = {name: _copied(getattr(recipe.stored.products, name)) for name in parts_through(before)} if before else {}
    data = SectionStore(recipe.task.exposure, recipe.task.section_id, SectionProducts(**kept))
    data.shape, data.digests = recipe.stored.shape, dict(recipe.stored.digests)
    task = replace(recipe.task, first_step=step, last_step=step, reuse_through=before)
    recipe.pipeline.run(task, data)
    # astrocal gives the sources of extraction their positions on the sky
    filled = ("sources.ra", "sources.dec")
    names = PARTS_OF_STEP[step] + (("sources",) if step == "astrocal" else ())
    out.differences += compare_products(recipe.stored.products, data.products, names,
                                        ignore=filled if step == "extraction" else ())
    out.differences += _compare_reports(recipe.stored.report, data.report, step)


def _copied(product: Any) -> Any:
    if isinstance(product, list):
        return [replace(p) for p in product]
    return None if product is None else replace(product)


def _compare_reports(stored: SectionReport, new: SectionReport | None, through: str) -> list[Difference]:
    """Whether the section, or the step, failed then and now."""
    assert new is not None
    then = (stored.error_step, stored.error_type) if stored.error_step == through else ("", "")
    now = (new.error_step, new.error_type) if not new.success else ("", "")
    if then == now:
        return []
    said = [f"failed at {s} with {t}" if s else "went well" for s, t in (then, now)]
    return [Difference("report", f"it {said[0]}, now it {said[1]}"
                       + (f": {new.error_message.splitlines()[0]}" if now[0] else ""), False)]
