"""Bundles to FITS files: images with WCS and zero point, differences, tables with units."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.bundle import BundleInfo, read_bundle, read_section
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.model.products import SectionProducts
from seechange_mpi.model.tables import TABLES, Column

Planes = list[tuple[str, npt.NDArray[Any], str]]


def export_bundle(path: str | Path, outdir: str | Path, sections: Iterable[str] | None = None) -> list[Path]:
    """Write per section ``<exposure>_<section>_image.fits``, ``_sub.fits`` and ``_tables.fits``, as far as they exist.

    Image files hold IMAGE, WEIGHT and FLAGS; difference files SUB, WEIGHT, FLAGS, SCORE and REF; table files
    SOURCES, DETECTIONS, MEASUREMENTS and SCORES. mag = -2.5 log10(ADU) + MAGZERO. Positions in tables are
    0-based as everywhere here; FITS pixel numbers are one larger.

    Parameters
    ----------
    sections : ids to export; default: all.

    Returns
    -------
    The files written.

    Raises
    ------
    BadInput
        The bundle or a shard is missing or damaged, or a section is not in it.
    """
    info = read_bundle(path)
    wanted = tuple(sections) if sections is not None else info.section_ids
    for section_id in wanted:
        if section_id not in info.section_ids:
            raise BadInput(path, "section", f"one of {', '.join(info.section_ids)}", section_id)
    out = Path(outdir)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for section_id in wanted:
        p = read_section(path, section_id, pixels=True).products
        stem = f"{info.exposure.identifier}_{section_id}"
        cards = _cards(info, section_id, p)
        if p.image is not None:
            written.append(_write_planes(out / f"{stem}_image.fits", cards, p, [
                ("IMAGE", p.image.data, "adu"), ("WEIGHT", p.image.weight, "adu**-2"), ("FLAGS", p.image.flags, "")]))
        if p.sub is not None and p.sub.data.size:
            written.append(_write_planes(out / f"{stem}_sub.fits", cards, p, [
                ("SUB", p.sub.data, "adu"), ("WEIGHT", p.sub.weight, "adu**-2"), ("FLAGS", p.sub.flags, ""),
                ("SCORE", p.sub.score, ""), ("REF", p.sub.ref_data, "adu")]))
        tables = _tables(p)
        if tables:
            written.append(_write_tables(out / f"{stem}_tables.fits", cards, tables))
    return written


def _cards(info: BundleInfo, section_id: str, p: SectionProducts) -> Any:
    from astropy.io import fits

    e = info.exposure
    h = fits.Header()
    h["EXPOSURE"] = (e.identifier, "exposure identifier")
    h["SECTION"] = (section_id, "section of the camera")
    h["INSTRUME"] = e.instrument
    h["MJD-OBS"] = (e.mjd, "[d] start of the exposure, UTC")
    h["EXPTIME"] = (e.exp_time_s, "[s]")
    h["FILTER"] = p.image.filter if p.image is not None else e.filter
    h["SWVERSIO"] = (info.code_version, "seechange-mpi")
    for record in info.provenances:
        h["HISTORY"] = f"provenance {record.process} {record.id}"
    if p.image is not None:
        h["GAIN"] = (p.image.gain, "[e-/ADU]")
        h["RDNOISE"] = (p.image.read_noise_e, "[e-]")
        if np.isfinite(p.image.saturation_adu):
            h["SATURATE"] = (p.image.saturation_adu, "[ADU]")
    if p.background is not None:
        h["SKYLEVEL"], h["SKYNOISE"] = (p.background.value, "[ADU] median"), (p.background.noise, "[ADU] median")
    if p.psf is not None:
        h["PSFFWHM"] = (p.psf.fwhm_pixels, "[pix] FWHM of the rendered PSF")
    if p.zp is not None:
        h["MAGZERO"] = (p.zp.zp, "[mag] for PSF fluxes")
        if np.isfinite(p.zp.dzp):
            h["MAGZERR"] = (p.zp.dzp, "[mag]")
        h["ZPMETHOD"] = p.zp.method
        if np.isfinite(p.zp.lim_mag):
            h["LIMMAG5"] = (p.zp.lim_mag, "[mag] 5 sigma, point source")
    return h


def _wcs_cards(p: SectionProducts) -> Any:
    from astropy.io import fits

    text = p.wcs.header if p.wcs is not None else (p.image.header_wcs if p.image is not None else "")
    header = fits.Header.fromstring(text, sep="\n" if "\n" in text else "")
    for keyword in ("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "EXTEND", "PCOUNT", "GCOUNT"):
        header.remove(keyword, ignore_missing=True)
    return header


def _publish(hdus: Any, path: Path) -> Path:
    """Write under a temporary name, then rename: no half-written file has the final name."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        hdus.writeto(tmp, overwrite=True, checksum=True)
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)
    return path


def _write_planes(path: Path, cards: Any, p: SectionProducts, planes: Planes) -> Path:
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU(header=cards)])
    wcs = _wcs_cards(p)
    for name, data, unit in planes:
        hdu = fits.ImageHDU(data, header=wcs.copy(), name=name)
        if unit:
            hdu.header["BUNIT"] = unit
        if name == "FLAGS":
            for flag in PixelFlag:
                hdu.header[f"FLAG{int(flag).bit_length() - 1:d}"] = (flag.name, f"bit value {int(flag)}")
        else:
            for keyword in ("MAGZERO", "GAIN", "EXPTIME", "FILTER", "MJD-OBS"):
                if keyword in cards:
                    hdu.header[keyword] = (cards[keyword], cards.comments[keyword])
        hdus.append(hdu)
    return _publish(hdus, path)


def _tables(p: SectionProducts) -> list[tuple[str, npt.NDArray[Any], tuple[Column, ...]]]:
    out: list[tuple[str, npt.NDArray[Any], tuple[Column, ...]]] = []
    for name in ("sources", "detections", "measurements"):
        product = getattr(p, name)
        if product is not None:
            out.append((name.upper(), product.table, TABLES[name]))
    out += [(f"SCORES_{s.algorithm.upper()}", s.table, TABLES["scores"]) for s in p.scores]
    return out


def _write_tables(path: Path, cards: Any, tables: list[tuple[str, npt.NDArray[Any], tuple[Column, ...]]]) -> Path:
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU(header=cards)])
    for name, table, columns in tables:
        hdu = fits.BinTableHDU(table, name=name)
        for k, column in enumerate(columns, start=1):
            # the FITS standard's spelling; significances have no unit there
            unit = column.unit.replace("ADU", "adu").replace("sigma", "")
            if unit:
                hdu.header[f"TUNIT{k}"] = unit
            hdu.header[f"TCOMM{k}"] = column.help[:60]
        hdus.append(hdu)
    return _publish(hdus, path)
