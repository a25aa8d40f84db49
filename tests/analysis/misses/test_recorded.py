"""What replay says about the recorded traces, and the gate on how they render."""

from functools import cache
from itertools import pairwise

import pandas as pd
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.models.folder import find_model
from mlxlab.prompt import common_prefix
from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.messages import parse_request
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import RULES, canonicalize
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.traces import bundled_traces, load_trace

#: How often the client edited a session's history. ``/compact`` does so twice: the
#: order for a summary takes the place of the last answer, then the summary that of all.
EDITED = {"compact": 2}


@cache
def requests_of(name: str) -> tuple[Renderer, list[RenderedRequest]]:
    renderer = Renderer(find_model())
    return renderer, render_trace(load_trace(name), renderer)


def extends(later: Conversation, earlier: Conversation) -> bool:
    """Whether a conversation goes on with an answer to an earlier one."""
    n = len(earlier.turns)
    return (
        later.system == earlier.system
        and [tool.function for tool in later.tools]
        == [tool.function for tool in earlier.tools]
        and later.turns[:n] == earlier.turns
        and later.turns[n].role == "assistant"
    )


@pytest.mark.parametrize("name", bundled_traces())
def test_a_turns_tokens_extend_the_last_turns_unless_history_was_edited(
    name: str,
) -> None:
    renderer, requests = requests_of(name)
    bodies = {e.id: e.body for e in load_trace(name).inference}
    edited = 0
    for session in {request.session for request in requests}:
        own = [request for request in requests if request.session == session]
        for earlier, later in pairwise(own):
            shared = common_prefix(earlier.prompt.tokens, later.prompt.tokens)
            appended = extends(
                *(
                    canonicalize(parse_request(bodies[request.id]), RULES)
                    for request in (later, earlier)
                )
            )
            assert appended == (shared == len(earlier.prompt))
            edited += not appended
    assert edited == EDITED.get(name, 0)
    assert all(request.prompt.exact_segments for request in requests)
    assert not renderer.notes


@cache
def rows_of(name: str) -> pd.DataFrame:
    specs = "prefix@none,paged@-environment-first,paged"
    rows = compare(load_trace(name), strategies=specs, simulate=True, progress=False)
    return rows.requests


@pytest.mark.parametrize(
    ("spec", "least", "most"),
    [
        ("prefix@none", 0, 40 / 14_000),
        ("paged@-environment-first", 0.75, 0.95),
        ("paged", 0.95, 1),
    ],
)
def test_a_second_sessions_first_request(spec: str, least: float, most: float) -> None:
    rows = rows_of("sessions").query("strategy == @spec")
    first = rows[rows.session == rows.session.unique()[1]].iloc[0]
    assert least <= first.reused_tokens / first.prompt_tokens <= most


@pytest.mark.parametrize(
    ("spec", "least", "most"), [("prefix@none", 0, 0.15), ("paged", 0.75, 1)]
)
def test_parallel_agents(spec: str, least: float, most: float) -> None:
    rows = rows_of("subagents").query("strategy == @spec")
    assert least <= rows.reused_tokens.sum() / rows.prompt_tokens.sum() <= most
