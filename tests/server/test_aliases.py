import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import ConfigError, RuleError, StrategyError, UnknownModelError
from mlxlab.server.aliases import Alias, Aliases, parse_models

EVERYTHING: dict[str, Any] = {
    "model": "owner/name",
    "strategy": "prefix",
    "rules": "none",
    "thinking": "on",
    "sampling": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0},
    "max_thinking_tokens": 512,
}


def load(folder: Path, **content: Any) -> Aliases:
    path = folder / "model_aliases.json"
    path.write_text(json.dumps(content))
    return Aliases.load(path)


def test_four_aliases_are_prepared() -> None:
    aliases = Aliases.load()
    assert aliases.names() == ["default", "fast", "background", "think"]
    assert aliases.default == Alias()
    assert aliases.tiers == {}
    thinking = [alias.thinking for alias in aliases.values()]
    assert thinking == ["auto", "off", "off", "on"]
    assert aliases.resolve("background")[1].sampling["temperature"] < 0.5


def test_what_an_alias_leaves_out_is_the_defaults(tmp_path: Path) -> None:
    aliases = load(
        tmp_path, aliases={"fast": {"thinking": "off"}, "default": EVERYTHING}
    )
    expected = Alias(**EVERYTHING | {"thinking": "off"})
    assert aliases.resolve("fast") == ("fast", expected)
    assert aliases.values() == [expected, Alias(**EVERYTHING)]


def test_null_is_not_left_out(tmp_path: Path) -> None:
    default = {"max_thinking_tokens": 100, "sampling": {"top_k": 3}}
    free: dict[str, Any] = {"max_thinking_tokens": None, "sampling": {}}
    aliases = load(tmp_path, aliases={"default": default, "free": free})
    assert aliases.resolve("free")[1] == Alias()


def test_an_empty_file_has_a_default(tmp_path: Path) -> None:
    assert load(tmp_path).resolve("default") == ("default", Alias())
    assert load(tmp_path, aliases={"mine": {}}).names() == ["default", "mine"]


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("think", "think"),
        ("owner/name", "local"),
        ("tiny", "default"),
        ("claude-opus-4-5", "think"),
        ("claude-3-5-haiku-20241022", "fast"),
        ("claude-haiku-4-5[1m]", "fast"),
        ("claude-haiku[1m]", "fast"),
        ("claude-sonnet-4-5", "default"),
        ("claude-opusculum-1", "default"),
        ("claude-", "default"),
        ("claude-mine", "claude-mine"),
    ],
)
def test_model_ids_find_their_alias(tmp_path: Path, model_id: str, name: str) -> None:
    aliases = load(
        tmp_path,
        aliases={
            "default": {},
            "fast": {"thinking": "off"},
            "think": {"thinking": "on"},
            "local": {"model": "owner/name"},
            "other": {"model": "owner/name", "strategy": "none"},
            "claude-mine": {},
        },
        tiers={"opus": "think", "haiku": "fast"},
    )
    assert aliases.resolve(model_id)[0] == name


@pytest.mark.parametrize("model_id", ["", "gpt-4", "Claude-opus", "owner/name", "fas"])
def test_an_unknown_id_names_the_known(model_id: str) -> None:
    with pytest.raises(UnknownModelError, match=r"default, fast, background, think"):
        Aliases.load().resolve(model_id)


@given(st.text(max_size=20))
def test_every_foreign_id_is_answered(rest: str) -> None:
    name, alias = Aliases.load().resolve(f"claude-{rest}")
    assert (name, alias) == ("default", Alias())


def test_a_changed_default_reaches_those_that_take_from_it(tmp_path: Path) -> None:
    before = load(tmp_path, aliases={"own": {"strategy": "none"}, "fast": {}})
    after = before.with_default(model="m", strategy="prefix", rules="none")
    assert after.default == Alias(model="m", strategy="prefix", rules="none")
    assert after.resolve("fast")[1] == after.default
    assert after.resolve("own")[1] == Alias(model="m", strategy="none", rules="none")
    assert after.resolve("m")[0] == "default"
    assert before.default == Alias()
    assert after.with_default() == after
    assert after.with_default(rules="all").default.strategy == "prefix"


def test_named_models_are_added_and_change_the_model_alone(tmp_path: Path) -> None:
    before = load(tmp_path, aliases={"default": EVERYTHING, "fast": {"rules": "all"}})
    after = before.with_models({"qwen3-coder-30b": "tiny", "fast": "a/b"})
    assert after.names() == ["default", "fast", "qwen3-coder-30b"]
    default = Alias(**EVERYTHING)
    added = default.model_copy(update={"model": "tiny"})
    assert after.resolve("qwen3-coder-30b") == ("qwen3-coder-30b", added)
    fast = default.model_copy(update={"model": "a/b", "rules": "all"})
    assert after.resolve("fast")[1] == fast
    assert after.default == default
    assert before.names() == ["default", "fast"]
    # The default alias's own model still wins where others name none.
    assert before.with_models({"default": "tiny"}).resolve("fast")[1].model == "tiny"


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ü", "a:b", "a\n"])
def test_a_name_that_no_alias_may_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="give a name of letters") as error:
        Aliases.load().with_models({name: "tiny"})
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="names no model; give NAME=MODEL"):
        Aliases.load().with_models({"fast": ""})


def test_models_are_read_from_words() -> None:
    assert parse_models([]) == {}
    assert parse_models(["a=tiny", " b = x=y "]) == {"a": "tiny", "b": "x=y"}
    for text in ("", "a", "a=", "=tiny", "=", " = "):
        with pytest.raises(ConfigError, match=r"--alias .*: give NAME=MODEL, as in"):
            parse_models([text])
    with pytest.raises(ConfigError, match="--alias: a is given twice"):
        parse_models(["a=x", "a=y"])


def test_a_default_must_be_possible() -> None:
    aliases = Aliases.load()
    with pytest.raises(StrategyError, match="choose from"):
        aliases.with_default(strategy="pagd")
    with pytest.raises(RuleError, match="known"):
        aliases.with_default(rules="-nothing")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"alias": {}}, r"alias: unknown key; accepted: aliases, tiers"),
        (
            {"aliases": {"fast": {"modle": "tiny"}}},
            r"aliases\.fast\.modle: unknown key; accepted: model, strategy, rules",
        ),
        (
            {"aliases": {"fast": {"sampling": {"top_q": 1}}}},
            r"aliases\.fast\.sampling: unknown key 'top_q'; accepted: temperature",
        ),
        (
            {"aliases": {"fast": {"sampling": {"top_p": 1.5}}}},
            r"aliases\.fast\.sampling: top_p: 1\.5 is not from 0 to 1",
        ),
        (
            {"aliases": {"fast": {"sampling": {"top_k": 1.5}}}},
            r"aliases\.fast\.sampling: top_k: 1\.5 is not a whole number",
        ),
        ({"aliases": {"fast": {"sampling": {"min_p": True}}}}, r"sampling\.min_p: "),
        ({"aliases": {"fast": {"thinking": "maybe"}}}, r"thinking: .*'auto', 'on'"),
        ({"aliases": {"fast": {"max_thinking_tokens": -1}}}, r"max_thinking_tokens: "),
        ({"aliases": {"fast": {"model": ""}}}, r"aliases\.fast\.model: "),
        ({"aliases": {"a/b": {}}}, r"aliases\.a/b: "),
        (
            {"aliases": {"fast": {"strategy": "paged:blok=3"}}},
            r"aliases\.fast\.strategy: paged: no parameter 'blok'; accepted: block",
        ),
        ({"aliases": {"x": {"rules": "a"}}}, r"aliases\.x\.rules: unknown rule 'a'"),
        (
            {"aliases": {"fast": {}}, "tiers": {"opus": "slow"}},
            r"tiers\.opus: no alias 'slow'; known: default, fast",
        ),
        ({"tiers": {"claude-opus": "default"}}, r"tiers\.claude-opus: "),
    ],
)
def test_a_fault_is_named_with_its_place(
    tmp_path: Path, content: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path, **content)
    assert str(caught.value).startswith(str(tmp_path / "model_aliases.json: "))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Aliases.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="directory"):
        Aliases.load(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text('{"aliases": ')
    with pytest.raises(ConfigError, match=r"broken\.json: Invalid JSON.*line 1"):
        Aliases.load(broken)


def test_loading_needs_neither_mlx_nor_a_web_framework() -> None:
    code = (
        "import sys; from mlxlab.server.aliases import Aliases; Aliases.load();"
        "print({'mlx', 'fastapi', 'starlette'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
