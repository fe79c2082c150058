"""Whether the compute processes of a node fit into its memory, asked before a run begins."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from seechange_mpi.model.errors import ConfigError
from seechange_mpi.mpi.placement import available_mb

if TYPE_CHECKING:
    from seechange_mpi.instruments.camera import Camera

BASE_MB, BYTES_PER_PIXEL, RANK_MB = 170.0, 68.0, 45.0
"""Measured: at its highest a compute process takes 720 MB for 2k × 4k pixels, 210 MB for 400 × 400; a rank 45 MB."""


def predicted_mb(camera: Camera) -> float:
    """Return the highest memory of a compute process [MB], for the largest section of a camera."""
    pixels = max((s.size[0] * s.size[1] for s in camera.sections if s.size), default=0)
    return BASE_MB + BYTES_PER_PIXEL * pixels / 2**20


def check_memory(camera: Camera, processes: int, ranks: int, available: float | None = None) -> float:
    """Return what the processes of this node will take together [MB].

    Parameters
    ----------
    processes, ranks : compute processes and ranks on the node.
    available : free memory [MB]; default: asked of the system.

    Raises
    ------
    ConfigError
        There is not enough: names the figures and how many ranks would fit.
    """
    each = predicted_mb(camera)
    needed = processes * each + ranks * RANK_MB
    free = available_mb() if available is None else available
    if free is not None and needed > free:
        fit = int((free - (ranks - processes) * RANK_MB) // (each + RANK_MB)) + ranks - processes
        advice = f"run with at most {fit} ranks on this node" if fit > ranks - processes else "not even one fits"
        raise ConfigError(
            f"{processes} processes of {each / 1000:.2f} GB each need {needed / 1000:.1f} GB, but only "
            f"{free / 1000:.1f} GB are free on {socket.gethostname()}: {advice}; "
            "run.memory_check=false goes on all the same")
    return needed
