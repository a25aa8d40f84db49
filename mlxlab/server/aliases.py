"""Model ids that clients send, and what answers to them: ``model_aliases.json``.

Says which model, strategy, rules and sampling an id stands for, and whether such a
model is there to be loaded is not its business: it knows neither mlx nor HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from mlxlab.client.discovery import DEFAULT, TIERS, Endpoint
from mlxlab.errors import ConfigError, MlxlabError, UnknownModelError
from mlxlab.models.folder import BUNDLED
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import parse_strategy

__all__ = ["Alias", "Aliases", "parse_models"]

_PREPARED = Path(__file__).with_name("model_aliases.json")
_FOREIGN = "claude-"
_FORM = "give NAME=MODEL, as in fast=mlx-community/Qwen3-4B-4bit"
_MOST: Mapping[str, float] = {
    "temperature": 2,
    "top_p": 1,
    "top_k": 2**31 - 1,
    "min_p": 1,
}
_PARSERS: Mapping[str, Callable[[str], object]] = {
    "strategy": parse_strategy,
    "rules": parse_rules,
}

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_NAME: TypeAdapter[str] = TypeAdapter(Name)
Tier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.]+$")]


def _check_sampling(sampling: Mapping[str, float]) -> Mapping[str, float]:
    for key, value in sampling.items():
        if key not in _MOST:
            raise ValueError(f"unknown key {key!r}; accepted: {', '.join(_MOST)}")
        if not 0 <= value <= _MOST[key]:
            raise ValueError(f"{key}: {value:g} is not from 0 to {_MOST[key]:g}")
        if key == "top_k" and value != int(value):
            raise ValueError(f"{key}: {value:g} is no whole number")
    return sampling


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Alias(_Closed):
    """What a model id stands for.

    In a file everything may be left out: it is then taken from the default alias,
    and what that leaves out is as below.

    Attributes:
        model: a folder, a hub repository, or ``tiny``.
        strategy: as :func:`mlxlab.strategies.parse_strategy` reads it.
        rules: as :func:`mlxlab.rendering.rules.parse_rules` reads it.
        thinking: ``auto`` as the request asks; ``on`` and ``off`` whatever it asks.
        sampling: temperature, top_p, top_k, min_p; the model's own where not given.
        max_thinking_tokens: most ids of reasoning in an answer, None for no limit.
    """

    model: Annotated[str, Field(min_length=1)] = BUNDLED
    strategy: str = "paged"
    rules: str = "all"
    thinking: Literal["auto", "on", "off"] = "auto"
    sampling: Annotated[Mapping[str, FiniteFloat], AfterValidator(_check_sampling)] = {}
    max_thinking_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def spec(self) -> StrategySpec:
        """The strategy under the rules, parsed."""
        return StrategySpec.parse(self.strategy, self.rules)

    def over(self, default: Alias) -> Alias:
        """This alias, with what it leaves out taken from ``default``."""
        given = {key: getattr(self, key) for key in self.model_fields_set}
        return default.model_copy(update=given)


class _File(_Closed):
    aliases: Mapping[Name, Alias] = {}
    tiers: Mapping[Tier, str] = {}


@dataclass(frozen=True, slots=True)
class Aliases:
    """All aliases of an endpoint.

    Attributes:
        given: as the file has them, in its order; always with the default one.
        tiers: word in a ``claude-*`` id to the alias that it goes to.
    """

    given: Mapping[str, Alias]
    tiers: Mapping[str, str]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read a file; the one that comes with mlxlab if None.

        Raises:
            ConfigError: it cannot be read, or holds what is not accepted.
        """
        path = _PREPARED if path is None else Path(path).expanduser()
        try:
            file = _File.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; give a file") from None
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            raise ConfigError(f"{path}: {_describe(found[0])}") from None
        for where, fault in _faults(file):
            raise ConfigError(f"{path}: {where}: {fault}")
        given = dict(file.aliases)
        return cls(
            given if DEFAULT in given else {DEFAULT: Alias(), **given}, file.tiers
        )

    @property
    def default(self) -> Alias:
        """The alias that the others take from."""
        return self.given[DEFAULT]

    def names(self) -> list[str]:
        """Names of the aliases, in the file's order."""
        return list(self.given)

    def values(self) -> list[Alias]:
        """The aliases in the same order, nothing left out."""
        return [alias.over(self.default) for alias in self.given.values()]

    def resolve(self, model_id: str) -> tuple[str, Alias]:
        """Find what answers to a model id.

        An alias's name goes to that alias, a model to the first alias that serves
        it, any other ``claude-*`` to its tier's alias or to the default one.

        Returns:
            The alias's name and the alias, nothing left out.

        Raises:
            UnknownModelError: none of these.
        """
        name = self._name_of(model_id)
        if name is None:
            known = ", ".join(self.names())
            raise UnknownModelError(
                f"unknown model {model_id!r}; known: {known}, and any {_FOREIGN}*"
            )
        return name, self.given[name].over(self.default)

    def endpoint(self, *, url: str, token: str, window: int) -> Endpoint:
        """The endpoint through which clients of this process reach the aliases."""
        tiers = {tier: self.resolve(f"{_FOREIGN}{tier}")[0] for tier in TIERS}
        return Endpoint(url, token, window, tuple(self.names()), tiers)

    def with_default(
        self,
        *,
        model: str | None = None,
        strategy: str | None = None,
        rules: str | None = None,
    ) -> Self:
        """Change the default alias, and so all that take from it.

        Args:
            model: in place of its model; as it is if None.
            strategy: in place of its strategy; as it is if None.
            rules: in place of its rules; as it is if None.

        Raises:
            StrategyError: no such strategy, or parameters that it does not accept.
            RuleError: no such rule.
        """
        settings = {"model": model, "strategy": strategy, "rules": rules}
        update = {key: value for key, value in settings.items() if value is not None}
        for key in _PARSERS.keys() & update.keys():
            _PARSERS[key](update[key])
        changed = self.default.model_copy(update=update)
        return replace(self, given={**self.given, DEFAULT: changed})

    def with_models(self, models: Mapping[str, str]) -> Self:
        """Add aliases; of those that there are, change the model alone.

        Args:
            models: names to a folder, a hub repository, or ``tiny``.

        Raises:
            ConfigError: a name that no alias may have, or an empty model.
        """
        given = dict(self.given)
        for name, model in models.items():
            try:
                _NAME.validate_python(name)
            except ValidationError:
                raise ConfigError(
                    f"alias {name!r}: give a name of letters, digits, '.', '_' and '-'"
                ) from None
            if not model:
                raise ConfigError(f"alias {name!r}: names no model; {_FORM}")
            known = given.get(name, Alias())
            given[name] = known.model_copy(update={"model": model})
        return replace(self, given=given)

    def _name_of(self, model_id: str) -> str | None:
        if model_id in self.given:
            return model_id
        for name, alias in zip(self.names(), self.values(), strict=True):
            if alias.model == model_id:
                return name
        if not model_id.startswith(_FOREIGN):
            return None
        # Ids may end in a wish for a window, such as [1m].
        words = re.split(r"[-\[\]]", model_id)
        return next((self.tiers[word] for word in words if word in self.tiers), DEFAULT)


def parse_models(texts: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=MODEL`` as :meth:`Aliases.with_models` takes it.

    Raises:
        ConfigError: another form, or a name that is given twice.
    """
    models: dict[str, str] = {}
    for text in texts:
        name, equals, model = (part.strip() for part in text.partition("="))
        if not (name and equals and model):
            raise ConfigError(f"--alias {text!r}: {_FORM}")
        if name in models:
            raise ConfigError(f"--alias: {name} is given twice; give it once")
        models[name] = model
    return models


def _faults(file: _File) -> Iterator[tuple[str, str]]:
    """Where a well-formed file says what cannot be done, and why not."""
    for name, alias in file.aliases.items():
        for key, parse in _PARSERS.items():
            try:
                parse(getattr(alias, key))
            except MlxlabError as error:
                yield f"aliases.{name}.{key}", str(error)
    known = {DEFAULT: None, **dict.fromkeys(file.aliases)}
    for tier, name in file.tiers.items():
        if name not in known:
            yield f"tiers.{tier}", f"no alias {name!r}; known: {', '.join(known)}"


def _describe(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in one line: where, what, what would be accepted."""
    loc = [str(part) for part in error["loc"] if part != "[key]"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        schema = _File if len(loc) == 1 else Alias
        message = f"unknown key; accepted: {', '.join(schema.model_fields)}"
    return ": ".join(filter(None, [".".join(loc), message]))
