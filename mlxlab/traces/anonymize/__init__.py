"""Anonymised traces: other words, the same structure and the same reuse."""
