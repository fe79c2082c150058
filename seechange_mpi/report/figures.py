"""Pictures of a report: stamps, focal plane, the README's row of triplets."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.report.collect import ExposureReport, Triplet, collect, thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

F32 = npt.NDArray[np.float32]
_MASKED = (150, 70, 40)


def png_bytes(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Encode an (ny, nx, 3) uint8 image as PNG."""
    ny, nx, _ = rgb.shape
    rows = np.zeros((ny, 1 + 3 * nx), np.uint8)
    rows[:, 1:] = rgb.reshape(ny, -1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", nx, ny, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b""))


def data_uri(png: bytes) -> str:
    """Return a PNG as data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def stamp_limits(t: Triplet) -> tuple[tuple[float, float], tuple[float, float]]:
    """Display limits: one pair for new and reference, one for the difference."""
    both = np.concatenate([t.new[np.isfinite(t.new)], t.ref[np.isfinite(t.ref)]])
    sub = t.sub[np.isfinite(t.sub)]

    def limits(v: npt.NDArray[Any]) -> tuple[float, float]:
        if v.size == 0:
            return 0.0, 1.0
        middle = float(np.median(v))
        noise = max(1.4826 * float(np.median(np.abs(v - middle))), 1e-6)
        return middle - 3 * noise, max(middle + 8 * noise, float(np.percentile(v, 99.7)))

    low, high = limits(both)
    _, top = limits(np.abs(sub))
    return (low, high), (-top, top)


def stamp_png(stamp: F32, limits: tuple[float, float], zoom: int = 3) -> bytes:
    """Grey stamp, north as in the image (y up), asinh stretch above the sky, masked pixels brown."""
    low, high = limits
    scaled = (stamp[::-1] - low) / max(high - low, 1e-12)
    if low >= 0 or abs(low) < 0.99 * abs(high):
        scaled = np.arcsinh(5 * np.clip(scaled, 0, 1)) / np.arcsinh(5)
    grey = np.nan_to_num(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    rgb[~np.isfinite(stamp[::-1])] = _MASKED
    return png_bytes(np.ascontiguousarray(rgb.repeat(zoom, axis=0).repeat(zoom, axis=1)))


def triplet_uris(t: Triplet) -> dict[str, str]:
    """Data URIs of the three stamps."""
    direct, difference = stamp_limits(t)
    return {"new": data_uri(stamp_png(t.new, direct)), "ref": data_uri(stamp_png(t.ref, direct)),
            "sub": data_uri(stamp_png(t.sub, difference))}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _encode(figure: Figure, dpi: int = 110) -> bytes:
    import io

    buffer = io.BytesIO()
    # no date in the file: the same bundle gives the same picture
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def focal_plane_png(path: str | Path, report: ExposureReport) -> bytes | None:
    """Sections on the sky with their images, and their seeing and depth by colour; None without any WCS."""
    placed = [s for s in report.sections if len(s.corner_ra)]
    if not placed:
        return None
    from seechange_mpi.pipeline.wcs_tools import project

    angle = np.radians(np.concatenate([s.corner_ra for s in placed]))
    ra0 = float(np.degrees(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean())))
    dec0 = float(np.mean(np.concatenate([s.corner_dec for s in placed])))
    figure = _figure(11.5, 4.1)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    panels = (("image and measurements", None, ""), ("seeing FWHM [arcsec]", "fwhm_arcsec", "viridis_r"),
              ("5σ limiting magnitude", "lim_mag", "viridis"))
    for ax, (title, key, cmap) in zip(axes, panels, strict=True):
        values = np.array([getattr(s, key) if key else np.nan for s in placed], float)
        known = values[np.isfinite(values)]
        for s, value in zip(placed, values, strict=True):
            xi, eta = project(s.corner_ra, s.corner_dec, ra0, dec0)
            if key is None:
                _draw_image(ax, path, s.section_id, xi, eta)
            ax.plot(xi, eta, color="0.35", lw=0.8)
            if s.status == "failed":
                ax.fill(xi, eta, facecolor="none", edgecolor="firebrick", hatch="//", lw=0)
            label, ink = s.section_id, "white" if key is None else "black"
            if key and np.isfinite(value):
                import matplotlib

                # a fifth of an arcsecond or magnitude is the least that fills the scale
                spread = max(float(np.ptp(known)), 0.2)
                colour = matplotlib.colormaps[cmap](0.5 + 0.8 * (value - float(np.median(known))) / spread / 2)
                ax.fill(xi, eta, color=colour, lw=0)
                label, ink = f"{s.section_id}\n{value:.2f}", "white" if sum(colour[:3]) < 1.5 else "black"
            middle = float(xi[:4].mean()), float(eta[:4].mean())
            ax.text(*(middle if key else (float(xi.max()), float(eta.max()))), label, color=ink, fontsize=8,
                    ha="center" if key else "left", va="center" if key else "top")
        if key is None and len(report.good_ra):
            xi, eta = project(report.good_ra, report.good_dec, ra0, dec0)
            ax.plot(xi, eta, "o", mfc="none", mec="tab:orange", ms=6, mew=1)
        ax.set_title(title, fontsize=9)
        ax.set_aspect("equal")
        ax.tick_params(labelsize=7)
        ax.set_xlabel("east [deg]", fontsize=8)
    axes[0].invert_xaxis()
    axes[0].set_ylabel("north [deg]", fontsize=8)
    return _encode(figure)


def _draw_image(ax: Any, path: str | Path, section_id: str, xi: npt.NDArray[Any], eta: npt.NDArray[Any]) -> None:
    image = thumbnail(path, section_id)
    if image is None:
        return
    # bilinear between the corners: good to far below a thumbnail's pixel
    v, u = (np.linspace(0, 1, n + 1) for n in image.shape)
    u, v = u[None, :], v[:, None]
    x, y = ((1 - v) * ((1 - u) * c[0] + u * c[1]) + v * ((1 - u) * c[3] + u * c[2]) for c in (xi, eta))
    ax.pcolormesh(x, y, np.arcsinh(image / 3), cmap="gray", vmin=-1, vmax=4, rasterized=True, shading="flat")


def triplet_figure(bundle_path: str | Path, out_png: str | Path, n: int = 6) -> Path:
    """Write a picture of the `n` best measurements of a bundle: new, reference, difference.

    Raises
    ------
    BadInput
        The bundle is damaged or has no measurement.
    """
    from seechange_mpi.model.errors import BadInput

    report = collect(bundle_path, n)
    if not report.triplets:
        raise BadInput(bundle_path, "measurements with cutouts", "at least one", report.problems or "none")
    columns = 2 if len(report.triplets) > 3 else 1
    rows = -(-len(report.triplets) // columns)
    figure = _figure(4.9 * columns, 1.45 * rows + 0.25)
    axes = figure.subplots(rows, 3 * columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for k, t in enumerate(report.triplets):
        row, first = k % rows, 3 * (k // rows)
        direct, difference = stamp_limits(t)
        for ax, data, (low, high), name in zip(axes[row, first: first + 3], (t.new, t.ref, t.sub),
                                               (direct, direct, difference), ("new", "reference", "difference"),
                                               strict=True):
            ax.imshow(data, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            if row == 0:
                ax.set_title(name, fontsize=9)
        axes[row, first].text(-0.05, 0.5, f"{t.mag:.2f} mag\nS/N {abs(t.snr):.0f}", ha="right", va="center", fontsize=8,
                              transform=axes[row, first].transAxes)
    out = Path(out_png)
    out.write_bytes(_encode(figure))
    return out
