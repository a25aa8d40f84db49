"""Other projects' servers as endpoints: ``make test-servers`` runs this."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.peers import mlx_lm_server, vllm_mlx_servers
from bench.processes import Server, common_blas, running
from mlxlab.analysis.audit.result import Audit
from mlxlab.analysis.audit.run import audit_live
from mlxlab.analysis.compare import compare
from mlxlab.errors import ServerError
from mlxlab.models.folder import find_model
from mlxlab.replay.endpoints.chat_completions import ChatCompletions
from mlxlab.replay.endpoints.messages import Messages
from mlxlab.traces.recording.recorder import recording
from tests.support.exchanges import small_trace

#: An interpreter that can import vllm-mlx.
PYTHON = os.environ.get("VLLM_MLX", "")


def servers(name: str) -> Iterator[Server]:
    if name == "mlx_lm":
        yield mlx_lm_server(find_model())
        return
    if not PYTHON:
        pytest.skip("VLLM_MLX names no interpreter that has vllm-mlx")
    try:
        yield from vllm_mlx_servers(find_model(), PYTHON)
    except ServerError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlx_lm", "vllm_mlx"])
def test_a_server_is_measured_and_audited_as_it_is(name: str, tmp_path: Path) -> None:
    for number, server in enumerate(servers(name)):
        with running(server, common_blas()) as client:
            found = compare(
                small_trace(),
                "paged",
                simulate=True,
                endpoints=[f"{client.base_url}=peer"],
                progress=False,
            )
            out = tmp_path / f"{number}.jsonl"
            audited = audit_through(str(client.base_url), server, out)
        own = found.requests[found.requests.strategy == "peer"]
        assert (own.failure == "").all(), own.failure.tolist()
        assert own.ttft_s.notna().all()
        assert (own.prompt_tokens > 100).all()
        (endpoint,) = found.manifest["endpoints"]
        own_path = {"mlx_lm": ChatCompletions.path, "vllm_mlx": Messages.path}
        assert endpoint["protocol"] == own_path[name]
        assert len(audited.requests) == 3
        if name == "mlx_lm":
            assert own.reused_tokens.sum() > 0
            claimed = audited.requests.claimed_tokens
            # The requests were answered just before.
            assert (claimed >= audited.requests.prompt_tokens - 2).all()


def audit_through(url: str, server: Server, out: Path) -> Audit:
    """Ask a server three of the requests again, through a proxy that audits it."""
    with (
        audit_live(out, lambda row: None) as live,
        recording(out, upstream=url, listener=live.take) as proxy,
        httpx.Client(base_url=proxy.url, timeout=60) as client,
    ):
        for exchange in small_trace().inference[:3]:
            body = server.dialect.request(exchange.body or {}, server.model, 4)
            assert client.post(server.dialect.path, json=body).is_success
    return live.result()
