import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlxlab.client.discovery import Endpoint, find, publish, running, withdraw
from mlxlab.errors import ServerError
from mlxlab.server.aliases import Alias, Aliases

TOKEN = "tok-very-secret"


def endpoint(port: int = 8080, **changes: object) -> Endpoint:
    made = Endpoint(f"http://127.0.0.1:{port}", TOKEN, 4096, ("default",))
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "endpoints"


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_endpoint_is_found_and_gone(folder: Path) -> None:
    assert running(folder) == []
    published = endpoint(tiers={"opus": "default"})
    publish(published, folder)
    assert find(folder=folder) == published
    assert find("http://127.0.0.1:8080/", folder) == published
    withdraw(published, folder)
    assert running(folder) == []
    withdraw(published, folder)


def test_only_the_owner_can_read_it(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o755)
    publish(endpoint(), folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    below = folder / "not/yet/there"
    publish(endpoint(), below)
    made = (below, below.parent, below.parent.parent)
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    shutil.rmtree(folder / "not")
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_bytes())["token"] == TOKEN


def test_the_token_is_never_shown(folder: Path) -> None:
    publish(endpoint(), folder)
    assert TOKEN not in repr(find(folder=folder))
    assert "8080" in repr(find(folder=folder))


def test_aliases_say_what_answers_each_tier() -> None:
    aliases = Aliases({"default": Alias(), "think": Alias()}, {"opus": "think"})
    made = aliases.endpoint(url="http://[::1]:81", token=TOKEN, window=5)
    assert made.aliases == ("default", "think")
    assert made.tiers["opus"] == "think"
    assert {made.tiers[tier] for tier in ("sonnet", "haiku")} == {"default"}
    assert (made.pid, made.port) == (os.getpid(), 81)


def test_several_must_be_told_apart(folder: Path) -> None:
    second, first = endpoint(2, started=2.0), endpoint(1, started=1.0)
    publish(second, folder)
    publish(first, folder)
    assert running(folder) == [first, second]
    assert find(second.url, folder) == second
    with pytest.raises(ServerError, match=r"--url: \S+:1, \S+:2$"):
        find(folder=folder)
    with pytest.raises(ServerError, match=r"no endpoint runs at x; running: \S+:1,"):
        find("x", folder)


def test_none_runs(folder: Path) -> None:
    with pytest.raises(ServerError, match="start one: mlxlab serve"):
        find(folder=folder)
    with pytest.raises(ServerError, match="start one: mlxlab serve"):
        find("http://127.0.0.1:8080", folder)


def test_what_a_dead_process_left_is_removed(folder: Path, dead: int) -> None:
    publish(endpoint(1, pid=dead), folder)
    publish(endpoint(2), folder)
    assert running(folder) == [endpoint(2, started=running(folder)[0].started)]
    assert [file.name for file in folder.iterdir()] == ["2.json"]


def test_the_next_at_a_port_replaces_the_last(folder: Path, dead: int) -> None:
    last = endpoint(pid=dead)
    publish(last, folder)
    publish(endpoint(window=1), folder)
    withdraw(last, folder)
    assert find(folder=folder).window == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_files_open_to_others_are_refused(folder: Path, mode: int) -> None:
    publish(endpoint(), folder)
    (file,) = folder.iterdir()
    file.chmod(mode)
    with pytest.raises(ServerError, match="others may read or write it; remove it"):
        running(folder)
    withdraw(endpoint(), folder)
    assert file.exists()


def test_files_of_others_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(endpoint(), folder)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(ServerError, match="others may read or write it"):
        find(folder=folder)


def test_a_folder_that_others_can_write_is_not_believed(folder: Path) -> None:
    """They could put an endpoint of theirs in place of ours."""
    publish(endpoint(), folder)
    folder.parent.chmod(0o777)
    with pytest.raises(ServerError, match=rf"others may write {folder.parent} "):
        find(folder=folder)


def test_links_and_pipes_are_refused(folder: Path, tmp_path: Path) -> None:
    publish(endpoint(), folder)
    (file,) = folder.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServerError, match=r"8080\.json: .*remove it"):
        running(folder)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(ServerError, match=r"8080\.json: .*remove it"):
        running(folder)


@pytest.mark.parametrize(
    "damage",
    [
        {"url": "http://127.0.0.1:80/a"},
        {"url": "file:///etc/passwd"},
        {"url": "http://127.0.0.1:80 x"},
        {"pid": -1},
        {"pid": 0},
        {"window": 0},
        {"token": None},
    ],
)
def test_damaged_files_are_refused(folder: Path, damage: dict[str, object]) -> None:
    publish(endpoint(), folder)
    (file,) = folder.iterdir()
    content = json.loads(file.read_bytes()) | damage
    file.write_text(json.dumps(content))
    with pytest.raises(ServerError, match="not an endpoint's file") as caught:
        running(folder)
    assert TOKEN not in str(caught.value)
    file.write_text("{")
    with pytest.raises(ServerError, match="not an endpoint's file"):
        running(folder)


def test_later_versions_may_say_more(folder: Path) -> None:
    publish(endpoint(), folder)
    (file,) = folder.iterdir()
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"more": 1}))
    assert len(running(folder)) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="make the folder yours"):
        publish(endpoint(), tmp_path / "file")
