"""A transparent first score: smooth functions of the artefact metrics, multiplied.

score = Π 1 / (1 + exp((q − q½) / w)) over the terms below: 1 for a clean point source, ½ where one metric
reaches its half-way value, near 0 for artefacts. Nothing is trained; every term can be read.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.gpu_kernels.psf_model import fwhm_of
from seechange_mpi.model.products import F64, Cutouts, Measurements, Scores, SubImage
from seechange_mpi.model.tables import SCORES, empty_table
from seechange_mpi.pipeline.step import Step


class ScoringParameters(Parameters):
    """Parameters of `Scorer`."""

    section = "scoring"
    algorithm: Literal["transparent"] = par("transparent", "product of logistic terms of the artefact metrics")
    chi2_half: float = par(2.5, "chi2 of the PSF fit (less a 3 % model error) that halves the score", gt=0)
    negfrac_half: float = par(0.3, "fraction of opposite pixels that halves the score", gt=0)
    masked_half: float = par(0.15, "fraction of the stamp's core that is masked and halves the score", gt=0)
    width_half: float = par(0.6, "|ln(width / PSF width)| that halves the score", gt=0)


class Scorer(Step[ScoringParameters]):
    """Score measurements."""

    process = "scoring"
    parameters_class = ScoringParameters

    def run(self, measurements: Measurements, cutouts: Cutouts, sub: SubImage) -> Scores:
        """Return a score in 0..1 for every measurement, in the same order."""
        t = measurements.table
        table = empty_table(SCORES, len(t))
        table["index_in_sources"] = t["index_in_sources"]
        terms = self.terms(measurements, cutouts, sub)
        if len(t):
            table["score"] = np.prod(list(terms.values()), axis=0)
        info = {"terms": sorted(terms), "formula": "product of 1 / (1 + exp((q - half) / (half / 4)))"}
        return Scores(self.pars.algorithm, table, info)

    def terms(self, measurements: Measurements, cutouts: Cutouts, sub: SubImage) -> dict[str, F64]:
        """Return each term, (n,) in 0..1, by name."""
        t, p = measurements.table, self.pars
        if len(t) == 0:
            return {}
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = np.abs(t["flux_psf"]) / t["flux_psf_err"]
            width = np.abs(np.log(0.5 * (t["major_width"] + t["minor_width"]) / max(fwhm_of(sub.psf), 1.0)))
        # shapes of faint sources are noisy: their term is softened
        width = width / np.sqrt(1 + (8 / np.maximum(snr, 1.0)) ** 2)
        core = cutouts.sub.shape[-1] // 2
        inner = slice(max(core - 5, 0), core + 6)
        masked = np.isnan(cutouts.sub[:, inner, inner]).mean(axis=(1, 2))
        return {
            "chi2": _logistic(t["chi2_psf"] - (0.03 * snr) ** 2, p.chi2_half),
            "negative": _logistic(np.maximum(t["negfrac"], t["negfluxfrac"]), p.negfrac_half),
            "masked": _logistic(masked, p.masked_half),
            "width": _logistic(width, p.width_half),
        }


def _logistic(q: F64, half: float) -> F64:
    value = np.where(np.isfinite(q), q, np.inf)
    return np.asarray(1 / (1 + np.exp(np.clip((value - half) / (half / 4), -50, 50))))
