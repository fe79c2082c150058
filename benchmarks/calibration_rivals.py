"""SExtractor, PSFEx and SCAMP on the simulated CCD, from the preprocessed image on: the chain that the field uses.

They are run as they come, with a weight map, a background of their own, a PSF that varies to second order and fluxes of
that PSF; SCAMP gets the same catalogue, its positions moved to the date of the exposure.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from ccd_scene import GAIN, MJD, SATURATION, Files

PROGRAMS = ("source-extractor", "psfex", "scamp")
_FIRST = ("NUMBER", "X_IMAGE", "Y_IMAGE", "XWIN_IMAGE", "YWIN_IMAGE", "ERRAWIN_IMAGE", "ERRBWIN_IMAGE",
          "ERRTHETAWIN_IMAGE", "FLUX_RADIUS", "FLUX_APER(1)", "FLUXERR_APER(1)", "FLUX_AUTO", "FLUXERR_AUTO",
          "ELONGATION", "SNR_WIN", "FLAGS", "VIGNET(35,35)")
_SECOND = ("XWIN_IMAGE", "YWIN_IMAGE", "XPSF_IMAGE", "YPSF_IMAGE", "FLUX_PSF", "FLUXERR_PSF", "FLAGS", "ERRAWIN_IMAGE",
           "ERRBWIN_IMAGE", "ERRTHETAWIN_IMAGE", "FLUX_AUTO", "FLUXERR_AUTO", "SPREAD_MODEL")


def installed() -> bool:
    """Whether all three programs are on the PATH."""
    return all(shutil.which(p) for p in PROGRAMS)


def run_chain(files: Files, out: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the three programs; return CPU seconds, peak memory [MB], the source table, and the WCS header text."""
    folder.mkdir(parents=True, exist_ok=True)
    image = out["image"]
    header = fits.Header.fromstring(image.header_wcs)
    fits.writeto(folder / "image.fits", image.data, header, overwrite=True)
    fits.writeto(folder / "weight.fits", image.weight, overwrite=True)
    (folder / "first.param").write_text("\n".join(_FIRST) + "\n")
    (folder / "second.param").write_text("\n".join(_SECOND) + "\n")
    (folder / "gauss.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    cost: dict[str, float] = {}
    common = ["-WEIGHT_TYPE", "MAP_WEIGHT", "-WEIGHT_IMAGE", "weight.fits", "-DETECT_THRESH", "1.5", "-ANALYSIS_THRESH",
              "1.5", "-DETECT_MINAREA", "5", "-GAIN", str(GAIN), "-SATUR_LEVEL", str(SATURATION - 1500), "-FILTER_NAME",
              "gauss.conv", "-CATALOG_TYPE", "FITS_LDAC", "-PHOT_APERTURES", "21", "-PIXEL_SCALE", "0",
              "-STARNNW_NAME", str(_neural_network()), "-VERBOSE_TYPE", "QUIET"]
    _run(cost, "extraction", folder, "source-extractor", "image.fits", "-c", str(_defaults(folder, "source-extractor")),
         "-PARAMETERS_NAME", "first.param", "-CATALOG_NAME", "first.cat", *common)
    _run(cost, "PSF", folder, "psfex", "first.cat", "-c", str(_defaults(folder, "psfex")), "-PSFVAR_DEGREES", "2",
         "-CHECKPLOT_TYPE", "NONE", "-CHECKIMAGE_TYPE", "NONE", "-NTHREADS", "1", "-VERBOSE_TYPE", "QUIET",
         "-WRITE_XML", "N")
    _run(cost, "PSF fluxes", folder, "source-extractor", "image.fits", "-c", str(_defaults(folder, "source-extractor")),
         "-PARAMETERS_NAME", "second.param", "-CATALOG_NAME", "second.cat", "-PSF_NAME", "first.psf", *common)
    _reference_catalogue(files.catalog, folder / "reference.cat")
    _run(cost, "astrometry", folder, "scamp", "second.cat", "-c", str(_defaults(folder, "scamp")), "-ASTREF_CATALOG",
         "FILE", "-ASTREFCAT_NAME", "reference.cat", "-ASTREFMAG_KEY", "MAG", "-ASTREFMAGERR_KEY", "MAGERR",
         "-SOLVE_PHOTOM", "N", "-DISTORT_DEGREES", "3", "-CHECKPLOT_TYPE", "NONE", "-NTHREADS", "1",
         "-MATCH_RESOL", "0", "-POSITION_MAXERR", "1.0", "-POSANGLE_MAXERR", "2.0", "-CROSSID_RADIUS", "2.0",
         "-VERBOSE_TYPE", "QUIET", "-WRITE_XML", "N", "-CENTROID_KEYS", "XWIN_IMAGE,YWIN_IMAGE", "-CENTROIDERR_KEYS",
         "ERRAWIN_IMAGE,ERRBWIN_IMAGE,ERRTHETAWIN_IMAGE", "-DISTORT_KEYS", "XWIN_IMAGE,YWIN_IMAGE")
    with fits.open(folder / "second.cat") as hdus:
        sources = np.array(hdus[2].data)
    lines = (folder / "second.head").read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = ("CTYPE", "CUNIT", "CRVAL", "CRPIX", "CD", "PV", "EQUINOX", "RADESYS")
    solved = fits.Header.fromstring("\n".join(v for v in lines if v.startswith(wanted)), sep="\n")
    with fits.open(folder / "first.psf") as hdus:
        fwhm = float(hdus[1].header["PSF_FWHM"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"cost": cost, "peak_mb": peak, "sources": sources, "wcs": solved, "fwhm": fwhm}


def _run(cost: dict[str, float], name: str, folder: Path, *command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr[-500:]}")
    cost[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _defaults(folder: Path, program: str) -> Path:
    """The program's own default configuration, written by itself."""
    path = folder / f"{program}.conf"
    if not path.exists():
        path.write_text(subprocess.run([program, "-d"], capture_output=True, text=True, check=True).stdout)
    return path


def _neural_network() -> Path:
    """SExtractor's star/galaxy table, which it wants even where it is not asked for."""
    found = sorted(Path("/usr/share").glob("source-extractor/default.nnw"))
    if not found:
        raise RuntimeError("default.nnw of source-extractor not found")
    return found[0]


def _reference_catalogue(path: Path, to: Path) -> None:
    """LDAC of the catalogue at the date of the exposure."""
    t = Table.read(path)
    years = 2000.0 + (MJD - 51544.5) / 365.25 - t["ref_epoch"]
    dec = t["dec"] + years * t["pmdec"] / 3.6e6
    ra = t["ra"] + years * t["pmra"] / 3.6e6 / np.cos(np.deg2rad(t["dec"]))
    error = np.maximum(np.hypot(t["ra_error"], years * t["pmra_error"]) / 3.6e6, 1e-8)
    rows = {"X_WORLD": ra, "Y_WORLD": dec, "ERRA_WORLD": error, "ERRB_WORLD": error,
            "MAG": t["phot_g_mean_mag"], "MAGERR": np.full(len(t), 0.01),
            "OBSDATE": np.full(len(t), 2000.0 + (MJD - 51544.5) / 365.25)}
    text = fits.Header()
    text["FIELDTYP"] = "LDAC"
    card = np.array([text.tostring(sep="", endcard=True, padding=False)], dtype="S160")
    head = fits.BinTableHDU.from_columns([fits.Column("Field Header Card", format="160A", array=card)],
                                         name="LDAC_IMHEAD")
    columns = [fits.Column(k, format="D" if k in ("X_WORLD", "Y_WORLD", "OBSDATE") else "E", array=np.asarray(v))
               for k, v in rows.items()]
    body = fits.BinTableHDU.from_columns(columns, name="LDAC_OBJECTS")
    fits.HDUList([fits.PrimaryHDU(), head, body]).writeto(to, overwrite=True)
