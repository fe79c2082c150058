"""Write the HTML page of one or several bundles: one file, no script, no outside resource."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seechange_mpi.io.drafts import draft_of
from seechange_mpi.report.collect import ExposureReport, SectionSummary, collect
from seechange_mpi.report.figures import data_uri, focal_plane_png, triplet_uris


def write_report(bundle_paths: Sequence[str | Path], out_html: str | Path, n_triplets: int = 24) -> Path:
    """Write the report of bundles.

    Parameters
    ----------
    bundle_paths : bundles, each becomes one part of the page, in this order.
    out_html : the file to write; an older one is replaced in one go.
    n_triplets : most cutout triplets per bundle.

    Raises
    ------
    BadInput
        A bundle is missing or damaged.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("seechange_mpi", "report"), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["sexagesimal"] = sexagesimal
    exposures = [_exposure(Path(p), n_triplets) for p in bundle_paths]
    title = exposures[0]["identifier"] if len(exposures) == 1 else f"{len(exposures)} exposures"
    html = environment.get_template("report.html.j2").render(title=title, exposures=exposures)
    out = Path(out_html)
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = draft_of(out)
    tmp.write_text(html, encoding="utf-8")
    tmp.replace(out)
    return out


def _exposure(path: Path, n_triplets: int) -> dict[str, Any]:
    report = collect(path, n_triplets)
    info = report.info
    plane = focal_plane_png(path, report)
    return {
        "identifier": info.exposure.identifier, "exposure": info.exposure, "bundle": path.name,
        "created": info.created, "code_version": info.code_version, "sections": report.sections,
        "totals": _totals(report.sections), "problems": report.problems,
        "focal_plane": data_uri(plane) if plane is not None else "",
        "triplets": [(t, triplet_uris(t)) for t in report.triplets],
        "not_shown": max(0, sum(s.n_measurements for s in report.sections) - len(report.triplets)),
        "steps": _step_times(report),
        "provenances": [{"id": r.id, "process": r.process, "code_version": r.code_version,
                         "upstreams": ", ".join(r.upstream_ids),
                         "parameters": json.dumps(r.parameters, indent=1, sort_keys=True, default=str)}
                        for r in info.provenances],
        "config": json.dumps(info.config, indent=1, sort_keys=True, default=str)}


def _totals(sections: list[SectionSummary]) -> dict[str, int]:
    return {"sections": len(sections), "failed": sum(s.status == "failed" for s in sections),
            **{k: sum(getattr(s, k) for s in sections)
               for k in ("n_sources", "n_detections", "n_measurements", "n_good")}}


def _step_times(report: ExposureReport) -> list[tuple[str, float, float]]:
    """(step, mean seconds, longest seconds) over the sections that ran it."""
    times: dict[str, list[float]] = {}
    for s in report.sections:
        for step, status, seconds in s.steps:
            if status != "reused":
                times.setdefault(step, []).append(seconds)
    return [(step, sum(v) / len(v), max(v)) for step, v in times.items()]


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Format a number; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def sexagesimal(ra_dec: tuple[float, float]) -> str:
    """Format a position [deg] as hours and degrees."""
    ra, dec = ra_dec
    if not (math.isfinite(ra) and math.isfinite(dec)):
        return "–"
    h = round(ra / 15 * 3600 * 100) % (24 * 360000)
    d = round(abs(dec) * 3600 * 10)
    return (f"{h // 360000:02d}:{h // 6000 % 60:02d}:{h % 6000 / 100:05.2f} "
            f"{'-' if dec < 0 else '+'}{d // 36000:02d}:{d // 600 % 60:02d}:{d % 600 / 10:04.1f}")
