"""Difference images out of bundles and shards, without what else is stored beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seechange_mpi.io.bundle import READABLE
from seechange_mpi.io.h5util import check_format, open_h5
from seechange_mpi.io.section_h5 import read_products
from seechange_mpi.io.shard import check_shard
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import F32, U16, SourceList, WorldCoordinates, ZeroPoint


@dataclass(slots=True)
class Difference:
    """What photometry in a difference image needs.

    Attributes
    ----------
    data, weight : (ny, nx) float32 [ADU, ADU**-2];  flags : (ny, nx) uint16.
    psf : (n, n) float32, sum 1.
    wcs, zp : of the new image, whose grid and scale the difference has.
    sources : of the new image, or None.
    """

    data: F32
    weight: F32
    flags: U16
    psf: F32
    wcs: WorldCoordinates
    zp: ZeroPoint
    sources: SourceList | None = None


def read_differences(path: str | Path, section_ids: Sequence[str]) -> Iterator[tuple[str, Difference]]:
    """Yield (section, difference image), one after the other; the file is opened once.

    Raises
    ------
    BadInput
        The file is missing or damaged, a section of it or its difference image is not there, or a shard is gone.
    """
    with open_h5(path) as f:
        check_format(f, path, READABLE)
        for section in section_ids:
            if section not in f["sections"] or "sub" not in f["sections"][section]:
                raise BadInput(path, "section", f"a difference image of {section}", "none")
            group = f["sections"][section]
            if "shard" in group.attrs:
                check_shard(path, group)
            p = read_products(group, str(path), pixels=False)
            if p.sub is None or p.wcs is None or p.zp is None:
                raise BadInput(path, f"section {section}", "difference image, WCS and zero point", "not all of them")
            sub = group["sub"]
            yield section, Difference(sub["image"][...], sub["weight"][...], sub["flags"][...], p.sub.psf, p.wcs, p.zp,
                                      p.sources)
