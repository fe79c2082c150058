"""What a report shows, read from bundles without loading full images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.bundle import BundleInfo, bring_shard, read_bundle, read_section
from seechange_mpi.io.h5util import open_h5
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.flags import badness_words
from seechange_mpi.model.products import StoredSection
from seechange_mpi.pipeline.wcs_tools import pixel_scale_arcsec, pixel_to_sky

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(slots=True)
class SectionSummary:
    """One row of the section table, and where the section lies.

    Attributes
    ----------
    status : ``done``, ``failed``, ``no_reference`` or ``partial``;  message : why, if it is not done.
    bitflag, badness : bits of all its products and of its failure, and the words for them.
    corner_ra, corner_dec : (5,) deg, a closed outline; empty without a WCS.
    """

    section_id: str
    status: str
    message: str = ""
    filter: str = ""
    fwhm_arcsec: float = NAN
    zp: float = NAN
    dzp: float = NAN
    zp_method: str = ""
    lim_mag: float = NAN
    astro_rms_mas: float = NAN
    background: float = NAN
    n_sources: int = 0
    n_detections: int = 0
    n_measurements: int = 0
    n_good: int = 0
    bitflag: int = 0
    badness: str = ""
    seconds: float = NAN
    steps: list[tuple[str, str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    corner_ra: F64 = field(default_factory=lambda: np.zeros(0))
    corner_dec: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(slots=True)
class Triplet:
    """Cutouts and figures of one measurement; the cutouts share the unit of the new image."""

    section_id: str
    index: int
    ra: float
    dec: float
    x: float
    y: float
    mag: float
    mag_err: float
    snr: float
    score: float
    is_negative: bool
    bad_reasons: str
    new: F32
    ref: F32
    sub: F32


@dataclass(slots=True)
class ExposureReport:
    """Everything of one bundle that a report shows."""

    info: BundleInfo
    sections: list[SectionSummary]
    triplets: list[Triplet]
    good_ra: F64
    good_dec: F64
    problems: list[str]


def summarize_section(stored: StoredSection) -> SectionSummary:
    """Return the table row of a section."""
    p, report = stored.products, stored.report
    status = "failed" if not report.success else (report.caveat or "done")
    message = f"{report.error_step}: {report.error_message}" if not report.success else ""
    out = SectionSummary(stored.section_id, status, message, warnings=list(report.warnings))
    out.bitflag, out.badness = report.bitflag, badness_words(report.bitflag)
    out.steps = [(s.step, s.status, s.wall_s) for s in report.steps]
    out.seconds = sum(s.wall_s for s in report.steps)
    if p.image is not None:
        out.filter = p.image.filter
    if p.background is not None:
        out.background = p.background.value
    header = p.wcs.header if p.wcs is not None else (p.image.header_wcs if p.image is not None else "")
    if header and stored.shape[0]:
        try:
            _place(out, header, stored.shape)
            if p.psf is not None:
                out.fwhm_arcsec = p.psf.fwhm_pixels * pixel_scale_arcsec(header)
        except AlgorithmError:
            out.warnings.append("no usable WCS")
    if p.wcs is not None:
        out.astro_rms_mas = p.wcs.rms_mas
    if p.zp is not None:
        out.zp, out.dzp, out.zp_method, out.lim_mag = p.zp.zp, p.zp.dzp, p.zp.method, p.zp.lim_mag
    out.n_sources = len(p.sources.table) if p.sources is not None else 0
    out.n_detections = len(p.detections.table) if p.detections is not None else 0
    if p.measurements is not None:
        out.n_measurements = len(p.measurements.table)
        out.n_good = int((~p.measurements.table["is_bad"]).sum())
    return out


def _place(out: SectionSummary, header: str, shape: tuple[int, int]) -> None:
    ny, nx = shape
    x = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5, -0.5])
    y = np.array([-0.5, -0.5, ny - 0.5, ny - 0.5, -0.5])
    out.corner_ra, out.corner_dec = pixel_to_sky(header, x, y)


def collect(path: str | Path, n_triplets: int = 24) -> ExposureReport:
    """Read a bundle for its report.

    Parameters
    ----------
    n_triplets : int
        The best measurements (unflagged first, then by score, then by significance) come with cutouts.

    Raises
    ------
    BadInput
        The bundle is missing or damaged. A lost shard is told in ``problems``.
    """
    info = read_bundle(path)
    sections: list[SectionSummary] = []
    problems: list[str] = []
    candidates: list[tuple[tuple[float, ...], StoredSection, int]] = []
    ra: list[float] = []
    dec: list[float] = []
    for section_id in info.section_ids:
        stored = read_section(path, section_id)
        sections.append(summarize_section(stored))
        if stored.products.measurements is None:
            continue
        t = stored.products.measurements.table
        good = ~t["is_bad"]
        ra += t["ra"][good].tolist()
        dec += t["dec"][good].tolist()
        score = _scores(stored)
        for k in range(len(t)):
            strength = abs(float(t["flux_psf"][k])) / max(float(t["flux_psf_err"][k]), 1e-30)
            strength = strength if math.isfinite(strength) else 0.0
            candidates.append(((float(t["is_bad"][k]), -score[k], -strength), stored, k))
    candidates.sort(key=lambda c: (c[0], c[1].section_id, c[2]))
    triplets: list[Triplet] = []
    for _, stored, k in candidates[:n_triplets]:
        try:
            triplets.append(_triplet(path, stored, k))
        except BadInput as err:
            if str(err) not in problems:
                problems.append(str(err))
    triplets.sort(key=lambda t: (bool(t.bad_reasons), -t.score, -abs(t.snr)))
    return ExposureReport(info, sections, triplets, np.array(ra), np.array(dec), problems)


def _scores(stored: StoredSection) -> list[float]:
    """First algorithm's score of each measurement; 0 without one."""
    if stored.products.measurements is None:
        return []
    table = stored.products.measurements.table
    if not stored.products.scores:
        return [0.0] * len(table)
    s = stored.products.scores[0].table
    by_index = dict(zip(s["index_in_sources"].tolist(), s["score"].tolist(), strict=True))
    return [round(float(by_index.get(int(i), 0.0)), 2) for i in table["index_in_sources"]]


def _triplet(path: str | Path, stored: StoredSection, k: int) -> Triplet:
    assert stored.products.measurements is not None
    row = stored.products.measurements.table[k]
    index = int(row["index_in_sources"])
    with open_h5(path) as f:
        group = f["sections"][stored.section_id]
        bring_shard(path, group)
        try:
            planes = [np.asarray(group["cutouts"][name][index], np.float32) for name in ("new", "ref", "sub")]
        except (KeyError, OSError, IndexError) as err:
            raise BadInput(path, f"cutouts of section {stored.section_id}", "a readable shard beside the bundle",
                           err) from None
    error = float(row["flux_psf_err"])
    return Triplet(
        stored.section_id, index, float(row["ra"]), float(row["dec"]), float(row["x"]), float(row["y"]),
        float(row["mag"]), float(row["mag_err"]), float(row["flux_psf"]) / error if error > 0 else NAN,
        _scores(stored)[k], bool(row["is_negative"]), row["bad_reasons"].decode(), *planes)


def thumbnail(path: str | Path, section_id: str, side: int = 96) -> F32 | None:
    """Return a section's image binned to about `side` pixels, in units of its noise above its sky; None if lost."""
    with open_h5(path) as f:
        group = f["sections"][section_id]
        bring_shard(path, group)
        try:
            data = np.asarray(group["image"][...], np.float32)
            flags = np.asarray(group["flags"][...])
            level, noise = (float(group["background"].attrs[n]) for n in ("value", "noise"))
        except (KeyError, OSError):
            return None
    data = np.where(flags & 0b100001, np.float32(level), data)
    step = max(1, round(max(data.shape) / side))
    ny, nx = (n // step * step for n in data.shape)
    binned = data[:ny, :nx].reshape(ny // step, step, nx // step, step).mean(axis=(1, 3))
    return np.asarray((binned - level) / noise * step, dtype=np.float32)
