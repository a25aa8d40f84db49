"""Compares servers: first tokens of recorded requests, and loads of several agents.

``python -m bench.servers`` starts our server, mlx-lm's and, if an interpreter for it is
named, vllm-mlx's. They run one at a time, with one model, one BLAS and one chunk size.
Rounds alternate the order of servers.

First each answers the traces ``sessions``, ``loop`` and ``subagents``, with a restart
between them: one request after the other, with one token each. The histories in the
requests are the recorded ones, so each turn extends the prompt of the turn before it.
The median over the rounds counts. Then come the loads of :mod:`bench.loads`, on our
server with all rules.

The model is the bundled one, ``smollm2``, a folder, or a random model of an
architecture in :mod:`bench.architectures`, most of which cannot be cut at any token.
Answers do not end by themselves, so that all servers generate the same number of
tokens.
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.architectures import ARCHITECTURES, opened
from bench.endless import endless
from bench.figures import figures_of, load_table
from bench.loads import LoadSample, Refused, Visit, put_on
from bench.measurement import Kind, Sample, measure
from bench.peers import (
    CHUNK,
    OURS,
    PEER,
    mlx_lm_server,
    our_servers,
    vllm_mlx_servers,
)
from bench.pictures import draw
from bench.processes import Server, common_blas
from bench.prompts import Prompts, Sizes
from mlxlab import blas
from mlxlab.analysis.tables import list_records
from mlxlab.errors import MlxlabError, ServerError
from mlxlab.files import write_json
from mlxlab.models.folder import BUNDLED, SMOLLM2, ModelFolder
from mlxlab.replay.manifest import describe_run
from mlxlab.traces import Trace, load_trace

__all__ = ["main", "median_requests", "reuse_table", "run", "seconds_table"]

TRACES = ("sessions", "loop", "subagents")

#: Column, kind of request, aggregation.
_SECONDS = (
    ("turn 1", Kind.TURN_1, "median"),
    ("warm turns", Kind.WARM, "median"),
    ("slowest", Kind.WARM, "max"),
    ("new session", Kind.NEW_SESSION, "median"),
    ("sub-agents", Kind.SUB_AGENTS, "median"),
)
_REUSE = (Kind.TURN_1, Kind.WARM, Kind.NEW_SESSION, Kind.SUB_AGENTS)


def median_requests(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the medians over the rounds, one row per server and request."""
    keys = ["server", "kind", "trace", "request"]
    columns = ["ttft_s", "prompt_tokens", "reused_tokens"]
    return rows.groupby(keys, sort=False)[columns].median().reset_index()


def seconds_table(requests: pd.DataFrame) -> Table:
    """Return the seconds to the first token; in brackets, the ratio to ours.

    Args:
        requests: from :func:`median_requests`, with our server.
    """
    table = _table("seconds to first token (times ours)", [c[0] for c in _SECONDS])
    rows = {
        str(server): [
            float(own.ttft_s[own.kind == kind].agg(how)) for _, kind, how in _SECONDS
        ]
        for server, own in requests.groupby("server", sort=False)
    }
    for server, seconds in rows.items():
        pairs = zip(seconds, rows[OURS], strict=True)
        table.add_row(server, *(f"{s:.2f} ({s / ours:.1f})" for s, ours in pairs))
    return table


def reuse_table(requests: pd.DataFrame) -> Table:
    """Return the prompt tokens of all requests, and the reused ones as reported.

    Args:
        requests: from :func:`median_requests`.
    """
    table = _table("thousand tokens reused of prompts, as reported", _REUSE)
    for server, own in requests.groupby("server", sort=False):
        table.add_row(str(server), *(_reuse(own[own.kind == kind]) for kind in _REUSE))
    return table


def _reuse(requests: pd.DataFrame) -> str:
    if requests.prompt_tokens.isna().any():
        return "-"
    reused, prompt = requests.reused_tokens.sum(), requests.prompt_tokens.sum()
    return f"{reused / 1000:.1f} of {prompt / 1000:.1f}"


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table("server", box=SIMPLE_HEAD, title=title, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _manifest(
    folder: ModelFolder,
    traces: Sequence[Trace],
    servers: Sequence[Server],
    rounds: int,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    environment = {
        "cpus": os.cpu_count(),
        "blas": str(blas.preload()),
        "chunk": CHUNK,
        "rounds": rounds,
        "servers": {server.name: dict(server.packages) for server in servers},
        "left_out": dict(left_out),
    }
    return describe_run(traces, folder, (), {}, environment)


def _servers(
    folder: ModelFolder, vllm_mlx: str | None
) -> tuple[list[Server], dict[str, str]]:
    """Return the servers, and the reason for each that is left out."""
    servers = [*our_servers(folder), mlx_lm_server(folder)]
    if vllm_mlx is None:
        return servers, {"vllm-mlx": "name an interpreter that has it with --vllm-mlx"}
    try:
        return [*servers, *vllm_mlx_servers(folder, vllm_mlx)], {}
    except ServerError as error:
        return servers, {"vllm-mlx": str(error)}


def run(
    folder: ModelFolder, rounds: int, vllm_mlx: str | None, target: Path | None
) -> None:
    """Measure, print, and write.

    Args:
        folder: the model of all servers.
        rounds: number of rounds.
        vllm_mlx: an interpreter that can import vllm-mlx.
        target: file for the samples and their manifest.

    Raises:
        MlxlabError: our own server failed, or the file cannot be written.
    """
    traces = [load_trace(name) for name in TRACES]
    servers, missing = _servers(folder, vllm_mlx)
    samples, failed = measure(servers, traces, rounds=rounds, library=common_blas())
    if OURS in failed:
        raise ServerError(failed[OURS])
    left_out = missing | failed
    rows = pd.DataFrame([asdict(sample) for sample in samples])
    manifest = _manifest(folder, traces, servers, rounds, left_out)
    console = Console()
    requests = median_requests(rows)
    title = f"model {folder.name}, rounds: {rounds}, CPUs: {os.cpu_count()}"
    console.print(f"{title}, {blas.preload()}", highlight=False)
    console.print(seconds_table(requests), reuse_table(requests))
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", highlight=False)
    if target is not None:
        write_json({"manifest": manifest, "rows": list_records(rows)}, target)


def main() -> None:
    """Read arguments and run; our own errors become one line and exit code 2."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model",
        default=BUNDLED,
        help=f"a folder, or one of {', '.join(ARCHITECTURES)}; %(default)s",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="%(default)s"
    )
    parser.add_argument(
        "--vllm-mlx", metavar="PYTHON", help="compare vllm-mlx, run by this interpreter"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the samples to this file"
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: give at least 1")
    # As an exception, so that the running server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with opened(options.model) as folder:
            run(folder, options.rounds, options.vllm_mlx, options.json)
    except MlxlabError as error:
        print(f"bench.servers: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
