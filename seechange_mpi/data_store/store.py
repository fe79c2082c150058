"""The `DataStore`.

>>> ds = DataStore(exposure_id="tiny_20251124_022400_r", section_id="T1")
>>> ds.get_cutouts().new.shape
(18, 41, 41)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from seechange_mpi.config.resolve import Config
from seechange_mpi.data_store import trees
from seechange_mpi.data_store.holdings import (
    Holding,
    Opener,
    bundles_in,
    choose_section,
    find_image,
    holdings_of,
    local_file,
    same_id,
)
from seechange_mpi.data_store.of_reference import ReferenceProducts
from seechange_mpi.io.bundle import exposure_folder, read_bundle, read_section
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.exposure import identifier_of
from seechange_mpi.model.products import Reference
from seechange_mpi.model.provenance import ProvenanceRecord
from seechange_mpi.model.task import ReferenceLink, SectionReport
from seechange_mpi.pipeline.section_store import (
    PROCESS_OF_PRODUCT,
    ProvenanceLike,
    SectionStore,
    parts_through,
    provenance_id_of,
)

if TYPE_CHECKING:
    from seechange_mpi.db.engine import Connection

_ORDER = ("preprocessing", "extraction", "subtraction", "detection", "cutting", "measuring", "scoring")


class DataStore(ReferenceProducts):
    """Products of one section: from memory, else from bundles, which the database knows or which are named.

    ``get_…(provenance=None)`` returns the product of the given provenance (its id, the first six letters or more of
    it, a `ProvenanceRecord`, or a mapping), else of the one in `prov_tree`, else the newest; None where there is none.
    Products are read when they are first asked for.
    What was made in a test comes after everything real.

    Parameters
    ----------
    exposure_id : identifier of the exposure, its id in the database (str or UUID), or the path of its raw file.
    section_id : name of the section, or its number where only one section has it; may be left out where there is
        only one section.
    image_id : in place of both, id of an image or difference image in the database (str or UUID).
    config : Config or path of a configuration file; default: that of this process (``SEECHANGE_CONFIG``).
    conn : open connection to use in place of the configured database.
    opener : called with the path of a bundle or shard as it was written, returns one that can be read.

    Attributes
    ----------
    prov_tree : process -> provenance (id or record), see `load_prov_tree`.
    holdings : what the bundles hold of the section, the newest first, those of tests last.

    Raises
    ------
    BadInput
        Exposure, section or image are not known, or no bundle can be read.
    ConfigError
        It is not said what is wanted.
    TransientError
        The database does not answer.
    """

    def __init__(self, exposure_id: str | UUID | Path | None = None, section_id: str | int | None = None, *,
                 image_id: str | UUID | None = None, config: Config | str | Path | None = None,
                 conn: Connection | None = None, opener: Opener = local_file) -> None:
        if (exposure_id is None) == (image_id is None):
            raise ConfigError("a DataStore needs an exposure_id (with section_id), or else an image_id")
        self._begin(config, conn, opener)
        if self._config is not None or conn is None:
            self._use_archive()
        tree: dict[str, str | ProvenanceRecord] = {}
        with self._session() as opened:
            if image_id is not None:
                from seechange_mpi.db.holdings import find_image as find

                image = find(opened, image_id)
                if image is None:
                    raise BadInput(self._where(), "image", f"image {image_id}", "no image with this id")
                exposure_id, section_id = image.exposure, image.section_id
                tree = {image.process: image.provenance_id}
            found, problem = self._find(opened, str(exposure_id))
        section = choose_section((h.section_id for h in found), section_id, problem or str(found[0].path))
        self._take([h for h in found if h.section_id == section], section)
        self.prov_tree.update(tree)

    def _begin(self, config: Config | str | Path | None, conn: Connection | None, opener: Opener) -> None:
        self._config = Config(config) if isinstance(config, str | Path) else config
        self._conn, self._opener = conn, opener
        self.prov_tree: dict[str, str | ProvenanceRecord] = {}
        self.holdings: list[Holding] = []
        self._read: dict[tuple[str, Path], Any] = {}
        self._references: dict[str, DataStore] = {}
        self._only: Path | None = None

    def _use_archive(self) -> None:
        """Have missing files brought back from the configured archive in this process, unless it does so already."""
        from seechange_mpi.io.archive_retriever import use_configured_archive

        use_configured_archive(self.config)

    @classmethod
    def from_bundle(cls, path: str | Path, section_id: str | int | None = None, *,
                    config: Config | str | Path | None = None, conn: Connection | None = None,
                    opener: Opener = local_file) -> DataStore:
        """Open a section of one bundle. No database is needed, nor any configuration.

        References are looked for in the bundle folders beside its own, unless `config` or `conn` is given.
        """
        new = cls.__new__(cls)
        new._begin(config, conn, opener)
        new._only = Path(path).absolute()
        if new._config is not None:
            new._use_archive()
        found = holdings_of(opener(new._only))
        section = choose_section((h.section_id for h in found), section_id, str(path))
        new._take([h for h in found if h.section_id == section], section)
        return new

    def _take(self, holdings: list[Holding], section: str) -> None:
        self.holdings = holdings
        SectionStore.__init__(self, read_bundle(holdings[0].path).exposure, section)

    @property
    def config(self) -> Config:
        """The configuration that says where database and bundles are."""
        return self._config if self._config is not None else Config.get()

    def _where(self) -> str:
        from seechange_mpi.config.resolve import redact

        return "the database" if self._conn is not None else f"database {redact(self.config.settings.database.url)}"

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        if self._conn is not None:
            with self._conn.transaction():
                yield self._conn
            return
        from seechange_mpi.db.engine import session

        with session(self.config) as conn:
            yield conn

    def _find(self, conn: Connection, name: str) -> tuple[list[Holding], str]:
        """Holdings of all sections of an exposure, and the name of the place for messages."""
        from seechange_mpi.db.holdings import find_exposure

        stored = find_exposure(conn, name) or find_exposure(conn, identifier_of(name))
        if stored is None:
            raise BadInput(self._where(), "exposure", name, "no exposure with this id or identifier; commit its bundle "
                           "(seechange-mpi db commit BUNDLE) or open that alone: DataStore.from_bundle(BUNDLE)")
        beside = [] if self._conn is not None else [exposure_folder(self.config.bundles, stored.identifier)]
        found: list[Holding] = []
        problems: list[BadInput] = []
        paths = dict.fromkeys([*stored.bundles, *(p for b in stored.bundles for p in bundles_in(b.parent)),
                               *(p for folder in beside for p in bundles_in(folder))])
        for path in paths:
            try:
                found += [h for h in holdings_of(self._opener(path)) if h.exposure == stored.identifier]
            except BadInput as err:
                problems.append(err)
        if not found:
            raise problems[0] if problems else BadInput(
                self._where(), f"exposure {stored.identifier}", "a bundle of it", "none in the database or "
                f"{', '.join(map(str, beside)) or 'beside it'}")

        def committed(h: Holding) -> int:
            keys = ("image", "extraction", h.image_hash), ("sub", "scoring", h.sub_hash)
            return sum(stored.hashes.get((h.section_id, part, h.provenance_ids.get(process, ""))) == hashed
                       for part, process, hashed in keys)

        found.sort(key=lambda h: (not h.is_testing, committed(h) > 0, h.created), reverse=True)
        return found, f"exposure {stored.identifier}"

    def _wanted(self, process: str, provenance: ProvenanceLike | None) -> str | None:
        if provenance is None:
            provenance = self.prov_tree.get(process)
        return None if provenance is None else provenance_id_of(provenance, process)

    def _holding(self, name: str, wanted: str | None) -> Holding | None:
        process = PROCESS_OF_PRODUCT[name]
        return next((h for h in self.holdings if h.has(name, process, wanted)), None)

    def get(self, name: str, provenance: ProvenanceLike | None = None) -> Any:
        """Return a product by its name (an attribute of `SectionProducts`), or None.

        Raises
        ------
        BadInput
            The file that holds it is damaged or gone.
        """
        in_memory = self.has(name)
        process = PROCESS_OF_PRODUCT[name]
        wanted = self._wanted(process, provenance)
        if in_memory and (wanted is None or same_id(self.provenance_ids.get(process, ""), wanted)):
            return getattr(self.products, name)
        holding = self._holding(name, wanted)
        return None if holding is None else self._product(holding, name)

    def _product(self, holding: Holding, name: str) -> Any:
        key = name, holding.path
        if key not in self._read:
            if holding.shard is not None and name in ("image", "sub", "cutouts"):
                self._opener(holding.shard)
            stored = read_section(holding.path, holding.section_id, pixels=True, parts=(name,))
            self._read[key] = getattr(stored.products, name)
        return self._read[key]

    def forget(self) -> None:
        """Give back the memory of everything that was read; it is read again when it is asked for."""
        self._read.clear()
        self._references.clear()

    def load(self, through: str) -> None:
        """Bring all products up to and including a step into memory, as a pipeline wants them that goes on from there.

        Raises
        ------
        ConfigError
            One of them is nowhere.
        """
        for name in parts_through(through):
            product = self.get(name)
            if product is not None:
                self.set(name, product)
        super().load(through)
        holding = self._holding(parts_through(through)[-1], self._wanted("extraction", None))
        if holding is not None and self.shape == (0, 0):
            self.shape = read_section(holding.path, self.section_id, parts=()).shape

    def get_report(self, provenance: ProvenanceLike | None = None) -> SectionReport | None:
        """Return how the section went: now, else as the bundle says that holds the last product of the tree.

        Parameters
        ----------
        provenance : that of the last process reached.
        """
        if self.report is not None and provenance is None:
            return self.report
        last = self.prov_tree if provenance is None else provenance
        if isinstance(last, ProvenanceRecord):
            last = last.id
        wanted = last if isinstance(last, str) else next(
            (provenance_id_of(last, p) for p in reversed(_ORDER) if p in last), None)
        for h in self.holdings:
            if wanted is None or any(same_id(i, wanted) for i in h.provenance_ids.values()):
                return read_section(h.path, self.section_id, parts=()).report
        return None

    def _reference_store(self, provenance: ProvenanceLike | None = None) -> DataStore | None:
        """The reference of a difference (chosen by the subtraction's provenance), as a store of its own."""
        holding = self._holding("sub", self._wanted("subtraction", provenance))
        if holding is None and provenance is None:  # a reference was there, but the subtraction failed
            holding = next((h for h in self.holdings if "reference" in h.inputs), None)
        image_id = holding.inputs.get("reference") if holding is not None else None
        if holding is None or image_id is None:
            return None
        upstream: frozenset[str] = frozenset()
        for record in read_bundle(holding.path).provenances:
            if record.id == holding.provenance_ids.get("subtraction"):
                upstream = frozenset(record.upstream_ids)
        key = f"{image_id}|{sorted(upstream)}"
        if key not in self._references:
            self._references[key] = self._open_reference(image_id, upstream)
        return self._references[key]

    def _open_reference(self, image_id: str, upstream: frozenset[str]) -> DataStore:
        if self._only is not None and self._config is None and self._conn is None:
            store = DataStore.__new__(DataStore)
            store._begin(None, None, self._opener)
            found = find_image([self._only.parent.parent], image_id)
            if not found:
                raise BadInput(self._only, "reference", f"a bundle with image {image_id} below "
                               f"{self._only.parent.parent}", "none; give config= to look into the database")
            store._take(sorted(found, key=lambda h: h.created, reverse=True), found[0].section_id)
        else:
            store = DataStore(image_id=image_id, config=self._config, conn=self._conn, opener=self._opener)
        fitting = [h for h in store.holdings
                   if not upstream or {h.provenance_ids.get(p) for p in _ORDER[:2]} <= upstream]
        if not fitting:
            raise BadInput(store.holdings[0].path, "reference", f"provenances {', '.join(sorted(upstream))}",
                           ", ".join(h.provenance_ids.get("extraction", "none") for h in store.holdings))
        store.prov_tree = {p: fitting[0].provenance_ids[p] for p in _ORDER[:2]}
        return store

    def reference_link(self, provenance: ProvenanceLike | None = None) -> ReferenceLink | None:
        """Return where the reference of the difference lies; None if there is no difference."""
        store = self._reference_store(provenance)
        if store is None:
            return None
        h = store._holding("zp", store._wanted("extraction", None))
        if h is None:
            raise BadInput(store.holdings[0].path, f"reference section {store.section_id}", "a calibrated image",
                           "none")
        image = store._product(h, "image")
        return ReferenceLink(str(h.path), h.section_id, h.image_id, h.exposure, image.filter,
                             store.exposure.instrument, {p: h.provenance_ids[p] for p in _ORDER[:2]})

    def get_reference(self, provenance: ProvenanceLike | None = None) -> Reference | None:
        """Return what was subtracted, with its products; `provenance` is that of the subtraction."""
        from seechange_mpi.pipeline.section import load_reference

        in_memory = super().get_reference(provenance)
        if in_memory is not None:
            return in_memory
        link = self.reference_link(provenance)
        return None if link is None else load_reference(link)

    def load_prov_tree(self, *, tag: str | None = None, bundle: str | Path | None = None,
                       run: str | Path | None = None) -> Mapping[str, ProvenanceRecord]:
        """Choose the provenances of all products: a tag's, a bundle's, or of what a run has made of the exposure.

        Raises
        ------
        ConfigError
            There is no such tag or run, or not one of the three is given.
        BadInput
            The bundle is unreadable, or the run has none of this exposure.
        """
        if sum(x is not None for x in (tag, bundle, run)) != 1:
            raise ConfigError("load_prov_tree takes one of: tag, bundle, run")
        if tag is not None:
            with self._session() as conn:
                tree = trees.tree_of_tag(conn, tag)
        else:
            path = Path(bundle) if bundle is not None else trees.bundle_of_run(
                str(run), self.exposure.identifier, self.config)
            tree = trees.tree_of_bundle(self._opener(path), self.section_id)
        self.prov_tree = {**tree}
        return tree

    def get_provenance(self, process: str, pars_dict: dict[str, Any] | None = None) -> ProvenanceRecord | None:
        """Return the provenance of a process: of the tree, else of the newest product; None where there is none.

        Parameters
        ----------
        pars_dict : other parameters; then the provenance that the process would have with them, upstream of it what
            it is now.
        """
        if pars_dict is not None:
            return trees.derive(process, pars_dict, self._records())
        return self._records().get(process)

    def _records(self) -> dict[str, ProvenanceRecord]:
        """Process -> record of the tree and, where it has none, of the newest products."""
        tree: dict[str, ProvenanceRecord] = {}
        ids: dict[str, str] = {}
        for process in ("acquire_exposure", *_ORDER):
            wanted = self._wanted(process, None)
            given = self.prov_tree.get(process)
            if isinstance(given, ProvenanceRecord):
                tree[process] = given
                continue
            newest = (h.provenance_ids[process] for h in self.holdings if process in h.provenance_ids and (
                wanted is None or same_id(h.provenance_ids[process], wanted)))
            id_ = next(newest, None)
            if id_ is not None:
                ids[process] = id_
        for path in _unique(h.path for h in self.holdings):
            with suppress(BadInput):
                for record in read_bundle(path).provenances:
                    if ids.get(record.process) == record.id:
                        tree[record.process] = record
        return tree


def _unique(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))
