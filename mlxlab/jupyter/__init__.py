"""What mlxlab adds to a notebook: ``%load_ext mlxlab`` gives ``%serve``."""
