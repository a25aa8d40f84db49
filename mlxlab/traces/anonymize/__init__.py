"""Anonymised traces: other words, equal structure and equal reuse."""
