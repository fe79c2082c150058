"""Simultaneous PSF photometry of sources whose light overlaps.

All fluxes and positions are solved for together, by Gauss–Newton steps on the residual image of the complete model
(as in crowdsource, Schlafly et al. 2018, ApJS 234, 39, and DAOPHOT's ALLSTAR, Stetson 1987, PASP 99, 191). The normal
matrix has one 3 × 3 block per source and one per pair of sources whose fitted discs share pixels; the step is found by
conjugate gradients. NumPy and CuPy agree to 1e-4 of the errors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from seechange_mpi.gpu_kernels.backend import Array, asnumpy, get_xp
from seechange_mpi.gpu_kernels.photometry import (
    EDGE,
    MOVED_AWAY,
    SKIPPED,
    PSFPhotometry,
    _add_at,
    _groups,
    _positions,
    psf_photometry,
)
from seechange_mpi.gpu_kernels.psf_model import (
    ConstantPSF,
    PSFLike,
    fwhm_of,
    local_stamps,
    shift_matrices,
    shifted_with_slopes,
)
from seechange_mpi.gpu_kernels.stamps import stamp_index, take_stamps

_PRIOR = 0.3
"""Weak prior on the shift of a position in one step [pix], so that faint sources stay where they were found."""


@dataclass
class JointPhotometry(PSFPhotometry):
    """`PSFPhotometry` of sources fitted together, and what the fit tells of their neighbours and shapes.

    Attributes
    ----------
    blend : (n,) light of other sources within the fitted disc, in units of the source's own there.
    spread, spread_err : (n,) the excess of the profile's width over the PSF's (`spread_model`), and its error.
    residual : (ny, nx) float32, the data less the model of all sources.
    """

    blend: Array
    spread: Array
    spread_err: Array
    residual: Array


def joint_photometry(
    data: Array, variance: Array, mask: Array, x: Array, y: Array, psf: PSFLike | Array, *,
    radius: float | None = None, max_shift: float = 1.5, iterations: int = 4,
) -> JointPhotometry:
    """Fit the PSF to all sources at once.

    Sources whose discs share no pixel with another's are fitted by themselves (`psf_photometry`), the others together.
    Their errors allow for the fluxes and positions of their neighbours; the neighbours' own neighbours are taken as
    known.

    Parameters
    ----------
    data : (ny, nx) float32, background-subtracted;  variance : (ny, nx), total variance.
    mask : (ny, nx) bool, True = bad.
    x, y : (n,) start positions, good to a third of the FWHM [pix].
    psf : model with ``basis`` … or one odd centred (s, s) stamp.
    radius : float, optional
        Radius of the fitted discs; default 1.5 FWHM of the PSF at the centre of its field [pix].
    max_shift : float
        Sources are held within this distance of their start [pix].
    iterations : int
        Gauss–Newton steps of the overlapping sources.

    Returns
    -------
    JointPhotometry
        float64, in the order of x and y; residual float32.
    """
    xp = get_xp(data)
    model = ConstantPSF.on(psf, xp)
    x, y = _positions(x, xp), _positions(y, xp)
    if radius is None:
        radius = 1.5 * fwhm_of(local_stamps(model, xp.asarray([model.x0]), xp.asarray([model.y0]))[0])
    first, second = _neighbours(x, y, 2.0 * radius)
    members = xp.unique(xp.concatenate([first, second]))
    phot = _by_themselves(data, variance, mask, x, y, model, members, radius, max_shift)
    alone = xp.ones(x.size, dtype=bool)
    alone[members] = False
    residual = data.astype(xp.float32, copy=True)
    lone = xp.nonzero(alone & ((phot.flags & SKIPPED) == 0))[0]
    _Sources(model, phot.x[lone], phot.y[lone]).add(residual, -phot.flux[lone])
    if members.size:
        group = _Group(model, data, residual, variance, mask, x[members], y[members], radius)
        group.join(xp.searchsorted(members, first), xp.searchsorted(members, second))
        # fluxes first, then all of them
        group.step(move=False, max_shift=max_shift)
        for _ in range(iterations):
            group.step(move=True, max_shift=max_shift)
        group.report(phot, members)
    return _look_back(phot, data, residual, variance, mask, model, radius)


def _neighbours(x: Array, y: Array, reach: float) -> tuple[Array, Array]:
    """Indices of pairs of sources closer than `reach`."""
    xp = get_xp(x)
    hx, hy = asnumpy(x), asnumpy(y)
    finite = np.flatnonzero(np.isfinite(hx) & np.isfinite(hy))
    if len(finite) < 2:
        return xp.zeros(0, dtype=xp.int64), xp.zeros(0, dtype=xp.int64)
    pairs = cKDTree(np.stack([hx[finite], hy[finite]], axis=-1)).query_pairs(reach, output_type="ndarray")
    return xp.asarray(finite[pairs[:, 0]]), xp.asarray(finite[pairs[:, 1]])


def _by_themselves(data: Array, variance: Array, mask: Array, x: Array, y: Array, model: PSFLike, members: Array,
                   radius: float, max_shift: float) -> PSFPhotometry:
    """`psf_photometry` of all but the members, whose places stay empty."""
    xp = get_xp(data)
    alone = xp.ones(x.size, dtype=bool)
    alone[members] = False
    which = xp.nonzero(alone)[0]
    part = psf_photometry(data, variance, mask, x[which], y[which], model, radius=radius, max_shift=max_shift)
    flux, flux_err, x_err, y_err, chi2 = (xp.full(x.size, xp.nan) for _ in range(5))
    out = PSFPhotometry(x.copy(), y.copy(), flux, flux_err, x_err, y_err, chi2, xp.zeros(x.size, dtype=xp.int32))
    for f in fields(PSFPhotometry):
        getattr(out, f.name)[which] = getattr(part, f.name)
    return out


class _Sources:
    """Centred profiles of sources; what they look like at the places where they are."""

    def __init__(self, psf: PSFLike, x: Array, y: Array) -> None:
        xp = get_xp(x)
        self.x, self.y = x.copy(), y.copy()
        size = psf.basis.shape[-1]
        self.size = size
        self.centred = xp.empty((x.size, size, size), dtype=xp.float32)
        for part in _groups(x.size, 8 * 3 * size**2, xp):
            known = xp.isfinite(x[part] + y[part])
            self.centred[part] = local_stamps(psf, *(xp.where(known, c[part], 0.0) for c in (x, y)))

    def add(self, image: Array, flux: Array) -> None:
        """Add the sources with these fluxes to an image, in place."""
        xp = get_xp(image)
        flat = image.reshape(-1)
        size = self.size
        for part in _groups(flux.size, 4 * 6 * size**2, xp):
            cx, cy = xp.round(self.x[part]), xp.round(self.y[part])
            index, inside = stamp_index(image.shape, cx, cy, size)
            dx, dy = self.x[part] - cx, self.y[part] - cy
            stamps = _shifted(self.centred[part], dx, dy, size)
            stamps *= flux[part].astype(xp.float32)[:, None, None]
            _add_at(flat, index[inside], stamps[inside])


def _shifted(centred: Array, dx: Array, dy: Array, size: int) -> Array:
    """Float32 profiles moved by (dx, dy)."""
    n = centred.shape[-1]
    rows, columns = (shift_matrices(d, size, n).astype(np.float32) for d in (dy, dx))
    return rows @ centred @ columns.transpose(0, 2, 1)


class _Discs:
    """Derivatives and weights of sources on the discs around them."""

    def __init__(self, sources: _Sources, part: slice | Array, variance: Array, mask: Array, radius: float) -> None:
        xp = get_xp(variance)
        self.size = size = 2 * int(np.ceil(radius + 0.5)) + 1
        known = xp.isfinite(sources.x[part] + sources.y[part])
        # what has no place lies far outside
        x, y = (xp.where(known, c[part], -4.0 * size) for c in (sources.x, sources.y))
        self.cx, self.cy = xp.round(x), xp.round(y)
        self.index, self.inside = stamp_index(variance.shape, self.cx, self.cy, size)
        u = xp.arange(size, dtype=xp.float64) - size // 2
        disc = (((u[None, :] - (y - self.cy)[:, None]) ** 2)[:, :, None]
                + ((u[None, :] - (x - self.cx)[:, None]) ** 2)[:, None, :]) <= radius**2
        var = take_stamps(variance, self.index, self.inside)
        good = disc & self.inside & ~take_stamps(mask, self.index, self.inside) & (var > 0) & xp.isfinite(var)
        self.weight = xp.where(good, 1.0 / xp.where(good, var, 1), 0).astype(xp.float32)
        # less than a quarter of the disc is good
        self.skipped = good.sum(axis=(1, 2)) < 0.25 * xp.maximum(disc.sum(axis=(1, 2)), 1)
        self.weight[self.skipped] = 0
        self.edge = (disc & ~self.inside).any(axis=(1, 2))
        self.derivatives = xp.empty((len(x), 3, size, size), dtype=xp.float32)
        whole = sources.centred[part]
        crop = max(0, sources.size // 2 - (size // 2 + 5))
        whole = whole[:, crop: sources.size - crop, crop: sources.size - crop]
        for some in _groups(len(x), 8 * 4 * size**2, xp):
            stacked = shifted_with_slopes(whole[some], (x - self.cx)[some], (y - self.cy)[some], size)
            self.derivatives[some] = xp.stack(stacked, axis=1)

    def values(self, image: Array) -> Array:
        """Pixels of an image on the stamps, 0 where they do not count: (n, size, size)."""
        xp = get_xp(image)
        return xp.where(self.weight > 0, take_stamps(image, self.index, self.inside), np.float32(0))

    def blocks(self) -> Array:
        """(n, 3, 3) float64 weighted products of the derivatives."""
        n = len(self.weight)
        a = self.derivatives.reshape(n, 3, -1)
        return ((a * self.weight.reshape(n, 1, -1)) @ a.transpose(0, 2, 1)).astype(float)


class _Group:
    """The sources that overlap."""

    def __init__(self, psf: PSFLike, data: Array, residual: Array, variance: Array, mask: Array, x: Array, y: Array,
                 radius: float) -> None:
        xp = get_xp(data)
        self.sources = _Sources(psf, x, y)
        self.flux = xp.zeros(x.size)
        self.residual, self.variance, self.mask, self.radius = residual, variance, mask, radius
        self.x0, self.y0 = x, y
        self.moved = xp.zeros(x.size, dtype=bool)

    def join(self, first: Array, second: Array) -> None:
        """Tell which of the group share pixels."""
        self.first, self.second = first, second

    def _linearise(self) -> tuple[_Discs, Array, Array]:
        discs = _Discs(self.sources, slice(None), self.variance, self.mask, self.radius)
        return discs, discs.blocks(), _overlaps(discs, self.first, self.second)

    def step(self, *, move: bool, max_shift: float) -> None:
        """One Gauss–Newton step; without `move` only the fluxes change."""
        xp = get_xp(self.residual)
        s = self.sources
        discs, blocks, pairs = self._linearise()
        n = len(blocks)
        wr = (discs.weight * discs.values(self.residual)).reshape(n, -1, 1)
        rhs = (discs.derivatives.reshape(n, 3, -1) @ wr)[:, :, 0].astype(xp.float64)
        height = xp.maximum(xp.abs(self.flux), 1.0 / xp.sqrt(xp.maximum(blocks[:, 0, 0], 1e-30)))
        if move:
            for k in (1, 2):
                blocks[:, k, k] += 1.0 / (_PRIOR * height) ** 2
        else:
            for k in (1, 2):
                blocks[:, k, :], blocks[:, :, k], rhs[:, k] = 0.0, 0.0, 0.0
                blocks[:, k, k] = 1.0
            pairs[:, 1:, :], pairs[:, :, 1:] = 0.0, 0.0
        delta = _solve(blocks, pairs, self.first, self.second, rhs)
        if self.flux.any():
            s.add(self.residual, self.flux)
        self.flux = self.flux + delta[:, 0]
        if move:
            height = xp.maximum(xp.abs(self.flux), height)
            dx, dy = (xp.clip(delta[:, k] / height, -0.4, 0.4) for k in (1, 2))
            mx, my = s.x + dx - self.x0, s.y + dy - self.y0
            far = xp.maximum(xp.hypot(mx, my) / max_shift, 1.0)
            self.moved = far > 1.0
            s.x, s.y = self.x0 + mx / far, self.y0 + my / far
        s.add(self.residual, -self.flux)

    def report(self, phot: PSFPhotometry, members: Array) -> None:
        """Write the results of the group into those of all, in place."""
        xp = get_xp(self.residual)
        discs, blocks, pairs = self._linearise()
        errors = self._errors(blocks, pairs)
        nothing = discs.skipped
        phot.x[members], phot.y[members] = self.sources.x, self.sources.y
        phot.flux[members] = xp.where(nothing, xp.nan, self.flux)
        for name, value in zip(("flux_err", "x_err", "y_err"), errors, strict=True):
            getattr(phot, name)[members] = xp.where(nothing, xp.nan, value)
        phot.flags[members] = (xp.where(nothing, SKIPPED, 0) | xp.where(discs.edge, EDGE, 0)
                               | xp.where(self.moved, MOVED_AWAY, 0)).astype(xp.int32)

    def _errors(self, blocks: Array, pairs: Array) -> tuple[Array, Array, Array]:
        """Errors of flux, x and y with the neighbours' fluxes and positions free."""
        xp = get_xp(self.residual)
        ridge = 1e-9 * xp.einsum("nkk->nk", blocks)[:, :, None] * xp.eye(3) + 1e-30 * xp.eye(3)
        inverse = xp.linalg.inv(blocks + ridge)
        left = xp.zeros_like(blocks)
        for a, b, c in ((self.first, self.second, pairs), (self.second, self.first, pairs.transpose(0, 2, 1))):
            taken = c @ inverse[b] @ c.transpose(0, 2, 1)
            for j in range(3):
                for k in range(3):
                    left[:, j, k] += xp.bincount(a, weights=taken[:, j, k], minlength=len(blocks))
        # in units of the source's own information; neighbours that are correlated themselves seem to take more than all
        root = xp.linalg.cholesky(inverse)
        share, axes = xp.linalg.eigh(root.transpose(0, 2, 1) @ left @ root)
        spare = 1.0 - xp.clip(share, 0.0, 0.98)
        mixed = root @ axes
        covariance = (mixed / spare[:, None, :]) @ mixed.transpose(0, 2, 1)
        sigma = xp.sqrt(xp.einsum("nkk->nk", covariance))
        height = xp.maximum(xp.abs(self.flux), 1e-30)
        return sigma[:, 0], sigma[:, 1] / height, sigma[:, 2] / height


def _overlaps(discs: _Discs, first: Array, second: Array) -> Array:
    """(m, 3, 3) float64 weighted products of the derivatives of pairs over the pixels that both discs hold."""
    xp = get_xp(discs.weight)
    size = discs.size
    out = xp.zeros((first.size, 3, 3))
    u = xp.arange(size)
    for part in _groups(first.size, 4 * 10 * size**2, xp):
        i, j = first[part], second[part]
        row = u[None, :] + (discs.cy[i] - discs.cy[j]).astype(xp.int64)[:, None]
        column = u[None, :] + (discs.cx[i] - discs.cx[j]).astype(xp.int64)[:, None]
        shared = ((row >= 0) & (row < size))[:, :, None] & ((column >= 0) & (column < size))[:, None, :]
        at = (xp.clip(row, 0, size - 1)[:, :, None] * size + xp.clip(column, 0, size - 1)[:, None, :])
        at = at.reshape(len(i), -1)
        both = shared.reshape(len(i), -1) & (xp.take_along_axis(discs.weight[j].reshape(len(i), -1), at, axis=1) > 0)
        weight = xp.where(both, discs.weight[i].reshape(len(i), -1), np.float32(0))
        a = discs.derivatives[i].reshape(len(i), 3, -1) * weight[:, None, :]
        b = xp.take_along_axis(discs.derivatives[j].reshape(len(i), 3, -1), at[:, None, :], axis=2)
        out[part] = a @ b.transpose(0, 2, 1)
    return out


def _solve(blocks: Array, pairs: Array, first: Array, second: Array, rhs: Array, iterations: int = 60) -> Array:
    """Solve the block-sparse symmetric system by conjugate gradients, preconditioned by its diagonal blocks."""
    xp = get_xp(blocks)
    n = len(blocks)
    blocks = blocks + 1e-9 * xp.einsum("nkk->nk", blocks)[:, :, None] * xp.eye(3) + 1e-30 * xp.eye(3)
    inverse = xp.linalg.inv(blocks)

    def normal(v: Array) -> Array:
        out = xp.einsum("nkl,nl->nk", blocks, v)
        to_first, to_second = xp.einsum("mkl,ml->mk", pairs, v[second]), xp.einsum("mlk,ml->mk", pairs, v[first])
        for k in range(3):
            out[:, k] += (xp.bincount(first, weights=to_first[:, k], minlength=n)
                          + xp.bincount(second, weights=to_second[:, k], minlength=n))
        return out

    v = xp.zeros_like(rhs)
    r = rhs.copy()
    z = xp.einsum("nkl,nl->nk", inverse, r)
    p, rz = z.copy(), float((r * z).sum())
    least = 1e-8 * rz
    for _ in range(iterations):
        if not rz > least:
            break
        q = normal(p)
        alpha = rz / float((p * q).sum())
        v += alpha * p
        r -= alpha * q
        z = xp.einsum("nkl,nl->nk", inverse, r)
        rz, old = float((r * z).sum()), rz
        p = z + (rz / old) * p
    return v


def _look_back(phot: PSFPhotometry, data: Array, residual: Array, variance: Array, mask: Array, model: PSFLike,
               radius: float) -> JointPhotometry:
    """Chi2, blending and spread of every source, from its own light and the residual of all."""
    xp = get_xp(residual)
    n = phot.x.size
    chi2, blend, spread, error = (xp.full(n, xp.nan) for _ in range(4))
    size = 2 * int(np.ceil(radius + 0.5)) + 1
    for part in _groups(n, 4 * (20 * size**2 + model.basis.shape[-1] ** 2), xp):
        sources = _Sources(model, phot.x[part], phot.y[part])
        discs = _Discs(sources, slice(None), variance, mask, radius)
        flux = xp.where(xp.isfinite(phot.flux[part]), phot.flux[part], 0.0)
        seen = discs.weight > 0
        own = discs.derivatives[:, 0] * flux.astype(xp.float32)[:, None, None] * seen
        left, all_light = discs.values(residual), discs.values(data)
        chi2[part] = (discs.weight * left**2).sum(axis=(1, 2)) / xp.maximum(seen.sum(axis=(1, 2)) - 3, 1)
        light = own.sum(axis=(1, 2))
        blend[part] = (all_light - left - own).sum(axis=(1, 2)) / xp.maximum(xp.abs(light), 1e-30)
        spread[part], error[part] = spread_model(own + left, discs.derivatives[:, 0], discs.weight, radius / 1.5)
    skipped = (phot.flags & SKIPPED) != 0
    chi2, blend, spread, error = (xp.where(skipped, xp.nan, v) for v in (chi2, blend, spread, error))
    values = {f.name: getattr(phot, f.name) for f in fields(PSFPhotometry)} | {"chi2": chi2}
    return JointPhotometry(**values, blend=blend, spread=spread, spread_err=error, residual=residual)


def spread_model(stamps: Array, profile: Array, weight: Array, fwhm: float) -> tuple[Array, Array]:
    """Star/galaxy measure: how much wider than the PSF a source is.

    spread = (Gᵀ W p) / (φᵀ W p) − (Gᵀ W φ) / (φᵀ W φ) (Desai et al. 2012, ApJ 757, 83), with p the pixels, φ the PSF
    and G the PSF convolved with a round exponential disc of scale length h = FWHM / 16, of which the second-order
    expansion is taken: G = φ + (3/2) h² ∇²φ. Stars scatter about 0, galaxies are positive, cosmic rays negative.

    Parameters
    ----------
    stamps, profile, weight : (n, s, s)
        Pixels free of neighbours, the PSF at the source's place, inverse variance (0 = bad).
    fwhm : float, of the PSF [pix].

    Returns
    -------
    spread, error : (n,)
    """
    xp = get_xp(stamps)
    wide = xp.pad(profile, ((0, 0), (1, 1), (1, 1)), mode="edge")
    laplacian = wide[:, 2:, 1:-1] + wide[:, :-2, 1:-1] + wide[:, 1:-1, 2:] + wide[:, 1:-1, :-2] - 4 * profile
    broad = np.float32(1.5 * (fwhm / 16.0) ** 2) * laplacian

    def product(a: Array, b: Array) -> Any:
        return (weight * a * b).sum(axis=(1, 2), dtype=xp.float64)

    pp, gp, gg = product(profile, profile), product(broad, profile), product(broad, broad)
    light, spread_light = product(profile, stamps), product(broad, stamps)
    pp = xp.maximum(pp, 1e-30)
    safe = xp.where(xp.abs(light) > 1e-30, light, 1e-30)
    error = xp.sqrt(xp.maximum(gg - gp**2 / pp, 0)) / xp.abs(safe)
    return spread_light / safe - gp / pp, error
