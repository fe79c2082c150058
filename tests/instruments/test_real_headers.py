"""Headers of real exposures: translated by shipped cameras, and by rules such as a user writes for others."""

import json

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from seechange_mpi.instruments.camera import Camera, load_camera
from seechange_mpi.io.raw import read_exposure_info, read_section, section_wcs, tan_header


class _Loader(yaml.SafeLoader):
    """Dumps of LSST's property lists: a tagged list of [keyword, type, value, comment]."""


_Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_sequence(node, deep=True))


def read_header(path):
    """Header of a dump in YAML, JSON or FITS text; values that FITS cannot hold are left out."""
    text = path.read_text()
    if path.suffix == ".txt":
        return fits.Header.fromstring("\n".join(line[:80] for line in text.splitlines()), sep="\n")
    if path.suffix == ".json":
        cards = json.loads(text).items()
    else:
        loaded = yaml.load(text.replace("!<lsst.daf.base.PropertyList>", "").strip(), _Loader)
        cards = loaded.items() if isinstance(loaded, dict) else [(c[0], c[2]) for c in loaded]
    header = fits.Header()
    for key, value in cards:
        if key not in ("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT", "TFIELDS",
                       "BZERO", "BSCALE", "EXTEND") and len(key) <= 8 and isinstance(value, str | int | float):
            try:
                header[key] = value
            except ValueError:
                continue
    return header


def exposure_with(header, path, camera, hdus=()):
    fits.HDUList([fits.PrimaryHDU(header=header), *hdus]).writeto(path, output_verify="silentfix")
    return read_exposure_info(path, camera)


SUBARU = {"mjd": {"keyword": ["MJD-STR", "MJD"]}, "exp_time": {"keyword": "EXPTIME"},
          "filter": {"keyword": "FILTER01", "mapping": {"HSC-r": "r", "HSC-I": "i", "W-S-R+": "r"}},
          "ra": {"keyword": "RA2000", "convert": "sexagesimal_hours"},
          "dec": {"keyword": "DEC2000", "convert": "sexagesimal_degrees"}, "airmass": {"keyword": "AIRMASS"},
          "project": {"keyword": "PROP-ID", "convert": "str"}, "target": {"keyword": "OBJECT", "convert": "str"}}
CFHT = {**SUBARU, "mjd": {"keyword": ["MJD-OBS", "MJDATE"]},
        "filter": {"keyword": "FILTER", "convert": "first_word", "mapping": {"i.MP9702": "i"}},
        "ra": {"keyword": "RA", "convert": "sexagesimal_hours"},
        "dec": {"keyword": "DEC", "convert": "sexagesimal_degrees"}}
KPNO = {**CFHT, "mjd": {"keyword": "MJD-OBS"}, "filter": {"keyword": "FILTER", "convert": "first_word"},
        "project": {"keyword": "PROPID", "convert": "str"}}
# TAI in seconds, degrees for positions
SDSS = {"mjd": {"keyword": "TAI", "scale": 1 / 86400.0}, "exp_time": {"keyword": "EXPTIME"},
        "filter": {"keyword": "FILTER", "convert": "str"}, "ra": {"keyword": "RA"}, "dec": {"keyword": "DEC"}}


@pytest.mark.parametrize(("file", "rules", "expected"), [
    ("fitsheader-hsc-HSCA04090107.yaml", SUBARU, (57305.34730, 150.0, "r", 21.157238, 1.259758)),
    ("fitsheader-suprimecam-CORR40535770.yaml", SUBARU, (54213.33504, 200.0, "r", 206.740312, -10.733192)),
    ("fitsheader-megaprime.yaml", CFHT, (54771.60662, 615.037, "i", 135.409417, -2.4)),
    ("fitsheader-megaprime-calexp-849375-14.yaml", CFHT, (53875.50331, 300.202, "r", 214.870375, 52.653611)),
    ("fitsheader-sdss-fpC-006377-g4-0399.yaml", SDSS, (None, 53.9, "g", None, None)),
    ("kpno_mef_primary_header.txt", KPNO, (53560.26273, 120.0, "R", 206.689792, -11.545108)),
])
def test_other_cameras_translate(realdata, tmp_path, file, rules, expected):
    camera = Camera(name="other", pixel_scale_arcsec=0.2, gain=1.0, header=rules, sections=[{"id": "1"}])
    info = exposure_with(read_header(realdata / "headers" / file), tmp_path / "e.fits", camera)
    mjd, exp_time, band, ra, dec = expected
    assert info.exp_time_s == pytest.approx(exp_time, abs=0.02)
    assert info.filter == band
    if mjd is None:
        assert 51000 < info.mjd < 55000
    else:
        assert info.mjd == pytest.approx(mjd, abs=2e-5)
        assert (info.ra_deg, info.dec_deg) == pytest.approx((ra, dec), abs=1e-4)


@pytest.mark.parametrize(("file", "mjd", "band"), [
    ("fitsheader-decam-raw_dec050441_25.yaml", 56336.3761, "g"),
    ("fitsheader-decam-0160496.yaml", 56272.9212, "Y"),
])
def test_raw_decam_from_its_header(realdata, tmp_path, file, mjd, band):
    """Amplifiers, gains and saturation of S1; its WCS agrees with the shipped focal plane to 35 arcsec."""
    header = read_header(realdata / "headers" / file)
    camera = load_camera("DECam")
    for key in list(header):
        if key.startswith("Z") and key[1:] in ("IMAGE", "CMPTYPE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "TENSION",
                                               "TILE1", "TILE2", "PCOUNT", "GCOUNT", "NAME1", "VAL1", "NAME2", "VAL2"):
            del header[key]
    pixels = fits.ImageHDU(np.full((4146, 2160), 1000, np.int16), header, name="S1")
    primary = header.copy()
    del primary["EXTNAME"]
    info = exposure_with(primary, tmp_path / "e.fits", camera, [pixels])
    assert (info.mjd, info.filter) == (pytest.approx(mjd, abs=1e-3), band)
    raw = read_section(info, camera, "S1")
    assert raw.shape == (4096, 2048)
    assert [(a.name, a.x0, a.overscan.shape) for a in raw.amplifiers] == [("A", 1024, (4096, 50)),
                                                                          ("B", 0, (4096, 50))]
    assert [a.gain for a in raw.amplifiers] == pytest.approx([4.59347726229, 4.4014084507])
    assert [a.read_noise_e for a in raw.amplifiers] == pytest.approx([7.1796, 7.0163], abs=1e-4)
    assert [a.saturation_adu for a in raw.amplifiers] == [43266.0, 44935.0]
    ours = WCS(tan_header(info.ra_deg, info.dec_deg, camera.section("S1"), camera.pixel_scale_arcsec, raw.shape))
    theirs = WCS(fits.Header.fromstring(raw.header_wcs))
    for x, y in ((1023.5, 2047.5), (0, 0), (2047, 4095)):
        a, b = ours.all_pix2world(x, y, 0), theirs.all_pix2world(x, y, 0)
        d = np.hypot((a[0] - b[0]) * np.cos(np.deg2rad(b[1])), a[1] - b[1]) * 3600
        assert d < 45, (x, y, d)


def test_reduced_decam_has_the_same_focal_plane(realdata):
    """S29 of the community pipeline, astrometry fitted there: our offset is within 35 arcsec of it."""
    header = read_header(realdata / "headers" / "fitsheader-decam-instcal-c4d_190402_050618_ooi_VR_v1.yaml")
    camera = load_camera("DECam")
    text = section_wcs(header, camera.section("S29"), camera, None, (4094, 2046))
    ra, dec = WCS(fits.Header.fromstring(text)).all_pix2world(1022.5, 2046.5, 0)
    np.testing.assert_allclose((ra, dec), (header["CENRA1"], header["CENDEC1"]), atol=2e-4)
    east = (ra - header["CRVAL1"]) * np.cos(np.deg2rad(dec)) * 3600
    north = (dec - header["CRVAL2"]) * 3600
    assert np.hypot(*np.subtract(camera.section("S29").offset_arcsec, (east, north))) < 35
