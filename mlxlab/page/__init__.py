"""A page that tells somebody else what was found; it needs no network."""

from mlxlab.page.page import write_page

__all__ = ["write_page"]
