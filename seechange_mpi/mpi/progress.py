"""What a person sees while a run goes on: a live bar on a terminal, plain timestamped lines elsewhere."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from seechange_mpi.model.task import Outcome
from seechange_mpi.mpi.comm import announced_size
from seechange_mpi.mpi.results import ExposureResult

TERMINAL = "SEECHANGE_TERMINAL"
"""Set to 1 by the launcher when its own output is a terminal."""

_WORDS = {"done": "done", "no_reference": "done, no reference yet", "partial": "stopped as asked", "failed": "FAILED"}


class Progress:
    """Progress of rank 0, written to `stream` (default: standard output)."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._total = self._done = 0

    def _live(self) -> bool:
        # Open MPI gives rank 0 a terminal of its own: only the launcher knows whether a person is looking
        if announced_size() is not None and os.environ.get(TERMINAL) != "1":
            return False
        return not self._quiet and self._stream.isatty()

    def note(self, text: str) -> None:
        """Write one line."""
        if self._quiet:
            return
        line = text if self._live() else f"{datetime.now(UTC):%H:%M:%S} {text}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def exposure_started(self, identifier: str, todo: int, reused: int, workers: int, problems: list[str]) -> None:
        """An exposure begins."""
        for p in problems:
            self.note(f"passing over a damaged shard: {p}")
        self._total, self._done = todo, 0
        if todo == 0:
            return
        kept = f", {reused} already complete" if reused else ""
        n = min(workers, todo)
        self.note(f"{identifier}: {todo} sections on {n} process{'es' if n > 1 else ''}{kept}")
        if self._live():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                            transient=True)
            self._bar.start()
            self._task = self._bar.add_task(identifier, total=todo)

    def section_done(self, outcome: Outcome) -> None:
        """A section answered."""
        self._done += 1
        text = f"  {outcome.section_id}: {_WORDS.get(outcome.status, outcome.status)}"
        text += f" in {outcome.summary.get('seconds', 0):.1f} s ({self._done}/{self._total})"
        if outcome.status == "failed":
            text += f" at {outcome.report.error_step}: {outcome.report.error_message}"
        self.note(text)
        if self._bar is not None:
            self._bar.advance(self._task)

    def exposure_done(self, result: ExposureResult) -> None:
        """An exposure ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        words = {"nothing_to_do": "nothing left to do", "done": "done", "partial": "stopped as asked: partial",
                 "sections_failed": "partly failed", "failed": "FAILED", "uncommitted": "NOT COMMITTED",
                 "given_back": "given back"}
        self.note(f"{result.identifier}: {words[result.state]} ({result.seconds:.1f} s)")
