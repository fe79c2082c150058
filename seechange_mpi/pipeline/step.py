"""Base of every step."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from seechange_mpi.config.parameters import Parameters

P = TypeVar("P", bound=Parameters)


class Step(Generic[P]):
    """A step owns its parameters and turns inputs into one product; it keeps no other state.

    ``Step(keyword=value, …)`` never reads the configuration file. Parameters may be changed until the
    step runs: ``step.pars.x = v`` or ``step.pars["x"] = v``.
    """

    process: ClassVar[str]
    """Name of the process in provenances."""
    parameters_class: ClassVar[type[Parameters]]

    pars: P

    def __init__(self, **parameters: Any) -> None:
        self.pars = self.parameters_class(**parameters)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{r[0]}={r[1]!r}' for r in self.pars.rows())})"
