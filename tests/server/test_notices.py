"""What a server says of approximate strategies, for which aliases, and when."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlxlab.analysis.fidelity.store import remember
from mlxlab.errors import StrategyError
from mlxlab.models.folder import find_model
from mlxlab.server.aliases import Aliases
from mlxlab.server.notices import list_notices
from tests.support.endpoint import copy_tiny, served
from tests.support.measured import sample_fidelity

APPROXIMATE = "answers may differ from those of a full prefill."
UNKNOWN = "Nothing was measured for it on this model; to do so:"

pytestmark = pytest.mark.usefixtures("measured")


def said(**default: str) -> list[str]:
    return list_notices(Aliases.load().with_default(**default))


def said_of(aliases: Mapping[str, Any], path: Path) -> list[str]:
    path.write_text(json.dumps({"aliases": aliases}))
    return list_notices(Aliases.load(path))


def test_fewer_bits_are_announced() -> None:
    first, second, command = said(strategy="paged:kv=8")
    assert first == f"paged:kv=8 on tiny is approximate: {APPROXIMATE}"
    assert second == UNKNOWN
    assert "--strategies paged:kv=8" in command
    assert said(strategy="paged:kv=16") == []


def test_nothing_is_said_or_looked_up_for_exact_strategies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlxlab.server.notices.find_model", None)
    for strategy in ("none", "prefix", "static-prefix", "paged:block=16", "mlx-lm"):
        assert said(strategy=strategy) == []


def test_what_was_not_measured_is_said_with_the_command_that_does(
    tmp_path: Path,
) -> None:
    model = copy_tiny(tmp_path / "a model")
    spec = "suffix:recompute=15,selection=random"
    lines = said(strategy=spec, model=model, rules="-environment-first")
    first, second, command = lines
    assert first == f"{spec} on {model} is approximate: {APPROXIMATE}"
    assert second == UNKNOWN
    assert shlex.split(command) == [
        *("mlxlab", "fidelity", "TRACE", "--model", model),
        *("--strategies", spec, "--rules", "-environment-first"),
    ]


def test_what_was_measured_is_said() -> None:
    remember(sample_fidelity("suffix,segmented"))
    first, second, third = said(strategy="suffix:block=64")
    assert first == f"suffix:block=64 on tiny is approximate: {APPROXIMATE}"
    assert second.startswith("Measured 20")
    assert third.startswith("KLD median 0.5, 99.9% 0.5, same top 50.0%")
    for other in (
        {"strategy": "suffix:block=16"},
        {"strategy": "suffix-naive"},
        {"strategy": "suffix", "rules": "none"},
    ):
        assert said(**other)[1] == UNKNOWN


def test_what_was_measured_on_another_model_is_not_said(tmp_path: Path) -> None:
    changed = copy_tiny(tmp_path / "changed", rope_theta=1234.0)
    remember(sample_fidelity("suffix", folder=find_model(changed)))
    assert said(strategy="suffix")[1] == UNKNOWN
    assert said(strategy="suffix", model=changed)[1].startswith("Measured")
    same = copy_tiny(tmp_path / "same", rope_theta=1234.0)
    assert said(strategy="suffix", model=same)[1].startswith("Measured")


def test_it_is_said_once_for_every_alias_that_has_one(tmp_path: Path) -> None:
    aliases = {
        "default": {"strategy": "prefix"},
        "one": {"strategy": "suffix"},
        "two": {"strategy": "suffix", "thinking": "off"},
        "three": {"strategy": "segmented"},
        "four": {"strategy": "segmented", "rules": "none"},
    }
    lines = said_of(aliases, tmp_path / "aliases.json")
    assert [line.split()[0] for line in lines if APPROXIMATE in line] == [
        "suffix",
        "segmented",
        "segmented",
    ]
    assert len(lines) == 9


def test_a_model_that_is_not_here_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is once it is asked for, and till then it has not been measured either."""
    asked = []

    def refuse(name: str, *, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise FileNotFoundError(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    aliases = {
        "one": {"strategy": "suffix", "model": "someone/something"},
        "two": {"strategy": "suffix", "model": "/nowhere/at/all"},
    }
    lines = said_of(aliases, tmp_path / "aliases.json")
    assert lines[1::3] == [UNKNOWN, UNKNOWN]
    assert asked == [True]


def test_without_a_cache_folder_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    assert said(strategy="suffix")[1] == UNKNOWN


def test_lines_are_no_longer_than_a_terminal_is_wide() -> None:
    remember(sample_fidelity("suffix", tasks=True))
    lines = [*said(strategy="suffix"), *said(strategy="segmented")]
    assert max(map(len, lines)) <= 100


def test_a_change_while_it_runs_shows_what_was_measured() -> None:
    remember(sample_fidelity("suffix"))
    with served() as server:
        assert server.notices == []
        assert "Approximate" not in server._repr_html_()
        assert server.configure(strategy="suffix") is server
        first, second, third = server.notices
        shown = server._repr_html_()
        assert "Approximate: measured fidelity" in shown
        assert all(line in shown for line in (first, second, third))
        server.configure(rules="none")
        assert server.notices[1] == UNKNOWN
        before = server.notices
        with pytest.raises(StrategyError):
            server.configure(strategy="suffix:nope=1")
        assert server.notices == before
        # What is measured meanwhile is known at once.
        remember(sample_fidelity("suffix@none"))
        assert server.notices[1].startswith("Measured")
        server.configure(strategy="paged")
        assert server.notices == []


def test_notices_are_escaped(tmp_path: Path) -> None:
    name = copy_tiny(tmp_path / "<script>alert(1)<")
    with served(name, "suffix") as server:
        assert "<script>" in server.notices[0]
        assert "<script>" not in server._repr_html_()
