"""What never reaches a trace: credentials in headers and addresses, and secrets.

An allow-list says which headers stay. Bodies stay as sent but for what is
obviously a secret, which a placeholder of the same length replaces. This is no
anonymisation: prompts and file contents remain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

from mlxlab.traces.schema import Json

__all__ = ["kept_headers", "kept_path", "redacted"]

_HEADERS = frozenset(
    {"user-agent", "anthropic-version", "anthropic-beta", "content-type", "x-app"}
)
_HEADER_PREFIX = "x-claude-code-"
_CREDENTIAL = re.compile("token|secret|key|auth|password", re.IGNORECASE)

_SECRET = re.compile(
    r"""
      -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
        (?: (?: (?!-----) . ){0,8000} -----END\ [A-Z ]*PRIVATE\ KEY-----
          | [\w+/=\t\r\n\\]* )
    | (?<![A-Za-z0-9]) (?:
          sk-[A-Za-z0-9_-]{16,}
        | (?: AKIA | ASIA ) [0-9A-Z]{16} (?![0-9A-Za-z])
        | gh[pousr]_ [A-Za-z0-9]{20,}
        | github_pat_ [A-Za-z0-9_]{20,}
        | xox[abposr]- [A-Za-z0-9-]{10,}
        | AIza [A-Za-z0-9_-]{35}
        | Bearer [ ]+ (?= [^\s"']* \d ) [A-Za-z0-9._~+/=-]{16,}
      )
    """,
    re.VERBOSE | re.DOTALL,
)
#: Every secret contains one of these, which are found much faster.
_HINTS = (
    "PRIVATE KEY-----",
    "sk-",
    "AKIA",
    "ASIA",
    *(f"gh{kind}_" for kind in "pousr"),
    "github_pat_",
    *(f"xox{kind}-" for kind in "abposr"),
    "AIza",
    "Bearer ",
)
_PLACEHOLDER = "redacted-"


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a trace keeps, names in lower case."""
    lower = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lower.items() if _keeps(name)}


def kept_path(path: str) -> str:
    """A request path without query parameters that name a credential."""
    parts = urlsplit(path)
    query = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(key, value) for key, value in query if not _CREDENTIAL.search(key)]
    if len(kept) == len(query):
        return path
    return parts._replace(query=urlencode(kept)).geturl()


def redacted(value: Json) -> tuple[Json, int]:
    """``value`` with the secrets in its strings replaced, and how many there were."""
    if isinstance(value, str):
        if any(hint in value for hint in _HINTS):
            return _SECRET.subn(_placeholder, value)
        return value, 0
    if isinstance(value, list):
        items = [redacted(item) for item in value]
        found = sum(count for _, count in items)
        return ([item for item, _ in items] if found else value), found
    if isinstance(value, dict):
        pairs = [(redacted(key), redacted(item)) for key, item in value.items()]
        found = sum(key[1] + item[1] for key, item in pairs)
        return ({key[0]: item[0] for key, item in pairs} if found else value), found
    return value, 0


def _keeps(name: str) -> bool:
    listed = name in _HEADERS or name.startswith(_HEADER_PREFIX)
    return listed and not _CREDENTIAL.search(name)


def _placeholder(match: re.Match[str]) -> str:
    length = len(match.group())
    return (_PLACEHOLDER * (length // len(_PLACEHOLDER) + 1))[:length]
