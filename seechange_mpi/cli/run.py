"""``seechange-mpi run``: process exposures."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config
from seechange_mpi.cli.main import explain
from seechange_mpi.model.errors import ConfigError, Drain, ExitCode, LostRank, SeeChangeError
from seechange_mpi.model.task import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.mpi.comm import Communicator
    from seechange_mpi.mpi.compute import ComputeProcess
    from seechange_mpi.mpi.deadline import Deadline
    from seechange_mpi.mpi.run import Request
    from seechange_mpi.mpi.stopping import StopRequest

_STEP_HELP = ", ".join(STEPS)


def command(
    exposures: Annotated[list[Path] | None, typer.Argument(help="Raw exposures; none = work on the queue.")] = None,
    processes: Annotated[int, typer.Option("-n", "--processes", min=1, help="Start this many MPI processes.")] = 1,
    camera: Annotated[str | None, typer.Option("--camera", help="Camera name or YAML file.")] = None,
    first: Annotated[str | None, typer.Option("--from", help=f"Redo from this step on: {_STEP_HELP}.")] = None,
    last: Annotated[str, typer.Option("--through", help="Stop after this step.")] = STEPS[-1],
    sections: Annotated[str | None, typer.Option("--sections", help="Only these, e.g. S1,S3.")] = None,
    param: Annotated[list[str] | None, typer.Option(
        "--param", metavar="KEY=VALUE", help="Header value in place of the file's: mjd, filter, gain, …")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    max_exposures: Annotated[int | None, typer.Option("--max-exposures", min=1, help="Stop after this many.")] = None,
    time_limit: Annotated[str | None, typer.Option(
        "--time-limit", metavar="TIME", help="Be done by then: 25m, 1h30m, 00:29:30. Slurm's limit is known.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With an empty queue, wait for more exposures.")] = False,
    max_idle: Annotated[str | None, typer.Option(
        "--max-idle", metavar="TIME", help="Like --wait, but end after so long without any.")] = None,
    inject: Annotated[list[str] | None, typer.Option(
        "--inject", metavar="KIND@STEP[:SECTION[:ATTEMPT]]",
        help="Let a failure happen, to see what the run does: kill@subtraction:S3:1. Kinds: raise, hang, stop, "
             "kill, segv, oom, lose.")] = None,
    report: Annotated[bool | None, typer.Option("--report/--no-report", help="HTML report beside each bundle.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Process exposures from raw pixels to objects in the database.

    \b
    A laptop:          seechange-mpi run -n 4 --camera simulated raw/*.fits
    A batch job:       srun seechange-mpi run --wait --max-idle 5m
    One image of any origin, what its header lacks given here:
                       seechange-mpi run --camera generic-fits --param mjd=56614.1 --param filter=r
                         --param exp_time=200 --param gain=4.0 --set extraction.wcs.method=header image.fits

    Work that is finished is not repeated: run the same command again after an interruption. The exit
    code is 0 only if every section succeeded.
    """

    from seechange_mpi.mpi.comm import announced_size

    begun = float(os.environ.get("SEECHANGE_BEGUN", time.time()))
    resolved = load_config(config, set_)
    for step in (first, last):
        if step is not None and step not in STEPS:
            raise typer.BadParameter(f"no step '{step}'; there are: {_STEP_HELP}")
    if first is not None and STEPS.index(first) > STEPS.index(last):
        raise typer.BadParameter(f"--from {first} comes after --through {last}")
    from seechange_mpi.mpi.deadline import parse_duration
    from seechange_mpi.mpi.inject import Fault
    from seechange_mpi.mpi.run import Request

    request = Request(
        tuple(exposures or ()), camera or resolved.settings.camera.name, first, last,
        tuple(s.strip() for s in sections.split(",")) if sections else (), _params(param or []), dry_run,
        max_exposures, begun + parse_duration(time_limit) if time_limit else None,
        parse_duration(max_idle) if max_idle else math.inf if wait else 0.0,
        tuple(Fault.parse(text) for text in inject or ()),
        resolved.settings.run.report if report is None else report)
    if processes > 1 and announced_size() is None and not dry_run:
        import sys

        from seechange_mpi.mpi.launcher import launch

        return launch(processes, ["run", *_without_n(sys.argv[2:])], resolved.settings.run.mpiexec)
    from seechange_mpi.mpi.worker import compute_process

    compute = compute_process()  # before MPI is imported
    try:
        return _as_rank(compute, resolved, request, processes)
    finally:
        compute.stop()


def _as_rank(compute: ComputeProcess, resolved: Config, request: Request, processes: int) -> int:
    """Be one rank of the run, or the only process."""
    from seechange_mpi.mpi.comm import get_comm
    from seechange_mpi.mpi.launcher import introduce, is_launched, leave
    from seechange_mpi.mpi.stopping import stop_on_signals

    comm = get_comm()
    if comm.rank != 0:
        from seechange_mpi.mpi.worker import be_worker

        be_worker(comm, compute)
        return 0
    with stop_on_signals(0) as stop:
        introduce(0)
        if processes > 1 and comm.size != processes and not request.dry_run:
            typer.echo(f"-n {processes} is passed over: a launcher has started {comm.size} already")
        from seechange_mpi.mpi.scatter import stop_workers
        from seechange_mpi.mpi.worker import end_within

        try:
            code = _coordinate(resolved, comm, compute, stop, request)
        except LostRank as err:
            explain(err)
            comm.abort(int(ExitCode.BUG))
            code = int(ExitCode.BUG)
        except (SeeChangeError, Drain) as err:
            stop_workers(comm)
            if not is_launched():
                raise
            code = explain(err)  # the code travels beside mpiexec, which would call it a crash
        except BaseException:
            stop_workers(comm)
            raise
        else:
            stop_workers(comm)
        compute.stop()
        comm.flush(5.0)
    code = leave(code)
    if comm.size > 1:
        end_within(30)
    return code


def _without_n(args: list[str]) -> list[str]:
    """Drop ``-n N`` / ``--processes N`` from the arguments."""
    out: list[str] = []
    skip = False
    for a in args:
        if skip:
            skip = False
        elif a in ("-n", "--processes"):
            skip = True
        elif not (a.startswith("--processes=") or (a.startswith("-n") and a[2:].isdigit())):
            out.append(a)
    return out


def _coordinate(resolved: Config, comm: Communicator, compute: ComputeProcess, stop: StopRequest, request: Request
                ) -> int:
    from seechange_mpi.db.engine import server
    from seechange_mpi.mpi.deadline import Deadline, job_end

    settings = resolved.settings.run
    end = job_end()
    ends = [t for t in (request.end, end) if t is not None]
    deadline = Deadline(min(ends) - time.time() if ends else None, signal_s=settings.usr1_s, term_s=settings.term_s)
    with server(resolved) as opened:
        if request.dry_run:
            return _dry_run(resolved, opened, request)
        return _run(resolved, opened, comm, compute, stop, deadline, request)


def _run(resolved: Config, opened: Callable[[], Connection], comm: Communicator, compute: ComputeProcess,
         stop: StopRequest, deadline: Deadline, request: Request) -> int:
    from seechange_mpi.db.queue import LocalQueue
    from seechange_mpi.mpi.heartbeat import owner_is_gone
    from seechange_mpi.mpi.results import exit_code
    from seechange_mpi.mpi.run import run_batch
    from seechange_mpi.mpi.summary import closing_words

    queue = LocalQueue(opened, max_attempts=resolved.settings.queue.max_attempts)
    queue.expire_owners(owner_is_gone)
    only = [queue.add(path, request.camera, params=request.params, again=True) for path in request.exposures]
    queue.only = sorted(only) if request.exposures else None
    if not request.exposures:
        typer.echo(f"exposures ready in the queue: {queue.waiting()}")
    ran = run_batch(resolved, opened, queue, comm, compute, stop, deadline, request)
    results, trouble = ran.results, ran.trouble
    busy = set(only) - {r.identifier for r in results}
    if busy and request.max_exposures is None and not ran.stopped_by:
        typer.echo(f"claimed by another run, held or given up: {', '.join(sorted(busy))}; see seechange-mpi queue list")
    typer.echo(closing_words(results, ran.stopped_by))
    queue.close()
    if trouble is not None:
        typer.echo(f"error: {trouble}", err=True)
    return int(exit_code(results, trouble=trouble is not None))


def _params(items: list[str]) -> dict[str, Any]:
    from seechange_mpi.config.resolve import parse_assignment

    out: dict[str, Any] = {}
    for item in items:
        out.update(parse_assignment(item))
    return out


def _dry_run(resolved: Config, opened: Callable[[], Connection], request: Request) -> int:
    from datetime import UTC, datetime

    from seechange_mpi.conductor_client.protocol import Claim
    from seechange_mpi.db.queue import LocalQueue
    from seechange_mpi.model.exposure import identifier_of
    from seechange_mpi.mpi.stages import Stages

    queue = LocalQueue(opened)
    stages = Stages(resolved, opened, queue, request.options)
    stages.brings_inputs = False
    claims = [Claim(identifier_of(p), request.camera, str(p.absolute()), 0, 1, datetime.now(UTC), request.params)
              for p in request.exposures]
    if not request.exposures:
        claims = [Claim(q.identifier, q.instrument, q.filepath, 0, 1, datetime.now(UTC)) for q in queue.list(["ready"])]
    code = int(ExitCode.OK)
    for claim in claims:
        try:
            prepared = stages.prepare(claim, planning=True)
        except SeeChangeError as err:
            typer.echo(f"\n{claim.identifier}: cannot be processed: {err}")
            code = int(ExitCode.EXPOSURE_FAILED)
            continue
        typer.echo(f"\n{claim.identifier} ({prepared.exposure.instrument}, {prepared.exposure.filter}, "
                   f"mjd {prepared.exposure.mjd:.4f})")
        for process, pid in next(iter(prepared.tasks.values())).provenances.items():
            typer.echo(f"  provenance {process:<16} {pid}")
        for section, task in prepared.tasks.items():
            missing = [k for k, p in task.calibration.items() if not Path(p).is_file()]
            link = f"reference {task.reference.exposure_identifier}" if task.reference else "no reference"
            lacks = f"; missing calibration: {', '.join(missing)}" if missing else ""
            plan = prepared.plans[section].describe(prepared.last_steps[section])
            typer.echo(f"  {section:<6} {plan}; {link}{lacks}")
        try:
            stages.check_tag(prepared.records)
        except ConfigError as err:
            typer.echo(f"  a run would be refused: {err}")
    return code
