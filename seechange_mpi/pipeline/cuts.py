"""How many measurements failed which cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from seechange_mpi.model.products import Table


@dataclass(slots=True)
class CutCounts:
    """Counts of measurements.

    Attributes
    ----------
    measurements : all of them;  good : passed everything;  bad : failed, are in the database and marked;
    deleted : failed a deletion threshold, are not in the database.
    failed : cut -> how many failed it.  only : cut -> how many failed nothing else.
    deleted_by : cut -> how many it keeps out of the database.
    """

    measurements: int = 0
    good: int = 0
    bad: int = 0
    deleted: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    only: Counter[str] = field(default_factory=Counter)
    deleted_by: Counter[str] = field(default_factory=Counter)

    def add(self, other: CutCounts) -> None:
        """Add the counts of other measurements."""
        self.measurements += other.measurements
        self.good += other.good
        self.bad += other.bad
        self.deleted += other.deleted
        self.failed += other.failed
        self.only += other.only
        self.deleted_by += other.deleted_by

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """Return the counts as JSON can hold them."""
        return {"measurements": self.measurements, "good": self.good, "bad": self.bad, "deleted": self.deleted,
                "failed": dict(self.failed), "only": dict(self.only), "deleted_by": dict(self.deleted_by)}


def count_cuts(table: Table) -> CutCounts:
    """Count what a table of measurements (`tables.MEASUREMENTS`) says of cuts."""
    deleted = table["deletion_reasons"] != b""
    bad = table["is_bad"] & ~deleted
    out = CutCounts(len(table), int((~table["is_bad"] & ~deleted).sum()), int(bad.sum()), int(deleted.sum()))
    for text in table["bad_reasons"].tolist():
        names = _split(text)
        out.failed.update(names)
        if len(names) == 1:
            out.only.update(names)
    for text in table["deletion_reasons"].tolist():
        out.deleted_by.update(_split(text))
    return out


def _split(text: bytes) -> list[str]:
    return text.decode().split(",") if text else []
