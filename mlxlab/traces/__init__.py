"""Traces of coding-agent traffic: read and write.

Reading a trace needs no web framework, so :mod:`mlxlab.traces.recording` is not
imported here.
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
