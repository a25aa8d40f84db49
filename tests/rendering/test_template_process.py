"""Templates of strangers: limits, and what a text is worth behind them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.rendering.template_process import (
    TemplateLimits,
    TemplateProcess,
    TemplateRefusedError,
)

HELLO = "Hello, {{ messages[0].content }}!"

#: Templates that raise, and the reason that is passed on.
RAISING = {
    "{{ 1 // 0 }}": "ZeroDivisionError: integer division or modulo by zero",
    "{{ nothing.at_all }}": "UndefinedError: 'nothing' is undefined",
    "{{ messages[0].content.nothing() }}": "UndefinedError: .*nothing",
    "{{ 'a' < 1 }}": "TypeError: .*'<' not supported",
    "{{ 'a'.encode('x') }}": "LookupError: unknown encoding",
    "{{ raise_exception('no \\n user') }}": "^no user$",
    "{{ raise_exception('a' * 9999) }}": "^a{300}$",
    "{{ ''.__class__.__mro__ }}": "SecurityError: .*unsafe",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError: .*",
    "{{ " + "(" * 3000 + ")" * 3000 + " }}": "(Recursion|TemplateSyntax|Memory)Error",
    "{% if %}": "TemplateSyntaxError: Expected an expression",
    "{{ range(10**9) | list }}": "OverflowError: Range too big",
}

#: Templates that would take a machine's memory; the first three run in `make test`.
LARGE = {
    "times": "{{ 'a' * 10**10 }}",
    "loop": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "format": "{{ '%10000000000d' % 1 }}",
    "center": "{{ 'a' | center(10**10) }}",
    "join": "{{ (['a' * 10**6] * 10**6) | join }}",
    "block": "{% set a %}{{ 'a' * 10**6 }}{% endset %}"
    + "{% set a %}{{ a }}{{ a }}{% endset %}" * 20,
    "graph": "{% set ns = namespace(x=['a' * 1000]) %}{% for i in range(40) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
}


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess(TemplateLimits(cpu_s=0.4, text=2**20, memory=2**30))
    yield process
    process.stop()


def render(process: TemplateProcess, template: str, **options: Any) -> str:
    messages = [{"role": "user", "content": options.pop("content", "you")}]
    return process.render(
        conversations=[messages],
        tools=None,
        chat_template=template,
        add_generation_prompt=True,
        **options,
    )


@pytest.mark.parametrize(("template", "reason"), RAISING.items())
def test_a_template_may_raise_anything(
    process: TemplateProcess, template: str, reason: str
) -> None:
    with pytest.raises(TemplateRefusedError, match=reason) as caught:
        render(process, template)
    assert "\n" not in str(caught.value)
    assert render(process, HELLO) == "Hello, you!"


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(text, id=name, marks=[pytest.mark.slow] if i > 2 else [])
        for i, (name, text) in enumerate(LARGE.items())
    ],
)
def test_a_template_may_not_take_memory(
    process: TemplateProcess, template: str
) -> None:
    with pytest.raises(
        ModelError, match=r"^it (needs|prints|takes) more than"
    ) as found:
        render(process, template)
    assert not isinstance(found.value, TemplateRefusedError)
    assert render(process, HELLO) == "Hello, you!"


def test_a_template_may_not_take_long(process: TemplateProcess) -> None:
    loop = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    begin = time.monotonic()
    with pytest.raises(ModelError, match=r"^it takes more than 0\.4 s$"):
        render(process, loop)
    assert time.monotonic() - begin < 20
    assert render(process, HELLO) == "Hello, you!"


def test_time_is_counted_for_each_text(process: TemplateProcess) -> None:
    busy = "{% for i in range(99999) %}{% endfor %}" * 8
    begin = time.monotonic()
    while time.monotonic() - begin < 1.2:
        assert render(process, busy) == ""


def test_a_template_sees_what_it_is_given(process: TemplateProcess) -> None:
    given = {"a": [1, 2.5, -0.0, None, True, 2**70, "\n\u00e9\0\U0001f600"], "1": {}}
    shown = "{{ given }}|{{ messages }}|{{ tools }}|{{ add_generation_prompt }}"
    assert render(process, shown, given=given) == (
        f"{given}|{[{'role': 'user', 'content': 'you'}]}|None|True"
    )


def test_halves_of_a_pair_stay_halves(process: TemplateProcess) -> None:
    halves = "\ud83d\ude00 \ud800"
    assert render(process, "{{ messages[0].content }}", content=halves) == halves


def test_a_value_may_be_nested_too_deep(process: TemplateProcess) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateRefusedError, match="nested too deep"):
        render(process, HELLO, deep=deep)


def test_the_text_is_that_of_transformers() -> None:
    tokenizer = find_model().tokenizer
    messages = [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning_content": "Hm.", "content": "Ho"},
    ]
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    tools: list[Any] = [{"type": "function", "function": function}]
    template = (
        str(tokenizer.chat_template) + "{{ bos_token }}{{ messages[2].thinking }}"
    )
    process = TemplateProcess()
    try:
        text = process.render(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            add_generation_prompt=True,
            **tokenizer.special_tokens_map,
        )
    finally:
        process.stop()
    assert text == tokenizer.apply_chat_template(
        messages,
        tools=tools,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )


def test_a_renderer_may_need_the_packages_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "transformers"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("name = 'another version'")
    (package / "utils" / "__init__.py").touch()
    (package / "utils" / "chat_template_utils.py").write_text(
        "from transformers import name\n"
        "def render_jinja_template(**arguments): return [name], []"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = TemplateProcess()
    try:
        assert render(process, HELLO) == "another version"
    finally:
        process.stop()


def test_threads_share_a_process(process: TemplateProcess) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        text = str(number) * 100_000
        found[number] = render(process, "{{ messages[0].content }}", content=text)

    threads = [Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) * 100_000 for number in range(8)}


def test_a_process_that_was_killed_is_replaced(process: TemplateProcess) -> None:
    render(process, HELLO)
    assert process._process
    first = process._process.pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert render(process, HELLO) == "Hello, you!"
    assert process._process.pid != first


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_nothing_is_left_behind() -> None:
    before = descriptors()
    process = TemplateProcess()
    render(process, HELLO)
    assert process._process
    pid = process._process.pid
    process.stop()
    assert descriptors() == before
    assert not Path(f"/proc/{pid}").exists()


PARENT = """
import os, sys
from mlxlab.rendering.template_process import TEMPLATE_PROCESS
TEMPLATE_PROCESS.start()
print(TEMPLATE_PROCESS._process.pid, flush=True)
if sys.argv[1] == "fork":
    if os.fork() == 0:
        text = TEMPLATE_PROCESS.render(conversations=[[{"role": "user"}]],
                                       chat_template="{{ messages[0].role }}")
        print(text, TEMPLATE_PROCESS._process.pid, flush=True)
        sys.exit()
    os.wait()
    print(TEMPLATE_PROCESS.render(conversations=[[{}]], chat_template="parent"))
elif sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


def run_parent(way: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PARENT, way], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("way", ["ends", "killed"])
def test_the_process_ends_with_its_parent(way: str) -> None:
    (pid,) = run_parent(way)
    for _ in range(200):  # an orphan first imports what it was importing
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it goes on")


@pytest.mark.slow
def test_a_fork_gets_a_process_of_its_own() -> None:
    first, text, second, last = run_parent("fork")
    assert (text, last) == ("user", "parent")
    assert first != second


def test_the_process_holds_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXLAB_TOKEN", "not for a template")
    process = TemplateProcess()
    process.start()
    assert process._process is not None
    held = Path(f"/proc/{process._process.pid}/environ")
    if not held.exists():
        pytest.skip("no /proc here")
    assert b"PATH=" in held.read_bytes()
    assert b"MLXLAB_TOKEN" not in held.read_bytes()
    process.stop()
