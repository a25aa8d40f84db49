"""Reads the body of a strategy class: its parameters, its name and its docstring."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import Parameter as Keyword
from inspect import Signature, cleandoc, isfunction, signature
from typing import TYPE_CHECKING

from mlxlab.errors import StrategyError
from mlxlab.strategies.parameters import Parameter

if TYPE_CHECKING:
    from mlxlab.strategies.base import Strategy

__all__ = ["check_body", "document", "read_body", "reserved"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def check_body(cls: type[Strategy], contract: type) -> None:
    """Refuse a class body that would break the contract later, at a call.

    Args:
        cls: a new strategy.
        contract: the class that all strategies derive from.

    Raises:
        StrategyError: a part of the contract is hidden, or the name is malformed.
    """
    for key, value in vars(cls).items():
        if _hides(key, value, contract):
            raise StrategyError(reserved(cls, key))
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StrategyError(
            f"{cls.__name__}: name={name!r} is not accepted; give lower-case words "
            "joined by hyphens"
        )
    own = signature(cls.__init__).parameters.values()
    if not any(keyword.kind is Keyword.VAR_KEYWORD for keyword in own):
        raise StrategyError(
            f"{cls.__name__}: __init__ drops parameters; write __init__(self, "
            "**parameters), call super().__init__(**parameters), and declare "
            "parameters in the class body with parameter(...)"
        )


def _hides(key: str, value: object, contract: type) -> bool:
    """Whether a class attribute hides a part of the contract."""
    part = vars(contract).get(key)
    if isfunction(part):
        return not callable(value)
    if isinstance(part, property):
        return callable(value) or isinstance(value, Parameter)
    names = {*contract.__annotations__, "unit"} - {"capacity"}
    return key in names and isinstance(value, Parameter)


def reserved(cls: type[Strategy], key: str) -> str:
    """Return the message for a name that hides a part of the contract."""
    return (
        f"{cls.__name__}: {key} hides a part of the Strategy contract; choose "
        "another name"
    )


def read_body(cls: type[Strategy], contract: type) -> dict[str, Parameter]:
    """Return the parameters in class bodies, base classes first.

    A plain value fixes a parameter. Those that all strategies have stand last.

    Args:
        cls: a strategy.
        contract: the class that all strategies derive from.
    """
    declared: dict[str, Parameter] = {}
    bases = [base for base in reversed(cls.__mro__) if base is not contract]
    for base in (*bases, contract):
        for key, value in vars(base).items():
            if isinstance(value, Parameter):
                if getattr(cls, key) is value:
                    declared[key] = value
            elif base is not contract:
                declared.pop(key, None)
    return declared


def document(cls: type[Strategy], shown: Mapping[str, Parameter]) -> None:
    """Show parameters wherever Python shows a signature or a docstring."""
    cls.__signature__ = Signature(
        [
            Keyword(key, Keyword.KEYWORD_ONLY, default=declared.default)
            for key, declared in shown.items()
        ]
    )
    lines = [f"    {key}: {declared.help}" for key, declared in shown.items()]
    text = cleandoc(vars(cls).get("__doc__") or cls.summary)
    cls.__doc__ = "\n".join([text, "", "Args:", *lines])
