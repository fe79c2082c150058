"""The CUDA Multi-Process Service, which lets several ranks use one GPU at once: start, wait until it answers, stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from seechange_mpi.model.errors import ConfigError, TransientError

CONTROL = "nvidia-cuda-mps-control"
_PAUSE_S = 0.1
_MARK = ".seechange-mps"
"""File that marks a folder made by `start`."""


def folders(base: Path) -> dict[str, str]:
    """Return the variables that ranks need to find the service whose files lie in `base`."""
    return {"CUDA_MPS_PIPE_DIRECTORY": str(base / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(base / "log")}


def default_base() -> Path:
    """Return the folder of this user's (and job's) service on this node."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"seechange-mps-{os.getuid()}{'-' + job if job else ''}"


def _control(base: Path, words: str, timeout_s: float) -> str | None:
    """Ask the service something; None when it does not answer."""
    try:
        done = subprocess.run([CONTROL], input=words + "\n", capture_output=True, text=True, timeout=timeout_s,
                              env=os.environ | folders(base), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def is_running(base: Path, timeout_s: float = 2.0) -> bool:
    """Whether the service answers."""
    return shutil.which(CONTROL) is not None and _control(base, "get_server_list", timeout_s) is not None


def start(base: Path, timeout_s: float = 20.0) -> dict[str, str]:
    """Start the service, wait until it answers, and return the variables for the ranks; one that runs is kept.

    Raises
    ------
    ConfigError
        The program is missing: no NVIDIA driver on this node.
    TransientError
        It does not answer in time.
    """
    if shutil.which(CONTROL) is None:
        raise ConfigError(f"{CONTROL} is not on PATH: this node has no NVIDIA driver; without it ranks take turns on a "
                          "GPU, or compute on the CPU")
    if is_running(base):
        return folders(base)
    for path in folders(base).values():
        Path(path).mkdir(parents=True, exist_ok=True, mode=0o700)
    (base / _MARK).touch()
    end = time.monotonic() + timeout_s
    said = base / "log" / "start.log"
    with said.open("w") as out, suppress(subprocess.TimeoutExpired):  # a pipe would wait for the service itself
        subprocess.run([CONTROL, "-d"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=timeout_s,
                       env=os.environ | folders(base), check=False)
    while time.monotonic() < end:
        if is_running(base):
            return folders(base)
        time.sleep(_PAUSE_S)
    reason = said.read_text(errors="replace").strip()
    raise TransientError(f"{CONTROL} does not answer after {timeout_s:g} s{': ' + reason if reason else ''}; "
                         f"see {base / 'log' / 'control.log'}")


def stop(base: Path, timeout_s: float = 20.0) -> bool:
    """End the service and wait until it is gone; return whether there was one.

    Raises
    ------
    TransientError
        It still answers after the time.
    """
    if not is_running(base, timeout_s):
        _remove(base)
        return False
    _control(base, "quit", timeout_s)
    end = time.monotonic() + timeout_s
    while is_running(base):
        if time.monotonic() > end:
            raise TransientError(f"{CONTROL} still answers {timeout_s:g} s after 'quit'; see {base / 'log'}")
        time.sleep(_PAUSE_S)
    _remove(base)
    return True


def _remove(base: Path) -> None:
    """Remove what `start` has made, and nothing else."""
    if not (base / _MARK).is_file():
        return
    for path in folders(base).values():
        shutil.rmtree(path, ignore_errors=True)
    (base / _MARK).unlink(missing_ok=True)
    with suppress(OSError):
        base.rmdir()  # unless something else lies there
