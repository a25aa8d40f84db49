"""Pages are found, short enough, and link to files that exist."""

import re
from pathlib import Path

import pytest

from docs.check_site import find_faults
from docs.picture import stack
from mlxlab import limits
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.strategies import STRATEGIES, make_strategy
from mlxlab.strategies.eviction import EVICTIONS
from mlxlab.strategies.placements import PLACEMENTS, parse_placement

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "data").glob("*/README.md"),
        ROOT / "mlxlab/models/tiny/README.md",
    }
)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_UNITS = ((10, "K"), (20, "M"), (30, "G"))
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    links = _LINK.findall(_CODE.sub("", page.read_text()))
    broken = [
        link
        for link in links
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]
    assert not broken


def test_every_page_is_in_the_contents() -> None:
    index = (ROOT / "docs/index.md").read_text()
    listed = {line.strip() for line in index.splitlines()}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - listed == {"index"}


def test_every_limit_is_on_its_page_with_its_value() -> None:
    page = (ROOT / "docs/limits.md").read_text()
    constants = {n: v for n, v in vars(limits).items() if n.isupper()}
    assert len(constants) > 10
    for name, value in constants.items():
        (line,) = [x for x in page.splitlines() if f"`{name}`" in x]
        shown = {f"{value:,}", *(f"{value / 2**n:g} {u}iB" for n, u in _UNITS)}
        assert any(re.search(rf"\b{text}\b", line) for text in shown), name


def test_the_readme_fits_on_a_page() -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    assert len(readme) <= 100
    first_screen = "\n".join(readme[:45])
    assert "%serve" in first_screen
    assert "ml.compare(" in first_screen


def test_the_site_check_finds_broken_links_and_foreign_assets(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<script src="https://cdn.example/x.js"></script><h1 id="here">A</h1>'
        '<a href="b.html#there">b</a><a href="gone.html">c</a><a href="#here">d</a>'
        '<a href="#lost">e</a><a href="https://example.org">f</a><img src="no.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there">B</p>')
    assert list(find_faults(tmp_path)) == [
        "a.html: loads https://cdn.example/x.js; keep a copy in docs/_static",
        "a.html: gone.html leads nowhere",
        "a.html: #lost leads to no heading",
        "a.html: no.png leads nowhere",
    ]


def test_pictures_are_stacked_into_one_svg() -> None:
    svg = '<svg height="9pt" viewBox="0 0 {} 20" width="8pt"><text>{}</text></svg>'
    stacked = stack([svg.format(30, "before"), svg.format(40.5, "after")])
    assert 'viewBox="0 0 40.5 40" width="40.5pt" height="40pt"' in stacked
    assert '<svg y="0" width="30" height="20" viewBox="0 0 30 20">' in stacked
    assert '<svg y="20" width="40.5" height="20" viewBox="0 0 40.5 20">' in stacked
    assert "prefers-color-scheme:dark" in stacked
    assert stacked.index("before") < stacked.index("after")


def test_the_strategy_of_the_howto_works() -> None:
    page = (ROOT / "docs/howto-strategy.md").read_text()
    [code, *_] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    try:
        exec(code, {"__name__": "howto"})
        strategy = make_strategy("head-only", head=4)
    finally:
        STRATEGIES.pop("head-only", None)
    prompt = Prompt.of([1, 2, 3, 4, 5, 6])
    strategy.commit(prompt, strategy.plan(prompt))
    strategy.check_integrity()
    assert strategy.plan(Prompt.of([1, 2, 3, 4, 5, 6, 7])).reused == 4
    assert strategy.plan(Prompt.of([1, 2, 9])).reused == 2


def test_the_policy_of_the_page_works() -> None:
    page = (ROOT / "docs/eviction.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    try:
        exec(code, {"__name__": "howto"})
        strategy = make_strategy("paged", block=1, capacity=6, evict="longest")
    finally:
        EVICTIONS.pop("longest", None)
    for ids in ([1, 2], [3, 4, 5, 6], [7, 8]):
        prompt = Prompt.of(ids)
        strategy.commit(prompt, strategy.plan(prompt))
        strategy.check_integrity()
    held = [
        strategy.preview(Prompt.of([*ids, 9])).reused for ids in ([3, 4, 5], [7, 8])
    ]
    assert held == [2, 2]


def test_the_placement_of_the_howto_works() -> None:
    page = (ROOT / "docs/howto-placement.md").read_text()
    [code, *_] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    small, large = (
        Segment("messages[0]", Role.USER, 0, 3),
        Segment("messages[1]", Role.TOOL_RESULT, 3, 8),
    )
    prompt = Prompt(Prompt.of(range(9)).tokens, (small, large))
    try:
        exec(code, {"__name__": "howto"})
        assert parse_placement("large4").places(prompt, 0) == [8]
        assert parse_placement("large3").places(prompt, 0) == [3, 8]
        assert parse_placement("large").places(prompt, 0) == []
    finally:
        PLACEMENTS.pop("large", None)
