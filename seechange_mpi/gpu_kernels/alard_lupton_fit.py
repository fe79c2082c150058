"""One direction of the Alard–Lupton fit: normal matrices of the stamps, their solution, clipping of stamps.

AL98 and AL00 as in `alard_lupton`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg

from seechange_mpi.gpu_kernels import alard_lupton_stamps as als
from seechange_mpi.gpu_kernels import fft, polynomials
from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.stats import MAD_TO_SIGMA

STAMPS_PER_TERM = 3
"""Stamps that each term of a polynomial of the position asks for."""

_CHUNK = 16
_RIDGE = 1e-10
_FLUX_FLOOR = 0.003
_LEAST_SIGNAL = 0.3
_GARROTE = 3.0


@dataclass
class Setup:
    """What both directions share: widths and sizes in pixels, degrees, limits."""

    basis: als.Basis
    half_width: int
    reach: int
    size: int
    kernel_degree: int
    background_degree: int
    constant_flux: bool
    clip_sigma: float
    iterations: int
    frame: tuple[float, float, float, float]


@dataclass
class Fit:
    """One direction: coefficients (terms, functions), background (terms,), and figures of the stamps."""

    coefficients: np.ndarray
    background: np.ndarray
    degree: int
    background_degree: int
    used: np.ndarray
    chi2: np.ndarray
    flux_error: np.ndarray
    merit: float
    condition: float
    images: np.ndarray


def _lowered(degree: int, stamps: int) -> int:
    """Return the highest degree, at most `degree`, with 3 stamps for each term."""
    while degree > 0 and stamps < STAMPS_PER_TERM * len(polynomials.powers(degree)):
        degree -= 1
    return degree


class Normal:
    """Normal matrices of all stamps of one direction."""

    def __init__(self, stamps: als.StampSet, setup: Setup) -> None:
        xp = self.xp = get_xp(stamps.target)
        self.stamps, self.setup = stamps, setup
        n, size = len(stamps.x), setup.size
        factors, runs = als.basis_functions(setup.basis, setup.half_width)
        transform, self.images = als.flux_constant_transform(factors, runs)
        self.background_degree = _lowered(setup.background_degree, n)
        background = als.background_columns(stamps.x, stamps.y, size, self.background_degree, setup.frame, xp)
        self.n_kernel = len(transform)
        self.columns = xp.empty((n, self.n_kernel + background.shape[1], size * size))
        self.columns[:, self.n_kernel :] = background.reshape(n, -1, size * size)
        self.chunks = [slice(i, i + _CHUNK) for i in range(0, n, _CHUNK)] if xp is np else [slice(0, n)]
        combine = xp.asarray(transform)
        for part in self.chunks:
            raw = als.convolve_basis(stamps.cuts[part], factors, runs, size)
            self.columns[part, : self.n_kernel] = combine @ raw.reshape(len(raw), -1, size * size)
        self.target = stamps.target.reshape(n, -1)
        self.good = stamps.good.reshape(n, -1).astype(xp.float64)
        self.pixels = self.good.sum(axis=1)
        x0, y0, x_scale, y_scale = setup.frame
        self.u, self.v = (stamps.x - x0) / x_scale, (stamps.y - y0) / y_scale

    def set_weights(self, variance: Array) -> None:
        """Set the weights 1/variance, (n, size, size)."""
        self.weight = self.good / variance.reshape(self.good.shape)

    def weigh(self, variance: Array) -> None:
        """Set the weights and sum the stamps' matrices."""
        self.set_weights(variance)
        n, k, _ = self.columns.shape
        self.matrices, self.vectors = self.xp.empty((n, k, k)), self.xp.empty((n, k))
        for part in self.chunks:
            weighted = self.columns[part] * self.weight[part, None, :]
            self.matrices[part] = weighted @ self.columns[part].transpose(0, 2, 1)
            self.vectors[part] = (weighted @ self.target[part, :, None])[:, :, 0]

    def _blocks(self, products: Array, matrices: Array, terms: int) -> np.ndarray:
        """Sum (n, a·a) matrices with the weights t_p t_q, (n, terms²), into the (terms·a)² matrix of the frame."""
        summed = asnumpy(products.T @ matrices).reshape(terms, terms, -1)
        a = round(summed.shape[2] ** 0.5)
        return summed.reshape(terms, terms, a, a).transpose(0, 2, 1, 3).reshape(terms * a, terms * a)

    def _noise_matrices(self) -> Array:
        """Return (n, a·a): what the noise of T adds to the matrices, Σ_x (1/V)(x) Σ_u φ_i(u) φ_j(u) V_T(x − u)."""
        xp, wide = self.xp, self.stamps.cuts.shape[-1]
        s, n, k = self.images.shape[-1], len(self.columns), self.n_kernel
        padded = (fft.good_size(wide),) * 2
        weight = fft.rfft2(self.weight.reshape(n, self.setup.size, -1), padded)
        lags = fft.irfft2(fft.rfft2(self.stamps.cuts_variance, padded) * weight.conj(), padded)
        lags = lags[:, s - 1 :: -1, s - 1 :: -1].reshape(n, -1)
        functions = xp.asarray(self.images.reshape(k, -1))
        pairs = (functions[:, None, :] * functions[None, :, :]).reshape(k * k, -1)
        out = xp.zeros((n, self.columns.shape[1], self.columns.shape[1]))
        out[:, :k, :k] = (lags @ pairs.T).reshape(n, k, k)
        return out.reshape(n, -1)

    def solve(self, used: np.ndarray, degree: int, unbiased: bool = False) -> tuple[np.ndarray, float]:
        """Return the (terms, functions + background) coefficients and the condition of the scaled matrix.

        `unbiased` takes the noise of T out of the normal matrix, which makes Σκ too small otherwise.
        """
        xp = self.xp
        p = polynomials.terms(degree, self.u[used], self.v[used])
        t, n = p.shape[1], self.columns.shape[1]
        products = xp.asarray((p[:, :, None] * p[:, None, :]).reshape(len(p), -1))
        chosen = xp.asarray(np.flatnonzero(used))
        matrix = self._blocks(products, self.matrices.reshape(len(used), -1)[chosen], t)
        vector = asnumpy(xp.asarray(p).T @ self.vectors[chosen]).ravel()
        varies = np.ones(n, dtype=bool)
        varies[self.n_kernel :] = False
        varies[0] = not self.setup.constant_flux
        keep = np.flatnonzero(varies | (np.arange(t) == 0)[:, None])
        noise = self._blocks(products, self._noise_matrices()[chosen], t)[np.ix_(keep, keep)] if unbiased else None
        solution = np.zeros(t * n)
        solution[keep], condition = _solve_scaled(matrix[np.ix_(keep, keep)], vector[keep], noise)
        return solution.reshape(t, n), condition

    def at_stamps(self, coefficients: np.ndarray, degree: int) -> Array:
        """Return (n, functions + background): the coefficients at every stamp."""
        return self.xp.asarray(polynomials.terms(degree, self.u, self.v) @ coefficients)

    def convolved_variance(self, coefficients: Array) -> Array:
        """Return κ² ⊗ V_T of every stamp, (n, size, size), κ from the coefficients of `at_stamps`."""
        xp = self.xp
        functions = xp.asarray(self.images.reshape(self.n_kernel, -1))
        s = self.images.shape[-1]
        squared = ((coefficients[:, : self.n_kernel] @ functions) ** 2).reshape(-1, s, s)
        wide = self.stamps.cuts.shape[-1]
        padded = (fft.good_size(wide),) * 2
        both = fft.irfft2(fft.rfft2(self.stamps.cuts_variance, padded) * fft.rfft2(squared, padded), padded)
        return both[:, s - 1 : wide, s - 1 : wide]


def _solve_scaled(matrix: np.ndarray, vector: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Solve a normal system scaled to a unit diagonal, with a ridge; return the condition of the scaled matrix.

    Without `noise`, the expected share of noise in the matrix, this is the plain solution and the condition is NaN.
    With it, the noise is taken out of the matrix in the eigenvectors of matrix v = λ noise v, where λ − 1 is the ratio
    of signal to noise. What is solved for is the difference from a kernel of φ_0 alone: its coefficient in v is
    d = vᵀ(vector − (matrix − noise) c_0) / (λ − 1) with variance λ / (λ − 1)², and is shrunk by 1 − 3 / (its
    significance)², down to 0 (Breiman 1995, the non-negative garrote): what the stars do not show adds no noise.
    """
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), np.finfo(np.float64).tiny))
    scaled = matrix * scale[:, None] * scale[None, :]
    scaled[np.diag_indices(len(scaled))] += _RIDGE * len(scaled)
    plain = scipy.linalg.cho_solve(scipy.linalg.cho_factor(scaled, lower=True), vector * scale)
    if noise is None:
        return scale * plain, float("nan")
    noise = noise * scale[:, None] * scale[None, :]
    noise[np.diag_indices(len(noise))] += _RIDGE
    values, vectors = scipy.linalg.eigh(scaled, noise)
    first = plain[0] * (vectors.T @ noise[:, 0])
    signal = np.maximum(values - 1, _LEAST_SIGNAL)
    beyond = (vectors.T @ (vector * scale) - (values - 1) * first) / signal
    significance2 = beyond**2 * signal**2 / (signal + 1)
    beyond *= np.maximum(0.0, 1 - _GARROTE / np.maximum(significance2, _GARROTE))
    return scale * (vectors @ (first + beyond)), _condition(scaled)


def _condition(matrix: np.ndarray) -> float:
    values = np.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])


def fit_direction(images: als.Images, mask: Array | None, x: np.ndarray, y: np.ndarray,
                   convolved: Literal["ref", "new"], setup: Setup) -> Fit:
    new, ref, variance_new, variance_ref = images
    ordered = images if convolved == "ref" else (ref, new, variance_ref, variance_new)
    stamps = als.cut(ordered, mask, x, y, size=setup.size, half_width=setup.half_width, reach=setup.reach)
    normal = Normal(stamps, setup)
    inner = slice(setup.half_width, setup.half_width + setup.size)
    own = stamps.cuts_variance[:, inner, inner]
    normal.weigh(stamps.target_variance + _flux_ratio(stamps, inner) ** 2 * own)
    used = np.ones(len(x), dtype=bool)
    for iteration in range(setup.iterations):
        degree = _lowered(setup.kernel_degree, int(used.sum()))
        coefficients, _ = normal.solve(used, degree, unbiased=iteration == 1)
        at_stamps = normal.at_stamps(coefficients, degree)
        if iteration < 2:
            normal.weigh(stamps.target_variance + normal.convolved_variance(at_stamps))
        residual, chi2, flux_error, flux_noise = _judge(normal, at_stamps)
        kept = _clip(chi2, flux_error, flux_noise, used, asnumpy(normal.pixels), setup.clip_sigma)
        if iteration >= 2 and (kept == used).all():
            break
        used = kept
    degree = _lowered(setup.kernel_degree, int(used.sum()))
    coefficients, condition = normal.solve(used, degree, unbiased=True)
    at_stamps = normal.at_stamps(coefficients, degree)
    normal.set_weights(stamps.target_variance + normal.convolved_variance(at_stamps))
    residual, chi2, flux_error, _ = _judge(normal, at_stamps)
    plain = normal.good / (stamps.target_variance + float(coefficients[0, 0]) ** 2 * own).reshape(residual.shape)
    merits = (normal.xp.maximum(normal.weight, plain) * residual**2).sum(axis=1) / normal.pixels
    k = normal.n_kernel
    return Fit(coefficients[:, :k], coefficients[0, k:], degree, normal.background_degree, used, chi2, flux_error,
                float(np.median(asnumpy(merits)[used])), condition, normal.images)


def _flux_ratio(stamps: als.StampSet, inner: slice) -> float:
    """Return a first guess of Σκ: the median ratio of the counts in the stamps."""
    xp = get_xp(stamps.target)
    ratio = stamps.target.sum(axis=(1, 2)) / stamps.cuts[:, inner, inner].sum(axis=(1, 2))
    return float(xp.median(ratio))


def _judge(normal: Normal, at_stamps: Array) -> tuple[Array, np.ndarray, np.ndarray, np.ndarray]:
    """Return the residuals (n, pixels), and per stamp χ² per pixel, relative flux error and its noise."""
    k = normal.n_kernel
    model = (at_stamps[:, None, :k] @ normal.columns[:, :k])[:, 0]
    residual = normal.target - model - (at_stamps[:, None, k:] @ normal.columns[:, k:])[:, 0]
    chi2 = (normal.weight * residual**2).sum(axis=1) / normal.pixels
    power = (normal.weight * model**2).sum(axis=1)
    flux_error = (normal.weight * model * residual).sum(axis=1) / power
    return residual, asnumpy(chi2), asnumpy(flux_error), asnumpy(power**-0.5)


def _clip(chi2: np.ndarray, flux_error: np.ndarray, flux_noise: np.ndarray, used: np.ndarray, pixels: np.ndarray,
          clip_sigma: float) -> np.ndarray:
    """Return the stamps whose χ² and flux are like those of the others; at least three."""
    middle = np.median(chi2[used])
    width = np.maximum(MAD_TO_SIGMA * np.median(np.abs(chi2[used] - middle)), middle * np.sqrt(2 / pixels))
    pull = flux_error / np.hypot(flux_noise, _FLUX_FLOOR)
    centre = np.median(pull[used])
    spread = max(MAD_TO_SIGMA * np.median(np.abs(pull[used] - centre)), 1.0)
    worst = np.maximum((chi2 - middle) / width, np.abs(pull - centre) / spread)
    kept: np.ndarray = worst <= clip_sigma
    if kept.sum() < STAMPS_PER_TERM:
        kept = np.zeros_like(kept)
        kept[np.argsort(worst)[:STAMPS_PER_TERM]] = True
    return kept


