"""Parameters: validation, prefixes, provenance flag, printing."""

import pytest

from seechange_mpi.config.parameters import Parameters, par
from seechange_mpi.model.errors import ConfigError


class Inner(Parameters):
    radius: float = par(2.0, "a radius", unit="pix", gt=0)
    note: str = par("", "a remark", critical=False)


class Outer(Parameters):
    section = "outer"
    threshold: float = par(5.0, "a threshold", unit="sigma")
    box_size: int = par(64, "a size", unit="pix", ge=8)
    verbose: bool = par(False, "talk", critical=False)
    inner: Inner = par(Inner(), "nested")


def test_defaults_and_keywords():
    pars = Outer(threshold=4, inner={"radius": 3})
    assert pars.threshold == 4.0
    assert pars.inner.radius == 3.0
    assert pars["box_size"] == 64


def test_unique_prefix_is_enough():
    pars = Outer(box=16, THRESH=3)
    assert (pars.box_size, pars.threshold) == (16, 3.0)
    pars["ver"] = True
    assert pars.verbose is True


@pytest.mark.parametrize(("name", "value", "word"), [
    ("box_size", 4, "greater than or equal to 8"),
    ("box_size", "many", "valid integer"),
    ("nonsense", 1, "no such parameter"),
])
def test_wrong_values_name_the_key(name, value, word):
    with pytest.raises(ConfigError, match=word) as err:
        Outer(**{name: value})
    assert f"outer.{name}" in str(err.value)
    pars = Outer()
    with pytest.raises(ConfigError, match=word):
        pars[name] = value
    assert pars.box_size == 64


def test_critical_leaves_out_what_does_not_change_products():
    assert Outer().critical() == {"threshold": 5.0, "box_size": 64, "inner": {"radius": 2.0}}


def test_defaults_are_not_shared():
    a, b = Outer(), Outer()
    a.inner.radius = 9
    assert b.inner.radius == 2.0


def test_show_pars_prints_units_and_help(capsys):
    text = Outer().show_pars()
    assert capsys.readouterr().out.strip() == text
    assert "* inner.radius = 2.0 pix  # a radius" in text
    assert "  verbose = False  # talk" in text
