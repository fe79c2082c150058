"""The closing table of a run, what went wrong, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from seechange_mpi.model.flags import badness_words
from seechange_mpi.mpi.results import ExposureResult, causes

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("FWHM \"", "fwhm_arcsec", lambda v: f"{v:.2f}"), ("zero pt", "zp", lambda v: f"{v:.3f}"),
    ("lim mag", "lim_mag", lambda v: f"{v:.2f}"), ("astro mas", "astro_rms_mas", lambda v: f"{v:.0f}"),
    ("det", "n_detections", lambda v: f"{v:.0f}"), ("meas", "n_measurements", lambda v: f"{v:.0f}"),
    ("good", "n_good", lambda v: f"{v:.0f}"),
)


def table_rows(result: ExposureResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one exposure's table."""
    header = ["section", "status", *(c[0] for c in _COLUMNS), "objects", "s", "MB", "badness"]
    rows = []
    for section in sorted([*result.outcomes, *result.reused]):
        outcome = result.outcomes.get(section)
        if outcome is None:
            rows.append([section, "complete", *["-"] * (len(header) - 2)])
            continue
        cells = []
        for _, key, show in _COLUMNS:
            value = outcome.summary.get(key)
            cells.append("-" if value is None or not math.isfinite(value) else show(value))
        new, old = result.new_objects.get(section, 0), result.objects.get(section, 0)
        objects = f"{new} new, {old} known" if new or old else "-"
        rows.append([section, outcome.status, *cells, objects, f"{outcome.summary.get('seconds', 0):.1f}",
                     f"{outcome.summary.get('rss_mb', 0):.0f}", badness_words(outcome.report.bitflag) or "-"])
    return header, rows


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text table: first two columns left, others right."""
    widths = [max(len(str(r[k])) for r in (header, *rows)) for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "  " + "  ".join(c.ljust(w) if k < 2 else c.rjust(w)
                                for k, (c, w) in enumerate(zip(cells, widths, strict=True))).rstrip()

    return "\n".join([line(header), *(line(r) for r in rows)])


def closing_words(results: Sequence[ExposureResult], stopped_by: str = "") -> str:
    """Everything printed at the end of a run.

    Parameters
    ----------
    stopped_by : what set an end to the run, a time limit or a signal; empty = nothing.
    """
    lines: list[str] = []
    for r in results:
        lines.append("")
        lines.append(f"{r.identifier}: {r.state.replace('_', ' ')}")
        if r.outcomes:
            lines.append(format_table(*table_rows(r)))
        if r.bundle is not None and r.bundle.is_file():
            lines.append(f"  bundle  {r.bundle}")
        if r.html is not None:
            lines.append(f"  report  {r.html}")
    if not results and stopped_by:
        lines.append(f"no exposure was begun: stopped by {stopped_by}")
    elif not results:
        lines.append("no exposure was ready: seechange-mpi queue list shows the queue")
    elif all(r.state == "nothing_to_do" for r in results):
        lines += ["", "nothing is left to do: every section is complete and committed"]
    if results and stopped_by:
        lines += ["", f"stopped before the end by {stopped_by}: run the same command again to go on"]
    wrong = causes(results)
    if wrong:
        lines += ["", "what went wrong:", *(f"  {c}" for c in wrong)]
        lines.append("  when mended, run the same command again: what is finished is not repeated")
    waiting = [r.identifier for r in results if any(o.status == "no_reference" for o in r.outcomes.values())]
    if waiting and not wrong:
        lines += ["", "no reference covers these exposures yet. To make one of them the reference:",
                  f"  seechange-mpi refs add {waiting[0]}"]
    return "\n".join(lines)
