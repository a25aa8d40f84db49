"""``python -m mlxlab`` is the command line, for where scripts are not on PATH."""

from mlxlab.cli import main

if __name__ == "__main__":
    main()
