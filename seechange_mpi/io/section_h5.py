"""The group ``/sections/<id>`` of shards and bundles: products to HDF5 and back, exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, astuple
from typing import Any

import h5py
import numpy as np

from seechange_mpi.io.h5util import get_text, read_table, set_attrs, write_plane, write_table
from seechange_mpi.model.products import (
    PSF,
    Background,
    Cutouts,
    Detections,
    Image,
    Judged,
    Measurements,
    Scores,
    SectionProducts,
    SourceList,
    SubImage,
    WorldCoordinates,
    ZeroPoint,
)
from seechange_mpi.model.provenance import canonical_json
from seechange_mpi.model.tables import DETECTIONS, MEASUREMENTS, SCORES, SOURCES, Column, dtype_of
from seechange_mpi.model.task import SectionReport, StepRecord

PIXEL_NAMES: tuple[str, ...] = (
    "image", "weight", "flags", "sub/image", "sub/weight", "sub/flags", "sub/score", "sub/flux", "sub/flux_err",
    "sub/ref_image", "sub/ref_flags", "cutouts/new", "cutouts/ref", "cutouts/sub",
)
"""Datasets that stay in the shard; a bundle links to them."""
IMAGE_GROUPS = ("image", "weight", "flags", "background", "psf", "sources", "wcs", "zeropoint")
SUB_GROUPS = ("sub", "detections", "cutouts", "measurements", "scores")
STEP_COLUMNS: tuple[Column, ...] = (
    Column("step", "S16", "", "step of the pipeline"),
    Column("status", "S8", "", "done, reused, failed or skipped"),
    Column("wall_s", "f8", "s", "elapsed time"),
    Column("cpu_s", "f8", "s", "processor time"),
    Column("rss_mb", "f8", "MiB", "high-water resident memory while the step ran"),
    Column("gpu_mb", "f8", "MiB", "most of the GPU memory pool in use while the step ran", True),
    Column("read_mb", "f8", "MiB", "read by the process meanwhile", True),
    Column("written_mb", "f8", "MiB", "written by the process meanwhile", True),
)
_EMPTY = np.zeros((0, 0), np.float32)


def write_products(g: h5py.Group, p: SectionProducts) -> None:
    """Write all products that exist into the section's group."""
    if p.image is not None:
        _write_image(g, p.image)
    if p.background is not None:
        b = g.create_group("background")
        write_plane(b, "mesh", p.background.mesh, "ADU")
        write_plane(b, "mesh_rms", p.background.mesh_rms, "ADU")
        set_attrs(b, {"box_size": p.background.box_size, "shape": p.background.shape, "value": p.background.value,
                      "noise": p.background.noise, "error": p.background.error} | _bits(p.background))
    if p.psf is not None:
        h = g.create_group("psf")
        write_plane(h, "basis", p.psf.basis)
        set_attrs(h, {k: getattr(p.psf, k) for k in PSF.__slots__ if k != "basis"})
    if p.sources is not None:
        write_table(g, "sources", p.sources.table, SOURCES)
        set_attrs(g["sources"], {"aper_radii": p.sources.aper_radii} | _bits(p.sources))
    if p.wcs is not None:
        set_attrs(g.create_group("wcs"), asdict(p.wcs))
    if p.zp is not None:
        set_attrs(g.create_group("zeropoint"), asdict(p.zp))
    if p.sub is not None:
        s = g.create_group("sub")
        _write_sub(s, p.sub)
        # the difference lies on the new image's grid and scale
        for name in ("wcs", "zeropoint"):
            if name in g:
                s[name] = h5py.SoftLink(f"{g.name}/{name}")
    if p.detections is not None:
        write_table(g, "detections", p.detections.table, DETECTIONS)
        set_attrs(g["detections"], _bits(p.detections))
    if p.cutouts is not None:
        c = g.create_group("cutouts")
        for name in ("new", "ref", "sub"):
            write_plane(c, name, getattr(p.cutouts, name), "ADU")
        set_attrs(c, _bits(p.cutouts))
    if p.measurements is not None:
        write_table(g, "measurements", p.measurements.table, MEASUREMENTS)
        set_attrs(g["measurements"], _bits(p.measurements))
    for s in p.scores:
        write_table(g.require_group("scores"), s.algorithm, s.table, SCORES)
        g["scores"][s.algorithm].attrs["info"] = canonical_json(s.info)


def _bits(product: Judged) -> dict[str, int]:
    return {"bitflag": product.bitflag, "upstream_bitflag": product.upstream_bitflag}


def _read_bits(product: Judged, attrs: Any) -> None:
    """Badness bits of a product; files from before they were stored have none."""
    product.bitflag = int(attrs.get("bitflag", 0))
    product.upstream_bitflag = int(attrs.get("upstream_bitflag", 0))


def _write_image(g: h5py.Group, image: Image) -> None:
    write_plane(g, "image", image.data, "ADU")
    write_plane(g, "weight", image.weight, "ADU**-2")
    write_plane(g, "flags", image.flags)
    meta = {k: getattr(image, k) for k in Image.__slots__ if k not in ("data", "weight", "flags", "inputs", "metrics")}
    set_attrs(g["image"], meta | {"inputs": canonical_json(image.inputs), "metrics": canonical_json(image.metrics)})


def _write_sub(s: h5py.Group, sub: SubImage) -> None:
    planes: dict[str, tuple[np.ndarray, str]] = {
        "image": (sub.data, "ADU"), "weight": (sub.weight, "ADU**-2"), "flags": (sub.flags, ""),
        "score": (sub.score, "sigma"), "flux": (sub.flux, "ADU"), "flux_err": (sub.flux_err, "ADU"),
        "ref_image": (sub.ref_data, "ADU"), "ref_flags": (sub.ref_flags, ""), "psf": (sub.psf, "")}
    for name, (data, unit) in planes.items():
        write_plane(s, name, data, unit)
    set_attrs(s, {"zp": sub.zp, "method": sub.method, "metrics": canonical_json(sub.metrics)} | _bits(sub))


def read_products(g: h5py.Group, path: str, *, pixels: bool, parts: Container[str] | None = None) -> SectionProducts:
    """Read the products of a section's group; without `pixels` large planes have shape (0, 0).

    Parameters
    ----------
    parts : names of `SectionProducts`; the others are passed over. None: all.
    """
    p = SectionProducts()
    for name, (members, read) in _READERS.items():
        place = next((g[m] for m in members if m in g), None)
        if place is None or not (parts is None or name in parts):
            continue
        product = read(g, path, pixels)
        setattr(p, name, product)
        if name != "scores":
            _read_bits(product, place.attrs)
    return p


def stored_parts(g: h5py.Group) -> tuple[str, ...]:
    """Return the names (of `SectionProducts`) of the products that a section's group holds."""
    return tuple(name for name, (members, _) in _READERS.items() if any(m in g for m in members))


def _read_background(g: h5py.Group, _path: str, _pixels: bool) -> Background:
    b = g["background"]
    a = b.attrs
    return Background(b["mesh"][...], b["mesh_rms"][...], int(a["box_size"]),
                      (int(a["shape"][0]), int(a["shape"][1])), float(a["value"]), float(a["noise"]),
                      float(a.get("error", float("nan"))))


def _read_psf(g: h5py.Group, _path: str, _pixels: bool) -> PSF:
    h, a = g["psf"], g["psf"].attrs
    return PSF(h["basis"][...], int(a["degree"]), float(a["x0"]), float(a["y0"]), float(a["x_scale"]),
               float(a["y_scale"]), float(a["fwhm_pixels"]), int(a["n_stars"]), float(a["chi2"]))


def _read_sources(g: h5py.Group, path: str, _pixels: bool) -> SourceList:
    radii = tuple(float(r) for r in g["sources"].attrs["aper_radii"])
    return SourceList(read_table(g["sources"], SOURCES, path), radii)


def _read_cutouts(g: h5py.Group, _path: str, pixels: bool) -> Cutouts:
    none = np.zeros((0, 0, 0), np.float32)
    new, ref, sub = (g["cutouts"][n][...] if pixels else none for n in ("new", "ref", "sub"))
    return Cutouts(new, ref, sub)


def _read_scores(g: h5py.Group, path: str, _pixels: bool) -> list[Scores]:
    group = g["scores"]
    return [Scores(name, read_table(group[name], SCORES, path), json.loads(group[name].attrs["info"]))
            for name in sorted(group)]


def _read_image(g: h5py.Group, _path: str, pixels: bool) -> Image:
    # a bundle keeps the image's attributes in an empty group, so that a lost shard does not hide them
    a = g["image_meta"].attrs if "image_meta" in g else g["image"].attrs
    flags = np.zeros((0, 0), np.uint16)
    return Image(
        g["image"][...] if pixels else _EMPTY, g["weight"][...] if pixels else _EMPTY,
        g["flags"][...] if pixels else flags, float(a["gain"]), float(a["read_noise_e"]), float(a["saturation_adu"]),
        str(a["section_id"]), str(a["filter"]), float(a["mjd"]), float(a["exp_time_s"]), str(a["header_wcs"]),
        int(a["preproc_bitflag"]), json.loads(a["inputs"]), json.loads(a.get("metrics", "{}")))


def _read_wcs(g: h5py.Group) -> WorldCoordinates:
    """Figures that older files lack keep their defaults."""
    wcs = WorldCoordinates(get_text(g, "header"), str(g.attrs["method"]))
    for name, value in asdict(wcs).items():
        if name not in ("header", "method") and name in g.attrs:
            setattr(wcs, name, type(value)(g.attrs[name]))
    return wcs


def _read_zero_point(a: Any) -> ZeroPoint:
    zp = ZeroPoint(float(a["zp"]), float(a["dzp"]), str(a["method"]), int(a["n_stars"]), float(a["scatter"]),
                   float(a["colour_term"]), tuple(float(v) for v in a["aper_cor_radii"]),
                   tuple(float(v) for v in a["aper_cors"]), float(a["lim_mag"]))
    for name in ("colour_slope", "colour_slope_err", "colour_ref", "outlier_fraction", "map_err", "wing", "wing_err",
                 "blocked"):
        if name in a:
            setattr(zp, name, float(a[name]))
    if "map" in a:
        zp.map = tuple(float(v) for v in a["map"])
        ny, nx = (int(v) for v in a["map_shape"])
        zp.map_shape = ny, nx
    return zp


def _read_sub(s: h5py.Group, pixels: bool) -> SubImage:
    def plane(name: str) -> Any:
        return s[name][...] if pixels else (np.zeros((0, 0), np.uint16) if "flags" in name else _EMPTY)

    return SubImage(plane("image"), plane("weight"), plane("flags"), plane("score"), plane("flux"),
                    plane("flux_err"), s["psf"][...], float(s.attrs["zp"]), plane("ref_image"), plane("ref_flags"),
                    str(s.attrs["method"]), json.loads(s.attrs["metrics"]))

_READERS: dict[str, tuple[tuple[str, ...], Callable[[h5py.Group, str, bool], Any]]] = {
    "image": (("image_meta", "image"), _read_image),
    "background": (("background",), _read_background),
    "psf": (("psf",), _read_psf),
    "sources": (("sources",), _read_sources),
    "wcs": (("wcs",), lambda g, _path, _pixels: _read_wcs(g["wcs"])),
    "zp": (("zeropoint",), lambda g, _path, _pixels: _read_zero_point(g["zeropoint"].attrs)),
    "sub": (("sub",), lambda g, _path, pixels: _read_sub(g["sub"], pixels)),
    "detections": (("detections",), lambda g, path, _pixels: Detections(read_table(g["detections"], DETECTIONS, path))),
    "cutouts": (("cutouts",), _read_cutouts),
    "measurements": (("measurements",),
                     lambda g, path, _pixels: Measurements(read_table(g["measurements"], MEASUREMENTS, path))),
    "scores": (("scores",), _read_scores),
}
"""Product -> members of the group that may hold its attributes, the first that is there, and how it is read."""


def write_report(g: h5py.Group, report: SectionReport) -> None:
    """Write the section's report."""
    r = g.create_group("report")
    plain = {k: v for k, v in asdict(report).items() if k not in ("steps", "warnings")}
    set_attrs(r, plain | {"warnings": json.dumps(report.warnings)})
    steps = np.array([astuple(s) for s in report.steps], dtype_of(STEP_COLUMNS))
    write_table(r, "steps", steps, STEP_COLUMNS)


def read_report(g: h5py.Group) -> SectionReport:
    """Read the section's report."""
    r = g["report"]
    a = r.attrs
    text = {k: get_text(r, k) for k in ("caveat", "completed_step", "error_step", "error_type", "error_message",
                                        "error_traceback", "host", "cluster", "start_time", "finish_time")}
    return SectionReport(success=bool(a["success"]), warnings=json.loads(get_text(r, "warnings", "[]")),
                         steps=_read_steps(r["steps"]),
                         rank=int(a["rank"]), bitflag=int(a.get("bitflag", 0)), **text)


def _read_steps(table: h5py.Dataset) -> list[StepRecord]:
    figures = [c.name for c in STEP_COLUMNS[2:]]
    return [StepRecord(row["step"].decode(), row["status"].decode(), *(float(row[name]) for name in figures))
            for row in read_table(table, STEP_COLUMNS, table.file.filename)]


def content_hash(g: h5py.Group, names: Iterable[str]) -> str:
    """Return sha256 (hex) over names, dtypes, shapes, bytes and attributes of the given members of a section.

    The report and everything volatile lie elsewhere and do not enter.
    """
    digest = hashlib.sha256()

    def feed(name: str, item: h5py.Group | h5py.Dataset) -> None:
        digest.update(f"\n{name}".encode())
        if isinstance(item, h5py.Dataset):
            data = item[()]
            array = np.ascontiguousarray(data) if isinstance(data, np.ndarray) else np.asarray(str(data))
            digest.update(f"{array.dtype.descr}{array.shape}".encode())
            digest.update(array.tobytes() if array.dtype.kind != "U" else str(data).encode())
        for key in sorted(item.attrs):
            if not key.startswith(("unit:", "help:")):
                value = item.attrs[key]
                digest.update(f"@{key}={np.asarray(value).tolist()!r}".encode())

    for name in names:
        if name in g:
            item = g[name]
            feed(name, item)
            if isinstance(item, h5py.Group):
                for inner in sorted(item):
                    feed(f"{name}/{inner}", item[inner])
    return digest.hexdigest()
