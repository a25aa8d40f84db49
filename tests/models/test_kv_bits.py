"""What specs say of bits at rest, and the bytes that these take."""

import pytest

from mlxlab.errors import StrategyError
from mlxlab.models.geometry import known_layouts
from mlxlab.models.kv_bits import COMPUTED, KVBits
from mlxlab.models.layout import CacheKind, CacheLayout, LayerCache, Windows
from mlxlab.replay.specs import StrategySpec
from mlxlab.server.aliases import add_disk
from mlxlab.strategies import make_strategy, parse_strategy


@pytest.mark.parametrize(
    ("text", "bits"),
    [("16", (16, 16)), ("8", (8, 8)), ("k8v4", (8, 4)), ("k16v8", (16, 8))],
)
def test_specs_say_bits(text: str, bits: tuple[int, int]) -> None:
    found = KVBits.parse(text)
    assert (found.keys, found.values) == bits
    assert KVBits.parse(str(found)) == found
    strategy = parse_strategy(f"paged:kv={text}", layout=CacheLayout.plain(1024))
    assert strategy.kv == str(found)
    assert strategy.is_exact is (text == "16")
    assert StrategySpec.parse(f"paged:kv={text}").exact is (text == "16")


@pytest.mark.parametrize("text", ["7", "0", "k8", "k8v5", "v8k8", "q8"])
def test_other_bits_are_refused(text: str) -> None:
    with pytest.raises(StrategyError, match=r"paged: kv=.*give 16, 8 or 4 bits"):
        parse_strategy(f"paged:kv={text}")


def test_other_groups_are_refused() -> None:
    with pytest.raises(StrategyError, match=r"kv_group=.*give one of 32, 64, 128"):
        parse_strategy("paged:kv=8,kv_group=48")


def test_bytes_are_those_of_packed_numbers_and_their_scales() -> None:
    part = LayerCache(2, CacheKind.TOKENS, 2 * (512 + 256), keys=512, values=256)
    layout = CacheLayout((part,))
    assert layout.token_bytes(bits=COMPUTED) == 2 * part.size
    # Each group of 64 numbers has a scale and an offset of two bytes each.
    one = {8: 1 + 4 / 64, 4: 0.5 + 4 / 64, 16: 2}
    for keys in one:
        for values in one:
            expected = 2 * (512 * one[keys] + 256 * one[values])
            assert layout.token_bytes(bits=KVBits(keys, values)) == expected
    small = KVBits(8, 8, 32)
    assert layout.token_bytes(bits=small) == 2 * 768 * (1 + 4 / 32)


def test_unknown_numbers_are_taken_for_16_bits() -> None:
    layout = CacheLayout.plain(96 << 10)
    assert layout.token_bytes(bits=KVBits(8, 8)) == 96 * 1024 * (0.5 + 1 / 32)
    assert layout.token_bytes(bits=KVBits(4, 4)) == 96 * 1024 * (0.25 + 1 / 32)


def test_known_models_hold_about_twice_as_much_at_8_bits() -> None:
    refused = set()
    for name, layout in known_layouts().items():
        full = layout.token_bytes()
        try:
            strategy = make_strategy("paged", layout=layout, kv=8)
        except StrategyError:
            refused.add(name)
            continue
        assert strategy.computed_bytes == full
        assert 0.25 < strategy.token_bytes / full < 0.54
        assert strategy.checkpoint_bytes == layout.checkpoint_bytes()
    # The latents of some models come in odd widths, or there are none.
    assert len(refused) < len(known_layouts()) / 4


def test_a_model_without_keys_is_refused() -> None:
    state = CacheLayout((LayerCache(1, CacheKind.STATE, 4096),))
    with pytest.raises(StrategyError, match="keeps a state"):
        make_strategy("paged", layout=state, kv=8)


def test_numbers_that_are_no_groups_are_refused() -> None:
    part = LayerCache(1, CacheKind.TOKENS, 160, keys=48, values=32)
    layout = CacheLayout((part,))
    with pytest.raises(StrategyError, match=r"48 numbers of keys.*another kv_group"):
        make_strategy("paged", layout=layout, kv=8)
    assert make_strategy("paged", layout=layout, kv="k16v8", kv_group=32).kv == "k16v8"


def test_windows_count_where_they_are_kept_token_by_token() -> None:
    parts = (
        LayerCache(1, CacheKind.TOKENS, 256, keys=64, values=64),
        LayerCache(3, CacheKind.WINDOW, 256, 128, keys=64, values=64),
    )
    layout, bits = CacheLayout(parts), KVBits(8, 8)
    whole = layout.token_bytes(Windows.TOKENS, bits)
    assert whole == 4 * layout.token_bytes(bits=bits)


def test_nothing_approximate_goes_to_disk() -> None:
    with pytest.raises(StrategyError, match=r"only exact keys.*leave kv out"):
        make_strategy("paged", kv=8, disk=1 << 30)
    assert add_disk("paged:kv=8", 1 << 30) == "paged:kv=8"
    assert add_disk("paged:kv=16", 1 << 30) == "paged:kv=16,disk=1GiB"
