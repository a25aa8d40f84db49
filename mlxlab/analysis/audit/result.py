"""An audit: each request of a server with what it claims and what was possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mlxlab.analysis.result import Result, describe_traces
from mlxlab.analysis.tables import Forms, format_bounds, format_columns

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Audit"]

#: Requests that the table has room for: those that lost most.
_MOST = 40
_PERCENT = "{:.0%}".format
_COUNT = "{:,.0f}".format
_REQUESTS: Forms = {
    "session": ("session", str),
    "request": ("request", "#{}".format),
    "prompt_tokens": ("prompt\ntokens", _COUNT),
    "claimed": ("claimed", _PERCENT),
    "possible": ("possible", _PERCENT),
    "served": ("with\nrules", _PERCENT),
    "lost_tokens": ("lost\ntokens", _COUNT),
    "cause": ("why the rest is new", str),
}
_CAUSES: Forms = {
    "cause": ("beyond the possible", str),
    "tokens": ("tokens", _COUNT),
    "requests": ("requests", _COUNT),
    "remedy": ("what would have saved them", str),
}


@dataclass(frozen=True, eq=False, repr=False)
class Audit(Result):
    """The result of :func:`mlxlab.audit`.

    Attributes:
        requests: one row per request; tokens are scaled to the server's own count.
            Columns: ``session``, ``request``, ``prompt_tokens``, ``claimed_tokens``
            (reused, as the server states; missing if it does not), ``possible_tokens``
            (the most that exact reuse of the prompts as sent could reuse),
            ``served_tokens`` (what the strategy would have reused under its rules),
            ``lost_tokens`` (possible and not claimed: the server had computed them
            before), ``cause``, ``label`` and ``remedy`` of most tokens beyond the
            possible ones; the remedy is empty if nothing would have saved them.
        causes: one row per request and cause of tokens beyond the possible ones.
            Columns: ``session``, ``request``, ``cause``, ``remedy``, ``tokens``.
    """

    kind = "audit"

    causes: pd.DataFrame

    @property
    def title(self) -> str:
        number = len(self.requests)
        model = self.manifest["model"]["name"]
        return (
            f"audit of {describe_traces(self.manifest)}: {number} requests, tokenizer "
            f"and template of {model}"
        )

    def summary(self) -> pd.DataFrame:
        """Return one row with shares of the prompt tokens.

        Columns: ``requests``, ``prompt_tokens``, ``claimed``, ``possible`` (exact reuse
        of the prompts as sent), ``served`` (the strategy under its rules) and
        ``lost_tokens``. Claims are over the requests whose answers state them.
        """
        rows = self.requests
        stated = rows[rows.claimed_tokens.notna()]
        tokens = rows.prompt_tokens.sum()
        claims = len(stated) > 0
        own = (
            stated.claimed_tokens.sum() / stated.prompt_tokens.sum() if claims else None
        )
        return pd.DataFrame(
            {
                "requests": [len(rows)],
                "prompt_tokens": [int(tokens)],
                "claimed": [own],
                "possible": [rows.possible_tokens.sum() / tokens],
                "served": [rows.served_tokens.sum() / tokens],
                "lost_tokens": [int(stated.lost_tokens.sum()) if claims else None],
            }
        )

    def lines(self) -> list[str]:
        """Return what was claimed, what was possible, and what rules would add."""
        row = self.summary().iloc[0]
        strategy = self.manifest["strategies"][0]["strategy"]
        claim = "The server does not state its reuse"
        if pd.notna(row.claimed):
            claim = f"The server claims {row.claimed:.1%} of all prompt tokens reused"
        possible = f"{row.possible:.1%} were possible with the prompts as sent"
        lines = [f"{claim}; {possible}, {row.served:.1%} with {strategy} and rules."]
        if row.lost_tokens:
            lines.append(
                f"{int(row.lost_tokens):,} tokens were computed again although the "
                "server had computed them before."
            )
        return lines

    def tables(self) -> list[pd.DataFrame]:
        rows = self.requests
        shares = {
            name: (rows[f"{name}_tokens"] / rows.prompt_tokens).astype(float)
            for name in ("claimed", "possible", "served")
        }
        shown = rows.assign(**shares)
        if len(shown) > _MOST:
            computed = rows.prompt_tokens - rows.claimed_tokens.fillna(0)
            shown = shown.loc[computed.nlargest(_MOST).index.sort_values()]
        requests = pd.DataFrame(format_columns(shown, _REQUESTS))
        causes = pd.DataFrame(format_columns(self._by_cause(), _CAUSES))
        return [requests, causes, format_bounds(self.bounds)]

    def _by_cause(self) -> pd.DataFrame:
        groups = self.causes.groupby(["cause", "remedy"], sort=False)
        table = groups.sum(numeric_only=True)[["tokens"]].assign(requests=groups.size())
        return table.sort_values("tokens", ascending=False).reset_index()

    @property
    def notes(self) -> list[str]:
        more = len(self.requests) - _MOST
        left_out = f"{more} requests that computed less are left out of the table"
        return [*super().notes, *([left_out] if more > 0 else [])]

    def plot(self) -> Picture:
        """Draw each request's claimed, lost and remaining tokens."""
        from mlxlab.analysis.plots import plot_audit

        return plot_audit(self)
