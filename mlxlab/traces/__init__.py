"""Traces of coding-agent traffic: reading, writing, scripts of answers.

Recording over HTTP is :mod:`mlxlab.traces.recording`, which is not imported here:
reading a trace needs no web framework.
"""

from mlxlab.traces.bundled import bundled_traces, load_trace
from mlxlab.traces.trace import Exchange, Response, Trace, read_trace
from mlxlab.traces.writer import TraceWriter, write_trace

__all__ = [
    "Exchange",
    "Response",
    "Trace",
    "TraceWriter",
    "bundled_traces",
    "load_trace",
    "read_trace",
    "write_trace",
]
