"""Difference image, score, flux and their errors of two registered images, tile by tile.

Filters (`difference_filter`) are applied by overlap–save: a tile is transformed with a margin as wide as the filters
reach, and only its core is kept, so that the joins are exact. Tiles are small enough to stay in a CPU's cache, which
makes them more than twice as quick as transforms of the whole frame. Where the filters change over the frame,
neighbouring tiles overlap further and are cross-faded linearly.

Masked pixels and everything off the frame count as zero with zero variance: they add neither signal nor noise
elsewhere, S_corr keeps unit variance next to them, and the flux of a source that lost part of its profile to them is
scaled by what is left. Masked pixels on stars and galaxies are filled instead with what the rest of both images says
(`fill`), so that the static source still cancels; the variance of S and the response to a transient next to them fall
by what the filling may have taken from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.device import free_memory, is_out_of_memory
from seechange_mpi.gpu_kernels.difference_filter import DifferenceFilter, psf_stamp, reach
from seechange_mpi.gpu_kernels.fft import good_size, irfft2, rfft2
from seechange_mpi.gpu_kernels.fill import Fill, fill_values
from seechange_mpi.gpu_kernels.subtraction import Subtraction
from seechange_mpi.gpu_kernels.tiles import Tile, cut, layout

FilterAt = Callable[[float, float, tuple[int, int], Any], DifferenceFilter]
"""(x, y, grid shape, real dtype) -> the filters there."""

_SMALLER_TILE = 1024
"""Side of a tile on a GPU whose memory the whole frame did not fit."""

_LEAST_SEEN = 0.1
"""Of a source of which less is left than this, the flux is not scaled further."""


@dataclass
class Pair:
    """Two images as they are, and what is known of them.

    Attributes
    ----------
    new, ref : (ny, nx) float.
    variance_new, variance_ref : (ny, nx), or None for noise² + image.
    noise_new, noise_ref : (x, y) -> background rms there.
    flux_new : F_n.
    sigma_x, sigma_y : relative astrometric error per axis [pix].
    mask : (ny, nx) bool or None.
    background : (x, y) -> what is taken off the new image (or, with `background_of_ref`, the reference), or None.
    rest : (slices of the frame, x, y) -> what is taken off there as well when the filters are those of (x, y), or None.
    """

    new: Array
    ref: Array
    variance_new: Array | None
    variance_ref: Array | None
    noise_new: Callable[[float, float], float]
    noise_ref: Callable[[float, float], float]
    flux_new: float = 1.0
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    mask: Array | None = None
    background: Callable[[Array, Array], Array] | None = None
    background_of_ref: bool = False
    rest: Callable[[tuple[slice, slice], float, float], Array] | None = None


class ReferenceCache:
    """Transforms of a reference and of its variance, kept between exposures on the same grid.

    They count as the same while the arrays are the same objects. A tile whose bad pixels differ from last time is
    transformed again. Costs about 11 bytes per pixel.
    """

    def __init__(self) -> None:
        self._ref: Array | None = None
        self._variance: Array | None = None
        self._tiles: dict[Any, tuple[Array | None, Array, Array]] = {}
        self.hits = 0

    def get(self, pair: Pair, key: Any, bad: Array | None, xp: Any) -> tuple[Array, Array] | None:
        """Transforms of the reference's image and variance on a tile, if they are known for these bad pixels."""
        if self._ref is not pair.ref or self._variance is not pair.variance_ref:
            self._ref, self._variance, self._tiles = pair.ref, pair.variance_ref, {}
        known = self._tiles.get(key)
        if known is None or (known[0] is None) != (bad is None):
            return None
        if bad is not None and not bool(xp.array_equal(known[0], bad)):
            return None
        self.hits += 1
        return known[1], known[2]

    def put(self, key: Any, bad: Array | None, image: Array, variance: Array) -> None:
        """Keep the transforms of a tile."""
        self._tiles[key] = (None if bad is None else bad.copy(), image.copy(), variance.copy())


def subtract(
    pair: Pair, filter_at: FilterAt, *, varying: bool, psf_size: int, tile: int | None = None,
    cache: ReferenceCache | None = None,
) -> Subtraction:
    """Apply the filters to a pair.

    Parameters
    ----------
    filter_at : filters at a position on a grid; asked once, at the centre of the frame, unless `varying`.
    varying : the filters change over the frame.
    psf_size : side of the larger PSF stamp [pix].
    tile : about the side of a tile [pix]. Default: 512 where filters vary; else what suits a CPU's cache, and on a GPU
        the whole frame unless that is larger than 6144 pixels or does not fit its memory.
    cache : transforms of the reference, used and filled.

    Raises
    ------
    ValueError
        No pixel is good in both images, or `tile` is not positive.
    """
    if tile is not None and not tile >= 1:
        raise ValueError(f"tile must be at least 1 pixel, found {tile}")
    try:
        return _subtract(pair, filter_at, varying, psf_size, tile, cache)
    except Exception as err:
        if varying or tile is not None or not is_out_of_memory(err):
            raise
    # only here, after the frames of the failed call, and with them its arrays, are gone
    free_memory()
    return _subtract(pair, filter_at, varying, psf_size, _SMALLER_TILE, cache)


def _subtract(pair: Pair, filter_at: FilterAt, varying: bool, psf_size: int, tile: int | None,
              cache: ReferenceCache | None) -> Subtraction:
    xp = get_xp(pair.new, pair.ref)
    ny, nx = pair.new.shape
    # of any byte order
    real = np.dtype(np.float32 if pair.new.dtype.type is np.float32 else np.float64)
    n = good_size(max(256, 6 * psf_size))
    middle = ((nx - 1) / 2, (ny - 1) / 2)
    centre = filter_at(*middle, (n, n), np.float64)  # in double precision, so that their reach can be seen
    margin = reach(centre)
    count, shape = layout((ny, nx), margin, varying, tile, on_cpu=xp is np, least=psf_size)
    constant = None if varying else filter_at(*middle, shape, real.type)
    planes = _Planes(xp, (ny, nx), real, varying)
    bad = _bad(pair, xp)
    side = good_size(max(128, 3 * psf_size))
    fill = None if bad is None else fill_values(
        pair, bad, lambda x, y: filter_at(x, y, (side, side), np.float64), varying=varying)
    buffer = xp.zeros(shape, dtype=real)
    any_good = False
    for part in cut((ny, nx), count, margin, varying):
        x, y = (part.x.start + part.x.stop - 1) / 2, (part.y.start + part.y.stop - 1) / 2
        work = _Work(pair, part, constant or filter_at(x, y, shape, real.type), buffer, cache, x, y, bad, fill)
        any_good |= work.run(planes)
    if not any_good:
        raise ValueError("no pixel is good in both images")
    return Subtraction(
        planes.difference, psf_stamp(centre, psf_size + psf_size // 2).astype(real), planes.score, planes.score_corr,
        planes.flux, planes.flux_err, planes.translient, centre.f_d * pair.flux_new, planes.zero_points)


def _bad(pair: Pair, xp: Any) -> Array | None:
    """Pixels that are masked or not finite; None if there are none."""
    total = pair.new + pair.ref
    for variance in (pair.variance_new, pair.variance_ref):
        if variance is not None:
            total = total + variance
    bad = ~xp.isfinite(total)
    if pair.mask is not None:
        bad |= pair.mask
    return bad if bool(bad.any()) else None


class _Planes:
    """The images that the tiles fill."""

    def __init__(self, xp: Any, shape: tuple[int, int], real: np.dtype[Any], varying: bool) -> None:
        make = xp.zeros if varying else xp.empty
        self.difference, self.score, self.score_corr, self.flux, self.flux_err, self.translient = (
            make(shape, dtype=real) for _ in range(6))
        self.images = (self.difference, self.score, self.score_corr, self.flux, self.flux_err, self.translient)
        self.zero_points: Array | None = xp.zeros(shape, dtype=real) if varying else None


class _Work:
    """One tile: transform, filter, transform back, combine."""

    def __init__(self, pair: Pair, part: Tile, filters: DifferenceFilter, buffer: Array, cache: ReferenceCache | None,
                 x: float, y: float, bad: Array | None, fill: Fill | None) -> None:
        self.pair, self.part, self.f, self.buffer, self.cache = pair, part, filters, buffer, cache
        self.xp = get_xp(pair.new, pair.ref)
        self.real: Any = buffer.dtype.type
        self.centre = x, y
        self.noise = pair.noise_new(x, y), pair.noise_ref(x, y)
        self.wide, self.at, self.core = part.slices(pair.new.shape, buffer.shape)
        self.bad = None if bad is None else bad[self.wide]
        if self.bad is not None and not bool(self.bad.any()):
            self.bad = None
        self.fill = None if fill is None or self.bad is None else self._fill(fill)
        self.good_hat: Array | None = None

    def _fill(self, fill: Fill) -> Fill | None:
        """Of the filling, what lies in the tile, or None; y and x from the tile's origin."""
        ys, xs = self.wide
        index = self.xp.nonzero((fill.y >= ys.start) & (fill.y < ys.stop) & (fill.x >= xs.start) & (fill.x < xs.stop)
                                )[0]
        if len(index) == 0:
            return None
        return Fill(fill.y[index] - ys.start, fill.x[index] - xs.start, fill.new[index], fill.ref[index],
                    fill.log_kept[self.part.y, self.part.x])

    def run(self, planes: _Planes) -> bool:
        """Fill the planes; return whether any pixel was good."""
        f, xp = self.f, self.xp
        bad = None
        if self.bad is not None:
            grid = xp.zeros(self.buffer.shape, dtype=bool)
            grid[self.at] = self.bad
            bad = grid[self.core]
            if bool(bad.all()):
                for plane in planes.images:
                    plane[self.part.y, self.part.x] = self.real(np.nan)
                return False
        self.good_hat = self._good_transform()
        n_hat, v_hat = self._transforms(self.pair.new, self.pair.variance_new, self.noise[0],
                                        not self.pair.background_of_ref, None if self.fill is None else self.fill.new)
        r_hat, w_hat = self._reference_transforms()
        v_hat *= f.kk_n
        v_hat += w_hat * f.kk_r
        v = irfft2(v_hat, f.shape, overwrite=True)[self.core]
        d_hat = f.d_n * n_hat
        d_hat -= f.d_r * r_hat
        d = irfft2(d_hat, f.shape, overwrite=True)[self.core]
        n_hat *= f.k_n
        r_hat = r_hat * f.k_r
        parts: tuple[Array, ...] = ()
        if self.pair.sigma_x or self.pair.sigma_y:
            parts = irfft2(n_hat, f.shape, overwrite=True), irfft2(r_hat, f.shape, overwrite=True)
            s = parts[0] - parts[1]
        else:
            n_hat -= r_hat
            s = irfft2(n_hat, f.shape, overwrite=True)
        self._combine(planes, d, s, v, parts, bad)
        return True

    def _good_transform(self) -> Array | None:
        """Transform of 1 on good pixels of the frame, 0 elsewhere; None where every pixel of the grid is good."""
        whole = self.buffer[self.at].size == self.buffer.size
        if self.bad is None and whole:
            return None
        self.buffer[:] = 0
        self.buffer[self.at] = 1 if self.bad is None else ~self.bad
        return rfft2(self.buffer)

    def _transforms(self, image: Array, variance: Array | None, noise: float, less: bool, filled: Array | None
                    ) -> tuple[Array, Array]:
        """Transforms of an image and of its variance, zero off the frame and where masked (unless `filled`).

        `less` takes the pair's background and rest off the image.
        """
        buffer, inside = self.buffer, self.buffer[self.at]
        buffer[:] = 0
        inside[...] = image[self.wide]
        if less and self.pair.background is not None:
            inside -= self.pair.background(*self._positions()).astype(buffer.dtype)
        if less and self.pair.rest is not None:
            inside -= self.pair.rest(self.wide, *self.centre)
        self._blank(inside)
        blank_hat = image_hat = rfft2(buffer) if variance is None or filled is None else buffer
        if filled is not None and self.fill is not None:
            inside[self.fill.y, self.fill.x] = filled
            image_hat = rfft2(buffer)
        if variance is not None:
            inside[...] = variance[self.wide]
            self._blank(inside)
            return image_hat, rfft2(buffer)
        # noise² + image, the transform of noise² × good being known
        if self.good_hat is None:
            variance_hat = blank_hat.copy()
            variance_hat[0, 0] += self.real(noise**2 * buffer.size)
        else:
            variance_hat = self.good_hat * self.real(noise**2)
            variance_hat += blank_hat
        return image_hat, variance_hat

    def _reference_transforms(self) -> tuple[Array, Array]:
        pair, cache = self.pair, self.cache if self.fill is None else None  # the filling depends on the new image
        key = (self.part.y0, self.part.x0, self.buffer.shape, self.buffer.dtype, self.noise[1])
        known = cache.get(pair, key, self.bad, self.xp) if cache is not None else None
        if known is not None:
            return known
        made = self._transforms(pair.ref, pair.variance_ref, self.noise[1],
                                pair.background_of_ref, None if self.fill is None else self.fill.ref)
        if cache is not None:
            cache.put(key, self.bad, *made)
        return made

    def _blank(self, inside: Array) -> None:
        if self.bad is not None:
            self.xp.copyto(inside, self.real(0), where=self.bad)

    def _positions(self) -> tuple[Array, Array]:
        xp, (ys, xs) = self.xp, self.wide
        return (xp.arange(xs.start, xs.stop, dtype=xp.float64)[None, :],
                xp.arange(ys.start, ys.stop, dtype=xp.float64)[:, None])

    def _combine(self, planes: _Planes, d: Array, s: Array, v: Array, parts: tuple[Array, ...], bad: Array | None
                 ) -> None:
        """Everything that follows from D, S and the variance of S."""
        xp, real, f, pair = self.xp, self.real, self.f, self.pair
        xp.maximum(v, real(1e-3 * f.s_var), out=v)
        kept = None if self.fill is None else xp.exp(self.fill.log_kept)
        if kept is not None:
            v *= kept
        gain = self._gain(kept)
        error = xp.sqrt(v)
        for part in parts:
            self._add_gradients(v, part, pair.sigma_x**2, pair.sigma_y**2)
        moving = xp.zeros_like(error)
        self._add_gradients(moving, s, f.s_var / f.gx_var, f.s_var / f.gy_var)
        moving /= v
        total = xp.sqrt(v, out=v) if parts else error
        s = s[self.core]
        if bad is not None:
            for image in (d, s, error, moving):
                xp.copyto(image, real(np.nan), where=bad)
        self._put(planes.difference, d)
        self._put(planes.score, s, real(pair.flux_new / f.noise_new))
        xp.divide(s, total, out=total if parts else v)
        self._put(planes.score_corr, total if parts else v)
        self._put(planes.flux, s, gain)
        self._put(planes.flux_err, error, gain)
        self._put(planes.translient, moving)
        if planes.zero_points is not None:
            self._put(planes.zero_points, xp.full(s.shape, f.f_d * pair.flux_new, dtype=real))

    def _add_gradients(self, total: Array, image: Array, weight_x: float, weight_y: float) -> None:
        """Add the weighted squares of the central differences of a grid, on the core, to `total`."""
        ys, xs = self.core
        for weight, a, b in (
                (weight_x, (ys, slice(xs.start + 1, xs.stop + 1)), (ys, slice(xs.start - 1, xs.stop - 1))),
                (weight_y, (slice(ys.start + 1, ys.stop + 1), xs), (slice(ys.start - 1, ys.stop - 1), xs))):
            g = image[a] - image[b]
            g *= g
            g *= self.real(0.25 * weight)
            total += g

    def _gain(self, kept: Array | None) -> Any:
        """1 / (F_n × response of S to a unit transient): what is masked or off the frame counts for nothing."""
        xp, f, real = self.xp, self.f, self.real
        if self.good_hat is None:
            return real(1 / (f.f_s * self.pair.flux_new))
        seen = irfft2(self.good_hat * f.response_hat, f.shape, overwrite=True)[self.core]
        if kept is not None:
            seen *= kept
        xp.maximum(seen, real(_LEAST_SEEN * f.f_s), out=seen)
        return xp.divide(real(1 / self.pair.flux_new), seen, out=seen)

    def _put(self, plane: Array, values: Array, factor: Any = None) -> None:
        part = self.part
        into = plane[part.y, part.x]
        if part.fade_y is None or part.fade_x is None:
            if factor is None:
                into[...] = values
            else:
                self.xp.multiply(values, factor, out=into)
            return
        xp = self.xp
        weight = (xp.asarray(part.fade_y, dtype=plane.dtype)[:, None]
                  * xp.asarray(part.fade_x, dtype=plane.dtype)[None, :])
        weight *= values
        if factor is not None:
            weight *= factor
        into += weight
