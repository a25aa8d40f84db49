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
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from bench.architectures import ARCHITECTURES, opened
from bench.endless import endless
from bench.figures import figures_of, load_table
from bench.loads import LoadSample, Refused, Visit, put_on
from bench.measurement import Sample, measure
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
from bench.prompts import Prompts, Sizes, usual_answer
from bench.tables import median_requests, reuse_table, seconds_table
from mlxlab import blas
from mlxlab.analysis.tables import list_records
from mlxlab.errors import MlxlabError, ServerError
from mlxlab.files import write_json
from mlxlab.models.folder import BUNDLED, SMOLLM2, ModelFolder
from mlxlab.models.layout_record import find_record
from mlxlab.replay.manifest import describe_run
from mlxlab.traces import Trace, load_trace

__all__ = ["Comparison", "main", "run"]

TRACES = ("sessions", "loop", "subagents")

#: The recorded requests do not fit a smaller window.
_WINDOW = 32_768
_PARTS = ("turns", "loads")
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared.

    Attributes:
        rounds: number of rounds.
        parts: some of ``turns`` and ``loads``.
        sizes: of the loads.
        vllm_mlx: an interpreter that can import vllm-mlx.
        target: file for the samples, the figures and their manifest.
        picture: file for a picture of the loads.
    """

    rounds: int = 2
    parts: tuple[str, ...] = _PARTS
    sizes: Sizes = field(default_factory=Sizes)
    vllm_mlx: str | None = None
    target: Path | None = None
    picture: Path | None = None


@dataclass(slots=True)
class _Found:
    """All samples of a run, and why servers or parts are missing."""

    turns: list[Sample]
    loads: list[LoadSample]
    left_out: dict[str, str]


def run(folder: ModelFolder, comparison: Comparison) -> None:
    """Measure, print, and write.

    Args:
        folder: the model of all servers.
        comparison: what to measure.

    Raises:
        MlxlabError: our own server failed, or a file cannot be written.
    """
    sizes = comparison.sizes.within(folder.window)
    comparison = replace(comparison, sizes=sizes)
    with endless(folder) as copy:
        servers, missing = _servers(copy, comparison.vllm_mlx)
        traces = [load_trace(name) for name in TRACES]
        found = _measured(copy, comparison, servers, traces)
    if OURS in found.left_out:
        raise ServerError(found.left_out[OURS])
    found.left_out = missing | found.left_out
    manifest = _manifest(folder, comparison, traces, servers, found.left_out)
    base = next((s.name for s in servers if s.name.startswith(PEER)), PEER)
    _report(f"model {folder.name}", comparison, found, base, manifest)


def _measured(
    folder: ModelFolder,
    comparison: Comparison,
    servers: Sequence[Server],
    traces: Sequence[Trace],
) -> _Found:
    rounds, library = comparison.rounds, common_blas()
    found = _Found([], [], {})
    if "turns" in comparison.parts and folder.window < _WINDOW:
        found.left_out["turns"] = f"need a window of {_WINDOW:,} tokens"
    elif "turns" in comparison.parts:
        found.turns, failed = measure(servers, traces, rounds=rounds, library=library)
        found.left_out |= failed
    if "loads" in comparison.parts:
        others = [s for s in servers if s.name == OURS or not s.name.startswith(OURS)]
        prompts = Prompts(folder, comparison.sizes)
        found.loads, failed = put_on(others, prompts, rounds=rounds, library=library)
        found.left_out |= failed
    for sample in found.loads:
        if isinstance(sample, Refused):
            load = f"{sample.server}, {sample.load}, {sample.agents} at once"
            found.left_out[load] = sample.reason
    return found


def _report(
    title: str,
    comparison: Comparison,
    found: _Found,
    base: str,
    manifest: Mapping[str, Any],
) -> None:
    console = Console(width=_WIDTH, highlight=False)
    cpus = f"CPUs: {os.cpu_count()}, {blas.preload()}"
    console.print(f"{title}, rounds: {comparison.rounds}, {cpus}")
    rows = pd.DataFrame([asdict(sample) for sample in found.turns])
    if found.turns:
        requests = median_requests(rows)
        console.print(seconds_table(requests, base), reuse_table(requests))
    figures = figures_of(found.loads, comparison.sizes.long)
    if figures:
        console.print(load_table(figures, base))
        shares = [v.client for v in found.loads if isinstance(v, Visit)]
        console.print(f"the client took up to {max(shares):.0%} of a processor")
    for name, reason in found.left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False)
    if comparison.target is not None:
        content = {
            "manifest": dict(manifest),
            "rows": list_records(rows),
            "figures": list(map(asdict, figures)),
            "loads": [
                {"sample": type(sample).__name__, **asdict(sample)}
                for sample in found.loads
            ],
        }
        write_json(content, comparison.target)
    if comparison.picture is not None and figures:
        draw(figures).save(comparison.picture)


def _manifest(
    folder: ModelFolder,
    comparison: Comparison,
    traces: Sequence[Trace],
    servers: Sequence[Server],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    environment = {
        "cpus": os.cpu_count(),
        "blas": str(blas.preload()),
        "chunk": CHUNK,
        "rounds": comparison.rounds,
        "parts": list(comparison.parts),
        "sizes": asdict(comparison.sizes),
        "servers": {server.name: dict(server.packages) for server in servers},
        "restarted with": {server.name: list(server.keep) for server in servers},
        "left_out": dict(left_out),
    }
    return describe_run(traces, folder, (), {}, environment)


def _servers(
    folder: ModelFolder, vllm_mlx: str | None
) -> tuple[list[Server], dict[str, str]]:
    """Return the servers, and the reason for each that is left out.

    Raises:
        ModelError: the model cannot be served.
    """
    find_record(folder.path, folder.digest).require(folder.name)
    servers = [*our_servers(folder), mlx_lm_server(folder)]
    if vllm_mlx is None:
        return servers, {"vllm-mlx": "name an interpreter that has it with --vllm-mlx"}
    try:
        return [*servers, *vllm_mlx_servers(folder, vllm_mlx)], {}
    except ServerError as error:
        return servers, {"vllm-mlx": str(error)}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: give at least 1")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_positive, text.split(",")))


def _parser() -> ArgumentParser:
    sizes, usual = Sizes(), Comparison()
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    names = ", ".join((SMOLLM2, *ARCHITECTURES))
    add("--model", default=BUNDLED, help=f"a folder, or one of {names}; %(default)s")
    add(
        "--rounds",
        type=_positive,
        default=usual.rounds,
        metavar="N",
        help="%(default)s",
    )
    add("--only", choices=_PARTS, help="turns: recorded requests; loads: agents")
    agents = ",".join(map(str, sizes.agents))
    add("--agents", type=_numbers, default=sizes.agents, metavar="N,N", help=agents)
    add(
        "--answer",
        type=_positive,
        metavar="N",
        help=f"tokens of an agent's answer; {sizes.answer}, less for large models",
    )
    add(
        "--long",
        type=_positive,
        default=sizes.long,
        metavar="N",
        help="tokens of the long prompt, less in a small window; %(default)s",
    )
    add(
        "--vllm-mlx", metavar="PYTHON", help="compare vllm-mlx, run by this interpreter"
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write samples and figures to this file",
    )
    add("--plot", type=Path, metavar="FILE", help="draw the loads; .svg or .png")
    return parser


def _comparison(options: Namespace, folder: ModelFolder) -> Comparison:
    answer = options.answer or usual_answer(folder)
    return Comparison(
        options.rounds,
        (options.only,) if options.only else _PARTS,
        Sizes(options.agents, answer, options.long),
        options.vllm_mlx,
        options.json,
        options.plot,
    )


def main() -> None:
    """Read arguments and run; our own errors become one line and exit code 2."""
    options = _parser().parse_args()
    # As an exception, so that the running server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with opened(options.model) as folder:
            run(folder, _comparison(options, folder))
    except MlxlabError as error:
        print(f"bench.servers: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
