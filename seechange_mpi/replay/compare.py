"""What differs between the stored and the new products of a section, and by how much.

On the same machine with the same versions everything is expected to be identical to the last bit. Elsewhere (another
processor, another FFT, a GPU) values agree within these tolerances:

================================ =============================================================
right ascension, declination     0.1 mas; so does an astrometric solution over the section
positions in pixels              0.001 pix
magnitudes, zero points          0.0001 mag
other real numbers               1e-4 of the value plus 1e-4 of the median absolute value
flag planes                      one pixel in 100,000
everything else                  none: counts, indices, names, badness bits, places of NaN
================================ =============================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.products import SectionProducts

SKY_DEG = 0.1e-3 / 3600.0
PIXELS = 1e-3
MAGNITUDES = 1e-4
RELATIVE = 1e-4
FLAGGED = 1e-5
_ABSOLUTE: dict[str, float] = {
    **dict.fromkeys(("ra", "dec"), SKY_DEG),
    **dict.fromkeys(("x", "y", "x_win", "y_win", "gfit_x", "gfit_y"), PIXELS),
    **dict.fromkeys(("mag", "zp", "dzp", "lim_mag", "scatter", "wing", "wing_err", "map", "map_err", "aper_cors",
                     "colour_term", "colour_slope"), MAGNITUDES),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One field or column that is not identical.

    Attributes
    ----------
    name : e.g. ``sources.flux_psf``.
    text : what differs, with how much.
    within : it is within the tolerances.
    """

    name: str
    text: str
    within: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" + ("" if not self.within else " (within the tolerance)")


def compare_products(stored: SectionProducts, new: SectionProducts, names: tuple[str, ...],
                     ignore: tuple[str, ...] = ()) -> list[Difference]:
    """Return what differs in the products of the given names; empty = identical.

    Parameters
    ----------
    ignore : fields (``sources.ra``) that cannot be compared, because the step that fills them was not run.
    """
    out: list[Difference] = []
    for name in names:
        a, b = getattr(stored, name), getattr(new, name)
        out += [d for d in _compare(name, a, b) if d.name not in ignore]
    return out


def _compare(name: str, a: Any, b: Any) -> Iterator[Difference]:
    """Differences of two values of any kind that products have."""
    if a is None or b is None:
        if (a is None) != (b is None):
            yield Difference(name, f"{'not ' if a is None else ''}stored, {'not ' if b is None else ''}made now", False)
    elif isinstance(a, np.ndarray) and a.dtype.names:
        yield from _compare_tables(name, a, b)
    elif isinstance(a, np.ndarray):
        yield from _compare_arrays(name, a, np.asarray(b))
    elif isinstance(a, Mapping):
        for key in sorted(a.keys() | b.keys()):
            yield from _compare(f"{name}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list | tuple):
        yield from _compare_lists(name, list(a), list(b))
    elif isinstance(a, float):
        yield from _compare_arrays(name, np.array([a]), np.array([b]))
    elif hasattr(a, "__dataclass_fields__"):
        for f in fields(a):
            x, y = getattr(a, f.name), getattr(b, f.name)
            if f.name == "table":
                yield from _compare(name, x, y)
            elif f.name == "header" and x and x != y:
                yield from _compare_solutions(f"{name}.header", x, y)
            else:
                yield from _compare(f"{name}.{f.name}", x, y)
    elif a != b:
        yield Difference(name, f"{a!r} stored, {b!r} now", False)


def _compare_lists(name: str, a: list[Any], b: list[Any]) -> Iterator[Difference]:
    if len(a) != len(b):
        yield Difference(name, f"{len(a)} stored, {len(b)} now", False)
        return
    if a and all(isinstance(v, float) for v in a):
        yield from _compare_arrays(name, np.array(a), np.array(b))
        return
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        label = f".{x.algorithm}" if hasattr(x, "algorithm") else f"[{k}]"
        yield from _compare(f"{name}{label}", x, y)


def _compare_tables(name: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Iterator[Difference]:
    if len(a) != len(b):
        yield Difference(name, f"{len(a)} rows stored, {len(b)} now", False)
        return
    for column in a.dtype.names or ():
        yield from _compare_arrays(f"{name}.{column}", a[column], b[column])


def _compare_arrays(name: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Iterator[Difference]:
    if a.shape != b.shape or a.dtype != b.dtype:
        yield Difference(name, f"{a.dtype} {a.shape} stored, {b.dtype} {b.shape} now", False)
        return
    if a.dtype.kind != "f":
        differing = int(np.count_nonzero(a != b))
        if differing:
            is_plane = a.ndim == 2 and a.dtype == np.uint16
            yield Difference(name, f"{differing} of {a.size} differ", is_plane and differing <= FLAGGED * a.size)
        return
    one, two = a.astype(float), b.astype(float)
    finite = np.isfinite(one) & np.isfinite(two)
    odd = int(np.count_nonzero((one != two) & ~finite & ~(np.isnan(one) & np.isnan(two))))
    gap = np.abs(one - two, where=finite, out=np.zeros_like(one))
    differing = int(np.count_nonzero(gap)) + odd
    if not differing:
        return
    allowed = _ABSOLUTE.get(name.rpartition(".")[2])
    limit: Any = allowed if allowed is not None else RELATIVE * (
        np.abs(one) + (float(np.median(np.abs(one[finite]))) if finite.any() else 0.0))
    beyond = int(np.count_nonzero(gap[finite] > np.broadcast_to(limit, gap.shape)[finite])) + odd
    text = f"{differing} of {a.size} differ, by {gap.max():.3g} at most"
    text += f"; NaN in {odd} places of one alone" if odd else ""
    yield Difference(name, text + (f"; {beyond} beyond the tolerance" if beyond else ""), beyond == 0)


def _compare_solutions(name: str, a: str, b: str) -> Iterator[Difference]:
    """Two astrometric solutions by the sky positions of a grid of pixels."""
    from seechange_mpi.pipeline.wcs_tools import pixel_to_sky

    try:
        x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 2000, 5), np.linspace(0, 4000, 5)))
        (ra, dec), (ra2, dec2) = pixel_to_sky(a, x, y), pixel_to_sky(b, x, y)
    except Exception:  # noqa: BLE001 - a header that holds no solution is compared as text
        yield Difference(name, "other text", False)
        return
    east = ((ra2 - ra + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec))
    worst = float(np.hypot(east, dec2 - dec).max())
    yield Difference(name, f"positions differ by {worst * 3.6e6:.3g} mas at most", worst <= SKY_DEG)
