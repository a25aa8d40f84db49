"""Whatever another library raises at a model's files becomes one line."""

import pytest

from mlxlab.errors import ModelError
from mlxlab.models.refusal import refusing


class PanicException(BaseException):
    """As the Rust libraries raise it."""


@pytest.mark.parametrize(
    "error",
    [ValueError("a\n b"), SystemExit("a b"), PanicException("a b"), KeyError("a b")],
)
def test_any_error_becomes_one_line(error: BaseException) -> None:
    with pytest.raises(ModelError, match=r"^model m: it fails: ") as caught:
        raise_in_block(error)
    assert str(caught.value).replace("'", "").endswith(f"{type(error).__name__}: a b")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_what_is_no_fault_of_the_model_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        raise_in_block(error)


def test_a_refusal_names_its_model_once() -> None:
    for text in ("no", "model m: no"):
        with pytest.raises(ModelError, match=r"^model m: no$"):
            raise_in_block(ModelError(text))


def test_a_reason_has_an_end() -> None:
    with pytest.raises(ModelError) as caught:
        raise_in_block(ValueError("a" * 10**6))
    assert len(str(caught.value)) < 500


def raise_in_block(error: BaseException) -> None:
    with refusing("m", "it fails"):
        raise error
