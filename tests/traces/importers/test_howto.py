"""The importer of docs/howto-importer.md works as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlxlab.traces.importers import IMPORTERS, import_trace

GUIDE = Path(__file__).parents[3] / "docs/howto-importer.md"


def test_the_example_imports_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall("```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    monkeypatch.setattr(IMPORTERS, "_formats", {**IMPORTERS})
    exec(compile(code, GUIDE.name, "exec"), {"__name__": "chat_log"})
    secret = "ghp" + "_0123456789abcdefghijABCDEFGHIJ"
    lines = [
        {"time": 2.0, "prompt": f"Use {secret}.", "answer": "Done."},
        {"time": 1.0},
        {"time": "now", "prompt": "One."},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [exchange] = trace = import_trace(path, progress=False)
    assert trace.header.notes["imported"] == "chat-log"
    assert trace.skipped == {
        "line without prompt or time skipped": 2,
        "secret replaced": 1,
    }
    assert (exchange.t, exchange.is_inference) == (2.0, True)
    assert secret not in str(exchange)
    assert exchange.response is not None
    assert exchange.response.message is not None
    assert exchange.response.message["content"][0]["text"] == "Done."
