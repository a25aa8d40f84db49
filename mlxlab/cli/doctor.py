"""The command that finds, explains and tunes by itself, and then offers to act."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mlxlab as ml
from mlxlab.cli.app import SEE, app, screen_of
from mlxlab.cli.completion import complete_traces
from mlxlab.cli.options import Fill, Json, Layout, Memory, Model, given
from mlxlab.cli.screen import Answer

if TYPE_CHECKING:
    from mlxlab.analysis.doctor.evidence import Evidence

_REPORT = Path("report.html")


@app.command(rich_help_panel=SEE)
def doctor(
    context: typer.Context,
    traces: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRACE",
            help="Read these traces; the latest recording, else the history of Claude "
            "Code, by default.",
            autocompletion=complete_traces,
        ),
    ] = None,
    model: Model = None,
    layout: Layout = None,
    memory: Memory = None,
    fill: Fill = False,
    json: Json = None,
) -> Answer:
    """Find your requests, and say what to change."""
    from mlxlab.analysis.doctor.evidence import find_evidence

    screen = screen_of(context)
    evidence = find_evidence(traces or None, fill=fill, progress=screen.progress)
    setting = given(model=model, layout=layout, memory=memory)
    found = ml.doctor(evidence, progress=screen.progress, **setting)
    return Answer(
        found, found.to_dict, json, then=lambda: _offer(found, evidence, setting)
    )


def _offer(found: ml.Diagnosis, evidence: Evidence, setting: dict[str, Any]) -> None:
    """Ask a person what to do next.

    Args:
        found: the diagnosis.
        evidence: what was diagnosed.
        setting: arguments of the diagnosis.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    offered = ["quit"]
    if all(isinstance(trace, ml.Trace) for trace in evidence.traces):
        offered.insert(0, "report")
    if found.manifest["served"] and found.is_better:
        offered.insert(0, "serve")
    letters = ", ".join(f"[{name[0]}]{name[1:]}" for name in offered)
    answer = typer.prompt(letters, default="q", show_default=False).strip().lower()
    chosen = next((name for name in offered if name[0] == answer[:1]), "quit")
    if chosen == "serve":
        command = [sys.executable, "-m", "mlxlab", "serve", *found.serve_arguments()]
        os.execv(sys.executable, command)
    if chosen == "report":
        ml.report(evidence, _REPORT, found=found, **setting)
        typer.echo(f"Written: {_REPORT}")
        webbrowser.open(_REPORT.absolute().as_uri())
