"""Matching kernel whose pixels are all free and vary over the frame: the solver of SFFT.

Hu, Wang, Chen & Yang 2022, ApJ 936, 157.  With T the image that is convolved and J the other one, it minimises

    Σ_x [J(x) − Σ_m P_m(x) Σ_s κ_m,s T(x − s) − Σ_q b_q P_q(x)]²

over all pixels x of a masked pair; s runs over (2 w + 1)² shifts and P_m = u^i v^j.  For a constant flux scale the
planes of m > 0 are built from δ_s − δ_0 and have no sum.

Masked pair.  The entries of the normal matrix depend on s − s' alone, and so come from Fourier sums, only if no pixel
x has a weight of its own.  Instead both images are set to zero outside regions around sources seen in both ("sparse
flavour"), where 0 = κ ⊗ 0 matches trivially, and the background term lives inside the regions only.  A region ends in
the sky (footprint at 3 σ, grown by w) and stays or goes as a whole, so no border cuts the light of a source; against a
fit that weights the output pixels this moves the sum of κ by less than 0.02 % for isolated stars.  Since κ ⊗ is
linear, every region may carry a weight, 1 / its noise, on both images.  In crowded fields regions merge (small gaps are
filled) and a pedestal of κ is nearly degenerate with b_0: with a star per 14 × 14 pixels the flux scale came out 1 to
3 % low, while the stars matched to 0.7 % of their peaks.

Matrix.  Σ_x P_m P_n(x) T(x − s) T(x − s') = Σ_y (P_m P_n)(y + s) T(y) T(y + s − s'), and (P_m P_n)(y + s) is a
polynomial in y with coefficients that depend on s: exact, with one correlation per monomial (`sfft_sums`).  Transforms
per tile: 3 and one for each monomial, 9 for degree 1.

Noise of T adds its variance to the diagonal and pulls κ down (0.1 % of the sum here); its expectation is taken out.

Ridge.  λ |∇² κ_m|² is added for every plane.  Weighted residuals have unit variance, so λ = 1 / (expected rms
Laplacian)² needs no scaling with the number of stars: λ = 1000 gave the smallest errors of κ and of the stars in four
simulated pairs whose traces differ by a factor 30 (it is 1e-3 … 4e-5 of the mean diagonal).  Measured on 2048 × 1024
pixels with 750 stars: error of κ ⊗ T at stars 0.5 % of the peak on average (λ = 100: 1.5 %, 1e4: 1.5 %, 1e5: 4 %),
Σ (κ − truth)² 0.004 (λ = 100: 1.3), an increase of the difference's variance in quiet areas by 0.3 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np

from seechange_mpi.gpu_kernels import polynomials
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.kernel_solution import KernelSolution
from seechange_mpi.gpu_kernels.sfft_regions import CORE_SIGMA, Grid, Regions, find_regions, sky, whole_frame
from seechange_mpi.gpu_kernels.sfft_sums import Sums, Table, Tiling, Windows
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

MODEL_ERROR = 0.01
"""Fraction of the signal that weights take for granted as error: keeps the brightest stars from deciding alone."""
PASSES = 2
"""Solutions at most; the second without the regions that stood out in the first."""
AMPLITUDE_SIGMA = 5.0
"""A region whose flux differs this much from the fit's is variable."""


def solve_sfft(
    new: Array, ref: Array, *, mask: Array | None = None, half_width: int = 8, kernel_degree: int = 1,
    background_degree: int = 1, constant_flux: bool = True, convolve: Literal["ref", "new", "auto"] = "ref",
    fwhm_new: float | None = None, fwhm_ref: float | None = None, ridge: float = 1000.0,
    variance_new: Array | None = None, variance_ref: Array | None = None,
    select: Literal["sources", "all"] = "sources",
) -> KernelSolution:
    """Solve new ≈ κ ⊗ ref + B, or ref ≈ κ ⊗ new + B, for a kernel that varies over the frame.

    Parameters
    ----------
    new, ref : (ny, nx) float, one unit, registered; a residual sky is fitted, best close to zero.
    mask : (ny, nx) bool, True = bad in either image (saturated pixels belong here). Non-finite pixels are bad too.
    half_width : w [pix], the kernel has (2 w + 1)² pixels.
    kernel_degree, background_degree : of the polynomials in x and y, 0..4.  With fewer than two sources per term the
        kernel's degree is lowered (`degree` of the result says to what).
    constant_flux : one sum of κ for the whole frame.
    convolve : which image; "auto" takes the sharper one, by fwhm_new and fwhm_ref [pix].
    ridge : λ, weight of the squared Laplacian, per unit of the noise; raised where the matrix would not be positive.
    variance_new, variance_ref : (ny, nx) float, total variances [unit²].  Default: the sky noise of each image.
    select : "sources": regions around sources significant in both images, without those that changed.  "all": every
        good pixel, as it is: sources that changed must be in `mask`.

    Returns
    -------
    KernelSolution
        `background` refers to the images as given; its degree is higher than `background_degree` where κ's variation
        and the sky of the convolved image need it.  Figures: sources_found, sources_used, regions_used, pixels_used,
        passes, flux_scale and, with both variances, chi2 (per pixel, of the regions used).

    Raises
    ------
    ValueError
        Shapes that differ, a kernel too wide for the image, degrees, ridge or choices out of range, nothing to fit.
    """
    xp = get_xp(new, ref)
    direction = _direction(convolve, fwhm_new, fwhm_ref)
    _check(new, ref, mask, variance_new, variance_ref, half_width, kernel_degree, background_degree, ridge, select)
    pair = _prepare(new, ref, mask, (variance_new, variance_ref), direction, background_degree)
    if select == "all":
        regions = whole_frame(pair.bad)
    else:
        regions = find_regions(pair.template, pair.target, pair.bad, pair.noise, half_width)
        if regions.n_sources == 0:
            found = int(regions.sources.sum())
            raise ValueError("solve_sfft: nothing to fit: " + (
                f"none of {found} sources in new and ref is free of mask and change" if found
                else f"no source stands {CORE_SIGMA:g} sigma above the sky in both new and ref"))
        while kernel_degree > 0 and regions.n_sources < 2 * _count(kernel_degree):
            kernel_degree -= 1
    model = _Model(pair.grid, half_width, kernel_degree, background_degree, constant_flux, ridge)
    planes, background, figures = _iterate(pair, regions, model, select == "sources", xp)
    background, degree = _total_background(pair, model, planes, background)
    return KernelSolution(planes, kernel_degree, background, degree, *pair.grid.origin, *pair.grid.scale, direction,
                          float(planes[0].sum()), figures)


def _direction(convolve: str, fwhm_new: float | None, fwhm_ref: float | None) -> Literal["ref", "new"]:
    if convolve == "ref" or convolve == "new":
        return convolve  # type: ignore[return-value]
    if convolve != "auto":
        raise ValueError(f"solve_sfft: convolve must be ref, new or auto, found {convolve!r}")
    if fwhm_new is None or fwhm_ref is None:
        raise ValueError(f"solve_sfft: convolve='auto' needs fwhm_new and fwhm_ref, found {fwhm_new} and {fwhm_ref}")
    return "ref" if fwhm_ref <= fwhm_new else "new"


def _check(new: Array, ref: Array, mask: Array | None, variance_new: Array | None, variance_ref: Array | None,
           half_width: int, kernel_degree: int, background_degree: int, ridge: float, select: str) -> None:
    if new.ndim != 2:
        raise ValueError(f"solve_sfft: new must have two axes, found shape {new.shape}")
    for name, array in (("ref", ref), ("mask", mask), ("variance_new", variance_new), ("variance_ref", variance_ref)):
        if array is not None and array.shape != new.shape:
            raise ValueError(f"solve_sfft: {name} must have the shape of new, {new.shape}, found {array.shape}")
    if half_width < 1 or 2 * (2 * half_width + 1) > min(new.shape):
        raise ValueError(f"solve_sfft: half_width must be at least 1 and the kernel at most half the image "
                         f"{new.shape}, found {half_width}")
    for name, degree in (("kernel_degree", kernel_degree), ("background_degree", background_degree)):
        if not 0 <= degree <= 4:
            raise ValueError(f"solve_sfft: {name} must be 0..4, found {degree}")
    if not ridge >= 0:
        raise ValueError(f"solve_sfft: ridge must be 0 or more, found {ridge}")
    if select not in ("sources", "all"):
        raise ValueError(f"solve_sfft: select must be sources or all, found {select!r}")


@dataclass
class _Pair:
    """Sky-subtracted float32 images, zero at bad pixels; sky polynomials and noise of (template, target)."""

    grid: Grid
    template: Array
    target: Array
    bad: Array
    variances: tuple[Array | None, Array | None]
    sky: tuple[np.ndarray, np.ndarray]
    noise: tuple[float, float]


@dataclass
class _Model:
    grid: Grid
    width: int
    degree: int
    background_degree: int
    constant_flux: bool
    ridge: float


def _count(degree: int) -> int:
    return len(polynomials.powers(degree))


def _prepare(new: Array, ref: Array, mask: Array | None, variances: tuple[Array | None, Array | None],
             direction: str, degree: int) -> _Pair:
    xp = get_xp(new)
    grid = Grid(new.shape)
    bad = ~(xp.isfinite(new) & xp.isfinite(ref))
    for extra in (mask, *(None if v is None else ~xp.isfinite(v) for v in variances)):
        if extra is not None:
            bad |= extra
    step = 1 if direction == "new" else -1
    images, skies, noises = [], [], []
    for image in (new, ref)[::step]:
        coefficients, noise = sky(image, bad, degree, grid)
        images.append(xp.where(bad, 0, image - grid.surface(degree, coefficients, xp)).astype(np.float32))
        skies.append(coefficients)
        noises.append(noise)
    clean = [None if v is None else xp.where(bad, 0, v).astype(np.float32) for v in variances[::step]]
    return _Pair(grid, images[0], images[1], bad, (clean[0], clean[1]), (skies[0], skies[1]), (noises[0], noises[1]))


def _iterate(pair: _Pair, regions: Regions, model: _Model, clip: bool, xp: Any,
             ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Solve, drop the regions that stand out, solve again."""
    tiling = Tiling(pair.grid, model.width)
    windows = Windows(tiling.windows(pair.template), tiling.windows(pair.target),
                      None if pair.variances[0] is None else tiling.windows(pair.variances[0]), pair.noise[0])
    per_region = _region_weights(pair, regions)
    sums = Sums(tiling, model.width, model.degree, model.background_degree, xp)

    def weight_map() -> Array:
        return xp.asarray(np.where(regions.keep, per_region, 0).astype(np.float32))[regions.labels]

    weight = weight_map()
    tiles = tiling.active(weight)
    sums.add(windows, weight, tiles)
    for k in range(PASSES):
        planes, background = _solve(sums, model, xp)
        stats = _residuals(pair, regions, model, tiling, windows, tiles, planes, background)
        drop = _outliers(stats, regions.keep) if clip and k < PASSES - 1 else np.zeros_like(regions.keep)
        if not drop.any():
            break
        regions.keep &= ~drop
        old, weight = weight, weight_map()
        changed = tiling.active(old - weight)
        sums.add(windows, old, changed, -1)
        sums.add(windows, weight, changed)
    kept = regions.keep
    figures = {"sources_used": float(regions.n_sources), "sources_found": float(regions.sources.sum()),
               "regions_used": float(kept.sum()), "pixels_used": float(stats.pixels[kept].sum()),
               "passes": float(k + 1), "flux_scale": float(planes[0].sum())}
    if pair.variances[0] is not None and pair.variances[1] is not None:
        figures["chi2"] = float(stats.chi2[kept].sum() / stats.pixels[kept].sum())
    return planes, background, figures


def _region_weights(pair: _Pair, regions: Regions) -> np.ndarray:
    """1 / noise of each region, the noise averaged with the square of the signal; host."""
    xp = get_xp(pair.template)
    at = xp.nonzero(regions.labels)
    labels, n = regions.labels[at], len(regions.keep)
    signal = pair.target[at].astype(np.float64) ** 2

    def mean(values: Array) -> Array:
        total = xp.bincount(labels, weights=signal, minlength=n)
        return xp.bincount(labels, weights=signal * values, minlength=n) / xp.maximum(total, 1e-300)

    variance = MODEL_ERROR**2 * mean(signal)
    for given, noise in zip(pair.variances, pair.noise, strict=True):
        variance = variance + (noise**2 if given is None else mean(given[at]))
    return asnumpy(1 / xp.sqrt(xp.maximum(variance, 1e-300)))


def _expand(sums: Table, power: tuple[int, int], sx: Array, sy: Array) -> Array:
    """Σ_y Q(y + s) f(y, s) from the sums Σ_y Q_k(y) f(y, s): binomials of (u + sx)^i (v + sy)^j, exact."""
    i, j = power
    total: Any = 0.0
    for a in range(i + 1):
        for b in range(j + 1):
            total = total + comb(i, a) * comb(j, b) * sx ** (i - a) * sy ** (j - b) * sums[(a, b)]
    return total


def _add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:
    return p[0] + q[0], p[1] + q[1]


def _system(sums: Sums, model: _Model, xp: Any) -> tuple[Array, Array]:
    """Normal matrix and right-hand side for the unknowns (κ_m,s for every term m and shift s; then b_q)."""
    w, k = model.width, _count(model.degree)
    n = (2 * w + 1) ** 2
    oy, ox = (xp.asarray(a.ravel()) for a in np.mgrid[-w: w + 1, -w: w + 1])
    sx, sy = ox / model.grid.scale[0], oy / model.grid.scale[1]
    dy, dx = oy[:, None] - oy[None, :] + 2 * w, ox[:, None] - ox[None, :] + 2 * w
    lags = sums.lags(sums.tt, 2 * w)
    for p, c in lags.items():
        c[2 * w, 2 * w] -= sums.noise[p]
    pairs = {p: c[dy, dx] for p, c in lags.items()}
    blocks = {p: _expand(pairs, p, sx[:, None], sy[:, None]) for p in pairs}
    tm = {p: c.ravel() for p, c in sums.lags(sums.tm, w).items()}
    tj = {p: c.ravel() for p, c in sums.lags(sums.tj, w).items()}
    terms, bterms = polynomials.powers(model.degree), polynomials.powers(model.background_degree)
    size, smooth = k * n + len(bterms), _smoothness(2 * w + 1, xp)
    a, rhs = xp.zeros((size, size)), xp.zeros(size)
    ridge = _ridge(sums, model, float(xp.trace(blocks[(0, 0)])) / n)
    for i, p in enumerate(terms):
        rows = slice(i * n, i * n + n)
        for j, q in enumerate(terms):
            a[rows, j * n: j * n + n] = blocks[_add(p, q)]
        a[rows, rows] += ridge * smooth
        for j, q in enumerate(bterms):
            a[rows, k * n + j] = a[k * n + j, rows] = _expand(tm, _add(p, q), sx, sy)
        rhs[rows] = _expand(tj, p, sx, sy)
    for i, p in enumerate(bterms):
        rhs[k * n + i] = sums.mj[p]
        for j, q in enumerate(bterms):
            a[k * n + i, k * n + j] = sums.mm[_add(p, q)]
    return a, rhs


def _ridge(sums: Sums, model: _Model, trace: float) -> float:
    """The ridge asked for, but not below what keeps the matrix positive after the noise is taken out.

    The eigenvalues of a noise matrix with m unknowns and n pixels scatter by 2 √(m / n) about its mean; LᵀL is 20 on
    average.  The last term is for images without noise.
    """
    unknowns = _count(model.degree) * (2 * model.width + 1) ** 2
    scatter = float(sums.noise[(0, 0)]) * 2 * (unknowns / max(float(sums.pixels), 1.0)) ** 0.5
    return float(max(model.ridge, scatter / 20, 1e-10 * trace))


def _solve(sums: Sums, model: _Model, xp: Any) -> tuple[np.ndarray, np.ndarray]:
    """Planes (k, s, s) and background coefficients, host, float64."""
    a, rhs = _system(sums, model, xp)
    s, k = 2 * model.width + 1, _count(model.degree)
    n, size = s * s, len(rhs)
    free = np.ones(size, bool)
    if model.constant_flux:
        for i in range(1, k):
            rows, centre = slice(i * n, i * n + n), i * n + n // 2
            rhs[rows] -= rhs[centre].copy()
            a[:, rows] -= a[:, centre, None].copy()
            a[rows] -= a[None, centre].copy()
            free[centre] = False
    index = xp.asarray(np.flatnonzero(free))
    a, rhs = a[index[:, None], index[None, :]], rhs[index]
    unit = 1 / xp.sqrt(xp.maximum(xp.diagonal(a), 1e-300))
    z = xp.zeros(size)
    z[index] = unit * xp.linalg.solve(a * unit[:, None] * unit[None, :], unit * rhs)
    planes = asnumpy(z[: k * n]).reshape(k, s, s).copy()
    if model.constant_flux:
        planes[1:, s // 2, s // 2] = -planes[1:].sum(axis=(1, 2))
    return planes, asnumpy(z[k * n:])


def _smoothness(s: int, xp: Any) -> Array:
    """LᵀL of the five-point Laplacian L on s × s pixels, zero outside."""
    line = 2 * np.eye(s) - np.eye(s, k=1) - np.eye(s, k=-1)
    laplacian = np.kron(line, np.eye(s)) + np.kron(np.eye(s), line)
    return xp.asarray(laplacian.T @ laplacian)


@dataclass
class _Stats:
    """Per region, host: pixels, Σ D² / V, Σ D², Σ V, Σ D M, Σ M², Σ V M² with D the residual, M the model."""

    pixels: np.ndarray
    chi2: np.ndarray
    dd: np.ndarray
    v: np.ndarray
    dm: np.ndarray
    mm: np.ndarray
    vmm: np.ndarray


def _residuals(pair: _Pair, regions: Regions, model: _Model, tiling: Tiling, windows: Windows, tiles: np.ndarray,
               planes: np.ndarray, background: np.ndarray) -> _Stats:
    xp = get_xp(pair.template)
    m = tiling.convolve(windows.template, planes, model.degree, tiles)
    at = xp.nonzero(regions.labels * ~pair.bad)
    labels, n = regions.labels[at], len(regions.keep)
    m = m[at].astype(np.float64)
    d = pair.target[at] - m - pair.grid.surface(model.background_degree, background, xp)[at]
    squared = planes[:1] ** 2
    if windows.variance is None:
        v = xp.full(m.shape, pair.noise[0] ** 2 * float(squared.sum()))
    else:
        v = tiling.convolve(windows.variance, squared, 0, tiles)[at].astype(np.float64)
    v = v + (pair.noise[1] ** 2 if pair.variances[1] is None else pair.variances[1][at])

    v = xp.maximum(v, 1e-30)

    def total(values: Array) -> np.ndarray:
        return asnumpy(xp.bincount(labels, weights=values, minlength=n))

    return _Stats(asnumpy(xp.bincount(labels, minlength=n)), total(d**2 / v), total(d**2), total(v), total(d * m),
                  total(m**2), total(v * m**2))


def _outliers(stats: _Stats, keep: np.ndarray) -> np.ndarray:
    """Regions whose flux or shape does not follow the rest: variables, neighbours that changed, defects."""
    k = np.flatnonzero(keep & (stats.mm > 0))
    drop = np.zeros_like(keep)
    if len(k) < 5:
        return drop
    dd, v, mm = stats.dd[k], stats.v[k], stats.mm[k]
    amplitude, error = stats.dm[k] / mm, np.sqrt(stats.vmm[k]) / mm
    amplitude -= np.median(amplitude)
    spread = MAD_TO_SIGMA * np.median(np.abs(amplitude / error))
    drop[k] = np.abs(amplitude) > AMPLITUDE_SIGMA * np.hypot(error * max(spread, 1), MODEL_ERROR / 2)
    common = max(float(np.median((dd - v) / mm)), 0.0)
    chi2 = dd / (v + common * mm)
    drop[k] |= chi2 > np.median(chi2) + max(1.0, 6 * MAD_TO_SIGMA * np.median(np.abs(chi2 - np.median(chi2))))
    return drop


def _total_background(pair: _Pair, model: _Model, planes: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, int]:
    """B for the images as given: b + sky_target − κ ⊗ sky_template, an exact polynomial."""
    b, d = model.background_degree, model.degree
    degree = max(b, b - 1 + d if b else 0) if model.constant_flux else b + d
    w, n = model.width, 2 * degree + 3
    xs, ys = pair.grid.scale
    v, u = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij"))
    total = polynomials.terms(b, u, v) @ (background + pair.sky[1])
    kernels = np.tensordot(polynomials.terms(d, u, v), planes, axes=1)
    sy, sx = np.mgrid[-w: w + 1, -w: w + 1]
    shifted = polynomials.terms(b, u[:, None, None] - sx / xs, v[:, None, None] - sy / ys) @ pair.sky[0]
    total -= (kernels * shifted).sum(axis=(1, 2))
    return np.linalg.lstsq(polynomials.terms(degree, u, v), total, rcond=None)[0], degree
