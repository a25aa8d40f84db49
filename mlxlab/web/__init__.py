"""The parts shared by all HTTP endpoints of mlxlab.

Nothing is imported here, so that parts without a web framework load none.
"""
