"""Hashed traces: salted hashes of blocks in place of text."""
