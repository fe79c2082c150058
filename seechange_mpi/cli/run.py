"""``seechange-mpi run``: process exposures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config
from seechange_mpi.cli.main import explain
from seechange_mpi.model.errors import Drain, ExitCode, SeeChangeError
from seechange_mpi.model.task import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.mpi.coordinator import RunOptions
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
    report: Annotated[bool | None, typer.Option("--report/--no-report", help="HTML report beside each bundle.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Process exposures from raw pixels to objects in the database.

    \b
    A laptop:          seechange-mpi run -n 4 --camera simulated raw/*.fits
    A batch job:       srun seechange-mpi run
    One image of any origin, what its header lacks given here:
                       seechange-mpi run --camera generic-fits --param mjd=56614.1 --param filter=r
                         --param exp_time=200 --param gain=4.0 --set extraction.wcs.method=header image.fits

    Work that is finished is not repeated: run the same command again after an interruption. The exit
    code is 0 only if every section succeeded.
    """

    from seechange_mpi.mpi.comm import announced_size

    resolved = load_config(config, set_)
    for step in (first, last):
        if step is not None and step not in STEPS:
            raise typer.BadParameter(f"no step '{step}'; there are: {_STEP_HELP}")
    if first is not None and STEPS.index(first) > STEPS.index(last):
        raise typer.BadParameter(f"--from {first} comes after --through {last}")
    params = _params(param or [])
    if processes > 1 and announced_size() is None and not dry_run:
        import sys

        from seechange_mpi.mpi.launcher import launch

        return launch(processes, ["run", *_without_n(sys.argv[2:])], resolved.settings.run.mpiexec)
    from seechange_mpi.mpi.comm import get_comm
    from seechange_mpi.mpi.launcher import introduce, is_launched, leave
    from seechange_mpi.mpi.stopping import stop_on_signals

    comm = get_comm()
    with stop_on_signals(comm.rank) as stop:
        introduce(comm.rank)
        if comm.rank != 0:
            _serve(comm)
            return 0
        if processes > 1 and comm.size != processes and not dry_run:
            typer.echo(f"-n {processes} is passed over: a launcher has started {comm.size} already")
        try:
            code = _coordinate(resolved, comm, stop, exposures or [], camera, first, last, sections, params, dry_run,
                               max_exposures, resolved.settings.run.report if report is None else report)
        except (SeeChangeError, Drain) as err:
            if not is_launched():
                raise
            code = explain(err)  # the code travels beside mpiexec, which would call it a crash
        finally:
            from seechange_mpi.mpi.scatter import stop_workers

            stop_workers(comm)
    return leave(code)


def _serve(comm: Any) -> None:
    """Work for rank 0; a worker that dies must take the job with it."""
    from seechange_mpi.mpi.worker import work

    try:
        work(comm)
    except BaseException:  # noqa: BLE001 - nothing may end a worker silently
        import traceback

        traceback.print_exc()
        comm.abort(1)


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


def _coordinate(resolved: Config, comm: Any, stop: StopRequest, exposures: list[Path], camera: str | None,
                first: str | None, last: str, sections: str | None, params: dict[str, Any], dry_run: bool,
                max_exposures: int | None, report: bool) -> int:
    from seechange_mpi.db.engine import server
    from seechange_mpi.mpi.coordinator import RunOptions

    name = camera or resolved.settings.camera.name
    options = RunOptions(first or STEPS[0], last, first is not None,
                         tuple(s.strip() for s in sections.split(",")) if sections else (), max_exposures, report)
    with server(resolved) as opened:
        if dry_run:
            return _dry_run(resolved, opened, exposures, name, params, options)
        return _run(resolved, opened, comm, stop, exposures, name, params, options)


def _run(resolved: Config, opened: Callable[[], Connection], comm: Any, stop: StopRequest, exposures: list[Path],
         camera: str, params: dict[str, Any], options: RunOptions) -> int:
    from seechange_mpi.db.queue import LocalQueue
    from seechange_mpi.mpi.coordinator import Coordinator
    from seechange_mpi.mpi.heartbeat import owner_is_gone
    from seechange_mpi.mpi.progress import Progress
    from seechange_mpi.mpi.results import exit_code
    from seechange_mpi.mpi.summary import closing_words

    queue = LocalQueue(opened, max_attempts=resolved.settings.queue.max_attempts)
    queue.expire_owners(owner_is_gone)
    only = [queue.add(path, camera, params=params, again=True) for path in exposures]
    queue.only = sorted(only) if exposures else None
    coordinator = Coordinator(resolved, opened, queue, comm, options, Progress(), stop=stop)
    results = coordinator.run()
    busy = set(only) - {r.identifier for r in results}
    if busy and options.max_exposures is None and stop.number is None:
        typer.echo(f"claimed by another run, held or given up: {', '.join(sorted(busy))}; see seechange-mpi queue list")
    typer.echo(closing_words(results))
    queue.close()
    return int(exit_code(results))


def _params(items: list[str]) -> dict[str, Any]:
    from seechange_mpi.config.resolve import parse_assignment

    out: dict[str, Any] = {}
    for item in items:
        out.update(parse_assignment(item))
    return out


def _dry_run(resolved: Config, opened: Callable[[], Connection], exposures: list[Path], camera: str,
             params: dict[str, Any], options: RunOptions) -> int:
    from datetime import UTC, datetime

    from seechange_mpi.conductor_client.protocol import Claim
    from seechange_mpi.db.queue import LocalQueue
    from seechange_mpi.model.exposure import identifier_of
    from seechange_mpi.mpi.comm import SerialComm
    from seechange_mpi.mpi.coordinator import Coordinator
    from seechange_mpi.mpi.progress import Progress

    queue = LocalQueue(opened)
    coordinator = Coordinator(resolved, opened, queue, SerialComm(), options, Progress(quiet=True))
    claims = [Claim(identifier_of(p), camera, str(p.absolute()), 0, 1, datetime.now(UTC), params) for p in exposures]
    if not exposures:
        claims = [Claim(q.identifier, q.instrument, q.filepath, 0, 1, datetime.now(UTC)) for q in queue.list(["ready"])]
    code = int(ExitCode.OK)
    for claim in claims:
        try:
            prepared = coordinator.prepare(claim)
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
    return code
