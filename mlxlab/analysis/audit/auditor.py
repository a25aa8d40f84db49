"""Follows the requests of any server: what it claims to reuse, what it could have.

Prompts are rendered by our tokenizer and template. So shares are scaled to the server's
own count of tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from mlxlab.analysis.audit.result import Audit
from mlxlab.analysis.misses.attribution import (
    Attributor,
    History,
    RequestAttribution,
)
from mlxlab.analysis.misses.causes import NOTHING
from mlxlab.analysis.misses.losses import find_break, find_losses, main_cause
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import ModelFolder
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Tokens
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.bounds import UnlimitedMemory, find_bounds, tabulate_bounds
from mlxlab.replay.endpoints.chat_requests import as_messages
from mlxlab.replay.endpoints.dialect import Usage
from mlxlab.replay.endpoints.messages import read_usage
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest, render_exchange
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.traces import Exchange, Trace

__all__ = ["Audited", "Auditor"]

#: Share of a prompt below which a loss is not worth a word.
_WORTH = 0.02


@dataclass(frozen=True, slots=True)
class Audited:
    """One request of a server; tokens are scaled to the server's count.

    Attributes:
        claimed_tokens: reused, as the server states; None if it does not.
        possible_tokens: the most that exact reuse of the prompt as sent could reuse.
        served_tokens: what the strategy would have reused under its rules.
        lost_tokens: possible and not claimed: the server had computed them before.
        cause: why most of the tokens beyond the possible ones are new at their place.
        label: the block that they begin in.
        remedy: what would have saved tokens of this cause; empty if nothing would have.
    """

    session: str
    request: int
    prompt_tokens: int
    claimed_tokens: int | None
    possible_tokens: int
    served_tokens: int
    lost_tokens: int | None
    cause: str
    label: str
    remedy: str

    def line(self) -> str:
        """Return the request in one line."""
        claimed, tokens = self.claimed_tokens, self.prompt_tokens
        claim = (
            "reuse not stated"
            if claimed is None
            else f"claims {self._share(claimed)} reused"
        )
        why = []
        if self.lost_tokens and self.lost_tokens > _WORTH * tokens:
            why.append(
                f"the server had computed {self.lost_tokens:,} of the rest before"
            )
        if self.remedy and self.served_tokens - self.possible_tokens > _WORTH * tokens:
            why.append(f"{self.cause} in {self.label}: {self.remedy}")
        possible, served = map(self._share, (self.possible_tokens, self.served_tokens))
        return (
            f"{self.session} #{self.request}: {tokens:,} tokens, {claim}; possible "
            f"{possible}, with rules {served}" + "".join(f"; {own}" for own in why)
        )

    def _share(self, tokens: int) -> str:
        return f"{tokens / self.prompt_tokens:.0%}"


class Auditor:
    """Takes requests in order of arrival, each with its answer.

    Args:
        trace: name of the recording, for errors.
        folder: its tokenizer and template count.
        spec: the strategy and rules that are held against the server.
    """

    def __init__(self, trace: str, folder: ModelFolder, spec: StrategySpec) -> None:
        self._trace = trace
        self._folder, self._spec = folder, spec
        self._plain, self._ruled = Renderer(folder, ()), Renderer(folder, spec.rules)
        size = folder.layout.token_bytes()
        self._memory = UnlimitedMemory(token_bytes=size)
        self._attributor = Attributor(self._memory, self._decode, History())
        self._simulator = Simulator(spec.make(folder.layout))
        self._equipped: set[str] = set()
        self._rows: list[Audited] = []
        self._causes: list[dict[str, Any]] = []
        self._requests: list[RenderedRequest] = []
        self._refused: list[str] = []

    def take(self, exchange: Exchange) -> Audited | None:
        """Return what is known of one request; None if it asked for no answer.

        One that cannot be rendered is counted, and None as well.
        """
        try:
            exchange = as_messages(exchange)
            if not exchange.is_inference or exchange.body is None:
                return None
            if exchange.body.get("tools"):
                self._equipped.add(exchange.session)
            plain, ruled = (
                self._render(exchange, own) for own in (self._plain, self._ruled)
            )
        except MlxlabError as error:
            self._refused.append(str(error))
            return None
        attribution = self._attribute(plain)
        served = self._simulator.replay(ruled).reused_tokens / ruled.tokens
        row = self._row(attribution, _usage(exchange), served)
        self._requests.append(plain)
        self._rows.append(row)
        return row

    def close(self, trace: Trace) -> Audit:
        """Return the result.

        Args:
            trace: the requests that were taken.

        Raises:
            MlxlabError: none could be audited.
        """
        if not self._rows:
            first = self._refused[0] if self._refused else "none asks for an answer"
            raise MlxlabError(
                f"trace {trace.name}: none of its requests can be audited: {first}"
            )
        memory = self._simulator.strategy.capacity
        layout = CacheLayout.plain(self._folder.layout.token_bytes())
        bounds, most = find_bounds(self._requests, [memory], layout)
        notes = self._plain.notes + self._ruled.notes
        if self._refused:
            notes[f"not audited; the first: {self._refused[0]}"] = len(self._refused)
        manifest = describe_run([trace], self._folder, [self._spec], notes, {})
        counts = ("claimed_tokens", "lost_tokens")
        rows = pd.DataFrame(map(asdict, self._rows))
        columns = ["session", "request", "cause", "remedy", "tokens"]
        return Audit(
            rows.astype(dict.fromkeys(counts, "Int64")),
            tabulate_bounds(bounds, most),
            manifest,
            pd.DataFrame(self._causes, columns=columns),
        )

    def _render(self, exchange: Exchange, renderer: Renderer) -> RenderedRequest:
        """Return the request without the order in which a server planned it."""
        name, equipped = self._trace, self._equipped
        return replace(render_exchange(name, exchange, renderer, equipped), order=None)

    def _attribute(self, request: RenderedRequest) -> RequestAttribution:
        plan = self._memory.plan(request.prompt)
        attribution = self._attributor.attribute(request, plan)
        length = len(request.computed)
        self._attributor.commit(request, plan, length, request.use)
        return attribution

    def _decode(self, tokens: Tokens) -> str:
        return str(self._plain.tokenizer.decode(tokens, skip_special_tokens=True))

    def _row(
        self, attribution: RequestAttribution, usage: Usage | None, served: float
    ) -> Audited:
        request = attribution.request
        prompt = usage.prompt if usage else request.tokens
        claimed = usage.reused if usage else None
        scale = prompt / request.tokens
        possible = round(attribution.plan.reused * scale)
        losses = list(find_losses(attribution, self._memory, ()))
        self._causes += [
            {
                "session": request.session,
                "request": request.id,
                "cause": str(loss.cause),
                "remedy": loss.remedy,
                "tokens": loss.tokens * scale,
            }
            for loss in losses
        ]
        cause = main_cause((loss.cause, loss.tokens) for loss in losses)
        remedies = (own.remedy for own in losses if own.cause is cause)
        return Audited(
            request.session,
            request.id,
            prompt_tokens=prompt,
            claimed_tokens=claimed,
            possible_tokens=possible,
            served_tokens=round(served * prompt),
            lost_tokens=None if claimed is None else max(possible - claimed, 0),
            cause=str(cause),
            label=find_break(attribution).label,
            remedy=next((own for own in remedies if not own.startswith(NOTHING)), ""),
        )


def _usage(exchange: Exchange) -> Usage | None:
    """Return what an answer states of its prompt."""
    message = exchange.response.message if exchange.response else None
    usage = (message or {}).get("usage")
    return read_usage(usage) if isinstance(usage, dict) else None
