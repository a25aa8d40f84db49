"""Check the built site: internal links resolve, and no asset comes from elsewhere.

Sphinx checks the links that it writes. This also covers links in notebooks' outputs and
in raw HTML. Links to other sites are not fetched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Attributes that load something, by tag; ``a`` only links.
_LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src"}


class _Page(HTMLParser):
    """Targets and links of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attrs if value is not None}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in {"stylesheet", "preload", "icon"}:
            self.assets.append(given.get("href", ""))
        elif tag in _LOADED and _LOADED[tag] in given:
            self.assets.append(given[_LOADED[tag]])


def find_faults(site: Path) -> Iterator[str]:
    """Yield one line for each broken link and each asset of another site."""
    pages = cache(_Page)
    for path in sorted(site.rglob("*.html")):
        page, name = pages(path), path.relative_to(site)
        for url in page.assets:
            if urlsplit(url).netloc:
                yield f"{name}: loads {url}; keep a copy in docs/_static"
        for url in (*page.links, *page.assets):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)) if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                yield f"{name}: {url} leads nowhere"
            elif parts.fragment and unquote(parts.fragment) not in pages(target).ids:
                yield f"{name}: {url} leads to no heading"


def main() -> None:
    """Print the faults of the site in the folder given; exit code 1 if any."""
    faults = list(find_faults(Path(sys.argv[1])))
    print(*faults, sep="\n", end="\n" if faults else "")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
