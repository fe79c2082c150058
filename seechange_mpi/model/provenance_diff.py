"""How two provenances, or two sets of them, differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seechange_mpi.model.provenance import UPSTREAM_STEPS, ProvenanceRecord


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters under dotted names."""
    out: dict[str, Any] = {}
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{name}.")
        else:
            out[name] = value
    return out


@dataclass(slots=True)
class Tree:
    """Provenances under one name.

    Attributes
    ----------
    top : id of the one that is meant, its upstream being the others; "": all are meant.
    """

    name: str
    records: list[ProvenanceRecord]
    top: str = ""

    def in_order(self) -> list[ProvenanceRecord]:
        """Return the records, upstream ones first."""
        order = {p: k for k, p in enumerate(UPSTREAM_STEPS)}
        return sorted(self.records, key=lambda r: (order.get(r.process, 99), r.process, r.id))

    def process_of(self, id_: str) -> str:
        """Return the process of one of them."""
        return next((r.process for r in self.records if r.id == id_), "(not at hand)")

    def parameters(self, record: ProvenanceRecord) -> dict[str, Any]:
        """Return the parameters of one of them under dotted names."""
        return flat(record.parameters)

    def by_process(self) -> dict[str, list[ProvenanceRecord]]:
        """Return process -> records."""
        out: dict[str, list[ProvenanceRecord]] = {}
        for r in self.in_order():
            out.setdefault(r.process, []).append(r)
        return out


def differences(a: Tree, b: Tree) -> list[str]:
    """Return what differs, a line each, upstream processes first; empty = the same.

    Where both have one provenance of a process, parameters and code version are compared; that something upstream
    differs is said where it does. Where one has several, their ids are.
    """
    lines: list[str] = []
    one, two = a.by_process(), b.by_process()
    if a.top and b.top and a.process_of(a.top) != b.process_of(b.top):
        lines.append(f"{a.name} is a provenance of {a.process_of(a.top)}, {b.name} of {b.process_of(b.top)}")
    for process in dict.fromkeys([*one, *two]):
        here, there = one.get(process, []), two.get(process, [])
        ids = {r.id for r in here}, {r.id for r in there}
        if ids[0] == ids[1]:
            continue
        if len(here) == len(there) == 1:
            lines += _compare(here[0], there[0], a, b)
            continue
        left, right = (", ".join(sorted(i)) or "none" for i in (ids[0] - ids[1], ids[1] - ids[0]))
        lines.append(f"{process}: {left} | {right}")
    return lines


def _compare(a: ProvenanceRecord, b: ProvenanceRecord, of_a: Tree, of_b: Tree) -> list[str]:
    lines = [f"{a.process}: {a.id} and {b.id}"]
    if a.code_version != b.code_version:
        lines.append(f"  code version: {a.code_version} | {b.code_version}")
    one, two = flat(a.parameters), flat(b.parameters)
    for name in sorted(one.keys() | two.keys()):
        values = [json.dumps(p[name], default=str) if name in p else "(not there)" for p in (one, two)]
        if values[0] != values[1]:
            lines.append(f"  {name}: {values[0]} | {values[1]}")
    up = set(a.upstream_ids), set(b.upstream_ids)
    if up[0] != up[1]:
        names = sorted({of_a.process_of(i) for i in up[0] - up[1]} | {of_b.process_of(i) for i in up[1] - up[0]})
        lines.append(f"  other upstream: {', '.join(names)}")
    return lines
