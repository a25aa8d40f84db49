"""Patterns of secrets: those of detect-secrets that are safe to run, and our own.

Patterns see UTF-8 bytes. Each has an anchor that every match contains and that is found
fast; the pattern itself is tried only there, and no part of it scans without a limit
before it can fail. So time grows with the length of a text, whatever it holds.

Of detect-secrets' patterns those are left out that scan a text again and again, or that
damage hashes and identifiers. Its entropy tests are left out for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

__all__ = ["SecretPattern", "compile_patterns", "find_secrets", "is_secret_entry"]

#: A word begins here, also behind an escape such as ``\\n`` or ``%20``.
_START = (
    rb"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrtv])|(?<=%[0-9A-Fa-f]{2})"
    rb"|(?<=\\u[0-9A-Fa-f]{4}))"
)
_END = rb"(?![\w-])"
#: Characters of secrets without spaces become ``a``: runs of those are found fast.
_LEAST_RUN = 14
_RUNS = bytes(97 if re.match(rb"[\w.:/+=@-]", bytes([c])) else 32 for c in range(256))
#: Bytes in runs up to which one pattern for all anchors is faster than a search each.
_FEW = 4096
#: Shorter prefixes are parts of words too.
_DISTINCT = 5

#: Prefixes that detect-secrets lacks or reads more narrowly, and the rest of a secret.
_PREFIXED: dict[bytes, bytes] = {
    b"sk-": rb"[\w-]{16,}",
    b"glpat-": rb"[\w-]{20,}(?:\.[\w-]{1,20}){0,3}",
    b"AKIA": rb"[0-9A-Z]{16}(?![0-9A-Za-z])",
    b"ASIA": rb"[0-9A-Z]{16}(?![0-9A-Za-z])",
    b"ABIA": rb"[0-9A-Z]{16}(?![0-9A-Za-z])",
    b"ACCA": rb"[0-9A-Z]{16}(?![0-9A-Za-z])",
    **{b"gh%c_" % kind: rb"[A-Za-z0-9]{20,}" for kind in b"pousr"},
    b"github_pat_": rb"\w{20,}",
    **{b"xox%c-" % kind: rb"[A-Za-z0-9-]{10,}" for kind in b"abcdeoprs"},
    b"xapp-": rb"\d-[A-Za-z0-9-]{10,}",
    b"AIza": rb"[\w-]{35,}",
    b"AKCp": rb"[A-Za-z0-9]{10,}",
    b"hf_": rb"[A-Za-z0-9]{20,}",
    b"ya29.": rb"[\w-]{20,}",
    b"1//0": rb"[\w-]{30,}",
    b"GOCSPX-": rb"[\w-]{20,}",
    b"npm_": rb"[A-Za-z0-9]{30,}",
    **{b"%ck_%s_" % (k, m): rb"\w{16,}" for k in b"rs" for m in (b"live", b"test")},
    b"whsec_": rb"[A-Za-z0-9+/=]{20,}",
    b"dckr_pat_": rb"[\w-]{20,}",
    b"dop_v1_": rb"[a-f0-9]{32,}",
    b"shpat_": rb"[A-Fa-f0-9]{32,}",
    b"ATATT3": rb"[\w=-]{30,}",
    b"hvs.": rb"[\w-]{24,}",
    b"gsk_": rb"[A-Za-z0-9]{40,}",
    b"nvapi-": rb"[\w-]{40,}",
    b"xai-": rb"[A-Za-z0-9]{40,}",
    b"AGE-SECRET-KEY-1": rb"[0-9A-Z]{40,}",
    # Not within a run, which would be read to its end again and again.
    b"eyJ": rb"(?:(?<![\w-]eyJ)|(?<=\\[bfnrtv]eyJ)|(?<=%[0-9A-Fa-f]{2}eyJ))"
    rb"[\w-]{8,}(?:\.eyJ[\w-]{8,}(?:\.[\w-]*)?|(?:\.[\w-]*){3,4})",
    b"Bearer ": rb"[ ]*(?=[^\s\"']{0,4096}\d)[A-Za-z0-9._~+/=-]{16,}",
}
#: What stands before a secret, and the secret.
_LED: dict[bytes, bytes] = {
    b"/api/webhooks/": rb"\d{8,24}/(?P<secret>[\w-]{30,})",
    b"SharedAccessKey=": rb"(?P<secret>[A-Za-z0-9+/=]{20,})",
    b"_authToken=": rb"(?P<secret>[^\s\"'\\$]{8,})",
}
#: The same, where what leads may be short or holds spaces.
_SPACED: dict[bytes, bytes] = {
    b"uthorization": rb"[\"':=\s\\]{1,24}Basic\s{1,3}"
    rb"(?P<secret>[A-Za-z0-9+/]{8,}={0,2})",
    b"://": rb"[^\s:/?#@\"'<>{}\\`\x7f-\xff]{0,256}:"
    rb"(?P<secret>(?!redacted-)[^\s/?#@\"'<>{}\\`\x7f-\xff]{1,256})@(?=[\w\[])",
}
_KEY = rb"-----(?:BEGIN|END)\ [A-Z0-9 ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?-----"
_PRIVATE_KEY = (
    _KEY.replace(b"(?:BEGIN|END)", b"BEGIN")
    + rb"(?:(?:(?!-----).){0,20000}"
    + _KEY.replace(b"(?:BEGIN|END)", b"END")
    + rb"|[\w+/=\t\r\n\\]*)"
)
_PUTTY_KEY = (
    rb"PuTTY-User-Key-File-\d(?:(?!PuTTY-User-Key-File).){0,20000}?"
    rb"Private-MAC:\s?[0-9a-f]{20,}"
)
#: Names of secrets that detect-secrets lacks, in its form.
_NAMES = (
    *("access_?key", "secret_?key", "encryption_?key", "signing_?key"),
    *("access_?token", "api_?token", "auth_?token", "bot_?token", "refresh_?token"),
    "passphrase",
)
#: A letter and a digit or sign, and what is no placeholder and no call.
_VALUE = (
    rb"(?!redacted-|[$<{%%*(/~.])(?=[^\s\"'`\\]{0,199}[A-Za-z])"
    rb"(?=[^\s\"'`\\]{0,199}[0-9!@#^&*+~?])[^\s\"'`\\,;(){}<>]{%d,200}"
)
#: Without quotes only what is no name, path or call in a program either.
_BARE = (
    rb"(?!redacted-)(?=[A-Za-z0-9+/=-]{0,199}[A-Za-z])(?=[A-Za-z0-9+/=-]{0,199}\d)"
    rb"[A-Za-z0-9+/=-]{16,200}(?![\w.(\[{])"
)
#: Names that go on so are not of the secret itself.
_ABOUT = rb"(?![\w-]{0,30}(?:dir|file|ids?|names?|path|refs?|type|ur[il]|version)\b)"
_ASSIGNED = _ABOUT + (
    rb"[\w-]{0,30}(?:\\{0,15}[\"'`])?\]?\s{0,4}(?::=|=>|={1,3}|:)\s{0,4}"
    rb"(?:[rbuf]?(?P<quote>\\{0,15}[\"'`])(?P<quoted>" + _VALUE % 8 + rb")(?P=quote)"
    rb"|(?P<bare>" + _BARE + rb"))"
)
#: A whole string, so it may hold what would end it in a text.
_ENTRY = re.compile(
    r"(?!redacted-|[$<{%*(/~.])(?=\S*[A-Za-z])(?=\S*[0-9!@#^&*+~?])\S{8,200}"
)
#: In capitals a name is a variable of the environment, whose value has no quotes.
_VARIABLE = (
    rb"(?:PASSWORD|PASSWD|(?<=_)PASS|PWD|SECRET|TOKEN|API_?KEY|(?<=_)KEY)"
    rb"(?:_[A-Z0-9_]{1,30})?=(?P<secret>" + _VALUE % 8 + rb")"
)
_AWS_SECRET = (
    rb"secret_?(?:access_?)?key[\"'\\]{0,16}\s{0,4}[:=]\s{0,4}[\"'\\]{0,16}"
    rb"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)


class Haystack:
    """A text to search, in the forms in which anchors are found fast.

    Attributes:
        data: the text.
        runs: its runs of characters of which secrets without spaces consist, as far as
            they are long enough for one.
        absent: signs that no run holds.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.runs = b" ".join(data[start:stop] for start, stop in _find_runs(data))
        self.absent = frozenset(sign for sign in b"-_.:=/" if sign not in self.runs)

    @cached_property
    def lower(self) -> bytes:
        """The text in lower case."""
        return self.data.lower()

    @cached_property
    def lower_runs(self) -> bytes:
        """The runs in lower case."""
        return self.runs.lower()


@dataclass(frozen=True, slots=True)
class SecretPattern:
    """A kind of secret.

    Attributes:
        regex: its groups are replaced if they are named ``secret``, ``quoted`` or
            ``bare``; otherwise all that it matches.
        anchors: bytes, or a pattern, that every match contains; in lower case if the
            pattern ignores case.
        reach: how many bytes before its anchor a match may begin.
        is_run: whether a match, anchor and all, lies within a long run.
    """

    regex: re.Pattern[bytes]
    anchors: tuple[bytes, ...] | re.Pattern[bytes]
    reach: Sequence[int] = (0,)
    is_run: bool = False

    def find(self, text: Haystack) -> Iterator[tuple[int, int]]:
        """Where secrets of this kind stand."""
        end = 0
        for position in self._anchored(text):
            for start in (position - back for back in self.reach):
                match = self.regex.match(text.data, start) if start >= end else None
                if match:
                    yield _secret_span(match)
                    end = match.end()
                    break

    def _anchored(self, text: Haystack) -> Iterator[int]:
        if isinstance(self.anchors, re.Pattern):
            yield from (match.start() for match in self.anchors.finditer(text.data))
            return
        folded = self.regex.flags & re.IGNORECASE
        data, runs = (text.lower, text.lower_runs) if folded else (text.data, text.runs)
        for anchor in self.anchors:
            if self.is_run and (text.absent & {*anchor} or anchor not in runs):
                continue
            position = data.find(anchor)
            while position >= 0:
                yield position
                position = data.find(anchor, position + 1)


def find_secrets(data: bytes) -> list[tuple[int, int]]:
    """Where secrets stand in a text, in order; those that overlap are one."""
    text = Haystack(data)
    patterns = compile_patterns()
    if len(text.runs) <= _FEW and not _run_anchors().search(text.runs):
        patterns = _outside_runs()
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(s for pattern in patterns for s in pattern.find(text)):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


@cache
def compile_patterns() -> tuple[SecretPattern, ...]:
    """All kinds of secrets."""
    own = [
        *(_prefixed(prefix, rest) for prefix, rest in _PREFIXED.items()),
        *(_led(lead, rest, is_run=True) for lead, rest in _LED.items()),
        *(_led(lead, rest, is_run=False) for lead, rest in _SPACED.items()),
        SecretPattern(re.compile(_PRIVATE_KEY, re.DOTALL), (b"-----BEGIN ",)),
        SecretPattern(re.compile(_PUTTY_KEY, re.DOTALL), (b"PuTTY-User-Key-File-",)),
        SecretPattern(
            re.compile(_VARIABLE),
            (b"PASS", b"PWD", b"SECRET", b"TOKEN", b"KEY"),
            (0, 3),
        ),
        SecretPattern(re.compile(_AWS_SECRET, re.IGNORECASE), (b"secret",)),
    ]
    return (*own, _assigned(), *_scanned())


@cache
def _outside_runs() -> tuple[SecretPattern, ...]:
    return tuple(pattern for pattern in compile_patterns() if not pattern.is_run)


@cache
def _run_anchors() -> re.Pattern[bytes]:
    """Whether a short text holds an anchor: quicker than to look for one by one."""
    anchors = {
        re.escape(anchor)
        for pattern in compile_patterns()
        if pattern.is_run and isinstance(pattern.anchors, tuple)
        for anchor in pattern.anchors
    }
    return re.compile(b"|".join(sorted(anchors)), re.IGNORECASE)


def is_secret_entry(name: str, value: str) -> bool:
    """Whether a JSON object's key names a secret and its value can be one."""
    return bool(_ENTRY.fullmatch(value)) and _names_secret(name)


@lru_cache(maxsize=4096)
def _names_secret(name: str) -> bool:
    line = Haystack(f"{name}='A1B2C3D4'".encode(errors="surrogatepass"))
    return any(_assigned().find(line))


def _prefixed(prefix: bytes, rest: bytes) -> SecretPattern:
    start = _START if len(prefix) < _DISTINCT else b""
    regex = re.compile(start + re.escape(prefix) + rest)
    return SecretPattern(regex, (prefix,), is_run=b" " not in prefix)


def _led(lead: bytes, rest: bytes, *, is_run: bool) -> SecretPattern:
    return SecretPattern(re.compile(re.escape(lead) + rest), (lead,), is_run=is_run)


def _find_runs(data: bytes) -> Iterator[tuple[int, int]]:
    classes = data.translate(_RUNS)
    run = b"a" * _LEAST_RUN
    start = classes.find(run)
    while start >= 0:
        stop = classes.find(b" ", start)
        stop = len(data) if stop < 0 else stop
        yield start, stop
        start = classes.find(run, stop)


@cache
def _assigned() -> SecretPattern:
    """A value that is given to a name."""
    from detect_secrets.plugins.keyword import DENYLIST

    endings: dict[str, set[str]] = {}
    for name in (*DENYLIST, *_NAMES):
        if name.isascii():
            before, _, ending = name.rpartition("_?")
            endings.setdefault(ending, set()).add(before)
    names = b"|".join(_behind(before) + e.encode() for e, before in endings.items())
    anchors = (
        e.encode()
        for e in endings
        if not any(e != other and e.startswith(other) for other in endings)
    )
    regex = re.compile(b"(?:" + names + b")" + _ASSIGNED, re.IGNORECASE)
    return SecretPattern(regex, tuple(anchors))


def _behind(words: set[str]) -> bytes:
    if "" in words:
        return b""
    whole = [word + glue for word in sorted(words) for glue in ("", "_", "-")]
    return b"(?:" + b"|".join(b"(?<=%s)" % word.encode() for word in whole) + b")"


def _scanned() -> Iterator[SecretPattern]:
    """Patterns of detect-secrets, as data: nothing of it is run."""
    from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
    from detect_secrets.plugins.discord import DiscordBotTokenDetector
    from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
    from detect_secrets.plugins.mailchimp import MailchimpDetector
    from detect_secrets.plugins.pypi_token import PypiTokenDetector
    from detect_secrets.plugins.sendgrid import SendGridDetector
    from detect_secrets.plugins.slack import SlackDetector
    from detect_secrets.plugins.square_oauth import SquareOAuthDetector
    from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
    from detect_secrets.plugins.twilio import TwilioKeyDetector

    gitlab = b"glpat- gldt- glft- glsoat- glrt- GR1348941 glcbt- glimt- glptt- glagent-"
    for detector, anchors in (
        (AzureStorageKeyDetector, b"AccountKey="),
        (GitLabTokenDetector, gitlab + b" gloas-"),
        (PypiTokenDetector, b"pypi-AgE"),
        (SendGridDetector, b"SG."),
        (SlackDetector, b"https://hooks.slack.com/"),
        (SquareOAuthDetector, b"sq0csp-"),
        (TwilioKeyDetector, b"AC SK"),
    ):
        regex = _joined(detector.denylist)
        yield SecretPattern(regex, tuple(anchors.split()), is_run=True)
    # Their beginning is any letter or digit, so they are found by what follows.
    for begun, anchor, reach in (
        (DiscordBotTokenDetector, rb"\.[\w-]{6}\.[\w-]{27}", range(24, 27)),
        (MailchimpDetector, rb"-us\d{1,2}" + _END, (32,)),
        (TelegramBotTokenDetector, rb":[\w-]{35}" + _END, range(10, 7, -1)),
    ):
        regex = _joined(begun.denylist)
        yield SecretPattern(regex, re.compile(anchor), reach)


def _joined(patterns: Iterable[re.Pattern[str]]) -> re.Pattern[bytes]:
    """One pattern for several, of bytes and whole words."""
    whole = b"|".join(pattern.pattern.encode() for pattern in patterns)
    folded = {pattern.flags & re.IGNORECASE for pattern in patterns}
    return re.compile(_START + b"(?:" + whole + b")" + _END, folded.pop())


def _secret_span(match: re.Match[bytes]) -> tuple[int, int]:
    named = (name for name in ("secret", "quoted", "bare") if name in match.groupdict())
    spans = (match.span(name) for name in named)
    return next((span for span in spans if span[0] >= 0), match.span())
