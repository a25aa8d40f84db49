"""Hashed traces: numbers in place of text, one file per published format."""
