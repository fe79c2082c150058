"""Deterministic identifiers: the same work gives the same id on every machine."""

from __future__ import annotations

import uuid

NAMESPACE = uuid.UUID("7d1c62a4-2f0e-5b43-9f8a-5a0f4d1e3c11")


def stable_id(*parts: object) -> uuid.UUID:
    """Return the uuid5 of the parts joined by ``|``.

    By convention the parts are: kind, exposure identifier, provenance id, section, index
    (those that apply, in this order), e.g. ``stable_id("image", "exp1", "ABC...", "S1")``.
    """
    return uuid.uuid5(NAMESPACE, "|".join(str(p) for p in parts))
