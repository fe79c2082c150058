"""Parameters of a step: type, default, unit, help and whether they enter the provenance, declared once.

>>> class BackgroundParameters(Parameters):
...     box_size: int = par(128, "mesh size", unit="pix", ge=8)
>>> pars = BackgroundParameters(box=64)         # a unique prefix is enough
>>> pars["box_size"] = 32                       # validated, like pars.box_size = 32
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seechange_mpi.model.errors import ConfigError


def par(default: Any, help: str, *, unit: str = "", critical: bool = True, **constraints: Any) -> Any:
    """Declare one parameter of a `Parameters` class.

    Parameters
    ----------
    default : Any
        Default value (mutable defaults are copied).
    help : str
        One line that tells a user what it does.
    unit : str
        Unit of the value, empty if it has none.
    critical : bool
        Whether the value enters the provenance, that is, changes the science products.
    **constraints
        ``ge``, ``le``, ``gt``, ``lt``, ``min_length`` … of `pydantic.Field`.
    """
    extra: dict[str, Any] = {"unit": unit, "critical": critical}
    if isinstance(default, list | dict | set):
        return Field(default_factory=lambda: type(default)(default), description=help,
                     json_schema_extra=extra, **constraints)
    return Field(default, description=help, json_schema_extra=extra, **constraints)


class Parameters(BaseModel):
    """Base of every step's parameters; unknown names and wrong types raise `ConfigError`."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True,
                              use_attribute_docstrings=False, strict=False)
    section: ClassVar[str] = ""
    """Name of the configuration section, for messages."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as err:
            raise ConfigError(self._explain(err)) from None

    @classmethod
    def _explain(cls, err: ValidationError) -> str:
        problems = []
        for e in err.errors():
            where = ".".join([cls.section or cls.__name__, *[str(p) for p in e["loc"]]])
            if e["type"] == "extra_forbidden":
                problems.append(f"{where}: no such parameter; there are: {', '.join(cls.model_fields)}")
            else:
                problems.append(f"{where}: {e['msg']}, found {e.get('input')!r}")
        return "; ".join(problems)

    @classmethod
    def resolve_name(cls, name: str) -> str:
        """Return the full field name for `name`: exact, or a unique case-insensitive prefix."""
        if name in cls.model_fields:
            return name
        matches = [f for f in cls.model_fields if f.lower().startswith(name.lower())]
        exact = [f for f in matches if f.lower() == name.lower()]
        if exact:
            return exact[0]
        if len(matches) > 1:
            raise ConfigError(f"{cls.section or cls.__name__}.{name}: ambiguous, could be {', '.join(matches)}")
        return matches[0] if matches else name

    @model_validator(mode="before")
    @classmethod
    def _complete_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {cls.resolve_name(str(k)): v for k, v in values.items()}
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        full = self.resolve_name(name)
        if full not in type(self).model_fields:
            raise ConfigError(f"{self.section or type(self).__name__}.{name}: no such parameter; "
                              f"there are: {', '.join(type(self).model_fields)}")
        try:
            super().__setattr__(full, value)
        except ValidationError as err:
            raise ConfigError(self._explain(err)) from None

    def __getitem__(self, name: str) -> Any:
        full = self.resolve_name(name)
        if full not in type(self).model_fields:
            raise KeyError(name)
        return getattr(self, full)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def update(self, values: dict[str, Any]) -> None:
        """Set several parameters at once, each validated."""
        for name, value in values.items():
            setattr(self, name, value)

    def critical(self) -> dict[str, Any]:
        """Return the parameters that enter the provenance, nested ones included, JSON-able."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("critical") is False:
                continue
            value = getattr(self, name)
            out[name] = value.critical() if isinstance(value, Parameters) else value
        return out

    def rows(self, prefix: str = "") -> Iterator[tuple[str, Any, str, bool, str]]:
        """Yield (name, value, unit, critical, help) of every parameter, nested ones included."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            if isinstance(value, Parameters):
                yield from value.rows(f"{prefix}{name}.")
            else:
                yield (prefix + name, value, str(extra.get("unit", "")),
                       extra.get("critical") is not False, field.description or "")

    def show_pars(self) -> str:
        """Print all parameters with unit, value and help; return the same text."""
        import sys

        lines = [f"{type(self).__name__} (* enters the provenance)"]
        for name, value, unit, critical, text in self.rows():
            star = "*" if critical else " "
            lines.append(f" {star} {name} = {value!r}{' ' + unit if unit else ''}  # {text}")
        text = "\n".join(lines)
        sys.stdout.write(text + "\n")
        return text
