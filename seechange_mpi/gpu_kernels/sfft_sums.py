"""Sums over all pixels that the SFFT solver needs, from transforms of tiles.

With Q_k = u^i v^j, template T, target J and weight M (T and J already multiplied by M):

    C_k(Δ) = Σ_y Q_k(y) T(y) T(y + Δ),   D_k(s) = Σ_y Q_k(y) T(y) J(y + s),   E_k(s) = Σ_y Q_k(y) T(y) M(y + s)

Only |Δ| ≤ 2 w and |s| ≤ w occur, so tiles with a halo of 2 w pixels give the sums exactly.  The cross spectra of all
tiles are added before one small inverse transform of each; the forward transforms are one of T, J, M and of each Q_k T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels import polynomials
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.fft import centred_kernel, good_size, irfft2, rfft2
from seechange_mpi.gpu_kernels.sfft_regions import Grid

PRECISION: Any = np.float32
"""Of the tile transforms. float64 moves no pixel of a kernel by more than 2e-6 of its sum (FWHM 3 and 4 pixels)."""
TILE = 256
"""Size of one transform [pix], more for wide kernels."""
CHUNK = {"numpy": 2, "cupy": 64}
"""Tiles transformed at once."""

Table = dict[tuple[int, int], Array]


class Tiling:
    """Squares of `size` pixels that overlap by 4 `width`: their `core` × `core` middles cover the frame."""

    def __init__(self, grid: Grid, width: int) -> None:
        self.grid, self.halo = grid, 2 * width
        self.size = good_size(min(max(TILE, 12 * width), max(grid.shape) + 4 * width))
        self.size += self.size % 2
        self.core = self.size - 2 * self.halo
        self.rows, self.columns = -(-grid.shape[0] // self.core), -(-grid.shape[1] // self.core)

    def windows(self, image: Array) -> Array:
        """Every tile of an image, zero beyond its edges: a (rows, columns, size, size) view."""
        xp = get_xp(image)
        h = self.halo
        out = xp.zeros((self.rows * self.core + 2 * h, self.columns * self.core + 2 * h), dtype=image.dtype)
        out[h: h + image.shape[0], h: h + image.shape[1]] = image
        sy, sx = out.strides
        return xp.lib.stride_tricks.as_strided(
            out, (self.rows, self.columns, self.size, self.size), (sy * self.core, sx * self.core, sy, sx))

    def active(self, weight: Array) -> np.ndarray:
        """Tiles whose middle holds a weight, (rows, columns) bool, host."""
        h = self.halo
        middle = self.windows(weight != 0)[:, :, h: h + self.core, h: h + self.core]
        return np.asarray(asnumpy(middle.any(axis=(2, 3))))

    def chunks(self, tiles: np.ndarray, xp: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and columns of the tiles that are True, a few at a time."""
        row, column = np.nonzero(tiles)
        step = CHUNK[xp.__name__]
        for k in range(0, len(row), step):
            yield row[k: k + step], column[k: k + step]

    def positions(self, row: np.ndarray, column: np.ndarray, xp: Any) -> tuple[Array, Array]:
        """u (n, 1, core) and v (n, core, 1) of the middles."""
        (x0, y0), (xs, ys) = self.grid.origin, self.grid.scale
        inner = np.arange(self.core)
        u = (column[:, None, None] * self.core + inner[None, None, :] - x0) / xs
        v = (row[:, None, None] * self.core + inner[None, :, None] - y0) / ys
        return xp.asarray(u.astype(PRECISION)), xp.asarray(v.astype(PRECISION))

    def convolve(self, windows: Array, planes: np.ndarray, degree: int, tiles: np.ndarray) -> Array:
        """Σ_p t_p(u, v) (planes[p] ⊗ image) on the tiles that are True, zero elsewhere: (ny, nx) float32."""
        xp = get_xp(windows)
        h, c = self.halo, self.core
        kernels = [centred_kernel(xp.asarray(p.astype(PRECISION)), (self.size, self.size)) for p in planes]
        out = xp.zeros((self.rows, c, self.columns, c), dtype=np.float32)
        for row, column in self.chunks(tiles, xp):
            u, v = self.positions(row, column, xp)
            row, column = xp.asarray(row), xp.asarray(column)
            spectrum = rfft2(windows[row, column].astype(PRECISION))
            total: Any = 0.0
            for (i, j), kernel in zip(polynomials.powers(degree), kernels, strict=True):
                part = irfft2(spectrum * kernel, (self.size, self.size))[:, h: h + c, h: h + c]
                total = total + part * u**i * v**j
            out[row, :, column, :] = total
        ny, nx = self.grid.shape
        return out.reshape(self.rows * c, self.columns * c)[:ny, :nx]


@dataclass
class Windows:
    """Tiles of the sky-subtracted template and target, and of the template's variance (None: noise² everywhere)."""

    template: Array
    target: Array
    variance: Array | None
    noise: float


class Sums:
    """C, D, E as spectra, and the moments Σ Q M², Σ Q M J, Σ Q M² var(T); tiles can be added and taken away."""

    def __init__(self, tiling: Tiling, width: int, degree: int, background_degree: int, xp: Any) -> None:
        self.tiling, self.width, self.xp = tiling, width, xp
        shape = (tiling.size, tiling.size // 2 + 1)

        def spectra(top: int) -> Table:
            return {p: xp.zeros(shape, np.complex128) for p in polynomials.powers(top)}

        def moments(top: int) -> Table:
            return {p: xp.zeros(()) for p in polynomials.powers(top)}

        self.tt, self.tj, self.tm = spectra(2 * degree), spectra(degree), spectra(degree + background_degree)
        self.mm, self.mj, self.noise = moments(2 * background_degree), moments(background_degree), moments(2 * degree)
        self.pixels = xp.zeros(())

    def add(self, windows: Windows, weight: Array, tiles: np.ndarray, sign: int = 1) -> None:
        """Add (`sign` 1) or take away (−1) the tiles that are True, with the weight map (ny, nx)."""
        xp, h, c = self.xp, self.tiling.halo, self.tiling.core
        inner = (slice(None), slice(h, h + c), slice(h, h + c))
        weights = self.tiling.windows(weight)
        powers = sorted(set(self.tt) | set(self.tm))
        for row, column in self.tiling.chunks(tiles, xp):
            u, v = self.tiling.positions(row, column, xp)
            row, column = xp.asarray(row), xp.asarray(column)
            m = weights[row, column].astype(PRECISION)
            t, j = windows.template[row, column] * m, windows.target[row, column] * m
            variance = windows.noise**2 if windows.variance is None else windows.variance[row, column][inner]
            m2 = m[inner] ** 2
            self.pixels = self.pixels + sign * xp.count_nonzero(m2)
            self._moments(u, v, m2, m[inner] * j[inner], m2 * variance, sign)
            right = rfft2(t), rfft2(j), rfft2(m)
            left = xp.zeros_like(t)
            for p in powers:
                xp.multiply(t[inner], u ** p[0] * v ** p[1], out=left[inner])
                spectrum = xp.conj(rfft2(left))
                for table, other in zip((self.tt, self.tj, self.tm), right, strict=True):
                    if p in table:
                        table[p] += sign * (spectrum * other).sum(axis=0)

    def _moments(self, u: Array, v: Array, m2: Array, mj: Array, noise: Array, sign: int) -> None:
        """Adds Σ Q · of each, in float64."""
        xp = self.xp
        for table, image in ((self.mm, m2), (self.mj, mj), (self.noise, noise)):
            top = max(i for i, _ in table)
            along = xp.stack([u[:, 0].astype(np.float64) ** i for i in range(top + 1)], axis=2)
            across = xp.stack([v[:, :, 0].astype(np.float64) ** j for j in range(top + 1)], axis=1)
            total = sign * xp.matmul(across, xp.matmul(image.astype(np.float64), along)).sum(axis=0)
            for i, j in table:
                table[(i, j)] = table[(i, j)] + total[j, i]

    def lags(self, table: Table, reach: int) -> Table:
        """The sums at lags −reach … reach of both axes, (2 reach + 1, 2 reach + 1) float64."""
        size = 2 * reach + 1
        return {p: self.xp.roll(irfft2(s, (self.tiling.size,) * 2), (reach, reach), (0, 1))[:size, :size]
                for p, s in table.items()}
