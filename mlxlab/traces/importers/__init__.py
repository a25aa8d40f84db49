"""Importers: one file per foreign format, each returning a Trace."""

from mlxlab.traces.importers.capture import import_capture

__all__ = ["import_capture"]
