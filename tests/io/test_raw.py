"""Reading raw exposures: geometry, header translation, overrides, and everything that can be wrong with a file."""

import numpy as np
import pytest
import yaml
from astropy.io import fits

from seechange_mpi.instruments.camera import Camera
from seechange_mpi.io.raw import read_exposure_info, read_overrides, read_section, sidecar_of
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import CrosstalkTerm
from seechange_mpi.pipeline.wcs_tools import has_distortion, pixel_to_sky

NY, NX, OVER = 40, 64, 8
HEADER = {"mjd": {"keyword": ["MJD-OBS", "MJD"]}, "exp_time": {"keyword": "EXPTIME"},
          "filter": {"keyword": "FILTER", "convert": "first_word", "mapping": {"rp": "r"}},
          "ra": {"keyword": "RA", "convert": "sexagesimal_hours"},
          "dec": {"keyword": "DEC", "convert": "sexagesimal_degrees"}}


def camera(**change):
    amps = [{"name": "A", "data_section": f"[{OVER + 1}:{OVER + NX // 2},1:{NY}]", "bias_section": f"[1:{OVER},1:{NY}]",
             "x0": 0, "gain": "GAINA"},
            {"name": "B", "hdu": "B", "data_section": f"[1:{NX // 2},1:{NY}]", "bias_section": "BIASSEC", "x0": NX // 2,
             "flip_x": True, "gain": 2.0}]
    return Camera(**{"name": "test", "pixel_scale_arcsec": 0.5, "header": HEADER, "read_noise": 5.0,
                     "saturation": 50000, "sections": [{"id": "1", "hdu": "A", "amplifiers": amps, "size": [NX, NY],
                                   "offset_arcsec": [100.0, -50.0]}], **change})


@pytest.fixture
def exposure(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(900, 1100, (NY, OVER + NX // 2)).astype(np.uint16) for _ in range(2))
    primary = fits.PrimaryHDU()
    for k, v in {"MJD-OBS": 60000.5, "EXPTIME": 30.0, "FILTER": "rp Sloan", "RA": "10:00:00.0",
                 "DEC": "-00:30:00.0"}.items():
        primary.header[k] = v
    one, two = fits.ImageHDU(a, name="A"), fits.ImageHDU(b, name="B")
    one.header["GAINA"] = 1.5
    two.header["BIASSEC"] = f"[{NX // 2 + 1}:{NX // 2 + OVER},1:{NY}]"
    path = tmp_path / "night_001.fits"
    fits.HDUList([primary, one, two]).writeto(path)
    return path, a, b


def test_header_is_translated(exposure):
    info = read_exposure_info(exposure[0], camera())
    assert (info.identifier, info.instrument, info.mjd, info.exp_time_s) == ("night_001", "test", 60000.5, 30.0)
    assert info.filter == "r"
    assert info.ra_deg == pytest.approx(150.0)
    assert info.dec_deg == pytest.approx(-0.5)
    assert info.airmass is None


def test_pixels_are_cut_flipped_and_placed(exposure):
    path, a, b = exposure
    raw = read_section(read_exposure_info(path, camera()), camera(), "1")
    one, two = raw.amplifiers
    np.testing.assert_array_equal(one.data, a[:, OVER:])
    np.testing.assert_array_equal(one.overscan, a[:, :OVER])
    np.testing.assert_array_equal(two.data, b[:, :NX // 2][:, ::-1])
    np.testing.assert_array_equal(two.overscan, b[:, NX // 2:][:, ::-1])
    assert (one.gain, two.gain, one.read_noise_e, two.x0) == (1.5, 2.0, 5.0, NX // 2)
    assert raw.shape == (NY, NX)
    assert one.data.dtype == np.float32


def test_position_without_a_wcs_comes_from_the_pointing(exposure):
    raw = read_section(read_exposure_info(exposure[0], camera()), camera(), "1")
    ra, dec = pixel_to_sky(raw.header_wcs, (NX - 1) / 2, (NY - 1) / 2)
    assert (float(ra) - 150.0) * 3600 * np.cos(np.radians(0.5)) == pytest.approx(100.0, abs=0.01)
    assert (float(dec) + 0.5) * 3600 == pytest.approx(-50.0, abs=0.01)
    east = pixel_to_sky(raw.header_wcs, [0.0, NX - 1.0], [0.0, 0.0])[0]
    assert east[0] > east[1]


def test_overrides_win_over_sidecar_and_file(exposure):
    path = exposure[0]
    sidecar_of(path).write_text(yaml.safe_dump({"filter": "z", "gain": 3.0}))
    assert read_exposure_info(path, camera()).filter == "z"
    info = read_exposure_info(path, camera(), {"filter": "u"})
    assert info.filter == "u"
    assert read_section(info, camera(), "1").amplifiers[0].gain == 3.0
    sidecar_of(path).write_text("colour: blue")
    with pytest.raises(BadInput, match=r"night_001\.fits\.yaml.*colour"):
        read_overrides(path)


def change_primary(path, **cards):
    with fits.open(path, mode="update") as hdus:
        for k, v in cards.items():
            if v is None:
                del hdus[0].header[k]
            else:
                hdus[0].header[k] = v


@pytest.mark.parametrize("keyword", ["MJD-OBS", "EXPTIME", "FILTER"])
def test_missing_keyword_names_it_and_the_way_out(exposure, keyword):
    change_primary(exposure[0], **{keyword: None})
    with pytest.raises(BadInput, match=rf"{keyword}.*--param") as err:
        read_exposure_info(exposure[0], camera())
    assert err.value.path == str(exposure[0])


@pytest.mark.parametrize("cards", [{"MJD-OBS": -5.0}, {"EXPTIME": -1.0}, {"MJD-OBS": "yesterday"}, {"RA": "ten"}])
def test_nonsense_values(exposure, cards):
    change_primary(exposure[0], **cards)
    with pytest.raises(BadInput):
        read_exposure_info(exposure[0], camera())


def test_truncated_file(exposure):
    path = exposure[0]
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadInput, match=r"night_001\.fits"):
        read_section(read_exposure_info(path, camera()), camera(), "1")


def test_not_a_file_not_fits(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_exposure_info(tmp_path / "none.fits", camera())
    (tmp_path / "text.fits").write_text("hello")
    with pytest.raises(BadInput, match=r"text\.fits"):
        read_exposure_info(tmp_path / "text.fits", camera())


def test_missing_hdu_lists_those_there_are(exposure):
    cam = camera(sections=[{"id": "1", "hdu": "C"}])
    with pytest.raises(BadInput, match=r"HDU C.*A.*B"):
        read_section(read_exposure_info(exposure[0], cam), cam, "1")


def test_wrong_shape_and_missing_gain(exposure):
    info = read_exposure_info(exposure[0], camera())
    cam = camera(sections=[{**camera().sections[0].model_dump(), "size": [99, 99]}])
    with pytest.raises(BadInput, match="99×99"):
        read_section(info, cam, "1")
    cam = camera(sections=[{"id": "1", "hdu": "A", "amplifiers": [{"data_section": "[1:999,1:40]", "gain": 1.0}]}])
    with pytest.raises(BadInput, match="999"):
        read_section(info, cam, "1")
    cam = camera(sections=[{"id": "1", "hdu": "A"}])
    with pytest.raises(BadInput, match="gain"):
        read_section(info, cam, "1")


def test_all_nan_section(exposure, tmp_path):
    with fits.open(exposure[0]) as hdus:
        out = fits.HDUList([hdus[0].copy()])
        for h in hdus[1:]:
            new = fits.ImageHDU(np.full(h.data.shape, np.nan, np.float32), name=h.name)
            for k in ("GAINA", "BIASSEC"):
                if k in h.header:
                    new.header[k] = h.header[k]
            out.append(new)
        out.writeto(tmp_path / "nan.fits")
    with pytest.raises(BadInput, match="no finite pixel"):
        read_section(read_exposure_info(tmp_path / "nan.fits", camera()), camera(), "1")


def wcs_cards(header, ctype="RA---TAN"):
    header.update({"CTYPE1": ctype, "CTYPE2": ctype.replace("RA--", "DEC-"), "CRVAL1": 200.0, "CRVAL2": 10.0,
                   "CRPIX1": 30.0, "CRPIX2": 20.0, "CD1_1": -1e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1e-4})


def test_own_wcs_of_a_trimmed_amplifier_moves_with_it(tmp_path):
    hdu = fits.PrimaryHDU(np.ones((60, 80), np.float32))
    hdu.header.update({"MJD-OBS": 6e4, "EXPTIME": 1.0, "FILTER": "r"})
    wcs_cards(hdu.header)
    path = tmp_path / "one.fits"
    hdu.writeto(path)
    cam = camera(sections=[{"id": "1", "amplifiers": [{"data_section": "[11:70,6:55]", "gain": 1.0}]}])
    raw = read_section(read_exposure_info(path, cam), cam, "1")
    ra, dec = pixel_to_sky(raw.header_wcs, 30.0 - 1 - 10, 20.0 - 1 - 5)
    assert (float(ra), float(dec)) == (pytest.approx(200.0), pytest.approx(10.0))


def test_amplifiers_lie_as_their_data_sections_and_keep_the_tpv_distortion(tmp_path):
    """DECam: A and B change sides between CCDs, and the HDU's WCS counts raw columns."""
    pixels = np.tile(np.arange(80, dtype=np.float32), (50, 1))
    for left, right in (("A", "B"), ("B", "A")):
        hdu = fits.ImageHDU(pixels, name="S1")
        wcs_cards(hdu.header, "RA---TPV")
        hdu.header.update({"PV1_1": 1.0, "PV1_4": 0.5, "PV2_1": 1.0})
        for name, data, bias in ((left, "[11:40,6:45]", "[1:10,6:45]"), (right, "[41:70,6:45]", "[71:80,6:45]")):
            hdu.header[f"DATASEC{name}"], hdu.header[f"BIASSEC{name}"] = data, bias
        primary = fits.PrimaryHDU()
        primary.header.update({"MJD-OBS": 6e4, "EXPTIME": 1.0, "FILTER": "r"})
        path = tmp_path / f"{left}.fits"
        fits.HDUList([primary, hdu]).writeto(path)
        amps = [{"name": n, "data_section": f"DATASEC{n}", "bias_section": f"BIASSEC{n}", "place": "data_section",
                 "gain": 1.0} for n in "AB"]
        cam = camera(sections=[{"id": "S1", "hdu": "S1", "amplifiers": amps, "size": [60, 40]}])
        raw = read_section(read_exposure_info(path, cam), cam, "S1")
        for amp in raw.amplifiers:
            assert (amp.data[0] == np.arange(30) + 10 + amp.x0).all()
            assert amp.y0 == 0
        assert {a.name: a.x0 for a in raw.amplifiers} == {left: 0, right: 30}
        assert has_distortion(raw.header_wcs)
        ra, _ = pixel_to_sky(raw.header_wcs, 30.0 - 1 - 10, 20.0 - 1 - 5)
        assert float(ra) == pytest.approx(200.0)


def test_reduced_image_with_weight_and_mask(tmp_path):
    data = np.ones((NY, NX), np.float32)
    mask = np.zeros((NY, NX), np.uint8)
    mask[3, 4] = 2
    primary = fits.PrimaryHDU(data)
    primary.header.update({"MJD-OBS": 6e4, "EXPTIME": 1.0, "FILTER": "r"})
    path = tmp_path / "reduced.fits"
    fits.HDUList([primary, fits.ImageHDU(data * 0.1, name="W"), fits.ImageHDU(mask, name="M")]).writeto(path)
    cam = camera(reduced=True, weight_hdu="W", mask_hdu="M", gain=1.0, sections=[{"id": "1"}])
    raw = read_section(read_exposure_info(path, cam), cam, "1")
    assert raw.reduced
    assert raw.weight[0, 0] == pytest.approx(0.1)
    assert raw.mask.sum() == 1
    assert raw.mask[3, 4]
    cam = camera(reduced=True, weight_hdu="X", gain=1.0, sections=[{"id": "1"}])
    with pytest.raises(BadInput, match="HDU X"):
        read_section(read_exposure_info(path, cam), cam, "1")


@pytest.mark.parametrize("text", ["gain: [1", "- 1", "gain: much", "gain: 0", "ra: '10:00'"])
def test_nonsense_in_the_sidecar_is_one_clear_error(exposure, text):
    sidecar_of(exposure[0]).write_text(text)
    with pytest.raises(BadInput, match=r"night_001\.fits"):
        read_section(read_exposure_info(exposure[0], camera()), camera(), "1")


@pytest.mark.parametrize(("flip", "order", "expected"), [
    (False, None, (False, False)), (True, None, (True, True)), (False, "[20:1,30:1]", (True, True)),
    (True, "[20:1,1:30]", (False, True)), (False, "AMPSEC", (True, False))])
def test_what_the_camera_says_of_an_amplifier_arrives(tmp_path, flip, order, expected):
    pixels = np.arange(36 * 25, dtype=np.float32).reshape(36, 25)
    hdu = fits.PrimaryHDU(pixels)
    hdu.header.update({"MJD-OBS": 6e4, "EXPTIME": 1.0, "FILTER": "r", "AMPSEC": "[20:1,1:30]"})
    path = tmp_path / "one.fits"
    hdu.writeto(path)
    amp = {"name": "A", "data_section": "[1:20,1:30]", "bias_section": "[21:25,1:30]", "gain": 1.0, "flip_x": flip,
           "parallel_bias_section": "[1:20,31:36]", "flip_y": flip, "read_order": order, "bleed_axis": "x",
           "linearity": [0.0, 1.0, 1e-6]}
    cam = camera(sections=[{"id": "1", "amplifiers": [amp]}])
    terms = [CrosstalkTerm("A", "1", "A", 1e-4)]
    got = read_section(read_exposure_info(path, cam), cam, "1", terms).amplifiers[0]
    assert (got.from_right, got.from_top) == expected
    assert (got.bleed_axis, got.linearity) == (1, (0.0, 1.0, 1e-6))
    turn = (slice(None, None, -1),) * 2 if flip else (slice(None),) * 2
    assert (got.data == pixels[:30, :20][turn]).all()
    assert (got.overscan == pixels[:30, 20:][turn]).all()
    assert (got.parallel_overscan == pixels[30:, :20][turn]).all()
    amp["read_order"] = "NOWHERE"
    cam = camera(sections=[{"id": "1", "amplifiers": [amp]}])
    with pytest.raises(BadInput, match="amplifier A read_order"):
        read_section(read_exposure_info(path, cam), cam, "1", terms)
    # without crosstalk the order does not matter
    assert read_section(read_exposure_info(path, cam), cam, "1").shape == (30, 20)
