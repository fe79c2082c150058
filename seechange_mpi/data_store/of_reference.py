"""The products of a section's reference."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from seechange_mpi.model.products import PSF, Background, Image, SourceList, WorldCoordinates, ZeroPoint
from seechange_mpi.pipeline.section_store import ProvenanceLike, SectionStore


class ReferenceProducts(SectionStore):
    """Getters of the products of the reference; `provenance` is that of the product itself."""

    @abstractmethod
    def _reference_store(self, provenance: ProvenanceLike | None = None) -> SectionStore | None:
        """The reference of a difference (chosen by the subtraction's provenance), as a store of its own."""

    def _of_reference(self, name: str, provenance: ProvenanceLike | None) -> Any:
        store = self._reference_store()
        return None if store is None else store.get(name, provenance)

    def get_ref_image(self, provenance: ProvenanceLike | None = None) -> Image | None:
        """Return the reference's image."""
        return self._of_reference("image", provenance)  # type: ignore[no-any-return]

    def get_ref_sources(self, provenance: ProvenanceLike | None = None) -> SourceList | None:
        """Return the reference's sources."""
        return self._of_reference("sources", provenance)  # type: ignore[no-any-return]

    def get_ref_psf(self, provenance: ProvenanceLike | None = None) -> PSF | None:
        """Return the reference's PSF."""
        return self._of_reference("psf", provenance)  # type: ignore[no-any-return]

    def get_ref_background(self, provenance: ProvenanceLike | None = None) -> Background | None:
        """Return the reference's background."""
        return self._of_reference("background", provenance)  # type: ignore[no-any-return]

    def get_ref_wcs(self, provenance: ProvenanceLike | None = None) -> WorldCoordinates | None:
        """Return the reference's astrometric solution."""
        return self._of_reference("wcs", provenance)  # type: ignore[no-any-return]

    def get_ref_zp(self, provenance: ProvenanceLike | None = None) -> ZeroPoint | None:
        """Return the reference's zero point."""
        return self._of_reference("zp", provenance)  # type: ignore[no-any-return]
