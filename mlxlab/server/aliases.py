"""Model ids that clients send, and the aliases that answer: ``model_aliases.json``.

An alias stands for a model, a strategy, rules and sampling. Whether the model can be
loaded is not checked here.
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
from mlxlab.content import read_whole
from mlxlab.errors import ConfigError, MlxlabError, UnknownModelError
from mlxlab.files import expanded
from mlxlab.models.folder import BUNDLED
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.specs import StrategySpec
from mlxlab.sizes import format_size
from mlxlab.strategies import check_spec, parse_parameters

__all__ = ["Alias", "Aliases", "add_disk", "parse_models"]

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
    "strategy": check_spec,
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
            raise ValueError(f"{key}: {value:g} is not a whole number")
    return sampling


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Alias(_Closed):
    """The model and the settings behind a model id.

    In a file all keys are optional. A missing key is taken from the default alias, and
    in the default alias it has the value below.

    Attributes:
        model: a folder, a GGUF file, a hub repository, ``smollm2`` or ``tiny``.
        strategy: as :func:`mlxlab.strategies.parse_strategy` reads it.
        rules: as :func:`mlxlab.rendering.rules.parse_rules` reads it.
        thinking: ``auto`` follows the request; ``on`` and ``off`` override it.
        sampling: temperature, top_p, top_k, min_p; the model's own where missing.
        max_thinking_tokens: most thinking ids in an answer, None for no limit.
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
        """Return this alias, with its missing keys taken from ``default``."""
        given = {key: getattr(self, key) for key in self.model_fields_set}
        return default.model_copy(update=given)


class _File(_Closed):
    aliases: Mapping[Name, Alias] = {}
    tiers: Mapping[Tier, str] = {}


@dataclass(frozen=True, slots=True)
class Aliases:
    """All aliases of an endpoint.

    Attributes:
        given: the aliases as in the file, in its order, with the default one.
        tiers: maps a word in a ``claude-*`` id to an alias.
    """

    given: Mapping[str, Alias]
    tiers: Mapping[str, str]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read a file; the one that comes with mlxlab if None.

        Raises:
            ConfigError: the file cannot be read, or holds a value that is not accepted.
        """
        path = _PREPARED if path is None else expanded(path)
        try:
            file = _File.model_validate_json(read_whole(path))
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
        """The alias that fills the missing keys of the others."""
        return self.given[DEFAULT]

    def names(self) -> list[str]:
        """Names of the aliases, in the file's order."""
        return list(self.given)

    def values(self) -> list[Alias]:
        """The complete aliases, in the file's order."""
        return [alias.over(self.default) for alias in self.given.values()]

    def resolve(self, model_id: str) -> tuple[str, Alias]:
        """Find the alias for a model id.

        The name of an alias stands for that alias, and a model for the first alias that
        serves it. Any other ``claude-*`` id goes to its tier's alias or to the default.

        Returns:
            The alias's name and the complete alias.

        Raises:
            UnknownModelError: no alias matches.
        """
        name = self._name_of(model_id)
        if name is None:
            known = ", ".join(self.names())
            raise UnknownModelError(
                f"unknown model {model_id!r}; known: {known}, and any {_FOREIGN}*"
            )
        return name, self.given[name].over(self.default)

    def endpoint(self, *, url: str, token: str, window: int) -> Endpoint:
        """Return the endpoint that answers for the aliases in this process."""
        tiers = {tier: self.resolve(f"{_FOREIGN}{tier}")[0] for tier in TIERS}
        default = self.default
        return Endpoint(
            url,
            token,
            window,
            tuple(self.names()),
            tiers,
            model=default.model,
            strategy=default.strategy,
            rules=default.rules,
        )

    def with_disk(self, size: int | None) -> Self:
        """Give a disk to each exact strategy that names none.

        Args:
            size: bytes; None for no change.
        """
        if size is None:
            return self
        given = {
            name: alias.model_copy(update={"strategy": add_disk(alias.strategy, size)})
            if "strategy" in alias.model_fields_set or name == DEFAULT
            else alias
            for name, alias in self.given.items()
        }
        return replace(self, given=given)

    def with_default(
        self,
        *,
        model: str | None = None,
        strategy: str | None = None,
        rules: str | None = None,
    ) -> Self:
        """Change the default alias, and with it all aliases that inherit from it.

        Args:
            model: the new model; unchanged if None.
            strategy: the new strategy; unchanged if None.
            rules: the new rules; unchanged if None.

        Raises:
            StrategyError: an unknown strategy, or parameters that it does not accept.
            RuleError: an unknown rule.
        """
        settings = {"model": model, "strategy": strategy, "rules": rules}
        update = {key: value for key, value in settings.items() if value is not None}
        for key in _PARSERS.keys() & update.keys():
            _PARSERS[key](update[key])
        changed = self.default.model_copy(update=update)
        return replace(self, given={**self.given, DEFAULT: changed})

    def with_models(self, models: Mapping[str, str]) -> Self:
        """Add aliases; of existing ones, change only the model.

        Args:
            models: names to a folder or another name that ``model`` takes.

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
        # Ids may end in the requested window, such as [1m].
        words = re.split(r"[-\[\]]", model_id)
        return next((self.tiers[word] for word in words if word in self.tiers), DEFAULT)


def parse_models(texts: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=MODEL`` texts for :meth:`Aliases.with_models`.

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


def add_disk(strategy: str, size: int) -> str:
    """Return a spec with a disk of this size, if it can have one and names none."""
    _, given = parse_parameters(strategy)
    spec = StrategySpec.parse(strategy)
    if "disk" in given or "disk" not in spec.policy.declared or not spec.exact:
        return strategy
    return f"{strategy}{',' if given else ':'}disk={format_size(size)}"


def _faults(file: _File) -> Iterator[tuple[str, str]]:
    """Yield the key and the reason of each value that cannot be used."""
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
    """Return one pydantic error as one line: where, what, what would be accepted."""
    loc = [str(part) for part in error["loc"] if part != "[key]"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        schema = _File if len(loc) == 1 else Alias
        message = f"unknown key; accepted: {', '.join(schema.model_fields)}"
    return ": ".join(filter(None, [".".join(loc), message]))
