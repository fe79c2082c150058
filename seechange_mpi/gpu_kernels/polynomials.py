"""Two-dimensional polynomials of total degree d in scaled positions: one order of terms for all kernels."""

from __future__ import annotations

from seechange_mpi.gpu_kernels.backend import Array, get_xp


def powers(degree: int) -> list[tuple[int, int]]:
    """(i, j) of the terms u^i v^j, i + j ≤ degree: for j in 0..d: for i in 0..d − j."""
    return [(i, j) for j in range(degree + 1) for i in range(degree + 1 - j)]


def terms(degree: int, u: Array, v: Array) -> Array:
    """Values of all terms at scaled positions u, v of one shape: (…, n_terms)."""
    xp = get_xp(u, v)
    return xp.stack([u**i * v**j for i, j in powers(degree)], axis=-1)
