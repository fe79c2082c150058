"""The invented detector: flat, bias, bad columns, readout into the camera's raw format."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from seechange_mpi.instruments.camera import Amplifier, Camera, Hdu, Section, parse_fits_section
from seechange_mpi.model.errors import ConfigError
from seechange_mpi.simulate.artefacts import bend, dark_rate, fringe_pattern
from seechange_mpi.simulate.parameters import SimulationParameters

F64 = npt.NDArray[np.float64]
Frames = dict[Hdu, tuple[npt.NDArray[np.uint16], fits.Header]]
"""HDU -> raw pixels [ADU] and header."""
Part = tuple[slice, slice]


@dataclass
class Detector:
    """Fixed properties of one section.

    Attributes
    ----------
    flat : (ny, nx), relative response;  bias : (ny, nx) [ADU], structure left after overscan subtraction.
    bad : (ny, nx) bool, dead columns;  gains, read_noise : per amplifier.
    dark : (ny, nx) [e-/s];  fringe : (ny, nx), in units of the sky.
    curvature : per amplifier, c of linear = counts (1 + c counts);  crosstalk : victim, source, coefficient.
    """

    section: Section
    shape: tuple[int, int]
    flat: F64
    bias: F64
    bad: npt.NDArray[np.bool_]
    gains: list[float]
    read_noise: list[float]
    saturation: float
    dark: F64
    fringe: F64
    curvature: list[float]
    crosstalk: list[tuple[int, int, float]]

    @property
    def mean_gain(self) -> float:
        """The common gain that preprocessing brings the amplifiers to [e-/ADU]."""
        return float(np.mean(self.gains))


def amplifier_slices(amp: Amplifier, camera: Camera) -> tuple[tuple[slice, slice], tuple[slice, slice] | None]:
    """Data and overscan sections of an amplifier, literal or those of the camera's ``example_header``.

    Raises
    ------
    ConfigError
        The camera takes them from header keywords that have no example, so there is nothing to simulate from.
    """
    data, bias = (t if t is None or t.startswith("[") else camera.example_header.get(t)
                  for t in (amp.data_section, amp.bias_section))
    if not isinstance(data, str) or (amp.bias_section is not None and not isinstance(bias, str)):
        raise ConfigError(f"camera {camera.name}: the simulator needs data_section and bias_section such as "
                          "[1:1024,1:2048], or their keywords in example_header")
    return parse_fits_section(data), parse_fits_section(bias) if isinstance(bias, str) else None


def amplifier_places(section: Section, camera: Camera) -> list[tuple[int, int]]:
    """First pixel (x0, y0) of every amplifier in the trimmed section."""
    if section.amplifiers[0].place == "given":
        return [(a.x0, a.y0) for a in section.amplifiers]
    starts = [(xs.start, ys.start) for (ys, xs), _ in (amplifier_slices(a, camera) for a in section.amplifiers)]
    x0, y0 = min(x for x, _ in starts), min(y for _, y in starts)
    return [(x - x0, y - y0) for x, y in starts]


def _typical(value: float | str | None, camera: Camera, default: float) -> tuple[float, bool]:
    """A number of the camera, and whether it is exact: literal, or else about that of the example or the default."""
    if isinstance(value, str):
        example = camera.example_header.get(value)
        return (float(example), False) if isinstance(example, int | float) else (default, False)
    return (float(value), True) if value is not None else (default, False)


def section_shape(section: Section, camera: Camera) -> tuple[int, int]:
    """Trimmed shape (ny, nx) of a section."""
    ny = nx = 0
    for amp, (x0, y0) in zip(section.amplifiers, amplifier_places(section, camera), strict=True):
        (ys, xs), _ = amplifier_slices(amp, camera)
        ny = max(ny, y0 + ys.stop - ys.start)
        nx = max(nx, x0 + xs.stop - xs.start)
    return ny, nx


def make_detector(section: Section, camera: Camera, pars: SimulationParameters, extent: float,
                  rng: np.random.Generator) -> Detector:
    """Draw the fixed properties of a section."""
    ny, nx = section_shape(section, camera)
    y, x = np.mgrid[:ny, :nx]
    scale = camera.pixel_scale_arcsec
    # (east, north) of a pixel, the inverse of Survey.pixels
    a, b = (1.0 if not section.east_left else -1.0) * (x - (nx - 1) / 2), y - (ny - 1) / 2
    cos, sin = np.cos(np.deg2rad(section.rotation_deg)), np.sin(np.deg2rad(section.rotation_deg))
    east = section.offset_arcsec[0] + scale * (a * cos + b * sin)
    north = section.offset_arcsec[1] + scale * (b * cos - a * sin)
    flat = (1 - 0.08 * (east**2 + north**2) / extent**2) * (1 + 0.01 * rng.standard_normal((ny, nx)))
    bias = (2.0 * np.sin(2 * np.pi * y / 97.0) + 1.5 * np.cos(2 * np.pi * x / 61.0)
            + 0.5 * rng.standard_normal((ny, nx)))
    bad = np.zeros((ny, nx), bool)
    gains: list[float] = []
    noise: list[float] = []
    saturation: list[float] = []
    for amp, (x0, y0) in zip(section.amplifiers, amplifier_places(section, camera), strict=True):
        (_, xs), _ = amplifier_slices(amp, camera)
        for out, value, default, spread in ((gains, amp.gain, camera.gain or 1.7, 0.07),
                                            (noise, amp.read_noise, camera.read_noise or 6.0, 0.05)):
            number, exact = _typical(value, camera, default)
            out.append(number if exact else float(number * rng.uniform(1 - spread, 1 + spread)))
        saturation.append(_typical(amp.saturation, camera, camera.saturation or 60000.0)[0])
        width = xs.stop - xs.start
        for column in rng.integers(5, width - 5, pars.bad_columns_per_amplifier):
            top = int(rng.integers(ny // 4, ny))
            bad[y0: y0 + top, x0 + column] = True
    full = min(saturation)
    own = np.random.default_rng([pars.seed, 5, [s.id for s in camera.sections].index(section.id)])
    number = len(gains)
    return Detector(
        section, (ny, nx), flat, bias, bad, gains, noise, full, dark_rate((ny, nx), pars.dark_e_per_s, own),
        pars.fringe_amplitude * fringe_pattern((ny, nx), own),
        [pars.nonlinearity / full * own.uniform(0.7, 1.3) for _ in gains],
        [(v, s, pars.crosstalk * own.uniform(0.5, 1.5)) for v in range(number) for s in range(number)
         if v != s and pars.crosstalk > 0])


def backwards(amp: Amplifier, camera: Camera) -> tuple[bool, bool]:
    """Whether an amplifier is read from the top, and from the right, of the trimmed section.

    Raises
    ------
    ConfigError
        The camera takes the order from a header keyword that has no example.
    """
    text = amp.read_order or "[1:1,1:1]"
    text = text if text.startswith("[") else str(camera.example_header.get(text, text))
    limits = [int(n) for n in re.findall(r"\d+", text)]
    if not text.startswith("[") or len(limits) != 4:
        raise ConfigError(f"the simulator needs a literal read_order such as [1024:1,1:2048], or its keyword in "
                          f"example_header; found {text}")
    return (limits[3] < limits[2]) != amp.flip_y, (limits[1] < limits[0]) != amp.flip_x


def _add_crosstalk(detector: Detector, camera: Camera, values: list[F64]) -> None:
    """Add to each amplifier's counts what it sees of the others', in the order of readout."""
    clean = [v.copy() for v in values]
    for victim, source, coefficient in detector.crosstalk:
        orders = [backwards(detector.section.amplifiers[k], camera) for k in (victim, source)]
        turn = tuple(a for a in (0, 1) if orders[0][a] != orders[1][a])
        values[victim] += coefficient * np.flip(clean[source], turn)


def _counts(detector: Detector, camera: Camera, electrons: F64, layout: list[tuple[Part, Part | None]],
            rng: np.random.Generator) -> tuple[list[F64], list[F64]]:
    """Return the counts above the pedestal of each amplifier's pixels, crosstalk included, and of its overscan."""
    values, quiet = [], []
    for k, ((x0, y0), (data, over)) in enumerate(zip(amplifier_places(detector.section, camera), layout, strict=True)):
        gain, noise = detector.gains[k], detector.read_noise[k]
        rows, cols = data[0].stop - data[0].start, data[1].stop - data[1].start
        part = (slice(y0, y0 + rows), slice(x0, x0 + cols))
        linear = (electrons[part] + noise * rng.standard_normal((rows, cols))) / gain
        value = bend(linear, detector.curvature[k]) + detector.bias[part]
        value[detector.bad[part]] = 5.0
        values.append(value)
        n_over = 0 if over is None else over[1].stop - over[1].start
        quiet.append(noise / gain * rng.standard_normal((rows, n_over)))
    _add_crosstalk(detector, camera, values)
    return values, quiet


def read_out(detector: Detector, electrons: F64, camera: Camera, pars: SimulationParameters, epoch: int,
             rng: np.random.Generator) -> Frames:
    """Turn collected electrons into the raw frames of the section, overscan included: one for each of its HDUs."""
    section = detector.section
    layout = [amplifier_slices(a, camera) for a in section.amplifiers]
    hdus = [section.hdu if a.hdu is None else a.hdu for a in section.amplifiers]
    raws: dict[Hdu, F64] = {}
    for hdu in dict.fromkeys(hdus):
        parts = [part for h, pair in zip(hdus, layout, strict=True) if h == hdu for part in pair if part is not None]
        raws[hdu] = np.zeros((max(p[0].stop for p in parts), max(p[1].stop for p in parts)))
    headers = {hdu: fits.Header(camera.example_header) for hdu in raws}
    values, quiet = _counts(detector, camera, electrons, layout, rng)
    for k, (amp, hdu, (data, over)) in enumerate(zip(section.amplifiers, hdus, layout, strict=True)):
        gain, noise = detector.gains[k], detector.read_noise[k]
        rows = data[0].stop - data[0].start
        level = pars.bias_level_adu + 15.0 * k + 5.0 * epoch
        drift = level + 3.0 * np.sin(np.arange(rows) / 180.0 + epoch)
        value = values[k] + drift[:, None]
        raws[hdu][data] = np.flip(value, tuple(a for a, f in ((0, amp.flip_y), (1, amp.flip_x)) if f))
        if over is not None:
            bias = drift[:, None] + quiet[k]
            raws[hdu][over] = np.flip(bias, 0) if amp.flip_y else bias
        for keyword, number in ((amp.gain, gain), (amp.read_noise, noise)):
            if isinstance(keyword, str):
                headers[hdu][keyword] = round(number, 5)
    return {hdu: (np.clip(np.round(raw), 0, detector.saturation).astype(np.uint16), headers[hdu])
            for hdu, raw in raws.items()}


def arrange(primary: fits.Header, frames: Frames) -> fits.HDUList:
    """Put the frames where the camera looks for them: numbered HDUs at their numbers, named ones after them."""
    numbered = {h: f for h, f in frames.items() if isinstance(h, int)}
    if 0 in numbered:
        raw, header = numbered[0]
        hdus = [fits.PrimaryHDU(raw, primary + header)]
    else:
        hdus = [fits.PrimaryHDU(header=primary)]
    for number in range(1, max(numbered, default=0) + 1):
        hdus.append(fits.ImageHDU(*numbered.get(number, (None, None))))
    for hdu, (raw, header) in frames.items():
        if isinstance(hdu, str):
            hdus.append(fits.ImageHDU(raw, header, name=hdu))
        elif isinstance(hdu, tuple):
            hdus.append(fits.ImageHDU(raw, header, name=hdu[0], ver=hdu[1]))
    return fits.HDUList(hdus)
