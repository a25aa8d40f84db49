"""The Messages endpoint: a real client talks to a strategy.

Import :mod:`mlxlab.server.server` to run one; importing this package alone loads
nothing.
"""
