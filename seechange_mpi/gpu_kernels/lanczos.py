"""Lanczos interpolation of one block of pixels on the CPU, by slices of the input instead of gathers.

Within a block of a nearly undistorted mapping the whole-pixel part of the displacement takes few values, 0 .. D beside
its least one. With weight vectors of 2a + D taps, zero where a pixel does not reach, every tap is one slice of the
input; rows of the block are as wide as those of the input's window, so that a slice is contiguous. Where D would be
large (strong rotation or scaling) the pixels are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

BITS = 16
PHASES = 1 << BITS
"""Sub-pixel positions of the table of weights."""

_MAX_EXTRA = 8
"""Largest D."""


@lru_cache(maxsize=2)
def _weight_table(a: int) -> np.ndarray:
    """Normalised weights w(u) for u from -(a + 8) to a + 8 in steps of 1/65536, float32; 0 from \\|u\\| = a on."""
    u = np.arange(-a * PHASES, a * PHASES) / PHASES
    w = np.sinc(u) * np.sinc(u / a)
    w[::PHASES] = 0
    w[a * PHASES] = 1
    w = w.reshape(2 * a, PHASES)
    w /= w.sum(axis=0)
    table = np.zeros(2 * (a + _MAX_EXTRA) * PHASES + 1, np.float32)
    table[_MAX_EXTRA * PHASES: (_MAX_EXTRA + 2 * a) * PHASES] = w.ravel()
    return table


class Scratch:
    """Buffers used again from block to block: fresh ones would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Return an array of any content; it is the same memory at the next call with that name."""
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)


@dataclass
class Taps:
    """Weights of a block of (h, w) output pixels, and where its taps are in the window cut from the input.

    Pixel k of the flattened block, whose rows are `width` long (columns from w on are of no meaning), has its tap
    (j, i) at k + j * window[1] + i of the flattened window, or at base[k] + j * window[1] + i.

    Attributes
    ----------
    block : (h, w);  corner : (y, x), its first output pixel.
    origin : (y, x), input pixel of the window's first one;  window : its shape.
    wy, wx : (taps, n) float32, n the last pixel of meaning + 1.
    use_y, use_x : the taps that have any weight.
    base : None or (n,) int
    qy, qx : (h, w) int64, displacement in units of 1/65536 pixel.
    """

    block: tuple[int, int]
    corner: tuple[int, int]
    origin: tuple[int, int]
    window: tuple[int, int]
    width: int
    wy: np.ndarray
    wx: np.ndarray
    use_y: list[int]
    use_x: list[int]
    base: np.ndarray | None
    qy: np.ndarray
    qx: np.ndarray
    scratch: Scratch

    @classmethod
    def of(cls, dy: np.ndarray, dx: np.ndarray, corner: tuple[int, int], a: int, scratch: Scratch) -> Taps:
        """Return the taps for displacements (h, w) [pix] of the block whose first output pixel is `corner` (y, x)."""
        h, w = dx.shape
        q, least, extra = [], [], []
        for d in (dy, dx):
            scaled = d * PHASES
            first, last = (int(np.rint(v)) for v in (scaled.min(), scaled.max()))
            q.append(np.rint(scaled, out=scaled).astype(np.int64))
            least.append(first >> BITS)
            extra.append(max((last - 1 >> BITS) - (first >> BITS), 0))
        if max(extra) > _MAX_EXTRA:
            return _gathered_taps(q[0], q[1], corner, a, scratch)
        window = (h + 2 * a - 1 + extra[0], w + 2 * a - 1 + extra[1])
        n = (h - 1) * window[1] + w
        wy, wx = (scratch.get("w" + axis, (2 * a + k, n)) for axis, k in zip("yx", extra, strict=True))
        index = scratch.get("index", (h, window[1]), np.int64)
        used = []
        for axis, out in enumerate((wy, wx)):
            np.subtract(q[axis], least[axis] << BITS, out=index[:, :w])
            index[:, w:] = index[:, w - 1: w]
            used.append(_weights(index.ravel()[:n], a, out))
        origin = (corner[0] + least[0] + 1 - a, corner[1] + least[1] + 1 - a)
        return cls((h, w), corner, origin, window, window[1], wy, wx, used[0], used[1], None, q[0], q[1], scratch)

    def result(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a buffer for a result (n,) float32 and its view (h, w)."""
        full = self.scratch.get(name, (self.block[0], self.width))
        return full.ravel()[: self.wy.shape[1]], full[:, : self.block[1]]

    def square(self) -> None:
        """Square the weights in place."""
        for w in (*self.wy, *self.wx):
            np.multiply(w, w, out=w)

    def cut(self, array: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Fill `out` (of the window's shape) with the window of an array; beyond its edges `out` stays as it is."""
        (y, x), (h, w) = self.origin, self.window
        y0, y1, x0, x1 = max(y, 0), min(y + h, array.shape[0]), max(x, 0), min(x + w, array.shape[1])
        if y1 > y0 and x1 > x0:
            out[y0 - y: y1 - y, x0 - x: x1 - x] = array[y0:y1, x0:x1]
        return out

    def apply(self, window: np.ndarray, weights: tuple[np.ndarray, np.ndarray] | None = None,
              name: str = "total") -> np.ndarray:
        """Weighted sum (h, w) float32 over the taps of each pixel; a view of the buffer `name`.

        Parameters
        ----------
        window : (h, w) float32, contiguous.
        weights : to be used instead of the block's own.
        """
        wy, wx = weights or (self.wy, self.wx)
        n = wy.shape[1]
        total, result = self.result(name)
        row, term, gathered = (self.scratch.get(k, (n,)) for k in ("row", "term", "gathered"))
        flat, base, width = window.ravel(), self.base, self.window[1]
        multiply, add = np.multiply, np.add
        for j in self.use_y:
            for i in self.use_x:
                part = flat[j * width + i:]
                pixels = part[:n] if base is None else part.take(base, out=gathered, mode="clip")
                if i == self.use_x[0]:
                    multiply(wx[i], pixels, out=row)
                else:
                    multiply(wx[i], pixels, out=term)
                    add(row, term, out=row)
            if j == self.use_y[0]:
                multiply(wy[j], row, out=total)
            else:
                multiply(wy[j], row, out=row)
                add(total, row, out=total)
        return result

    def lost_weight(self, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums over the lost pixels of the weights and of their absolute values, both (h, w) float32.

        Parameters
        ----------
        lost : (h, w) bool, the window.
        """
        where = np.flatnonzero(lost)
        (ty, n), tx = self.wy.shape, len(self.wx)
        if self.base is not None or len(where) > 0.05 * n:
            window = lost.astype(np.float32)
            absolute = (np.abs(self.wy), np.abs(self.wx))
            return self.apply(window, name="signed"), self.apply(window, absolute, "size")
        # few pixels: each spreads its weights over the outputs that it touches
        j, i = (v.ravel()[:, None] for v in np.indices((ty, tx)))
        to = where - (j * self.window[1] + i)
        valid = (to >= 0) & (to < n)
        np.clip(to, 0, n - 1, out=to)
        w = self.wy.ravel().take(to + j * n)
        w *= self.wx.ravel().take(to + i * n)
        w *= valid
        to, w = to.ravel(), w.ravel()
        (signed, out), (size, out_size) = self.result("signed"), self.result("size")
        signed[:] = np.bincount(to, w, n)
        size[:] = np.bincount(to, np.abs(w), n)
        return out, out_size

    def touched_flags(self, flags: np.ndarray) -> np.ndarray:
        """OR (h, w) of the flags next to each position: 2 × 2 pixels, fewer on a row or column of pixel centres.

        Parameters
        ----------
        flags : (h, w) unsigned, the window.
        """
        (h, w), width = self.block, self.window[1]
        row = (np.arange(h)[:, None] + (self.corner[0] - self.origin[0])) * width
        at = (self.qy >> BITS) * width
        at += self.qx >> BITS
        at += row + (np.arange(w) + (self.corner[1] - self.origin[1]))
        pair = flags.copy()
        pair[:, :-1] |= flags[:, 1:]
        four = pair.copy()
        four[:-1] |= pair[1:]
        out: np.ndarray = four.ravel().take(at)
        on_row, on_column = (self.qy & (PHASES - 1)) == 0, (self.qx & (PHASES - 1)) == 0
        if on_row.any() or on_column.any():
            tall = flags.copy()
            tall[:-1] |= flags[1:]
            for where, source in ((on_row, pair), (on_column, tall), (on_row & on_column, flags)):
                out[where] = source.ravel().take(at[where])
        return out


def _weights(index: np.ndarray, a: int, out: np.ndarray) -> list[int]:
    """Fill `out` (2a + D, n) with the weights of the taps 1 - a .. a + D for positions index / 65536 in 0 .. D + 1.

    Returns the taps that have any weight: fewer than all where the positions are all the same.
    """
    table = _weight_table(a)
    for t, w in enumerate(out):
        table[(2 * a - 1 + _MAX_EXTRA - t) * PHASES:].take(index, out=w, mode="clip")
    same = len(out) == 2 * a and index.min() == index.max()
    return np.flatnonzero(out[:, 0]).tolist() if same else list(range(len(out)))


def _gathered_taps(qy: np.ndarray, qx: np.ndarray, corner: tuple[int, int], a: int, scratch: Scratch) -> Taps:
    h, w = qx.shape
    y = (qy >> BITS) + (np.arange(h)[:, None] + corner[0])
    x = (qx >> BITS) + (np.arange(w) + corner[1])
    y0, x0 = int(y.min()), int(x.min())
    window = (int(y.max()) - y0 + 2 * a, int(x.max()) - x0 + 2 * a)
    base = ((y - y0) * window[1] + x - x0).ravel()
    wy, wx = (scratch.get("w" + axis, (2 * a, h * w)) for axis in "yx")
    use_y, use_x = (_weights((q & (PHASES - 1)).ravel(), a, out) for q, out in ((qy, wy), (qx, wx)))
    origin = (y0 + 1 - a, x0 + 1 - a)
    return Taps((h, w), corner, origin, window, w, wy, wx, use_y, use_x, base, qy, qx, scratch)
