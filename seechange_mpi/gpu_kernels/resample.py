"""Flux-conserving Lanczos resampling through a smooth coordinate mapping.

An output pixel at (x, y), mapped to (X, Y) of the input, becomes

    out = J · Σ_good w(Y - j) w(X - i) in[j, i] / Σ_good w(Y - j) w(X - i),      J = |∂(X, Y) / ∂(x, y)|,

with w(u) = L(u) / Σ_k L(u - k) and L(u) = sinc(u) sinc(u / a) for |u| < a, a = 3 or 4 (Duchon 1979,
J. Appl. Meteor. 18, 1016); the sums run over the good ones of the (2a)² nearest pixels. Positions are rounded to
1/65536 pixel; a mapping onto pixel centres copies the pixels bit for bit.

Flux: the mean over the phases of the grids is conserved to 0.03 %. The sum over a single star of FWHM 2 pixels is
conserved to 0.04 % under shifts and rotations of a few degrees, but where the scale changes, the phase runs through
the star and its sum is modulated with the period 1 / |scale - 1| pixels: 0.4 % rms at scales of 0.9 and 1.1 with
Lanczos-3 and 0.1 to 0.2 % with Lanczos-4 (0.8 and 0.3 % at 1.25, 0.13 and 0.09 % at 0.99 and 1.01).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import BSpline, RectBivariateSpline

from seechange_mpi.gpu_kernels.backend import Array, get_xp
from seechange_mpi.gpu_kernels.lanczos import Scratch, Taps

Mapping = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_SHAPES = ((64, 256), (128, 128), (64, 64))
"""Shapes of blocks on the CPU; the first also where pixels are gathered."""

_MAX_LOST = 0.25
"""Weight that may be lost to bad pixels."""


@dataclass
class WarpResult:
    """Result of `warp`; arrays of the backend of its input.

    Attributes
    ----------
    data, variance : (ny, nx) float32; 0 where nothing is known.
    flags : (ny, nx), OR of the input flags of the pixels next to the position (2 × 2; fewer where it falls on a row or
        column of pixel centres).
    inside : (ny, nx) bool, the position lies on the input and enough weight was good.
    correlation : (ny, nx) float32 or None, given with ``variance``: R² = 1 / (J Σ w²), the noise power on large scales
        over the variance per pixel. White noise of variance v per input pixel has the power v per input pixel area,
        hence J v per output pixel on scales that the interpolation does not touch, while the variance of one output
        pixel is J² v Σ w². So ``variance * correlation`` is what a matched filter, or the sum over an aperture,
        sees per pixel. 1 where nothing is known. Next to pixels left out the ratio stays that of all weights.
    """

    data: Array
    variance: Array | None
    flags: Array | None
    inside: Array
    correlation: Array | None = None


@dataclass(frozen=True)
class _Spline:
    """Bicubic spline of the displacement (X - x, Y - y) and of J, for a grid of pixels.

    Attributes
    ----------
    dx, dy, jacobian : (my, mx) float64, coefficients.
    by, bx : (ny, 4), (nx, 4) float64, values of the B-splines that are not zero in a row or column of pixels.
    first_y, first_x : (ny,), (nx,) int32, index of the first of them.
    slopes : largest |∂dx/∂x|, |∂dx/∂y|, |∂dy/∂x|, |∂dy/∂y|.
    """

    shape: tuple[int, int]
    dx: np.ndarray
    dy: np.ndarray
    jacobian: np.ndarray
    by: np.ndarray
    first_y: np.ndarray
    bx: np.ndarray
    first_x: np.ndarray
    slopes: tuple[float, float, float, float]

    def rows(self, at: slice) -> tuple[np.ndarray, slice]:
        """Return the matrix (rows, k) of the B-splines of some rows of pixels, and the slice of the k coefficients."""
        return _dense(self.by[at], self.first_y[at])

    def columns(self, at: slice) -> tuple[np.ndarray, slice]:
        """Return the same for columns of pixels."""
        return _dense(self.bx[at], self.first_x[at])

    def block(self, rows: tuple[np.ndarray, slice], columns: tuple[np.ndarray, slice]
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Displacements dx, dy and Jacobian of a block of pixels, three (h, w) float64."""
        (left, at_y), (right, at_x) = rows, columns
        dx, dy, jac = (left @ c[at_y, at_x] @ right.T for c in (self.dx, self.dy, self.jacobian))
        return dx, dy, jac


def _dense(band: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, slice]:
    at = slice(int(first[0]), int(first[-1]) + 4)
    full = np.zeros((len(band), at.stop - at.start))
    full[np.arange(len(band))[:, None], first[:, None] - at.start + np.arange(4)] = band
    return full, at


def _basis(knots: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    design = BSpline.design_matrix(np.arange(n, dtype=float), knots, 3)
    return design.data.reshape(n, 4), np.ascontiguousarray(design.indices.reshape(n, 4)[:, 0], dtype=np.int32)


def _fit_mapping(xy_of: Mapping, shape: tuple[int, int], step: int) -> _Spline:
    ny, nx = shape
    gy = np.linspace(0, max(ny - 1, 1), max(4, int(np.ceil(ny / step)) + 1))
    gx = np.linspace(0, max(nx - 1, 1), max(4, int(np.ceil(nx / step)) + 1))
    xx, yy = np.meshgrid(gx, gy)
    xi, yi = (np.asarray(v, dtype=float).reshape(xx.shape) for v in xy_of(xx.ravel(), yy.ravel()))
    lost = ~(np.isfinite(xi) & np.isfinite(yi))
    if lost.any():
        raise ValueError(f"warp: the mapping is not finite at {int(lost.sum())} of {lost.size} points of its grid")
    sx, sy = RectBivariateSpline(gy, gx, xi - xx, s=0), RectBivariateSpline(gy, gx, yi - yy, s=0)
    xx_, xy_, yx_, yy_ = sx(gy, gx, dy=1), sx(gy, gx, dx=1), sy(gy, gx, dy=1), sy(gy, gx, dx=1)
    jac = RectBivariateSpline(gy, gx, np.abs((1 + xx_) * (1 + yy_) - xy_ * yx_), s=0)
    knots_y, knots_x = sx.get_knots()
    by, first_y = _basis(knots_y, ny)
    bx, first_x = _basis(knots_x, nx)
    dx, dy, dj = (s.get_coeffs().reshape(len(gy), len(gx)) for s in (sx, sy, jac))
    slopes = tuple(float(np.abs(v).max()) for v in (xx_, xy_, yx_, yy_))
    return _Spline(shape, dx, dy, dj, by, first_y, bx, first_x, slopes)  # type: ignore[arg-type]


def mapping_grid(
    xy_of: Mapping, shape: tuple[int, int], step: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate a mapping on a coarse grid and interpolate its displacement by a bicubic spline.

    The error is (5 / 384) step⁴ times the fourth derivative: below 1e-4 pixel for the distortions of cameras, 0 for
    cubic polynomials.

    Returns
    -------
    x_in, y_in : (ny, nx) float64, input position of each output pixel.
    jacobian : (ny, nx) float32, area of an output pixel in input pixels.

    Raises
    ------
    ValueError
        The mapping is not finite everywhere on the grid (a position behind the projection, for example).
    """
    spline = _fit_mapping(xy_of, shape, step)
    x, y, jacobian = spline.block(spline.rows(slice(0, shape[0])), spline.columns(slice(0, shape[1])))
    x += np.arange(shape[1])
    y += np.arange(shape[0])[:, None]
    return x, y, jacobian.astype(np.float32)


def _block_shape(spline: _Spline, a: int) -> tuple[int, int]:
    """Return the shape of blocks that costs least per pixel: few extra taps against few calls of NumPy."""
    def cost(shape: tuple[int, int]) -> float:
        h, w = shape
        xx, xy, yx, yy = spline.slopes
        taps = (2 * a + np.ceil(w * xx + h * xy)) * (2 * a + np.ceil(w * yx + h * yy))
        return float(2 * taps * (0.2 + 1000 / (h * w)))

    best = min(_SHAPES, key=cost)
    return best if cost(best) < 4 * a**2 * 7 else _SHAPES[0]


def _parts(n: int, size: int) -> list[slice]:
    return [slice(k, min(k + size, n)) for k in range(0, n, size)]


@dataclass
class _Input:
    """What `warp` is given, as NumPy arrays of any numeric dtype."""

    data: np.ndarray
    variance: np.ndarray | None
    flags: np.ndarray | None
    bad: np.ndarray | None
    scratch: Scratch

    def windows(self, taps: Taps) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Cut data and variance (float32, 0 where lost) and the lost pixels (bool, None if none is) for a block."""
        data = taps.cut(self.data, self._filled("data", taps, np.nan))
        lost = np.isfinite(data, out=self.scratch.get("lost", taps.window, bool))
        np.logical_not(lost, out=lost)
        if self.bad is not None:
            lost |= taps.cut(self.bad, self._filled("bad", taps, False, bool))
        variance = None
        if self.variance is not None:
            variance = taps.cut(self.variance, self._filled("variance", taps, 0))
            lost |= ~np.isfinite(variance)
        if not lost.any():
            return data, variance, None
        data[lost] = 0
        if variance is not None:
            variance[lost] = 0
        return data, variance, lost

    def _filled(self, name: str, taps: Taps, value: float, dtype: Any = np.float32) -> np.ndarray:
        window = self.scratch.get("window_" + name, taps.window, dtype)
        window.fill(value)
        return window


def _on_input(d: np.ndarray, axis: int, corner: int, n: int) -> np.ndarray | None:
    """Return where the displacements (h, w) along an axis lead onto its n pixels; None = everywhere."""
    at = np.arange(corner, corner + d.shape[axis])
    if at[0] + d.min() > -0.5 and at[-1] + d.max() < n - 0.5:
        return None
    position = d + (at if axis else at[:, None])
    return np.asarray((position > -0.5) & (position < n - 0.5))


def _warp_block(given: _Input, out: WarpResult, position: tuple[np.ndarray, np.ndarray, np.ndarray],
                at: tuple[slice, slice], a: int) -> None:
    """Fill one block of the output, whose arrays hold the values of pixels of which nothing is known."""
    dx, dy = position[:2]
    jacobian = position[2].astype(np.float32)
    corner = (at[0].start, at[1].start)
    inside = np.ones(dx.shape, bool)
    for axis, d in enumerate((dy, dx)):
        known = _on_input(d, axis, corner[axis], given.data.shape[axis])
        if known is not None:
            inside &= known
    if not inside.all():
        if not inside.any():
            return
        # wherever they lead, pixels that are not inside must not widen the window
        dx, dy = (np.clip(d, d[inside].min(), d[inside].max()) for d in (dx, dy))
    on_input = inside.copy()
    taps = Taps.of(dy, dx, corner, a, given.scratch)
    data, variance, lost = given.windows(taps)
    scale = jacobian.copy()
    if lost is not None:
        signed, size = taps.lost_weight(lost)
        inside &= size < _MAX_LOST
        signed *= inside
        scale /= np.subtract(1, signed, out=signed)
    some_lost = not inside.all()
    if some_lost:
        scale *= inside
    out.inside[at] = inside
    np.multiply(taps.apply(data), scale, out=out.data[at])
    if given.flags is not None and out.flags is not None:
        flags = taps.cut(given.flags, np.zeros(taps.window, given.flags.dtype))
        if flags.any():
            out.flags[at] = taps.touched_flags(flags) * on_input
    if variance is not None and out.variance is not None and out.correlation is not None:
        taps.square()
        np.multiply(taps.apply(variance), np.square(scale, out=scale), out=out.variance[at])
        power, correlation = taps.result("power")
        np.add.reduce(taps.wy, out=power)
        power *= np.add.reduce(taps.wx)
        correlation *= jacobian
        if some_lost:
            correlation[~inside] = 1
        np.divide(1, correlation, out=out.correlation[at])


def _warp_device(data: Array, variance: Array | None, flags: Array | None, bad: Array | None, out: WarpResult,
                 spline: _Spline, a: int) -> None:
    """Fill the output on the device; only the coefficients of the mapping travel."""
    from seechange_mpi.gpu_kernels.cuda import kernel

    xp = get_xp(data)
    ny, nx = out.data.shape
    given = (variance is not None) | (flags is not None) << 1 | (bad is not None) << 2
    found = xp.zeros(out.data.shape if flags is not None else (1,), xp.uint32)
    none = xp.zeros(1, xp.float32)
    inputs = [none if v is None else xp.ascontiguousarray(xp.asarray(v, dtype=t)) for v, t in (
        (data, xp.float32), (variance, xp.float32), (flags, xp.uint32), (bad, xp.bool_))]
    if flags is None:
        inputs[2] = found
    if bad is None:
        inputs[3] = none.astype(xp.bool_)
    c = {name: xp.asarray(getattr(spline, name)) for name in ("dx", "dy", "jacobian", "by", "first_y", "bx", "first_x")}
    integer = np.int32
    block, grid = (32, 8), (-(-nx // 32), -(-ny // 8))
    kernel("lanczos.cu", f"warp{a}")(grid, block, (
        *inputs, integer(given), integer(data.shape[0]), integer(data.shape[1]), c["dx"], c["dy"], c["jacobian"],
        integer(spline.dx.shape[1]), c["by"], c["first_y"], c["bx"], c["first_x"], integer(ny), integer(nx), out.data,
        none if out.variance is None else out.variance, found, out.inside,
        none if out.correlation is None else out.correlation))
    if flags is not None:
        out.flags = found.astype(flags.dtype)


def warp(
    data: Array, xy_of: Mapping, shape: tuple[int, int], *, variance: Array | None = None,
    flags: Array | None = None, bad: Array | None = None, grid_step: int = 32, order: int = 3,
) -> WarpResult:
    """Resample an image onto a new grid; formula at the head of this module.

    NumPy and CuPy agree within 1e-5 of the largest of the pixels used (5e-5 where a position falls between two
    multiples of 1/65536 pixel and is rounded differently).

    Parameters
    ----------
    data : (ny, nx) float32; pixels that are not finite are left out like `bad` ones.
    xy_of : callable
        (x_out, y_out) -> (x_in, y_in), 0-based pixel positions, NumPy arrays; called once, on a coarse grid.
    shape : (ny_out, nx_out)
    variance : (ny, nx), optional [data unit²]; propagated as J² Σ w² v. Neighbouring pixels of the output are
        correlated: see `WarpResult.correlation`. Pixels where it is not finite are left out.
    flags : (ny, nx) unsigned, optional.
    bad : (ny, nx) bool, optional
        Pixels left out of the interpolation; the remaining weights are renormalised. Output pixels whose
        lost weight exceeds a quarter are not ``inside``. Beyond the edges everything is bad.
    grid_step : largest step of the coarse grid [pix].
    order : 3 or 4, half width a of the kernel.

    Raises
    ------
    ValueError
        The mapping is not finite everywhere on its grid; `order` is another; an input has another shape.
    """
    if order not in (3, 4):
        raise ValueError(f"warp: order must be 3 or 4, found {order}")
    for name, array in (("variance", variance), ("flags", flags), ("bad", bad)):
        if array is not None and array.shape != data.shape:
            raise ValueError(f"warp: {name} must have the shape of data, {data.shape}, found {array.shape}")
    spline = _fit_mapping(xy_of, shape, grid_step)
    xp = get_xp(data)
    out = WarpResult(
        xp.zeros(shape, xp.float32), None if variance is None else xp.zeros(shape, xp.float32),
        None if flags is None else xp.zeros(shape, flags.dtype), xp.zeros(shape, bool),
        None if variance is None else xp.ones(shape, xp.float32),
    )
    if xp is not np:
        _warp_device(data, variance, flags, bad, out, spline, order)
        return out
    given = _Input(np.asarray(data), variance, flags, bad, Scratch())
    h, w = _block_shape(spline, order)
    columns = [(x, spline.columns(x)) for x in _parts(shape[1], w)]
    for y in _parts(shape[0], h):
        rows = spline.rows(y)
        for x, column in columns:
            _warp_block(given, out, spline.block(rows, column), (y, x), order)
    return out
