"""Finds the traffic of this machine, explains its misses, and says what to change."""
