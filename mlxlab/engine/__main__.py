"""Prints the cache layout of a model folder, or why the model is refused, as JSON.

``python -m mlxlab.engine FOLDER`` is for :mod:`mlxlab.models.layout_record`, which must
not import mlx.
"""

import sys
from contextlib import redirect_stdout

from mlxlab.engine.loading import outline_layout
from mlxlab.errors import MlxlabError, ModelError
from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheLayout
from mlxlab.models.layout_record import LayoutRecord


def main(path: str) -> None:
    """Measure the model in a folder."""
    found: CacheLayout | ModelError
    with redirect_stdout(sys.stderr):  # some models of mlx-lm print
        folder = find_model(path, download=False)
        try:
            found = outline_layout(folder)
        except ModelError as error:
            found = error
    print(LayoutRecord.of(found, path).model_dump_json())


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except MlxlabError as error:
        sys.exit(f"mlxlab: {error}")
