"""What `fill` needs of the filters: Ĉ⁻¹ of both images and the score's kernels as stamps; see there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.difference_filter import DifferenceFilter
from seechange_mpi.gpu_kernels.fft import irfft2, rfft2

if TYPE_CHECKING:
    from seechange_mpi.gpu_kernels.difference import Pair

_ERROR, _ENDS, _FINEST = 0.3, 1e-4, 1e-6
"""d and e are cut where they would carry an error of `_ERROR` [sigma] from light of τ, within these bounds."""

_K_ENDS = 0.01
"""Of its peak at which k counts as ended, where q is concerned."""

MARGIN = 60
"""Largest half width of c_ij and k [pix]."""


class Cell:
    """Filters of a part of the frame; noise, and tables by τ."""

    def __init__(self, pair: Pair, filters_at: Callable[[float, float], DifferenceFilter], x2: int, y2: int) -> None:
        self.x, self.y, self._filters_at = x2 / 2, y2 / 2, filters_at
        self.noise = pair.noise_new(self.x, self.y), pair.noise_ref(self.x, self.y)
        self._filters: DifferenceFilter | None = None
        self._tables: dict[int, Tables] = {}

    @property
    def filters(self) -> DifferenceFilter:
        if self._filters is None:
            self._filters = self._filters_at(self.x, self.y)
        return self._filters

    @property
    def spread(self) -> float:
        """Rms per axis of a Gaussian of the noise-equivalent area of P_D, 1 to 4 [pix]."""
        area = 1 / float((irfft2(self.filters.psf_hat, self.filters.shape) ** 2).sum())
        return float(np.clip(np.sqrt(area / (4 * np.pi)), 1, 4))

    def tables(self, decade: int) -> Tables:
        """Tables for τ = 10^decade σ_n."""
        if decade not in self._tables:
            self._tables[decade] = Tables(self.filters, *self.noise, 10.0**decade)
        return self._tables[decade]


class Tables:
    """c_ij and k as stamps around offset 0, and V_0.

    Attributes
    ----------
    c : (3, 2 half + 1, 2 half + 1), c_nn, c_nr, c_rr;  weights_new, weights_ref : ((2 half + 1)², 2), the same as
        weights of a window of one image for both rows of Ĉ⁻¹.
    k : (2, n, n), k_n, −k_r over √V_0;  lost : σ_n² k_n² + σ_r² k_r² over V_0;  reach : half width that matters for q.
    """

    def __init__(self, f: DifferenceFilter, noise_new: float, noise_ref: float, tau: float) -> None:
        xp = get_xp(f.d_n)
        v_n, v_r = noise_new**2, noise_ref**2
        p_n, p_r = (d.real**2 + d.imag**2 for d in (f.d_n, f.d_r))
        root = xp.sqrt(v_n * p_n + v_r * p_r)
        sky = p_r / v_n + p_n / v_r
        both = p_n * p_r
        signal = (tau * noise_new * f.f_d) ** 2 * (f.psf_hat.real**2 + f.psf_hat.imag**2) * sky
        w = xp.sqrt(both / (both + signal) / sky)
        # conj(ê) of the module, so that data are multiplied by it
        rows = [f.d_n / root, -f.d_r / root, w / v_n * xp.conj(f.d_r), w / v_r * xp.conj(f.d_n)]
        whitened = (noise_new, noise_ref) * 2
        ends = min(max(_ERROR / tau, _FINEST), _ENDS)
        planes = [irfft2(a, f.shape) for a in rows]
        h = _half_width([p * s for p, s in zip(planes, whitened, strict=True)], ends, MARGIN // 2)
        # cut first, multiplied later: G stays positive and the right-hand side in its range
        d_n, d_r, e_n, e_r = (rfft2(_box(p, h)) for p in planes)
        hats = (d_n * xp.conj(d_n) + e_n * xp.conj(e_n), d_r * xp.conj(d_n) + e_r * xp.conj(e_n),
                d_r * xp.conj(d_r) + e_r * xp.conj(e_r))
        self.half = 2 * h
        self.c = xp.stack([_stamp(irfft2(a, f.shape), self.half) for a in hats])
        nn, nr, rr = (c.ravel() for c in self.c[:, ::-1, ::-1])
        rn = self.c[1].ravel()
        self.weights_new, self.weights_ref = xp.stack([nn, rn], axis=1), xp.stack([nr, rr], axis=1)
        score = (v_n * f.k_n * xp.conj(f.d_n) + v_r * f.k_r * xp.conj(f.d_r)) / (root * f.s_var**0.5)
        k = [irfft2(score * d, f.shape) for d in (d_n, d_r)]
        self.reach = _half_width([a * s / xp.abs(a * s).max() for a, s in zip(k, whitened[:2], strict=True)], _K_ENDS,
                                 MARGIN)
        self.k = xp.stack([_stamp(a, MARGIN) for a in k])
        self.lost = v_n * self.k[0] ** 2 + v_r * self.k[1] ** 2


def _half_width(planes: list[Array], tolerance: float, largest: int) -> int:
    """Largest distance from [0, 0] along an axis at which one of the periodic planes exceeds `tolerance`."""
    xp = get_xp(planes[0])
    large = xp.zeros(planes[0].shape, dtype=bool)
    for plane in planes:
        large |= xp.abs(plane) > tolerance
    half = 1
    for axis, n in ((1, large.shape[0]), (0, large.shape[1])):
        index = xp.arange(n)
        half = max(half, int((xp.minimum(index, n - index) * large.any(axis=axis)).max()))
    return min(half, largest)


def _stamp(plane: Array, half: int) -> Array:
    """The pixels around [0, 0] of a periodic plane."""
    return get_xp(plane).roll(plane, (half, half), axis=(0, 1))[: 2 * half + 1, : 2 * half + 1]


def _box(plane: Array, half: int) -> Array:
    """A periodic plane, zero beyond `half` from [0, 0]."""
    xp = get_xp(plane)
    ny, nx = plane.shape
    near = [xp.minimum(xp.arange(n), n - xp.arange(n)) <= half for n in (ny, nx)]
    return plane * (near[0][:, None] & near[1][None, :])
