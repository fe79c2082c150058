"""The crosstalk matrix: from a table file (FITS, ECSV or YAML) or from the camera's definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from seechange_mpi.instruments.camera import Camera
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.products import CrosstalkTerm

_COLUMNS = ("victim", "source", "coefficient")


def read_crosstalk(path: str | Path) -> list[tuple[str, str, float]]:
    """Return (victim, source, coefficient) of a table file.

    A FITS or ECSV table has the columns victim, source, coefficient; a YAML file has a list of such mappings, alone or
    under the key ``crosstalk``.

    Raises
    ------
    BadInput
        Unreadable, a column is missing, or a coefficient is not a number between -1 and 1.
    """
    rows: list[tuple[Any, ...]]
    try:
        if str(path).endswith((".yaml", ".yml")):
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            entries = loaded.get("crosstalk", []) if isinstance(loaded, dict) else loaded or []
            rows = [tuple(e[c] for c in _COLUMNS) for e in entries]
        else:
            from astropy.table import Table

            table = Table.read(path)
            rows = list(zip(*(table[c].tolist() for c in _COLUMNS), strict=True))
        out = [(_text(v), _text(s), float(c)) for v, s, c in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as err:
        raise BadInput(path, "crosstalk table", f"columns {', '.join(_COLUMNS)}", f"{type(err).__name__}: {err}"
                       ) from None
    wrong = [c for _, _, c in out if not (math.isfinite(c) and abs(c) < 1)]
    if wrong:
        raise BadInput(path, "crosstalk coefficient", "a number between -1 and 1", wrong[0])
    return out


def _text(value: Any) -> str:
    return (value.decode() if isinstance(value, bytes) else str(value)).strip()


def crosstalk_terms(camera: Camera, section_id: str, path: str | Path | None) -> list[CrosstalkTerm] | None:
    """Return the terms whose victims lie in a section; None where neither a file nor the camera gives a matrix.

    Parameters
    ----------
    path : table file, which replaces the camera's matrix; None or no such file: the camera's.

    Raises
    ------
    BadInput
        The file is unusable, or a name is not that of an amplifier of the camera.
    """
    if path is not None and Path(path).is_file():
        entries = read_crosstalk(path)
    elif camera.crosstalk:
        entries = [(c.victim, c.source, c.coefficient) for c in camera.crosstalk]
        path = f"camera {camera.name}"
    else:
        return None
    amplifiers = {s.id: [a.name for a in s.amplifiers] for s in camera.sections}

    def resolve(name: str) -> tuple[str, str]:
        section, _, amplifier = name.rpartition(":")
        section = section or section_id
        if amplifier not in amplifiers.get(section, ()):
            raise BadInput(path or "", "crosstalk", f"an amplifier of camera {camera.name}, as section:amplifier or "
                           f"amplifier (of section {section_id}: {', '.join(amplifiers[section_id])})", name)
        return section, amplifier

    out = []
    for victim, source, coefficient in entries:
        section, amplifier = resolve(victim)
        if section == section_id and coefficient != 0:
            out.append(CrosstalkTerm(amplifier, *resolve(source), coefficient))
    return out
