"""Fills requests of a history that lack system text and tools, from recorded ones."""
