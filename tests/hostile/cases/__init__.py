"""Cases by kind. A case is made from its kind and its seed, and from nothing else."""
