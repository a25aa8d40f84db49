"""A model on two processes: the answers of one, and no process is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_model as load_mlx_model

from mlxlab.engine import Loader, Runner
from mlxlab.engine.ranks.channel import Channel, LostError
from mlxlab.engine.ranks.messages import Begin, Stop, WirePrompt
from mlxlab.engine.ranks.ranks import _hosts
from mlxlab.engine.sharding import shard, weight_bytes
from mlxlab.errors import ModelError, ServerError
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt, Role, Segment
from tests.support.models import save_model
from tests.support.pair import Pair, needs_ring, save_two_heads
from tests.support.rank import CANCELLED, LONGEST, conversation, prompt, timeless


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two heads of keys and values."""
    return save_two_heads(tmp_path_factory.mktemp("models") / "two")


def running(case: str, folder: Path, scratch: Path) -> Pair:
    return Pair(["tests.support.rank", str(folder), case], scratch)


@pytest.mark.parametrize("data", ["", "{}", "[]", "[[]", "[[1]]", '["a"]', None])
def test_the_file_of_addresses_is_not_trusted(
    data: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts.json"
    if data is None:
        os.mkfifo(path)
    else:
        path.write_text(data)
    monkeypatch.setenv("MLX_HOSTFILE", str(path))
    with pytest.raises(ServerError, match=r"MLX_HOSTFILE: .*hosts\.json: .*; see"):
        _hosts()


def test_addresses_have_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts.json"
    path.write_text('[["127.0.0.1:5000", "127.0.0.2:5000"], ["10.0.0.1:5000"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(path))
    assert _hosts() == ["127.0.0.1", "127.0.0.2"]


@needs_ring
def test_two_processes_answer_like_one(folder: Path, tmp_path: Path) -> None:
    with running("conversation", folder, tmp_path) as pair:
        loader = Loader()
        loaded = loader.load(find_model(str(folder)))
        alone = loader.open(loaded, "paged", chunk=64, chunk_s=1.0)
        runner = Runner(clock=timeless)
        expected = json.loads(json.dumps(conversation(alone, runner)))
        code, out, errors = pair.result(0)
        other, follows, said = pair.result(1)
    assert (code, errors, other, said) == (0, [], 0, [])
    found = json.loads(out)
    state = found.pop("state")
    assert found == expected
    assert [len(ids) for ids in found["answers"]] == [LONGEST, 15, CANCELLED, LONGEST]
    assert found["errors"] == []
    assert found["reused"] > 200
    # Both ranks hold the same, and each of them half of what one process does.
    assert json.loads(follows)["state"] == state
    assert state["nbytes"] == state["stored_bytes"] == alone.store.nbytes // 2
    assert 2 * state["token_bytes"] == alone.strategy.token_bytes


@needs_ring
@pytest.mark.parametrize(
    ("victim", "kind", "news"),
    [
        (1, signal.SIGKILL, "mlxlab: rank 1 was lost: "),
        pytest.param(
            *(1, signal.SIGSTOP, "mlxlab: rank 1 was lost: no sign of life for 5 s"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(0, signal.SIGKILL, "mlxlab: rank 1: rank 0 was lost: "),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_lost_process_ends_the_other(
    folder: Path, tmp_path: Path, victim: int, kind: signal.Signals, news: str
) -> None:
    with running("long", folder, tmp_path) as pair:
        pair.wait_for("answering")
        pair.processes[victim].send_signal(kind)
        code, out, errors = pair.result(1 - victim)
    assert (code, out, len(errors)) == (1, "", 1)
    assert errors[0].startswith(news)


@needs_ring
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "news"),
    [
        ("version", r"rank 1 has mlxlab 0\.0\.1, rank 0 has .*; install the same"),
        ("files", "rank 1: model .*: its files are not those of rank 0"),
        ("chance", "rank 1: paged: decided otherwise than on rank 0"),
        ("stuck", "(rank 1: )?the other ranks did not answer for 2 s"),
    ],
)
def test_ranks_that_differ_end_with_one_line(
    folder: Path, tmp_path: Path, case: str, news: str
) -> None:
    with running(case, folder, tmp_path) as pair:
        code, _, errors = pair.result(0)
        other, _, said = pair.result(1)
    assert code > 0
    assert other > 0
    assert len([*errors, *said]) == 1
    assert re.match(f"mlxlab: {news}", errors[0])


@dataclass(frozen=True)
class Parts:
    """A group as far as dividing a model needs it."""

    number: int

    def size(self) -> int:
        return self.number

    def rank(self) -> int:
        return 0


def group(size: int) -> Any:
    return Parts(size)


def test_a_part_weighs_a_part(folder: Path) -> None:
    model, _ = load_mlx_model(folder, lazy=True)
    whole = weight_bytes(model)
    embedding = model.model.embed_tokens.weight.nbytes
    shard(model, group(2))
    part = weight_bytes(model)
    assert embedding + (whole - embedding) // 2 <= part < embedding + whole // 2


@pytest.mark.parametrize(
    ("heads", "size", "why"),
    [
        ((1, 1), 2, "n_heads is 1"),
        ((4, 2), 4, "n_kv_heads is 2"),
        ((9, 3), 2, "n_heads is 9"),
    ],
)
def test_heads_that_do_not_divide_are_refused(
    tmp_path: Path, heads: tuple[int, int], size: int, why: str
) -> None:
    path = save_model(
        tmp_path, num_attention_heads=heads[0], num_key_value_heads=heads[1]
    )
    model, _ = load_mlx_model(path, lazy=True)
    refused = f"cannot be divided among {size} processes: {why}"
    with pytest.raises(ModelError, match=refused):
        shard(model, group(size))


def test_a_kind_that_mlx_lm_does_not_divide_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot divide a model of this kind among 3"):
        shard(object(), group(3))


@contextmanager
def channels(silence_s: float) -> Iterator[tuple[Channel, Channel]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        calling = socket.create_connection(listening.getsockname())
        one = Channel(calling, silence_s)
        other = Channel(listening.accept()[0], silence_s)
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def test_a_prompt_travels_whole() -> None:
    segments = (Segment("system[0]", Role.SYSTEM, 0, 30), *prompt(1, 9).segments[1:])
    given = Prompt(prompt(1, 30).tokens, segments, exact_segments=False, pinned=True)
    with channels(5.0) as (one, other):
        one.beat()
        one.send(Begin(3, WirePrompt.of(given), "plan"))
        found = other.receive()
    assert isinstance(found, Begin)
    came = found.prompt.prompt()
    assert came.tokens.dtype == given.tokens.dtype
    assert came.tokens.tolist() == given.tokens.tolist()
    assert (came.segments, came.exact_segments) == (segments, False)
    assert came.pinned


def test_signs_of_life_keep_a_silent_channel_open() -> None:
    with channels(0.2) as (one, other):
        one.beat()
        one.send(Stop(3))
        assert other.receive() == Stop(3)
        with pytest.raises(LostError, match="no sign of life for"):
            other.receive()


def test_a_closed_channel_is_lost() -> None:
    with channels(5.0) as (one, other):
        one.close()
        with pytest.raises(LostError, match="closed"):
            other.receive()


def test_what_is_no_message_is_not_followed() -> None:
    with channels(5.0) as (one, other):
        one._send(b'{"kind": "open", "model": "x"}')
        with pytest.raises(LostError, match="engine"):
            other.receive()
