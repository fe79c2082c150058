"""The notebook of docs/ runs from its first cell to its last."""

import json
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "look_at_an_object.ipynb"
pytestmark = pytest.mark.db


def test_the_notebook_shows_cutouts_and_a_light_curve(processed, monkeypatch):
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    config, survey = processed
    monkeypatch.setenv("SEECHANGE_CONFIG", str(config))
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert sum(bool(line.strip()) for cell in cells for line in cell.splitlines()) <= 36
    names: dict = {}
    for cell in cells:
        exec(compile(cell, NOTEBOOK.name, "exec"), names)
    assert names["ds"].exposure.identifier == survey.exposures[2].stem
    shown = [ax.images[0].get_array() for ax in names["axes"]]
    assert [s.shape for s in shown] == [(41, 41)] * 3
    assert abs(np.nanmax(np.abs(shown[2][18:23, 18:23]))) > 5 * np.nanstd(shown[2][:10]), "the change is in the middle"
    assert len(names["mjd"]) == 2, "both epochs after the reference"
    assert (np.abs(names["flux"]) > 5 * names["error"]).all()
    plt.close("all")
