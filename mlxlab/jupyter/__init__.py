"""Line magics: ``%load_ext mlxlab`` adds ``%serve`` and a magic for each verb."""
