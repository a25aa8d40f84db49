import json
import os
from pathlib import Path

import pytest

from mlxlab.errors import ConfigError
from mlxlab.server.agents import write_agents
from mlxlab.server.aliases import Alias, Aliases


def front_matter(path: Path) -> dict[str, str]:
    opening, front, prompt = path.read_text().split("---\n")
    assert opening == ""
    assert len(prompt.strip()) > 40
    lines = [line for line in front.splitlines() if not line.startswith("#")]
    found = dict(line.split(": ", 1) for line in lines)
    return found | {"description": json.loads(found["description"])}


def test_each_alias_gets_an_agent(tmp_path: Path) -> None:
    paths = write_agents(tmp_path, Aliases.load())
    names = ["default", "fast", "background", "think"]
    assert paths == [tmp_path / ".claude/agents" / f"{name}.md" for name in names]
    for name, path in zip(names, paths, strict=True):
        front = front_matter(path)
        assert (front["name"], front["model"]) == (name, name)
        assert len(front["description"]) > 20
        assert set(front) == {"name", "description", "model"}
    assert len({path.read_text() for path in paths}) == len(paths)


def test_an_alias_of_ones_own(tmp_path: Path) -> None:
    aliases = Aliases({"default": Alias(), "big": Alias(model='a: "b" #c')}, {})
    front = front_matter(write_agents(tmp_path, aliases)[1])
    assert front["model"] == "big"
    assert 'a: "b" #c' in front["description"]


def test_our_own_files_are_brought_up_to_date(tmp_path: Path) -> None:
    before = Aliases({"default": Alias(), "big": Alias(model="a")}, {})
    after = Aliases({"default": Alias(), "big": Alias(model="b")}, {})
    write_agents(tmp_path, before)
    _, big = write_agents(tmp_path, after)
    assert "the model b" in front_matter(big)["description"]


@pytest.mark.parametrize("kept", ["---\nname: think\n---\nMine.\n", "", "\xff"])
def test_foreign_files_are_kept(tmp_path: Path, kept: str) -> None:
    path = tmp_path / ".claude/agents/think.md"
    path.parent.mkdir(parents=True)
    path.write_bytes(kept.encode("latin-1"))
    with pytest.raises(ConfigError):
        write_agents(tmp_path, Aliases.load())
    assert path.read_bytes() == kept.encode("latin-1")
    assert list(path.parent.iterdir()) == [path]
    write_agents(tmp_path, Aliases.load(), force=True)
    assert front_matter(path)["model"] == "think"


def test_edited_files_are_kept(tmp_path: Path) -> None:
    path = write_agents(tmp_path, Aliases.load())[0]
    path.write_text(path.read_text() + "And be kind.\n")
    with pytest.raises(ConfigError, match=r"default\.md: .*edited.*--force"):
        write_agents(tmp_path, Aliases.load())
    assert "And be kind." in path.read_text()


def test_only_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / ".claude/agents/default.md"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        write_agents(tmp_path, Aliases.load())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / ".claude").touch()
    with pytest.raises(ConfigError, match="give another folder"):
        write_agents(tmp_path, Aliases.load())
