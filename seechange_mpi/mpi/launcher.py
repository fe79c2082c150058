"""Start the MPI processes for a user who has never typed mpiexec.

``python -m seechange_mpi.mpi.launcher --print-environment`` prints the shell lines that a hand-typed mpiexec of the
packaged Open MPI needs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from types import FrameType

from seechange_mpi.model.errors import ConfigError, ExitCode
from seechange_mpi.mpi.compute import die_with_parent

BEGUN = "SEECHANGE_BEGUN"
"""Variable with the time at which the launcher was called: a time limit counts from there."""
EXIT_FILE = "SEECHANGE_EXIT_FILE"
"""Variable naming the file where rank 0 leaves its exit code for the launcher."""


RUN_SUFFIX = ".run"
"""Suffix of the file where rank 0 leaves the folder of its run."""
PID_SUFFIX = ".pid"
"""Suffix of the file beside it where rank 0 leaves its process id: the first signal goes to rank 0 alone."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def find_mpiexec(configured: str | None = None) -> str:
    """Return the launcher: the configured one, the one beside this Python, or the one on PATH.

    Raises
    ------
    ConfigError
        There is none.
    """
    if configured:
        found = shutil.which(os.path.expanduser(configured))
        if found is None:
            raise ConfigError(f"run.mpiexec: {configured} cannot be executed")
        return found
    beside = Path(sys.executable).with_name("mpiexec")
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which("mpiexec")
    if found is None:
        raise ConfigError("no mpiexec beside this Python nor on PATH: pip install 'seechange-mpi[local]', or install "
                          "an MPI, or run without -n")
    return found


@lru_cache(maxsize=4)
def mpi_kind(mpiexec: str) -> str:
    """Return ``openmpi5``, ``openmpi4`` or ``other``."""
    try:
        text = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "other"
    if "Open MPI" not in text and "PRRTE" not in text and "OpenRTE" not in text:
        return "other"
    old = any(f"{word} {v}." in text for word in ("(Open MPI)", "OpenRTE)") for v in "1234")
    return "openmpi4" if old else "openmpi5"


def launch_environment(kind: str) -> dict[str, str]:
    """Return the variables that let Open MPI run as root, oversubscribed and quickly on one host.

    Values that the user has set win.
    """
    env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if kind.startswith("openmpi"):
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if kind == "openmpi5":
        env |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
                "PRTE_MCA_hwloc_default_binding_policy": "none",
                "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm"}
    elif kind == "openmpi4":
        env |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
    return {k: v for k, v in env.items() if k not in os.environ}


def launch(ranks: int, args: list[str], mpiexec: str | None = None) -> int:
    """Run ``seechange-mpi ARGS`` in `ranks` MPI processes and return the run's exit code.

    The first signal INT, TERM, HUP or USR1 asks rank 0 to stop in order; a second one ends mpiexec. If mpiexec ends
    abnormally, a rank was lost: exit code 1.
    """
    program = find_mpiexec(mpiexec)
    kind = mpi_kind(program)
    with tempfile.TemporaryDirectory(prefix="seechange-") as folder:
        exit_file = Path(folder) / "exit_code"
        env = os.environ | launch_environment(kind) | {EXIT_FILE: str(exit_file), BEGUN: str(time.time())}
        env["SEECHANGE_TERMINAL"] = "1" if sys.stdout.isatty() else "0"
        command = [program, "-n", str(ranks), sys.executable, "-m", "seechange_mpi.cli.main", *args]
        # in a process group of its own a Ctrl-C reaches this process alone, which passes it on in order
        parent = os.getpid()
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, process_group=0,
                                 preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM))
        pid_file = exit_file.with_suffix(PID_SUFFIX)

        stopped: list[int] = []

        def forward(number: int, _frame: FrameType | None) -> None:
            stopped.append(number)
            if len(stopped) == 1 and pid_file.is_file():
                os.kill(int(pid_file.read_text()), signal.SIGTERM if number == signal.SIGHUP else number)
            else:
                child.send_signal(signal.SIGTERM)

        previous = {s: signal.signal(s, forward) for s in _PASSED_ON}
        try:
            status = child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if exit_file.is_file() and (status == 0 or stopped):
            return int(exit_file.read_text())
        where = where_lost(exit_file.with_suffix(RUN_SUFFIX))
    if stopped:
        sys.stderr.write(f"error: stopped by {signal.Signals(stopped[0]).name}. What was durable is kept; run the same "
                         "command again to finish the rest.\n")
        return int(ExitCode.BUG)
    sys.stderr.write(f"error: the MPI run ended abnormally (mpiexec returned {status}): "
                     f"{where or 'a process was lost'}. "
                     "What was durable is kept; run the same command again to finish the rest.\n")
    return int(ExitCode.BUG)


def where_lost(pointer: Path) -> str:
    """Say which ranks of a run were lost, and what they were at; empty if that is not known.

    Parameters
    ----------
    pointer : file that holds the folder of the run.
    """
    from seechange_mpi.mpi.status import lost_ranks

    try:
        folder = Path(pointer.read_text())
    except OSError:
        return ""
    lost = lost_ranks(folder)
    workers = [rank for rank in lost if rank.rank] or lost  # rank 0 is the last to go, whoever was the first
    text = "; ".join(rank.describe() for rank in workers[:3]) + ("; ..." if len(workers) > 3 else "")
    return f"a process was lost: {text} (seechange-mpi logs {folder})" if text else ""


def tell_run_folder(folder: Path) -> None:
    """Tell the launcher, if there is one, where the run's logs are."""
    if is_launched():
        Path(os.environ[EXIT_FILE]).with_suffix(RUN_SUFFIX).write_text(str(folder.absolute()))


def is_launched() -> bool:
    """Whether a launcher of ours waits for this run's exit code."""
    return EXIT_FILE in os.environ


def introduce(rank: int) -> None:
    """Tell the launcher, if there is one, the process id of rank 0."""
    if rank == 0 and is_launched():
        path = Path(os.environ[EXIT_FILE]).with_suffix(PID_SUFFIX)
        draft = path.with_suffix(".draft")
        draft.write_text(str(os.getpid()))
        draft.rename(path)


def leave(code: int) -> int:
    """Tell the launcher, if there is one, this run's exit code; return the process's own."""
    path = os.environ.get(EXIT_FILE)
    if path is None:
        return code
    Path(path).write_text(str(code))
    return 0


def main() -> None:
    """Print the environment of a hand-typed mpiexec as shell lines."""
    for key, value in launch_environment(mpi_kind(find_mpiexec())).items():
        sys.stdout.write(f"export {key}={value}\n")


if __name__ == "__main__":
    main()
