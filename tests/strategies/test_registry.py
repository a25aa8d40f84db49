"""One file is enough: a strategy that is defined here is known everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlxlab.analysis.tune import tune
from mlxlab.cli.app import app
from mlxlab.errors import StrategyError
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.replay.specs import StrategySpec, parse_specs
from mlxlab.strategies import (
    STRATEGIES,
    Commit,
    Example,
    Limit,
    ParameterValue,
    Plan,
    Put,
    Span,
    Strategy,
    make_strategy,
    parameter,
    parse_strategy,
    register,
)
from mlxlab.strategies.placements import DEFAULT
from tests.strategies import test_contract as contract
from tests.support.exchanges import small_trace

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_compare.ipynb"


class HeadOnly(Strategy):
    """Stores the first tokens of the last sequence, whole chunks of them."""

    name = "head-only"
    summary = "the first tokens of the last prompt"
    literature = "none"
    example = Example({"chunk": 4, "capacity": 40}, handles=1)

    chunk: int = parameter(32, "Tokens in a chunk.", Limit.BLOCK, tries=(32, 64))
    capacity: int = parameter(1 << 30, "Most bytes to hold.", Limit.CAPACITY)

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        self.kept: Tokens = Prompt.of([]).tokens
        self.handle = 0

    def _match(self, prompt: Prompt) -> Plan:
        shared = min(common_prefix(self.kept, prompt.tokens), len(prompt) - 1)
        reused = shared // self.chunk * self.chunk
        span = Span(self.handle, 0, 0, reused)
        return Plan(len(prompt), (span,) if reused else (), reused)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Replace the head."""
        tokens = prompt.tokens[: self.restorable_after(len(prompt))]
        if len(tokens) == 0:
            return Commit()
        shared = common_prefix(self.kept, tokens) // self.chunk * self.chunk
        evicted = len(self.kept) - shared
        drop = (self.handle,) if len(self.kept) else ()
        self.kept, self.handle = tokens, self.handle + 1
        return Commit(drop, put=(Put(self.handle, 0, len(tokens)),), evicted=evicted)

    def restorable_after(self, length: int) -> int:
        return min(length, self.capacity_tokens) // self.chunk * self.chunk

    @property
    def stored_tokens(self) -> int:
        return len(self.kept)

    def _check_stored(self) -> None:
        """Whole chunks are kept."""
        assert len(self.kept) % self.chunk == 0


@pytest.fixture
def registered() -> Iterator[None]:
    register(HeadOnly)
    yield
    del STRATEGIES["head-only"]


PROPERTIES = [
    check
    for name, check in vars(contract).items()
    if name.startswith("test_") and name != "test_every_strategy_describes_itself"
]


@pytest.mark.parametrize("check", PROPERTIES)
def test_the_contract_runs_it_by_its_example(
    check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"caplog": caplog} if "caplog" in signature(check).parameters else {}
    check(contract.Row(HeadOnly), **arguments)


@pytest.fixture
def from_the_notebook() -> Iterator[type[Strategy]]:
    """The strategy of notebook 03, with an example as small as the others."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    (source,) = [s for c in cells if "class HeadOnly" in (s := "".join(c["source"]))]
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(source, names)
    cls: type[Strategy] = names["HeadOnly"]
    cls.example = Example({"head": 16, "capacity": 40}, handles=1)
    yield cls
    del STRATEGIES["head-only"]


@pytest.mark.parametrize("check", PROPERTIES)
def test_the_strategy_of_the_notebook_keeps_the_contract(
    check: Any, from_the_notebook: type[Strategy], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"caplog": caplog} if "caplog" in signature(check).parameters else {}
    check(contract.Row(from_the_notebook), **arguments)


@pytest.mark.usefixtures("registered")
def test_the_registry_lists_it_last() -> None:
    assert list(STRATEGIES)[-1] == "head-only"
    contract.test_every_strategy_describes_itself()
    made = make_strategy("head-only", chunk=8, capacity=64, layout=CacheLayout.plain(2))
    assert made.parameters == {"chunk": 8, "capacity": 64}
    assert made.capacity_tokens == 32
    assert repr(parse_strategy("head-only:chunk=8,capacity=1KiB")) == (
        "HeadOnly(chunk=8, capacity=1024)"
    )
    in_units = make_strategy("head-only", unit=64)
    assert in_units.parameters == {"chunk": 1, "capacity": 1 << 30}


@pytest.mark.usefixtures("registered")
def test_specs_name_it() -> None:
    named, bare = parse_specs("head-only:chunk=8@none,head-only")
    assert named == StrategySpec(HeadOnly, {"chunk": 8}, ())
    assert bare.policy is HeadOnly
    assert StrategySpec.parse(named.name) == named


@pytest.mark.usefixtures("registered")
def test_tune_tries_its_values() -> None:
    found = tune(small_trace(), memory=1 << 20, trials=60, progress=False)
    own = set(found.requests.strategy[found.requests.name == "head-only"])
    assert own <= {f"head-only:chunk={n},capacity=1MiB" for n in (32, 64)}
    assert own


@pytest.mark.usefixtures("registered")
def test_the_command_line_lists_it() -> None:
    shown = CliRunner().invoke(app, ["strategies"]).output
    assert "head-only" in shown
    assert HeadOnly.summary in shown
    assert "automatic prefix caching (vLLM), RadixAttention (SGLang)" in shown


def test_a_class_needs_no_registration() -> None:
    spec, paged = parse_specs([HeadOnly, "paged:block=32"], capacity=1 << 20)
    assert spec.name == "head-only"
    assert spec.make(CacheLayout.plain(2)).capacity == 1 << 20
    assert paged.name == "paged:block=32"
    assert make_strategy(HeadOnly, chunk=9).parameters["chunk"] == 9


@pytest.mark.usefixtures("registered")
def test_a_name_is_taken_once_and_defined_again_at_will() -> None:
    class Other(HeadOnly):
        """Another strategy of the same name."""

    with pytest.raises(StrategyError, match="'head-only' names HeadOnly already"):
        register(Other)
    assert register(HeadOnly) is HeadOnly


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"plan": None}, "plan hides a part of the Strategy contract; choose another"),
        ({"restorable_after": 5}, "restorable_after hides a part"),
        ({"commit": parameter(1, "")}, "commit hides a part"),
        ({"stored_tokens": lambda self: 0}, "stored_tokens hides a part"),
        ({"limits": parameter(1, "")}, "limits hides a part"),
        ({"token_bytes": parameter(1, "")}, "token_bytes hides a part"),
        ({"unit": parameter(1, "")}, "unit hides a part"),
        ({"name": "Head Only"}, "name='Head Only' is not accepted; give lower-case"),
        ({"__init__": lambda self, head=1: None}, "__init__ drops parameters; write"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(
    body: dict[str, object], says: str
) -> None:
    with pytest.raises(StrategyError) as caught:
        type("Broken", (HeadOnly,), body)
    assert str(caught.value).startswith("Broken: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["restorable_after", "plan", "parameters", "limits"])
def test_state_that_hides_the_contract_is_refused(key: str) -> None:
    strategy = HeadOnly()
    with pytest.raises(StrategyError, match=f"self.{key} hides a part"):
        setattr(strategy, key, None)


def test_state_may_take_any_other_name() -> None:
    strategy = HeadOnly()
    for key in ("kept", "block", "slots", "minimum", "tokens", "entries", "hits"):
        setattr(strategy, key, 1)

    class Counted(HeadOnly):
        """Holds a plain value in place of a property."""

        stored_tokens = 0

    counted = Counted()
    counted.stored_tokens = 3
    assert counted.stored_bytes == 3


def test_a_value_in_a_subclass_fixes_a_parameter() -> None:
    class Fixed(HeadOnly):
        """Has chunks of eight tokens."""

        name = "fixed"
        chunk = 8

    common = ["windows", "checkpoints", "share", "disk", "kv", "kv_group"]
    assert list(Fixed.declared) == ["capacity", *common]
    assert Fixed().chunk == 8
    with pytest.raises(StrategyError, match="no parameter 'chunk'; accepted: capacity"):
        Fixed(chunk=9)


def test_python_shows_parameters() -> None:
    assert "chunk: Tokens in a chunk." in str(HeadOnly.__doc__)
    assert str(HeadOnly.__signature__) == (
        "(*, chunk=32, capacity=1073741824, windows='checkpoints', "
        f"checkpoints='{DEFAULT}', share=33, disk=0, kv='16', "
        "kv_group='64', token_bytes=1, checkpoint_bytes=0)"
    )
