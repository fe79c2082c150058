"""Images with known truth for the tests of the kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.ndimage
from scipy.spatial import cKDTree

from seechange_mpi.gpu_kernels.matched import matched_subtract
from seechange_mpi.gpu_kernels.methods import METHODS
from seechange_mpi.gpu_kernels.resample import warp

FITTED = ("alard_lupton", "sfft")
"""Those of `METHODS` that need stars in both images, to find their kernel."""


def moffat(size: int, fwhm: float, dx: float = 0.0, dy: float = 0.0, beta: float = 3.5, sub: int = 7) -> np.ndarray:
    """Pixel-integrated Moffat profile of unit sum (of the infinite profile), centred (dx, dy) off the middle."""
    half = size // 2
    fine = (np.arange(size * sub) + 0.5) / sub - 0.5 - half
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    r2 = (fine[None, :] - dx) ** 2 + (fine[:, None] - dy) ** 2
    norm = (beta - 1) / (np.pi * alpha**2)
    v = norm * (1 + r2 / alpha**2) ** -beta
    return v.reshape(size, sub, size, sub).mean(axis=(1, 3))


def stamp(size: int, fwhm: float) -> np.ndarray:
    """Centred Moffat stamp of unit sum."""
    p = moffat(size, fwhm)
    return p / p.sum()


def add_stars(image: np.ndarray, x, y, flux, fwhm, size: int = 31) -> None:
    """Add pixel-integrated stars, normalised like `stamp`; `fwhm` is a number or one per star."""
    unit = {w: moffat(size, w).sum() for w in set(np.broadcast_to(fwhm, len(x)).tolist())}
    half = size // 2
    ny, nx = image.shape
    for xk, yk, fk, wk in zip(x, y, flux, np.broadcast_to(fwhm, len(x)), strict=True):
        i, j = round(float(xk)), round(float(yk))
        p = fk / unit[float(wk)] * moffat(size, wk, xk - i, yk - j)
        y0, y1, x0, x1 = max(j - half, 0), min(j + half + 1, ny), max(i - half, 0), min(i + half + 1, nx)
        image[y0:y1, x0:x1] += p[y0 - j + half: y1 - j + half, x0 - i + half: x1 - i + half]


def grid_positions(rng: np.random.Generator, shape: tuple[int, int], step: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions on a grid with random sub-pixel phases."""
    yy, xx = np.meshgrid(np.arange(step, shape[0] - step + 1, step), np.arange(step, shape[1] - step + 1, step),
                         indexing="ij")
    n = yy.size
    return xx.ravel() + rng.uniform(-0.5, 0.5, n), yy.ravel() + rng.uniform(-0.5, 0.5, n)


class Profile:
    """Elliptical pixel-integrated Moffat star at sub-pixel phases of 1 / `PHASES`, quick enough for thousands.

    One finely sampled profile is summed cumulatively; a star at any phase is then a few differences. Its unit is
    the sum of the centred stamp, `stamp`, which is the PSF to hand to a kernel.
    """

    PHASES = 32

    def __init__(self, fwhm: float, size: int = 41, e: float = 0.03, angle: float = 0.5, beta: float = 3.5) -> None:
        self.fwhm, self.size, self.half = fwhm, size, size // 2
        k = self.PHASES
        fine = (np.arange(2 * (self.half + 1) * k) + 0.5) / k - (self.half + 1)
        alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
        u = fine[None, :] * np.cos(angle) + fine[:, None] * np.sin(angle)
        v = fine[:, None] * np.cos(angle) - fine[None, :] * np.sin(angle)
        value = (1 + (u**2 * (1 - e) + v**2 / (1 - e)) / alpha2) ** -beta
        self._sum = np.pad(value.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        self._unit = 1.0
        self._unit = float(self.star(0.0, 0.0).sum())

    def snap(self, x):
        """Nearest position with one of the phases."""
        return np.round(np.asarray(x) * self.PHASES) / self.PHASES

    def star(self, dx: float, dy: float) -> np.ndarray:
        """Star centred (dx, dy) off the middle, each snapped and in -0.5..0.5."""
        k = self.PHASES
        px, py = round(dx * k) + k // 2, round(dy * k) + k // 2
        ends = self._sum[k - py::k, k - px::k][: self.size + 1, : self.size + 1]
        return np.diff(np.diff(ends, axis=0), axis=1) / self._unit

    @property
    def stamp(self) -> np.ndarray:
        return self.star(0.0, 0.0)

    def add(self, image: np.ndarray, x, y, flux) -> None:
        """Add stars at snapped positions."""
        h = self.half
        ny, nx = image.shape
        for xk, yk, fk in zip(self.snap(x).tolist(), self.snap(y).tolist(), np.asarray(flux).tolist(), strict=True):
            i, j = round(xk), round(yk)
            y0, y1, x0, x1 = max(j - h, 0), min(j + h + 1, ny), max(i - h, 0), min(i + h + 1, nx)
            if y0 < y1 and x0 < x1:
                p = self.star(xk - i, yk - j)
                image[y0:y1, x0:x1] += fk * p[y0 - j + h: y1 - j + h, x0 - i + h: x1 - i + h]


def observe(rng: np.random.Generator, signal: np.ndarray, sky: float, gain: float, read_noise: float) -> np.ndarray:
    """Sky-subtracted float32 image [ADU] of `signal` [ADU] with Poisson and read noise (gain in e-/ADU)."""
    electrons = rng.poisson((signal + sky) * gain).astype(np.float32)
    electrons += np.float32(read_noise) * rng.standard_normal(signal.shape, dtype=np.float32)
    return electrons / np.float32(gain) - np.float32(sky)


@dataclass
class Pair:
    """A new image and a reference with all that a subtraction may be told, and the truth.

    `signal_*` are the noise-free sources [ADU]; `transients` has x, y, f and the optimal S/N given the noise there.
    """

    new: np.ndarray
    ref: np.ndarray
    psf_new: np.ndarray
    psf_ref: np.ndarray
    noise_new: float
    noise_ref: float
    flux_new: float
    flux_ref: float
    gain: float
    mask: np.ndarray
    signal_new: np.ndarray
    signal_ref: np.ndarray
    transients: dict[str, np.ndarray] = field(default_factory=dict)

    def variance(self, which: str, *, truth: bool = False) -> np.ndarray:
        """Total variance, from the data as in the pipeline (unclipped) or from the truth, float32."""
        source = getattr(self, ("signal_" if truth else "") + which)
        return (getattr(self, f"noise_{which}") ** 2 + source / self.gain).astype(np.float32)

    def subtract(self, method: Callable, *, truth: bool = False, **more):
        """Subtract with `method`, called like `zogy_subtract`."""
        return method(self.new, self.ref, self.psf_new, self.psf_ref, **{
            "noise_new": self.noise_new, "noise_ref": self.noise_ref, "flux_new": self.flux_new,
            "flux_ref": self.flux_ref, "variance_new": self.variance("new", truth=truth),
            "variance_ref": self.variance("ref", truth=truth), "mask": self.mask, **more})


def known_kernel(name: str, seed: int = 3, **options) -> Callable:
    """A subtraction called like `zogy_subtract`, with the kernel that a fitted method finds on a field of stars.

    For images without stars, of the PSFs, the noise and the flux ratio that `field_pair` makes.
    """
    rng = np.random.default_rng(seed)
    shape = (601, 600)
    x, y = grid_positions(rng, shape, 40)
    pair = field_pair(rng, shape, stars=(x, y, 10 ** rng.uniform(3.5, 5, len(x))))
    solution = pair.subtract(METHODS[name], kernel_degree=0).solution
    # the plane fitted to the background means nothing on a larger frame
    solution.background = np.zeros(1)
    solution.background_degree = 0

    def subtract(new, ref, psf_new, psf_ref, *, flux_ref=1.0, **more):
        return matched_subtract(new, ref, psf_new, solution, **more, **options)

    return subtract


class Paper:
    """ZOGY straight from the equations: full complex transforms, no masks; the images are periodic.

    Attributes of the PSFs alone: `f_s` (F_S) and the transforms of k_n² and k_r².
    """

    def __init__(self, shape, psf_new, psf_ref, noise_new, noise_ref, flux_new, flux_ref, dtype=np.complex128) -> None:
        def around_origin(psf):
            plane = np.zeros(shape)
            plane[: psf.shape[0], : psf.shape[1]] = psf
            return np.roll(plane, (-(psf.shape[0] // 2), -(psf.shape[1] // 2)), axis=(0, 1)).astype(dtype)

        fn, fr, sn, sr = flux_new, flux_ref, noise_new, noise_ref
        self.p_n, self.p_r = (scipy.fft.fft2(around_origin(p)) for p in (psf_new, psf_ref))
        a_n, a_r = abs(self.p_n) ** 2, abs(self.p_r) ** 2
        self.den = sn**2 * fr**2 * a_r + sr**2 * fn**2 * a_n
        self.k_n = (fn * fr**2 * self.p_n.conj() * a_r / self.den).astype(dtype)
        self.k_r = (fr * fn**2 * self.p_r.conj() * a_n / self.den).astype(dtype)
        self.f_s = float((fn**2 * fr**2 * a_n * a_r / self.den).mean(dtype=float))
        self.f_d = fn * fr / np.sqrt(sn**2 * fr**2 + sr**2 * fn**2)
        self.k_n2, self.k_r2 = (scipy.fft.fft2(scipy.fft.ifft2(k) ** 2) for k in (self.k_n, self.k_r))
        self.flux, self.dtype, self.shape = (fn, fr), dtype, tuple(shape)

    def _plane(self, image):
        full = np.zeros(self.shape, self.dtype)
        full[: image.shape[0], : image.shape[1]] = image
        return scipy.fft.fft2(full)

    def difference(self, new, ref):
        """D (13)."""
        fn, fr = self.flux
        d = (fr * self.p_r * self._plane(new) - fn * self.p_n * self._plane(ref)) / np.sqrt(self.den)
        return scipy.fft.ifft2(d).real[: new.shape[0], : new.shape[1]]

    def scores(self, new, ref):
        """S_N and S_R; the score S is their difference (12, 17)."""
        view = slice(0, new.shape[0]), slice(0, new.shape[1])
        return (scipy.fft.ifft2(self.k_n * self._plane(new)).real[view],
                scipy.fft.ifft2(self.k_r * self._plane(ref)).real[view])

    @staticmethod
    def filter_real(image, half_plane):
        """Filter a real image by the half plane of a real, even transfer function."""
        return scipy.fft.irfft2(scipy.fft.rfft2(image) * half_plane, image.shape)

    def variance(self, v_new, v_ref):
        """V(S_N) + V(S_R) (26, 27)."""
        total = self._plane(v_new) * self.k_n2 + self._plane(v_ref) * self.k_r2
        return scipy.fft.ifft2(total).real[: v_new.shape[0], : v_new.shape[1]]


def field_pair(rng: np.random.Generator, shape, *, gain=1.6, sky=(200.0, 150.0), read_noise=7.0, fwhm=(4.0, 3.0),
               ratio=0.9, stars=None, transients=None, move=None, shifted=False) -> Pair:
    """New image and reference with given sources; `sky` is in ADU.

    `stars` and `transients` are (x, y, flux) in units of f; `move` (dx, dy) displaces each star in the new image.
    `shifted`: the reference is observed half a pixel off in both axes and warped onto the grid of the new image,
    so that its noise is correlated; its PSF is the warped one, its noise that of the pixels before the warp.
    """
    profile = _profile(fwhm[0], 0.5), _profile(fwhm[1], -0.7)
    new, ref = np.zeros(shape), np.zeros((shape[0] + 1, shape[1] + 1) if shifted else shape)
    off = 0.5 if shifted else 0.0
    if stars is not None:
        x, y, flux = (np.asarray(a) for a in stars)
        x, y = profile[0].snap(x), profile[0].snap(y)
        dx, dy = (0.0, 0.0) if move is None else move
        profile[0].add(new, x + dx, y + dy, flux * ratio)
        profile[1].add(ref, x + off, y + off, flux)
    if transients is not None:
        profile[0].add(new, transients[0], transients[1], np.asarray(transients[2]) * ratio)
    noise = [float(np.sqrt(s / gain + (read_noise / gain) ** 2)) for s in sky]
    data = [observe(rng, image, s, gain, read_noise) for image, s in zip((new, ref), sky, strict=True)]
    psf_new, psf_ref = (p.stamp.astype(np.float32) for p in profile)
    mask = np.zeros(shape, bool)
    if shifted:
        def half(x, y):
            return x + 0.5, y + 0.5

        warped = warp(data[1], half, shape)
        data[1], mask = warped.data, ~warped.inside
        ref = warp(ref.astype(np.float32), half, shape).data
        single = np.zeros((profile[1].size + 7,) * 2)
        profile[1].add(single, [profile[1].half + 3.5], [profile[1].half + 3.5], [1.0])
        psf_ref = warp(single.astype(np.float32), half, (single.shape[0] - 1,) * 2).data
        psf_ref = psf_ref / psf_ref.sum()
    return Pair(data[0], data[1], psf_new, psf_ref, noise[0], noise[1], ratio, 1.0, gain, mask,
                new.astype(np.float32), ref.astype(np.float32))


SATURATION = 60000.0
"""Of the recipe [ADU]; some 9 stars of 3000 exceed it."""


def recipe_pair(seed: int, shape=(2048, 4096), *, jitter=(0.0, 0.0), gain=1.6, read_noise=7.0, sky=(200.0, 150.0),
                fwhm=(4.0, 3.0), ratio=0.9, n_transients: int | None = None) -> Pair:
    """New image and reference of the standard recipe: crowded enough, saturated stars, transients near stars.

    3000 stars per 2048 × 4096 pixels with N(>F) ∝ F^-0.8, 60 transients of optimal S/N 5–8, 8–15 and 15–60 (a third
    each), one third of them 2–6 pixels from a star. `jitter`: rms [pix] per axis by which each star is moved in the
    new image and in the reference; 0 = perfect registration.
    """
    rng = np.random.default_rng(seed)
    ny, nx = shape
    part = ny * nx / 2048 / 4096
    profile = _profile(fwhm[0], 0.5), _profile(fwhm[1], -0.7)
    n = round(3000 * part)
    x, y = profile[0].snap(rng.uniform(0, nx - 1, n)), profile[0].snap(rng.uniform(0, ny - 1, n))
    flux = 500.0 * rng.uniform(0, 1, n) ** (-1 / 0.8)
    signals = []
    for p, scale, rms in zip(profile, (ratio, 1.0), jitter, strict=True):
        image = np.zeros(shape)
        move = rms * rng.normal(size=(2, n))
        p.add(image, x + move[0], y + move[1], flux * scale)
        signals.append(image)
    saturated = (signals[0] > SATURATION) | (signals[1] > SATURATION)
    far = scipy.ndimage.distance_transform_edt(~saturated) > 30 if saturated.any() else np.ones(shape, bool)
    noise = [float(np.sqrt(s / gain + (read_noise / gain) ** 2)) for s in sky]
    count = max(6, round(60 * part)) // 3 * 3 if n_transients is None else n_transients
    xt, yt = _transient_positions(rng, count, x, y, far)
    paper = _paper(tuple(scipy.fft.next_fast_len(m + 41) for m in shape), fwhm, tuple(noise), ratio)
    v = paper.variance(*(s**2 + image / gain for s, image in zip(noise, signals, strict=True)))
    at = np.round(yt).astype(int), np.round(xt).astype(int)
    third = count // 3
    snr = rng.permutation(np.concatenate([rng.uniform(*r, third) for r in ((5, 8), (8, 15), (15, 60))]))
    f = snr * np.sqrt(v[at]) / paper.f_s
    profile[0].add(signals[0], xt, yt, f * ratio)
    pair = [observe(rng, image, s, gain, read_noise) for image, s in zip(signals, sky, strict=True)]
    saturated |= signals[0] > SATURATION
    for image in pair:
        np.minimum(image, np.float32(SATURATION), out=image)
    return Pair(*pair, *(p.stamp.astype(np.float32) for p in profile), *noise, ratio, 1.0, gain,
                scipy.ndimage.binary_dilation(saturated), *(s.astype(np.float32) for s in signals),
                {"x": xt, "y": yt, "f": f, "snr": snr})


@lru_cache(maxsize=4)
def _profile(fwhm: float, angle: float) -> Profile:
    return Profile(fwhm, angle=angle)


@lru_cache(maxsize=1)
def _paper(shape, fwhm, noise, ratio) -> Paper:
    p_n, p_r = _profile(fwhm[0], 0.5).stamp, _profile(fwhm[1], -0.7).stamp
    return Paper(shape, p_n, p_r, *noise, ratio, 1.0, np.complex64)


def _transient_positions(rng, count, x, y, far):
    """A third 2–6 pixels from a star, the others anywhere; all in the counted area and 20 pixels apart."""
    ny, nx = far.shape
    xs, ys = np.empty(0), np.empty(0)
    while len(xs) < count:
        if len(xs) < count // 3:
            k, r, phi = rng.integers(len(x)), rng.uniform(2, 6), rng.uniform(0, 2 * np.pi)
            xk, yk = x[k] + r * np.cos(phi), y[k] + r * np.sin(phi)
        else:
            xk, yk = rng.uniform(45, nx - 46), rng.uniform(45, ny - 46)
        xk, yk = np.round(np.array([xk, yk]) * Profile.PHASES) / Profile.PHASES
        inside = 45 <= xk <= nx - 46 and 45 <= yk <= ny - 46 and far[round(yk), round(xk)]
        if inside and (np.hypot(xs - xk, ys - yk) > 20).all():
            xs, ys = np.append(xs, xk), np.append(ys, yk)
    return xs, ys


def local_maxima(score: np.ndarray, threshold: float, half: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of pixels ≥ threshold that are the largest of their 7 × 7 pixels and not near the edge."""
    inner = score[half:-half, half:-half]
    y, x = np.nonzero(inner >= threshold)
    windows = np.lib.stride_tricks.sliding_window_view(score, (2 * half + 1,) * 2)
    top = np.nanmax(windows[y, x], axis=(1, 2), initial=-np.inf)
    keep = inner[y, x] >= top
    return y[keep] + half, x[keep] + half


@dataclass
class Census:
    """Detections against truth: completeness C = found / all, purity P = matched / positive detections."""

    found: int = 0
    transients: int = 0
    matched: int = 0
    false_positive: int = 0
    false_negative: int = 0

    def __add__(self, other: Census) -> Census:
        return Census(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Census)))

    @property
    def completeness(self) -> float:
        return self.found / max(self.transients, 1)

    @property
    def purity(self) -> float:
        return self.matched / max(self.matched + self.false_positive, 1)

    def __str__(self) -> str:
        return (f"C={self.completeness:.3f} P={self.purity:.3f} of {self.transients}, false +{self.false_positive} "
                f"-{self.false_negative}")


def detections(score: np.ndarray, pair: Pair, threshold: float = 5.0) -> Census:
    """Count local maxima (7 × 7) ≥ threshold, 25 pixels from saturation and 40 from the edges; match < 3 pixels."""
    ny, nx = score.shape
    cores = np.argwhere(pair.mask)
    tree = cKDTree(cores) if len(cores) else None

    def counted(image):
        y, x = local_maxima(image, threshold)
        keep = (y >= 40) & (y < ny - 40) & (x >= 40) & (x < nx - 40)
        if tree is not None:
            keep &= tree.query(np.stack([y, x], axis=1), distance_upper_bound=26)[0] > 25
        return np.stack([y[keep], x[keep]], axis=1)

    positive, negative = counted(score), counted(-score)
    truth = np.stack([pair.transients["y"], pair.transients["x"]], axis=1)
    near = np.hypot(*np.moveaxis(positive[:, None, :] - truth[None, :, :], 2, 0)) < 3
    return Census(int(near.any(axis=0).sum()), len(truth), int(near.any(axis=1).sum()),
                  int((~near.any(axis=1)).sum()), len(negative))


def say(text: str) -> None:
    """Show measured figures (pytest -s, or the captured output of a failure)."""
    sys.stdout.write(f"\n{text}\n")
