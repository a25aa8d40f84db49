"""Replay coding-agent traffic through KV-cache strategies, and see what each saves.

Importing this package loads neither mlx nor a web framework.
"""

from mlxlab.canonical import RULES
from mlxlab.errors import MlxlabError
from mlxlab.models import ModelFolder, find_model
from mlxlab.prompt import Prompt, Segment
from mlxlab.render import Renderer
from mlxlab.replay import compare, count_segments, summarize, write_json
from mlxlab.strategies import STRATEGIES, Strategy, make_strategy
from mlxlab.traces import Trace, bundled_traces, load_trace

__all__ = [
    "RULES",
    "STRATEGIES",
    "MlxlabError",
    "ModelFolder",
    "Prompt",
    "Renderer",
    "Segment",
    "Strategy",
    "Trace",
    "bundled_traces",
    "compare",
    "count_segments",
    "find_model",
    "load_trace",
    "make_strategy",
    "summarize",
    "write_json",
]
