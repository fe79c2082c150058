"""How a frame is cut into tiles that are transformed one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seechange_mpi.gpu_kernels.fft import good_size

Slices = tuple[slice, slice]

_BLEND = 16
"""Half width of the cross-fade between tiles of different filters [pix]."""

_TILE_ON_GPU = 6144
"""Largest side of a tile's grid: larger frames would take more than about 4 GB."""

_TILE_ON_CPU = 640
"""Largest side of a tile's grid: its planes fit the cache of a core."""


@dataclass(frozen=True)
class Tile:
    """Where a tile lies.

    Attributes
    ----------
    y, x : slices of the frame that it fills, cross-fades included.
    y0, x0 : frame position of the grid's origin.
    fade_y, fade_x : weight of each row and column, or None for 1.
    """

    y: slice
    x: slice
    y0: int
    x0: int
    fade_y: np.ndarray | None
    fade_x: np.ndarray | None

    def slices(self, frame: tuple[int, int], grid: tuple[int, int]) -> tuple[Slices, Slices, Slices]:
        """Part of the frame that the grid covers, the same on the grid, and on the grid what the tile fills."""
        starts = self.y0, self.x0
        wide = tuple(slice(max(o, 0), min(o + t, n)) for o, t, n in zip(starts, grid, frame, strict=True))
        at = tuple(slice(w.start - o, w.stop - o) for w, o in zip(wide, starts, strict=True))
        core = tuple(slice(w.start - o, w.stop - o) for w, o in zip((self.y, self.x), starts, strict=True))
        return (wide[0], wide[1]), (at[0], at[1]), (core[0], core[1])


def layout(frame: tuple[int, int], margin: int, varying: bool, tile: int | None, *, on_cpu: bool,
            least: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Number of tiles along each axis and the grid of one, for the least work; PSFs of `least` pixels fit into it."""
    side = margin + (_BLEND if varying else 0)
    wanted = tile or (512 if varying else None)
    largest = wanted + 2 * side if wanted else (_TILE_ON_CPU if on_cpu else _TILE_ON_GPU)
    options: list[list[tuple[int, int]]] = []
    for n in frame:
        sizes = [(k, good_size(max(-(-n // k) + 2 * side, least))) for k in range(1, max(1, n // 64) + 1)]
        if varying:
            sizes = [sizes[min(max(1, round(n / (wanted or n))), len(sizes)) - 1]]
        else:
            smallest = min(size for _, size in sizes)
            sizes = [option for option in sizes if option[1] <= max(largest, smallest)]
        options.append(sizes)
    best = min(((ky, kx, ty, tx) for ky, ty in options[0] for kx, tx in options[1]),
               key=lambda c: c[0] * c[1] * c[2] * c[3] * (1 + c[2] * c[3] / 1e6 if on_cpu else 1))
    return (best[0], best[1]), (best[2], best[3])


def cut(frame: tuple[int, int], count: tuple[int, int], margin: int, varying: bool) -> list[Tile]:
    """Cut the frame; with `varying`, tiles overlap by twice `_BLEND` and their weights add up to 1."""
    axes: list[list[tuple[slice, np.ndarray | None]]] = []
    for n, k in zip(frame, count, strict=True):
        edges = np.linspace(0, n, k + 1).astype(int)
        fade = min(_BLEND, int(np.diff(edges).min()) // 2) if varying and k > 1 else 0
        row: list[tuple[slice, np.ndarray | None]] = []
        for i in range(k):
            first, last = int(edges[i]), int(edges[i + 1])
            span = slice(first - (fade if i else 0), last + (fade if i < k - 1 else 0))
            weight = None
            if varying:
                at = np.arange(span.start, span.stop) + 0.5
                rise = (at - first + fade) / (2 * fade) if i else np.ones(len(at))
                fall = (last + fade - at) / (2 * fade) if i < k - 1 else np.ones(len(at))
                weight = np.clip(np.minimum(rise, fall), 0, 1)
            row.append((span, weight))
        axes.append(row)
    return [Tile(ys, xs, ys.start - margin, xs.start - margin, wy, wx) for ys, wy in axes[0] for xs, wx in axes[1]]
