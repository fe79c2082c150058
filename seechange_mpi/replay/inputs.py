"""What a stored section was made of, found again: raw file, camera, parameters, calibration, catalogue, reference.

Everything is checked against what the bundle says of it before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seechange_mpi.config.resolve import Config
from seechange_mpi.config.settings import STEP_SECTIONS
from seechange_mpi.data_store import DataStore
from seechange_mpi.instruments.camera import Camera, load_camera
from seechange_mpi.io.bundle import BundleInfo, read_bundle, read_section
from seechange_mpi.io.raw import section_footprints
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.products import StoredSection
from seechange_mpi.model.provenance import ProvenanceRecord, ids_of_tests
from seechange_mpi.model.provenance_diff import Tree, differences
from seechange_mpi.model.task import PROCESS_OF_STEP, STEPS, ReferenceLink, SectionTask
from seechange_mpi.mpi.catalogs import cache_folder, catalog_spec, exposure_catalog
from seechange_mpi.pipeline.inputs import file_identity, identify, inputs_of_step, raw_digest
from seechange_mpi.pipeline.top_level import Pipeline
from seechange_mpi.pipeline.tree import camera_digest, make_tree


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie that are not where they were.

    Attributes
    ----------
    raw : the raw exposure;  camera : name or YAML file;  calibration : folder of calibration frames;
    catalog : star catalogue.
    config : names a database that is asked for calibration frames and the reference; None: none is.
    """

    raw: Path | None = None
    camera: str | None = None
    calibration: Path | None = None
    catalog: Path | None = None
    config: Config | None = None


@dataclass(slots=True)
class Recipe:
    """A stored section and everything that makes it again.

    Attributes
    ----------
    task : as the run had it; without a folder for shards. Where the first step is a later one, it goes on from the
        products that it is given.
    steps : the steps to be rerun.
    unknown : what the bundle, written by an older version, does not say and was not checked.
    scratch : folder that must stay while the task is run; None: none.
    """

    stored: StoredSection
    info: BundleInfo
    task: SectionTask
    pipeline: Pipeline
    steps: tuple[str, ...]
    unknown: list[str] = field(default_factory=list)
    scratch: TemporaryDirectory[str] | None = None


def recipe_of(bundle: Path, section_id: str, steps: Sequence[str], places: Places) -> Recipe:
    """Find everything that a section was made of.

    Parameters
    ----------
    steps : those to be rerun; empty: all that the stored section went through.

    Raises
    ------
    BadInput
        The bundle is unreadable, or something is missing or is not what it was.
    ConfigError
        Its configuration means nothing to this version, or a step was never reached.
    """
    info = read_bundle(bundle)
    stored = read_section(bundle, section_id, pixels=True)
    chosen = _steps(bundle, stored, steps)
    values = dict(info.config)
    pipeline = Pipeline.from_settings({k: values[k] for k in STEP_SECTIONS if k in values})
    records = {r.id: r for r in info.provenances}
    camera = _camera(bundle, info, stored, records, places)
    exposure = info.exposure if places.raw is None else replace(info.exposure, path=str(places.raw.absolute()))
    if (STEPS[0] in chosen or _needs_catalog(chosen)) and not Path(exposure.path).is_file():
        raise BadInput(exposure.path, "raw exposure", "the file that was processed", f"no such file{_hint('raw')}")
    wanted = inputs_of_step(stored.inputs, chosen[-1])
    link = _reference(bundle, section_id, places) if "reference" in wanted else None
    tree = make_tree(pipeline, camera, exposure, link.provenance_ids if link else None, exposure.overrides,
                     is_testing=stored.provenance_ids.get("preprocessing") in ids_of_tests(info.provenances))
    _check_provenances(bundle, stored, records, tree, chosen)
    calibration = _calibration(bundle, camera, exposure, stored, values, places) if chosen[0] == STEPS[0] else {}
    scratch: TemporaryDirectory[str] | None = None
    catalog = None
    if "catalog" in wanted and _needs_catalog(chosen):
        if not cache_folder(Config.from_values(values)).is_dir():
            scratch = TemporaryDirectory(prefix="seechange-replay-")
            values["catalog"] = {**values.get("catalog", {}), "cache": scratch.name}
        catalog = _catalog(camera, exposure, values, pipeline, places)
    relative = pipeline.photcalibrator.pars.method == "relative"
    found = identify(calibration, catalog, link, relative_zero_point=relative)
    for name, value in wanted.items():
        checked = name in found or (name == "catalog" and _needs_catalog(chosen)) or (name.startswith(
            "calibration.") and chosen[0] == STEPS[0])
        if checked and found.get(name) != value:
            raise BadInput(bundle, f"input '{name}' of section {section_id}", value,
                           f"{found.get(name, 'none')}{_hint(name)}")
    task = SectionTask(exposure, section_id, camera, pipeline.settings(), {p: r.id for p, r in tree.items()}, "",
                       calibration, catalog, link, None, step_before(chosen[0]), dict(stored.inputs),
                       chosen[0], chosen[-1])
    out = Recipe(stored, info, task, pipeline, chosen, scratch=scratch)
    _check_raw(out)
    _check_reference(out)
    return out


def task_of(data: DataStore, first: str, last: str = STEPS[-1], places: Places | None = None) -> SectionTask:
    """Return a task that redoes the newest stored products of a section from a step on, in memory.

    ``Pipeline(detection={"threshold": 4}).run(task_of(ds, "detection"), ds)`` leaves the new products in ``ds``.

    Raises
    ------
    BadInput, ConfigError
        See `recipe_of`.
    """
    steps = STEPS[STEPS.index(first): STEPS.index(last) + 1]
    return recipe_of(data.holdings[0].path, data.section_id, steps, places or Places()).task


def step_before(step: str) -> str | None:
    """Return the step before another; None: it is the first."""
    k = STEPS.index(step)
    return STEPS[k - 1] if k else None


def _steps(bundle: Path, stored: StoredSection, asked: Sequence[str]) -> tuple[str, ...]:
    """The steps to be rerun, in order."""
    report = stored.report
    reached = STEPS[: STEPS.index(report.completed_step) + 1] if report.completed_step in STEPS else ()
    if report.error_step in STEPS:
        reached = STEPS[: STEPS.index(report.error_step) + 1]
    if not reached:
        raise BadInput(bundle, f"section {stored.section_id}", "a section that was processed",
                       report.error_message or "no step that was completed")
    for step in asked:
        if step not in STEPS:
            raise ConfigError(f"there is no step '{step}'; there are: {', '.join(STEPS)}")
        if step not in reached:
            raise ConfigError(f"section {stored.section_id} of {bundle} never reached {step}: it went through "
                              f"{reached[-1]}")
    return tuple(s for s in reached if not asked or s in asked)


def _camera(bundle: Path, info: BundleInfo, stored: StoredSection, records: dict[str, ProvenanceRecord],
            places: Places) -> Camera:
    """The camera whose definition entered the provenance."""
    record = records.get(stored.provenance_ids.get("preprocessing", "")) or next(
        (r for r in info.provenances if r.process == "preprocessing"), None)
    expected = record.parameters.get("camera") if record is not None else None
    names = [places.camera] if places.camera else [info.config.get("camera", {}).get("name"), info.exposure.instrument]
    seen = []
    for name in filter(None, names):
        try:
            camera = load_camera(str(name))
        except ConfigError as err:
            seen.append(f"{name} ({err})")
            continue
        if expected is None or camera_digest(camera) == expected:
            return camera
        seen.append(f"{name} with {camera_digest(camera)}")
    raise BadInput(bundle, "camera", f"a definition with digest {expected}", f"{'; '.join(seen) or 'none'}; name the "
                   "YAML file that was used: --camera FILE")


def _reference(bundle: Path, section_id: str, places: Places) -> ReferenceLink | None:
    store = DataStore.from_bundle(bundle, section_id)
    try:
        return store.reference_link()
    except BadInput:
        if places.config is None:
            raise
        return DataStore.from_bundle(bundle, section_id, config=places.config).reference_link()


def _check_provenances(bundle: Path, stored: StoredSection, records: dict[str, ProvenanceRecord],
                       tree: dict[str, ProvenanceRecord], steps: tuple[str, ...]) -> None:
    """Refuse where this code, with the stored parameters, would make something else."""
    for process in dict.fromkeys(PROCESS_OF_STEP[s] for s in steps):
        id_ = stored.provenance_ids.get(process)
        if id_ is None or (process in tree and tree[process].id == id_):
            continue
        here = Tree("stored", [records[id_]] if id_ in records else [])
        now = Tree("now", [tree[process]] if process in tree else [])
        told = "; ".join(line.strip() for line in differences(here, now)) or "no such process"
        raise BadInput(bundle, f"provenance of {process} in section {stored.section_id}", id_,
                       f"{tree[process].id if process in tree else 'none'} with this version ({told}); replay it with "
                       "the version that wrote the bundle")


def _calibration(bundle: Path, camera: Camera, exposure: ExposureInfo, stored: StoredSection, values: dict[str, Any],
                 places: Places) -> dict[str, str]:
    """Kind -> path of the frames whose digests the bundle names."""
    folder = str(places.calibration) if places.calibration else values.get("paths", {}).get("calibration")
    band = camera.section(stored.section_id).filter or exposure.filter
    patterns = camera.calibration_paths(stored.section_id, band, folder)
    out: dict[str, str] = {}
    for name, identity in stored.inputs.items():
        if not name.startswith("calibration."):
            continue
        kind = name.removeprefix("calibration.")
        if identity == "missing":
            out[kind] = patterns.get(kind, str(Path(folder or ".") / f"no-{kind}"))
            continue
        path, seen = _frame(identity, patterns.get(kind), folder, places.config)
        if path is None:
            raise BadInput(bundle, f"calibration frame ({kind}) of section {stored.section_id}", identity,
                           f"{seen or 'no such file'}{_hint(name)}")
        out[kind] = path
    return out


def _frame(identity: str, pattern: str | None, folder: str | None, config: Config | None) -> tuple[str | None, str]:
    """Path of the file with this name and digest, or None and what was found in its place."""
    name, _, digest = identity.rpartition(":")
    candidates = [Path(pattern)] if pattern else []
    if folder and Path(folder).is_dir():
        candidates += sorted(Path(folder).rglob(name))
    seen = ""
    for path in candidates:
        with suppress(BadInput):
            found = file_identity(path)
            if found == identity:
                return str(path), ""
            seen = seen or found
    if config is not None:
        from seechange_mpi.db.engine import session

        with session(config) as conn:
            rows: list[Any] = conn.execute("SELECT filepath FROM data_files WHERE starts_with(sha256, %s)",
                                           (digest,)).fetchall()
        for row in rows:
            with suppress(BadInput):
                if file_identity(row[0]).endswith(f":{digest}"):
                    return str(row[0]), ""
    return None, seen


def _needs_catalog(steps: tuple[str, ...]) -> bool:
    return "astrocal" in steps or "photocal" in steps


def _catalog(camera: Camera, exposure: ExposureInfo, values: dict[str, Any], pipeline: Pipeline, places: Places
             ) -> dict[str, Any] | None:
    config = Config.from_values(values)
    spec = catalog_spec(config, str(places.catalog) if places.catalog else None)
    return exposure_catalog(spec, section_footprints(exposure, camera), config, pipeline)


def _check_raw(recipe: Recipe) -> None:
    """Refuse a raw file that is gone, or whose section holds other pixels."""
    if recipe.steps[0] != STEPS[0]:
        return
    task = recipe.task
    expected = recipe.stored.digests.get("raw")
    if expected is None:
        recipe.unknown.append("the pixels of the raw file")
        return
    raw = recipe.pipeline.preprocessor.read(task.exposure, task.camera, task.section_id, task.calibration)
    if raw_digest(raw) != expected:
        raise BadInput(task.exposure.path, f"raw pixels of section {task.section_id}", f"digest {expected}",
                       f"{raw_digest(raw)}{_hint('raw')}")


def _check_reference(recipe: Recipe) -> None:
    """Refuse a reference whose products are no longer those that were subtracted."""
    link, expected = recipe.task.reference, recipe.stored.digests.get("reference")
    if link is None or not set(recipe.steps) & {"subtraction", "measuring"}:
        return
    if expected is None:
        recipe.unknown.append("the products of the reference")
        return
    found = read_section(link.path, link.section_id, parts=()).image_hash
    if found != expected:
        raise BadInput(link.path, f"products of reference section {link.section_id}", f"digest {expected[:16]}",
                       f"{found[:16]}: the reference was processed again with other inputs")


def _hint(name: str) -> str:
    option = {"raw": "--raw FILE", "catalog": "--catalog FILE"}.get(name, "--calibration DIR" if name.startswith(
        "calibration") else "")
    return f"; say where it is with {option}" if option else ""
