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
        self._tasks: dict[str, Any] = {}
        self._open: dict[str, list[int]] = {}

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

    def exposure_started(self, identifier: str, todo: int, reused: int, processes: int, problems: list[str]) -> None:
        """An exposure begins."""
        for p in problems:
            self.note(f"passing over a damaged shard: {p}")
        if todo == 0:
            return
        self._open[identifier] = [0, todo]
        kept = f", {reused} already complete" if reused else ""
        n = min(processes, todo)
        self.note(f"{identifier}: {todo} sections on {n} process{'es' if n > 1 else ''}{kept}")
        if self._live():
            if self._bar is None:
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bar

                self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                TimeElapsedColumn(), transient=True)
                self._bar.start()
            self._tasks[identifier] = self._bar.add_task(identifier, total=todo)

    def section_done(self, outcome: Outcome) -> None:
        """A section answered for good."""
        count = self._open.setdefault(outcome.exposure_identifier, [0, 0])
        count[0] += 1
        of = f"{outcome.exposure_identifier} " if len(self._open) > 1 else ""
        text = f"  {of}{outcome.section_id}: {_WORDS.get(outcome.status, outcome.status)}"
        text += f" in {outcome.summary.get('seconds', 0):.1f} s ({count[0]}/{count[1]})"
        if outcome.status == "failed":
            text += f" at {outcome.report.error_step}: {outcome.report.error_message}"
        self.note(text)
        if self._bar is not None and outcome.exposure_identifier in self._tasks:
            self._bar.advance(self._tasks[outcome.exposure_identifier])

    def exposure_done(self, result: ExposureResult) -> None:
        """An exposure ended."""
        self._open.pop(result.identifier, None)
        if self._bar is not None:
            if result.identifier in self._tasks:
                self._bar.remove_task(self._tasks.pop(result.identifier))
            if not self._open:
                self._bar.stop()
                self._bar = None
        words = {"nothing_to_do": "nothing left to do", "done": "done", "partial": "stopped as asked: partial",
                 "sections_failed": "partly failed", "failed": "FAILED", "uncommitted": "NOT COMMITTED",
                 "given_back": "given back"}
        self.note(f"{result.identifier}: {words[result.state]} ({result.seconds:.1f} s)")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
