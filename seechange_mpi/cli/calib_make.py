"""The run behind ``calib make``: processes, frames as they are finished, what is said of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from seechange_mpi.cli.main import explain
from seechange_mpi.model.errors import Drain, ExitCode, SeeChangeError

if TYPE_CHECKING:
    from seechange_mpi.calibration.task import CalibrationOutcome, CalibrationTask
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import Connection
    from seechange_mpi.mpi.calibration_plan import MakeOptions, Plan
    from seechange_mpi.mpi.stopping import StopRequest


def start(options: MakeOptions, processes: int, resolved: Config, *, quick_look: bool) -> int:
    """Make frames on as many processes as asked for; return the exit code."""
    from seechange_mpi.mpi.comm import announced_size, get_comm
    from seechange_mpi.mpi.launcher import introduce, is_launched, launch, leave
    from seechange_mpi.mpi.scatter import stop_workers
    from seechange_mpi.mpi.stopping import stop_on_signals

    if processes > 1 and announced_size() is None:
        from seechange_mpi.cli.run import _without_n

        return launch(processes, ["calib", *_without_n(sys.argv[2:])], resolved.settings.run.mpiexec)
    comm = get_comm()
    with stop_on_signals(comm.rank) as stop:
        introduce(comm.rank)
        if comm.rank != 0:
            _serve(comm)
            return 0
        try:
            code = _make(options, resolved, comm, stop, quick_look)
        except (SeeChangeError, Drain) as err:
            if not is_launched():
                raise
            code = explain(err)
        finally:
            stop_workers(comm)
    return leave(code)


def _serve(comm: Any) -> None:
    from seechange_mpi.calibration.make import run_task
    from seechange_mpi.mpi.share_out import serve_or_abort

    serve_or_abort(comm, run_task)


def _make(options: MakeOptions, resolved: Config, comm: Any, stop: StopRequest, quick_look: bool) -> int:
    from seechange_mpi.calibration.make import run_task
    from seechange_mpi.db.calibrators import add_calibrators
    from seechange_mpi.db.engine import server
    from seechange_mpi.mpi.calibration_plan import plan_frames
    from seechange_mpi.mpi.share_out import share_out

    outcomes: list[CalibrationOutcome] = []
    with server(resolved) as opened:
        with opened() as conn:
            plan = plan_frames(resolved, conn, options)
        _announce(plan, options, comm.size)
        for outcome in share_out(comm, plan.tasks, run_task, tick=stop.check):
            outcomes.append(outcome)
            if outcome.frame is not None:
                _register(opened, add_calibrators, outcome)
            typer.echo(_line(outcome, len(outcomes), len(plan.tasks)))
            if quick_look and outcome.frame is not None:
                _draw(outcome)
    return _closing(plan, outcomes, options)


def _register(opened: Callable[[], Connection], add: Callable[..., int], outcome: CalibrationOutcome) -> None:
    with opened() as conn:
        add(conn, [outcome.frame])


def _draw(outcome: CalibrationOutcome) -> None:
    from seechange_mpi.report.calibration import quick_look

    assert outcome.frame is not None
    try:
        quick_look(outcome.frame.path)
    except Exception as err:  # noqa: BLE001 - a picture is a convenience
        typer.echo(f"  no picture of {outcome.frame.path}: {type(err).__name__}: {err}")


def _announce(plan: Plan, options: MakeOptions, size: int) -> None:
    first = plan.tasks[0] if plan.tasks else None
    found = plan.selected
    passed = f", {found.others} other files passed over" if found.others else ""
    typer.echo(f"{len(found.exposures)} exposures{passed}; {len(plan.tasks)} {options.kind} frames to make"
               + (f" on {size - 1} worker processes" if size > 1 else ""))
    if first is not None:
        used = [f"{k} frames of {sum(k in t.calibration for t in plan.tasks)} sections"
                for k in sorted({k for t in plan.tasks for k in t.calibration})]
        typer.echo(f"  inputs are corrected for overscan{''.join(f', {u}' for u in used)}")


def _line(outcome: CalibrationOutcome, done: int, total: int) -> str:
    """One line of a finished frame, and its inputs that were left out."""
    name = " ".join(w for w in (outcome.section_id, outcome.filter) if w)
    cost = f"{outcome.seconds:.1f} s, {outcome.peak_rss_mb:.0f} MB"
    if outcome.frame is None:
        return f"[{done}/{total}] {name}: FAILED: {outcome.error}"
    q = outcome.frame.quality
    words = [f"{q['n_inputs']:.0f} inputs"]
    if q["n_rejected"]:
        words.append(f"{q['n_rejected']:.0f} left out")
    if "noise_measured" in q:
        words.append(f"noise {q['noise_measured']:.4g} (expected {q['noise_expected']:.4g})")
    for prefix, label, unit in (("read_noise_", "read noise", "e-"), ("gain_", "gain", "e-/ADU")):
        values = [f"{v:.3g}" for k, v in q.items() if k.startswith(prefix)]
        if values:
            words.append(f"{label} {' '.join(values)} {unit}")
    words += [f"{100 * q[k]:.3f} % {k.removesuffix('_fraction')}" for k in
              ("bad_fraction", "hot_fraction", "dead_fraction", "nonlinear_fraction") if q.get(k)]
    lines = [f"[{done}/{total}] {name}: {', '.join(words)}; {cost}"]
    lines += [f"    left out: {r.identifier}: {r.reason}" for r in outcome.rejected]
    return "\n".join(lines)


def _closing(plan: Plan, outcomes: list[CalibrationOutcome], options: MakeOptions) -> int:
    for r in plan.selected.rejected:
        typer.echo(f"left out: {r.identifier}: {r.reason}")
    failed = [o for o in outcomes if o.frame is None]
    made = len(outcomes) - len(failed)
    if made:
        task: CalibrationTask = plan.tasks[0]
        typer.echo(f"{made} frames are registered as {task.calibrator_set}, in {task.folder}/{task.camera.name}/"
                   f"{task.kind}; see seechange-mpi calib list --kind {task.kind}")
    if failed:
        typer.echo(f"failed: {', '.join(sorted({f'{o.section_id} {o.filter}'.strip() for o in failed}))}")
    if any(o.is_bug for o in failed):
        return int(ExitCode.BUG)
    if not failed:
        return int(ExitCode.OK)
    return int(ExitCode.SECTIONS_FAILED if made else ExitCode.EXPOSURE_FAILED)
