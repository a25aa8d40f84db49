"""Commands that say what to set: what things cost, what fits, what is best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlxlab.analysis.sweep import sweep as run_sweep
from mlxlab.analysis.tables import lay_out
from mlxlab.cli.app import app, console, print_result
from mlxlab.cli.options import (
    AnyTraces,
    Chunk,
    Memory,
    Model,
    Rules,
    Strategies,
    TokenBytes,
    parse_counts,
    parse_sizes,
)
from mlxlab.models.folder import BUNDLED, find_model
from mlxlab.replay.cost_model import CHUNK, recall_costs
from mlxlab.replay.specs import EXACT_SPECS
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.bundled import DEFAULT_TRACE


@app.command()
def calibrate(
    model: Model = BUNDLED,
    tokens: Annotated[
        int, typer.Option(min=1, help="Of the longest prompt to measure.")
    ] = 20_000,
    seconds: Annotated[
        float, typer.Option(min=0, help="After which no more is measured.")
    ] = 60.0,
    chunk: Chunk = CHUNK,
    check: Annotated[
        list[str] | None,
        typer.Option(help="Trace to replay live too, to see how far off it is."),
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Replace a calibration with more points too.")
    ] = False,
) -> None:
    """Measure what prefill and restore take here, so that simulations tell seconds.

    A calibration with more points stays, unless forced.
    """
    from mlxlab.analysis.calibrate import calibrate as measure
    from mlxlab.analysis.calibrate import check_costs
    from mlxlab.analysis.calibration import format_check

    folder = find_model(model)
    found = measure(folder, chunk=chunk, tokens=tokens, seconds=seconds, force=force)
    print_result(found)
    if check:
        errors = format_check(check_costs(found.costs, check, model=folder))
        console.print(lay_out(errors, console.width))


@app.command()
def sweep(
    traces: AnyTraces = None,
    strategies: Strategies = EXACT_SPECS,
    capacities: Annotated[
        str, typer.Option(help="Bytes that strategies may hold: 1GiB,4GiB,...")
    ] = "4GiB",
    users: Annotated[
        str, typer.Option(help="Traces replayed at the same time: 1,8,...")
    ] = "1",
    model: Model = BUNDLED,
    token_bytes: TokenBytes = None,
    rules: Rules = "all",
    out: Annotated[
        Path | None, typer.Option(help="Keep results here, and go on from them.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster, or here.")
    ] = None,
) -> None:
    """Simulate strategies by capacities and users, beside what is possible."""
    folder = find_model(model)
    found = run_sweep(
        traces or [DEFAULT_TRACE],
        strategies=strategies,
        capacities=parse_sizes(capacities, "capacities"),
        users=parse_counts(users, "users"),
        model=folder,
        token_bytes=token_bytes,
        rules=rules,
        # Of a model of other sizes nothing was measured.
        costs=None if token_bytes else recall_costs(folder.digest, CHUNK),
        folder=out,
        scheduler=scheduler,
    )
    print_result(found)


@app.command()
def tune(
    traces: AnyTraces = None,
    memory: Memory = CAPACITY,
    model: Model = BUNDLED,
    token_bytes: TokenBytes = None,
    rules: Rules = "all",
    users: Annotated[
        int, typer.Option(min=1, help="Traces replayed at the same time.")
    ] = 1,
    kld: Annotated[
        float | None,
        typer.Option(
            min=0, help="Nats at 99.9 % that approximate strategies may diverge by."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many to try.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
) -> None:
    """Recommend strategy and parameters for traffic under a memory budget."""
    from mlxlab.analysis.tune import tune as search

    folder = find_model(model)
    found = search(
        traces or [DEFAULT_TRACE],
        memory=memory,
        model=folder,
        token_bytes=token_bytes,
        rules=rules,
        users=users,
        # Of a model of other sizes nothing was measured.
        costs=None if token_bytes else recall_costs(folder.digest, CHUNK),
        kld=kld,
        trials=trials,
        seed=seed,
    )
    print_result(found)
