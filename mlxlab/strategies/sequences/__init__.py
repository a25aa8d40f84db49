"""Data structures over token sequences that strategies share."""
