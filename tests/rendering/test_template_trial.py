"""A model is refused at once if its template can serve no request."""

import logging
from pathlib import Path

import pytest

from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer

PRINTED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
REFUSED = {
    "": "mlxlab needs a tokenizer.json and a chat template",
    "nothing": "leaves out the user's messages",
    "{{ messages | length }}>": "leaves out the user's messages",
    PRINTED: "prints nothing after the last message",
    "{{ messages[-1].content }} \n\t": "prints nothing after the last message",
    "{{ 1 // 0 }}": "cannot render the request: ZeroDivisionError",
    "{{ raise_exception('not today') }}": "cannot render the request: not today$",
    "{{ 'a' * 10**10 }}": "cannot render the request: it needs more than 2,048 MiB",
    "{% if messages | length > 2 %}{{ 'a' * 10**10 }}{% endif %}" + PRINTED + ">": (
        "cannot render the request: it needs more than 2,048 MiB"
    ),
}
SERVED = {
    PRINTED + "<assistant>": "",
    "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}": "",
    "{{ raise_exception('no') if messages[0].role == 'system' }}" + PRINTED + ">": (
        "a chat template that refuses the request: no (a result of a tool)"
    ),
    "{{ raise_exception('no') if messages[0].role != 'system' }}" + PRINTED + ">": "",
    "{{ raise_exception('no') if tools }}" + PRINTED + ">": "no (a result of a tool)",
    "{% for m in messages if m.role != 'tool' %}{{ m.content }}\n{% endfor %}>": (
        "its chat template leaves out tools' results"
    ),
}


def with_template(template: str) -> ModelFolder:
    folder = find_model()
    folder.tokenizer.chat_template = template
    return folder


@pytest.mark.parametrize(("template", "problem"), REFUSED.items())
def test_a_template_that_serves_nothing_is_refused(
    template: str, problem: str, tmp_path: Path
) -> None:
    tiny = find_model().path
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=problem) as caught:
        Renderer(find_model(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("template", "note"), SERVED.items())
def test_a_template_may_serve_less_than_all(
    template: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        renderer = Renderer(with_template(template))
    assert bool(caplog.text) == bool(note)
    assert not note or note.rpartition(": ")[2] in caplog.text
    system = [{"type": "text", "text": "You help."}]
    body = {"model": "any", "messages": [{"role": "user", "content": "Hi"}]}
    prompt = renderer.render(body | {"system": system} if "!=" in template else body)
    assert "Hi" in renderer.tokenizer.decode(prompt.tokens)
