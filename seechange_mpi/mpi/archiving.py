"""The archive in a run: committed exposures go up in a thread that nobody waits for, missing shards come back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from seechange_mpi.config.resolve import Config
from seechange_mpi.io.bundle import section_shards
from seechange_mpi.io.retrieval import bring_back
from seechange_mpi.model.errors import BadInput, SeeChangeError, TransientError

if TYPE_CHECKING:
    from seechange_mpi.db.archiving import Archivist
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.mpi.stages import Prepared

LATER = "seechange-mpi archive push uploads what is missing"
_LOOK_S = 0.2


class ArchiveThread:
    """Uploads exposures one after the other; whatever goes wrong is said, and never fails one.

    Parameters
    ----------
    note : told what an operator should read.
    """

    def __init__(self, config: Config, opened: Callable[[], Connection], note: Callable[[str], None]) -> None:
        self.config, self._open, self.note = config, opened, note
        self._closed = False
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waiting: list[str] = []
        self._told = False
        self._archivist: Archivist | None = None
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    def add(self, identifier: str) -> None:
        """Have a committed exposure uploaded."""
        self._waiting.append(identifier)
        self._todo.put(identifier)

    def close(self, left_s: Callable[[], float]) -> None:
        """Wait until everything is uploaded or the time is up; say what is left.

        Parameters
        ----------
        left_s : time that is left for it [s].
        """
        if self._closed:
            return
        self._todo.put(None)
        while self._thread.is_alive() and left_s() > 0:
            self._thread.join(_LOOK_S)
        self._closed = True
        if self._waiting and self._thread.is_alive():
            self.note(f"not archived yet: {', '.join(self._waiting)}; {LATER}")

    def _opened(self) -> Connection:
        """Open a connection; none any more once the run has ended, which would start an embedded server again."""
        if self._closed:
            raise TransientError("the run has ended")
        return self._open()

    def _run(self) -> None:
        while (identifier := self._todo.get()) is not None:
            began = time.perf_counter()
            try:
                self._push(identifier, began)
            except SeeChangeError as err:
                self._fail(identifier, str(err))
            except Exception as err:  # noqa: BLE001 - the exposure is committed, whatever happens here
                self._fail(identifier, f"{type(err).__name__}: {err}")
            self._waiting.remove(identifier)

    def _push(self, identifier: str, began: float) -> None:
        from seechange_mpi.db.archiving import Archivist

        if self._archivist is None:
            self._archivist = Archivist(self.config, self._opened)
        done = self._archivist.push(identifier)
        if done.problems:
            more = f" (and {len(done.problems) - 1} more)" if len(done.problems) > 1 else ""
            self._fail(identifier, done.problems[0] + more)
        elif done.files:
            seconds = time.perf_counter() - began
            self.note(f"{identifier}: archived, {done.files} files, {done.size / 1e6:.1f} MB in {seconds:.1f} s")

    def _fail(self, identifier: str, why: str) -> None:
        if self._closed:
            return
        self.note(f"{identifier}: committed, but not archived: {why}" + ("" if self._told else f"; {LATER}"))
        self._told = True


def bring_inputs(prepared: Prepared, streams: int) -> None:
    """Bring back the shards that the sections left to do continue from or are compared with, several at once.

    What the archive does not have either, or only damaged, is left to the section to tell.
    """
    wanted: set[Path] = set()
    for section in prepared.todo():
        plan, link = prepared.plans[section], prepared.tasks[section].reference
        if plan.shard is not None and plan.reuse_through is not None:
            wanted.add(plan.shard.path)
        if link is not None:
            with suppress(BadInput):
                wanted.update(p for s, p in section_shards(link.path).items() if s == link.section_id)

    def bring(path: Path) -> str:
        try:
            bring_back(path)
        except BadInput as err:
            return str(err)
        return ""

    missing = [p for p in sorted(wanted) if not p.exists()]
    if missing:
        with ThreadPoolExecutor(streams) as pool:
            prepared.problems += [problem for problem in pool.map(bring, missing) if problem]
