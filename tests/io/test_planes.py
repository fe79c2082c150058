"""Weight and mask of reduced images: every form, in the file or beside it."""

import numpy as np
import pytest
from astropy.io import fits

from seechange_mpi.instruments.camera import Camera, load_camera
from seechange_mpi.io.planes import inverse_variance, translate_mask
from seechange_mpi.io.raw import read_exposure_info, read_section
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.flags import PixelFlag
from seechange_mpi.pipeline.preprocessing import Preprocessor

NY, NX = 150, 160


def test_codes_and_bits_of_a_mask():
    codes = np.array([[0, 1, 2, 3], [4, 7, 8, 99]])
    meaning = {1: "BAD_PIXEL", 2: "NO_DATA", 3: "SATURATED", 4: "BLEED", 7: "ignore", 8: "TRAIL"}
    assert translate_mask(codes, "values", meaning).tolist() == [
        [0, PixelFlag.BAD_PIXEL, PixelFlag.NO_DATA, PixelFlag.SATURATED],
        [PixelFlag.BLEED, 0, PixelFlag.TRAIL, PixelFlag.BAD_PIXEL]]
    bits = np.array([[0, 1, 2, 1 | 4], [1 << 7, 1 << 8, 1 << 9 | 1 << 7, 1 << 30]])
    found = translate_mask(bits, "bits", {0: "BAD_PIXEL", 1: "NO_DATA", 2: "SATURATED", 7: "ignore", 8: "TRAIL"})
    assert found.tolist() == [[0, PixelFlag.BAD_PIXEL, PixelFlag.NO_DATA, PixelFlag.BAD_PIXEL | PixelFlag.SATURATED],
                              [0, PixelFlag.TRAIL, PixelFlag.BAD_PIXEL, PixelFlag.BAD_PIXEL]]
    assert translate_mask(np.array([[np.nan, 3.0]]), "values", meaning).tolist() == [
        [PixelFlag.BAD_PIXEL, PixelFlag.SATURATED]]


@pytest.mark.parametrize(("kind", "value"), [("weight", 0.04), ("ivar", 0.04), ("variance", 25.0), ("sigma", 5.0)])
def test_planes_of_noise(kind, value):
    plane = np.array([[value, 0.0, np.nan, -1.0, np.inf]])
    out = inverse_variance(plane, kind)
    assert out.dtype == np.float32
    assert out[0, 0] == pytest.approx(0.04)
    assert (out[0, 1:] == 0).all()
    assert plane[0, 0] == value


def instcal(folder, dq, weight, **more):
    """Image, weight and mask files as the Community Pipeline delivers them."""
    rng = np.random.default_rng(1)
    data = rng.normal(700, 12, (NY, NX)).astype(np.float32)
    for kind, plane in (("ooi", data), ("oow", weight), ("ood", dq)):
        primary = fits.PrimaryHDU()
        primary.header.update({"MJD-OBS": 58575.2, "EXPTIME": 120.0, "FILTER": "VR DECam c0007 6300.0 2600.0"})
        hdu = fits.ImageHDU(plane, name="S29")
        hdu.header.update({"ARAWGAIN": 4.34, "RDNOISEA": 6.1, "SATURATE": 42423.5, **more})
        fits.HDUList([primary, hdu]).writeto(folder / f"c4d_190402_050618_{kind}_VR_v1.fits")
    return folder / "c4d_190402_050618_ooi_VR_v1.fits"


def test_community_pipeline_images_with_files_of_weight_and_data_quality(tmp_path):
    dq = np.zeros((NY, NX), np.int16)
    for code in range(1, 9):
        dq[10 * code, 20:30] = code
    path = instcal(tmp_path, dq, np.full((NY, NX), 1 / 144, np.float32))
    camera = load_camera("DECam-instcal")
    info = read_exposure_info(path, camera)
    assert info.filter == "VR"
    raw = read_section(info, camera, "S29")
    image = Preprocessor().run(raw, info, {})
    wanted = {1: "BAD_PIXEL", 2: "NO_DATA", 3: "SATURATED", 4: "BLEED", 5: "COSMIC_RAY", 6: "ZERO_WEIGHT", 7: None,
              8: "TRAIL"}
    for code, name in wanted.items():
        assert (image.flags[10 * code, 20:30] == (PixelFlag[name] if name else 0)).all(), code
        assert ((image.weight[10 * code, 20:30] == 0) == (name is not None)).all()
    assert image.weight[5, 5] == pytest.approx(1 / 144)
    assert (image.gain, image.saturation_adu) == (pytest.approx(4.34), pytest.approx(42423.5))
    assert image.preproc_bitflag == 0


def test_missing_and_misnamed_planes(tmp_path):
    path = instcal(tmp_path, np.zeros((NY, NX), np.int16), np.ones((NY - 1, NX), np.float32))
    camera = load_camera("DECam-instcal")
    with pytest.raises(BadInput, match=r"oow_VR_v1\.fits: weight: expected a plane of 160×150 pixels"):
        read_section(read_exposure_info(path, camera), camera, "S29")
    other = path.rename(tmp_path / "night.fits")
    with pytest.raises(BadInput, match="weight file: expected '_ooi_' in the exposure's file name"):
        read_section(read_exposure_info(other, camera), camera, "S29")
    lone = other.rename(tmp_path / "x_ooi_.fits")
    with pytest.raises(BadInput, match=r"x_oow_\.fits: exposure: expected a FITS file, found no such file"):
        read_section(read_exposure_info(lone, camera), camera, "S29")


def test_a_flag_that_does_not_exist_is_refused():
    camera = load_camera("DECam-instcal").model_dump()
    with pytest.raises(ValueError, match="mask_meaning: unknown flag STREAK; there are: BAD_PIXEL"):
        Camera.model_validate(camera | {"mask_meaning": {1: "STREAK"}})
    with pytest.raises(ConfigError, match="no camera"):
        load_camera("DECam-stacked")
