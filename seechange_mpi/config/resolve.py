"""Read configuration files, merge them, and remember where every value came from.

The packaged ``default_config.yaml`` comes first, then the file named by ``--config`` or
``SEECHANGE_CONFIG``, then ``--set key=value``. A file may name others: ``preloads`` are read before it,
``augments`` and ``overrides`` after it, paths relative to the file. Mappings merge key by key; lists are
extended by *augments* and replaced otherwise; everything else is replaced.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from seechange_mpi.config.settings import STEP_SECTIONS, Settings
from seechange_mpi.model.errors import ConfigError

DEFAULT_FILE = Path(__file__).with_name("default_config.yaml")
ENVIRONMENT_VARIABLE = "SEECHANGE_CONFIG"
_MISSING = object()
_INCLUDES = ("preloads", "augments", "overrides")
_SECRET = re.compile(r"(password|passwd|secret|token|api_?key|privkey)(?!_file$)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@/\s]*)@")
_CONNINFO_PASSWORD = re.compile(r"\b(password\s*=\s*)('(?:\\.|[^'])*'|[^\s&]+)")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path}: cannot read the configuration file: {err.strerror}") from None
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not valid YAML: {err}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    return data


class _Merged:
    """Values and their sources while files are merged."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def merge(self, new: Mapping[str, Any], source: str, *, extend: bool) -> None:
        self._merge(self.values, new, "", source, extend)

    def _merge(self, old: dict[str, Any], new: Mapping[str, Any], prefix: str, source: str, extend: bool) -> None:
        for key, value in new.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping) and isinstance(old.get(key), dict):
                self._merge(old[key], value, f"{name}.", source, extend)
                continue
            if extend and isinstance(value, list) and isinstance(old.get(key), list):
                old[key] = old[key] + copy.deepcopy(value)
            else:
                old[key] = copy.deepcopy(value)
            for known in [k for k in self.sources if k.startswith(f"{name}.")]:
                del self.sources[known]
            for leaf in _leaves(value, name):
                self.sources[leaf] = source

    def load(self, path: Path, *, extend: bool = False, seen: tuple[Path, ...] = ()) -> None:
        path = path.resolve()
        if path in seen:
            raise ConfigError(f"{path}: configuration files include each other in a circle")
        data = _read_yaml(path)
        includes = {k: data.pop(k, None) or [] for k in _INCLUDES}
        for kind, names in includes.items():
            if not isinstance(names, list):
                raise ConfigError(f"{path}: {kind}: expected a list of files, found {names!r}")
        for name in includes["preloads"]:
            self._include(path, name, seen, extend=False)
        self.merge(data, str(path), extend=extend)
        for name in includes["augments"]:
            self._include(path, name, seen, extend=True)
        for name in includes["overrides"]:
            self._include(path, name, seen, extend=False)

    def _include(self, parent: Path, name: str, seen: tuple[Path, ...], *, extend: bool) -> None:
        path = parent.parent / os.path.expanduser(str(name))
        if path.is_file():
            self.load(path, extend=extend, seen=(*seen, parent))


def _leaves(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of a configuration without secrets (passwords, tokens, passwords in URLs)."""
    if isinstance(value, Mapping):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(v, key) for v in value]
    if value and _SECRET.search(key):
        return "***"
    if isinstance(value, str):
        return _CONNINFO_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1:***@", value))
    return value


class Config:
    """A resolved configuration: read-only values with their sources.

    ``Config.get()`` returns the one of this process, reading ``SEECHANGE_CONFIG`` the first time.
    """

    _current: ClassVar[Config | None] = None

    def __init__(self, path: str | Path | None = None, sets: Iterable[str] = ()) -> None:
        merged = _Merged()
        merged.load(DEFAULT_FILE)
        merged.sources = dict.fromkeys(merged.sources, "default")
        name = path or os.environ.get(ENVIRONMENT_VARIABLE)
        self.path = Path(name).expanduser().resolve() if name else None
        if self.path is not None:
            merged.load(self.path)
        for item in sets:
            merged.merge(parse_assignment(item), "--set", extend=False)
        self._values = merged.values
        self._sources = merged.sources
        self.settings = Settings(**copy.deepcopy(merged.values))

    @classmethod
    def get(cls, path: str | Path | None = None, sets: Iterable[str] = ()) -> Config:
        """Return this process's configuration; with arguments, read it anew and keep it."""
        if cls._current is None or path is not None or sets:
            cls._current = cls(path, sets)
        return cls._current

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Config:
        """Return a configuration of given values over the defaults; no file of the user's is read."""
        new = cls.__new__(cls)
        merged = _Merged()
        merged.load(DEFAULT_FILE)
        merged.merge(values, "given", extend=False)
        new.path = None
        new._values, new._sources = merged.values, merged.sources
        new.settings = Settings(**copy.deepcopy(merged.values))
        return new

    @classmethod
    def reset(cls) -> None:
        """Forget the process's configuration (tests)."""
        cls._current = None

    def value(self, key: str, default: Any = _MISSING) -> Any:
        """Return a copy of the value at ``section.key`` (list items by number), or `default`."""
        here: Any = self._values
        for part in key.split("."):
            try:
                here = here[int(part)] if isinstance(here, list) else here[part]
            except (KeyError, IndexError, ValueError, TypeError):
                if default is not _MISSING:
                    return default
                raise ConfigError(f"configuration has no '{key}' ({part!r} is missing)") from None
        return copy.deepcopy(here)

    def source(self, key: str) -> str:
        """Return where a value came from: ``default``, a file, or ``--set``."""
        return self._sources.get(key, "default")

    def items(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (key, value, source) of every value, in file order."""
        for key in _leaves(self._values, ""):
            name = key.removeprefix(".")
            yield name, self.value(name), self.source(name)

    def public(self) -> dict[str, Any]:
        """Return everything, secrets removed, for storage in bundles."""
        return dict(redact(self._values))

    def steps(self) -> dict[str, Any]:
        """Return the sections of the pipeline steps."""
        return {name: self.value(name, {}) or {} for name in STEP_SECTIONS}

    @property
    def root(self) -> Path:
        """Working folder, absolute."""
        return Path(self.settings.paths.root).expanduser().absolute()

    @property
    def bundles(self) -> Path:
        """Folder of bundles, absolute."""
        given = self.settings.paths.bundles
        return Path(given).expanduser().absolute() if given else self.root / "bundles"


def parse_assignment(item: str) -> dict[str, Any]:
    """Turn ``a.b=value`` (value in YAML) into a nested mapping."""
    key, sep, text = item.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set {item}: expected key=value, for example --set detection.threshold=6")
    try:
        value = yaml.safe_load(text) if text.strip() else None
    except yaml.YAMLError as err:
        raise ConfigError(f"--set {item}: the value is not valid YAML: {err}") from None
    out: dict[str, Any] = {}
    here = out
    parts = key.strip().split(".")
    for part in parts[:-1]:
        here = here.setdefault(part, {})
    here[parts[-1]] = value
    return out
