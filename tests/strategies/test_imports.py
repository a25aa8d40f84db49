from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from mlxlab.strategies import STRATEGIES, make_strategy
for name in STRATEGIES:
    if name != "mlx-lm":
        make_strategy(name)
heavy = {"mlx", "mlx_lm", "fastapi", "IPython"} & set(sys.modules)
sys.exit(f"loaded {sorted(heavy)}" if heavy else 0)
"""


def test_strategies_load_neither_mlx_nor_fastapi_nor_ipython() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
