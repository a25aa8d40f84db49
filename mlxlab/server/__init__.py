"""The Messages endpoint: clients such as Claude Code talk to a strategy.

Import :mod:`mlxlab.server.server` to run one. Importing only this package loads
nothing.
"""
