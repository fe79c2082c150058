"""How exposures and the whole run went, and the exit code that says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from seechange_mpi.model.errors import ExitCode
from seechange_mpi.model.task import Outcome


@dataclass(slots=True)
class ExposureResult:
    """One exposure of a run.

    Attributes
    ----------
    state : ``done``, ``nothing_to_do``, ``partial`` (stopped early on request), ``sections_failed``, ``failed``,
        ``uncommitted`` or ``given_back``.
    outcomes : by section, of what was processed now;  reused : sections that were complete already.
    message : why it failed, in one line.
    """

    identifier: str
    state: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    bundle: Path | None = None
    html: Path | None = None
    message: str = ""
    is_bug: bool = False
    passing: bool = False
    """It failed for a reason that may pass, such as a database that was away: the next run takes it up again."""
    new_objects: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed_sections(self) -> list[str]:
        """Sections that failed."""
        return [k for k, o in self.outcomes.items() if o.status == "failed"]

    def forget_details(self) -> None:
        """Keep what a run must still know of an exposure long over: how it ended, and what went wrong."""
        kept = {k: o for k, o in self.outcomes.items() if o.status == "failed" or o.is_bug}
        unreferenced = next((k for k, o in self.outcomes.items() if o.status == "no_reference"), None)
        if unreferenced is not None:
            kept[unreferenced] = self.outcomes[unreferenced]
        self.outcomes, self.reused, self.new_objects, self.objects = kept, [], {}, {}


def exit_code(results: Iterable[ExposureResult], *, trouble: bool = False) -> ExitCode:
    """Return the first that applies of 1, 4, 3, 5, else 0.

    Parameters
    ----------
    trouble : the source of exposures did not answer, so that the run ended early.
    """
    results = list(results)
    if any(r.is_bug or any(o.is_bug for o in r.outcomes.values()) for r in results):
        return ExitCode.BUG
    if trouble or any(r.state in ("failed", "uncommitted") for r in results):
        return ExitCode.EXPOSURE_FAILED
    if any(r.state == "sections_failed" or r.failed_sections for r in results):
        return ExitCode.SECTIONS_FAILED
    if any(r.state == "given_back" for r in results):
        return ExitCode.DRAINED
    return ExitCode.OK


def causes(results: Iterable[ExposureResult]) -> list[str]:
    """Return one line per thing that went wrong."""
    lines = []
    for r in results:
        if r.message:
            lines.append(f"{r.identifier}: {r.message}")
        for section, o in r.outcomes.items():
            if o.status == "failed":
                kind = " (a bug: please report it with the traceback below)" if o.is_bug else ""
                lines.append(f"{r.identifier} {section}: {o.report.error_step}: {o.report.error_type}: "
                             f"{o.report.error_message}{kind}")
                if o.is_bug:
                    lines += [f"    {t}" for t in o.report.error_traceback.strip().splitlines()[-6:]]
    return lines
