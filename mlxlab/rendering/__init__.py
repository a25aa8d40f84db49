"""Rendering: a Messages request becomes token ids, in segments named by block."""
