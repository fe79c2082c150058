"""From what an operator asks to the frames to be made: exposures, sections, filters, corrections, dates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seechange_mpi.calibration.make import CORRECTED_BY
from seechange_mpi.calibration.select import (
    Selected,
    expand,
    exposure_type,
    mjd_of_text,
    night_of,
    night_start,
    select,
    wanted_types,
)
from seechange_mpi.calibration.task import CalibrationTask
from seechange_mpi.config.resolve import Config
from seechange_mpi.instruments.camera import Camera, load_camera
from seechange_mpi.model.calibration import FILTER_KINDS, FLAT_TYPES, MADE_KINDS
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.pipeline.top_level import Pipeline

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection


@dataclass(frozen=True, slots=True)
class MakeOptions:
    """What ``calib make`` was told."""

    kind: str
    exposures: tuple[str, ...] = ()
    nights: tuple[str, ...] = ()
    camera: str | None = None
    flat_type: str = "dome"
    filters: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    calibrator_set: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    any_type: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Frames to make, and the exposures they are made of."""

    tasks: tuple[CalibrationTask, ...]
    selected: Selected


def plan_frames(config: Config, conn: Connection, options: MakeOptions) -> Plan:
    """Find the exposures, and what every section needs.

    Raises
    ------
    ConfigError
        An option has no meaning.
    BadInput
        There are no such exposures.
    """
    settings = config.settings
    camera = load_camera(options.camera or settings.camera.name)
    _check(options, camera)
    chosen = settings.calibrators
    patterns = options.exposures or ((chosen.raw,) if chosen.raw else ())
    if not patterns:
        raise ConfigError("calib make: name exposures (files, patterns, folders), or set calibrators.raw")
    nights = [night_of(n, chosen.night_start_utc_h) for n in options.nights]
    flat_type = options.flat_type if options.kind == "flat" else ""
    found = select(expand(patterns), camera, options.kind, flat_type=flat_type, nights=nights, filters=options.filters,
                   any_type=options.any_type)
    if not found.exposures:
        raise _nothing(options, patterns, found)
    calibrator_set = options.calibrator_set or ("nightly" if len(nights) == 1 else "general")
    pars = Pipeline.from_settings(config.steps()).preprocessor.pars
    overscan = (pars.overscan_method, pars.overscan_trim, pars.overscan_knots)
    tasks = []
    for band, sections, exposures in _groups(camera, options, found.exposures):
        start, end = _validity(options, calibrator_set, exposures, chosen.night_start_utc_h)
        frames = _correcting(config, conn, camera, options.kind, exposures[0], sections, band)
        types = {e.identifier: exposure_type(e, camera) for e in exposures}
        tasks += [CalibrationTask(
            options.kind, camera, s, band, flat_type, exposures, types, frames[s],
            settings.calibration.model_dump(), calibrator_set, start, end,
            str(_folder(config, chosen.folder, "calibrators")),
            str(_folder(config, settings.calibration.scratch, "scratch")), overscan) for s in sections]
    return Plan(tuple(tasks), found)


def _folder(config: Config, given: str | None, name: str) -> str:
    return os.path.abspath(os.path.expanduser(given)) if given else str(config.root / name)


def _check(options: MakeOptions, camera: Camera) -> None:
    if options.kind not in MADE_KINDS:
        raise ConfigError(f"calib make {options.kind}: expected one of {', '.join(MADE_KINDS)}; frames of other kinds "
                          "are registered: seechange-mpi calib add")
    lights = FLAT_TYPES[:3]
    if options.kind == "flat" and options.flat_type not in lights:
        raise ConfigError(f"--type {options.flat_type}: expected one of {', '.join(lights)}")
    if options.calibrator_set not in (None, "nightly", "general"):
        raise ConfigError(f"--as {options.calibrator_set}: expected nightly or general")
    if camera.reduced:
        raise ConfigError(f"camera {camera.name} is for reduced images; calibration frames are made of raw exposures")
    for s in options.sections:
        camera.section(s)


def _nothing(options: MakeOptions, patterns: Sequence[str], found: Selected) -> BadInput:
    where = patterns[0] + (f" and {len(patterns) - 1} more" if len(patterns) > 1 else "")
    wanted = " or ".join(wanted_types(options.kind, options.flat_type))
    left_out = f"; the first of {len(found.rejected)} that were left out: {found.rejected[0].reason}" \
        if found.rejected else ""
    nights = f" of the night {', '.join(options.nights)}" if options.nights else ""
    bands = f" in filter {', '.join(options.filters)}" if options.filters and options.kind in FILTER_KINDS else ""
    return BadInput(where, f"exposures for a {options.kind} frame", f"some of type {wanted}{nights}{bands} "
                    "(OBSTYPE in the header, or the camera's header: obstype; --any-type takes all)",
                    f"none among {found.others + len(found.rejected)} files{left_out}")


def _groups(camera: Camera, options: MakeOptions, exposures: tuple[ExposureInfo, ...]
            ) -> list[tuple[str, list[str], tuple[ExposureInfo, ...]]]:
    """(filter, sections, exposures) of the frames to make; filter "" where it has no meaning."""
    sections = [s for s in camera.section_ids if not options.sections or s in options.sections]
    if options.kind not in FILTER_KINDS:
        return [("", sections, exposures)]
    out: dict[str, tuple[list[str], tuple[ExposureInfo, ...]]] = {}
    for s in sections:
        own = camera.section(s).filter
        for band in (own,) if own else dict.fromkeys(e.filter for e in exposures):
            if options.filters and band not in options.filters:
                continue
            of_band = exposures if own else tuple(e for e in exposures if e.filter == band)
            out.setdefault(band, ([], of_band))[0].append(s)
    return [(band, ids, of_band) for band, (ids, of_band) in sorted(out.items())]


def _validity(options: MakeOptions, calibrator_set: str, exposures: Sequence[ExposureInfo],
              start_utc_h: float) -> tuple[float | None, float | None]:
    start, end = mjd_of_text(options.valid_from), mjd_of_text(options.valid_to)
    if start is None:
        start = night_start(exposures[0].mjd, start_utc_h)
    if end is None and calibrator_set == "nightly":
        end = night_start(exposures[-1].mjd, start_utc_h) + 1.0
    if end is not None and end <= start:
        raise ConfigError(f"the validity must end (mjd {end:g}) after it begins (mjd {start:g})")
    return start, end


def _correcting(config: Config, conn: Connection, camera: Camera, kind: str, exposure: ExposureInfo,
                sections: Sequence[str], band: str) -> dict[str, dict[str, str]]:
    """Section -> kind -> path of the frames that correct the inputs, as far as there are any."""
    from seechange_mpi.db.calibrators import choose_frames

    chosen = config.settings.calibrators
    filters = {s: band or camera.section(s).filter or exposure.filter for s in sections}
    # the sky's own fringes are in a sky flat: fringe frames are made with another, if there is one
    flat_types = sorted(chosen.flat_types, key=lambda t: t == "sky") if kind == "fringe" else chosen.flat_types
    frames = choose_frames(conn, camera, exposure, filters, config.settings.paths.calibration, source=chosen.source,
                           sets=chosen.set, flat_types=flat_types, kinds=CORRECTED_BY[kind])
    return {s: {k: p for k, p in f.items() if os.path.isfile(p)} for s, f in frames.items()}
