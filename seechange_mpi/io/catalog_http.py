"""Stars from a Gaia service, by SeeChange's protocol: ``POST URL/gaiarect/minra/maxra/mindec/maxdec[/maxmag[/minmag]]``
is answered with columns of Gaia DR3 in JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from seechange_mpi.io.catalog import CatalogTable, table_to_catalog
from seechange_mpi.io.catalog_files import OpenTable
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError

_BORDER = 0.1
_WAIT_S = 1.0


def bounding_box(ra: float, dec: float, radius_deg: float, *, border: float = _BORDER
                 ) -> tuple[float, float, float, float]:
    """Return (minra, maxra, mindec, maxdec) [deg] around a cone, a tenth (`border`) larger on every side.

    Right ascensions lie in 0 … 360; minra > maxra where the box crosses 0. Near a pole all right ascensions belong.
    """
    half = radius_deg * (1.0 + 2.0 * border)
    low, high = max(dec - half, -90.0), min(dec + half, 90.0)
    if high >= 90.0 or low <= -90.0:
        return 0.0, 360.0, low, high
    width = float(np.degrees(np.arcsin(min(1.0, np.sin(np.radians(half)) / np.cos(np.radians(dec))))))
    if width >= 90.0:
        return 0.0, 360.0, low, high
    return (ra - width) % 360.0, (ra + width) % 360.0, low, high


def fetch_cone(spec: Mapping[str, Any], ra: float, dec: float, radius_deg: float) -> CatalogTable:
    """Return the stars that a service has within a cone.

    Parameters
    ----------
    spec : mapping
        ``url``, ``url_timeout_s``, ``url_attempts``, ``min_mag``, ``max_mag``, ``columns``, ``ref_epoch``.

    Raises
    ------
    TransientError
        The service does not answer, or answers with an error of its own, as often as was tried.
    BadInput
        It refuses the question, or its answer is no table of stars.
    ConfigError
        Neither ``path`` nor ``url`` is given.
    """
    url = str(spec.get("url") or "").rstrip("/")
    if not url:
        raise ConfigError("no catalogue: set catalog.path or catalog.url")
    limits = ""
    faint, bright = spec.get("max_mag"), spec.get("min_mag")
    if faint is not None or bright is not None:
        limits = f"/{99.0 if faint is None else faint:g}" + (f"/{bright:g}" if bright is not None else "")
    parts = []
    for box in _in_order(bounding_box(ra, dec, radius_deg)):
        question = f"{url}/gaiarect/" + "/".join(f"{v:.8f}" for v in box) + limits
        answer = _ask(question, float(spec.get("url_timeout_s", 5.0)), int(spec.get("url_attempts", 5)))
        parts.append(_columns(question, answer))
    columns = _joined(parts)
    stars = table_to_catalog(OpenTable(list(columns), columns.__getitem__), question, spec, (ra, dec), radius_deg)
    stars.path = url
    return stars


def _in_order(box: tuple[float, float, float, float]) -> list[tuple[float, float, float, float]]:
    """Boxes with minra <= maxra: two where one crosses right ascension 0."""
    low, high, south, north = box
    return [box] if low <= high else [(low, 360.0, south, north), (0.0, high, south, north)]


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns that all answers with stars have."""
    filled = [p for p in parts if any(len(v) for v in p.values())] or parts[:1]
    return {name: np.concatenate([p[name] for p in filled]) for name in filled[0] if all(name in p for p in filled)}


def _ask(question: str, timeout_s: float, attempts: int) -> Any:
    import requests

    problem = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(_WAIT_S)
        try:
            response = requests.post(question, timeout=timeout_s)
            if response.status_code == 200:
                return response.json()
            problem = f"status {response.status_code} {response.text[:100].strip()}"
            if 400 <= response.status_code < 500 and response.status_code not in (408, 425, 429):
                raise BadInput(question, "catalogue service (catalog.url)", "an answer with stars", problem)
        except requests.exceptions.JSONDecodeError as err:
            raise BadInput(question, "answer of the catalogue service", "JSON", err) from None
        except requests.exceptions.Timeout:
            problem = f"no answer within {timeout_s:g} s"
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as err:
            problem = f"no connection ({type(err).__name__})"
        except requests.exceptions.RequestException as err:
            raise BadInput(question, "catalogue service (catalog.url)", "a usable URL", err) from None
    raise TransientError(f"the catalogue service {question} gave no stars in {attempts} attempts: {problem}; try "
                         "later, or set catalog.path to a local catalogue")


def _columns(question: str, answer: Any) -> dict[str, Any]:
    """Columns by name, of a mapping name -> values (or row -> value) or of a list of rows; null is NaN."""
    if isinstance(answer, list) and all(isinstance(row, dict) for row in answer):
        answer = {name: [row.get(name) for row in answer] for name in (answer[0] if answer else {})}
    if (isinstance(answer, dict) and not answer) or answer == []:
        answer = {"ra": [], "dec": []}
    if not isinstance(answer, dict) or not all(isinstance(v, list | dict) for v in answer.values()):
        raise BadInput(question, "answer of the catalogue service", "columns of stars", str(answer)[:80])
    out = {}
    for name, values in answer.items():
        items = list(values.values()) if isinstance(values, dict) else values
        try:
            out[name] = np.array([np.nan if v is None else float(v) for v in items], np.float64)
        except (TypeError, ValueError):
            continue
    if len({len(v) for v in out.values()}) > 1:
        raise BadInput(question, "answer of the catalogue service", "columns of one length", "several lengths")
    return out
