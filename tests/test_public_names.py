"""What a user imports is what the package says it offers."""

import mlxlab


def test_all_names_are_there_and_sorted() -> None:
    assert all(hasattr(mlxlab, name) for name in mlxlab.__all__)
    constants = [name for name in mlxlab.__all__ if name.isupper()]
    classes = [name for name in mlxlab.__all__ if name[0].isupper() and name[1:2] > "Z"]
    functions = [name for name in mlxlab.__all__ if name.islower()]
    for kind in (constants, classes, functions):
        assert kind == sorted(kind)


def test_every_public_name_is_documented() -> None:
    for name in mlxlab.__all__:
        thing = getattr(mlxlab, name)
        assert name.isupper() or (thing.__doc__ or "").strip()
