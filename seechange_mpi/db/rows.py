"""Rows of the database, built from a bundle alone, with deterministic ids."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from seechange_mpi.db.blocks import Block, ids_of
from seechange_mpi.db.exposures import ImageType, exposure_columns, outline, times
from seechange_mpi.db.linking import healpix
from seechange_mpi.io.bundle import BundleInfo
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.flags import PRODUCT_BITS, STEP_BITS
from seechange_mpi.model.ids import stable_id
from seechange_mpi.model.products import Judged, StoredSection, badness
from seechange_mpi.model.tables import MEASUREMENTS
from seechange_mpi.model.task import STEPS

Rows = dict[str, list[dict[str, Any]]]
TABLES_IN_ORDER: tuple[str, ...] = (
    "images",
    "source_lists",
    "psfs",
    "backgrounds",
    "world_coordinates",
    "zero_points",
    "image_subtraction_components",
    "detections",
    "cutouts",
    "measurement_sets",
)

WCS_FIGURES: tuple[str, ...] = (
    "rms_radial_mas", "max_residual_mas", "mean_ra_mas", "mean_dec_mas", "chi2_dof", "floor_mas", "error_centre_mas",
    "error_corner_mas", "header_offset_ra_arcsec", "header_offset_dec_arcsec", "header_rotation_deg", "header_scale",
    "log10_chance",
)
"""Figures of `WorldCoordinates` that are columns under the same name."""


PSF_PHOTOMETRY = -1
"""``source_lists.best_aper_num`` where zero point and magnitudes are of PSF fluxes, as they are here."""
_UP_TO_ZERO_POINT = ("image", "sources", "psf", "bg", "wcs", "zp")


@dataclass(slots=True)
class PartRows:
    """Rows of one part (``image`` or ``sub``) of one section, tables in the order of insertion."""

    section_id: str
    part: str
    provenance_id: str
    content_hash: str
    rows: Rows = field(default_factory=dict)
    measurements: Block | None = None
    score_sets: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Block] = field(default_factory=list)

    def add(self, table: str, **values: Any) -> None:
        """Append a row."""
        self.rows.setdefault(table, []).append(values)


def _ids(info: BundleInfo, s: StoredSection) -> dict[str, UUID]:
    """Ids of all products of a section."""
    exposure, p = info.exposure.identifier, s.provenance_ids

    def of(kind: str, process: str, *more: object) -> UUID:
        return stable_id(kind, exposure, p.get(process, ""), s.section_id, *more)

    reference = s.inputs.get("reference", "")
    return {
        "exposure": stable_id("exposure", exposure),
        "image": of("image", "preprocessing"),
        "sources": of("sources", "extraction"),
        "psf": of("psf", "extraction"),
        "bg": of("bg", "extraction"),
        "wcs": of("wcs", "extraction"),
        "zp": of("zp", "extraction"),
        "sub": of("sub", "subtraction", reference),
        "detections": of("detections", "detection", reference),
        "cutouts": of("cutouts", "cutting", reference),
        "measurements": of("measurements", "measuring", reference),
    }


_ZERO_POINT_FIGURES = ("scatter", "colour_term", "colour_slope", "colour_slope_err", "colour_ref", "outlier_fraction",
                       "wing", "wing_err", "blocked", "map_err")


def _known(value: float) -> float | None:
    """A figure, NULL where it could not be measured."""
    return value if np.isfinite(value) else None


def _bits(product: Judged | None) -> dict[str, int]:
    """The two badness columns of a product."""
    if product is None:
        return {"_bitflag": 0, "_upstream_bitflag": 0}
    return {"_bitflag": product.bitflag, "_upstream_bitflag": product.upstream_bitflag}


def image_part(info: BundleInfo, s: StoredSection) -> PartRows | None:
    """Rows up to the zero point; None unless the section got that far."""
    p = s.products
    if p.image is None or p.sources is None or p.psf is None or p.background is None or p.wcs is None or p.zp is None:
        return None
    ids, prov = _ids(info, s), s.provenance_ids
    part = PartRows(s.section_id, "image", prov["extraction"], s.image_hash)
    path = str(Path(info.path).absolute())
    scale = _pixel_scale(p.wcs.header)
    common = {
        "exposure_id": ids["exposure"],
        "section_id": s.section_id,
        "filepath": path,
        **exposure_columns(info.exposure),
        "filter": p.image.filter,
        **times(p.image.mjd, p.image.exp_time_s),
        "astro_cal_done": p.wcs.method == "catalog",
        "gain": p.image.gain,
        "preproc_bitflag": p.image.preproc_bitflag,
        "fwhm_estimate": p.psf.fwhm_pixels * scale,
        "zero_point_estimate": p.zp.zp,
        "lim_mag_estimate": p.zp.lim_mag,
        "bkg_mean_estimate": p.background.value,
        "bkg_rms_estimate": p.background.noise,
        "info": "{}",
    } | outline(p.wcs.header, s.shape)
    part.add("images", _id=ids["image"], is_sub=False, provenance_id=prov["preprocessing"], **common, **_bits(p.image))
    extraction = prov["extraction"]
    part.add(
        "source_lists",
        _id=ids["sources"],
        image_id=ids["image"],
        provenance_id=extraction,
        filepath=path,
        num_sources=len(p.sources.table),
        aper_rads=list(p.sources.aper_radii),
        inf_aper_num=len(p.sources.aper_radii) - 1,
        best_aper_num=PSF_PHOTOMETRY,
        **_bits(p.sources),
    )
    part.add(
        "psfs",
        _id=ids["psf"],
        sources_id=ids["sources"],
        filepath=path,
        fwhm_pixels=p.psf.fwhm_pixels,
        n_stars=p.psf.n_stars,
        chi2=p.psf.chi2,
        **_bits(p.psf),
    )
    part.add(
        "backgrounds",
        _id=ids["bg"],
        sources_id=ids["sources"],
        filepath=path,
        value=p.background.value,
        noise=p.background.noise,
        **_bits(p.background),
    )
    part.add(
        "world_coordinates",
        _id=ids["wcs"],
        sources_id=ids["sources"],
        provenance_id=extraction,
        filepath=path,
        method=p.wcs.method,
        n_matched=p.wcs.n_matched,
        rms_mas=p.wcs.rms_mas,
        header=p.wcs.header,
        fit_order=p.wcs.order,
        **{name: getattr(p.wcs, name) for name in WCS_FIGURES},
        **_bits(p.wcs),
    )
    part.add(
        "zero_points",
        _id=ids["zp"],
        wcs_id=ids["wcs"],
        provenance_id=extraction,
        zp=p.zp.zp,
        dzp=p.zp.dzp,
        method=p.zp.method,
        n_stars=p.zp.n_stars,
        lim_mag=p.zp.lim_mag,
        aper_cor_radii=list(p.zp.aper_cor_radii),
        aper_cors=list(p.zp.aper_cors),
        map=list(p.zp.map),
        **{name: _known(getattr(p.zp, name)) for name in _ZERO_POINT_FIGURES},
        **_bits(p.zp),
    )
    return part


def _pixel_scale(header: str) -> float:
    from seechange_mpi.pipeline.wcs_tools import pixel_scale_arcsec

    return pixel_scale_arcsec(header)


def section_parts(info: BundleInfo, s: StoredSection) -> list[PartRows]:
    """Return the parts that a section has: ``image``, and ``sub`` too if it was finished.

    Raises
    ------
    BadInput
        The bundle has what the pipeline's tools refuse.
    """
    try:
        image = image_part(info, s)
        sub = None if image is None else sub_part(info, s, image)
    except AlgorithmError as err:
        raise BadInput(info.path, f"section {s.section_id}", "what the pipeline writes", err) from None
    return [p for p in (image, sub) if p is not None]


def sub_part(info: BundleInfo, s: StoredSection, image: PartRows) -> PartRows | None:
    """Rows from the difference image on; None unless the section was finished."""
    p = s.products
    if p.sub is None or p.detections is None or p.measurements is None or not p.scores:
        return None
    ids, prov = _ids(info, s), s.provenance_ids
    part = PartRows(s.section_id, "sub", prov["scoring"], s.sub_hash)
    path = str(Path(info.path).absolute())
    sub = dict(image.rows["images"][0]) | {
        "_id": ids["sub"],
        "is_sub": True,
        "_type": int(ImageType.DIFF),
        "sky_sub_done": True,
        "provenance_id": prov["subtraction"],
        "info": json.dumps({"method": p.sub.method, "metrics": p.sub.metrics}, sort_keys=True),
    } | _bits(p.sub)
    part.add("images", **sub)
    part.add(
        "image_subtraction_components",
        image_id=ids["sub"],
        new_zp_id=ids["zp"],
        ref_image_id=UUID(s.inputs["reference"]),
    )
    part.add(
        "detections",
        _id=ids["detections"],
        image_id=ids["sub"],
        provenance_id=prov["detection"],
        num_detections=len(p.detections.table),
        **_bits(p.detections),
    )
    part.add(
        "cutouts",
        _id=ids["cutouts"],
        detections_id=ids["detections"],
        provenance_id=prov["cutting"],
        filepath=path,
        **_bits(p.cutouts),
    )
    table, deleted = kept_rows(p.measurements.table)
    part.add(
        "measurement_sets",
        _id=ids["measurements"],
        cutouts_id=ids["cutouts"],
        provenance_id=prov["measuring"],
        num_measurements=len(table),
        **_bits(p.measurements),
    )
    upstream = badness(p.measurements)
    part.measurements = _measurement_rows(ids["measurements"], table, upstream)
    for scores in p.scores:
        set_id = stable_id("scores", ids["measurements"], scores.algorithm, prov["scoring"])
        part.score_sets.append({"_id": set_id, "measurementset_id": ids["measurements"],
                                "provenance_id": prov["scoring"], "algorithm": scores.algorithm,
                                "_upstream_bitflag": upstream})
        scored = scores.table[~np.isin(scores.table["index_in_sources"], deleted)]
        part.scores.append(_score_rows(set_id, scored, table, upstream))
    return part


def kept_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the measurements that enter the database, and ``index_in_sources`` of those that were deleted."""
    deleted = table["deletion_reasons"] != b""
    return table[~deleted], table["index_in_sources"][deleted]


def _measurement_rows(set_id: UUID, table: np.ndarray, upstream: int) -> Block:
    n = len(table)
    columns: dict[str, Any] = {"_id": ids_of("measurement", set_id, numbers=table["index_in_sources"].tolist()),
                               "measurementset_id": set_id, "_upstream_bitflag": upstream,
                               "healpix": healpix(table["ra"], table["dec"]) if n else np.zeros(0, np.int64)}
    columns |= {"_bitflag" if c.name == "bitflag" else c.name: table[c.name] for c in MEASUREMENTS
                if c.name != "deletion_reasons"}
    return Block(n, columns)


def _score_rows(set_id: UUID, table: np.ndarray, measurements: np.ndarray, upstream: int) -> Block:
    index = table["index_in_sources"]
    order = np.argsort(measurements["index_in_sources"])
    at = np.searchsorted(measurements["index_in_sources"], index, sorter=order)
    found = np.zeros(len(index), np.int64)
    inside = at < len(order)
    rows = measurements[order[at[inside]]]
    found[inside] = np.where(rows["index_in_sources"] == index[inside], rows["bitflag"], 0)
    return Block(len(index), {"_id": ids_of("score", set_id, numbers=index.tolist()), "deepscoreset_id": set_id,
                              "index_in_sources": index, "score": table["score"],
                              "_upstream_bitflag": found | upstream})


def report_row(info: BundleInfo, s: StoredSection, parts: Collection[str] = ()) -> dict[str, Any]:
    """Row of ``reports``.

    Parameters
    ----------
    parts : those of the section that the database gets (``image``, ``sub``).
    """
    r = s.report
    done = STEPS[: STEPS.index(r.completed_step) + 1] if r.completed_step in STEPS else ()
    p = s.products
    exist = {
        "image": p.image,
        "sources": p.sources,
        "psf": p.psf,
        "bg": p.background,
        "wcs": p.wcs,
        "zp": p.zp,
        "sub_image": p.sub,
        "detections": p.detections,
        "cutouts": p.cutouts,
        "measurement_set": p.measurements,
        "deepscore_set": p.scores or None,
    }
    provenance = (
        s.provenance_ids.get("scoring")
        or s.provenance_ids.get("extraction")
        or next((x.id for x in info.provenances if x.process == "preprocessing"), "")
    )
    return {
        "_id": stable_id("report", info.exposure.identifier, provenance, s.section_id),
        "exposure_id": stable_id("exposure", info.exposure.identifier),
        "section_id": s.section_id,
        "image_id": _ids(info, s)["image"] if "image" in parts else None,
        "provenance_id": provenance,
        "success": r.success,
        "caveat": r.caveat,
        "start_time": r.start_time or None,
        "finish_time": r.finish_time or None,
        "node_id": r.host,
        "cluster_id": r.cluster or None,
        "completed_step": r.completed_step,
        "error_step": r.error_step or None,
        "error_type": r.error_type or None,
        "error_message": r.error_message.replace("\x00", "") or None,
        "warnings": "\n".join(r.warnings) or None,
        "process_provid": json.dumps(s.provenance_ids),
        "process_memory": json.dumps({x.step: x.rss_mb for x in r.steps}),
        "process_runtime": json.dumps({x.step: x.wall_s for x in r.steps}),
        "process_metrics": json.dumps({x.step: {"cpu_s": x.cpu_s, "gpu_mb": x.gpu_mb, "read_mb": x.read_mb,
                                                "written_mb": x.written_mb} for x in r.steps}),
        "progress_steps_bitflag": sum(1 << STEP_BITS[x] for x in done),
        "_bitflag": r.bitflag,
        "products_exist_bitflag": sum(1 << PRODUCT_BITS[k] for k, v in exist.items() if v is not None),
        "products_committed_bitflag": sum(1 << bit for k, bit in PRODUCT_BITS.items()
                                          if ("image" if k in _UP_TO_ZERO_POINT else "sub") in parts),
    }
