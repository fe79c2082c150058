"""A matching kernel that varies over the frame: I ≈ κ(x, y) ⊗ T + B(x, y).

What the solvers (`alard_lupton`, `sfft`) return and `matched` applies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from seechange_mpi.gpu_kernels import polynomials
from seechange_mpi.gpu_kernels.backend import Array, get_xp


@dataclass
class KernelSolution:
    """κ(x, y) = Σ_p t_p(u, v) planes[p] and B(x, y) = Σ_q t_q(u, v) background[q].

    t are the terms u^i v^j of `polynomials.powers`, with u = (x − x0) / x_scale, v = (y − y0) / y_scale.

    Attributes
    ----------
    planes : (n_terms of degree, s, s) float64, s odd, centred; host memory.
    background : (n_terms of background_degree,) float64 [unit of the image that is not convolved].
    convolved : "ref": new ≈ κ ⊗ ref + B.  "new": ref ≈ κ ⊗ new + B.
    flux_scale : sum of κ at the centre of the frame: counts of the other image per count of the convolved one.
    figures : what a person wants to know of the fit: stamps used, chi2, …
    """

    planes: np.ndarray
    degree: int
    background: np.ndarray
    background_degree: int
    x0: float
    y0: float
    x_scale: float
    y_scale: float
    convolved: Literal["ref", "new"]
    flux_scale: float
    figures: dict[str, float] = field(default_factory=dict)

    def kernel_at(self, x: float, y: float) -> np.ndarray:
        """κ at one position, (s, s) float64."""
        u, v = np.float64((x - self.x0) / self.x_scale), np.float64((y - self.y0) / self.y_scale)
        return np.tensordot(polynomials.terms(self.degree, u, v), self.planes, axes=1)

    def background_at(self, x: Array, y: Array) -> Array:
        """B at positions (any broadcastable shapes), on the backend of `x`."""
        xp = get_xp(x, y)
        u, v = (x - self.x0) / self.x_scale, (y - self.y0) / self.y_scale
        total = xp.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=u.dtype)
        for (i, j), b in zip(polynomials.powers(self.background_degree), self.background, strict=True):
            total += float(b) * u**i * v**j
        return total
