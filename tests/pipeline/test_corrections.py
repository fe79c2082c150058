"""Every correction undone against the truth it was simulated with."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from seechange_mpi.instruments.camera import Camera
from seechange_mpi.io.crosstalk import crosstalk_terms, read_crosstalk
from seechange_mpi.io.raw import read_exposure_info
from seechange_mpi.model.errors import AlgorithmError, BadInput
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.flags import Correction, PixelFlag
from seechange_mpi.model.products import CrosstalkTerm, RawAmplifier, RawSection
from seechange_mpi.pipeline.amplifier_gains import Box, fit_gain_factors
from seechange_mpi.pipeline.fringe import fit_fringe
from seechange_mpi.pipeline.overscan import line_levels, pedestal_of
from seechange_mpi.pipeline.preprocessing import Preprocessor
from seechange_mpi.pipeline.saturation import find_bleeds

N = 256
EXPOSURE = ExposureInfo("exp1", "simulated", "exp1.fits", 60000.0, 30.0, "r")
QUIET = {"cosmic_rays": False, "trails": False}
GAINS = (1.5, 2.5, 2.0, 1.8)


def amplifiers(adu, gains=GAINS, noise=0.0, pedestal=1000.0, saturation=60000.0, seed=0, **more):
    """Four quadrants, lower left, lower right, upper left, upper right, from counts above a flat pedestal."""
    rng = np.random.default_rng(seed)
    half = N // 2
    out = []
    for k, gain in enumerate(gains):
        x0, y0 = half * (k % 2), half * (k // 2)
        part = adu[y0: y0 + half, x0: x0 + half] + pedestal + 10 * k
        over = pedestal + 10 * k + rng.normal(0, noise / gain, (half, 24))
        out.append(RawAmplifier(part.astype(np.float32), over.astype(np.float32), x0, y0, gain, noise, saturation,
                                "ABCD"[k], from_right=bool(k % 2), from_top=k > 1, **more))
    return out


def section(adu, **given):
    return RawSection("S1", "r", (N, N), amplifiers(adu, **given))


def in_adu(electrons, gains=GAINS):
    """Electrons of a section in the ADU of each quadrant."""
    out = electrons.astype(float).copy()
    half = N // 2
    for k, gain in enumerate(gains):
        out[half * (k // 2): half * (k // 2) + half, half * (k % 2): half * (k % 2) + half] /= gain
    return out


def write(path, data):
    fits.PrimaryHDU(data).writeto(path, overwrite=True)
    return str(path)


def run(raw, steps, calibration=None, **pars):
    return Preprocessor(steps_required=["overscan", *steps], **QUIET, **pars).run(raw, EXPOSURE, calibration or {})


# --- overscan ------------------------------------------------------------------------------------------------------

def lines_of(shape, jitter, noise=4.0, n=600, width=30, seed=1):
    rng = np.random.default_rng(seed)
    y = np.arange(n) / n
    truth = 1000 + (5 * np.sin(7 * y) if shape == "smooth" else 0) + rng.normal(0, jitter, n)
    lines = truth[:, None] + rng.normal(0, noise, (n, width))
    lines[rng.random(lines.shape) < 0.005] += 3000
    return truth, lines.astype(np.float32)


@pytest.mark.parametrize(("jitter", "best"), [(0.0, 0.12), (0.5, 0.52), (5.0, 0.8)])
def test_fit_is_the_best_of_the_methods_whatever_the_pedestal_does(jitter, best):
    truth, lines = lines_of("smooth", jitter)
    error = {m: float(np.std(line_levels(lines, m) - truth)) for m in ("fit", "median", "mean")}
    # a mean of 30 pixels of 4 ADU is good to 0.73 ADU, a median to 0.92
    assert error["mean"] == pytest.approx(0.73, rel=0.1)
    assert error["median"] == pytest.approx(0.92, rel=0.12)
    assert error["fit"] < best
    assert error["fit"] < 1.02 * error["mean"]


def test_lines_that_stand_out_do_not_pull_the_fit():
    truth, lines = lines_of("smooth", 0.0)
    lines[100:104] += 200
    assert abs(line_levels(lines, "fit") - truth)[[95, 102, 110]].max() < 0.5


def test_both_overscans_take_off_rows_and_columns():
    rng = np.random.default_rng(2)
    ny, nx = 200, 150
    rows, columns = 900 + 4 * np.sin(np.arange(ny) / 30), 3 * np.cos(np.arange(nx) / 20)
    columns -= np.median(columns)
    serial, parallel = rows[:, None] + rng.normal(0, 2, (ny, 40)), rows[-1] + columns + rng.normal(0, 2, (50, nx))
    amp = RawAmplifier((rows[:, None] + columns).astype(np.float32), serial.astype(np.float32), 0, 0, 1.0, 2.0, 6e4,
                       "A", parallel.astype(np.float32))
    data = amp.data.copy()
    pedestal_of(amp, "x.fits", "fit").subtract_from(data)
    assert abs(data).max() < 0.6
    amp.parallel_overscan = amp.parallel_overscan[:, 1:]
    with pytest.raises(BadInput, match="parallel overscan of amplifier A: expected 150 columns"):
        pedestal_of(amp, "x.fits")


def test_trimmed_columns_take_no_part():
    amp = RawAmplifier(np.zeros((50, 60), np.float32), np.full((50, 20), 100, np.float32), 0, 0, 1.0, 1.0, 6e4, "A")
    amp.overscan[:, :2] = 500
    amp.overscan[:, -1] = 0
    for method in ("fit", "mean"):
        assert pedestal_of(amp, "x.fits", method, trim=2).level == 100
    assert line_levels(amp.overscan, "mean")[0] == pytest.approx(100, abs=1e-6)
    with pytest.raises(BadInput, match="overscan_trim"):
        pedestal_of(amp, "x.fits", trim=10)


@pytest.mark.realdata
def test_pedestal_of_a_real_camera_on_columns_that_were_held_out(realdata):
    """Sinistro: every other column gives the level, the rest must average to 0.3 ADU of it in blocks of 64 rows."""
    with fits.open(next((realdata / "lco_raw_mef").glob("*.fits"))) as hdus:
        worst = {}
        for hdu in hdus[1:]:
            over = hdu.data[:512, 515:541].astype(np.float32)
            for method in ("fit", "median", "mean"):
                rest = over[:, 1::2] - line_levels(over[:, 0::2], method)[:, None]
                blocks = abs(rest.reshape(8, -1).mean(axis=1)).max()
                assert abs(rest.mean()) < 0.05
                assert blocks < 0.3
                worst[method] = max(worst.get(method, 0), float(rest.mean(axis=1).std()))
        # what is left of single rows: the fit adds nothing to the noise of 13 held-out pixels, 0.35 ADU
        assert worst["fit"] < 0.37
        assert worst["fit"] < 0.8 * worst["mean"] < worst["median"]


# --- crosstalk ------------------------------------------------------------------------------------------------------

def test_crosstalk_within_a_section_is_undone_in_the_order_of_readout():
    rng = np.random.default_rng(3)
    clean = rng.uniform(100, 200, (N, N))
    clean[20, 30] = 40000.0  # amplifier A, 20 rows and 30 columns from its corner
    half = N // 2
    quadrant = {n: (slice(half * (k // 2), half * (k // 2) + half), slice(half * (k % 2), half * (k % 2) + half))
                for k, n in enumerate("ABCD")}
    turn = {"A": (1, 1), "B": (1, -1), "C": (-1, 1), "D": (-1, -1)}
    matrix = {("B", "A"): 8e-4, ("D", "A"): -5e-4, ("A", "C"): 3e-4, ("C", "B"): 6e-4}
    adu = clean.copy()
    for (victim, source), c in matrix.items():
        adu[quadrant[victim]] += c * clean[quadrant[source]][::turn[source][0], ::turn[source][1]][
            ::turn[victim][0], ::turn[victim][1]]
    assert adu[20, N - 1 - 30] - clean[20, N - 1 - 30] == pytest.approx(32, abs=0.2), "B is read from the right"
    raw = section(adu, gains=(1.0,) * 4)
    raw.crosstalk = [CrosstalkTerm(v, "S1", s, c) for (v, s), c in matrix.items()]
    image = run(raw, ["crosstalk"])
    # the sources are measured ones, with crosstalk themselves: second order of 1e-3
    assert abs(image.data - clean).max() < 0.03
    assert image.preproc_bitflag == Correction.OVERSCAN | Correction.CROSSTALK
    assert not (image.flags & PixelFlag.CROSSTALK).any()


def test_ghosts_of_saturated_pixels_are_flagged_where_they_matter():
    adu = np.full((N, N), 100.0)
    adu[20:24, 30:33] = 59000.0
    for coefficient, matters in ((1e-3, True), (1e-6, False)):
        raw = section(adu, noise=5.0)
        raw.crosstalk = [CrosstalkTerm("B", "S1", "A", coefficient)]
        flagged = (run(raw, ["crosstalk"]).flags & PixelFlag.CROSSTALK) != 0
        assert flagged.sum() == (12 if matters else 0)
        if matters:
            assert flagged[20:24, N - 33: N - 30].all()


def mosaic(tmp_path, crosstalk=1e-3):
    """Two sections of one amplifier each; S2 sees S1 and is read from the other side."""
    rng = np.random.default_rng(4)
    data = {s: rng.uniform(100, 300, (64, 60)) for s in ("S1", "S2")}
    data["S1"][10, 5] = 30000
    seen = {"S1": data["S1"], "S2": data["S2"] + crosstalk * data["S1"][:, ::-1]}
    primary = fits.PrimaryHDU()
    primary.header.update({"MJD-OBS": 6e4, "EXPTIME": 30.0, "FILTER": "r"})
    hdus = fits.HDUList([primary])
    for s, pixels in seen.items():
        hdus.append(fits.ImageHDU(np.hstack([np.full((64, 8), 500.0), pixels + 500]).astype(np.float32), name=s))
    path = tmp_path / "night.fits"
    hdus.writeto(path)
    camera = Camera.model_validate({
        "name": "two", "pixel_scale_arcsec": 0.5, "gain": 1.0, "saturation": 60000,
        "header": {"mjd": {"keyword": "MJD-OBS"}, "exp_time": {"keyword": "EXPTIME"}, "filter": {"keyword": "FILTER"}},
        "sections": [{"id": s, "hdu": s, "amplifiers": [{
            "name": "A", "data_section": "[9:68,1:64]", "bias_section": "[1:8,1:64]",
            **({"read_order": "[60:1,1:64]"} if s == "S2" else {})}]} for s in ("S1", "S2")]})
    return path, camera, data


@pytest.mark.parametrize("form", ["fits", "ecsv", "yaml", "camera"])
def test_crosstalk_from_another_section_of_the_exposure(tmp_path, form):
    path, camera, data = mosaic(tmp_path)
    row = {"victim": "S2:A", "source": "S1:A", "coefficient": 1e-3}
    calibration = {}
    if form == "camera":
        camera = Camera.model_validate(camera.model_dump() | {"crosstalk": [row]})
    else:
        table = tmp_path / f"crosstalk.{form}"
        if form == "yaml":
            table.write_text("crosstalk:\n  - {victim: 'S2:A', source: 'S1:A', coefficient: 1.0e-3}\n")
        else:
            Table(rows=[row]).write(table)
        calibration["crosstalk"] = str(table)
    info = read_exposure_info(path, camera)
    step = Preprocessor(steps_required=["overscan", "crosstalk"], **QUIET)
    for name in ("S1", "S2"):
        raw = step.read(info, camera, name, calibration)
        assert list(raw.sources) == ([("S1", "A")] if name == "S2" else [])
        image = step.run(raw, info, calibration)
        assert abs(image.data - data[name]).max() < 0.01
        assert image.preproc_bitflag & Correction.CROSSTALK
        assert ("crosstalk" in image.inputs) == (form != "camera")


def test_crosstalk_that_cannot_be_corrected(tmp_path):
    path, camera, _ = mosaic(tmp_path)
    info = read_exposure_info(path, camera)
    step = Preprocessor(steps_required=["overscan", "crosstalk"], **QUIET)
    with pytest.raises(BadInput, match="crosstalk of section S2"):
        step.run(step.read(info, camera, "S2", {}), info, {})
    step.pars.missing_calibration = "skip"
    assert not step.run(step.read(info, camera, "S2", {}), info, {}).preproc_bitflag & Correction.CROSSTALK
    table = tmp_path / "x.yaml"
    table.write_text("- {victim: 'S2:A', source: 'S9:A', coefficient: 0.001}")
    with pytest.raises(BadInput, match=r"x\.yaml: crosstalk: expected an amplifier of camera two.*found S9:A"):
        crosstalk_terms(camera, "S2", table)
    for text in ("- {victim: A, source: A}", "- {victim: A, source: A, coefficient: 7}", "{", "- 3"):
        table.write_text(text)
        with pytest.raises(BadInput, match="crosstalk"):
            read_crosstalk(table)


# --- linearity, dark ------------------------------------------------------------------------------------------------

CURVE = 2.0e-6
"""linear = raw (1 + CURVE raw), above the pedestal: 10 % at 50,000 ADU."""


def bent(linear):
    """Raw counts whose linear counts are these."""
    return (-1 + np.sqrt(1 + 4 * CURVE * linear)) / (2 * CURVE)


@pytest.mark.parametrize("form", ["camera", "coefficients", "table", "decam"])
def test_linear_counts_come_out(tmp_path, form):
    linear = np.linspace(50, 50000, N * N).reshape(N, N)
    raw = section(bent(linear), gains=(2.0,) * 4, saturation=51000.0,
                  **({"linearity": (0.0, 1.0, CURVE)} if form == "camera" else {}))
    calibration = {}
    if form != "camera":
        x = np.linspace(-1000, 60000, 601)
        table = {"coefficients": {"amplifier": list("ABCD"), "coefficients": [[0.0, 1.0, CURVE]] * 4},
                 "table": {"counts": x, **{f"linear_{n}": x * (1 + CURVE * x) for n in "ABCD"}},
                 "decam": {"ADU": x, **{f"ADU_LINEAR_{n}": x * (1 + CURVE * x) for n in "ABCD"}}}[form]
        calibration["linearity"] = str(tmp_path / "linearity_S1.fits")
        Table(table).write(calibration["linearity"])
    image = run(raw, ["linearity"], calibration)
    good = image.flags == 0
    assert good.mean() > 0.9
    # interpolation between levels 100 ADU apart: CURVE × 100² / 8 = 0.003 ADU
    assert abs(image.data - linear)[good].max() < 0.05
    assert image.preproc_bitflag == Correction.OVERSCAN | Correction.LINEARITY
    assert image.saturation_adu == pytest.approx(49970 * (1 + CURVE * 49970), rel=1e-3)
    assert ("linearity" in image.inputs) == (form != "camera")


def test_linearity_that_cannot_be_used(tmp_path):
    raw = section(np.full((N, N), 100.0))
    path = tmp_path / "linearity_S1.fits"
    with pytest.raises(BadInput, match="linearity frame of section S1"):
        run(raw, ["linearity"])
    tables = [({"amplifier": ["A"], "coefficients": [[0.0, 1.0, 0.0]]}, "expected amplifier B"),
              ({"amplifier": list("ABCD"), "coefficients": [[0.0, 1.0, -2e-5]] * 4}, "that grows up to"),
              ({"amplifier": list("ABCD"), "coefficients": [[1.0]] * 4}, "coefficients c0, c1"),
              ({"counts": [0.0, 1.0], **{f"linear_{n}": [1.0, 0.0] for n in "ABCD"}}, "counts that grow"),
              ({"x": [1.0]}, "columns amplifier and coefficients")]
    for table, message in tables:
        Table(table).write(path, overwrite=True)
        with pytest.raises(BadInput, match=message):
            run(raw, ["linearity"], {"linearity": str(path)})
    path.write_text("no table")
    with pytest.raises(BadInput, match="a readable FITS table"):
        run(raw, ["linearity"], {"linearity": str(path)})


def test_dark_current_goes_with_the_exposure_time_and_adds_to_the_variance(tmp_path):
    rng = np.random.default_rng(5)
    rate = rng.uniform(0, 1, (N, N)).astype(np.float32)
    rate[100:110, 100:110] = 300.0  # 300 ADU/s: a hot spot
    sky = 400.0
    electrons = in_adu(rng.poisson(sky + rate * 30 * 2.0), (1.0,) * 4)
    raw = section(electrons / 2.0, gains=(2.0,) * 4, noise=0.1)
    image = run(raw, ["dark"], {"dark": write(tmp_path / "dark.fits", rate)})
    spot = np.zeros((N, N), bool)
    spot[100:110, 100:110] = True
    for part in (spot, ~spot):
        scatter = (image.data - sky / 2.0)[part] * np.sqrt(image.weight[part])
        assert np.mean(image.data[part]) == pytest.approx(200, abs=5 * np.sqrt(9200 / 2 / part.sum()))
        assert np.std(scatter) == pytest.approx(1.0, abs=0.12 if part is spot else 0.02)
    assert image.preproc_bitflag == Correction.OVERSCAN | Correction.DARK


# --- flat, illumination, gains, fringes -----------------------------------------------------------------------------

def test_flat_of_the_chosen_kind_and_illumination(tmp_path):
    y, x = np.mgrid[:N, :N] / N
    flat = (1 + 0.1 * x).astype(np.float32)
    dome = (flat * (1 + 0.05 * y)).astype(np.float32)
    illumination = (1 / (1 + 0.05 * y)).astype(np.float32)
    calibration = {"flat_dome": write(tmp_path / "dome.fits", dome), "flat": write(tmp_path / "flat.fits", flat),
                   "illumination": write(tmp_path / "illumination.fits", illumination)}
    raw = section(in_adu(1000 * flat))
    plain = run(raw, ["flat"], calibration)
    both = run(raw, ["flat", "illumination"], calibration, flat_type="dome")
    for image in (plain, both):
        assert np.ptp(image.data * image.gain) < 0.05
        # as many electrons as a pixel of median response collects
        assert np.median(image.data) * image.gain == pytest.approx(1000 * np.median(flat), rel=1e-3)
    assert set(both.inputs) == {"flat_dome", "illumination"}
    assert both.preproc_bitflag & Correction.ILLUMINATION
    with pytest.raises(BadInput, match="flat_sky frame of section S1"):
        run(raw, ["flat"], calibration, flat_type="sky")
    assert Preprocessor(steps_required=["flat", "zero", "overscan"], flat_type="twilight").kinds == (
        "bias", "flat_twilight")


def sky_with_stars(rng, level=900.0):
    y, x = np.mgrid[:N, :N]
    sky = level * (1 + 0.02 * x / N - 0.03 * y / N)
    for _ in range(60):
        cx, cy = rng.uniform(0, N, 2)
        sky = sky + 10 ** rng.uniform(2, 4.5) * np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / 2.0)
    return sky


@pytest.mark.parametrize("layout", ["quadrants", "side by side"])
def test_fitted_gains_are_the_true_ones(layout):
    rng = np.random.default_rng(6)
    true = np.array([1.0, 1.05, 0.97, 1.02])
    half = N // 2
    boxes = [Box(half * (k % 2), half * (k // 2), half, half) for k in range(4)]
    if layout == "side by side":
        true, boxes = true[:2], [Box(0, 0, half, N), Box(half, 0, half, N)]
    electrons = sky_with_stars(rng)
    data = (electrons + rng.normal(0, 1, (N, N)) * np.sqrt(electrons + 25)).astype(np.float32)
    for box, factor in zip(boxes, true, strict=True):
        data[box.y0: box.y0 + box.ny, box.x0: box.x0 + box.nx] /= factor
    factors = fit_gain_factors(data, np.zeros((N, N), bool), boxes, "S1")
    # 128 × 24 pixels of 3 % noise on either side of a seam: 0.1 %
    assert factors == pytest.approx(true / true.mean(), rel=2.5e-3)


def test_gains_are_fitted_when_asked_for(tmp_path):
    rng = np.random.default_rng(7)
    electrons = sky_with_stars(rng)
    noisy = electrons + rng.normal(0, 1, (N, N)) * np.sqrt(electrons)
    raw = section(in_adu(noisy, (1.5, 2.6, 1.95, 1.8)), noise=4.0)
    image = run(raw, [], gain_match="fit")
    assert image.preproc_bitflag == Correction.OVERSCAN | Correction.GAIN_FIT
    fitted = np.array([image.metrics[f"gain_factor_{n}"] for n in "ABCD"]) * GAINS
    assert fitted / fitted[0] == pytest.approx(np.array((1.5, 2.6, 1.95, 1.8)) / 1.5, rel=2.5e-3)
    # an ADU stays worth the same electrons everywhere: so does the variance
    good = image.flags == 0
    scatter = (image.data - electrons / image.gain)[good]
    assert np.std(scatter * np.sqrt(image.weight[good])) == pytest.approx(1.0, abs=0.1)
    header = run(raw, [])
    assert not header.metrics
    assert not header.preproc_bitflag & Correction.GAIN_FIT
    blind = section(np.full((N, N), np.nan))
    for amp in (0, 1):
        blind.amplifiers[amp].data[:] = 1500.0
    with pytest.raises(AlgorithmError, match="gains cannot be fitted"):
        run(blind, [], gain_match="fit")


def fringes(n):
    y, x = np.mgrid[:n, :n]
    pattern = 0.02 * np.sin(x / 9 + 3 * np.sin(y / 60)) * np.cos(y / 31)
    return (pattern - pattern.mean()).astype(np.float32)


@pytest.mark.parametrize("true", [0.0, 300.0, 1500.0])
def test_scale_of_the_fringes(true):
    rng = np.random.default_rng(8)
    n = 512
    y, x = np.mgrid[:n, :n]
    sky = 2000.0 + 0.2 * x + 60 * np.cos(y / 200)
    for _ in range(150):
        cx, cy = rng.uniform(0, n, 2)
        sky = sky + 10 ** rng.uniform(2, 4.5) * np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / 3.0)
    data = (sky + true * fringes(n) + rng.normal(0, 1, (n, n)) * np.sqrt(sky)).astype(np.float32)
    fit = fit_fringe(data, rng.random((n, n)) < 0.01, fringes(n))
    # noise 45 ADU, pattern 0.01 rms on a third of the pixels: known to some 20 ADU
    assert fit.error < 25
    assert fit.scale == pytest.approx(true, abs=max(5 * fit.error, 0.02 * true))


def test_fringes_are_subtracted_and_their_scale_is_kept(tmp_path):
    rng = np.random.default_rng(9)
    sky = 4000.0
    pattern = fringes(N)
    electrons = sky * (1 + pattern) + rng.normal(0, np.sqrt(sky), (N, N))
    image = run(section(in_adu(electrons)), ["fringe"], {"fringe": write(tmp_path / "fringe.fits", pattern)})
    assert image.metrics["fringe_scale"] * image.gain == pytest.approx(sky, rel=0.03)
    assert image.preproc_bitflag == Correction.OVERSCAN | Correction.FRINGE
    left = float((image.data * pattern).sum() / (pattern.astype(float) ** 2).sum()) * image.gain
    assert abs(left) < 0.03 * sky
    assert np.std((image.data - sky / image.gain) * np.sqrt(image.weight)) == pytest.approx(1.0, abs=0.02)


# --- saturation -----------------------------------------------------------------------------------------------------

def test_bleeds_are_told_from_cores():
    near = np.zeros((200, 200), bool)
    y, x = np.mgrid[:200, :200]
    core = np.hypot(x - 60, y - 100) < 8
    near |= core
    near[40:170, 59:62] = True
    near |= np.hypot(x - 140, y - 50) < 10  # saturated, but round
    near[150:190, 140] = True               # a bright column without a saturated pixel
    saturated = near & ~(np.arange(200)[:, None] >= 150)
    found = find_bleeds(saturated, near)
    expected = np.zeros_like(near)
    expected[40:88, 59:62] = expected[113:170, 59:62] = True
    # to a row at either end
    assert (found & ~expected).sum() <= 6
    assert (expected & ~found).sum() <= 6
    assert (find_bleeds(saturated.T, near.T, axis=1) == found.T).all()
    assert not find_bleeds(saturated, near, axis=1).any(), "nothing is spilt along rows"


@pytest.mark.parametrize("axis", [0, 1])
def test_bleeds_are_flagged_along_the_axis_of_the_readout(axis):
    adu = np.full((N, N), 100.0)
    trail = (slice(30, 100), slice(62, 64))
    adu[trail if axis == 0 else trail[::-1]] = 52000.0  # near, but below saturation at 60000 with the pedestal
    adu[60:66, 60:66] = 59000.0
    image = run(section(adu, bleed_axis=axis), [])
    bleed = (image.flags & PixelFlag.BLEED) != 0
    bleed = bleed if axis == 0 else bleed.T
    assert bleed[30:57, 62:64].all()
    assert bleed[70:100, 62:64].all()
    assert not bleed[:, :60].any()
    assert not bleed[104:].any()
    assert (image.flags[60:66, 60:66] & PixelFlag.SATURATED).all()
    assert image.metrics["bleed_pixels"] > 100
    off = run(section(adu, bleed_axis=axis), [], bleeds=False, saturation_grow=0)
    assert not (off.flags & PixelFlag.BLEED).any()
    assert (off.flags & PixelFlag.SATURATED != 0).sum() == 36


def test_each_amplifier_saturates_at_its_own_level():
    adu = np.full((N, N), 100.0)
    adu[50, 50] = adu[50, 200] = 30000.0
    raw = section(adu)
    raw.amplifiers[0].saturation_adu = 25000.0
    flags = run(raw, []).flags
    assert flags[50, 50] & PixelFlag.SATURATED
    assert not flags[50, 200]
