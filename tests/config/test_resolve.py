"""Configuration files: merging, includes, sources, secrets."""

import pytest

from seechange_mpi.config.resolve import Config, parse_assignment, redact
from seechange_mpi.model.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return path


def test_file_environment_and_set(tmp_path, monkeypatch):
    file = write(tmp_path / "my.yaml", "database: {url: 'postgresql://host/db'}\ndetection: {threshold: 7}\n")
    monkeypatch.setenv("SEECHANGE_CONFIG", str(file))
    config = Config(sets=["detection.threshold=8"])
    assert config.value("database.url") == "postgresql://host/db"
    assert config.value("detection.threshold") == 8
    assert config.source("database.url") == str(file)
    assert config.source("detection.threshold") == "--set"
    assert config.source("paths.root") == "default"
    assert config.settings.database.connect_timeout_s == 10.0
    assert Config.get().value("detection.threshold") == 7


def test_includes_in_the_documented_order(tmp_path):
    write(tmp_path / "pre.yaml", """
catalog: {columns: {ra: A, dec: B}, ref_epoch: 2000}
preprocessing: {steps_required: [a]}
""")
    write(tmp_path / "aug.yaml", "preprocessing: {steps_required: [c]}\n")
    write(tmp_path / "over.yaml", "catalog: {ref_epoch: 2015.5}\n")
    main = write(tmp_path / "main.yaml", """
preloads: [pre.yaml, not_there.yaml]
augments: [aug.yaml]
overrides: [over.yaml]
catalog: {ref_epoch: 2010, columns: {ra: C}}
preprocessing: {steps_required: [b]}
""")
    config = Config(main)
    assert config.value("catalog.columns") == {"ra": "C", "dec": "B"}
    assert config.value("catalog.ref_epoch") == 2015.5
    assert config.value("preprocessing.steps_required") == ["b", "c"]
    assert config.value("preprocessing.steps_required.1") == "c"
    assert config.source("catalog.ref_epoch").endswith("over.yaml")


def test_unknown_keys_and_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"(?i)databas.*no such parameter"):
        Config(write(tmp_path / "a.yaml", "databasee: {}\n"))
    with pytest.raises(ConfigError, match=r"database.*urll.*no such parameter"):
        Config(write(tmp_path / "b.yaml", "database: {urll: x}\n"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        Config(write(tmp_path / "c.yaml", "a: [1\n"))
    with pytest.raises(ConfigError, match="cannot read"):
        Config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="circle"):
        Config(write(tmp_path / "d.yaml", "preloads: [d.yaml]\n"))


def test_missing_value_is_an_error_unless_defaulted():
    config = Config()
    assert config.value("no.such", 3) == 3
    with pytest.raises(ConfigError, match=r"no\.such"):
        config.value("no.such")


def test_values_are_copies():
    config = Config()
    config.value("catalog")["path"] = "changed"
    assert config.value("catalog.path") is None


def test_secrets_are_hidden():
    hidden = redact({"database": {"url": "postgresql://me:geheim@host/db"}, "conductor": {"password": "geheim"},
                     "list": [{"api_key": "geheim"}]})
    assert "geheim" not in str(hidden)
    assert hidden["database"]["url"] == "postgresql://me:***@host/db"


@pytest.mark.parametrize("bad", ["nokey", "=3", "a=[1"])
def test_bad_assignments(bad):
    with pytest.raises(ConfigError, match="--set"):
        parse_assignment(bad)


def test_assignment_types():
    assert parse_assignment("a.b=[1, 2]") == {"a": {"b": [1, 2]}}
    assert parse_assignment("a.b=null") == {"a": {"b": None}}
