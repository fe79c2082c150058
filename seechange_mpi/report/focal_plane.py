"""Drawing of a camera's focal plane on the sky, from its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seechange_mpi.instruments.camera import Camera


def draw_camera(camera: Camera, path: str | Path, default_size: tuple[int, int] = (2048, 2048)) -> None:
    """Draw every section with its name, its first pixel as a dot; defective ones hatched, filters in colours.

    Parameters
    ----------
    default_size : x, y of sections whose size is taken from the file.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon

    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlabel="east [arcmin]", ylabel="north [arcmin]",
                              title=f"{camera.name}: {len(camera.section_ids)} of {len(camera.sections)} sections")
    bands = sorted({s.filter for s in camera.sections if s.filter})
    usable = set(camera.section_ids)
    for s in camera.sections:
        nx, ny = s.size or default_size
        corners = np.array([(-nx, -ny), (nx, -ny), (nx, ny), (-nx, ny)]) / 2.0
        sky = (section_to_sky(corners, s.rotation_deg, s.east_left) * camera.pixel_scale_arcsec + s.offset_arcsec) / 60
        colour = f"C{bands.index(s.filter)}" if s.filter else "C0"
        axes.add_patch(Polygon(sky.tolist(), closed=True, facecolor=colour, alpha=0.25 if s.id in usable else 0.08,
                               edgecolor="black", hatch=None if s.id in usable else "////"))
        axes.plot(*(sky[0] + 0.06 * (sky[2] - sky[0])), "k.", markersize=3)
        axes.annotate(s.id + (f"\n{s.filter}" if s.filter else ""), sky.mean(axis=0).tolist(), ha="center", va="center",
                      fontsize=7)
    axes.autoscale_view()
    axes.invert_xaxis()
    figure.savefig(path, dpi=120)


def section_to_sky(xy: np.ndarray, rotation_deg: float, east_left: bool) -> np.ndarray:
    """Return (n, 2) east and north of pixel offsets from the section's centre, both in pixels."""
    p, y = (-1.0 if east_left else 1.0) * xy[:, 0], xy[:, 1]
    cos, sin = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    return np.stack([p * cos + y * sin, y * cos - p * sin], axis=-1)
