"""Picture of a light curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seechange_mpi.model.products import Table

_COLOURS = {"u": "#7b3294", "g": "#2c7bb6", "r": "#d7191c", "i": "#b8860b", "z": "#5e3c0f", "y": "#333333"}


def light_curve_figure(table: Table, path: str | Path, title: str = "") -> Path:
    """Draw flux against time, one colour for each filter: dots measured, open circles forced, arrows limits.

    Parameters
    ----------
    table : `db.lightcurve.LIGHT_CURVE`.
    path : PNG to write; its folder is made if need be.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    spare = iter(["#1b9e77", "#7570b3", "#e7298a", "#66a61e"] * 10)
    for band in sorted(set(table["filter"])):
        colour = _COLOURS.get(band[:1].lower()) or next(spare)
        here = table[table["filter"] == band]
        for kind, marker, face in (("forced", "o", "none"), ("measured", ".", colour)):
            for bad in (False, True):
                t = here[(here["kind"] == kind) & (here["is_bad"] == bad) & np.isfinite(here["flux_njy"])]
                if len(t):
                    ax.errorbar(t["mjd"], t["flux_njy"], t["flux_err_njy"], ls="", color=colour, lw=1, marker=marker,
                                mfc=face, ms=7, alpha=0.3 if bad else 1.0,
                                label=f"{band} {kind}{' (bad)' if bad else ''}")
        t = here[(here["kind"] == "limit") & np.isfinite(here["lim_mag"])]
        if len(t):
            ax.plot(t["mjd"], 10 ** (0.4 * (31.4 - t["lim_mag"])), "v", color=colour, mfc="none", label=f"{band} limit")
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xlabel("MJD")
    ax.set_ylabel("flux − reference [nJy]")
    ax.set_title(title)
    if len(table):
        ax.legend(fontsize="small")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
