"""Settings for all tests. Its first import settles the BLAS before mlx is imported."""

from hypothesis import settings

import mlxlab.engine  # noqa: F401

# The same examples on every run, however busy the machine is.
settings.register_profile("mlxlab", derandomize=True, deadline=None)
settings.load_profile("mlxlab")
