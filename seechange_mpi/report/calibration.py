"""Quick look at a calibration frame: the picture, its profiles, its histogram, its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.drafts import draft_of
from seechange_mpi.model.calibration import DEAD, HOT, NON_LINEAR, UNSTABLE
from seechange_mpi.report.figures import _encode, _figure

F64 = npt.NDArray[np.float64]
_FIGURES = ("CALKIND", "FLATTYPE", "CALSET", "INSTRUME", "SECTION", "FILTER", "NINPUT", "NREJECT", "MEDIAN", "RMS",
            "NOISEEXP", "NOISEMSR", "NOISE", "CHI2", "CLIPFRAC", "EXPTOTAL", "LEVMIN", "LEVMAX", "AMPLITUD", "BADFRAC",
            "HOTFRAC", "DEADFRAC", "NLINFRAC", "UNSTFRAC", "FLATLEVS", *(f"RDNOISE{k}" for k in range(1, 5)),
            *(f"GAIN{k}" for k in range(1, 5)))


def quick_look(frame: str | Path, out_png: str | Path | None = None) -> Path:
    """Draw a calibration frame; return the picture's path, beside the frame unless one is given.

    Raises
    ------
    BadInput
        The frame is unreadable.
    """
    from astropy.io import fits

    from seechange_mpi.model.errors import BadInput

    try:
        with fits.open(frame, memmap=False) as hdus:
            header, data = hdus[0].header, np.asarray(hdus[0].data, np.float64)
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(frame, "calibration frame", "a readable FITS image", err) from None
    figure = _figure(11, 7.5)
    spec = figure.add_gridspec(3, 3, width_ratios=(1.5, 1.2, 0.9))
    bad = header.get("CALKIND") == "badpixels"
    _picture(figure.add_subplot(spec[:, 0]), figure, data, bad)
    axes = [figure.add_subplot(spec[k, 1]) for k in range(3)]
    for axis, title in ((0, "column"), (1, "row")):
        if bad:
            _plot(axes[axis], np.mean(data != 0, axis=axis), f"bad fraction of each {title}", (0, 100))
        else:
            _profile(axes[axis], data, axis, f"median of each {title}")
    if bad:
        _bars(axes[2], data.astype(np.uint8))
    else:
        _histogram(axes[2], data, header)
    _text(figure.add_subplot(spec[:, 2]), header)
    out = Path(out_png) if out_png is not None else Path(frame).with_suffix(".png")
    draft = draft_of(out)
    draft.write_bytes(_encode(figure, dpi=90))
    draft.replace(out)
    return out


def _limits(data: F64) -> tuple[float, float]:
    some = data[:: max(1, data.shape[0] // 500), :: max(1, data.shape[1] // 500)]
    some = some[np.isfinite(some)]
    if some.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(some, [1, 99]))
    pad = 0.1 * (high - low) or 1.0
    return low - pad, high + pad


def _thinned(data: F64) -> F64:
    """Block means of at most about 600 pixels a side; bad pixels stay visible as the largest of their block."""
    step = max(1, max(data.shape) // 600)
    ny, nx = (n // step for n in data.shape)
    blocks = data[: ny * step, : nx * step].reshape(ny, step, nx, step)
    with np.errstate(all="ignore"):
        if np.array_equal(data, np.round(data)) and np.nanmax(data) < 256:
            return np.asarray(np.nanmax(blocks, axis=(1, 3)))
        return np.asarray(np.nanmedian(blocks, axis=(1, 3)))


def _picture(ax: Any, figure: Any, data: F64, bad: bool) -> None:
    low, high = (0.0, 1.0) if bad else _limits(data)
    ny, nx = data.shape
    shown = ax.imshow(_thinned(data), origin="lower", cmap="gray_r" if bad else "viridis", vmin=low, vmax=high,
                      interpolation="nearest", extent=(-0.5, nx - 0.5, -0.5, ny - 0.5))
    ax.set_xlabel("x [pix]")
    ax.set_ylabel("y [pix]")
    if not bad:
        figure.colorbar(shown, ax=ax, shrink=0.6)


def _profile(ax: Any, data: F64, axis: int, title: str) -> None:
    with np.errstate(all="ignore"):
        values = np.nanmedian(data[::4], axis=0) if axis == 0 else np.nanmedian(data[:, ::4], axis=1)
    _plot(ax, values, title, (0.5, 99.5))


def _plot(ax: Any, values: F64, title: str, percent: tuple[float, float]) -> None:
    ax.plot(values, lw=0.6, color="C0")
    good = values[np.isfinite(values)]
    if good.size:
        low, high = np.percentile(good, percent)
        pad = 0.2 * (high - low) or 1e-3
        ax.set_ylim(low - pad, high + pad)
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7)


def _bars(ax: Any, bits: npt.NDArray[np.uint8]) -> None:
    names = {"dead": DEAD, "hot": HOT, "non-linear": NON_LINEAR, "unstable": UNSTABLE}
    counts = [int(np.count_nonzero(bits & bit)) for bit in names.values()]
    ax.barh(list(names), counts, color="C0")
    for k, n in enumerate(counts):
        ax.text(n, k, f" {n}", va="center", fontsize=8)
    ax.set_title("pixels", fontsize=9)
    ax.tick_params(labelsize=7)


def _histogram(ax: Any, data: F64, header: Any) -> None:
    low, high = _limits(data)
    values = data[np.isfinite(data)]
    ax.hist(np.clip(values[:: max(1, values.size // 500_000)], low, high), bins=120, color="C0", log=True)
    unit = header.get("BUNIT", "")
    ax.set_title("pixels" + (f" [{unit}]" if unit else ""), fontsize=9)
    ax.tick_params(labelsize=7)


def _text(ax: Any, header: Any) -> None:
    ax.axis("off")
    lines = []
    for key in _FIGURES:
        if key in header:
            value = header[key]
            shown = f"{value:.5g}" if isinstance(value, float) else str(value)
            lines.append(f"{key.lower():<9}{shown}")
    left_out = [str(h) for h in header.get("HISTORY", []) if str(h).startswith("left out: ")]
    if left_out:
        lines += ["", "left out:", *(f" {h.removeprefix('left out: ')[:34]}" for h in left_out[:8])]
    ax.text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=8, transform=ax.transAxes)
