"""Gaia's CSV downloads (GaiaSource_*.csv.gz): rows of numbers under a header line, missing values empty or null."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import BadInput

F64 = npt.NDArray[np.float64]


def read_csv(path: Path) -> dict[str, F64]:
    """Return all numerical columns of a CSV file.

    Raises
    ------
    BadInput
        The file is cut short or no table.
    """
    parts = list(read_csv_chunks(path, None))
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def read_csv_chunks(path: Path, wanted: Collection[str] | None, rows: int = 200_000) -> Iterator[dict[str, F64]]:
    """Yield the wanted columns (None = all) of a CSV file, `rows` rows at a time, missing values NaN.

    Comment lines (``#``), as in Gaia's own files, are passed over. A file without rows yields one empty chunk.

    Raises
    ------
    BadInput
        The file is cut short or no table.
    """
    try:
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as f:
            lines = (line for line in f if not line.startswith("#"))
            reader = csv.reader(lines)
            names = next(reader, [])
            use = [k for k, n in enumerate(names) if wanted is None or n in wanted]
            if not use:
                raise BadInput(path, "columns", ", ".join(sorted(wanted or ())) or "a header line", ", ".join(names))
            first = True
            while True:
                block = list(islice(reader, rows))
                if not block and not first:
                    return
                first = False
                if any(len(row) != len(names) for row in block):
                    raise BadInput(path, "rows of the table", f"{len(names)} values each", "a shorter or longer one")
                yield {names[k]: _numbers([row[k] for row in block]) for k in use}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as err:
        raise BadInput(path, "catalogue", "a whole CSV table", err) from None


def _numbers(values: list[str]) -> F64:
    """Floats; what is no number is NaN."""
    try:
        return np.array(["nan" if v in ("", "null") else v for v in values], dtype=object).astype(np.float64)
    except ValueError:
        return np.array([_number(v) for v in values])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.lower(), float("nan"))
