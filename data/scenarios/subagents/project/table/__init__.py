"""Tables written in Markdown."""

from table.parse import parse_table
from table.render import render_table

__all__ = ["parse_table", "render_table"]
