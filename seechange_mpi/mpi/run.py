"""One batch run on rank 0: everything is put together here."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seechange_mpi.model.task import STEPS
from seechange_mpi.mpi.inject import Fault
from seechange_mpi.mpi.status import lost_ranks

_TRACE_S = 10.0
"""The trace is only written where so much time is left; ``seechange-mpi logs --trace`` makes it later."""

if TYPE_CHECKING:
    from seechange_mpi.conductor_client.protocol import WorkSource
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.mpi.comm import Communicator
    from seechange_mpi.mpi.compute import ComputeProcess
    from seechange_mpi.mpi.coordinator import Coordinator
    from seechange_mpi.mpi.deadline import Deadline
    from seechange_mpi.mpi.stages import RunOptions
    from seechange_mpi.mpi.stopping import StopRequest


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks of a run; see ``seechange-mpi run --help``."""

    exposures: tuple[Path, ...]
    camera: str
    first_step: str | None = None
    last_step: str = STEPS[-1]
    sections: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    max_exposures: int | None = None
    end: float | None = None
    """When the run must be over (seconds since 1970)."""
    max_idle_s: float = 0.0
    faults: tuple[Fault, ...] = ()
    report: bool = True

    @property
    def options(self) -> RunOptions:
        """What concerns the single exposure."""
        from seechange_mpi.mpi.stages import RunOptions

        return RunOptions(self.first_step or STEPS[0], self.last_step, self.first_step is not None, self.sections,
                          self.report)


def run_batch(config: Config, opened: Callable[[], Connection], source: WorkSource, comm: Communicator,
              compute: ComputeProcess, stop: StopRequest, deadline: Deadline, request: Request
              ) -> Coordinator:
    """Claim and process exposures; return the coordinator, which tells how they went and what ended the run.

    Parameters
    ----------
    compute : rank 0's own compute process, started; stopped here if it is not wanted.
    """
    from seechange_mpi import __version__
    from seechange_mpi.conductor_client.patience import PatientSource
    from seechange_mpi.io.drafts import clean_leftovers
    from seechange_mpi.model.errors import ExitCode
    from seechange_mpi.mpi.archiving import ArchiveThread
    from seechange_mpi.mpi.coordinator import Coordinator, Limits
    from seechange_mpi.mpi.heartbeat import Heartbeats
    from seechange_mpi.mpi.host import SectionHost
    from seechange_mpi.mpi.launcher import tell_run_folder
    from seechange_mpi.mpi.messages import Setup
    from seechange_mpi.mpi.observer import Observer
    from seechange_mpi.mpi.prediction import Predictor
    from seechange_mpi.mpi.progress import Progress
    from seechange_mpi.mpi.results import exit_code
    from seechange_mpi.mpi.runlog import RunLog, run_folder
    from seechange_mpi.mpi.scatter import Crew
    from seechange_mpi.mpi.stages import Stages
    from seechange_mpi.mpi.trace import write_trace

    settings = config.settings.run
    folder = run_folder(config.root, os.environ.get("SLURM_JOB_ID"))
    for older in (config.root / "runs", *(config.root / "runs").glob("*/")):
        clean_leftovers(older)
    log = RunLog(folder, 0)
    log.event("start", ranks=comm.size, version=__version__)
    tell_run_folder(folder)
    progress = Progress()
    setup = Setup(str(folder), settings.step_timeout_s, settings.step_grace_s, request.faults,
                  pulse_s=max(5.0, comm.size / 100), patience_s=settings.term_s + 20.0)
    own = None
    if _rank0_computes(settings.rank0_computes, comm.size, request):
        own = SectionHost(compute, setup, log, 0)
    else:
        compute.stop()
    if settings.memory_check:
        _check_memory(request, comm.size, own is not None)
    crew = Crew(comm, setup, own)
    observer = Observer(log, progress, len(crew.slots), folder)
    patient = PatientSource(source, settings.patience_s, lambda: stop.number is not None or deadline.left_s() < 2.0,
                            stop_release=lambda: deadline.left_s() < 0.5, tell=observer.note)
    stages = Stages(config, opened, patient, request.options, observer.note)
    stages.out_of_time = lambda: deadline.left_s() < 2.0
    stages.log = log
    if config.settings.objects.crossmatch_catalog:
        from seechange_mpi.db.crossmatch import AfterCommit

        stages.match = AfterCommit(config, opened, observer.note, stages.out_of_time)
    stop.on_term = lambda: tell_lost_ranks(folder) if comm.size > 1 else None
    predictor = Predictor(settings.section_guess_s)
    memory = config.root / "runs" / "durations.json"
    predictor.load(memory)
    limits = Limits(request.max_exposures, request.max_idle_s, settings.section_attempts, settings.commit_guess_s,
                    max(settings.silence_s, 5 * setup.pulse_s), settings.poll_s, settings.leave_s)
    lease = config.settings.queue.lease_s
    coordinator = Coordinator(stages, crew, deadline=deadline, limits=limits, predictor=predictor, observer=observer,
                              stop=stop, heartbeats=lambda lost: Heartbeats(source, lease, lost))
    code = ExitCode.BUG
    archive = None
    if config.settings.archive.kind != "none" and config.settings.archive.push:
        archive = ArchiveThread(config, opened, observer.note)
        stages.archive = archive.add

    def left_s() -> float:
        deadline.hear(stop.number, stop.count)
        return deadline.left_s() - settings.leave_s

    try:
        results = coordinator.run()
        code = exit_code(results, trouble=coordinator.trouble is not None)
        if archive is not None:
            archive.close(left_s)
    finally:
        if archive is not None:
            archive.close(lambda: 0.0)
        progress.close()
        predictor.save(memory)
        observer.ended(int(code))
        if deadline.left_s() > _TRACE_S:
            with suppress(OSError):
                write_trace(folder)
    return coordinator


def tell_lost_ranks(folder: Path) -> None:
    """Write where ranks of this host were that are gone: TERM comes from a launcher when it has lost one."""
    here = socket.gethostname()
    for rank in lost_ranks(folder):
        if rank.host == here and not Path(f"/proc/{rank.pid}").exists() and Path("/proc/self").exists():
            sys.stderr.write(f"error: a process was lost: {rank.describe()}\n")
            sys.stderr.flush()


def _check_memory(request: Request, size: int, own: bool) -> None:
    """Refuse to begin with more processes than this node's memory holds."""
    from seechange_mpi.gpu_kernels.device import local_place
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.model.errors import ConfigError
    from seechange_mpi.mpi.memory import check_memory

    try:
        camera = load_camera(request.camera)
    except ConfigError:
        return  # exposures of the queue name their own
    ranks = max(1, min(local_place()[1], size))
    check_memory(camera, ranks - (0 if own else 1), ranks)


def _rank0_computes(setting: bool | None, size: int, request: Request) -> bool:
    if size == 1:
        return True
    if setting is not None:
        return setting
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.model.errors import SeeChangeError

    try:
        return size <= (len(request.sections) or len(load_camera(request.camera).section_ids))
    except SeeChangeError:
        return False
