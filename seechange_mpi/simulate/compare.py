"""Compare what was measured with what was simulated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from scipy.spatial import cKDTree

from seechange_mpi.io.bundle import read_bundle, read_section

F64 = npt.NDArray[np.float64]

EDGE_PIX = 30
"""Truth this close to an edge of its section is not asked for: the dither may leave it without reference."""
MATCH_ARCSEC = 1.2
"""Largest distance of a measurement to its truth."""
SNR_ASKED = 10.0
"""Difference S/N from which completeness is judged."""


@dataclass
class Comparison:
    """Figures of one or more exposures against the truth.

    Attributes
    ----------
    zp_errors : measured minus true zero point of each section [mag].
    astrometry_mas : position errors of stars with S/N > 20, east and north [mas].
    found, asked : transients, variables (faded ones too) and movers with difference S/N ≥ 10.
    true, kept : unflagged measurements with a true change behind them, and all unflagged ones.
    missed, false : one line each.
    """

    zp_errors: list[float] = field(default_factory=list)
    astrometry_mas: list[float] = field(default_factory=list)
    found: int = 0
    asked: int = 0
    true: int = 0
    kept: int = 0
    missed: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    flux_ratios: list[float] = field(default_factory=list)

    @property
    def worst_zp_error(self) -> float:
        """Zero-point error of largest size [mag]."""
        return max(self.zp_errors, key=abs) if self.zp_errors else float("nan")

    @property
    def astrometric_rms_mas(self) -> float:
        """Rms per axis [mas]."""
        return float(np.sqrt(np.mean(np.square(self.astrometry_mas)))) if self.astrometry_mas else float("nan")

    @property
    def completeness(self) -> float:
        """Found over asked."""
        return self.found / self.asked if self.asked else float("nan")

    @property
    def purity(self) -> float:
        """True over kept."""
        return self.true / self.kept if self.kept else float("nan")


def _unit(ra: F64, dec: F64) -> F64:
    a, d = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def match_sky(ra1: F64, dec1: F64, ra2: F64, dec2: F64, radius_arcsec: float) -> npt.NDArray[np.int64]:
    """Index into the second list of the nearest partner of each position of the first; -1 = none."""
    if len(ra1) == 0 or len(ra2) == 0:
        return np.full(len(ra1), -1)
    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)
    distance, index = cKDTree(_unit(ra2, dec2)).query(_unit(ra1, dec1), distance_upper_bound=chord)
    return np.where(np.isfinite(distance), index, -1)


def compare_exposure(bundle: Path, truth: Table, first_truth: Table, into: Comparison) -> None:
    """Add one exposure's figures to `into`.

    Parameters
    ----------
    bundle : path of its bundle.
    truth, first_truth : truth tables of this exposure and of the reference exposure.
    """
    info = read_bundle(bundle)
    for section_id in info.section_ids:
        stored = read_section(bundle, section_id, pixels=False)
        here = truth[truth["section"] == section_id]
        p = stored.products
        if p.zp is None or p.sources is None:
            into.missed.append(f"{info.exposure.identifier} {section_id}: not processed: {stored.report.error_message}")
            continue
        into.zp_errors.append(p.zp.zp - float(truth.meta[f"zp_{section_id}"]))
        _compare_stars(p.sources.table, here, into)
        if p.measurements is not None:
            _compare_measurements(p.measurements.table, here, first_truth, stored.shape,
                                  f"{info.exposure.identifier} {section_id}", into)


def _compare_stars(sources: npt.NDArray[np.void], truth: Table, into: Comparison) -> None:
    stars = truth[truth["kind"] == "star"]
    good = (sources["flags"] == 0) & (sources["pixel_flags"] == 0) & sources["is_star"]
    good &= sources["flux_psf"] > 20 * sources["flux_psf_err"]
    s = sources[good]
    index = match_sky(s["ra"], s["dec"], stars["ra"], stars["dec"], 0.5)
    s, t = s[index >= 0], stars[index[index >= 0]]
    cos_dec = np.cos(np.deg2rad(t["dec"]))
    into.astrometry_mas += list((s["ra"] - t["ra"]) * cos_dec * 3.6e6)
    into.astrometry_mas += list((s["dec"] - t["dec"]) * 3.6e6)


def _compare_measurements(table: npt.NDArray[np.void], truth: Table, first: Table, shape: tuple[int, int], name: str,
                          into: Comparison) -> None:
    kept = table[~table["is_bad"]]
    ny, nx = shape
    inner = ((truth["x"] > EDGE_PIX) & (truth["x"] < nx - 1 - EDGE_PIX)
             & (truth["y"] > EDGE_PIX) & (truth["y"] < ny - 1 - EDGE_PIX))
    # nothing is asked for under a trail of either exposure, where pixels are masked
    clear = ~truth["on_trail"] if "on_trail" in truth.colnames else np.ones(len(truth), bool)
    if "on_trail" in first.colnames:
        hidden = first[first["on_trail"]]
        clear &= match_sky(truth["ra"], truth["dec"], hidden["ra"], hidden["dec"], MATCH_ARCSEC) < 0
    asked = truth[inner & clear & (np.abs(truth["diff_snr"]) >= SNR_ASKED)]
    index = match_sky(asked["ra"], asked["dec"], kept["ra"], kept["dec"], MATCH_ARCSEC)
    into.asked += len(asked)
    into.found += int((index >= 0).sum())
    into.flux_ratios += list(kept["flux_psf"][index[index >= 0]] / asked["diff_adu"][index >= 0])
    for row in asked[index < 0]:
        into.missed.append(f"{name}: {row['kind']} at ({row['x']:.1f}, {row['y']:.1f}) S/N {row['diff_snr']:.1f}")
    changed = truth[np.abs(truth["diff_snr"]) > 2]
    left = first[first["kind"] == "mover"]
    ra, dec = np.concatenate([changed["ra"], left["ra"]]), np.concatenate([changed["dec"], left["dec"]])
    real = match_sky(kept["ra"], kept["dec"], ra, dec, MATCH_ARCSEC)
    into.kept += len(kept)
    into.true += int((real >= 0).sum())
    for row in kept[real < 0]:
        into.false.append(f"{name}: ({row['x']:.1f}, {row['y']:.1f}) S/N {row['score']:.1f}")


def variables_as_objects(
    truths: list[Table], measured: list[tuple[str, float, float]]
) -> tuple[int, int]:
    """Count variables that were measured in every later epoch, and those of them that are one object.

    Parameters
    ----------
    truths : truth tables of the epochs that were processed.
    measured : (object id, ra, dec) of every measurement in the database.

    Returns
    -------
    single, seen : variables with exactly one object, variables with at least as many measurements as epochs.
    """
    ids = np.array([m[0] for m in measured])
    ra, dec = np.array([m[1] for m in measured], float), np.array([m[2] for m in measured], float)
    table = truths[-1]
    variables = table[(table["kind"] == "variable") & (np.abs(table["diff_snr"]) >= SNR_ASKED)]
    single = seen = 0
    for row in variables:
        near = match_sky(ra, dec, np.array([row["ra"]]), np.array([row["dec"]]), MATCH_ARCSEC) >= 0
        if near.sum() >= len(truths):
            seen += 1
            single += len(set(ids[near])) == 1
    return single, seen
