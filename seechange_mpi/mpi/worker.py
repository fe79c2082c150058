"""A worker rank: receives sections, has its compute process do them, answers; until told to stop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seechange_mpi.mpi.comm import ANSWER, CANCEL, PULSE, SETUP, STOP, WORK, Communicator, Sleeper, get_comm
from seechange_mpi.mpi.compute import ComputeProcess
from seechange_mpi.mpi.host import SectionHost, SectionRunner, SectionServer, preload, process
from seechange_mpi.mpi.messages import Setup
from seechange_mpi.mpi.placement import plan, take_place
from seechange_mpi.mpi.runlog import RunLog

_END_S = 30
"""Time for all ranks to leave MPI [s]."""


def compute_process(runner: SectionRunner = process) -> ComputeProcess:
    """Return a started compute process for sections; to be called before MPI is imported."""
    take_place()
    compute = ComputeProcess(SectionServer(runner), preload if runner is process else None)
    compute.start()
    return compute


def serve_rank(runner: SectionRunner = process) -> int:
    """Be a worker, from the start of the process to its end."""
    compute = compute_process(runner)
    try:
        be_worker(get_comm(), compute)
    finally:
        compute.stop()
    end_within(_END_S)
    return 0


def end_within(seconds: int) -> None:
    """Have this process killed if it has not ended by then: leaving MPI waits for every rank, a hanging one too."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def be_worker(comm: Communicator, compute: ComputeProcess) -> None:
    """Serve rank 0 until it says stop; a worker that fails takes the job with it."""
    with patient_with_signals() as told:
        try:
            work(comm, compute, told)
        except BaseException:  # noqa: BLE001 - nothing may end a worker silently
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            comm.abort(1)


class Told:
    """Which signal has asked this worker to end, and when; None: none has."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.when = 0.0

    def hear(self, number: int, _frame: object) -> None:
        """Handle a signal."""
        if self.number is None:
            self.number, self.when = number, time.monotonic()


@contextmanager
def patient_with_signals() -> Iterator[Told]:
    """Leave signals to rank 0, which ends the run in order; TERM is obeyed if rank 0 does not come to that.

    A batch system sends TERM to all ranks when the time is up, a launcher when another rank has died; either sends
    KILL later.
    """
    told = Told()
    previous = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)}
    previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, told.hear)
    try:
        yield told
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def work(comm: Communicator, compute: ComputeProcess, told: Told | None = None) -> None:
    """Serve rank 0 until it says stop."""
    told = told or Told()
    setup, log = Setup(), RunLog(None, comm.rank)
    host = SectionHost(compute, setup, log, comm.rank)
    sleeper, heard, term_written = Sleeper(wait=compute.wait), 0.0, False
    while True:
        message = comm.receive(0.0)
        if message is not None:
            sleeper.wake()
            if message.tag == STOP:
                host.cancel()
                log.event("end")
                comm.flush(5.0)
                return
            if message.tag == SETUP:
                setup = message.body
                log = RunLog(Path(setup.run_folder) if setup.run_folder else None, comm.rank)
                log.event("start", place=plan().describe())
                host = SectionHost(compute, setup, log, comm.rank)
            elif message.tag == WORK:
                host.begin(message.body)
                heard = time.monotonic()
            elif message.tag == CANCEL and host.work is not None and host.work.key == message.body:
                answer = host.cancel()
                if answer is not None:
                    comm.send(answer, dest=0, tag=ANSWER)
        answer = host.poll()
        if answer is not None:
            sleeper.wake()
            comm.send(answer, dest=0, tag=ANSWER)
        now = time.monotonic()
        if host.work is not None and now - heard > setup.pulse_s:
            heard = now
            comm.send(host.pulse(), dest=0, tag=PULSE)
        if told.number is not None:
            if not term_written:
                term_written = True
                log.event("end", level="warning", signal=int(told.number))
            if now - told.when > setup.patience_s:
                comm.abort(1)
        sleeper.sleep()
